// SPDX-License-Identifier: LGPL-3.0-or-later

// Package topology describes the network to emulate: routers with a LAN each,
// hosts on the LANs, and links with a delay between the routers. A description
// does nothing by itself.
//
// [TwoAS] is the smallest one that has a wide-area link:
//
//	AS 1, 2001:db8:1:1::/64                                        AS 2, 2001:db8:2:1::/64
//
//	as1-rp  ::53 --.                                               .-- as2-rp  ::53
//	as1-g1  ::a1 --+             2001:db8:f000:1::/126             +-- as2-g1  ::a1
//	               +-- ::1 [as1] ::1 ------------- ::2 [as2] ::1 --+
//	as1-g2  ::a2 --+                 20 ms one way                 +-- as2-g2  ::a2
//	as1-g3  ::a3 --'                                               '-- as2-g3  ::a3
//
// Each host and each router is a namespace of its own; a LAN is a bridge inside
// the namespace of its router, with one veth pair per host. LANs have no delay,
// so the one-way delay between two hosts is 0 or 20 ms. Each Ethereum node has
// all others as peers but the one of the same number in the other AS: in a real
// network nobody is everybody's peer.
package topology

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Topology is a whole network.
type Topology struct {
	Name    string
	Routers []Router
	Hosts   []Host
	Links   []Link

	// Peerings are the pairs of Ethereum nodes that are peers, by host name.
	Peerings [][2]string
}

// Router forwards between its LAN and its links. It has the first address of
// the LAN.
type Router struct {
	Name string
	AS   int
	LAN  netip.Prefix // /64
}

// Gateway is the address of the router on its LAN.
func (r Router) Gateway() netip.Addr { return r.LAN.Addr().Next() }

// Role is what runs on a host.
type Role string

const (
	RP   Role = "rp"   // a replication point
	Geth Role = "geth" // an Ethereum node
)

// Host is a machine on the LAN of a router.
type Host struct {
	Name   string
	Role   Role
	Router string
	Addr   netip.Addr
}

// Link joins two routers. A has the first address of Net and B the second one.
type Link struct {
	A, B  string
	Net   netip.Prefix  // /126
	Delay time.Duration // one way, the same in both directions
}

// AddrA and AddrB are the addresses of the ends.
func (l Link) AddrA() netip.Addr { return l.Net.Addr().Next() }
func (l Link) AddrB() netip.Addr { return l.AddrA().Next() }

// TwoAS is two ASes joined by one link of 20 ms, each with a replication point
// and three Ethereum nodes. See the package comment for a picture.
func TwoAS() *Topology {
	t := &Topology{
		Name: "two-as",
		Links: []Link{{
			A: "as1", B: "as2",
			Net:   netip.MustParsePrefix("2001:db8:f000:1::/126"),
			Delay: 20 * time.Millisecond,
		}},
	}
	t.addAS(1, 3)
	t.addAS(2, 3)
	for i, a := range t.HostsOf(Geth) {
		for k, b := range t.HostsOf(Geth) {
			if i < k && k != i+3 {
				t.Peerings = append(t.Peerings, [2]string{a.Name, b.Name})
			}
		}
	}
	return t
}

// addAS adds a router, a replication point and a number of Ethereum nodes. The
// decimal digits of the AS number stand in the prefix, so it is below 10,000.
func (t *Topology) addAS(as, geths int) {
	router := Router{
		Name: fmt.Sprintf("as%d", as),
		AS:   as,
		LAN:  netip.MustParsePrefix(fmt.Sprintf("2001:db8:%d:1::/64", as)),
	}
	t.Routers = append(t.Routers, router)
	add := func(name string, role Role, id string) {
		t.Hosts = append(t.Hosts, Host{
			Name:   router.Name + "-" + name,
			Role:   role,
			Router: router.Name,
			Addr:   netip.MustParseAddr(fmt.Sprintf("2001:db8:%d:1::%s", as, id)),
		})
	}
	add("rp", RP, "53")
	for i := 1; i <= geths; i++ {
		add(fmt.Sprintf("g%d", i), Geth, fmt.Sprintf("a%d", i))
	}
}

// HostsOf are the hosts with a role, in the order of the description.
func (t *Topology) HostsOf(role Role) []Host {
	var hosts []Host
	for _, h := range t.Hosts {
		if h.Role == role {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// Peers are the names of the Ethereum peers of a host.
func (t *Topology) Peers(host string) []string {
	var peers []string
	for _, p := range t.Peerings {
		switch host {
		case p[0]:
			peers = append(peers, p[1])
		case p[1]:
			peers = append(peers, p[0])
		}
	}
	return peers
}

// Router finds a router by name.
func (t *Topology) Router(name string) (Router, bool) {
	i := slices.IndexFunc(t.Routers, func(r Router) bool { return r.Name == name })
	if i < 0 {
		return Router{}, false
	}
	return t.Routers[i], true
}

// maxName leaves room for the prefix "p-" or "w-" in an interface name, which
// has at most 15 bytes.
const maxName = 13

// Validate reports the first mistake in a description.
func (t *Topology) Validate() error {
	names := make(map[string]bool)
	addrs := make(map[netip.Addr]string)
	name := func(n string) error {
		if n == "" || len(n) > maxName {
			return fmt.Errorf("topology %s: name %q does not have 1 to %d bytes", t.Name, n, maxName)
		}
		if names[n] {
			return fmt.Errorf("topology %s: two nodes are called %s", t.Name, n)
		}
		names[n] = true
		return nil
	}
	addr := func(owner string, a netip.Addr) error {
		if !a.Is6() || a.Is4In6() {
			return fmt.Errorf("topology %s: address %s of %s is not IPv6", t.Name, a, owner)
		}
		if other, ok := addrs[a]; ok {
			return fmt.Errorf("topology %s: %s and %s both have %s", t.Name, other, owner, a)
		}
		addrs[a] = owner
		return nil
	}
	for _, r := range t.Routers {
		if err := name(r.Name); err != nil {
			return err
		}
		if err := addr(r.Name, r.Gateway()); err != nil {
			return err
		}
	}
	for _, h := range t.Hosts {
		if err := name(h.Name); err != nil {
			return err
		}
		if err := addr(h.Name, h.Addr); err != nil {
			return err
		}
		r, ok := t.Router(h.Router)
		if !ok {
			return fmt.Errorf("topology %s: host %s is behind unknown router %q", t.Name, h.Name, h.Router)
		}
		if !r.LAN.Contains(h.Addr) {
			return fmt.Errorf("topology %s: %s of %s is outside of the LAN %s", t.Name, h.Addr, h.Name, r.LAN)
		}
	}
	for _, l := range t.Links {
		for _, end := range []struct {
			router string
			addr   netip.Addr
		}{{l.A, l.AddrA()}, {l.B, l.AddrB()}} {
			if _, ok := t.Router(end.router); !ok {
				return fmt.Errorf("topology %s: link %s-%s has unknown end %q", t.Name, l.A, l.B, end.router)
			}
			if err := addr(end.router, end.addr); err != nil {
				return err
			}
		}
		if l.A == l.B || l.Delay < 0 {
			return fmt.Errorf("topology %s: link %s-%s has one end or a negative delay", t.Name, l.A, l.B)
		}
	}
	for _, p := range t.Peerings {
		for _, name := range p {
			isHost := func(h Host) bool { return h.Name == name && h.Role == Geth }
			if !slices.ContainsFunc(t.Hosts, isHost) || p[0] == p[1] {
				return fmt.Errorf("topology %s: peering %s-%s is not one of two Ethereum nodes", t.Name, p[0], p[1])
			}
		}
	}
	for _, a := range t.Routers {
		for _, b := range t.Routers {
			if _, ok := t.Delay(a.Name, b.Name); !ok {
				return fmt.Errorf("topology %s: no path from %s to %s", t.Name, a.Name, b.Name)
			}
		}
	}
	return nil
}
