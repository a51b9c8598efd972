// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"hash/fnv"
	"math/bits"
	"math/rand/v2"
)

// shaper decides for one direction of a link which frames are lost and when the
// others leave. It is a function of what arrives: it has no clock of its own.
//
// Each class has random numbers of its own for losses, one for each frame that
// arrives. So the fate of, say, the tenth DATA datagram depends on the seed, the
// link, the direction and the probability of loss, but not on how many
// keep-alives of BGP came in between, and a frame that is lost at some
// probability is lost at any higher one.
type shaper struct {
	loss   [NumClasses]rand.PCG
	jitter rand.PCG
	free   int64 // when the rate has served all earlier frames
	last   int64 // when the youngest frame is due
}

// fate is what a shaper decides.
type fate uint8

const (
	kept fate = iota
	lostBlackhole
	lostRandom
	lostQueue
)

// newShaper takes the name of the direction, which no other one of the run has.
func newShaper(seed uint64, direction string) shaper {
	stream := func(name string) rand.PCG {
		h := fnv.New64a()
		h.Write([]byte(direction + "/" + name))
		return *rand.NewPCG(seed, h.Sum64())
	}
	s := shaper{jitter: stream("jitter")}
	for i := range s.loss {
		s.loss[i] = stream("loss/" + Class(i).String())
	}
	return s
}

// admit takes a frame of a number of bytes that arrived at a time, in ns. Calls
// are in the order of arrival. due, in ns, is valid if the frame is kept; it
// never decreases.
func (s *shaper) admit(p *Params, class Class, bytes int, arrival int64) (due int64, f fate) {
	unlucky := share(s.loss[class].Uint64()) < p.Loss
	switch {
	case p.Blackhole:
		return 0, lostBlackhole
	case unlucky:
		return 0, lostRandom
	}
	due = arrival
	if p.Rate > 0 {
		start := max(s.free, arrival)
		if start-arrival > int64(p.queue()) {
			return 0, lostQueue
		}
		s.free = start + serialisation(bytes, p.Rate)
		due = s.free
	}
	due += int64(p.Delay)
	if p.Jitter > 0 {
		extra, _ := bits.Mul64(s.jitter.Uint64(), uint64(p.Jitter)+1)
		due += int64(extra)
	}
	s.last = max(s.last, due)
	return s.last, kept
}

// serialisation is how long a frame takes at a rate in bit/s, in ns.
func serialisation(bytes int, rate uint64) int64 {
	return int64(uint64(bytes) * 8 * 1e9 / rate)
}

// share maps a random number evenly to 0 <= x < 1.
func share(random uint64) float64 { return float64(random>>11) / (1 << 53) }
