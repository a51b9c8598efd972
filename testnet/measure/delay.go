// SPDX-License-Identifier: LGPL-3.0-or-later

// Package measure observes an experiment: when each transaction arrived at each
// node, and what that cost in bytes.
//
// The delay of a (transaction, node) pair is the time from the call that
// submitted the transaction at its origin to the notification that the pool of
// the node has it. All times are taken in one process, by one clock. The pair of
// a transaction with its own origin does not count. A pair without an arrival has
// the delay +Inf and takes part in all percentiles.
//
// Delays are held against [Floor], the time that the network alone needs. Figures
// of several runs become one by [Bootstrap].
package measure

import (
	"math"
	"slices"
	"time"
)

// Pair is a transaction at a node other than its origin.
type Pair struct {
	Tx, Origin, Node int
	Delay            float64 // ms, +Inf if it did not arrive
}

// Delivered reports whether the transaction arrived.
func (p Pair) Delivered() bool { return !math.IsInf(p.Delay, 1) }

// Sending is one transaction as it was submitted.
type Sending struct {
	Origin int
	At     time.Time
}

// Pairs combines what was sent with what arrived, where arrivals[tx][node] is
// zero if nothing did. The pairs are ordered by transaction and node.
func Pairs(sent []Sending, arrivals [][]time.Time) []Pair {
	var pairs []Pair
	for tx, s := range sent {
		for node, at := range arrivals[tx] {
			if node == s.Origin {
				continue
			}
			delay := math.Inf(1)
			if !at.IsZero() {
				delay = millis(at.Sub(s.At))
			}
			pairs = append(pairs, Pair{Tx: tx, Origin: s.Origin, Node: node, Delay: delay})
		}
	}
	return pairs
}

// Distribution sums up the delays of pairs, in ms.
type Distribution struct {
	Pairs              int
	Delivered          float64 // share of pairs, 0..1
	P50, P90, P99, Max float64 // +Inf if that pair did not arrive
	Slow               float64 // share of pairs with a delay above [Slow], 0..1
}

// Slow is a delay that only a pair has which waited for an announcement: geth
// gives a direct copy 500 ms before it asks for an announced transaction. The
// share of such pairs near 1 % makes the 99th percentile jump between runs, and
// says more than it does.
const Slow = 400 // ms

// Summarize computes the distribution.
func Summarize(pairs []Pair) Distribution {
	delays := make([]float64, len(pairs))
	delivered, slow := 0, 0
	for i, p := range pairs {
		delays[i] = p.Delay
		if p.Delivered() {
			delivered++
		}
		if p.Delay > Slow {
			slow++
		}
	}
	slices.Sort(delays)
	d := Distribution{
		Pairs: len(pairs),
		P50:   Percentile(delays, 50),
		P90:   Percentile(delays, 90),
		P99:   Percentile(delays, 99),
		Max:   Percentile(delays, 100),
	}
	if len(pairs) > 0 {
		d.Delivered = float64(delivered) / float64(len(pairs))
		d.Slow = float64(slow) / float64(len(pairs))
	}
	return d
}

// Reached is the delay until a share of the nodes, in percent, has each
// transaction, its origin left out: +Inf if so many never got it. The pairs must
// be ordered by transaction, as [Pairs] does, and so is the result.
func Reached(pairs []Pair, percent float64) []float64 {
	var result []float64
	for len(pairs) > 0 {
		end := slices.IndexFunc(pairs, func(p Pair) bool { return p.Tx != pairs[0].Tx })
		if end < 0 {
			end = len(pairs)
		}
		delays := make([]float64, end)
		for i, p := range pairs[:end] {
			delays[i] = p.Delay
		}
		slices.Sort(delays)
		result = append(result, Percentile(delays, percent))
		pairs = pairs[end:]
	}
	return result
}

// Percentile is the smallest of the sorted values that at least p percent of
// them do not exceed (nearest rank). It is NaN if there are none.
func Percentile(sorted []float64, p float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}
