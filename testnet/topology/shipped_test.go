// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func load(t testing.TB, name string) *Topology {
	t.Helper()
	top, err := Load(name)
	require.NoError(t, err)
	return top
}

// populate adds the nodes that the file asks for.
func populate(t testing.TB, top *Topology) *Topology {
	t.Helper()
	populated, err := top.Populate(top.Nodes)
	require.NoError(t, err)
	return populated
}

func TestTwoAS(t *testing.T) {
	top := populate(t, load(t, "two-as"))
	require.Len(t, top.HostsOf(RP), 2)
	require.Len(t, top.HostsOf(Geth), 6)
	for _, h := range top.HostsOf(Geth) {
		rps := top.Nearest(h, RP)
		require.Len(t, rps, 2)
		require.Equal(t, h.AS+"-rp", rps[0].Name)
		peers := top.Peers(h.Name)
		require.Len(t, peers, 4)
		for _, name := range peers {
			number := func(name string) string { _, n, _ := strings.Cut(name, "-"); return n }
			require.NotEqual(t, number(h.Name), number(name), "the one of the same number is no peer")
		}
	}
	a, _ := top.Host("as1-g1")
	b, _ := top.Host("as2-g1")
	require.Equal(t, "2001:db8:2:1::a1", b.Addr.String())
	d, ok := top.BGP().Delay(a, b)
	require.True(t, ok)
	require.Equal(t, 20*time.Millisecond, d)
	require.Equal(t, []string{"as1-g1", "as1-as2", "as2-g1"}, top.BGP().Lines(a, b))
}

// regionRTT are the median round-trip times between AWS regions in July 2025, in
// ms, from row to column.
var regions = []string{
	"us-east-1", "us-west-2", "eu-central-1", "eu-north-1", "eu-west-2",
	"eu-west-3", "ap-southeast-1", "ap-northeast-1", "ap-southeast-2", "sa-east-1",
}

var regionRTT = [][]float64{
	{5.5, 64.4, 93.2, 112.8, 78.0, 84.0, 219.6, 149.7, 199.8, 115.3},
	{64.0, 3.2, 142.8, 155.5, 128.9, 135.3, 160.2, 98.2, 141.0, 174.6},
	{92.7, 142.4, 4.0, 22.9, 17.6, 12.2, 160.4, 227.0, 251.3, 204.0},
	{112.2, 154.7, 23.0, 3.3, 30.9, 31.6, 180.5, 246.7, 271.2, 223.0},
	{77.5, 128.9, 17.8, 31.6, 3.3, 11.0, 169.5, 212.9, 266.1, 186.8},
	{84.2, 135.7, 12.7, 32.3, 11.6, 3.3, 167.2, 219.6, 280.4, 195.6},
	{219.0, 160.9, 161.2, 180.7, 169.9, 167.0, 3.7, 70.9, 94.8, 327.8},
	{149.5, 98.6, 227.6, 247.2, 213.0, 219.3, 70.6, 2.8, 106.9, 258.3},
	{199.7, 141.1, 251.6, 271.6, 266.3, 280.2, 94.8, 105.8, 4.1, 312.1},
	{115.4, 175.2, 205.0, 223.3, 187.3, 195.9, 327.7, 258.9, 312.4, 3.3},
}

// TestTenASDelays compares round-trip times along the BGP paths with the table:
// of each pair of regions, and of two hosts in the same one.
func TestTenASDelays(t *testing.T) {
	top := populate(t, load(t, "ten-as"))
	bgp, physical := top.BGP(), top.Physical()
	rtt := func(p *Paths, a, b Host) float64 {
		there, ok := p.Delay(a, b)
		require.True(t, ok)
		back, ok := p.Delay(b, a)
		require.True(t, ok)
		return (there + back).Seconds() * 1000
	}
	var worst, overhead, most float64
	pairs := 0
	var hosts []Host // one of each AS, in a data centre
	for _, as := range top.ASes {
		h, ok := top.Host(as.Name + "-g1")
		require.True(t, ok)
		hosts = append(hosts, h)
	}
	for i, a := range hosts {
		as, _ := top.AS(a.AS)
		require.Equal(t, regions[i], as.Region)
		require.Equal(t, "datacentre", a.Class)
		for k, b := range hosts[i:] {
			if k == 0 {
				b.Name = "another host at the same place"
			}
			want := (regionRTT[i][i+k] + regionRTT[i+k][i]) / 2
			got := rtt(bgp, a, b)
			deviation := math.Abs(got-want) / want
			require.LessOrEqualf(t, deviation, 0.08, "%s to %s: %.1f ms, want %.1f ms", a.AS, b.AS, got, want)
			worst = max(worst, deviation)
			more := got/rtt(physical, a, b) - 1
			require.GreaterOrEqual(t, more, 0.0)
			if k > 0 {
				pairs++
				overhead += more
				most = max(most, more)
			}
		}
	}
	require.Equal(t, 45, pairs)
	t.Logf("largest deviation %.1f %%; BGP path over physical path: mean %.1f %%, largest %.1f %%",
		100*worst, 100*overhead/float64(pairs), 100*most)
}

func TestTenASNodes(t *testing.T) {
	top := populate(t, load(t, "ten-as"))
	require.Len(t, top.HostsOf(RP), 10)
	require.Len(t, top.HostsOf(Geth), 20)
	require.InDelta(t, 22, len(top.Links), 3)
	counts := make(map[string]int)
	for _, h := range top.HostsOf(Geth) {
		counts[h.AS]++
		require.Len(t, top.Peers(h.Name), 8)
		as, _ := top.AS(h.AS)
		want := Line{Delay: as.Access, Rate: 1e9}
		if h.Class == "home" {
			want = Line{Delay: as.Access + 10*time.Millisecond, Rate: 50e6, Loss: 0.001}
		}
		require.Equal(t, want, h.Line)
	}
	require.Equal(t, map[string]int{
		"virginia": 5, "frankfurt": 4, "oregon": 2, "stockholm": 2, "london": 2,
		"paris": 1, "singapore": 1, "tokyo": 1, "sydney": 1, "saopaulo": 1,
	}, counts)
	for _, name := range []string{"virginia-g5", "frankfurt-g4"} {
		h, _ := top.Host(name)
		require.Equal(t, "home", h.Class)
	}
}

// No failure of one link cuts anybody off, but two tier 1 from each other: nobody
// carries traffic between them.
func TestTenASSurvivesEachLink(t *testing.T) {
	top := load(t, "ten-as")
	tier1 := func(name string) bool {
		return !slices.ContainsFunc(top.Links, func(l Link) bool { return l.Relation == Transit && l.B == name })
	}
	for _, l := range top.Links {
		for _, a := range top.ASes {
			lost := 0
			if tier1(l.A) && tier1(l.B) && (a.Name == l.A || a.Name == l.B) {
				lost = 1
			}
			require.Len(t, top.RoutesWithout(a.Name, map[string]bool{l.Name(): true}), len(top.ASes)-1-lost, "%s without %s", a.Name, l.Name())
		}
	}
}
