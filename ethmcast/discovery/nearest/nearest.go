// SPDX-License-Identifier: LGPL-3.0-or-later

// Package nearest orders replication points by how near they are, and keeps the
// order calm (SPEC 13.4). It does no I/O: it is told what was measured.
package nearest

import (
	"cmp"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
)

// Limits of the choice (SPEC section 11).
const (
	Looks      = 3                     // in which another one must be better to replace a choice
	LessTime   = 5 * time.Millisecond  // by which it must be better, and by a fifth
	DetourTime = 20 * time.Millisecond // or twice the time, for a second one of another operator
)

// Candidate is a replication point that may be used.
type Candidate struct {
	ID       enode.ID
	Operator string        // "" when it is not known
	RTT      time.Duration // 0 when it was not measured
	Room     byte          // share that is free, of 255; 0 when it is full
	Trusted  bool          // somebody vouches for it
}

func (c *Candidate) full() bool { return c.Room == 0 }

// Chooser chooses two: the nearest, and the nearest of another operator unless that
// is a long detour. Its zero value has chosen none.
type Chooser struct {
	first, second choice
}

// choice is what was chosen, and in how many looks another one was better.
type choice struct {
	id     enode.ID
	worse  int
	chosen bool
}

// Order returns candidates, given in the order of preference, in the order in which
// they are to be used: the two chosen ones, the others that were measured, and the
// trusted ones that were not. Those that are neither measured nor trusted are left
// out: an answer is the least that is asked of a stranger. It is a look when all were
// measured anew.
func (c *Chooser) Order(candidates []Candidate, look bool) []Candidate {
	var measured, silent []Candidate
	for _, candidate := range candidates {
		if candidate.RTT > 0 {
			measured = append(measured, candidate)
		} else if candidate.Trusted {
			silent = append(silent, candidate)
		}
	}
	slices.SortStableFunc(measured, func(a, b Candidate) int {
		if a.full() != b.full() {
			if b.full() {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.RTT, b.RTT)
	})

	var order []Candidate
	if len(measured) > 0 {
		i := c.first.update(measured, 0, look, func(Candidate) bool { return true })
		first := measured[i]
		order, measured = append(order, first), slices.Delete(measured, i, i+1)
		if len(measured) > 0 {
			best, fits := second(first, measured)
			i := c.second.update(measured, best, look, fits)
			order, measured = append(order, measured[i]), slices.Delete(measured, i, i+1)
		} else {
			c.second = choice{}
		}
	} else {
		*c = Chooser{}
	}
	return slices.Concat(order, measured, silent)
}

// second returns which candidate, nearest first, goes best with the first choice,
// and whether another one could take its place.
func second(first Candidate, candidates []Candidate) (best int, fits func(Candidate) bool) {
	// Strangers may all be one person: they never are both choices.
	trusted := func(c Candidate) bool { return first.Trusted || c.Trusted }
	if !slices.ContainsFunc(candidates, trusted) {
		trusted = func(Candidate) bool { return true }
	}
	best = slices.IndexFunc(candidates, trusted)
	nearest := candidates[best]
	other := func(c Candidate) bool {
		return trusted(c) && c.Operator != "" && c.Operator != first.Operator
	}
	i := slices.IndexFunc(candidates, other)
	if i < 0 || first.Operator == "" || candidates[i].full() != nearest.full() ||
		candidates[i].RTT > max(2*nearest.RTT, nearest.RTT+DetourTime) {
		return best, trusted
	}
	return i, other
}

// update returns the index of the choice: that of the last time if it still fits,
// unless the best is better in several looks.
func (c *choice) update(candidates []Candidate, best int, look bool, fits func(Candidate) bool) int {
	i := slices.IndexFunc(candidates, func(o Candidate) bool { return c.chosen && o.ID == c.id && fits(o) })
	switch {
	case i < 0 || i == best:
	case Better(candidates[best].RTT, candidates[i].RTT):
		if look {
			c.worse++
		}
		if c.worse < Looks {
			return i
		}
	default:
		if look {
			c.worse = 0
		}
		return i
	}
	*c = choice{id: candidates[best].ID, chosen: true}
	return best
}

// Better reports whether a round-trip time is shorter than that of now by so much that a
// change is worth it.
func Better(other, now time.Duration) bool {
	return other+LessTime < now && other < now*4/5
}
