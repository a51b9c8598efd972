// SPDX-License-Identifier: LGPL-3.0-or-later

package coverage

import (
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// MissingFor is how long an undelivered sequence is reported as missing. A
// gossip peer asks about a sequence only within Confirm, so this is generous.
const MissingFor = 10 * time.Second

// maxMissing is how many missing sequences the marks of a HAVE have together, so that it
// fits proto.MaxMessage: in RLP a mark takes up to 34 bytes besides, a sequence 9.
const maxMissing = (proto.MaxMessage - 16 - 34*proto.MaxMarks) / 9

// Marks keeps what this peer has delivered of each stream, for the HAVE marks
// that it sends and the counters that it announces. The zero Marks is empty.
type Marks struct {
	streams map[ids.Stream]*stream
	version uint64
	begun   uint64 // version in which a stream began last
	ended   uint64 // version in which one ended last
}

type stream struct {
	changed     uint64 // version of the marks
	first, next uint64 // delivered: first <= seq < next, except missing
	missing     []gap  // ascending
	counter     proto.Counter
}

type gap struct {
	seq   uint64
	since time.Time
}

// Start begins a stream: what comes after seq is due. Of more streams than a HAVE can
// name there are no marks.
func (m *Marks) Start(s ids.Stream, seq uint64) {
	if m.streams == nil {
		m.streams = make(map[ids.Stream]*stream)
	}
	if m.streams[s] == nil && len(m.streams) >= proto.MaxMarks {
		return
	}
	m.version++
	m.begun = m.version
	m.streams[s] = &stream{changed: m.version, first: seq + 1, next: seq + 1, counter: proto.Counter{Ingress: s.Ingress, Group: s.Group}}
}

// Restart begins a stream that is known anew behind seq: what it was claimed to have beyond
// was a lie. Its counters stay.
func (m *Marks) Restart(s ids.Stream, seq uint64) {
	st := m.streams[s]
	if st == nil {
		return
	}
	m.version++
	m.begun, st.changed = m.version, m.version
	st.first, st.next, st.missing = seq+1, seq+1, nil
}

// Begin is Start for a stream that is not known yet. It reports whether it was not.
func (m *Marks) Begin(s ids.Stream, seq uint64) (began bool) {
	if m.streams[s] != nil {
		return false
	}
	m.Start(s, seq)
	return true
}

// Retire forgets all streams of an ingress RP.
func (m *Marks) Retire(ingress ids.Incarnation) {
	m.version++
	m.ended = m.version
	for s := range m.streams {
		if s.Ingress == ingress {
			delete(m.streams, s)
		}
	}
}

// Reset forgets all streams.
func (m *Marks) Reset() { *m = Marks{version: m.version + 1, ended: m.version + 1} }

// Delivered marks a sequence as delivered. A stream that was not started begins
// with its first delivered sequence.
func (m *Marks) Delivered(now time.Time, s ids.Stream, seq uint64) {
	st := m.streams[s]
	if st == nil {
		m.Start(s, seq-1)
		if st = m.streams[s]; st == nil {
			return
		}
	}
	m.version++
	st.changed = m.version
	st.counter.Received++
	switch {
	case seq >= st.next:
		if seq-st.next > proto.MaxMissing {
			st.lost(len(st.missing))
			st.counter.Lost += seq - st.next
			st.first = seq
		} else {
			for gone := st.next; gone < seq; gone++ {
				st.missing = append(st.missing, gap{gone, now})
			}
			if over := len(st.missing) - proto.MaxMissing; over > 0 {
				st.giveUp(over)
			}
		}
		st.next = seq + 1
	case seq >= st.first:
		st.missing = slices.DeleteFunc(st.missing, func(g gap) bool { return g.seq == seq })
	}
}

// Duplicate counts a datagram whose object was delivered before.
func (m *Marks) Duplicate(s ids.Stream) {
	if st := m.streams[s]; st != nil {
		st.counter.Duplicates++
	}
}

// Expire gives up what has been missing for MissingFor.
func (m *Marks) Expire(now time.Time) {
	for _, st := range m.streams {
		n := 0
		for n < len(st.missing) && now.Sub(st.missing[n].since) >= MissingFor {
			n++
		}
		if n > 0 {
			m.version++
			st.changed = m.version
			st.giveUp(n)
		}
	}
}

// giveUp moves first beyond the n oldest missing sequences.
func (st *stream) giveUp(n int) {
	st.first = st.missing[n-1].seq + 1
	st.lost(n)
}

func (st *stream) lost(n int) {
	st.counter.Lost += uint64(n)
	st.missing = slices.Delete(st.missing, 0, n)
}

// Version changes whenever what Have returns may have changed.
func (m *Marks) Version() uint64 { return m.version }

// Began reports whether a stream began after a version: nobody takes this peer for
// covered for it yet.
func (m *Marks) Began(after uint64) bool { return m.begun > after }

// Have returns the marks, ordered by stream, that changed after a version. They are
// whole, all of them, when a stream ended after it. Version 0 is before all others. Of
// missing sequences that are more than fit a message the oldest of a mark are given up
// in it.
func (m *Marks) Have(after uint64) (marks []proto.HaveMark, whole bool) {
	whole = after == 0 || after < m.ended
	room := maxMissing
	for _, s := range m.sorted() {
		st := m.streams[s]
		if !whole && st.changed <= after {
			continue
		}
		mark := proto.HaveMark{Ingress: s.Ingress, Group: s.Group, First: st.first, Next: st.next}
		missing := st.missing
		if over := len(missing) - room; over > 0 {
			mark.First, missing = missing[over-1].seq+1, missing[over:]
		}
		room -= len(missing)
		for _, g := range missing {
			mark.Missing = append(mark.Missing, g.seq)
		}
		marks = append(marks, mark)
	}
	return marks, whole
}

// Counters returns the counters, ordered by stream. Lost includes what is missing now.
func (m *Marks) Counters() []proto.Counter {
	counters := make([]proto.Counter, 0, len(m.streams))
	for _, s := range m.sorted() {
		c := m.streams[s].counter
		c.Lost += uint64(len(m.streams[s].missing))
		counters = append(counters, c)
	}
	return counters
}

func (m *Marks) sorted() []ids.Stream {
	all := make([]ids.Stream, 0, len(m.streams))
	for s := range m.streams {
		all = append(all, s)
	}
	slices.SortFunc(all, ids.Stream.Compare)
	return all
}
