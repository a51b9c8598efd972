// SPDX-License-Identifier: LGPL-3.0-or-later

// Package cache keeps the datagrams that a replication point sent lately, for a
// neighbour or a peer that turns to it and missed some.
package cache

import (
	"slices"
	"sync"
	"time"

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
type Cache struct {
	maxBytes int
	maxAge   time.Duration

	mu      sync.Mutex
	streams map[streamID]map[uint64][]byte // by sequence
	order   []entry                        // of arrival
	bytes   int
}

type streamID struct{ ingress, group uint32 }

type entry struct {
	stream   streamID
	sequence uint64
	at       time.Time
}

// New returns a cache of at most maxBytes bytes of datagrams, each for at most maxAge.
func New(maxBytes int, maxAge time.Duration) *Cache {
	return &Cache{maxBytes: maxBytes, maxAge: maxAge, streams: make(map[streamID]map[uint64][]byte)}
}

// Add keeps a copy of a stamped DATA. What is none, or is there already, is left out.
func (c *Cache) Add(now time.Time, datagram []byte) {
	h, _, v := wire.Parse(datagram)
	if v != wire.Pass || h.Type != wire.Data || h.Ingress == 0 || len(datagram) > c.maxBytes {
		return
	}
	id := streamID{h.Ingress, h.Group}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streams[id]
	if _, known := s[h.Sequence]; known {
		return
	}
	if s == nil {
		s = make(map[uint64][]byte)
		c.streams[id] = s
	}
	s[h.Sequence] = slices.Clone(datagram)
	c.order = append(c.order, entry{id, h.Sequence, now})
	c.bytes += len(datagram)
	c.expire(now)
}

// Since returns the datagrams of a stream with higher sequences than after, in their
// order. They must not be changed.
func (c *Cache) Since(now time.Time, ingress, group uint32, after uint64) [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(now)
	s := c.streams[streamID{ingress, group}]
	var sequences []uint64
	for sequence := range s {
		if sequence > after {
			sequences = append(sequences, sequence)
		}
	}
	slices.Sort(sequences)
	datagrams := make([][]byte, len(sequences))
	for i, sequence := range sequences {
		datagrams[i] = s[sequence]
	}
	return datagrams
}

// Whole returns the sequence of a stream up to which nothing is missing, as far as the
// cache knows: it does not look behind what it keeps, and not more than within behind
// the newest sequence. It returns false when it keeps nothing of the stream.
func (c *Cache) Whole(now time.Time, ingress, group uint32, within uint64) (sequence uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(now)
	s := c.streams[streamID{ingress, group}]
	if len(s) == 0 {
		return 0, false
	}
	var newest uint64
	for sequence := range s {
		newest = max(newest, sequence)
	}
	sequence = newest
	for other := range s {
		if newest-other < within {
			sequence = min(sequence, other)
		}
	}
	for {
		if _, kept := s[sequence+1]; !kept {
			return sequence, true
		}
		sequence++
	}
}

// Len returns how many datagrams are kept, and their bytes.
func (c *Cache) Len() (datagrams, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.order), c.bytes
}

// expire drops the oldest, until the rest is within the limits.
func (c *Cache) expire(now time.Time) {
	n := 0
	for n < len(c.order) && (c.bytes > c.maxBytes || now.Sub(c.order[n].at) >= c.maxAge) {
		e := c.order[n]
		s := c.streams[e.stream]
		c.bytes -= len(s[e.sequence])
		delete(s, e.sequence)
		if len(s) == 0 {
			delete(c.streams, e.stream)
		}
		n++
	}
	c.order = c.order[n:]
}
