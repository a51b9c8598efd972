// SPDX-License-Identifier: LGPL-3.0-or-later

package testnet

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet/beacon"
	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/netns"
	"github.com/ethmcast/mdcs/testnet/report"
	"github.com/ethmcast/mdcs/testnet/topology"
	"github.com/ethmcast/mdcs/testnet/workload"
)

func TestMain(m *testing.M) {
	delayline.RunChild()
	runSSMNode()
	os.Exit(m.Run())
}

// programPath finds a program in build/ and skips the test if it cannot run
// here.
func programPath(t *testing.T, name string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
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

// TestNetnsCompare runs a short comparison on the network of [topology.TwoAS].
func TestNetnsCompare(t *testing.T) {
	stock, patched, rpd := programPath(t, "geth-stock"), programPath(t, "geth"), programPath(t, "rpd")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cfg := CompareConfig{
		Name:      "short",
		Results:   t.TempDir(),
		Topology:  topology.TwoAS(),
		Modes:     []Mode{Gossip, MDCS},
		Txs:       60,
		Rate:      20,
		Seed:      1,
		Links:     Auto,
		Geth:      patched,
		GethStock: stock,
		RPD:       rpd,
		Log:       testLog(t),
	}
	s, err := Compare(ctx, cfg)
	require.NoError(t, err)
	require.NoError(t, s.Table(t.Output()))

	for mode, hosts := range map[string]int{"gossip": 6, "mdcs": 8} {
		tx, run := s.Tx[mode], s.Runs[mode]
		require.Equal(t, 60, tx.Sent)
		require.Equal(t, 1.0, tx.DeliveredRatio)
		require.Positive(t, tx.BytesPerNode)
		// Three of the five pairs of a transaction cross the link of 20 ms.
		require.Greater(t, tx.P50, report.Millis(20))
		require.Less(t, tx.Max, report.Millis(5000))
		require.Equal(t, 60*5, run.Pairs)
		require.Len(t, run.Bytes, hosts)
		require.NotEmpty(t, run.ProtocolBytes)
		require.FileExists(t, filepath.Join(cfg.Dir(), mode, "as1-g1.log"))
	}
	gossip, mdcs := s.Tx["gossip"], s.Tx["mdcs"]
	require.Nil(t, gossip.RPBytes)
	require.Positive(t, *mdcs.RPBytes)
	require.Less(t, mdcs.TotalBytes, gossip.TotalBytes)

	text, err := os.ReadFile(filepath.Join(cfg.Dir(), report.SummaryFile))
	require.NoError(t, err)
	var written report.Summary
	require.NoError(t, json.Unmarshal(text, &written))
	require.Equal(t, s.Versions, written.Versions)
	require.FileExists(t, filepath.Join(cfg.Dir(), report.ArrivalsFile))
}

// TestNetnsFailures kills nodes, cuts the link between the ASes, and watches the
// net recover. The picture is that of [topology.TwoAS].
func TestNetnsFailures(t *testing.T) {
	stock := programPath(t, "geth-stock")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	n, err := Start(ctx, Config{
		Topology:  topology.TwoAS(),
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
	require.NoError(t, n.SetLink("as1", "as2", false))
	require.NoError(t, sender.SendTx(ctx, txs[1].Raw))
	require.NoError(t, n.Geth("as1-g2").WaitTx(ctx, txs[1].Hash))
	known, err := n.Geth("as2-g1").HasTx(ctx, txs[1].Hash)
	require.NoError(t, err)
	require.False(t, known, "crossed a link that is down")
	require.NoError(t, n.SetLink("as2", "as1", true))
	require.NoError(t, n.WaitTx(ctx, txs[1].Hash))

	require.Error(t, n.SetLink("as1", "as9", true))
	require.Panics(t, func() { n.Geth("as9-g1") })
	require.NoError(t, n.Close())
	requireNothingLeft(t, n.run.Prefix())
}

func TestStartChecksTopology(t *testing.T) {
	top := topology.TwoAS()
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
	for _, s := range []string{"auto", "netem", "wire"} {
		b, err := ParseLinkBackend(s)
		require.NoError(t, err)
		require.Equal(t, LinkBackend(s), b)
	}
	_, err := ParseLinkBackend("tc")
	require.Error(t, err)
	for _, s := range []string{"gossip", "mdcs"} {
		m, err := ParseMode(s)
		require.NoError(t, err)
		require.Equal(t, Mode(s), m)
	}
	_, err = ParseMode("")
	require.Error(t, err)
}
