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
// with the device as zone; false when there is none. A default route by another device is an
// error.
func Router(devices []string) (netip.Addr, bool, error) {
	for _, name := range devices {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return netip.Addr{}, false, fmt.Errorf("router: %s: %w", name, err)
		}
		routes, err := hostnet.Dump(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{LinkIndex: l.Attrs().Index}, netlink.RT_FILTER_OIF)
		})
		if err != nil {
			return netip.Addr{}, false, fmt.Errorf("router: routes of %s: %w", name, err)
		}
		for _, route := range routes {
			gateway, ok := netip.AddrFromSlice(route.Gw)
			if !ok || ones(route.Dst) != 0 {
				continue
			}
			if gateway.IsLinkLocalUnicast() {
				gateway = gateway.WithZone(name)
			}
			return gateway, true, nil
		}
	}
	return netip.Addr{}, false, leavesBy(devices)
}

// leavesBy is the error of a default route that leaves by none of the devices.
func leavesBy(devices []string) error {
	routes, err := hostnet.Dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V6) })
	if err != nil {
		return fmt.Errorf("router: default routes: %w", err)
	}
	for _, route := range routes {
		if ones(route.Dst) != 0 || route.Gw == nil {
			continue
		}
		if l, err := netlink.LinkByIndex(route.LinkIndex); err == nil {
			return fmt.Errorf("the default route leaves by %s, and copies by %s alone: name %s in [datapath] devices, or a neighbour behind them: --peer ADDRESS",
				l.Attrs().Name, strings.Join(devices, ", "), l.Attrs().Name)
		}
	}
	return nil
}

// ones is the length of a prefix, 0 for none.
func ones(n *net.IPNet) int {
	if n == nil {
		return 0
	}
	bits, _ := n.Mask.Size()
	return bits
}
