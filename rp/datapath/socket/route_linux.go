// SPDX-License-Identifier: LGPL-3.0-or-later

package socket

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
)

// Link implements datapath.Multicaster.
func (e *Engine) Link(peer netip.Addr) (zone string, err error) {
	routes, err := netlink.RouteGetWithOptions(peer.AsSlice(), &netlink.RouteGetOptions{SrcAddr: e.addr.Addr().AsSlice()})
	if err != nil {
		return "", fmt.Errorf("route to %v: %w", peer, err)
	}
	if len(routes) == 0 || routes[0].LinkIndex == 0 {
		return "", fmt.Errorf("route to %v: no interface", peer)
	}
	return strconv.Itoa(routes[0].LinkIndex), nil
}
