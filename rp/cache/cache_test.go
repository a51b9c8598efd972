// SPDX-License-Identifier: LGPL-3.0-or-later

package cache

import (
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

const group = 5

var start = time.Unix(100, 0)

// datagram returns a DATA with n bytes of payload.
func datagram(ingress ids.Incarnation, sequence uint64, n int) []byte {
	h := wire.Header{
		Type: wire.Data, Group: group, Ingress: ingress, Sequence: sequence,
		K: 1, N: 1, PayloadLen: uint16(n), ObjectLen: uint32(n),
	}
	return append(h.Append(nil), make([]byte, n)...)
}

// since returns the sequences that the cache has.
func since(c *Cache, now time.Time, ingress ids.Incarnation, after uint64) (sequences []uint64) {
	for _, b := range c.Since(now, ids.Stream{Ingress: ingress, Group: group}, after, start.Add(time.Hour), 1000) {
		h, _, _ := wire.Parse(b)
		sequences = append(sequences, h.Sequence)
	}
	return sequences
}

func TestSince(t *testing.T) {
	c := New(DefaultBytes, DefaultAge)
	for _, sequence := range []uint64{3, 1, 2, 7, 3} {
		b := datagram(1, sequence, 100)
		c.Add(start, b)
		b[40]++ // the cache keeps a copy
	}
	c.Add(start, datagram(2, 9, 100))
	require.Equal(t, []uint64{1, 2, 3, 7}, since(c, start, 1, 0))
	require.Equal(t, []uint64{3, 7}, since(c, start, 1, 2))
	require.Equal(t, []uint64{9}, since(c, start, 2, 0))
	require.Len(t, c.Since(start, ids.Stream{Ingress: 1, Group: group}, 0, start, 2), 2)
	require.Equal(t, datagram(1, 3, 100), c.Since(start, ids.Stream{Ingress: 1, Group: group}, 0, start, 2)[0], "the newest two")
	require.Empty(t, since(c, start, 1, 7))
	require.Empty(t, since(c, start, 1, math.MaxUint64))
	require.Empty(t, since(c, start, 3, 0))
	require.Equal(t, datagram(2, 9, 100), c.Since(start, ids.Stream{Ingress: 2, Group: group}, 0, start, 1)[0])
	n, bytes := c.Len()
	require.Equal(t, [2]int{5, 5 * (wire.HeaderSize + 100)}, [2]int{n, bytes})
}

// What came after a time is left out, whatever its sequence is.
func TestSinceBy(t *testing.T) {
	c := New(DefaultBytes, DefaultAge)
	for at, sequence := range []uint64{1, 2, 5, 3, 6, 4} {
		c.Add(start.Add(time.Duration(at)*time.Second), datagram(1, sequence, 100))
	}
	stream := ids.Stream{Ingress: 1, Group: group}
	by := func(seconds int, most int) (sequences []uint64) {
		for _, b := range c.Since(start.Add(6*time.Second), stream, 1, start.Add(time.Duration(seconds)*time.Second), most) {
			h, _, _ := wire.Parse(b)
			sequences = append(sequences, h.Sequence)
		}
		return sequences
	}
	require.Empty(t, by(0, 10))
	require.Equal(t, []uint64{2, 5}, by(2, 10))
	require.Equal(t, []uint64{2, 3, 5}, by(3, 10))
	require.Equal(t, []uint64{3, 5}, by(3, 3), "of the newest three places one came later")
	require.Equal(t, []uint64{2, 3, 4, 5, 6}, by(5, 10))
	require.Equal(t, 5, c.Newer(start, stream, 1, 10))
	require.Equal(t, 3, c.Newer(start, stream, 1, 3))
	require.Zero(t, c.Newer(start, stream, 6, 10))
	require.Equal(t, 2, c.Newer(start.Add(DefaultAge+3*time.Second), stream, 1, 10), "6 and 4")
}

func TestLimits(t *testing.T) {
	const size = wire.HeaderSize + 100
	c := New(3*size, time.Second)
	for i := range uint64(5) {
		c.Add(start.Add(time.Duration(i)*time.Millisecond), datagram(1, i+1, 100))
	}
	require.Equal(t, []uint64{3, 4, 5}, since(c, start, 1, 0), "the oldest go first")
	require.Equal(t, []uint64{5}, since(c, start.Add(time.Second+3*time.Millisecond), 1, 0), "the old ones go")
	require.Empty(t, since(c, start.Add(time.Minute), 1, 0))
	n, bytes := c.Len()
	require.Zero(t, n+bytes)
	require.Empty(t, c.streams)

	c.Add(start, datagram(1, 1, 1000)) // larger than the whole cache
	require.Empty(t, since(c, start, 1, 0))
}

func TestNoData(t *testing.T) {
	c := New(DefaultBytes, DefaultAge)
	heartbeat := wire.Header{Type: wire.Heartbeat, Group: group, Ingress: 1, Sequence: 1}
	c.Add(start, heartbeat.Append(nil))
	c.Add(start, datagram(0, 1, 100)) // not stamped
	c.Add(start, datagram(1, 1, 100)[:70])
	c.Add(start, nil)
	n, _ := c.Len()
	require.Zero(t, n)
}

// Nothing is missing up to the sequence that Whole returns, as far as the cache knows.
func TestWhole(t *testing.T) {
	c := New(DefaultBytes, DefaultAge)
	whole := func(now time.Time, within uint64) any {
		sequence, ok := c.Whole(now, ids.Stream{Ingress: 1, Group: group}, within)
		if !ok {
			return "nothing"
		}
		return sequence
	}
	require.Equal(t, "nothing", whole(start, 100))
	for _, sequence := range []uint64{11, 12, 14, 20, 21} {
		c.Add(start.Add(time.Duration(sequence)), datagram(1, sequence, 1))
	}
	c.Add(start, datagram(2, 13, 1)) // of another stream
	require.Equal(t, uint64(12), whole(start, 100), "13 is missing")
	require.Equal(t, uint64(12), whole(start, 11), "11 is within 11 of 21")
	require.Equal(t, uint64(12), whole(start, 10))
	require.Equal(t, uint64(14), whole(start, 8))
	require.Equal(t, uint64(21), whole(start, 7), "older holes are not looked for")
	require.Equal(t, uint64(21), whole(start.Add(DefaultAge+15), 100), "what is before the oldest is not known")
	require.Equal(t, "nothing", whole(start.Add(DefaultAge+22), 100))
}

// Whatever comes in whatever order, the cache has what a map with the same limits has.
func TestLikeAMap(t *testing.T) {
	type entry struct {
		at    time.Time
		bytes int
	}
	rapid.Check(t, func(t *rapid.T) {
		const maxBytes, maxAge = 2000, 100 * time.Millisecond
		c := New(maxBytes, maxAge)
		kept := map[[2]uint64]entry{}
		var order [][2]uint64
		now := start
		newest := uint64(20)
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "ms")) * time.Millisecond)
			ingress := ids.Incarnation(rapid.Uint32Range(1, 2).Draw(t, "ingress"))
			sequence := newest + rapid.Uint64Range(0, 12).Draw(t, "sequence") - 8
			newest = max(newest, sequence)
			b := datagram(ingress, sequence, rapid.IntRange(1, 100).Draw(t, "size"))
			c.Add(now, b)
			bytes := 0
			drop := func() {
				bytes = 0
				for _, e := range kept {
					bytes += e.bytes
				}
				for len(order) > 0 && (bytes > maxBytes || now.Sub(kept[order[0]].at) >= maxAge) {
					bytes -= kept[order[0]].bytes
					delete(kept, order[0])
					order = order[1:]
				}
			}
			drop()
			key := [2]uint64{uint64(ingress), sequence}
			if _, known := kept[key]; !known {
				kept[key] = entry{now, len(b)}
				order = append(order, key)
			}
			drop()
			n, size := c.Len()
			require.Equal(t, [2]int{len(kept), bytes}, [2]int{n, size})

			after := newest + rapid.Uint64Range(0, 20).Draw(t, "after") - 19
			within := rapid.Uint64Range(1, 12).Draw(t, "within")
			for _, ingress := range []ids.Incarnation{1, 2} {
				var all, want []uint64
				for key := range maps.Keys(kept) {
					if key[0] == uint64(ingress) {
						all = append(all, key[1])
						if key[1] > after {
							want = append(want, key[1])
						}
					}
				}
				slices.Sort(all)
				slices.Sort(want)
				require.Equal(t, want, since(c, now, ingress, after))
				whole, ok := c.Whole(now, ids.Stream{Ingress: ingress, Group: group}, within)
				require.Equal(t, len(all) > 0, ok)
				if ok {
					last := all[len(all)-1]
					all = slices.DeleteFunc(all, func(s uint64) bool { return last-s >= within })
					expect := all[0]
					for _, s := range all[1:] {
						if s != expect+1 {
							break
						}
						expect = s
					}
					require.Equal(t, expect, whole)
				}
			}
		}
	})
}
