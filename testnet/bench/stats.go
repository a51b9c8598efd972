// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"math"
	"slices"
	"strconv"
	"time"
)

// arrival is what became of one datagram. Times are in ns on the kernel's clock.
type arrival struct {
	injected uint64
	last     uint64 // copy at the sink, 0 if there was none
	copies   uint64
}

// burst is what became of datagrams that were injected back to back.
type burst struct {
	span       time.Duration // from the first injection to the last copy, 0 without copies
	copies     uint64        // that arrived
	lost       uint64        // copies
	duplicated uint64        // copies
}

// newBurst sums up datagrams that n subscribers should get.
func newBurst(list []arrival, n int) (b burst) {
	var last uint64
	for _, a := range list {
		b.copies += a.copies
		last = max(last, a.last)
		if want := uint64(n); a.copies < want {
			b.lost += want - a.copies
		} else {
			b.duplicated += a.copies - want
		}
	}
	if b.copies > 0 && last > list[0].injected {
		b.span = time.Duration(last - list[0].injected)
	}
	return b
}

// block is a number of bursts of one size, one after another.
type block []burst

// perCopy is the median of the bursts' ns per copy that arrived.
func (b block) perCopy() float64 {
	var list []float64
	for _, x := range b {
		if x.copies > 0 {
			list = append(list, float64(x.span.Nanoseconds())/float64(x.copies))
		}
	}
	return median(list)
}

// span is the median of the bursts' spans, in ms.
func (b block) span() float64 {
	var list []float64
	for _, x := range b {
		if x.copies > 0 {
			list = append(list, float64(x.span.Nanoseconds())/1e6)
		}
	}
	return median(list)
}

// median is NaN of nothing.
func median(list []float64) float64 {
	if len(list) == 0 {
		return math.NaN()
	}
	list = slices.Sorted(slices.Values(list))
	half := len(list) / 2
	if len(list)%2 == 1 {
		return list[half]
	}
	return (list[half-1] + list[half]) / 2
}

// stayed compares what each subscriber got with what it should have got.
func stayed(before, after []uint64, want uint64) (lost, duplicated uint64) {
	for i := range before {
		if got := after[i] - before[i]; got < want {
			lost += want - got
		} else {
			duplicated += got - want
		}
	}
	return lost, duplicated
}

// Figure is a measured value. In JSON it has four significant digits or more, and
// what could not be measured (NaN) is null.
type Figure float64

// MarshalJSON implements json.Marshaler.
func (f Figure) MarshalJSON() ([]byte, error) {
	if !f.known() {
		return []byte("null"), nil
	}
	return strconv.AppendFloat(nil, f.round(), 'f', -1, 64), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (f *Figure) UnmarshalJSON(text []byte) error {
	if string(text) == "null" {
		*f = Figure(math.NaN())
		return nil
	}
	x, err := strconv.ParseFloat(string(text), 64)
	*f = Figure(x)
	return err
}

// String is the value for a table.
func (f Figure) String() string {
	if !f.known() {
		return "-"
	}
	return strconv.FormatFloat(f.round(), 'f', -1, 64)
}

func (f Figure) known() bool { return !math.IsNaN(float64(f)) && !math.IsInf(float64(f), 0) }

// round keeps four significant digits and no less than the integer part.
func (f Figure) round() float64 {
	x := float64(f)
	if x == 0 {
		return 0
	}
	digits := max(0, 3-int(math.Floor(math.Log10(math.Abs(x)))))
	scale := math.Pow10(digits)
	return math.Round(x*scale) / scale
}
