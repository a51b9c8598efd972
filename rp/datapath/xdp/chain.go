// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// maxInline is how many slices may follow each other without the queue. More take so
// long that the next datagrams would meet them, however far apart they arrive.
const maxInline = 32

// longChain is LONG_CHAIN of the programs.
const longChain = 1 << 63

// chain is the slices behind an anchor. New ones go to the front, so that the last
// one stays the last.
type chain struct {
	e      *Engine
	anchor uint32
	end    uint64 // reference to what follows the last slice: 0, or another anchor

	slices  []*slice
	at      map[uint32]*slice // of each session that gets copies
	missing int               // receivers without a next hop
	head    uint64            // what the anchor says
}

// change makes some sessions receivers of the chain, each with its member, or none of them
// when it is nil, by as few new slices as possible. It looks at no other receiver. One that
// stays keeps its place: it gets each datagram exactly once. With an error the chain is
// as it was.
func (c *chain) change(some map[uint32]*member, missing int) error {
	affected := make(map[*slice]bool)
	var joins []member
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
			now, concerned := some[m.session.Index]
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

// arrange finds places for those who join, and publishes.
func (c *chain) arrange(next []*plan, joins []member, missing int) error {
	// Those who join take the places in slices that change anyway and in the first
	// one, then new slices in front.
	for i, p := range next {
		if p.changed || i == 0 {
			n := min(sliceSize-len(p.members), len(joins))
			p.members = append(slices.Clone(p.members), joins[:n]...)
			p.changed = p.changed || n > 0
			joins = joins[n:]
		}
	}
	for part := range slices.Chunk(joins, sliceSize) {
		next = slices.Insert(next, 0, &plan{members: part, changed: true})
	}
	next = slices.DeleteFunc(next, func(p *plan) bool { return len(p.members) == 0 })
	members := 0
	for _, p := range next {
		members += len(p.members)
	}
	if len(next) <= 2*(members/sliceSize+2) {
		return c.publish(next, missing)
	}
	var all []member
	for _, p := range next {
		all = append(all, p.members...)
	}
	return c.replace(all, missing)
}

// replace makes a chain anew, in the given order. One store puts it in the old one's
// place, so that members may have moved.
func (c *chain) replace(members []member, missing int) error {
	var next []*plan
	for part := range slices.Chunk(members, sliceSize) {
		next = append(next, &plan{members: part, changed: true})
	}
	return c.publish(next, missing)
}

// retire takes back the slices of a chain that nothing begins with any more.
func (c *chain) retire() {
	now := time.Now()
	for _, s := range c.slices {
		c.e.pool.retire(s, now)
	}
	c.slices = nil
	clear(c.at)
}

// plan is a slice that is to be.
type plan struct {
	old     *slice // in whose place it stands
	members []member
	changed bool // against old
}

// publish builds the slices that changed and makes the chain lead to them.
func (c *chain) publish(next []*plan, missing int) error {
	pool, nexts := c.e.pool, &c.e.objects.Memory.Nexts
	built := make([]*slice, len(next))
	for i, p := range next {
		// A slice that was built as the last one cannot become another.
		chained := i < len(next)-1 || c.end != 0
		if !p.changed && (p.old.chained || !chained) {
			built[i] = p.old
			continue
		}
		s, err := pool.build(p.members, chained)
		if err != nil {
			for j, s := range built[:i] {
				if s != next[j].old {
					pool.free = append(pool.free, s.index)
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
		atomic.StoreUint64(nexts.At(built[i].index), following)
		following = built[i].reference()
	}
	c.missing = missing
	c.head = uint64(missing)<<32 | following
	if len(built) > maxInline {
		c.head |= longChain
	}
	atomic.StoreUint64(nexts.At(c.anchor), c.head)

	now := time.Now()
	stays := make(map[*slice]bool, len(built))
	for i, s := range built {
		stays[s] = s == next[i].old
	}
	for _, s := range c.slices {
		if !stays[s] {
			pool.retire(s, now)
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
func (c *chain) mark(s, in *slice) {
	for i := range s.members {
		switch m := &s.members[i]; {
		case m.session == nil: // ECHO
		case in == nil:
			delete(c.at, m.session.Index)
		default:
			c.at[m.session.Index] = in
		}
	}
}
