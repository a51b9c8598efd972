// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestPopulate(t *testing.T) {
	top := load(t, "ten-as")
	a, err := top.Populate(Population{Count: 32, Degree: 16, Seed: 1})
	require.NoError(t, err)
	b, err := top.Populate(Population{Count: 32, Degree: 16, Seed: 2})
	require.NoError(t, err)
	require.Equal(t, a.Hosts, b.Hosts, "the seed is for the peerings")
	require.NotEqual(t, a.Peerings, b.Peerings)
	again, err := top.Populate(Population{Count: 32, Degree: 16, Seed: 1})
	require.NoError(t, err)
	require.Equal(t, a, again)
	require.Empty(t, top.HostsOf(Geth), "the network itself stays as it is")

	full, err := top.Populate(Population{Count: 10})
	require.NoError(t, err)
	require.Len(t, full.Peerings, 10*9/2)
	none, err := top.Populate(Population{})
	require.NoError(t, err)
	require.Equal(t, top.Hosts, none.Hosts)

	// The file's own Ethereum nodes have peers, too.
	ixp := load(t, "testdata/ixp.toml")
	ixp, err = ixp.Populate(Population{Count: 5, Degree: 3})
	require.NoError(t, err)
	require.Len(t, ixp.HostsOf(Geth), 6)
	require.Len(t, ixp.Peers("probe"), 3)

	for want, p := range map[string]Population{
		"9 nodes are not enough for one in each of the 10 ASes": {Count: 9},
		"negative count":                    {Count: -1},
		"one peer each are not connected":   {Count: 10, Degree: 1},
		"at most 999 fit":                   {Count: 9999},
		"seed 9223372036854775808 does not": {Count: 10, Seed: 1 << 63},
	} {
		_, err := top.Populate(p)
		require.ErrorContains(t, err, want)
	}
	shareless, err := Parse("one", []byte("[[as]]\nname = \"a\"\nnumber = 1\n"))
	require.NoError(t, err)
	_, err = shareless.Populate(Population{Count: 1})
	require.ErrorContains(t, err, "no AS has a share of the 1 nodes")
}

func TestApportion(t *testing.T) {
	for _, c := range []struct {
		total  int
		shares []float64
		least  []int
		want   []int
	}{
		{4, []float64{0.75, 0.25}, []int{0, 0}, []int{3, 1}},
		{2, []float64{0.75, 0.25}, []int{0, 0}, []int{2, 0}}, // equal remainders: the first
		{3, []float64{0.75, 0.25}, []int{0, 0}, []int{2, 1}},
		{4, []float64{0.97, 0.01, 0.01, 0.01}, []int{1, 1, 1, 1}, []int{1, 1, 1, 1}},
		{10, []float64{0.97, 0.01, 0.01, 0.01}, []int{1, 1, 1, 1}, []int{7, 1, 1, 1}},
		{5, []float64{2, 0, 2}, []int{1, 0, 1}, []int{3, 0, 2}},
		{0, nil, nil, nil},
	} {
		require.Equal(t, c.want, apportion(c.total, c.shares, c.least))
	}
}

func TestRandomGraph(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 40).Draw(t, "nodes")
		degree := rapid.IntRange(2, n+1).Draw(t, "degree")
		edges, err := randomGraph(n, degree, rapid.Uint64().Draw(t, "seed"))
		require.NoError(t, err)
		degrees := make([]int, n)
		seen := make(map[[2]int]bool)
		for _, e := range edges {
			require.Less(t, e[0], e[1])
			require.False(t, seen[e], "twice")
			seen[e] = true
			degrees[e[0]]++
			degrees[e[1]]++
		}
		want, less := min(degree, n-1), 0
		for _, d := range degrees {
			if d != want {
				require.Equal(t, want-1, d)
				less++
			}
		}
		require.Equal(t, n*want%2, less, "one has less if both are odd")
		require.True(t, (&graph{edges: edges}).connected(n))
	})
}
