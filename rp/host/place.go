// SPDX-License-Identifier: LGPL-3.0-or-later

package host

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// internet stands for the nodes behind the default route: of the addresses for the Internet
// (2000::/3) the first, which nobody has.
var internet = netip.MustParseAddr("2000::")

// Misplaced returns an error when the XDP engine at the named devices would serve nobody at an
// address: the address is at a device that is not named, and that device is above a named one,
// as a VLAN, a bond or a bridge is, or the default route leaves by no named one either. What
// the kernel does not tell is no error.
func Misplaced(addr netip.Addr, devices []string) error {
	a, err := find(addr)
	if err != nil || a == nil {
		return nil
	}
	at, err := netlink.LinkByIndex(a.LinkIndex)
	if err != nil {
		return nil
	}
	name := at.Attrs().Name
	if at.Attrs().Flags&net.FlagLoopback != 0 || at.Type() == "dummy" || at.Type() == "vrf" {
		return nil // such an address is reached by other devices
	}
	var named []netlink.Link
	for _, d := range devices {
		if l, err := netlink.LinkByName(d); err == nil {
			named = append(named, l)
		}
	}
	is := func(index int) func(netlink.Link) bool {
		return func(l netlink.Link) bool { return index != 0 && l.Attrs().Index == index }
	}
	if len(named) == 0 || slices.ContainsFunc(named, is(a.LinkIndex)) {
		return nil
	}
	cure := fmt.Sprintf(`; name %s in [datapath] devices, or, if it takes no XDP program, set engine = "socket"`, name)
	for _, l := range named {
		if l.Attrs().MasterIndex == a.LinkIndex || parent(at) == l.Attrs().Index {
			return fmt.Errorf("the address %v is at %s (%s), a device above %s: its datagrams come and go by %s%s",
				addr, name, at.Type(), l.Attrs().Name, name, cure)
		}
	}
	routes, err := netlink.RouteGetWithOptions(internet.AsSlice(), &netlink.RouteGetOptions{SrcAddr: addr.AsSlice()})
	if err != nil || len(routes) == 0 || slices.ContainsFunc(named, is(routes[0].LinkIndex)) {
		return nil
	}
	by, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil || by.Attrs().Flags&net.FlagLoopback != 0 { // there is none, or one that refuses
		return nil
	}
	return fmt.Errorf("the address %v is at %s, the default route leaves by %s, and [datapath] devices are %s alone%s",
		addr, name, by.Attrs().Name, strings.Join(devices, ", "), cure)
}

// parent is the index of the device that another one is made from, 0 when there is none here.
func parent(l netlink.Link) int {
	a := l.Attrs()
	if l.Type() == "veth" || a.NetNsID >= 0 { // the number is that of another network namespace
		return 0
	}
	return a.ParentIndex
}
