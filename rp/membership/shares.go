// SPDX-License-Identifier: LGPL-3.0-or-later

package membership

import (
	"math"
	"net/netip"
	"time"
)

// Rates bound what comes from somewhere: units per second in all, of a /48 and of a
// /64; about as many may come at once. 0 is no limit.
type Rates struct {
	All, Per48, Per64 float64
}

// Shares gives each prefix its share of a rate, so that nobody who asks for more takes
// it from somebody who asks for little. It is not safe for concurrent use.
//
// Each prefix has a level: the units that it took, of which a part is forgotten with the
// time, so that a steady rate of r units per second holds the level at r * Over. What a
// /64 may still take is the room that its /48 has beyond its level, and that is the room
// that the /32 has, which is Weight32 times what all leave free. Hence n prefixes that
// want everything get equal parts and leave one more of these free for somebody new
// (dynamic thresholds, Choudhury and Hahne 1998). A single /32 leaves a fifth.
type Shares struct {
	rates  Rates
	over   float64 // seconds
	levels map[netip.Prefix]*level
	sweep  time.Time // when forgotten levels are dropped next
}

const (
	// weight32 is how much a /32 may take of what is free, in relation to what it
	// leaves: many sites may be within one.
	weight32 = 4

	// enough is the room that lets units pass, whatever their number.
	enough = 0.5

	// forgotten is the level below which a prefix counts as new.
	forgotten = 1.0 / 64
)

type level struct {
	units float64
	at    time.Time
}

// NewShares returns shares of rates, counted over a time: what may come at once is what
// the rates let pass in that time.
func NewShares(rates Rates, over time.Duration) *Shares {
	return &Shares{rates: rates, over: over.Seconds(), levels: make(map[netip.Prefix]*level)}
}

// SetRates changes the rates from now on. What was taken before counts.
func (s *Shares) SetRates(rates Rates) { s.rates = rates }

// Take accounts for units from addr, or returns which limit they are beyond. Half a unit
// of room is enough for any number, which may overdraw it. A refusal costs nothing.
func (s *Shares) Take(now time.Time, addr netip.Addr, units float64) error {
	if err := s.Room(now, addr); err != nil {
		return err
	}
	for _, p := range within(addr) {
		l := s.levels[p]
		if l == nil {
			l = &level{at: now}
			s.levels[p] = l
		}
		l.units, l.at = s.decayed(l, now)+units, now
	}
	return nil
}

// Room returns which limit leaves no room for addr now, nil when none does.
func (s *Shares) Room(now time.Time, addr netip.Addr) error {
	if !now.Before(s.sweep) {
		s.drop(now)
	}
	prefixes := within(addr)
	var taken [len(prefixes)]float64
	for i, p := range prefixes {
		if l := s.levels[p]; l != nil {
			taken[i] = s.decayed(l, now)
		}
	}
	most := func(rate float64) float64 {
		if rate == 0 {
			return math.Inf(1)
		}
		return rate * s.over
	}
	all := most(s.rates.All) - taken[0]
	if all < enough {
		return full("%v per second", s.rates.All)
	}
	site := weight32*all - taken[1] - taken[2]
	if site < enough {
		return full("%v per second, and %v has its share", s.rates.All, prefixes[2])
	}
	own := most(s.rates.Per48) - taken[2]
	if own < enough {
		return full("%v per second of %v", s.rates.Per48, prefixes[2])
	}
	if min(site, own)-taken[3] < enough {
		return full("%v per second of %v, and %v has its share", s.rates.Per48, prefixes[2], prefixes[3])
	}
	if most(s.rates.Per64)-taken[3] < enough {
		return full("%v per second of %v", s.rates.Per64, prefixes[3])
	}
	return nil
}

func (s *Shares) decayed(l *level, now time.Time) float64 {
	return l.units * math.Exp(-max(0, now.Sub(l.at).Seconds())/s.over)
}

func (s *Shares) drop(now time.Time) {
	for p, l := range s.levels {
		if s.decayed(l, now) < forgotten {
			delete(s.levels, p)
		}
	}
	s.sweep = now.Add(time.Duration(s.over * float64(time.Second)))
}

// within returns the prefixes that count an address: all, its /32, /48 and /64.
func within(addr netip.Addr) (prefixes [4]netip.Prefix) {
	addr = addr.WithZone("")
	for i, bits := range [...]int{0, 32, 48, 64} {
		prefixes[i] = netip.PrefixFrom(addr, bits).Masked()
	}
	return prefixes
}
