// SPDX-License-Identifier: LGPL-3.0-or-later

package cache

import (
	"testing"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
)

// filled returns a cache with what 10 s at 2,000 datagrams per second leave of a stream.
func filled(n uint64) (*Cache, time.Time) {
	c := New(DefaultBytes, DefaultAge)
	now := start
	for sequence := range n {
		now = start.Add(time.Duration(sequence) * 500 * time.Microsecond)
		c.Add(now, datagram(1, sequence+1, 1000))
	}
	return c, now
}

// Another 100 of 20,000.
func BenchmarkSince(b *testing.B) {
	c, now := filled(20_000)
	b.ReportAllocs()
	for b.Loop() {
		if got := c.Since(now, ids.Stream{Ingress: 1, Group: group}, 19_900, now, 1024); len(got) != 100 {
			b.Fatal(len(got))
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	c, now := filled(20_000)
	record := datagram(1, 1, 1000)
	sequence := uint64(20_000)
	b.ReportAllocs()
	for b.Loop() {
		sequence++
		now = now.Add(500 * time.Microsecond)
		for i := range 8 {
			record[16+i] = byte(sequence >> (8 * (7 - i)))
		}
		c.Add(now, record)
	}
}
