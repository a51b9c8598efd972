// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMedian(t *testing.T) {
	require.True(t, math.IsNaN(median(nil)))
	require.Equal(t, 3.0, median([]float64{3}))
	require.Equal(t, 2.0, median([]float64{9, 1, 2}))
	list := []float64{4, 1, 3, 2}
	require.Equal(t, 2.5, median(list))
	require.Equal(t, []float64{4, 1, 3, 2}, list, "changed its argument")
}

func TestBurst(t *testing.T) {
	for _, test := range []struct {
		name string
		list []arrival
		want burst
	}{
		{"complete", []arrival{{1000, 1600, 2}, {1100, 1900, 2}}, burst{span: 900, copies: 4}},
		{"the first is the last to be complete", []arrival{{1000, 1950, 2}, {1100, 1900, 2}}, burst{span: 950, copies: 4}},
		{"one lost", []arrival{{1000, 1600, 2}, {1100, 1900, 1}}, burst{span: 900, copies: 3, lost: 1}},
		{"a copy twice does not make up for a lost one", []arrival{{1000, 1600, 3}, {1100, 1900, 1}}, burst{span: 900, copies: 4, lost: 1, duplicated: 1}},
		{"nothing arrived", []arrival{{1000, 0, 0}}, burst{lost: 2}},
	} {
		require.Equal(t, test.want, newBurst(test.list, 2), test.name)
	}
}

func TestBlock(t *testing.T) {
	blk := block{
		{span: 4 * time.Millisecond, copies: 2000},
		{span: 2 * time.Millisecond, copies: 2000},
		{lost: 2000},
		{span: time.Second, copies: 2000},
	}
	require.Equal(t, 2000.0, blk.perCopy())
	require.Equal(t, 4.0, blk.span())
	require.True(t, math.IsNaN(block{{lost: 1}}.perCopy()))
}

// A row is the median of the rounds, and sums up what was lost in all of them.
func TestRow(t *testing.T) {
	one := func(span time.Duration, lost uint64) block { return block{{span: span, copies: 10 - lost, lost: lost}} }
	row := newRow(&blocks{
		lane: &lane{name: Socket}, size: 2,
		list: []block{one(90, 0), one(10, 0), one(30, 0), one(18, 4), {{lost: 10}}},
	}, 5)
	require.Equal(t, Row{
		Engine: Socket, Subscribers: 5, Burst: 2,
		PerCopy: 3, LastCopy: 24e-6, Rounds: 5, Copies: 36, Lost: 14, Gbit: LineSize * 8 / 3.0,
	}, row)

	row = newRow(&blocks{lane: &lane{name: Bare}, again: true, size: 1, list: []block{{{lost: 5}}}}, 5)
	require.True(t, row.Again)
	require.False(t, row.PerCopy.known() || row.Gbit.known())
	require.Equal(t, 1.0, row.lossRatio())
}

func TestRepeats(t *testing.T) {
	require.Equal(t, 40, repeats(1, 1))
	require.Equal(t, 3, repeats(10_000, 1))
	require.Equal(t, 1, repeats(10_000, 128))
	require.LessOrEqual(t, repeats(1, maxBurst)*maxBurst, slotCount, "slots must not be used twice in a block")
}

func TestStayed(t *testing.T) {
	lost, duplicated := stayed([]uint64{5, 5, 5}, []uint64{15, 13, 16}, 10)
	require.Equal(t, uint64(2), lost)
	require.Equal(t, uint64(1), duplicated)
}

func TestFigure(t *testing.T) {
	for _, test := range []struct {
		value Figure
		want  string
	}{
		{0, "0"}, {1.23456, "1.235"}, {0.000123456, "0.0001235"}, {123456.7, "123457"}, {-12.345, "-12.35"},
		{Figure(math.NaN()), "null"}, {Figure(math.Inf(1)), "null"},
	} {
		text, err := json.Marshal(test.value)
		require.NoError(t, err)
		require.Equal(t, test.want, string(text))
		var back Figure
		require.NoError(t, json.Unmarshal(text, &back))
		require.Equal(t, test.value.known(), back.known())
	}
	require.Equal(t, "-", Figure(math.NaN()).String())
}
