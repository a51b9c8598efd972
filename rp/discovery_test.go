// SPDX-License-Identifier: LGPL-3.0-or-later

package rp_test

import (
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/log"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/discovery"
	"github.com/ethmcast/mdcs/ethmcast/discovery/discoverytest"
	"github.com/ethmcast/mdcs/rp"
)

// linked waits until an RP has exactly n neighbours, and links to them.
func linked(t *testing.T, p *rp.RP, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return len(p.Status().Mesh.Neighbours) == n && complete(p) },
		patience, 5*time.Millisecond, "%+v", p.Status().Mesh)
}

// RPs that know nothing but a tree in DNS link up, and replicate to each other. One
// that is not in the tree stays outside.
func TestDiscoveryTree(t *testing.T) {
	t.Parallel()
	zone, signer := new(discoverytest.Zone), discoverytest.Key(t)
	var configs []rp.Config
	var nodes []*enode.Node
	for i, operator := range []string{"one", "two", "outside"} {
		cfg := newSite(t).config(t)
		cfg.Operator = operator
		node, err := rp.Record(cfg, time.Now())
		require.NoError(t, err)
		if i < 2 {
			nodes = append(nodes, node)
		}
		configs = append(configs, cfg)
	}
	url := zone.Publish(t, signer, "rps.example.org", 1, nodes)
	var points []*rp.RP
	for _, cfg := range configs {
		cfg.Discovery.Trees, cfg.Discovery.Resolver = []string{url}, zone
		points = append(points, start(t, cfg))
	}
	linked(t, points[0], 1)
	linked(t, points[1], 1)

	a, b := newPeer(t, points[0], peerOptions{}), newPeer(t, points[1], peerOptions{})
	members(t, a, b)
	a.publish("found")
	require.Eventually(t, func() bool { return len(b.got()) == 1 }, patience, 5*time.Millisecond)

	found := points[0].Status().Discovery
	require.Equal(t, 1, found.Known)
	require.Equal(t, "two", found.Candidates[0].Operator)
	require.Equal(t, points[1].Self().ID(), found.Candidates[0].Node.ID())
	require.True(t, found.Candidates[0].Trusted)
	require.Empty(t, found.Trees[0].Err)
	require.NotEmpty(t, points[2].Health().LinksDown)
}

// A configured neighbour that is taken out of the list is none any more, though others are
// looked for.
func TestDiscoveryForgetsWhatWasConfigured(t *testing.T) {
	t.Parallel()
	zone, signer := new(discoverytest.Zone), discoverytest.Key(t)
	found, err := rp.Record(newSite(t).config(t), time.Now())
	require.NoError(t, err)
	configured, err := rp.Record(newSite(t).config(t), time.Now())
	require.NoError(t, err)
	cfg := newSite(t).config(t)
	cfg.Neighbours = []*enode.Node{configured}
	cfg.Discovery.Trees = []string{zone.Publish(t, signer, "rps.example.org", 1, []*enode.Node{found})}
	cfg.Discovery.Resolver = zone
	p := start(t, cfg)
	neighbours := func(n int) func() bool {
		return func() bool { return len(p.Status().Mesh.Neighbours) == n }
	}
	require.Eventually(t, neighbours(2), patience, 5*time.Millisecond)
	settings := p.Settings()
	settings.Neighbours = nil
	require.NoError(t, p.Set(settings))
	require.True(t, neighbours(1)(), "%+v", p.Status().Mesh)
}

// RPs find each other in the DHT when they let strangers in.
func TestDiscoveryWalk(t *testing.T) {
	t.Parallel()
	first := newSite(t).config(t)
	first.Discovery.Walk, first.Discovery.Open = true, true
	a := start(t, first)
	second := newSite(t).config(t)
	second.Discovery = rp.Discovery{Walk: true, Allow: []enode.ID{a.Self().ID()}, Bootnodes: []*enode.Node{a.Self()}}
	b := start(t, second)
	require.Eventually(t, func() bool {
		return len(a.Status().Mesh.Neighbours) == 1 && len(b.Status().Mesh.Neighbours) == 1
	}, 3*patience, 10*time.Millisecond, "%+v, %+v", a.Status().Discovery, b.Status().Discovery)
	linked(t, a, 1)
	linked(t, b, 1)
}

// The record of a running RP says what Record signs.
func TestDiscoveryRecord(t *testing.T) {
	t.Parallel()
	cfg := newSite(t).config(t)
	cfg.Operator = "example"
	p := start(t, cfg)
	now := time.Now()
	signed, err := rp.Record(cfg, now)
	require.NoError(t, err)
	require.Equal(t, uint64(now.UnixMilli()), signed.Seq())
	require.LessOrEqual(t, p.Self().Seq(), signed.Seq()+100)

	for _, n := range []*enode.Node{signed, p.Self()} {
		var e discovery.Entry
		require.NoError(t, n.Load(&e))
		require.Equal(t, discovery.Entry{NetworkID: testNetwork, Genesis: [4]byte(testGenesis[:]), DataPort: cfg.DataPort, Operator: "example"}, e)
		require.Equal(t, loopback.Addr(), n.IPAddr())
		require.Equal(t, int(cfg.ControlPort), n.TCP())
		require.Equal(t, int(cfg.ControlPort), n.UDP())
		require.Equal(t, p.Self().ID(), n.ID())
	}

	cfg.Discovery.Port = 9
	signed, err = rp.Record(cfg, now)
	require.NoError(t, err)
	require.Equal(t, 9, signed.UDP())

	cfg.Operator = strings.Repeat("x", 33)
	_, err = rp.New(cfg)
	require.ErrorContains(t, err, "operator of 33 bytes")
}

// A geth measures RPs of its list, and is told how much room they have.
func TestDiscoveryAnswers(t *testing.T) {
	t.Parallel()
	empty := single(t, func(cfg *rp.Config) { cfg.Limits.Sessions = 1 })
	full := single(t, func(cfg *rp.Config) { cfg.Limits.Sessions = 1 })
	members(t, newPeer(t, full, peerOptions{}))
	draining := single(t, func(cfg *rp.Config) { cfg.Limits.Sessions = 1 })
	draining.Drain(t.Context())

	results := make(chan []discovery.Candidate, 1)
	f, err := discovery.New(discovery.Config{
		NetworkID: testNetwork,
		Genesis:   testGenesis,
		Static: []*enode.Node{
			enode.NewV4(full.Self().Pubkey(), full.Self().IP(), full.Self().TCP(), 0), // as in older lists
			enode.MustParse(draining.Self().URLv4()),
			enode.MustParse(empty.Self().URLv4()),
		},
		Found: func(c []discovery.Candidate, _ func(enode.ID) bool) { results <- c },
		Log:   log.NewLogger(log.DiscardHandler()),
	})
	require.NoError(t, err)
	require.NoError(t, f.Start())
	defer f.Stop()
	select {
	case got := <-results:
		require.Len(t, got, 3)
		require.Equal(t, empty.Self().ID(), got[0].Node.ID())
		require.Equal(t, byte(255), got[0].Room)
		require.Equal(t, byte(0), got[1].Room)
		require.Equal(t, byte(0), got[2].Room)
		for _, c := range got {
			require.Positive(t, c.RTT)
			require.Less(t, c.RTT, 5*time.Second)
		}
	case <-time.After(patience):
		t.Fatalf("nothing found: %+v", f.Status())
	}
}

func TestDiscoveryPortInUse(t *testing.T) {
	t.Parallel()
	cfg := newSite(t).config(t)
	cfg.Discovery.Port = cfg.DataPort
	p, err := rp.New(cfg)
	require.NoError(t, err)
	require.ErrorContains(t, p.Start(), "discovery port: ")
	cfg.Discovery.Trees = []string{"enrtree://nobody"}
	cfg.Discovery.Port = 0
	p, err = rp.New(cfg)
	require.NoError(t, err)
	require.ErrorContains(t, p.Start(), "enrtree://nobody")
}
