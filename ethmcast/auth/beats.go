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
func (s Beats) Check(beat uint64) (highest bool, v wire.Verdict) {
	_, highest, v = s.next(beat)
	return highest, v
}

// Take takes a number: wire.Pass the first time, wire.Replayed when it was taken before,
// is too far below the highest or is no number of a HEARTBEAT. It reports whether the
// number is the highest so far.
func (s *Beats) Take(beat uint64) (highest bool, v wire.Verdict) {
	next, highest, v := s.next(beat)
	if v == wire.Pass {
		*s = next
	}
	return highest, v
}

func (s Beats) next(beat uint64) (next Beats, highest bool, v wire.Verdict) {
	const mask = 1<<beatsKept - 1
	top, taken := uint64(s)>>beatsKept, uint64(s)&mask
	if beat == 0 || beat >= beatEnd {
		return s, false, wire.Replayed
	}
	if beat > top {
		taken = taken<<min(beat-top, beatsKept)&mask | 1
		return Beats(beat<<beatsKept | taken), true, wire.Pass
	}
	bit := uint64(1) << min(top-beat, 63)
	if top-beat >= beatsKept || taken&bit != 0 {
		return s, false, wire.Replayed
	}
	return s | Beats(bit), false, wire.Pass
}
