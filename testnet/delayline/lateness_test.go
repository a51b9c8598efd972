// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBucket(t *testing.T) {
	last := -1
	for _, v := range []uint64{0, 1, 15, 16, 17, 31, 32, 34, 1000, 1 << 20, 1<<63 - 1} {
		i := bucket(v)
		require.Greater(t, i, last, "value %d", v)
		require.GreaterOrEqual(t, upper(i), v)
		require.LessOrEqual(t, float64(upper(i)), float64(v)*(1+1.0/16)+1)
		last = i
	}
	require.Less(t, last, len(lateness{}.buckets))
}

func TestLateness(t *testing.T) {
	var l lateness
	require.Zero(t, l.quantile(0.5))
	require.Empty(t, l.histogram())
	rng := rand.New(rand.NewPCG(1, 2))
	var all []int64
	for range 10_000 {
		v := rng.Int64N(int64(2 * time.Millisecond))
		l.add(v)
		all = append(all, v)
	}
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.99} {
		exact := float64(all[int(q*float64(len(all)))])
		require.InEpsilon(t, exact, float64(l.quantile(q)), 1.0/16)
	}
	require.Equal(t, all[len(all)-1], l.max)
	require.Equal(t, l.max, l.quantile(1))
	require.InDelta(t, 0.5, float64(l.overdue)/float64(l.count), 0.02)
}

func TestHistogram(t *testing.T) {
	var l lateness
	for _, ns := range []int64{-5, 0, 10, 10, 1000} {
		l.add(ns)
	}
	require.Equal(t, []Bucket{{UpTo: 0, Frames: 2}, {UpTo: 0.01, Frames: 2}, {UpTo: 1.023, Frames: 1}}, l.histogram(),
		"what left early counts as 0")
}
