// SPDX-License-Identifier: LGPL-3.0-or-later

package sim

import (
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
)

// Sizes of the model, in sequences.
const (
	windowSize = 4096 // as of the engines
	cached     = 1024
	maxHole    = 512 // holes farther behind are not asked for: they are lost
)

// lateAfter is longer than any way by a tree takes: what comes later was delayed by a failure.
const lateAfter = 500 * time.Millisecond

// window is what an RP had of a stream.
type window struct {
	bits    [windowSize / 64]uint64
	started bool
	newest  uint32
	mark    uint32 // nothing up to here is missed

	got  []uint64 // exact, to check the window: by sequence
	late []uint64 // came later than lateAfter

	newestAt time.Duration // when something new came last
	silence  time.Duration // when it came before the current interruption; 0 for none
}

func (x *window) has(sequence uint32) bool {
	return x.bits[sequence%windowSize/64]>>(sequence%64)&1 != 0
}

// take reports whether a sequence is new, and remembers it.
func (x *window) take(sequence uint32) bool {
	if !x.started {
		x.started, x.newest, x.mark = true, sequence, sequence-1
	}
	if sequence+windowSize <= x.newest || sequence <= x.newest && x.has(sequence) {
		return false
	}
	for x.newest < sequence {
		x.newest++
		x.bits[x.newest%windowSize/64] &^= 1 << (x.newest % 64)
	}
	x.bits[sequence%windowSize/64] |= 1 << (sequence % 64)
	for x.mark < x.newest && (x.has(x.mark+1) || x.newest-x.mark > maxHole) {
		x.mark++
	}
	return true
}

func set(bits []uint64, i uint32) []uint64 {
	for int(i/64) >= len(bits) {
		bits = append(bits, 0)
	}
	bits[i/64] |= 1 << (i % 64)
	return bits
}

func isSet(bits []uint64, i uint32) bool { return int(i/64) < len(bits) && bits[i/64]>>(i%64)&1 != 0 }

// publishing makes a stream send, from now on.
func (w *world) publishing(i int, interval time.Duration) {
	s := w.streams[i]
	s.interval, s.stopped = interval, false
	var next func()
	next = func() {
		if s.stopped || !s.source.alive {
			return
		}
		s.next++
		sequence, sent := s.next, w.now
		s.sent = append(s.sent, sent)
		w.deliver(s.source, nil, int32(i), sequence, false)
		if settled := s.settled; settled != nil {
			w.at(w.now+settleTime, func() { settled(sequence, sent) })
		}
		w.at(w.now+interval, next)
	}
	w.at(w.now+time.Duration(w.rng.Int64N(int64(interval))), next)
}

// receive is the check of where a datagram comes from.
func (w *world) receive(r, from *rp, e *event) {
	route := r.routes[w.streams[e.stream].source.ingress]
	if route == nil || from.id != route.Parent && !slices.Contains(route.Previous, from.id) {
		w.refused++
		return
	}
	r.core.Heard(w.clock(), from.id)
	w.deliver(r, from, e.stream, e.sequence, e.replayed)
}

// deliver is the window, and the copies.
func (w *world) deliver(r, from *rp, i int32, sequence uint32, replayed bool) {
	x := &r.windows[i]
	if !x.take(sequence) {
		return
	}
	if from != nil {
		w.delivered++
	}
	if isSet(x.got, sequence) {
		w.duplicated++
	}
	x.got = set(x.got, sequence)
	s := w.streams[i]
	if w.now-s.sent[sequence-1] > lateAfter {
		x.late = set(x.late, sequence)
	}
	if s.interrupted != nil {
		w.watch(s, r, x, replayed)
	}
	route := r.routes[s.source.ingress]
	if route == nil {
		return
	}
	for _, c := range route.Children {
		if (from == nil || c.ID != from.id) && (c.All || len(c.Groups) > 0) {
			w.copy(r, c.ID, i, sequence, replayed)
		}
	}
}

// watch measures interruptions of a fast stream at an RP: from what came last to
// what comes live again, when nothing is missed.
func (w *world) watch(s *stream, r *rp, x *window, replayed bool) {
	if x.silence == 0 && x.newestAt > 0 && w.now-x.newestAt > 20*s.interval {
		x.silence = x.newestAt
	}
	if x.silence > 0 && !replayed && x.mark == x.newest {
		s.interrupted(r, w.now-x.silence)
		x.silence = 0
	}
	x.newestAt = w.now
}

func (w *world) copy(r *rp, to linkstate.ID, stream int32, sequence uint32, replayed bool) {
	w.copies++
	o := w.rps[w.byID[to]]
	e := w.queue.push(w.now+w.jittered(r, o), data)
	e.to, e.from, e.stream, e.sequence, e.replayed = o.index, r.index, stream, sequence, replayed
}

func (w *world) streamOf(ingress ids.Incarnation) int32 {
	for i, s := range w.streams {
		if s.source.ingress == ingress {
			return int32(i)
		}
	}
	return -1
}

// marks is what an RP tells a new parent.
func (w *world) marks(r *rp, ingress ids.Incarnation) []linkstate.Mark {
	i := w.streamOf(ingress)
	if i < 0 || !r.windows[i].started {
		return nil
	}
	return []linkstate.Mark{{Group: group, Sequence: uint64(r.windows[i].mark)}}
}

// serve sends from the cache what a new child misses.
func (w *world) serve(r *rp, a linkstate.Serve) {
	i := w.streamOf(a.Ingress)
	if i < 0 || len(a.Marks) == 0 {
		return
	}
	x := &r.windows[i]
	from := uint32(a.Marks[0].Sequence) + 1
	if !x.started || from > x.newest {
		return
	}
	if x.newest-from >= cached {
		from = x.newest - cached + 1
	}
	for sequence := from; sequence <= x.newest; sequence++ {
		if x.has(sequence) {
			w.copy(r, a.To, i, sequence, true)
		}
	}
}
