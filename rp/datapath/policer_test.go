// SPDX-License-Identifier: LGPL-3.0-or-later

package datapath

import (
	"math"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const second = uint64(time.Second)

// pass returns how many datagrams of a cost pass at a time, up to a limit, and due
// after them.
func pass(p Policer, due, now, cost uint64, limit int) (n int, after uint64) {
	for ; n < limit && p.Conforms(due, now); n++ {
		due = p.Charge(due, now, cost)
	}
	return n, due
}

func TestPolicerBurst(t *testing.T) {
	for _, c := range []struct {
		rate, burst, cost uint64
		want              int // at once
	}{
		{0, 0, 1, 1000}, // no limit
		{1, 1, 1, 1},
		{1, 3, 1, 3},
		{3, 7, 1, 7}, // an interval that is no whole number of ns
		{2000, 512, 1, 512},
		{1_000_000, 249_500, 1000, 250},
		{1_000_000, 250_500, 1000, 251}, // half a datagram is left
		{1_000_000, 1, 1_000_000, 1},    // overdraws the bucket
	} {
		p := NewPolicer(c.rate, c.burst)
		n, due := pass(p, 0, second, c.cost, 1000)
		require.Equal(t, c.want, n, "%+v", c)
		if c.rate == 0 {
			require.Zero(t, due)
			continue
		}
		// The next one passes when its time has come, less the slack.
		next := due - p.Tolerance
		require.False(t, p.Conforms(due, next-1), "%+v", c)
		require.True(t, p.Conforms(due, next), "%+v", c)
	}
}

// Publishers that keep to their rate are not refused because the CPU that receives
// the next datagram has a clock that is a little behind.
func TestPolicerClocksDiffer(t *testing.T) {
	const skew = 1000 // ns
	p := NewPolicer(2000, 1)
	due, now := uint64(0), second
	for i := range uint64(10_000) {
		here := now - i%2*skew
		require.True(t, p.Conforms(due, here), "datagram %d", i)
		due = p.Charge(due, here, 1)
		now += second / 2000
	}
}

func TestPolicerOfAnySize(t *testing.T) {
	for _, rate := range []uint64{1, 1000, math.MaxUint64} {
		for _, burst := range []uint64{0, 1, math.MaxUint64} {
			p := NewPolicer(rate, burst)
			now := uint64(100 * 365 * 24 * time.Hour)
			require.True(t, p.Conforms(0, now))
			require.GreaterOrEqual(t, p.Charge(0, now, 1<<33), now)
		}
	}
}

// In any time, no more passes than the burst, the rate times that time, what the last
// datagram overdraws, and what the slack is worth. What keeps below passes.
func TestPolicerProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Uint64Range(1, 1e11).Draw(t, "rate")
		burst := rapid.Uint64Range(1, 1e11).Draw(t, "burst")
		p := NewPolicer(rate, burst)
		start := rapid.Uint64Range(0, 1e18).Draw(t, "start")
		now, due, passed := start, uint64(0), new(big.Int)
		var most uint64
		for range rapid.IntRange(1, 50).Draw(t, "datagrams") {
			now += rapid.Uint64Range(0, 1e10).Draw(t, "pause")
			cost := rapid.Uint64Range(0, 1<<33).Draw(t, "cost")
			before := due
			if !p.Conforms(due, now) {
				continue
			}
			due = p.Charge(due, now, cost)
			if cost*second/rate > 0 && due <= before && due <= now {
				t.Fatalf("a cost of %d is free", cost)
			}
			most = max(most, cost)
			passed.Add(passed, new(big.Int).SetUint64(cost))
		}
		// Each quotient may be up to 1 ns too small, which is worth rate / 10^9.
		allowed := new(big.Int).SetUint64(now - start + uint64(PolicerSlack) + 51)
		allowed.Mul(allowed, new(big.Int).SetUint64(rate))
		allowed.Div(allowed, big.NewInt(int64(second)))
		allowed.Add(allowed, new(big.Int).SetUint64(burst+most))
		if passed.Cmp(allowed) > 0 {
			t.Fatalf("%v units passed, allowed are %v", passed, allowed)
		}
	})
}
