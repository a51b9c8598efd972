// SPDX-License-Identifier: LGPL-3.0-or-later

package meshbench

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/topology"
)

// TestObserve has 0 send to 1 and 2, and 2 to 3; all send heartbeats to all.
func TestObserve(t *testing.T) {
	sent := make([][]float64, 4)
	for i := range sent {
		sent[i] = []float64{3, 3, 3, 3}
	}
	sent[0][1], sent[0][2], sent[2][3] = 40, 42, 41
	found, err := observe(0, 40, sent)
	require.NoError(t, err)
	require.Equal(t, ways{-1, 0, 0, 2}, found)
	require.Equal(t, []int{3, 0, 1, 0}, found.below())
	require.Equal(t, 2, found.depth(3))
	require.Zero(t, found.depth(0))

	sent[3][1], sent[1][3], sent[2][3] = 43, 43, 0
	_, err = observe(0, 40, sent)
	require.ErrorContains(t, err, "circle")
	sent[0][2] = 19
	_, err = observe(0, 40, sent)
	require.ErrorContains(t, err, "to rp 2")
}

func TestLinkCopies(t *testing.T) {
	top, err := topology.Load("two-as")
	require.NoError(t, err)
	count := func(link string, ab, ba uint64) delayline.Counters {
		c := delayline.Counters{Link: link}
		c.AB.Classes[delayline.Data].Frames, c.BA.Classes[delayline.Data].Frames = ab, ba
		c.AB.Classes[delayline.Control].Frames = 1000
		return c
	}
	busiest, sum := linkCopies(top, []delayline.Counters{count("as1-rp", 500, 0), count("as1-as2", 60, 20)}, 40)
	require.Equal(t, 2.0, busiest)
	require.Equal(t, 2.0, sum)
}

// TestOptimum: from Virginia, multicast crosses as many lines as there are other ASes,
// and several RPs of an AS cost no more.
func TestOptimum(t *testing.T) {
	top, err := topology.Load("ten-as")
	require.NoError(t, err)
	for _, n := range []int{10, 64} {
		mesh, err := top.WithRPs(n)
		require.NoError(t, err)
		source, ok := mesh.Host("virginia-rp1")
		require.True(t, ok)
		require.Equal(t, 9, optimum(mesh, source))
	}
}

func TestDirect(t *testing.T) {
	top, err := topology.Load("ten-as")
	require.NoError(t, err)
	mesh, err := top.WithRPs(16)
	require.NoError(t, err)
	host := func(name string) topology.Host {
		h, ok := mesh.Host(name)
		require.True(t, ok)
		return h
	}
	paths := mesh.BGP()
	require.Equal(t, 2750*time.Microsecond, direct(mesh, paths, host("virginia-rp1"), host("virginia-rp2")))
	require.Equal(t, 1375*time.Microsecond+44100*time.Microsecond+1000*time.Microsecond,
		direct(mesh, paths, host("virginia-rp1"), host("frankfurt-rp1")))
}

func TestQuantile(t *testing.T) {
	require.Equal(t, 3.0, quantile([]float64{3, 1, 2}, 0.95))
	require.Equal(t, 2.0, quantile([]float64{3, 1, 2}, 0.5))
	require.Zero(t, quantile(nil, 0.5))
	require.Equal(t, 2.0, mean([]float64{3, 1, 2}))
}
