// SPDX-License-Identifier: LGPL-3.0-or-later

package auth

import "github.com/ethmcast/mdcs/ethmcast/wire"

// A Beats has the highest number in its high 40 bits.
const (
	beatsKept = 24 // that number and those before it, of which it knows whether they were taken
	beatEnd   = 1 << (64 - beatsKept)
)

// Beats remembers which HEARTBEATs of a session were taken (SPEC 5.7), so that each is taken
// at most once: the highest number, and in bit i whether the number i below it was. The
// zero Beats has taken none.
type Beats uint64

// Check returns what Take would return, and changes nothing.
func (s Beats) Check(beat uint64) wire.Verdict {
	_, v := s.next(beat)
	return v
}

// Take takes a number: wire.Pass the first time, wire.Replayed when it was taken before,
// is too far below the highest or is no number of a HEARTBEAT.
func (s *Beats) Take(beat uint64) wire.Verdict {
	next, v := s.next(beat)
	if v == wire.Pass {
		*s = next
	}
	return v
}

func (s Beats) next(beat uint64) (next Beats, v wire.Verdict) {
	const mask = 1<<beatsKept - 1
	top, taken := uint64(s)>>beatsKept, uint64(s)&mask
	if beat == 0 || beat >= beatEnd {
		return s, wire.Replayed
	}
	if beat > top {
		taken = taken<<min(beat-top, beatsKept)&mask | 1
		return Beats(beat<<beatsKept | taken), wire.Pass
	}
	bit := uint64(1) << min(top-beat, 63)
	if top-beat >= beatsKept || taken&bit != 0 {
		return s, wire.Replayed
	}
	return s | Beats(bit), wire.Pass
}
