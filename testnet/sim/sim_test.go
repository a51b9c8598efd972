// SPDX-License-Identifier: LGPL-3.0-or-later

package sim

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/rp/mesh/tree"
)

func run(t *testing.T, rps int, mode tree.Mode, edit func(*Plan)) *Result {
	t.Helper()
	plan, err := NewPlan(rps, mode, 1)
	require.NoError(t, err)
	edit(&plan)
	result, err := Run(t.Context(), plan)
	require.NoError(t, err)
	return result
}

// TestChurn: hosts die at ten times the rate of the bar, one after the other and
// together, and nothing is lost for good or delivered twice.
func TestChurn(t *testing.T) {
	r := run(t, 100, tree.Light, func(p *Plan) { p.Churn, p.PerMinute, p.Deaths = 10*time.Second, 1, 3 })
	require.Less(t, r.ConvergeS, 5.0)
	require.Greater(t, r.Deaths, 5)
	require.NotZero(t, r.Expected)
	require.GreaterOrEqual(t, r.Delivered, 0.999)
	require.Zero(t, r.Duplicated)
	require.True(t, r.SameTrees)
	require.Less(t, r.HealS, 0.6)
	require.Zero(t, r.HealLost)
	require.Less(t, r.ControlTree, 12.0)
	require.Less(t, r.ControlOther, 2.0)
}

// TestLastIsLighterThanStar: 32 RPs in ten regions.
func TestLastIsLighterThanStar(t *testing.T) {
	light := run(t, 32, tree.Light, func(*Plan) {})
	star := run(t, 32, tree.Star, func(*Plan) {})
	require.LessOrEqual(t, light.StretchP95, 1.5)
	require.Equal(t, 1, star.DepthMax)
	require.GreaterOrEqual(t, star.LinkCopiesMax, 2*light.LinkCopiesMax)
	require.GreaterOrEqual(t, light.LinkCopiesMax, 1.0, "the optimum")
}

// TestSameSeedSameRun: all is decided by the seed.
func TestSameSeedSameRun(t *testing.T) {
	plan := func(p *Plan) { p.Churn, p.Deaths = 5*time.Second, 1 }
	require.Equal(t, run(t, 20, tree.Light, plan), run(t, 20, tree.Light, plan))
}

// TestMeter: a second of measuring is one of each directed link.
func TestMeter(t *testing.T) {
	plan, err := NewPlan(13, tree.Light, 1)
	require.NoError(t, err)
	w, err := newWorld(plan.Config)
	require.NoError(t, err)
	for _, r := range w.rps {
		w.start(r)
	}
	require.NoError(t, w.converge(t.Context()))
	links := 0
	for _, r := range w.rps {
		links += len(r.core.Neighbours())
	}
	m := newMeter(w)
	for range 2 {
		m.start()
		w.run(w.now + 3*time.Second)
		tree, other := m.stop()
		require.EqualValues(t, 3*links, m.treeSeconds+m.otherSeconds)
		require.Positive(t, tree)
		require.Positive(t, other)
	}
}

// TestPartition: half of the regions cannot reach the others for a while, on either
// side delivery goes on, and after it all have the same trees.
func TestPartition(t *testing.T) {
	plan, err := NewPlan(60, tree.Light, 1)
	require.NoError(t, err)
	w, err := newWorld(plan.Config)
	require.NoError(t, err)
	for _, r := range w.rps {
		w.start(r)
	}
	require.NoError(t, w.converge(t.Context()))
	for i := range w.streams {
		w.publishing(i, 200*time.Millisecond)
	}
	side := func(i int32) bool { return w.under.region[i] < regions/2 }
	w.blocked = func(a, b int32) bool { return side(a) != side(b) }
	w.run(w.now + 20*time.Second)
	sent := make([]uint32, len(w.streams))
	for i, s := range w.streams {
		sent[i] = s.next
	}
	w.run(w.now + time.Second)
	for i, s := range w.streams {
		for _, r := range w.rps {
			require.Equal(t, side(r.index) == side(s.source.index), isSet(r.windows[i].got, sent[i]))
		}
	}
	w.blocked = nil
	w.run(w.now + 10*time.Second)
	require.NoError(t, w.converge(t.Context()))
	require.True(t, w.sameTrees())
	require.Zero(t, w.duplicated)
}
