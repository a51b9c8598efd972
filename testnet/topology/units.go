// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// duration is a time.Duration written as "2.5ms".
type duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = duration(v)
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// bitRate is a number of bit/s, written as tc does: "50mbit", with decimal
// multiples.
type bitRate uint64

var rateUnits = []struct {
	name string
	bits float64
}{{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}}

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *bitRate) UnmarshalText(text []byte) error {
	for _, unit := range rateUnits {
		number, ok := strings.CutSuffix(string(text), unit.name)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(number, 64)
		if err != nil || !(v*unit.bits >= 0 && v*unit.bits <= 1e15) {
			break
		}
		*r = bitRate(math.Round(v * unit.bits))
		return nil
	}
	return fmt.Errorf("rate %q is not a number of bit, kbit, mbit or gbit", text)
}

// MarshalText implements encoding.TextMarshaler.
func (r bitRate) MarshalText() ([]byte, error) {
	for _, unit := range rateUnits {
		if bits := uint64(unit.bits); uint64(r)%bits == 0 && (r > 0 || bits == 1) {
			return fmt.Appendf(nil, "%d%s", uint64(r)/bits, unit.name), nil
		}
	}
	panic("unreachable: each rate is a multiple of one bit/s")
}
