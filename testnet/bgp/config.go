// SPDX-License-Identifier: LGPL-3.0-or-later

package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ethmcast/mdcs/testnet/topology"
)

// session is one end of a BGP session.
type session struct {
	protocol  string // its name in the configuration
	neighbour string // name of the AS or IXP
	number    int    // of the neighbour
	local     netip.Addr
	remote    netip.Addr
	from      string // filter for what is heard
	to        string // filter for what is told
}

// speaker is a router or a route server.
type speaker struct {
	name     string
	number   int
	ixp      bool // it is the route server of an IXP
	sessions []session
	prefix   netip.Prefix // what a router announces
	silent   map[int][]int
}

// speakers are the routers of all ASes, then the route servers, in the order of
// the topology.
func speakers(t *topology.Topology) []speaker {
	var list []speaker
	for _, as := range t.ASes {
		list = append(list, router(t, as))
	}
	for _, x := range t.IXPs {
		list = append(list, routeServer(t, x))
	}
	return list
}

func router(t *topology.Topology, as topology.AS) speaker {
	s := speaker{name: as.Name, number: as.Number, prefix: as.Prefix()}
	add := func(neighbour string, number int, local, remote netip.Addr, from, to string) {
		s.sessions = append(s.sessions, session{
			protocol: fmt.Sprintf("bgp%d", len(s.sessions)), neighbour: neighbour, number: number,
			local: local, remote: remote, from: from, to: to,
		})
	}
	for _, l := range t.Links {
		a, _ := t.AS(l.A)
		b, _ := t.AS(l.B)
		switch {
		case l.A == as.Name && l.Relation == topology.Transit:
			add(l.B, b.Number, l.AddrA(), l.AddrB(), "from_customer", "to_customer")
		case l.B == as.Name && l.Relation == topology.Transit:
			add(l.A, a.Number, l.AddrB(), l.AddrA(), "from_provider", "to_others")
		case l.A == as.Name:
			add(l.B, b.Number, l.AddrA(), l.AddrB(), "from_peer", "to_others")
		case l.B == as.Name:
			add(l.A, a.Number, l.AddrB(), l.AddrA(), "from_peer", "to_others")
		}
	}
	for _, x := range t.IXPs {
		for _, m := range x.Members {
			if m.AS == as.Name {
				add(x.Name, x.Number, m.Addr, x.RouteServer(), "from_peer", "to_others")
			}
		}
	}
	return s
}

func routeServer(t *topology.Topology, x topology.IXP) speaker {
	s := speaker{name: x.Name, number: x.Number, ixp: true, silent: make(map[int][]int)}
	for _, m := range x.Members {
		as, _ := t.AS(m.AS)
		s.sessions = append(s.sessions, session{
			protocol: fmt.Sprintf("bgp%d", len(s.sessions)), neighbour: m.AS, number: as.Number,
			local: x.RouteServer(), remote: m.Addr,
		})
		if m.ExportTo == nil {
			continue
		}
		for _, other := range x.Members {
			to, _ := t.AS(other.AS)
			if to.Number != as.Number && !slices.Contains(m.ExportTo, to.Number) {
				s.silent[to.Number] = append(s.silent[to.Number], as.Number)
			}
		}
	}
	return s
}

// Timers. A link that swallows frames is noticed after bfdMultiplier intervals;
// BGP alone would need its hold time.
const (
	bfdInterval   = 200 // ms
	bfdMultiplier = 3
)

// identifier is the BGP identifier. A lower number has a lower one, as the choice
// among equal routes expects.
func identifier(number int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 0, byte(number >> 8), byte(number)})
}

// config is the configuration of BIRD 2. The relation to the neighbour that
// announced a route stands in a large community (own number, 1, relation); it
// decides on the local preference, and on who may hear of the route.
func (s *speaker) config() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("log stderr { info, remote, warning, error, auth, fatal, bug };")
	p("router id %s;", identifier(s.number))
	if s.ixp {
		p("ipv6 table master6 sorted;") // for the second-best routes below
	}
	// BIRD 2.0 may sleep for 3 s although a table waits to be sent. A timer ends
	// its sleep.
	p("protocol device { scan time 1; }")
	p("protocol bfd { interface \"*\" { interval %d ms; multiplier %d; }; }", bfdInterval, bfdMultiplier)
	if !s.ixp {
		s.policy(p)
	}
	p("template bgp neighbour {")
	p("  local as %d;", s.number)
	p("  hold time 30; keepalive time 10;")
	p("  connect delay time 0; connect retry time 1; error wait time 1, 1;")
	p("  bfd on; check link on; enforce first as off;")
	p("}")
	for _, x := range s.sessions {
		p("protocol bgp %s from neighbour { # %s", x.protocol, x.neighbour)
		p("  source address %s; neighbor %s as %d;", x.local, x.remote, x.number)
		if s.ixp {
			export := "all"
			if silent := s.silent[x.number]; len(silent) > 0 {
				export = "where !(bgp_path.first ~ [" + strings.Trim(strings.Join(strings.Fields(fmt.Sprint(silent)), ", "), "[]") + "])"
			}
			p("  rs client; ipv6 { import all; export %s; secondary on; };", export)
		} else {
			p("  ipv6 { import filter %s; export filter %s; next hop self; };", x.from, x.to)
		}
		p("}")
	}
	return b.String()
}

// policy is what makes a router follow Gao and Rexford.
func (s *speaker) policy(p func(string, ...any)) {
	p("protocol kernel { ipv6 { import none; export where source = RTS_BGP; }; metric 512; }")
	p("protocol static own { ipv6 { import filter { bgp_large_community.add((%d, 1, 0)); accept; }; }; route %s unreachable; }",
		s.number, s.prefix)
	for i, relation := range []string{"customer", "peer", "provider"} {
		preference := []int{200, 100, 50}[i]
		p("filter from_%s {", relation)
		p("  bgp_large_community.delete([(%d, 1, *)]);", s.number)
		p("  bgp_large_community.add((%d, 1, %d));", s.number, i+1)
		p("  bgp_local_pref = %d;", preference)
		p("  accept;")
		p("}")
	}
	p("filter to_customer { if bgp_large_community ~ [(%d, 1, *)] then accept; reject; }", s.number)
	p("filter to_others { if bgp_large_community ~ [(%d, 1, 0..1)] then accept; reject; }", s.number)
}

// Config is the configuration of BIRD 2 for the router of an AS or the route
// server of an IXP; nil if the topology has none of that name.
func Config(t *topology.Topology, router string) []byte {
	for _, s := range speakers(t) {
		if s.name == router {
			return []byte(s.config())
		}
	}
	return nil
}
