// SPDX-License-Identifier: LGPL-3.0-or-later

package measure

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

var inf = math.Inf(1)

func TestReached(t *testing.T) {
	pairs := []Pair{
		{Tx: 0, Delay: 3}, {Tx: 0, Delay: 1}, {Tx: 0, Delay: 2}, {Tx: 0, Delay: 4},
		{Tx: 2, Delay: 7}, {Tx: 2, Delay: inf}, {Tx: 2, Delay: 5}, {Tx: 2, Delay: 6},
	}
	require.Equal(t, []float64{2, 6}, Reached(pairs, 50))
	require.Equal(t, []float64{4, inf}, Reached(pairs, 95))
	require.Equal(t, []float64{4, inf}, Reached(pairs, 100))
	require.Empty(t, Reached(nil, 50))
}

func TestSeries(t *testing.T) {
	s := NewSeries([]int{7, 7, 9}, []float64{30, 10, 20})
	ps := []float64{0, 50, 100}
	require.Equal(t, []float64{10, 20, 30}, s.percentiles(nil, ps))
	require.Equal(t, []float64{10, 10, 30}, s.percentiles([]int{2, 0}, ps), "only unit 7: 10, 10, 30, 30")
	require.Equal(t, []float64{20, 20, 20}, s.percentiles([]int{0, 2}, ps), "only unit 9")
	require.Equal(t, []float64{10, 20, 30}, s.percentiles([]int{1, 1}, ps))
	require.True(t, math.IsNaN(NewSeries(nil, nil).percentiles(nil, ps)[0]))
}

// TestBootstrapOfTwoUnits has two values, of which a replicate takes {1, 1} in one
// of four cases, {1, 3} in two and {3, 3} in one: its nearest-rank median is 1 in
// three cases.
func TestBootstrapOfTwoUnits(t *testing.T) {
	b := Bootstrap{Replicates: 2000, Seed: 1}
	require.Equal(t, []Interval{{1, 1, 3}}, b.Combine([]*Series{Each([]float64{3, 1})}, 50))
	require.Equal(t, []Interval{{3, 1, 3}}, b.Combine([]*Series{Each([]float64{3, 1})}, 100))
}

func TestBootstrapDrawsWholeUnits(t *testing.T) {
	// One hundred values, of two transactions only: they must not count as a
	// hundred observations.
	units, values := make([]int, 100), make([]float64, 100)
	for i := range values {
		units[i], values[i] = i/50, float64(10*(i/50))+float64(i%50)/100
	}
	b := Bootstrap{Replicates: 2000, Seed: 1}
	got := b.Combine([]*Series{NewSeries(units, values)}, 50)[0]
	require.Less(t, got.Low, 1.0)
	require.Greater(t, got.High, 10.0)
}

// TestBootstrapCovers takes samples of a known distribution: about 95 % of the
// intervals must contain its median.
func TestBootstrapCovers(t *testing.T) {
	const experiments, size = 200, 61
	hit, x := 0, uint32(1)
	for range experiments {
		values := make([]float64, size)
		for i := range values {
			x = x*1664525 + 1013904223 // uniform over all 32-bit numbers
			values[i] = float64(x) / (1 << 32)
		}
		got := Bootstrap{Replicates: 500, Seed: 3}.Combine([]*Series{Each(values)}, 50)[0]
		require.LessOrEqual(t, got.Low, got.Value)
		require.GreaterOrEqual(t, got.High, got.Value)
		if got.Low <= 0.5 && got.High >= 0.5 {
			hit++
		}
	}
	require.InDelta(t, 0.95*experiments, hit, 0.05*experiments)
}

func TestBootstrapOverRuns(t *testing.T) {
	b := Bootstrap{Replicates: 2000, Seed: 1}
	runs := []*Series{Each([]float64{1, 1}), Each([]float64{5, 5}), Each([]float64{2, 2})}
	require.Equal(t, []Interval{{2, 1, 5}}, b.Combine(runs, 50), "the median over runs, and runs are drawn too")
	require.Equal(t, b.Combine(runs, 50, 99), b.Combine(runs, 50, 99), "the seed decides")
	got := b.Combine([]*Series{Each([]float64{1, inf})}, 50, 99)
	require.Equal(t, Interval{1, 1, inf}, got[0])
	require.Equal(t, Interval{inf, 1, inf}, got[1])

	one := b.Combine([]*Series{Each([]float64{4})}, 50)[0]
	require.Equal(t, 4.0, one.Value)
	require.True(t, math.IsNaN(one.Low) && math.IsNaN(one.High))

	require.Equal(t, Interval{2, 1, 5}, b.Median([]float64{5, 1, 2}))
	require.Equal(t, 1.5, b.Median([]float64{1, 2}).Value)
	require.Equal(t, inf, b.Median([]float64{inf, inf}).Value)
	require.True(t, math.IsNaN(b.Median([]float64{1}).Low))
	require.True(t, math.IsNaN(b.Median(nil).Value))
}

func TestMoved(t *testing.T) {
	for _, c := range []struct {
		a, b float64
		want bool
	}{
		{10, 10.9, false}, {10, 11.1, true}, {10, 8.9, true}, {10, 9.1, false},
		{inf, inf, false}, {inf, 5, true}, {5, inf, true}, {0, 0, false}, {0, 1, true}, {-10, -10.5, false},
	} {
		require.Equal(t, c.want, Moved(c.a, c.b, 0.1), "%v and %v", c.a, c.b)
	}
}
