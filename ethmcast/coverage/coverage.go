// SPDX-License-Identifier: LGPL-3.0-or-later

// Package coverage decides which gossip a peer may leave out (SPEC section 10).
//
// Two peers that both speak mdcs/1 tell each other by HAVE marks what multicast
// has delivered to them. A transaction that travels by multicast is not
// gossiped to a covered peer; it is held until that peer's marks pass
// its sequence, and announced if they have not within Confirm, or at once when
// the gossip peer withdraws. So a transaction that an RP loses, that cannot cross
// a partition or that an RP drops on purpose still arrives by gossip.
//
// Invariants: a held transaction leaves only by confirmation, by announcement or
// with its gossip peer; what is skipped for a gossip peer is held for it. Guards, a
// few gossip peers that change over time, are announced everything after
// GuardDelay, whatever their marks say: an RP that gives different datagrams
// the same sequence cannot hide a transaction from all.
//
// The package does no I/O; all methods that need the time take it.
package coverage

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// Times of SPEC section 11.
const (
	Confirm       = 2 * time.Second         // hold to announcement
	Fresh         = 4 * time.Second         // age at which marks no longer cover
	HaveSoon      = 250 * time.Millisecond  // between HAVEs when a stream began
	HaveInterval  = 1500 * time.Millisecond // while marks change
	HaveKeepAlive = 3 * time.Second         // otherwise
	GuardDelay    = 3 * time.Second         // hold to announcement for a guard, at least
	GuardSweep    = 2 * time.Second         // between announcements to a guard
	GuardInterval = time.Minute             // between choices of guards
	sweep         = 250 * time.Millisecond  // announcements of one sweep share a message
)

// Guards is the number of gossip peers that are always announced everything.
const Guards = 2

// maxHeld bounds what is held for one gossip peer; beyond it gossip is not left out.
const maxHeld = 1 << 16

// Announcement is a list of transactions to announce to a gossip peer by eth.
type Announcement[ID, Hash comparable] struct {
	Peer   ID
	Hashes []Hash
}

// Ref says where a transaction is in multicast. Sequence is 0 while it is being
// published and the ingress RP has not acknowledged it.
type Ref struct {
	ids.Stream
	Sequence  uint64
	abandoned bool
}

// Coverage holds the gossip peers and what was not gossiped to them. ID names a
// gossip peer, Hash a transaction.
type Coverage[ID, Hash comparable] struct {
	rng      *rand.Rand
	peers    map[ID]*peer[Hash]
	order    []ID // of arrival, so that choices depend on the seed alone
	pending  map[Hash]*Ref
	chooseAt time.Time
	sweepAt  time.Time
	guardsAt time.Time // of the next announcements to guards
}

type peer[Hash comparable] struct {
	covered   bool
	guard     bool
	at        time.Time // of the last HAVE
	marks     map[ids.Stream]proto.HaveMark
	suspended map[ids.Stream]uint64 // not covered until the mark's Next is beyond it
	held      []held[Hash]          // by time
}

type held[Hash comparable] struct {
	hash Hash
	ref  *Ref
	at   time.Time
}

// New returns a Coverage without gossip peers; rng chooses the guards.
func New[ID, Hash comparable](rng *rand.Rand) *Coverage[ID, Hash] {
	return &Coverage[ID, Hash]{
		rng:     rng,
		peers:   make(map[ID]*peer[Hash]),
		pending: make(map[Hash]*Ref),
	}
}

// Add adds a gossip peer, which is not covered before its first HAVE.
func (c *Coverage[ID, Hash]) Add(id ID) {
	if c.peers[id] == nil {
		c.peers[id] = &peer[Hash]{
			marks:     make(map[ids.Stream]proto.HaveMark),
			suspended: make(map[ids.Stream]uint64),
		}
		c.order = append(c.order, id)
		c.chooseAt = time.Time{}
	}
}

// Remove forgets a gossip peer whose connection ended.
func (c *Coverage[ID, Hash]) Remove(id ID) {
	delete(c.peers, id)
	c.order = slices.DeleteFunc(c.order, func(x ID) bool { return x == id })
	c.chooseAt = time.Time{}
}

// Have takes a gossip peer's HAVE. The announcements are what a withdrawal uncovers.
func (c *Coverage[ID, Hash]) Have(now time.Time, id ID, have *proto.Have) []Announcement[ID, Hash] {
	n := c.peers[id]
	if n == nil {
		return nil
	}
	n.covered, n.at = have.Covered, now
	before := n.marks
	if have.Whole || !have.Covered {
		n.marks = make(map[ids.Stream]proto.HaveMark)
	}
	if !have.Covered {
		return announce(n, id, func(held[Hash]) bool { return true })
	}
	for _, mark := range have.Marks {
		s := mark.Stream()
		if _, known := n.marks[s]; !known && len(n.marks) >= proto.MaxMarks {
			continue
		}
		old := before[s] // of the same map as the new one, if that is not whole
		n.marks[s] = mark
		if seq, ok := n.suspended[s]; ok && (mark.Next > seq || mark.Next < old.Next) { // or it began anew
			delete(n.suspended, s)
		}
	}
	if !n.guard {
		n.held = slices.DeleteFunc(n.held, func(h held[Hash]) bool { return n.confirmed(h.ref) })
	}
	return nil
}

func (n *peer[Hash]) confirmed(ref *Ref) bool {
	mark, ok := n.marks[ref.Stream]
	return ok && ref.Sequence != 0 && mark.Covers(ref.Sequence)
}

// covers reports whether the gossip peer is expected to deliver what comes on s.
func (n *peer[Hash]) covers(now time.Time, s ids.Stream) bool {
	if !n.fresh(now) || len(n.held) >= maxHeld {
		return false
	}
	if _, ok := n.suspended[s]; ok {
		return false
	}
	_, ok := n.marks[s]
	return ok
}

// Covers reports whether a gossip peer has an RP, by its fresh marks.
func (c *Coverage[ID, Hash]) Covers(now time.Time, id ID) bool {
	n := c.peers[id]
	return n != nil && n.fresh(now)
}

func (n *peer[Hash]) fresh(now time.Time) bool {
	return n.covered && now.Sub(n.at) < Fresh
}

// Publish begins a transaction that is sent to the RP of s. Numbered or Abandon
// ends what Publish began.
func (c *Coverage[ID, Hash]) Publish(hash Hash, s ids.Stream) *Ref {
	ref := &Ref{Stream: s}
	c.pending[hash] = ref
	return ref
}

// Skip reports whether gossip of a transaction to a gossip peer may be left out,
// and if so holds it. All gossip peers of one transaction share its ref.
func (c *Coverage[ID, Hash]) Skip(now time.Time, id ID, hash Hash, ref *Ref) bool {
	n := c.peers[id]
	if n == nil || ref.abandoned || !n.covers(now, ref.Stream) {
		return false
	}
	if !n.guard && n.confirmed(ref) {
		return true // the marks passed it already
	}
	n.held = append(n.held, held[Hash]{hash, ref, now})
	return true
}

// Numbered gives a transaction that is being published its place.
func (c *Coverage[ID, Hash]) Numbered(hash Hash, s ids.Stream, seq uint64) {
	if ref := c.pending[hash]; ref != nil {
		ref.Stream, ref.Sequence = s, seq
		delete(c.pending, hash)
	}
}

// Restart begins a stream anew behind seq: places beyond it were lies, and nobody is
// suspended for them.
func (c *Coverage[ID, Hash]) Restart(s ids.Stream, seq uint64) {
	for _, n := range c.peers {
		delete(n.suspended, s)
		for _, h := range n.held {
			if h.ref.Stream == s && h.ref.Sequence > seq {
				h.ref.Sequence = 0
			}
		}
	}
}

// Abandon announces a transaction that could not be published.
func (c *Coverage[ID, Hash]) Abandon(hash Hash) []Announcement[ID, Hash] {
	ref := c.pending[hash]
	if ref == nil {
		return nil
	}
	delete(c.pending, hash)
	ref.abandoned = true
	var all []Announcement[ID, Hash]
	for _, id := range c.order {
		all = append(all, announce(c.peers[id], id, func(h held[Hash]) bool { return h.ref == ref })...)
	}
	return all
}

// Tick announces what was held too long and chooses guards.
func (c *Coverage[ID, Hash]) Tick(now time.Time) []Announcement[ID, Hash] {
	if !now.Before(c.chooseAt) {
		c.chooseGuards(now)
	}
	if now.Before(c.sweepAt) {
		return nil
	}
	c.sweepAt = now.Add(sweep)
	guards := !now.Before(c.guardsAt)
	if guards {
		c.guardsAt = now.Add(GuardSweep)
	}
	var all []Announcement[ID, Hash]
	for _, id := range c.order {
		n := c.peers[id]
		all = append(all, announce(n, id, func(h held[Hash]) bool {
			switch age := now.Sub(h.at); {
			case age < Confirm:
				return false
			case !n.confirmed(h.ref):
				if h.ref.Sequence != 0 {
					n.suspended[h.ref.Stream] = max(n.suspended[h.ref.Stream], h.ref.Sequence)
				}
				return true
			default: // held for a guard only
				return guards && age >= GuardDelay
			}
		})...)
	}
	return all
}

// announce takes the held transactions that match out of the list.
func announce[ID, Hash comparable](n *peer[Hash], id ID, match func(held[Hash]) bool) []Announcement[ID, Hash] {
	var hashes []Hash
	n.held = slices.DeleteFunc(n.held, func(h held[Hash]) bool {
		due := match(h)
		if due {
			hashes = append(hashes, h.hash)
		}
		return due
	})
	if len(hashes) == 0 {
		return nil
	}
	return []Announcement[ID, Hash]{{id, hashes}}
}

// chooseGuards chooses Guards gossip peers at random.
func (c *Coverage[ID, Hash]) chooseGuards(now time.Time) {
	c.chooseAt = now.Add(GuardInterval)
	for i, k := range c.rng.Perm(len(c.order)) {
		c.peers[c.order[k]].guard = i < Guards
	}
}

// Deadline returns when Tick is due next.
func (c *Coverage[ID, Hash]) Deadline() time.Time {
	next := c.chooseAt
	for _, n := range c.peers {
		if len(n.held) == 0 {
			continue
		}
		due := n.held[0].at.Add(Confirm)
		if due.Before(c.sweepAt) {
			due = c.sweepAt
		}
		if due.Before(next) {
			next = due
		}
	}
	return next
}

// Covered returns how many gossip peers there are, and how many have fresh marks.
func (c *Coverage[ID, Hash]) Covered(now time.Time) (peers, covered int) {
	for _, n := range c.peers {
		if n.fresh(now) {
			covered++
		}
	}
	return len(c.peers), covered
}

// Held returns how many transactions are held, over all gossip peers.
func (c *Coverage[ID, Hash]) Held() (held int) {
	for _, n := range c.peers {
		held += len(n.held)
	}
	return held
}
