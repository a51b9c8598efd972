// SPDX-License-Identifier: LGPL-3.0-or-later

package fanout

import (
	"iter"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/ethmcast/mdcs/ethmcast/ids"
)

// Chain is the slices behind an anchor. New ones go to the front, so that the last
// one stays the last.
type Chain struct {
	f      *Fanout
	anchor uint32
	end    uint64 // reference to what follows the last slice: 0, or another anchor

	slices  []*Slice
	at      map[ids.Session]*Slice // of each session that gets copies
	missing int                    // receivers without a next hop
	head    uint64                 // what the anchor says
}

// NewChain returns a chain without slices, before another one; nil is before none. It is an error
// when no anchor is left.
func (f *Fanout) NewChain(before *Chain) (*Chain, error) {
	end := uint64(0)
	if before != nil {
		end = uint64(before.anchor)
	}
	anchor, err := f.anchors.Take()
	if err != nil {
		return nil, err
	}
	atomic.StoreUint64(f.kernel.Next(anchor), end)
	return &Chain{f: f, anchor: anchor, end: end, at: make(map[ids.Session]*Slice), head: end}, nil
}

// GiveBack undoes NewChain: nothing ever led to the chain.
func (c *Chain) GiveBack() {
	atomic.StoreUint64(c.f.kernel.Next(c.anchor), 0)
	c.f.anchors.GiveBack(c.anchor)
}

// AnchorsLeft returns how many chains can be made now.
func (f *Fanout) AnchorsLeft() int { return f.anchors.Left() }

// RetiredAnchors returns the anchors in quarantine.
func (f *Fanout) RetiredAnchors() []uint32 { return f.anchors.Retired() }

// Anchor returns the index that leads to the chain.
func (c *Chain) Anchor() uint32 { return c.anchor }

// Missing returns how many receivers have no next hop.
func (c *Chain) Missing() int { return c.missing }

// Len returns how many sessions get copies.
func (c *Chain) Len() int { return len(c.at) }

// Slices returns the slices in the order of sending. The caller must not change them.
func (c *Chain) Slices() []*Slice { return c.slices }

// SliceOf returns the slice that a session gets its copies by, nil for none.
func (c *Chain) SliceOf(session ids.Session) *Slice { return c.at[session] }

// Sessions returns the sessions that get copies, in no order.
func (c *Chain) Sessions() iter.Seq[ids.Session] { return maps.Keys(c.at) }

// Change makes some sessions receivers of the chain, each with its member, or none of them
// when it is nil, by as few new slices as possible. It looks at no other receiver. One that
// stays keeps its place: it gets each datagram exactly once. With an error the chain is
// as it was.
func (c *Chain) Change(some map[ids.Session]*Member, missing int) error {
	affected := make(map[*Slice]bool)
	var joins []Member
	for _, index := range slices.Sorted(maps.Keys(some)) {
		if s := c.at[index]; s != nil {
			affected[s] = true
		} else if m := some[index]; m != nil {
			joins = append(joins, *m)
		}
	}
	next := make([]*plan, 0, len(c.slices)+1)
	for _, s := range c.slices {
		p := &plan{old: s, members: s.members}
		next = append(next, p)
		if !affected[s] {
			continue
		}
		p.members = nil
		for _, m := range s.members {
			now, concerned := some[m.To.SessionIndex()]
			switch {
			case !concerned:
				p.members = append(p.members, m)
			case now == nil:
				p.changed = true
			default:
				p.members = append(p.members, *now)
				p.changed = p.changed || *now != m
			}
		}
	}
	return c.arrange(next, joins, missing)
}

// arrange finds places for the members that join, and publishes.
func (c *Chain) arrange(next []*plan, joins []Member, missing int) error {
	// Members that join take the places in slices that change anyway and in the first
	// one, then new slices in front.
	for i, p := range next {
		if p.changed || i == 0 {
			n := min(SliceSize-len(p.members), len(joins))
			p.members = append(slices.Clone(p.members), joins[:n]...)
			p.changed = p.changed || n > 0
			joins = joins[n:]
		}
	}
	for part := range slices.Chunk(joins, SliceSize) {
		next = slices.Insert(next, 0, &plan{members: part, changed: true})
	}
	next = slices.DeleteFunc(next, func(p *plan) bool { return len(p.members) == 0 })
	members := 0
	for _, p := range next {
		members += len(p.members)
	}
	if len(next) <= 2*(members/SliceSize+2) {
		return c.publish(next, missing)
	}
	var all []Member
	for _, p := range next {
		all = append(all, p.members...)
	}
	return c.replace(all, missing)
}

// replace builds all slices of a chain again, in the given order. One store puts it in the old one's
// place, so that members may have moved.
func (c *Chain) replace(members []Member, missing int) error {
	var next []*plan
	for part := range slices.Chunk(members, SliceSize) {
		next = append(next, &plan{members: part, changed: true})
	}
	return c.publish(next, missing)
}

// Replace makes the members of a chain those, in that order, with a number of receivers that have
// no next hop, unless they are so already. With an error the chain is as it was.
func (c *Chain) Replace(members []Member, missing int) error {
	var have []Member
	for _, s := range c.slices {
		have = append(have, s.members...)
	}
	if c.missing == missing && slices.Equal(have, members) {
		return nil
	}
	return c.replace(members, missing)
}

// Retire takes back a chain that nothing leads to any more, with its slices.
func (c *Chain) Retire() {
	c.f.anchors.Retire(c.anchor, c.f.now())
	for _, s := range c.slices {
		c.f.Retire(s)
	}
	c.slices = nil
	clear(c.at)
}

// plan is a slice that is to be.
type plan struct {
	old     *Slice // in whose place it stands
	members []Member
	changed bool // against old
}

// publish builds the slices that changed and makes the chain lead to them.
func (c *Chain) publish(next []*plan, missing int) error {
	f := c.f
	built := make([]*Slice, len(next))
	for i, p := range next {
		// A slice that was built as the last one cannot become another.
		chained := i < len(next)-1 || c.end != 0
		if !p.changed && (p.old.chained || !chained) {
			built[i] = p.old
			continue
		}
		s, err := f.Build(p.members, chained)
		if err != nil {
			for j, s := range built[:i] {
				if s != next[j].old {
					f.free = append(f.free, s.index)
				}
			}
			return err
		}
		built[i] = s
	}
	// From behind: what a slice leads to is complete before anything leads to it.
	// Those that are replaced go on to lead where they led.
	following := c.end
	for i := len(built) - 1; i >= 0; i-- {
		atomic.StoreUint64(f.kernel.Next(built[i].index), following)
		following = built[i].reference()
	}
	c.missing = missing
	c.head = uint64(missing)<<32 | following
	if len(built) > MaxInline {
		c.head |= longChain
	}
	atomic.StoreUint64(f.kernel.Next(c.anchor), c.head)

	stays := make(map[*Slice]bool, len(built))
	for i, s := range built {
		stays[s] = s == next[i].old
	}
	for _, s := range c.slices {
		if !stays[s] {
			f.Retire(s)
			c.mark(s, nil)
		}
	}
	for _, s := range built {
		if !stays[s] {
			c.mark(s, s)
		}
	}
	c.slices = built
	return nil
}

// mark notes that the sessions of a slice are in another one, nil for none.
func (c *Chain) mark(s, in *Slice) {
	for i := range s.members {
		switch m := &s.members[i]; {
		case m.To == nil: // ECHO
		case in == nil:
			delete(c.at, m.To.SessionIndex())
		default:
			c.at[m.To.SessionIndex()] = in
		}
	}
}
