// SPDX-License-Identifier: LGPL-3.0-or-later

package testnet

import (
	"cmp"
	"context"
	"math"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet/bgp"
	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/topology"
)

// network starts a network without nodes.
func network(t *testing.T, top *topology.Topology, routing Routing) *Net {
	t.Helper()
	needRoot(t)
	if routing == BIRD {
		_, err := bgp.Find()
		require.NoError(t, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begin := time.Now()
	n, err := StartNetwork(ctx, Config{Topology: top, Routing: routing, Links: Wire, Seed: 1, Log: testLog(t)})
	require.NoError(t, err)
	t.Logf("network is up after %v", time.Since(begin).Round(time.Millisecond))
	t.Cleanup(func() {
		require.NoError(t, n.Close())
		requireNothingLeft(t, n.run.Prefix())
	})
	return n
}

// regionRTT are round-trip times between the regions of ten-as in ms, medians
// between AWS regions in July 2025, from row to column in the order of the ASes.
var regionRTT = [10][10]float64{
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

// TestNetnsTenAS has the ten regions with BGP: all hosts reach each other, in
// the time that the table says, and paths heal when a link fails.
func TestNetnsTenAS(t *testing.T) {
	n := network(t, load(t, "ten-as"), BIRD)
	top := n.Topology()
	require.NoError(t, bgp.Check(top, n.fabric.routers), "next hops are those of the computation")
	p := newProber(t, n, top.Hosts)
	p.requireAll()

	require.Len(t, top.ASes, len(regionRTT))
	region := make(map[string]int)
	for i, as := range top.ASes {
		region[as.Name] = i
	}
	first := func(h topology.Host) bool { return h.Name == h.AS+"-g1" } // in a data centre
	paths, fastest := top.BGP(), make(map[[2]int]time.Duration)

	// A busy machine adds to what a path takes, and takes nothing away: pairs that it
	// delayed each time are asked more often.
	const most, enough = 0.1, 20
	var worst float64
	var late []time.Duration
	for round := 1; round == 1 || worst > most && round <= enough; round++ {
		for pair, times := range p.rounds(first, 5, 350*time.Millisecond) {
			times = append(times, cmp.Or(fastest[pair], time.Hour))
			fastest[pair] = slices.Min(times)
		}
		worst, late = 0, nil
		for pair, got := range fastest {
			a, b := top.Hosts[pair[0]], top.Hosts[pair[1]]
			there, _ := paths.Delay(a, b)
			back, _ := paths.Delay(b, a)
			require.Greater(t, got, there+back-time.Millisecond, "%s to %s", a.Name, b.Name)
			i, k := region[a.AS], region[b.AS]
			want := (regionRTT[i][k] + regionRTT[k][i]) / 2
			late = append(late, got-there-back)
			deviation := math.Abs(got.Seconds()*1000/want - 1)
			worst = max(worst, deviation)
			if round == enough {
				require.LessOrEqual(t, deviation, most, "%s to %s: %v instead of %.1f ms", a.Name, b.Name, got, want)
			}
		}
	}
	require.Len(t, fastest, len(regionRTT)*(len(regionRTT)-1))
	slices.Sort(late)
	t.Logf("round-trip times are at most %.1f %% away from the table; the machine adds %v at the median, %v at most",
		100*worst, late[len(late)/2], late[len(late)-1])

	for _, failure := range []LinkState{Down, Blackhole} {
		out := p.outage("frankfurt-g1", "stockholm-g1", func() {
			require.NoError(t, n.SetLink("frankfurt-stockholm", LinkChange{State: &failure}))
		})
		require.Less(t, out, time.Second, failure)
		up := Up
		back := p.outage("frankfurt-g1", "stockholm-g1", func() {
			require.NoError(t, n.SetLink("stockholm-frankfurt", LinkChange{State: &up}))
			require.NoError(t, n.WaitConverged(t.Context()))
		})
		t.Logf("%s: %v without a path, and %v when the link came back", failure, out, back)
	}
}

// TestNetnsIXP has an exchange point with a route server, and a member that is
// heard by one other only.
func TestNetnsIXP(t *testing.T) {
	for _, routing := range []Routing{BIRD, Static} {
		t.Run(string(routing), func(t *testing.T) {
			top, err := topology.Load(filepath.Join("topology", "testdata", "ixp.toml"))
			require.NoError(t, err)
			top, err = top.Populate(topology.Population{Count: 5})
			require.NoError(t, err)
			n := network(t, top, routing)
			require.NoError(t, bgp.Check(n.Topology(), n.fabric.routers), "next hops are those of the computation")
			p := newProber(t, n, n.Topology().Hosts)
			p.requireAll()

			// The port at the exchange: AS 101 has its provider, too.
			out := p.outage("as101-rp", "as104-rp", func() {
				require.NoError(t, n.SetLink("ix80:as101", LinkChange{State: new(Down)}))
			})
			require.Less(t, out, time.Second)
			t.Logf("port down: %v without a path", out)
			require.NoError(t, n.SetLink("ix80:as101", LinkChange{State: new(Up)}))

			// AS 104 and AS 13 alone: the paths to the others are gone until the end
			// of the partition.
			require.NoError(t, n.Partition([][]string{{"as13", "as104"}}))
			p.requireOnly(func(a, b topology.Host) bool { return (a.AS == "as104") == (b.AS == "as104") })
			require.NoError(t, n.Partition(nil))
			require.NoError(t, n.WaitConverged(t.Context()))
			require.NoError(t, bgp.Check(n.Topology(), n.fabric.routers))
			p.requireAll()
		})
	}
}

func TestNetnsLinkChanges(t *testing.T) {
	n := network(t, load(t, "two-as"), Static)
	p := newProber(t, n, n.Topology().Hosts)
	p.requireAll()
	rtt := func() time.Duration {
		isRP := func(h topology.Host) bool { return h.Role == topology.RP }
		return slices.Min(p.rounds(isRP, 5, 300*time.Millisecond)[[2]int{p.index("as1-rp"), p.index("as2-rp")}])
	}
	require.NoError(t, n.SetLink("as1-as2", LinkChange{Delay: new(50 * time.Millisecond)}))
	require.InDelta(t, 100, rtt().Seconds()*1000, 10)
	require.NoError(t, n.SetLink("as1-as2", LinkChange{Delay: new(5 * time.Millisecond)}))
	require.InDelta(t, 10, rtt().Seconds()*1000, 5)

	counters, err := n.Counters()
	require.NoError(t, err)
	require.Len(t, counters, 1)
	require.Equal(t, "as1-as2", counters[0].Link)
	require.Positive(t, counters[0].AB.Classes[delayline.Other].Frames)

	for _, mistake := range []struct {
		link, want string
		change     LinkChange
	}{
		{"as1-as2", "a time is negative", LinkChange{Delay: new(-time.Millisecond)}},
		{"as1-as2", "loss 2 is not between", LinkChange{Loss: new(2.0)}},
		{"as1-as2", `state "sideways" is none of`, LinkChange{State: new(LinkState("sideways"))}},
		{"as1-g1", "is a plain cable", LinkChange{State: new(Blackhole)}},
		{"as1-g1", "is a plain cable", LinkChange{Rate: new(uint64(1e6))}},
		{"as1-as3", "no such link", LinkChange{}},
		{"as1", "no such link", LinkChange{}},
	} {
		require.ErrorContains(t, n.SetLink(mistake.link, mistake.change), mistake.want)
	}
	for want, groups := range map[string][][]string{
		`no AS "as3"`:          {{"as1"}, {"as3"}},
		"as1 is in two groups": {{"as1"}, {"as2", "as1"}},
	} {
		require.ErrorContains(t, n.Partition(groups), want)
	}
	_, err = n.Namespace("as9")
	require.ErrorContains(t, err, `"as9"`)

	// A host whose cable is out is out, and nobody else is.
	require.NoError(t, n.SetLink("as1-g1", LinkChange{State: new(Down)}))
	p.requireOnly(func(a, b topology.Host) bool { return a.Name != "as1-g1" && b.Name != "as1-g1" })
	require.NoError(t, n.SetLink("as1-g1", LinkChange{State: new(Up)}))
	p.requireAll()
	var status []string
	for _, l := range n.Links() {
		status = append(status, l.Name)
	}
	require.Equal(t, []string{"as1-rp", "as2-rp", "as1-g1", "as1-g2", "as1-g3", "as2-g1", "as2-g2", "as2-g3", "as1-as2"}, status)
}
