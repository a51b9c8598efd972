// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWithRPs(t *testing.T) {
	top, err := Load("ten-as")
	require.NoError(t, err)
	top, err = top.Populate(top.Nodes)
	require.NoError(t, err)
	names := func(top *Topology, role Role) (list []string) {
		for _, h := range top.HostsOf(role) {
			list = append(list, h.Name)
		}
		return list
	}

	two, err := top.WithRPs(2)
	require.NoError(t, err)
	require.Equal(t, []string{"virginia-rp1", "frankfurt-rp1"}, names(two, RP), "the largest shares")
	require.Equal(t, []string{"virginia-peer", "frankfurt-peer"}, names(two, Plain))
	require.Empty(t, two.HostsOf(Geth))
	require.Empty(t, two.Peerings)
	as, _ := two.AS("tokyo")
	require.False(t, as.RP)

	for _, n := range []int{4, 8, 16, 32, 64} {
		mesh, err := top.WithRPs(n)
		require.NoError(t, err)
		rps := mesh.HostsOf(RP)
		require.Len(t, rps, n)
		inAS := make(map[string]int)
		for _, h := range rps {
			inAS[h.AS]++
			require.Equal(t, *top.RPLine, h.Line)
		}
		if n >= len(top.ASes) {
			require.Len(t, inAS, len(top.ASes), "each AS has one")
		}
		require.Len(t, mesh.HostsOf(Plain), len(inAS))
		require.GreaterOrEqual(t, inAS["virginia"], inAS["frankfurt"])
	}
	sixtyFour, err := top.WithRPs(64)
	require.NoError(t, err)
	_, ok := sixtyFour.Host("frankfurt-rp13")
	require.True(t, ok, "the longest name")

	require.Len(t, top.HostsOf(Geth), 20, "the original is as it was")
	for want, n := range map[string]int{"0 replication points are none": 0, "at most 99 fit": 1000} {
		_, err := top.WithRPs(n)
		require.ErrorContains(t, err, want)
	}
	two, err = Load("two-as")
	require.NoError(t, err)
	for i := range two.ASes {
		two.ASes[i].Share = 0
	}
	_, err = two.WithRPs(2)
	require.ErrorContains(t, err, "no AS has a share")
}
