// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"math/bits"
	"time"
)

// Overdue is the lateness from which on a frame counts as late.
const Overdue = time.Millisecond

// subBits sets the resolution of the histogram: 2^subBits buckets per factor of
// two, so that a bucket is at most 1/16 wider than its lower bound.
const subBits = 4

// lateness is a histogram of how long after its due time each frame left; one
// that left early counts as 0. It does not allocate. The zero value is empty.
type lateness struct {
	count   uint64
	overdue uint64
	max     int64 // ns
	buckets [(64 - subBits) << subBits]uint64
}

func (l *lateness) add(ns int64) {
	ns = max(ns, 0)
	l.count++
	if ns > int64(Overdue) {
		l.overdue++
	}
	l.max = max(l.max, ns)
	l.buckets[bucket(uint64(ns))]++
}

// bucket numbers the values 0..2^subBits-1 one by one and the rest by exponent
// and the subBits bits after the leading one.
func bucket(v uint64) int {
	if v < 1<<subBits {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return (shift+1)<<subBits + int(v>>shift)&(1<<subBits-1)
}

// upper is the largest value of a bucket.
func upper(i int) uint64 {
	if i < 1<<subBits {
		return uint64(i)
	}
	shift := i>>subBits - 1
	return (1<<subBits+uint64(i)&(1<<subBits-1)+1)<<shift - 1
}

// quantile is the value, in ns, that a share q of the frames did not exceed,
// rounded up to the end of its bucket.
func (l *lateness) quantile(q float64) int64 {
	if l.count == 0 {
		return 0
	}
	rank := uint64(q * float64(l.count))
	var seen uint64
	for i, n := range l.buckets {
		seen += n
		if seen > rank {
			return min(int64(upper(i)), l.max)
		}
	}
	return l.max
}

// Bucket is a part of the histogram of lateness.
type Bucket struct {
	UpTo   float64 `json:"up_to_us"` // and above the bucket before
	Frames uint64  `json:"frames"`
}

// histogram is the list of buckets that are not empty, in order.
func (l *lateness) histogram() []Bucket {
	var list []Bucket
	for i, n := range l.buckets {
		if n > 0 {
			list = append(list, Bucket{UpTo: micros(int64(upper(i))), Frames: n})
		}
	}
	return list
}

func micros(ns int64) float64 { return float64(ns) / 1e3 }
