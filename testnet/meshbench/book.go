// SPDX-License-Identifier: LGPL-3.0-or-later

package meshbench

import (
	"cmp"
	"encoding/binary"
	"slices"
	"sync"
	"time"
)

// lateAfter is longer than any way by a tree takes: what comes later was delayed by a
// failure, and repaired by a cache or waited for a new way.
const lateAfter = 500 * time.Millisecond

// settleTime is how long a datagram may take until it is lost.
const settleTime = 3 * time.Second

// Offsets in what is published: who sent it, and its number, counted from 0.
const (
	offSource  = 0
	offNumber  = 4
	minPayload = 12
)

// payload is what source publishes as number, of a size in bytes.
func payload(source, number, size int) []byte {
	b := make([]byte, max(size, minPayload))
	binary.BigEndian.PutUint32(b[offSource:], uint32(source))
	binary.BigEndian.PutUint64(b[offNumber:], uint64(number))
	return b
}

// book is what the sources published, and when it came to each peer. Peers and sources
// go by the number of their RP; times count from the start of the book.
type book struct {
	start time.Time

	mu       sync.Mutex
	sent     [][]time.Duration // by source and number
	arrivals [][][]arrival     // by source, peer and number
	alien    uint64            // datagrams that nobody sent
}

// arrival is what came of a datagram to a peer.
type arrival struct {
	at    time.Duration // of the first copy
	times int           // 0: lost
}

func newBook(rps int) *book {
	b := &book{start: time.Now(), sent: make([][]time.Duration, rps), arrivals: make([][][]arrival, rps)}
	for i := range b.arrivals {
		b.arrivals[i] = make([][]arrival, rps)
	}
	return b
}

func (b *book) now() time.Duration { return time.Since(b.start) }

// send notes that a source is about to publish, and returns the number.
func (b *book) send(source int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sent[source] = append(b.sent[source], b.now())
	return len(b.sent[source]) - 1
}

// next is the number that a source uses next.
func (b *book) next(source int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.sent[source])
}

// receive notes what a peer received at a time.
func (b *book) receive(peer int, data []byte, at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(data) < minPayload {
		b.alien++
		return
	}
	source, number := binary.BigEndian.Uint32(data[offSource:]), binary.BigEndian.Uint64(data[offNumber:])
	if uint64(source) >= uint64(len(b.sent)) || number >= uint64(len(b.sent[source])) {
		b.alien++
		return
	}
	list := b.arrivals[source][peer]
	if missing := int(number) + 1 - len(list); missing > 0 {
		list = append(list, make([]arrival, missing)...)
		b.arrivals[source][peer] = list
	}
	a := &list[number]
	if a.times == 0 {
		a.at = at.Sub(b.start)
	}
	a.times++
}

// arrival returns what came of a datagram to a peer. b.mu is held.
func (b *book) arrival(source, peer, number int) arrival {
	if list := b.arrivals[source][peer]; number < len(list) {
		return list[number]
	}
	return arrival{}
}

// span is a series of datagrams of a source: numbers from, up to but not including to.
type span struct{ source, from, to int }

// outcome says what came of datagrams times peers.
type outcome struct {
	expected   int
	lost       int
	late       int // came after lateAfter
	duplicated int // copies too many
}

func (o *outcome) add(other outcome) {
	o.expected += other.expected
	o.lost += other.lost
	o.late += other.late
	o.duplicated += other.duplicated
}

// outcome counts what came of a span to the peers that it was expected at, when sent
// at a time.
func (b *book) outcome(s span, expected func(peer int, sent time.Duration) bool) (o outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for number := s.from; number < s.to; number++ {
		sent := b.sent[s.source][number]
		for peer := range b.arrivals[s.source] {
			if peer == s.source {
				continue
			}
			a := b.arrival(s.source, peer, number)
			o.duplicated += max(0, a.times-1)
			if !expected(peer, sent) {
				continue
			}
			o.expected++
			switch {
			case a.times == 0:
				o.lost++
			case a.at-sent > lateAfter:
				o.late++
			}
		}
	}
	return o
}

// all expects everything everywhere.
func all(int, time.Duration) bool { return true }

// delivered returns when the first datagrams of all spans had arrived everywhere of
// those after which everything arrived everywhere, once and in time; false if there
// are none. That is when delivery began for good.
func (b *book) delivered(spans []span) (since time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range spans {
		first, last := s.to, time.Duration(0)
		for number := s.to - 1; number >= s.from; number-- {
			at, good := b.complete(s.source, number)
			if !good {
				break
			}
			first, last = number, at
		}
		if first == s.to {
			return 0, false
		}
		since = max(since, last)
	}
	return since, len(spans) > 0
}

// complete reports whether a datagram came once to each peer, in time, and when it
// came to the last one. b.mu is held.
func (b *book) complete(source, number int) (last time.Duration, ok bool) {
	for peer := range b.arrivals[source] {
		if peer == source {
			continue
		}
		a := b.arrival(source, peer, number)
		if a.times != 1 || a.at-b.sent[source][number] > lateAfter {
			return 0, false
		}
		last = max(last, a.at)
	}
	return last, true
}

// An outage is a pause of a fast source's datagrams that no busy machine makes, and
// that begins soon after the failure that is its cause.
const (
	outagePause = 100 * time.Millisecond
	outageSoon  = 2 * time.Second
)

// healed returns when all peers but some had datagrams of a span again, and all that
// they had missed and will ever get, after a failure at a time that cut some of them
// off; zero when nobody was, and false when somebody got nothing before the failure, or
// nothing again.
func (b *book) healed(s span, failure time.Duration, except func(peer int) bool) (at time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for peer := range b.arrivals[s.source] {
		if peer == s.source || except(peer) {
			continue
		}
		healed, ok := b.healedAt(s, peer, failure)
		if !ok {
			return 0, false
		}
		at = max(at, healed)
	}
	return at, true
}

// healedAt is healed for one peer. b.mu is held.
func (b *book) healedAt(s span, peer int, failure time.Duration) (at time.Duration, ok bool) {
	type event struct {
		at     time.Duration
		number int
	}
	var (
		events []event
		until  = make([]time.Duration, s.to) // when all up to a number had come that ever did
		last   time.Duration
		before bool // something came before the failure
	)
	for number := s.from; number < s.to; number++ {
		if a := b.arrival(s.source, peer, number); a.times > 0 {
			events = append(events, event{a.at, number})
			last = max(last, a.at)
			before = before || a.at < failure
		}
		until[number] = last
	}
	if !before || last < b.sent[s.source][s.to-1]-outagePause {
		return 0, false
	}
	slices.SortFunc(events, func(x, y event) int { return cmp.Compare(x.at, y.at) })
	newest, out := s.from, false
	for i, e := range events {
		newest = max(newest, e.number)
		if i > 0 && e.at > failure {
			previous := events[i-1].at
			out = out || e.at-previous >= outagePause && previous < failure+outageSoon
		}
		if out && until[newest] <= e.at {
			at, out = e.at, false
		}
	}
	return at, true
}

// delay is the least time that a datagram of a span took to a peer; false when none
// arrived.
func (b *book) delay(s span, peer int) (least time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for number := s.from; number < s.to; number++ {
		if a := b.arrival(s.source, peer, number); a.times > 0 {
			if d := a.at - b.sent[s.source][number]; !ok || d < least {
				least, ok = d, true
			}
		}
	}
	return least, ok
}
