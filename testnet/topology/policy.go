// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"cmp"
	"net/netip"
	"slices"
)

// origin is from whom an AS has a route. A larger one is preferred.
type origin int

const (
	fromProvider origin = iota
	fromPeer
	fromCustomer
	ownPrefix
)

// route is how an AS reaches a destination.
type route struct {
	origin origin
	hops   []hop      // empty at the destination
	id     int        // BGP identifier of the neighbour that announced it
	addr   netip.Addr // and its address
}

// session is a BGP session with a neighbour, or with a route server.
type session struct {
	neighbour string
	origin    origin // of what the neighbour announces
	export    origin // least origin of what the neighbour announces: ownPrefix and fromCustomer, or all
	id        int
	addr      netip.Addr
	hop       hop

	ixp  *IXP // the neighbour is its route server
	port Member
}

// BGP are the paths that BGP chooses: routes of customers before those of peers
// before those of providers, then the shortest AS path, the lowest BGP
// identifier of the neighbour (the AS number), and its lowest address. To peers
// and providers an AS announces its own prefix and those of its customers, to
// customers all that it has. The route server of an IXP is a peer that does not
// stand in the AS path: it passes on to each member the best route of the others
// that is meant for it.
//
// This is the order of RFC 4271, 9.1.2.2, which BIRD follows; by Gao and
// Rexford (2001), the outcome does not depend on who speaks first.
func (t *Topology) BGP() *Paths { return t.bgp(nil) }

func (t *Topology) bgp(down map[string]bool) *Paths {
	var (
		p        = &Paths{hops: make(map[[2]string][]hop)}
		sessions = t.sessions(down)
	)
	for _, to := range t.ASes {
		for name, r := range t.converge(to.Name, sessions) {
			p.hops[[2]string{name, to.Name}] = r.hops
		}
	}
	return p
}

// sessions are the BGP sessions of each AS.
func (t *Topology) sessions(down map[string]bool) map[string][]session {
	number := make(map[string]int)
	for _, a := range t.ASes {
		number[a.Name] = a.Number
	}
	all := make(map[string][]session)
	add := func(as string, s session) {
		s.id = number[s.neighbour]
		s.addr = s.hop.via
		all[as] = append(all[as], s)
	}
	for _, l := range t.Links {
		if down[l.Name()] {
			continue
		}
		lines := []crossing{{l.Name(), l.Line}}
		toA := session{neighbour: l.A, origin: fromPeer, export: fromCustomer, hop: hop{l.A, l.AddrA(), lines}}
		toB := session{neighbour: l.B, origin: fromPeer, export: fromCustomer, hop: hop{l.B, l.AddrB(), lines}}
		if l.Relation == Transit {
			toA.origin, toA.export = fromProvider, fromProvider
			toB.origin = fromCustomer
		}
		add(l.A, toB)
		add(l.B, toA)
	}
	for _, x := range t.IXPs {
		x.Members = slices.DeleteFunc(slices.Clone(x.Members), func(m Member) bool { return down[x.PortName(m.AS)] })
		for _, m := range x.Members {
			all[m.AS] = append(all[m.AS], session{
				origin: fromPeer, id: x.Number, addr: x.RouteServer(), ixp: &x, port: m,
			})
		}
	}
	return all
}

// converge lets all ASes choose their route to one destination, until nobody
// changes it any more.
func (t *Topology) converge(to string, sessions map[string][]session) map[string]route {
	best := map[string]route{to: {origin: ownPrefix}}
	number := make(map[string]int)
	for _, a := range t.ASes {
		number[a.Name] = a.Number
	}
	// Routes of customers spread upwards, then those of peers, then those of
	// providers downwards: each takes fewer rounds than there are ASes.
	for range 3 * len(t.ASes) {
		next := map[string]route{to: best[to]}
		for _, a := range t.ASes {
			if a.Name == to {
				continue
			}
			for _, s := range sessions[a.Name] {
				r, ok := s.hear(a, best, number)
				if !ok || slices.ContainsFunc(r.hops, func(h hop) bool { return h.as == a.Name }) {
					continue
				}
				if old, ok := next[a.Name]; !ok || r.compare(old) < 0 {
					next[a.Name] = r
				}
			}
		}
		if sameRoutes(best, next) {
			break
		}
		best = next
	}
	return best
}

// hear is what the neighbour announces to an AS.
func (s session) hear(as AS, best map[string]route, number map[string]int) (route, bool) {
	if s.ixp == nil {
		r, ok := best[s.neighbour]
		if !ok || r.origin < s.export {
			return route{}, false
		}
		return route{s.origin, append([]hop{s.hop}, r.hops...), s.id, s.addr}, true
	}
	var (
		chosen route // with the member as the neighbour: the view of the route server
		found  bool
	)
	for _, m := range s.ixp.Members {
		r, ok := best[m.AS]
		if !ok || r.origin < fromCustomer || m.AS == as.Name || !m.exportsTo(as.Number) {
			continue
		}
		r = route{s.origin, append([]hop{s.ixp.hop(s.port, m)}, r.hops...), number[m.AS], m.Addr}
		if !found || r.compare(chosen) < 0 {
			chosen, found = r, true
		}
	}
	chosen.id, chosen.addr = s.id, s.addr
	return chosen, found
}

// compare is negative if r is better than the other one.
func (r route) compare(other route) int {
	return cmp.Or(
		cmp.Compare(other.origin, r.origin),
		cmp.Compare(len(r.hops), len(other.hops)),
		cmp.Compare(r.id, other.id),
		r.addr.Compare(other.addr),
	)
}

func sameRoutes(a, b map[string]route) bool {
	if len(a) != len(b) {
		return false
	}
	for name, r := range a {
		s, ok := b[name]
		if !ok || !slices.EqualFunc(r.hops, s.hops, func(x, y hop) bool { return x.via == y.via }) {
			return false
		}
	}
	return true
}
