// SPDX-License-Identifier: LGPL-3.0-or-later

package testnet

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/testnet/beacon"
	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/netns"
	"github.com/ethmcast/mdcs/testnet/plot"
	"github.com/ethmcast/mdcs/testnet/report"
	"github.com/ethmcast/mdcs/testnet/topology"
	"github.com/ethmcast/mdcs/testnet/workload"
)

func TestMain(m *testing.M) {
	delayline.RunChild()
	runSSMNode()
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
}

// programPath finds a program in build/ and skips the test if it cannot run
// here.
func programPath(t *testing.T, name string) string {
	t.Helper()
	needRoot(t)
	path, err := filepath.Abs(filepath.Join("..", "build", name))
	require.NoError(t, err)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("needs build/%s: run make %s", name, name)
	}
	return path
}

// testLog writes the log of a net to the log of the test.
func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// requireNothingLeft checks that no run of this process is on the machine.
func requireNothingLeft(t *testing.T, prefix string) {
	t.Helper()
	left, err := filepath.Glob("/run/netns/" + prefix + "*")
	require.NoError(t, err)
	require.Empty(t, left)
	n, err := netns.Destroy(prefix)
	require.NoError(t, err)
	require.Zero(t, n)
}

// twoAS is the smallest of the networks that are shipped; package topology has
// its picture.
func twoAS(t *testing.T) *topology.Topology { return load(t, "two-as") }

// load loads a network with the nodes that its file asks for.
func load(t *testing.T, nameOrPath string) *topology.Topology {
	t.Helper()
	top, err := topology.Load(nameOrPath)
	require.NoError(t, err)
	top, err = top.Populate(top.Nodes)
	require.NoError(t, err)
	return top
}

// TestNetnsCompare runs a short comparison on the network "two-as", in all modes but
// the one that needs another geth.
func TestNetnsCompare(t *testing.T) {
	stock, patched, rpd := programPath(t, "geth-stock"), programPath(t, "geth"), programPath(t, "rpd")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	top, err := topology.Load("two-as")
	require.NoError(t, err)
	const txs = 60
	cfg := CompareConfig{
		Name:      "short",
		Results:   t.TempDir(),
		Topology:  top,
		Modes:     []Mode{Gossip, GossipRelays, MDCS, Ideal},
		Workload:  workload.Params{Txs: txs, Rate: 20, Burst: 5, BurstEvery: time.Second, Bumps: 0.1},
		Seeds:     []uint64{1},
		Rounds:    1,
		Routing:   RoutingAuto,
		Geth:      patched,
		GethStock: stock,
		RPD:       rpd,
		Log:       testLog(t),
	}
	s, err := Compare(ctx, cfg)
	require.NoError(t, err)
	require.NoError(t, s.Table(t.Output()))

	for mode, hosts := range map[Mode]int{Gossip: 6, GossipRelays: 8, MDCS: 8, Ideal: 6} {
		tx, run := s.Tx[string(mode)], s.Runs[string(mode)]
		require.Equal(t, txs, tx.Sent, mode)
		require.Equal(t, 1.0, tx.DeliveredRatio, mode)
		require.Positive(t, tx.BytesPerNode, mode)
		// Three of the five pairs of a transaction cross the link of 20 ms.
		require.Greater(t, tx.P50, report.Figure(20), mode)
		require.Less(t, tx.Max, report.Figure(5000), mode)
		require.Equal(t, txs*5, run.Pairs, mode)
		require.Len(t, run.Bytes, hosts, mode)
		if mode != Ideal {
			require.NotEmpty(t, run.ProtocolBytes, mode)
			require.FileExists(t, filepath.Join(cfg.Dir(), logsDir, string(mode)+"-1-1", "as1-g1.log"))
		}
		require.Len(t, tx.LinkCopies, 1, mode)
	}
	require.Zero(t, s.Tx[string(Gossip)].RPBytes)
	require.Positive(t, s.Tx[string(GossipRelays)].RPBytes)
	require.Positive(t, s.Tx[string(MDCS)].RPBytes)
	require.Less(t, s.Tx[string(MDCS)].BytesPerNode, s.Tx[string(Gossip)].BytesPerNode)
	require.InDelta(t, 1, float64(s.Tx[string(Ideal)].LinkCopiesMax), 0.01, "one copy of each transaction crosses the link")

	text, err := os.ReadFile(filepath.Join(cfg.Dir(), report.SummaryFile))
	require.NoError(t, err)
	var written report.Summary
	require.NoError(t, json.Unmarshal(text, &written))
	require.Equal(t, s.Versions, written.Versions)
	for _, file := range []string{report.ArrivalsFile, report.PlotsFile, plot.PageFile} {
		require.FileExists(t, filepath.Join(cfg.Dir(), file))
	}
}

// TestNetnsCompareKeepsFigures has a run whose net cannot be removed, and after it a run
// that fails. The network is "two-as".
func TestNetnsCompareKeepsFigures(t *testing.T) {
	needRoot(t)
	top, err := topology.Load("two-as")
	require.NoError(t, err)
	var busy, state string
	var once sync.Once
	t.Cleanup(func() { unix.Unmount(busy, unix.MNT_DETACH) })
	cfg := CompareConfig{
		Name:      "short",
		Results:   t.TempDir(),
		Topology:  top,
		Modes:     []Mode{Ideal, Gossip},
		Workload:  workload.Params{Txs: 10, Rate: 20},
		Seeds:     []uint64{1},
		Rounds:    1,
		Routing:   Static,
		GethStock: "/bin/false",
		Log:       testLog(t),
		Progress: func(Progress) {
			once.Do(func() { busy, state = keepBusy(t) })
		},
	}
	s, err := Compare(t.Context(), cfg)
	require.ErrorContains(t, err, "mode gossip, seed 1, round 1: ")
	require.NotErrorIs(t, err, unix.EBUSY)
	require.Equal(t, 1.0, s.Tx[string(Ideal)].DeliveredRatio)
	require.Contains(t, s.Warnings, "only 1 of 2 runs were made")
	text, err := os.ReadFile(filepath.Join(cfg.Dir(), report.SummaryFile))
	require.NoError(t, err)
	var written report.Summary
	require.NoError(t, json.Unmarshal(text, &written))
	require.Len(t, written.Each, 1)
	require.InDelta(t, float64(s.Tx[string(Ideal)].P50), float64(written.Tx[string(Ideal)].P50), 0.001)

	require.FileExists(t, state)
	require.NoError(t, unix.Unmount(busy, 0))
	_, err = netns.CleanStale(netns.StateDir)
	require.NoError(t, err)
	require.NoFileExists(t, state)
	require.NoDirExists(t, filepath.Dir(busy))
}

// keepBusy mounts something in the scratch directory of the run of this process, so that
// it cannot be removed, and returns where, and the state file of the run.
func keepBusy(t *testing.T) (busy, state string) {
	files, err := filepath.Glob(filepath.Join(netns.StateDir, "mdcs-*.json"))
	require.NoError(t, err)
	for _, file := range files {
		var s netns.State
		text, err := os.ReadFile(file)
		if err != nil || json.Unmarshal(text, &s) != nil || s.Owner.Pid != os.Getpid() || s.Closed {
			continue
		}
		busy = filepath.Join(s.Dir, "busy")
		require.NoError(t, os.Mkdir(busy, 0o700))
		require.NoError(t, unix.Mount("none", busy, "tmpfs", 0, ""))
		return busy, file
	}
	t.Fatal("no run of this process")
	return "", ""
}

func TestSweep(t *testing.T) {
	top, err := topology.Load("two-as")
	require.NoError(t, err)
	cfg := CompareConfig{
		Name: "x", Results: "r", Topology: top, Seeds: []uint64{1},
		Workload: workload.Params{Txs: 10, Rate: 20},
	}
	configs, err := cfg.Sweep("loss=0,0.01")
	require.NoError(t, err)
	require.Len(t, configs, 2)
	require.Equal(t, filepath.Join("r", "x", "loss=0.01"), configs[1].Dir())
	require.Zero(t, configs[0].Topology.Links[0].Line.Loss)
	require.Equal(t, 0.01, configs[1].Topology.Links[0].Line.Loss)
	require.Zero(t, top.Links[0].Line.Loss)
	configs, err = cfg.Sweep("nodes=4")
	require.NoError(t, err)
	require.Equal(t, 4, configs[0].Topology.Nodes.Count)

	for spec, want := range map[string]string{
		"nodes":      "is not KEY=A,B,C",
		"colour=red": "with KEY one of bumps, burst, degree, loss, nodes, rate",
		"nodes=many": `nodes "many"`,
		"nodes=1":    `nodes "1"`,
		"rate=0":     `rate "0"`,
		"loss=2":     `loss "2"`,
	} {
		_, err := cfg.Sweep(spec)
		require.ErrorContains(t, err, want, spec)
	}
}

// TestNetnsFailures kills nodes, cuts the link between the ASes, and watches the
// net recover. The network is "two-as".
func TestNetnsFailures(t *testing.T) {
	stock := programPath(t, "geth-stock")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	n, err := Start(ctx, Config{
		Topology:  twoAS(t),
		GethStock: stock,
		Seed:      7,
		Log:       testLog(t),
	})
	require.NoError(t, err)
	defer n.Close()

	txs, err := workload.Plan(workload.Params{
		ChainID: beacon.ChainID, Seed: 7, Txs: 3, Rate: 20, Nodes: len(n.Geths),
	})
	require.NoError(t, err)
	const killed = "as2-g3"
	sender := n.Geth("as1-g1")

	// A dead node does not keep the others from getting transactions and blocks.
	require.NoError(t, n.Geth(killed).Kill())
	require.NoError(t, sender.SendTx(ctx, txs[0].Raw))
	require.NoError(t, n.WaitTx(ctx, txs[0].Hash))
	head, err := sender.Head(ctx)
	require.NoError(t, err)
	require.NoError(t, n.WaitHead(ctx, uint64(head.Number)+1))

	// It catches up when it comes back.
	require.NoError(t, n.Geth(killed).Start(ctx))
	require.NoError(t, n.WaitPeers(ctx))
	head, err = sender.Head(ctx)
	require.NoError(t, err)
	require.NoError(t, n.WaitHead(ctx, uint64(head.Number)))

	// A cut link holds a transaction back, and only that.
	require.NoError(t, n.SetLink("as1-as2", LinkChange{State: new(Down)}))
	require.NoError(t, sender.SendTx(ctx, txs[1].Raw))
	require.NoError(t, n.Geth("as1-g2").WaitTx(ctx, txs[1].Hash))
	known, err := n.Geth("as2-g1").HasTx(ctx, txs[1].Hash)
	require.NoError(t, err)
	require.False(t, known, "crossed a link that is down")
	require.NoError(t, n.SetLink("as2-as1", LinkChange{State: new(Up)}))
	require.NoError(t, n.WaitTx(ctx, txs[1].Hash))

	require.ErrorIs(t, n.SetLink("as1-as9", LinkChange{}), ErrNoLink)
	require.Panics(t, func() { n.Geth("as9-g1") })
	require.NoError(t, n.Close())
	requireNothingLeft(t, n.run.Prefix())
}

func TestStartChecksTopology(t *testing.T) {
	top := twoAS(t)
	top.Links = nil
	_, err := Start(t.Context(), Config{Topology: top})
	require.ErrorContains(t, err, "no path")
}

func TestParseVersion(t *testing.T) {
	require.Equal(t, "1.17.10-stable", parseVersion("Geth\nVersion: 1.17.10-stable\nArchitecture: amd64\n"))
	require.Equal(t, "rpd v1", parseVersion("rpd v1\nmore\n"))
	require.Empty(t, parseVersion(""))
}

func TestParseNames(t *testing.T) {
	for _, s := range []string{"netem", "wire"} {
		b, err := ParseLinkBackend(s)
		require.NoError(t, err)
		require.Equal(t, LinkBackend(s), b)
	}
	for _, s := range []string{"auto", "tc", ""} {
		_, err := ParseLinkBackend(s)
		require.ErrorContains(t, err, "neither wire nor netem", s)
	}
	for _, s := range []string{"gossip", "mdcs"} {
		m, err := ParseMode(s)
		require.NoError(t, err)
		require.Equal(t, Mode(s), m)
	}
	_, err := ParseMode("")
	require.Error(t, err)
}
