// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"net/netip"
	"slices"
	"time"
)

// Paths are the paths between all ASes by one rule.
type Paths struct {
	hops map[[2]string][]hop // by the names of the ends
}

// hop is a step from one AS to the next one.
type hop struct {
	as    string // the next one
	via   netip.Addr
	lines []crossing
}

// crossing is a line with its name.
type crossing struct {
	name string
	line Line
}

// AS are the names of the ASes on the path, both ends included; nil if there is
// none.
func (p *Paths) AS(from, to string) []string {
	hops, ok := p.hops[[2]string{from, to}]
	if !ok {
		return nil
	}
	names := []string{from}
	for _, h := range hops {
		names = append(names, h.as)
	}
	return names
}

// crossings are the lines between two hosts, in order.
func (p *Paths) crossings(from, to Host) ([]crossing, bool) {
	hops, ok := p.hops[[2]string{from.AS, to.AS}]
	if !ok {
		return nil, false
	}
	if from.Name == to.Name {
		return nil, true
	}
	lines := []crossing{{from.Name, from.Line}}
	for _, h := range hops {
		lines = append(lines, h.lines...)
	}
	return append(lines, crossing{to.Name, to.Line}), true
}

// Delay is the one-way delay between two hosts: that of both access lines and of
// all links between them. It is false if there is no path.
func (p *Paths) Delay(from, to Host) (time.Duration, bool) { return p.Serialised(from, to, 0) }

// Serialised is Delay for a frame of a length in bytes, which each line that has
// a rate takes in as a whole before it passes it on.
func (p *Paths) Serialised(from, to Host, frameBytes int) (time.Duration, bool) {
	lines, ok := p.crossings(from, to)
	var d time.Duration
	for _, c := range lines {
		d += c.line.Delay
		if c.line.Rate > 0 {
			d += time.Duration(float64(frameBytes) * 8 / float64(c.line.Rate) * float64(time.Second))
		}
	}
	return d, ok
}

// Lines are the names of the lines between two hosts, in order: access lines are
// called as their host, the others as [Link.Name] and [IXP.PortName] say.
func (p *Paths) Lines(from, to Host) []string {
	lines, _ := p.crossings(from, to)
	var names []string
	for _, c := range lines {
		names = append(names, c.name)
	}
	return names
}

// Physical are the paths of least delay over links and IXPs, whatever the policy.
// Of two equal ones, that with fewer ASes wins, then that which the description
// names first.
func (t *Topology) Physical() *Paths {
	p := &Paths{hops: make(map[[2]string][]hop)}
	next := t.adjacencies(nil)
	for _, from := range t.ASes {
		p.shortest(from.Name, next)
	}
	return p
}

// shortest finds the paths from one AS by Dijkstra's algorithm.
func (p *Paths) shortest(from string, next map[string][]hop) {
	best := map[string]time.Duration{from: 0}
	p.hops[[2]string{from, from}] = nil
	todo := []string{from}
	for len(todo) > 0 {
		nearest := 0
		for i, name := range todo {
			if best[name] < best[todo[nearest]] {
				nearest = i
			}
		}
		here := todo[nearest]
		todo = slices.Delete(todo, nearest, nearest+1)
		path := p.hops[[2]string{from, here}]
		for _, h := range next[here] {
			d := best[here]
			for _, c := range h.lines {
				d += c.line.Delay
			}
			old, known := best[h.as]
			if known && (old < d || old == d && len(p.hops[[2]string{from, h.as}]) <= len(path)+1) {
				continue
			}
			if !slices.Contains(todo, h.as) {
				todo = append(todo, h.as)
			}
			best[h.as] = d
			p.hops[[2]string{from, h.as}] = append(slices.Clip(path), h)
		}
	}
}

// adjacencies are the steps from each AS to its neighbours, without the lines
// that are down.
func (t *Topology) adjacencies(down map[string]bool) map[string][]hop {
	next := make(map[string][]hop)
	for _, l := range t.Links {
		if !down[l.Name()] {
			lines := []crossing{{l.Name(), l.Line}}
			next[l.A] = append(next[l.A], hop{l.B, l.AddrB(), lines})
			next[l.B] = append(next[l.B], hop{l.A, l.AddrA(), lines})
		}
	}
	for _, x := range t.IXPs {
		for _, a := range x.Members {
			for _, b := range x.Members {
				if a.AS != b.AS && !down[x.PortName(a.AS)] && !down[x.PortName(b.AS)] {
					next[a.AS] = append(next[a.AS], x.hop(a, b))
				}
			}
		}
	}
	return next
}

// hop is the step between two members.
func (x IXP) hop(from, to Member) hop {
	return hop{to.AS, to.Addr, []crossing{{x.PortName(from.AS), from.Line}, {x.PortName(to.AS), to.Line}}}
}

// Route is an entry of a routing table.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

// Routes is the routing table of an AS's router by BGP: one entry per other AS.
func (t *Topology) Routes(as string) []Route { return t.RoutesWithout(as, nil) }

// RoutesWithout is Routes while links and IXP ports are down, by name. ASes that
// cannot be reached then have no entry.
func (t *Topology) RoutesWithout(as string, down map[string]bool) []Route {
	var (
		paths  = t.bgp(down)
		routes []Route
	)
	for _, to := range t.ASes {
		if hops := paths.hops[[2]string{as, to.Name}]; len(hops) > 0 {
			routes = append(routes, Route{To: to.Prefix(), Via: hops[0].via})
		}
	}
	return routes
}
