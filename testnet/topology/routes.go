// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Route is an entry of a routing table.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

// hop is how a router reaches another one.
type hop struct {
	delay time.Duration
	via   netip.Addr // next hop; invalid for the router itself
}

// paths are the paths of least delay from one router to all that it can reach
// (Dijkstra's algorithm). Of two equal paths, the one whose links stand first in
// the description wins.
func (t *Topology) paths(from string) map[string]hop {
	best := map[string]hop{from: {}}
	done := make(map[string]bool)
	for {
		var (
			here  string
			found bool
		)
		for _, r := range t.Routers {
			h, ok := best[r.Name]
			if ok && !done[r.Name] && (!found || h.delay < best[here].delay) {
				here, found = r.Name, true
			}
		}
		if !found {
			return best
		}
		done[here] = true
		for _, l := range t.Links {
			next, via := l.B, l.AddrB()
			if l.B == here {
				next, via = l.A, l.AddrA()
			} else if l.A != here {
				continue
			}
			if here != from {
				via = best[here].via
			}
			h := hop{best[here].delay + l.Delay, via}
			if old, ok := best[next]; !ok || h.delay < old.delay {
				best[next] = h
			}
		}
	}
}

// Delay is the one-way delay between two routers; ok is false if there is no
// path.
func (t *Topology) Delay(from, to string) (d time.Duration, ok bool) {
	h, ok := t.paths(from)[to]
	return h.delay, ok
}

// Routes is the static routing table of a router: one entry per LAN of another
// router.
func (t *Topology) Routes(router string) []Route {
	paths := t.paths(router)
	var routes []Route
	for _, r := range t.Routers {
		if h, ok := paths[r.Name]; ok && r.Name != router {
			routes = append(routes, Route{To: r.LAN, Via: h.via})
		}
	}
	return routes
}

// Nearest are the hosts with a role, nearest to h first; those at the same
// distance keep the order of the description.
func (t *Topology) Nearest(h Host, role Role) []Host {
	paths := t.paths(h.Router)
	hosts := t.HostsOf(role)
	slices.SortStableFunc(hosts, func(a, b Host) int {
		return cmp.Compare(paths[a.Router].delay, paths[b.Router].delay)
	})
	return hosts
}
