// SPDX-License-Identifier: LGPL-3.0-or-later

package host

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/ethmcast/mdcs/rp/hostnet"
)

// Router returns the address of a default router that is reached by one of the devices,
// with the device as zone; false when there is none. A default route by other devices alone is an
// error.
func Router(devices []string) (netip.Addr, bool, error) {
	routers, err := defaultRouters()
	if err != nil {
		return netip.Addr{}, false, fmt.Errorf("router: default routes: %w", err)
	}
	for _, name := range devices {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return netip.Addr{}, false, fmt.Errorf("router: %s: %w", name, err)
		}
		for _, r := range routers {
			if r.device != l.Attrs().Index {
				continue
			}
			if r.addr.IsLinkLocalUnicast() {
				return r.addr.WithZone(name), true, nil
			}
			return r.addr, true, nil
		}
	}
	for _, r := range routers {
		if l, err := netlink.LinkByIndex(r.device); err == nil {
			return netip.Addr{}, false, fmt.Errorf("the default route leaves by %s, and copies by %s alone: name %s in [datapath] devices, or a host behind them: --peer ADDRESS",
				l.Attrs().Name, strings.Join(devices, ", "), l.Attrs().Name)
		}
	}
	return netip.Addr{}, false, nil
}

// router is a next hop of a default route.
type router struct {
	addr   netip.Addr
	device int // interface index
}

// defaultRouters returns the next hops of all default routes for IPv6, also of those that have several.
func defaultRouters() (routers []router, err error) {
	routes, err := hostnet.Dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V6) })
	if err != nil {
		return nil, err
	}
	for _, route := range routes {
		if ones(route.Dst) != 0 {
			continue
		}
		hops := route.MultiPath
		if len(hops) == 0 {
			hops = []*netlink.NexthopInfo{{LinkIndex: route.LinkIndex, Gw: route.Gw}}
		}
		for _, hop := range hops {
			if addr, ok := netip.AddrFromSlice(hop.Gw); ok {
				routers = append(routers, router{addr, hop.LinkIndex})
			}
		}
	}
	return routers, nil
}

// ones is the length of a prefix, 0 for none.
func ones(n *net.IPNet) int {
	if n == nil {
		return 0
	}
	bits, _ := n.Mask.Size()
	return bits
}
