// SPDX-License-Identifier: LGPL-3.0-or-later

package datapath

import (
	"math/bits"
	"time"
)

// PolicerSlack is how much earlier than its policer says a datagram may pass: the
// clocks of two CPUs differ (SPEC section 11).
const PolicerSlack = 10 * time.Microsecond

// maxTolerance keeps the sum of a time and a tolerance within 64 bits.
const maxTolerance = 1 << 62

// Policer limits what passes to a rate and a burst: the generic cell rate algorithm
// in whole numbers, so that all engines agree on each datagram (SPEC 6.7). Its units
// are datagrams, or bytes of copies. The zero Policer has no limit.
//
// What moves is one word for each policer, kept by the engine: due, the time at which
// the bucket is full again, in ns on the engine's clock, at first 0.
type Policer struct {
	Rate      uint64 // units per second, 0: no limit
	Tolerance uint64 // ns that due may lie in the future
}

// NewPolicer returns the Policer that lets burst units pass at once, at least 1, and
// rate units per second.
func NewPolicer(rate, burst uint64) Policer {
	if rate == 0 {
		return Policer{}
	}
	tolerance := uint64(maxTolerance)
	if high, low := bits.Mul64(max(burst, 1)-1, uint64(time.Second)); high < rate {
		quotient, _ := bits.Div64(high, low, rate)
		tolerance = min(tolerance, quotient+uint64(PolicerSlack))
	}
	return Policer{rate, tolerance}
}

// Conforms reports whether a datagram may pass now: the bucket holds a unit or more.
func (p Policer) Conforms(due, now uint64) bool { return p.Rate == 0 || due <= now+p.Tolerance }

// Spares reports whether at least half of the burst is left: what can wait, or may be
// left out, goes then.
func (p Policer) Spares(due, now uint64) bool { return p.Rate == 0 || due <= now+p.Tolerance/2 }

// Charge returns due after a datagram that passed. It may cost more units than the
// bucket held, at most 2^33.
func (p Policer) Charge(due, now, cost uint64) uint64 {
	if p.Rate == 0 {
		return due
	}
	return max(due, now) + cost*uint64(time.Second)/p.Rate
}

// Policers returns those of what comes from the session, by datagrams and by bytes of
// copies. They limit DATA of a publisher, the second one that of an RP neighbour too.
func (s *Session) Policers() (datagrams, copies Policer) {
	if s.Publish {
		datagrams = NewPolicer(uint64(s.Rate), uint64(s.Burst))
	}
	return datagrams, NewPolicer(s.Egress, s.EgressBurst)
}

// Policer returns that of all copies together.
func (c *Config) Policer() Policer { return NewPolicer(c.Egress, c.EgressBurst) }
