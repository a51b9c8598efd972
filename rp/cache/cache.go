// SPDX-License-Identifier: LGPL-3.0-or-later

// Package cache keeps the datagrams that a replication point sent lately, for an
// RP neighbour or a peer that turns to it and missed some.
package cache

import (
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// Defaults of New: at 2,000 datagrams of the largest size per second the bytes last for
// longer than the age.
const (
	DefaultBytes = 64 << 20
	DefaultAge   = 10 * time.Second
)

// Cache is datagrams by (ingress RP, group) and sequence. It is safe for concurrent
// use and makes no use of the clock but by what it is told.
//
// Each stream is kept in the order of its sequences, in which its datagrams come but for
// those that were sent again: to add one, to find a sequence and to drop the oldest do not
// depend on how much is kept.
type Cache struct {
	maxBytes int
	maxAge   time.Duration

	mu      sync.Mutex
	streams map[ids.Stream]*deque[record] // by sequence
	order   deque[arrival]
	bytes   int
}

// record is a datagram, nil when it was dropped and is behind one that was not.
type record struct {
	sequence uint64
	datagram []byte
	at       time.Time // when it came
}

type arrival struct {
	stream   ids.Stream
	sequence uint64
}

// New returns a cache of at most maxBytes bytes of datagrams, each for at most maxAge.
func New(maxBytes int, maxAge time.Duration) *Cache {
	return &Cache{maxBytes: maxBytes, maxAge: maxAge, streams: make(map[ids.Stream]*deque[record])}
}

// find returns the place of the first record of a stream whose sequence is not below one.
func find(s *deque[record], sequence uint64) int {
	if s.n == 0 || s.at(s.n-1).sequence < sequence {
		return s.n
	}
	return sort.Search(s.n, func(i int) bool { return s.at(i).sequence >= sequence })
}

// Add keeps a copy of a stamped DATA. What is none, or is there already, is left out.
func (c *Cache) Add(now time.Time, datagram []byte) {
	h, _, v := wire.Parse(datagram)
	if v != wire.Pass || h.Type != wire.Data || h.Ingress == 0 || len(datagram) > c.maxBytes {
		return
	}
	id := h.Stream()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(now)
	s := c.streams[id]
	if s == nil {
		s = new(deque[record])
		c.streams[id] = s
	}
	i := find(s, h.Sequence)
	if i == s.n || s.at(i).sequence != h.Sequence {
		s.insert(i, record{sequence: h.Sequence})
	}
	r := s.at(i)
	if r.datagram != nil {
		return
	}
	r.datagram, r.at = slices.Clone(datagram), now
	c.order.push(arrival{id, h.Sequence})
	c.bytes += len(datagram)
	c.expire(now)
}

// Since returns the datagrams of a stream with higher sequences than after that came at a time
// or before it, in their order, of more than most the newest ones. They must not be changed.
func (c *Cache) Since(now time.Time, stream ids.Stream, after uint64, by time.Time, most int) [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(now)
	s := c.streams[stream]
	if s == nil || s.at(s.n-1).sequence <= after {
		return nil
	}
	last, first := s.n, find(s, after+1)
	for last > first && s.at(last-1).at.After(by) {
		last--
	}
	first = max(first, last-most)
	datagrams := make([][]byte, 0, last-first)
	for i := first; i < last; i++ {
		if r := s.at(i); r.datagram != nil && !r.at.After(by) {
			datagrams = append(datagrams, r.datagram)
		}
	}
	return datagrams
}

// Newer returns how many datagrams of a stream with higher sequences than after there are, at most
// most.
func (c *Cache) Newer(now time.Time, stream ids.Stream, after uint64, most int) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(now)
	s := c.streams[stream]
	if s == nil || s.at(s.n-1).sequence <= after {
		return 0
	}
	for i := max(find(s, after+1), s.n-most); i < s.n; i++ {
		if s.at(i).datagram != nil {
			n++
		}
	}
	return n
}

// Whole returns the sequence of a stream up to which nothing is missing, as far as the
// cache knows: it does not look behind what it keeps, and not more than within behind
// the newest sequence. It returns false when it keeps nothing of the stream.
func (c *Cache) Whole(now time.Time, stream ids.Stream, within uint64) (sequence uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(now)
	s := c.streams[stream]
	if s == nil {
		return 0, false
	}
	newest := s.at(s.n - 1).sequence
	i := 0
	if newest >= within {
		i = find(s, newest-within+1)
	}
	for ; s.at(i).datagram == nil; i++ { // the newest one is kept
	}
	for sequence = s.at(i).sequence; i+1 < s.n; i++ {
		next := s.at(i + 1)
		if next.sequence != sequence+1 || next.datagram == nil {
			break
		}
		sequence++
	}
	return sequence, true
}

// Len returns how many datagrams are kept, and their bytes.
func (c *Cache) Len() (datagrams, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.order.n, c.bytes
}

// expire drops the oldest, until the rest is within the limits.
func (c *Cache) expire(now time.Time) {
	for c.order.n > 0 {
		oldest := c.order.at(0)
		s := c.streams[oldest.stream]
		r := s.at(find(s, oldest.sequence))
		if c.bytes <= c.maxBytes && now.Sub(r.at) < c.maxAge {
			return
		}
		c.bytes -= len(r.datagram)
		r.datagram = nil
		for s.n > 0 && s.at(0).datagram == nil {
			s.pop()
		}
		for s.n > 0 && s.at(s.n-1).datagram == nil { // it came before an older one
			s.n--
		}
		if s.n == 0 {
			delete(c.streams, oldest.stream)
		}
		c.order.pop()
	}
}
