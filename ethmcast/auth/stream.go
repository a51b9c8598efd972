// SPDX-License-Identifier: LGPL-3.0-or-later

package auth

import (
	"time"

	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// RestartAfter is how long ago the newest sequence of a stream came when a lower one in a
// HEARTBEAT of the trusted sender shows that it was a lie (SPEC section 11): by another way
// no sequence comes so much sooner.
const RestartAfter = 750 * time.Millisecond

// Stream is what a receiver knows of one stream (SPEC 5.5): the sequences that were taken,
// and the newest one known. Whoever may send the stream may claim what it likes, so all of it
// is believed only until the sender that is trusted now says otherwise. The zero Stream knows
// nothing.
type Stream struct {
	window Window
	newest uint64
	known  bool
	moved  time.Time // when newest was raised last

	by   any    // the sender whose HEARTBEAT was believed last
	beat uint64 // the highest number of its HEARTBEATs that were
}

// Check returns what Take would return, and changes nothing.
func (s *Stream) Check(seq uint64) wire.Verdict { return s.window.Check(seq) }

// Take takes the sequence of a DATA, see Window.
func (s *Stream) Take(now time.Time, seq uint64) wire.Verdict {
	v := s.window.Take(seq)
	if v == wire.Pass {
		s.Raise(now, seq)
	}
	return v
}

// Raise makes the newest sequence at least seq.
func (s *Stream) Raise(now time.Time, seq uint64) {
	if !s.known || seq > s.newest {
		s.newest, s.known, s.moved = seq, true, now
	}
}

// Overtaken reports whether a HEARTBEAT of a sender with a higher number was believed for the
// stream before. Those of other streams do not count: one sender numbers them all, and they
// may overtake each other. A sender is any comparable value.
func (s *Stream) Overtaken(by any, beat uint64) bool { return s.by == by && s.beat > beat }

// Follow takes the newest sequence that the trusted sender tells by the HEARTBEAT of a number,
// unless it was overtaken. It reports whether the stream started afresh there: a higher one had
// been claimed, for so long that the sender would know of it.
func (s *Stream) Follow(now time.Time, by any, beat, seq uint64) (restarted bool) {
	if s.Overtaken(by, beat) {
		return false
	}
	s.by, s.beat = by, beat
	if s.known && seq < s.newest && now.Sub(s.moved) >= RestartAfter {
		s.window.Restart(seq)
		s.newest, s.moved = seq, now
		return true
	}
	s.Raise(now, seq)
	return false
}

// Newest returns the newest sequence known, and false if there is none.
func (s *Stream) Newest() (seq uint64, known bool) { return s.newest, s.known }

// Age makes what the stream knows older, for tests of what is done after some time.
func (s *Stream) Age(by time.Duration) { s.moved = s.moved.Add(-by) }
