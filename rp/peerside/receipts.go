// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
)

const (
	// receiptsWaiting is how many messages with receipts wait for a publisher. Those
	// beyond are dropped: later ones say more, and nothing depends on them.
	receiptsWaiting = 32

	// How many Confirm messages a peer may send: per second, and at once. A peer that
	// keeps to the protocol collects for longer.
	confirmRate, confirmBurst = uint64(time.Second / proto.MinConfirm), 20
)

// confirms limits the Confirm messages of a peer.
var confirms = datapath.NewPolicer(confirmRate, confirmBurst)

// confirmed passes on which objects the peer has.
func (c *conn) confirmed(now time.Time, places []proto.Place) {
	at := c.srv.clock.at(now)
	if !confirms.Conforms(c.policed, at) {
		c.srv.limited.Add(uint64(len(places)))
		return
	}
	c.policed = confirms.Charge(c.policed, at, 1)
	places = slices.DeleteFunc(places, func(p proto.Place) bool { return !slices.Contains(c.session.Groups, p.Group) })
	c.srv.confirmed.Add(uint64(len(places)))
	if f := c.srv.cfg.Confirmed; f != nil && len(places) > 0 {
		f(c.index, places)
	}
}

// Receipts sends a publisher what is known of its objects, as far as it is a member and
// reads what it is sent. It does not wait.
func (s *Server) Receipts(session ids.Session, objects []proto.ObjectReceipt) {
	s.mu.Lock()
	c := s.members[session]
	s.mu.Unlock()
	if c == nil {
		return
	}
	for batch := range slices.Chunk(objects, proto.MaxPlaces) {
		select {
		case c.receipts <- batch:
		default:
		}
	}
}

// counters are the members of groups as all peers are told.
type counters struct {
	mu      sync.Mutex
	groups  []*proto.Counters // not changed once they are here
	changed chan struct{}     // closed with the next change
}

func (c *counters) watch() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// SetCounters says how many members the groups have. The peers are told when a count
// changed by an eighth, or became or was zero.
func (s *Server) SetCounters(groups []proto.Counters) {
	s.counters.mu.Lock()
	defer s.counters.mu.Unlock()
	moved := false
	next := make([]*proto.Counters, 0, len(groups))
	for _, g := range groups {
		i := slices.IndexFunc(s.counters.groups, func(o *proto.Counters) bool { return o.Group == g.Group })
		if i >= 0 && !countersMoved(&g, s.counters.groups[i]) {
			next = append(next, s.counters.groups[i])
			continue
		}
		next, moved = append(next, &g), true
	}
	s.counters.groups = next
	if moved {
		close(s.counters.changed)
		s.counters.changed = make(chan struct{})
	}
}

func countersMoved(now, told *proto.Counters) bool {
	if moved(now.Members, told.Members) || moved(now.Here, told.Here) || len(now.RPs) != len(told.RPs) {
		return true
	}
	for i, n := range now.RPs {
		if t := told.RPs[i]; n.RP != t.RP || moved(n.Members, t.Members) {
			return true
		}
	}
	return false
}

func moved(now, told uint64) bool {
	return (now == 0) != (told == 0) || max(now, told)-min(now, told) > told/8
}

// counting is what one peer was told of the members.
type counting struct {
	changed <-chan struct{}               // closed when there is more to tell
	countAt time.Time                     // when it is to be told, zero for never
	counted time.Time                     // when it was
	told    map[ids.Group]*proto.Counters // by group
}

// countSoon has the peer told what changed, not too often, and not all peers at once.
func (c *conn) countSoon(now time.Time) {
	c.changed = c.srv.counters.watch()
	if len(c.session.Groups) == 0 || !c.live || !c.countAt.IsZero() {
		return
	}
	c.countAt = c.counted.Add(proto.CountersInterval)
	if c.countAt.Before(now) {
		c.countAt = now
	}
	c.countAt = c.countAt.Add(rand.N(proto.CountersJitter))
}

// count tells the peer what is due: at first everything, then what changed since it was told.
func (c *conn) count(now time.Time) {
	if c.countAt.IsZero() || now.Before(c.countAt) {
		return
	}
	c.countAt = time.Time{}
	c.srv.counters.mu.Lock()
	groups := c.srv.counters.groups
	c.srv.counters.mu.Unlock()
	here := c.srv.cfg.Members.Members()
	for _, g := range groups {
		told := c.told[g.Group]
		switch {
		case !slices.Contains(c.session.Groups, g.Group):
			continue
		case told == nil: // what was counted is older than this membership
			first := *g
			first.Here = uint64(here[g.Group])
			first.Members += first.Here - g.Here
			g = &first
		case !countersMoved(g, told):
			continue
		}
		if c.told == nil {
			c.told = make(map[ids.Group]*proto.Counters)
		}
		c.adm.Tell(g)
		c.told[g.Group], c.counted = g, now
	}
}
