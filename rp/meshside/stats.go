// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"bytes"
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
)

// State is how far the link to a neighbour is.
type State uint8

// States of a link.
const (
	Disconnected State = iota
	Connected          // no Hello yet
	Linked             // known, but its hellos do not come
	Up                 // hears and is heard
	Away               // its process died, its datapath goes on
	Banned             // it broke the protocol
)

func (s State) String() string {
	return [...]string{"disconnected", "connected", "linked", "up", "away", "banned"}[s]
}

// Neighbour is one RP of the allow-list, as seen from here.
type Neighbour struct {
	ID          enode.ID
	RP          linkstate.ID
	Addr        netip.Addr
	State       State
	Incarnation ids.Incarnation // the latest, 0 when it was never known
	Session     ids.Session     // own index, 0 without a link
	Tree        bool            // datagrams go by the link in either direction, as both ends say
	RTT         time.Duration   // smoothed, 0 before the first
	Cost        uint32          // as advertised, in linkstate.CostUnit; 0 when not up
	Members     uint64          // of all groups, at and behind it in the own tree
}

// Up reports whether the neighbour hears this RP and is heard.
func (n *Neighbour) Up() bool { return n.State == Up }

// Child is a neighbour that gets the datagrams of an ingress RP from here.
type Child struct {
	RP     linkstate.ID
	Groups []ids.Group // that have members at it or below
}

// Route is this RP's place in the tree of an ingress RP.
type Route struct {
	Ingress  ids.Incarnation // incarnation
	RP       linkstate.ID    // of the ingress RP, 0 when the database does not know it
	Parent   linkstate.ID    // 0 at the ingress RP, or when there is none
	Backup   linkstate.ID    // who is asked when the parent fails, 0 for nobody
	Previous []linkstate.ID  // upstreams besides the parent
	Children []Child
}

// Advert is what an RP says of itself, as the database has it.
type Advert struct {
	linkstate.Advert
	Age time.Duration // since this RP knows it, as the look once per second finds it
}

// Counters count since the start.
type Counters struct {
	Violations     uint64 // links ended because the neighbour broke the protocol
	LinksLost      uint64 // links that were open and ended
	BadHellos      uint64 // hellos that could not be parsed
	HellosLost     uint64 // hellos that found no room, because a neighbour sent too many
	Slowed         uint64 // messages that were read later, because a neighbour sent too many
	Banned         uint64 // connections that were refused because of a ban
	KeysRefused    uint64 // group keys from who is no upstream
	KeysDelayed    uint64 // group keys that were taken later, because an ingress RP changes them too often
	KeyConflicts   uint64 // group keys of a new parent that were others than those of the one before
	RoutesRefused  uint64 // routes that the datapath did not take
	Served         uint64 // datagrams sent again, to children and peers
	PeersNotServed uint64 // peers, and routes of children, that did not get all that they missed: too many, or by a limit
	Expired        uint64 // datagrams that the cache dropped while a peer waited for them
	NotServed      uint64 // routes of children that were not served, for want of time

	Receipts        uint64 // objects whose confirmations were counted
	ReceiptsRefused uint64 // objects whose were not, because there were too many
}

// Stats is the state of the mesh as this RP sees it. All lists are ordered.
type Stats struct {
	Counters
	Neighbours []Neighbour // of the allow-list
	Routes     []Route
	Database   []Advert
	Core       linkstate.Stats
	Settled    bool // since the start, this RP was on the trees of all ingress RPs
	Publishes  bool // it is an ingress RP
	Planted    bool // all on its own tree have its keys
}

// Turn returns when the goroutine of the mesh took a turn, true if it runs.
func (s *Server) Turn() bool { return s.call(func() {}) }

// Stats returns the state. When the Server does not run all links are down.
func (s *Server) Stats() Stats {
	var st Stats
	if !s.call(func() { st = s.stats() }) {
		for _, n := range s.neighbours {
			st.Neighbours = append(st.Neighbours, Neighbour{ID: n.node.ID(), RP: n.id, Addr: n.addr()})
		}
	}
	slices.SortFunc(st.Neighbours, func(a, b Neighbour) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return st
}

func (s *Server) stats() Stats {
	st := Stats{Counters: s.counters, Core: s.core.Stats(), Settled: s.settled, Publishes: s.publishes, Planted: s.planted}
	st.Served, st.PeersNotServed = s.resender.served.Load(), s.resender.leftOut.Load()
	st.Expired = s.resender.expired.Load()
	st.Slowed = s.slowed.Load()
	st.Receipts, st.ReceiptsRefused = s.cfg.Asked.stats()
	members := make(map[linkstate.ID]uint64)
	for _, g := range s.members() {
		for _, n := range g.RPs {
			members[linkstate.ID(n.RP)] += n.Members
		}
	}
	heard := make(map[linkstate.ID]linkstate.Neighbour)
	for _, n := range s.core.Neighbours() {
		heard[n.ID] = n
	}
	for _, n := range s.neighbours {
		o := Neighbour{ID: n.node.ID(), RP: n.id, Addr: n.addr(), Incarnation: n.incarnation, Members: members[n.id]}
		switch {
		case s.now.Before(n.ban.until):
			o.State = Banned
		case len(n.outlived) > 0:
			o.State = Away
		}
		if l := n.link; l != nil {
			h := heard[n.id]
			o.State, o.RTT = Connected, h.RTT
			if l.open {
				o.State, o.Session, o.Tree = Linked, l.index, h.Tree
			}
			if h.Up {
				o.State, o.Cost = Up, h.Cost
			}
		}
		st.Neighbours = append(st.Neighbours, o)
	}
	for _, incarnation := range slices.Sorted(maps.Keys(s.ingresses)) {
		if in := s.ingresses[incarnation]; in.routed() {
			st.Routes = append(st.Routes, s.routeStats(in))
		}
	}
	s.core.Adverts(func(a *linkstate.Advert, v linkstate.Version, _ bool) {
		o := Advert{Advert: *a}
		if k := s.known[a.Origin]; k.version == v {
			o.Age = s.now.Sub(k.since)
		}
		st.Database = append(st.Database, o)
	})
	slices.SortFunc(st.Database, func(a, b Advert) int { return cmp.Compare(a.Origin, b.Origin) })
	return st
}

func (s *Server) routeStats(in *ingress) Route {
	r := Route{
		Ingress:  in.incarnation,
		RP:       s.origins[in.incarnation],
		Parent:   in.route.Parent,
		Backup:   in.route.Backup,
		Previous: in.route.Previous,
	}
	for _, c := range in.route.Children {
		child := Child{RP: c.ID, Groups: c.Groups}
		if c.All {
			child.Groups = s.cfg.Groups
		}
		r.Children = append(r.Children, child)
	}
	return r
}

// Edge is an RP's place in a tree.
type Edge struct {
	RP, Parent linkstate.ID // Parent is 0 at the root
	Cost       uint32       // of the link between them, in linkstate.CostUnit; 0 at the root
}

// Tree returns the tree of an ingress RP as it was computed here, ordered by RP; false
// when there is none.
func (s *Server) Tree(ingress linkstate.ID) (edges []Edge, ok bool) {
	s.call(func() {
		links := make(map[linkstate.ID][]linkstate.Link)
		s.core.Adverts(func(a *linkstate.Advert, _ linkstate.Version, _ bool) { links[a.Origin] = a.Links })
		cost := func(from, to linkstate.ID) uint32 {
			for _, l := range links[from] {
				if l.Neighbour == to {
					return l.Cost
				}
			}
			return 0
		}
		for rp := range links {
			parent, known := s.core.TreeParent(ingress, rp)
			if !known || parent == 0 && rp != ingress {
				continue
			}
			ok = true
			edges = append(edges, Edge{rp, parent, max(cost(rp, parent), cost(parent, rp))})
		}
	})
	slices.SortFunc(edges, func(a, b Edge) int { return cmp.Compare(a.RP, b.RP) })
	return edges, ok
}
