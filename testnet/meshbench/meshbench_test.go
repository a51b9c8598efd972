// SPDX-License-Identifier: LGPL-3.0-or-later

package meshbench

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/rp/mesh/tree"
	"github.com/ethmcast/mdcs/testnet"
	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/sim"
	"github.com/ethmcast/mdcs/testnet/topology"
)

func TestMain(m *testing.M) {
	delayline.RunChild()
	os.Exit(m.Run())
}

func tenAS(t *testing.T) *topology.Topology {
	t.Helper()
	top, err := topology.Load("ten-as")
	require.NoError(t, err)
	return top
}

// TestNetnsMesh has six real RPs: they find each other, one inside the tree dies, and
// after that everything arrives everywhere once.
//
//	virginia-rp1   frankfurt-rp1   oregon-rp1   stockholm-rp1   ...
//	     |               |              |             |
//	 [virginia] --- [frankfurt] --- [oregon] --- [stockholm]    ...
//	     |               |              |             |
//	virginia-peer  frankfurt-peer  oregon-peer  stockholm-peer  ...
func TestNetnsMesh(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	rpd, err := filepath.Abs(filepath.Join("..", "..", "build", "rpd"))
	require.NoError(t, err)
	if _, err := os.Stat(rpd); err != nil {
		t.Skip("needs build/rpd: run make rpd")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	m, err := newMesh(ctx, Config{
		Topology: tenAS(t), RPs: 6, Mode: tree.Light, Seed: 1, Deaths: 1,
		RPD: rpd, Engine: "socket", Routing: testnet.Static,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	require.NoError(t, err)
	defer func() { require.NoError(t, m.close()) }()
	require.NoError(t, m.start(ctx))
	require.NoError(t, m.shape(ctx))
	require.NoError(t, m.deaths(ctx), "which ends when all is delivered again")

	r := m.result
	require.Equal(t, "socket", r.Engine)
	require.Equal(t, 3, r.Sources)
	require.Less(t, r.ConvergeS, 20.0)
	require.Greater(t, r.DepthMax, 1, "a tree, not a star")
	require.GreaterOrEqual(t, r.LinkCopies, r.LinkCopiesOptimum)
	require.Equal(t, 1, r.Deaths)
	require.Positive(t, r.HealS)
	require.Less(t, r.HealS, 3.0)
	require.Zero(t, r.HealLost)
	require.Zero(t, r.HealDuplicated)
	require.Zero(t, m.book.alien)
}

func TestCheck(t *testing.T) {
	for _, n := range []int{1, 65} {
		cfg := Config{Topology: tenAS(t), RPs: n}
		require.ErrorContains(t, cfg.Check(), "rps are not 2 to 64")
	}
	cfg := Config{Topology: tenAS(t), RPs: 64}
	require.NoError(t, cfg.Check())
}

func TestChooseSources(t *testing.T) {
	choose := func(n int) (names []string) {
		mesh, err := tenAS(t).WithRPs(n)
		require.NoError(t, err)
		rps := mesh.HostsOf(topology.RP)
		for _, i := range chooseSources(rps) {
			names = append(names, rps[i].Name)
		}
		return names
	}
	require.Equal(t, []string{"virginia-rp1"}, choose(2))
	require.Equal(t, []string{"virginia-rp1", "oregon-rp1", "frankfurt-rp1", "stockholm-rp1"}, choose(8))
	ten := choose(64)
	require.Len(t, ten, maxSources)
	require.Equal(t, "saopaulo-rp1", ten[9])
}

func TestVictims(t *testing.T) {
	m := &mesh{cfg: Config{Deaths: 2}, sources: []int{0, 1}, ways: []ways{
		{-1, 0, 0, 2, 2, 3}, // 2 has three behind it, 3 one
		{1, -1, 0, 1, 3, 4}, // 3 has two, 4 one; 0 is a source
	}}
	require.Equal(t, []victim{{source: 0, rp: 2, below: 3}, {source: 1, rp: 3, below: 2}}, m.victims())
	m.cfg.Deaths = 9
	require.Len(t, m.victims(), 3, "each once")
}

func TestControl(t *testing.T) {
	mesh, err := tenAS(t).WithRPs(4)
	require.NoError(t, err)
	hosts := mesh.HostsOf(topology.RP)
	c := newControl(hosts)
	c.neighbour(0, 1, true)
	c.neighbour(1, 0, true)
	c.neighbour(0, 2, false)
	count := func(line string, from, to netip.Addr, bytes uint64) {
		c.add(hosts, delayline.Pair{Link: line, From: from, To: to, Count: delayline.Count{Frames: 10, Bytes: bytes + 140}})
	}
	count(hosts[0].Name, hosts[0].Addr, hosts[1].Addr, 12500)
	count(hosts[1].Name, hosts[0].Addr, hosts[1].Addr, 12500) // the same at the line of the receiver
	count(hosts[1].Name, hosts[1].Addr, hosts[0].Addr, 25000)
	count(hosts[0].Name, hosts[0].Addr, hosts[2].Addr, 1250)
	count(hosts[0].Name, hosts[0].Addr, netip.MustParseAddr("2001:db8:1:1::b0"), 99999) // a peer
	tree, other, trees, others := c.rates(10)
	require.InDelta(t, 15, tree, 1e-9)
	require.InDelta(t, 1, other, 1e-9)
	require.Equal(t, 0.5, trees)
	require.Equal(t, 0.25, others)
}

func TestReport(t *testing.T) {
	r, err := NewReport("try")
	require.NoError(t, err)
	dir := filepath.Join(t.TempDir(), "try")
	require.NoError(t, r.Write(dir))
	require.NoFileExists(t, filepath.Join(dir, "copies.svg"), "nothing to show")
	for _, n := range []int{2, 16, 64} {
		for _, mode := range []string{"star", "light"} {
			r.Processes = append(r.Processes, &Result{RPs: n, Mode: mode, Engine: "xdp", ConvergeS: 1, HealS: 0.3, ControlTree: 10,
				ControlOther: 1, MemoryMiB: 30, MemoryMaxMiB: 40, StretchP95: 1.2, LinkCopiesMax: 2, LinkCopies: 9, LinkCopiesOptimum: 9})
		}
	}
	r.Simulated = append(r.Simulated, &sim.Result{RPs: 100, Mode: "light", LinkCopiesMax: 3})
	require.NoError(t, r.Write(dir))
	for _, p := range pictures {
		require.FileExists(t, filepath.Join(dir, p.file))
	}
	text, err := os.ReadFile(filepath.Join(dir, TableFile))
	require.NoError(t, err)
	require.Contains(t, string(text), "meshes of processes")
	require.Contains(t, string(text), "simulated meshes")
	text, err = os.ReadFile(filepath.Join(dir, ReportFile))
	require.NoError(t, err)
	require.Contains(t, string(text), `"link_copies_max": 3`)
}
