// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
)

// Times of datapaths that outlive their process (SPEC section 11).
const (
	awayTimeout    = 15 * time.Second // that neighbours wait for the next process, and this one for neighbours
	sessionOverlap = 2 * time.Second  // that the session before goes on beside a proven one
)

// outlivedKept is how many sessions of a neighbour outlive their connections: the one that it
// gets copies by, and those by which something may be under way.
const outlivedKept = 4

// outlived is a session whose connection ended.
type outlived struct {
	index ids.Session
	data  netip.AddrPort // endpoint of the neighbour
	until time.Time
}

// adopted is what is left of the routes of another process. They go on beside the own
// ones until this RP knows its place in the trees.
type adopted struct {
	owners map[ids.Session]linkstate.ID        // neighbours, by session
	routes map[ids.Incarnation]linkstate.Route // with Previous and Children alone, as far as there are owners
	until  time.Time
}

// adopt takes over the sessions with neighbours and the routes that another process left.
func (s *Server) adopt() {
	if s.cfg.Adopted == nil {
		return
	}
	s.adopted.until = s.now.Add(awayTimeout)
	s.adopted.owners = make(map[ids.Session]linkstate.ID)
	for _, n := range s.neighbours {
		s.claim(n)
	}
	s.adoptRoutes()
}

// claim takes over the sessions with a neighbour. An address stands for the neighbour that
// has it.
func (s *Server) claim(n *neighbour) {
	of := func(o datapath.Session) bool { return o.Role == datapath.Mesh && o.Addr.Addr() == n.addr() }
	for {
		session, ok := s.cfg.Adopted.Claim(of)
		if !ok || s.cfg.Members.Restore(session.Index, netip.Addr{}) != nil {
			return
		}
		s.adopted.owners[session.Index] = n.id
		if session.Egress != s.cfg.Egress || session.EgressBurst != s.cfg.EgressBurst {
			session.Egress, session.EgressBurst = s.cfg.Egress, s.cfg.EgressBurst
			if err := s.apply(datapath.Change{Add: []datapath.Session{session}}); err != nil {
				s.cfg.Log.Error("limit of a neighbour not changed", "err", err)
			}
		}
		o := outlived{session.Index, session.Addr, s.adopted.until}
		if s.leads(session.Index) { // what the neighbour got came by this one
			n.outlived = slices.Insert(n.outlived, 0, o)
		} else {
			n.outlived = append(n.outlived, o)
		}
	}
}

// claimFound is claim for a neighbour that was found later.
func (s *Server) claimFound(n *neighbour) {
	if s.adopted.routes != nil {
		s.claim(n)
		s.adoptRoutes()
	}
}

// adoptRoutes names the neighbours of the adopted routes.
func (s *Server) adoptRoutes() {
	s.adopted.routes = make(map[ids.Incarnation]linkstate.Route)
	for _, r := range s.cfg.Routes {
		a := linkstate.Route{Ingress: r.Ingress}
		for _, session := range r.From {
			if id, ok := s.adopted.owners[session]; ok {
				a.Previous = append(a.Previous, id)
			}
		}
		for _, b := range r.To {
			if id, ok := s.adopted.owners[b.Session]; ok {
				a.Children = append(a.Children, linkstate.Child{ID: id, Groups: b.Groups})
			}
		}
		s.adopted.routes[r.Ingress] = a
	}
}

// unclaimed returns the part of an adopted route that is of neighbours which were not found
// yet.
func (s *Server) unclaimed(incarnation ids.Incarnation) (from []ids.Session, to []datapath.Branch) {
	if s.adopted.routes == nil {
		return nil, nil
	}
	for _, r := range s.cfg.Routes {
		if r.Ingress != incarnation {
			continue
		}
		for _, session := range r.From {
			if _, ok := s.adopted.owners[session]; !ok {
				from = append(from, session)
			}
		}
		for _, b := range r.To {
			if _, ok := s.adopted.owners[b.Session]; !ok {
				to = append(to, b)
			}
		}
	}
	return from, to
}

// expects returns the neighbours that have adopted sessions, and whether there are sessions
// of others, which may be found.
func (s *Server) expects() (neighbours []linkstate.ID, more bool) {
	for _, n := range s.neighbours {
		if len(n.outlived) > 0 {
			neighbours = append(neighbours, n.id)
		}
	}
	for incarnation := range s.adopted.routes {
		from, to := s.unclaimed(incarnation)
		more = more || s.cfg.Finds && len(from)+len(to) > 0
	}
	return neighbours, more
}

// leads reports whether a session gets copies by an adopted route.
func (s *Server) leads(session ids.Session) bool {
	return slices.ContainsFunc(s.cfg.Routes, func(r datapath.Route) bool {
		return slices.ContainsFunc(r.To, func(b datapath.Branch) bool { return b.Session == session })
	})
}

// outlive keeps the session of a link whose connection ended, if there are too many in place
// of the last one.
func (s *Server) outlive(l *link, until time.Time) {
	n := l.neighbour
	if len(n.outlived) >= outlivedKept {
		last := n.outlived[len(n.outlived)-1].index
		s.endOutlived(n, func(o outlived) bool { return o.index == last })
	}
	o := outlived{index: l.index, data: l.data}
	if l.proven {
		n.outlived = slices.Insert(n.outlived, 0, o)
	} else {
		n.outlived = append(n.outlived, o)
	}
	n.keep(until)
}

// keep says until when the outlived sessions go on.
func (n *neighbour) keep(until time.Time) {
	for i := range n.outlived {
		n.outlived[i].until = until
	}
}

// prove notes that the neighbour has the session of a link, since it uses it: copies go
// by it from now on. The sessions before still bring what is under way.
func (s *Server) prove(l *link) {
	l.proven = true
	l.neighbour.keep(s.now.Add(sessionOverlap))
	s.reroute(l.neighbour)
}

// endOutlived ends the outlived sessions of a neighbour that a function picks.
func (s *Server) endOutlived(n *neighbour, over func(outlived) bool) {
	var remove []ids.Session
	n.outlived = slices.DeleteFunc(n.outlived, func(o outlived) bool {
		if !over(o) {
			return false
		}
		remove = append(remove, o.index)
		s.cfg.Members.Release(o.index)
		return true
	})
	if len(remove) == 0 {
		return
	}
	if err := s.apply(datapath.Change{Remove: remove}); err != nil && !errors.Is(err, datapath.ErrClosed) {
		n.log.Error("sessions of neighbour not removed", "err", err)
	}
}

// tickOutlived ends what is over.
func (s *Server) tickOutlived() {
	for _, n := range s.neighbours {
		if len(n.outlived) == 0 {
			continue
		}
		s.endOutlived(n, func(o outlived) bool { return !s.now.Before(o.until) })
		if len(n.outlived) == 0 && s.links[n.id] == nil {
			n.log.Warn("neighbour did not come back")
			s.core.LinkDown(s.now, n.id)
		}
	}
	if s.adopted.routes != nil && !s.now.Before(s.adopted.until) {
		left := s.adopted.routes
		s.adopted.routes = nil
		for incarnation := range left {
			s.want(incarnation)
		}
		s.applyRoutes()
	}
}

// sessions returns the sessions by which a neighbour's datagrams come.
func (n *neighbour) sessions() (indexes []ids.Session) {
	if n.link != nil && n.link.open {
		indexes = append(indexes, n.link.index)
	}
	for _, o := range n.outlived {
		indexes = append(indexes, o.index)
	}
	return indexes
}

// sends returns the session by which a neighbour gets copies, 0 for none.
func (n *neighbour) sends() ids.Session {
	switch {
	case n.link != nil && n.link.open && (n.link.proven || len(n.outlived) == 0):
		return n.link.index
	case len(n.outlived) > 0:
		return n.outlived[0].index
	}
	return 0
}

// way returns the route of an ingress RP as the datapath takes it: by sessions, and with
// what an earlier process left.
func (s *Server) way(incarnation ids.Incarnation) datapath.Route {
	parts := []linkstate.Route{s.adopted.routes[incarnation]}
	if in := s.ingresses[incarnation]; in != nil {
		parts = []linkstate.Route{in.route, parts[0]}
	}
	r := datapath.Route{Ingress: incarnation}
	for _, part := range parts {
		for _, id := range append([]linkstate.ID{part.Parent}, part.Previous...) {
			if n := s.rps[id]; n != nil && incarnation != s.cfg.Incarnation {
				addUpstreams(&r, n.sessions())
			}
		}
		for _, c := range part.Children {
			groups := c.Groups
			if c.All {
				groups = s.cfg.Groups
			}
			if n := s.rps[c.ID]; n != nil && n.sends() != 0 && len(groups) > 0 {
				addBranch(&r, n.sends(), groups)
			}
		}
	}
	from, to := s.unclaimed(incarnation)
	addUpstreams(&r, from)
	for _, b := range to {
		addBranch(&r, b.Session, b.Groups)
	}
	return r
}

func addUpstreams(r *datapath.Route, sessions []ids.Session) {
	for _, session := range sessions {
		if len(r.From) < datapath.MaxUpstreams && !slices.Contains(r.From, session) {
			r.From = append(r.From, session)
		}
	}
}

func addBranch(r *datapath.Route, session ids.Session, groups []ids.Group) {
	i := slices.IndexFunc(r.To, func(b datapath.Branch) bool { return b.Session == session })
	if i < 0 {
		r.To = append(r.To, datapath.Branch{Session: session, Groups: slices.Clone(groups)})
		return
	}
	for _, g := range groups {
		if !r.To[i].Has(g) {
			r.To[i].Groups = append(r.To[i].Groups, g)
		}
	}
}

// reroute has the routes by a neighbour follow its sessions.
func (s *Server) reroute(n *neighbour) {
	by := func(r linkstate.Route) bool {
		return r.Parent == n.id || slices.Contains(r.Previous, n.id) ||
			slices.ContainsFunc(r.Children, func(c linkstate.Child) bool { return c.ID == n.id })
	}
	for incarnation, in := range s.ingresses {
		if by(in.route) {
			s.want(incarnation)
		}
	}
	for incarnation, r := range s.adopted.routes {
		if by(r) {
			s.want(incarnation)
		}
	}
	s.applyRoutes()
}
