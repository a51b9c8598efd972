// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
)

// advertising is the own advert.
type advertising struct {
	epoch, sequence uint64
	publishAt       time.Time // zero when nothing is to be said
	published       time.Time
	own             limiter
	refreshAt       time.Time

	publishes bool
	leaving   bool
	members   []Members // as known
	told      []Members // as advertised
	countsAt  time.Time // from when on counts may be advertised again

	expected map[ID]bool // Config.Expect, without those that are up
	expectBy time.Time   // until when nothing is said without them

	beat   Version       // of another process with the own key, which the next advert follows; zero for none
	beatAt time.Time     // not before
	beaten time.Time     // the last time
	pause  time.Duration // until it may be once more
	bids   int           // within outbidMemory

	mayPublish bool
	mine       []Hash      // of the adverts of this epoch, until MayPublish
	awaited    map[ID]bool // neighbours that have not acknowledged yet; nil before the first advert
	ackBy      time.Time   // until when they are waited for
}

func (a *advertising) init(now time.Time, cfg Config) {
	a.epoch, a.publishAt = cfg.Epoch, now
	a.ackBy = now.Add(AckDelay)
	a.expected = make(map[ID]bool)
	for _, id := range cfg.Expect {
		a.expected[id] = true
	}
	if cfg.resumes() {
		a.expectBy = now.Add(returnDelay)
		a.publishAt = a.expectBy
	}
}

// SetMembers says how many subscribers each group has here. The first and the last
// of a group are advertised at once, counts when they changed by an eighth.
func (c *Core) SetMembers(now time.Time, members []Members) {
	c.now = now
	c.members = slices.Clone(members)
	slices.SortFunc(c.members, func(a, b Members) int { return cmp.Compare(a.Group, b.Group) })
	if c.moved(func(now, told uint32) bool { return (now == 0) != (told == 0) }) {
		c.publishWithin(0)
	}
}

// moved reports whether a count changed as far as a function says.
func (c *Core) moved(far func(now, told uint32) bool) bool {
	count := func(all []Members, group ids.Group) uint32 {
		for _, m := range all {
			if m.Group == group {
				return m.Count
			}
		}
		return 0
	}
	for _, m := range slices.Concat(c.members, c.told) {
		if far(count(c.members, m.Group), count(c.told, m.Group)) {
			return true
		}
	}
	return false
}

// SetPublishes says whether this RP is an ingress RP, so that it needs a tree.
func (c *Core) SetPublishes(now time.Time, publishes bool) {
	c.now = now
	if c.publishes != publishes {
		c.publishes = publishes
		c.publishWithin(0)
	}
}

// Leave withdraws all links. The routes stay: children turn to other parents, and
// prune this one, before the process ends.
func (c *Core) Leave(now time.Time) {
	c.now = now
	c.leaving = true
	c.publishWithin(0)
}

// publishWithin has the own advert published after a delay at most, not sooner after
// the one before than is good for the mesh. The advert of an earlier life counts while
// neighbours of it are expected.
func (c *Core) publishWithin(delay time.Duration) {
	at := c.now.Add(delay)
	for _, soonest := range []time.Time{c.published.Add(UrgentDelay), c.now.Add(c.own.wait(c.now, ownRate, ownBurst))} {
		if at.Before(soonest) {
			at = soonest
		}
	}
	if (len(c.expected) > 0 || c.cfg.ExpectMore) && at.Before(c.expectBy) {
		at = c.expectBy
	}
	if c.publishAt.IsZero() || at.Before(c.publishAt) {
		c.publishAt = at
	}
}

// Times between adverts that outbid another process with the own key.
const (
	outbidFirst  = time.Second
	outbidLast   = 5 * time.Minute
	outbidMemory = 10 * time.Minute // without one, after which it is at once again
	twinsFrom    = 3                // adverts, within that, from which on it is a process that lives
)

// outbid takes the place of an advert that this process did not sign, but somebody with the own
// key. Most often that is an earlier life, whose clock was ahead: it is outbid once. When it
// bids again, it is another RP that lives. The mesh can have one of both, and hears less often
// from time to time that it is the other one.
func (c *Core) outbid(v Version) {
	switch {
	case v.Epoch < c.epoch: // of an earlier life: the first advert of this one is newer
		c.publishWithin(0)
		return
	case !v.newer(c.beat):
		return
	}
	c.beat = v
	if c.now.Sub(c.beaten) > outbidMemory {
		c.pause, c.bids = 0, 0
	}
	c.beatAt = c.beaten.Add(c.pause)
	c.tickOutbid()
}

func (c *Core) tickOutbid() {
	if c.beat == (Version{}) || c.now.Before(c.beatAt) {
		return
	}
	switch v := c.beat; {
	case v.Epoch < math.MaxUint64:
		c.epoch, c.sequence = v.Epoch+1, 0
	case c.epoch < v.Epoch:
		c.epoch, c.sequence = v.Epoch, v.Sequence
	default:
		c.sequence = max(c.sequence, v.Sequence)
	}
	c.beat, c.beaten, c.mine = Version{}, c.now, nil
	c.pause = min(max(2*c.pause, outbidFirst), outbidLast)
	c.stats.Outbids++
	if c.bids++; c.bids >= twinsFrom {
		c.stats.Twins++
	}
	c.publishWithin(0)
}

func (c *Core) publish() {
	c.publishAt, c.published = time.Time{}, c.now
	c.own.fill(c.now, ownRate, ownBurst)
	c.own.left--
	c.refreshAt = c.now.Add(Refresh - time.Duration(c.cfg.Rand.Int64N(int64(Refresh/4))))
	c.countsAt = c.now.Add(CountsDelay)
	c.told = slices.DeleteFunc(slices.Clone(c.members), func(m Members) bool { return m.Count == 0 })
	c.sequence++
	a := Advert{
		Origin: c.cfg.Self, Incarnation: c.cfg.Incarnation, Epoch: c.epoch, Sequence: c.sequence,
		Publishes: c.publishes, Budget: uint32(c.cfg.Budget), Groups: c.told, Operator: c.cfg.Operator,
	}
	for _, n := range c.neighbours {
		if n.up && !c.leaving && len(a.Links) < MaxLinks {
			a.Links = append(a.Links, Link{n.id, n.cost, n.tree})
		}
	}
	signed, err := c.cfg.Sign(a)
	if err != nil { // nothing to publish with: the refresh tries again
		return
	}
	if c.awaited == nil && len(a.Links) > 0 {
		c.awaited = make(map[ID]bool)
		for _, l := range a.Links {
			c.awaited[l.Neighbour] = true
		}
		c.ackBy = c.now.Add(AckDelay)
	}
	c.stats.Published++
	v := a.Version()
	if v.newer(c.beat) {
		c.beat = Version{}
	}
	if !c.mayPublish {
		c.mine = append(c.mine, v.Hash)
	}
	c.store(signed, v, [32]byte{}, c.now)
	c.forward(v, nil)
}

func (c *Core) acked(n *neighbour, m *Acked) {
	if slices.Contains(c.mine, m.Hash) {
		delete(c.awaited, n.id)
	}
}

func (c *Core) tickAdvertising() {
	c.tickOutbid()
	if !c.now.Before(c.refreshAt) && !c.refreshAt.IsZero() {
		c.publishWithin(0)
	}
	if !c.now.Before(c.countsAt) && c.moved(func(now, told uint32) bool {
		return 8*(max(now, told)-min(now, told)) > told
	}) {
		c.publishWithin(0)
	}
	// Without a neighbour there is nobody to wait for, after a time.
	waited := !c.now.Before(c.ackBy)
	if !c.mayPublish && (waited || c.awaited != nil && len(c.awaited) == 0) {
		c.mayPublish = true
		c.awaited, c.mine = map[ID]bool{}, nil
		c.act(MayPublish{})
	}
}
