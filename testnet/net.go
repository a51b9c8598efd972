// SPDX-License-Identifier: LGPL-3.0-or-later

// Package testnet runs a private Ethereum network with replication points on one
// Linux machine: each host in a network namespace of its own, real geth and rpd
// processes, links with delay, and a stand-in for the consensus layer.
//
// [Start] brings a [Net] up and [Net.Close] removes it. A scenario test reads
// like this:
//
//	n, err := testnet.Start(ctx, testnet.Config{
//		Topology: topology.TwoAS(),
//		Geth:     "build/geth",
//		RPD:      "build/rpd",
//		Patched:  testnet.All,
//	})
//	require.NoError(t, err)
//	defer n.Close()
//	require.NoError(t, n.RP("as1-rp").Kill())
//	require.NoError(t, n.Geth("as1-g1").SendTx(ctx, tx.Raw))
//	require.NoError(t, n.WaitTx(ctx, tx.Hash))
//
// A program that starts nets must call [delayline.RunChild] first thing in main
// or TestMain.
//
// [Compare] runs the same workload over gossip and over mDCS.
package testnet

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/testnet/beacon"
	"github.com/ethmcast/mdcs/testnet/netns"
	"github.com/ethmcast/mdcs/testnet/node"
	"github.com/ethmcast/mdcs/testnet/topology"
	"github.com/ethmcast/mdcs/testnet/workload"
)

// startTimeout limits the start of a net. Six nodes need about 10 s on two idle
// cores, most of it for cryptographic tables.
const startTimeout = 3 * time.Minute

// Config describes a net. Zero fields have a default unless they say otherwise.
type Config struct {
	Topology *topology.Topology // required

	// Programs. Geth is the patched one and runs where Patched says so, GethStock
	// elsewhere. Only those in use are required.
	Geth, GethStock, RPD string

	// Patched chooses the nodes that speak mDCS; nil means none. Replication
	// points run if there is one such node.
	Patched func(host string) bool

	Links    LinkBackend  // default Auto
	Engine   string       // datapath of the replication points, default auto
	Delivery string       // wished by the nodes that speak mDCS, default unicast; ssm is offered if it is that
	Seed     uint64       // of all keys
	LogDir   string       // one file per process; default: in the scratch directory
	Log      *slog.Logger // default: discard
}

// All and None are choices for Config.Patched.
func All(string) bool  { return true }
func None(string) bool { return false }

func (c *Config) setDefaults() {
	if c.Patched == nil {
		c.Patched = None
	}
	if c.Links == "" {
		c.Links = Auto
	}
	if c.Engine == "" {
		c.Engine = "auto"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// Net is a running network. Close removes all of it.
type Net struct {
	Geths []*node.Geth // in the order of the topology
	RPs   []*node.RP   // likewise; empty without a patched node

	cfg     Config
	run     *netns.Run
	fabric  *fabric
	genesis *types.Block
	driver  sync.WaitGroup
	stop    context.CancelFunc // of the driver
	close   sync.Once
	closed  error
}

// Start builds the network, starts all processes, and returns when the nodes are
// connected, multicast is active at the patched ones, and the first block is
// everywhere. First it removes what crashed runs left on the machine. It needs
// root.
func Start(ctx context.Context, cfg Config) (*Net, error) {
	cfg.setDefaults()
	if err := cfg.Topology.Validate(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	stale, err := netns.CleanStale(netns.StateDir)
	if err != nil {
		return nil, err
	}
	for _, prefix := range stale {
		cfg.Log.Info("removed what an earlier run left", "prefix", prefix)
	}
	run, err := netns.NewRun(netns.StateDir)
	if err != nil {
		return nil, err
	}
	n := &Net{cfg: cfg, run: run, stop: func() {}}
	up := false
	defer func() {
		if !up { // an error, or a panic on its way
			n.Close()
		}
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout,
		fmt.Errorf("net did not start within %s", startTimeout))
	defer cancel()
	if err := n.start(ctx); err != nil {
		return nil, err
	}
	up = true
	return n, nil
}

// ErrNotRoot says that namespaces cannot be made.
var ErrNotRoot = errors.New("needs root: the testnet makes network namespaces")

func (n *Net) start(ctx context.Context) (err error) {
	log := n.cfg.Log
	if n.cfg.LogDir == "" {
		n.cfg.LogDir = filepath.Join(n.run.Dir(), "log")
	}
	if err := os.MkdirAll(n.cfg.LogDir, 0o755); err != nil {
		return fmt.Errorf("start net: %w", err)
	}
	if n.fabric, err = buildFabric(n.run, n.cfg.Topology, n.cfg.Links, n.cfg.LogDir); err != nil {
		return err
	}
	log.Info("network built", "prefix", n.run.Prefix(), "hosts", len(n.cfg.Topology.Hosts), "links", n.fabric.backend)

	if err := n.makeNodes(ctx); err != nil {
		return err
	}
	if err := each(n.RPs, func(r *node.RP) error { return r.Start(ctx) }); err != nil {
		return err
	}
	if err := each(n.RPs, func(r *node.RP) error { return r.WaitReady(ctx) }); err != nil {
		return err
	}
	if err := each(n.Geths, func(g *node.Geth) error { return g.Start(ctx) }); err != nil {
		return err
	}
	log.Info("nodes started", "geths", len(n.Geths), "rps", len(n.RPs))

	if err := n.connect(ctx); err != nil {
		return err
	}
	if err := n.startChain(ctx); err != nil {
		return err
	}
	if err := n.WaitMulticast(ctx); err != nil {
		return err
	}
	if err := n.WaitHead(ctx, 1); err != nil {
		return err
	}
	log.Info("net is up")
	return nil
}

// connect makes the peerings, each from one side.
func (n *Net) connect(ctx context.Context) error {
	for _, p := range n.cfg.Topology.Peerings {
		if err := n.Geth(p[0]).Connect(ctx, n.Geth(p[1]).URL()); err != nil {
			return err
		}
	}
	return n.WaitPeers(ctx)
}

// startChain makes the nodes accept transactions and the chain grow.
func (n *Net) startChain(ctx context.Context) error {
	engines := make([]beacon.Engine, len(n.Geths))
	for i, g := range n.Geths {
		engines[i] = g
	}
	driver := beacon.New(engines, n.genesis, n.cfg.Log)
	if err := driver.Begin(ctx); err != nil {
		return fmt.Errorf("start chain: %w", err)
	}
	// The chain outlives the call of Start, hence no child of ctx.
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	n.stop = stop
	n.driver.Go(func() { driver.Run(run) })
	return nil
}

// makeNodes writes keys, configuration and data directories of all nodes.
func (n *Net) makeNodes(ctx context.Context) error {
	var (
		geths = n.cfg.Topology.HostsOf(topology.Geth)
		rps   = n.cfg.Topology.HostsOf(topology.RP)
		keys  = make(map[string]*ecdsa.PrivateKey)
		urls  = make(map[string]*enode.Node)
	)
	for i, h := range geths {
		keys[h.Name] = workload.Key(n.cfg.Seed, "geth", i)
		urls[h.Name] = node.GethURL(keys[h.Name], h.Addr)
	}
	for i, h := range rps {
		keys[h.Name] = workload.Key(n.cfg.Seed, "rp", i)
		urls[h.Name] = node.RPURL(keys[h.Name], h.Addr)
	}
	byName := func(names []string) []*enode.Node {
		nodes := make([]*enode.Node, len(names))
		for i, name := range names {
			nodes[i] = urls[name]
		}
		return nodes
	}

	genesis := beacon.Genesis(uint64(time.Now().Unix()), workload.Addresses(n.cfg.Seed, len(geths)))
	n.genesis = genesis.ToBlock()
	first := filepath.Join(n.run.Dir(), "genesis")
	if err := node.InitDatadir(ctx, n.binary(geths[0]), first, genesis); err != nil {
		return err
	}
	for _, h := range geths {
		dir := filepath.Join(n.run.Dir(), h.Name)
		if err := node.CloneDatadir(first, dir); err != nil {
			return err
		}
		g, err := node.NewGeth(n.run, n.fabric.hosts[h.Name], node.GethConfig{
			Name:      h.Name,
			Binary:    n.binary(h),
			Key:       keys[h.Name],
			Addr:      h.Addr,
			NetworkID: beacon.ChainID,
			Dir:       dir,
			Log:       filepath.Join(n.cfg.LogDir, h.Name+".log"),
			Peers:     byName(n.cfg.Topology.Peers(h.Name)),
			Multicast: n.cfg.Patched(h.Name),
			RPs:       byName(names(n.cfg.Topology.Nearest(h, topology.RP))),
			Delivery:  n.cfg.Delivery,
		})
		if err != nil {
			return err
		}
		n.Geths = append(n.Geths, g)
	}
	if n.patched() == 0 {
		return nil
	}
	for i, h := range rps {
		dir := filepath.Join(n.run.Dir(), h.Name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("make %s: %w", h.Name, err)
		}
		r, err := node.NewRP(n.run, n.fabric.hosts[h.Name], node.RPConfig{
			Name:      h.Name,
			Binary:    n.cfg.RPD,
			Key:       keys[h.Name],
			Addr:      h.Addr,
			NetworkID: beacon.ChainID,
			Genesis:   n.genesis.Hash(),
			Dir:       dir,
			Log:       filepath.Join(n.cfg.LogDir, h.Name+".log"),
			Peers:     byName(names(others(rps, i))),
			Engine:    n.cfg.Engine,
			SSM:       n.cfg.Delivery == "ssm",
		})
		if err != nil {
			return err
		}
		n.RPs = append(n.RPs, r)
	}
	return nil
}

func names(hosts []topology.Host) []string {
	list := make([]string, len(hosts))
	for i, h := range hosts {
		list[i] = h.Name
	}
	return list
}

// others are all hosts but number i.
func others(hosts []topology.Host, i int) []topology.Host {
	return slices.Concat(hosts[:i], hosts[i+1:])
}

func (n *Net) binary(h topology.Host) string {
	if n.cfg.Patched(h.Name) {
		return n.cfg.Geth
	}
	return n.cfg.GethStock
}

// patched is the number of nodes that speak mDCS.
func (n *Net) patched() int {
	count := 0
	for _, g := range n.Geths {
		if g.Multicast() {
			count++
		}
	}
	return count
}

// Close ends all processes and removes namespaces and data. It may be called
// more than once and from several goroutines.
func (n *Net) Close() error {
	n.close.Do(func() {
		n.stop()
		n.driver.Wait()
		n.closed = n.run.Close()
	})
	return n.closed
}

// CloseOnSignal removes the net when the process gets SIGINT or SIGTERM and then
// lets the signal end the process. It is for programs that do not handle signals
// themselves, such as tests.
func (n *Net) CloseOnSignal() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		sig := <-signals
		n.Close()
		signal.Reset(sig)
		syscall.Kill(os.Getpid(), sig.(syscall.Signal))
	}()
}

// Genesis is the first block.
func (n *Net) Genesis() *types.Block { return n.genesis }

// Geth finds an Ethereum node by the name of its host. It panics if there is
// none, as a scenario with a wrong name is a mistake in its code.
func (n *Net) Geth(name string) *node.Geth { return find(n.Geths, name) }

// RP finds a replication point by the name of its host, and panics like Geth.
func (n *Net) RP(name string) *node.RP { return find(n.RPs, name) }

func find[N interface{ Name() string }](nodes []N, name string) N {
	for _, x := range nodes {
		if x.Name() == name {
			return x
		}
	}
	panic(fmt.Sprintf("net has no node %q of this kind", name))
}

// Heads are the newest blocks by node. A node that does not run is left out.
func (n *Net) Heads(ctx context.Context) (map[string]node.Head, error) {
	heads := make(map[string]node.Head)
	for _, g := range n.Geths {
		if !g.Running() {
			continue
		}
		head, err := g.Head(ctx)
		if err != nil {
			return nil, err
		}
		heads[g.Name()] = head
	}
	return heads, nil
}

// WaitPeers waits until each running node has its running Ethereum peers.
func (n *Net) WaitPeers(ctx context.Context) error {
	return each(n.running(), func(g *node.Geth) error {
		return g.WaitEthPeers(ctx, n.peers(g, (*node.Geth).Running))
	})
}

// WaitMulticast waits until each running node that speaks mDCS receives by
// multicast and knows that its peers that speak it do so too.
func (n *Net) WaitMulticast(ctx context.Context) error {
	covered := func(g *node.Geth) bool { return g.Running() && g.Multicast() }
	return each(n.running(), func(g *node.Geth) error {
		if !g.Multicast() {
			return nil
		}
		return g.WaitMulticast(ctx, n.peers(g, covered))
	})
}

// peers is the number of a node's Ethereum peers that match.
func (n *Net) peers(g *node.Geth, match func(*node.Geth) bool) int {
	count := 0
	for _, name := range n.cfg.Topology.Peers(g.Name()) {
		if match(n.Geth(name)) {
			count++
		}
	}
	return count
}

// WaitTx waits until each running node knows a transaction.
func (n *Net) WaitTx(ctx context.Context, hash common.Hash) error {
	return each(n.running(), func(g *node.Geth) error { return g.WaitTx(ctx, hash) })
}

// WaitHead waits until each running node has a block with at least this number.
func (n *Net) WaitHead(ctx context.Context, number uint64) error {
	return each(n.running(), func(g *node.Geth) error { return g.WaitHead(ctx, number) })
}

func (n *Net) running() []*node.Geth {
	var list []*node.Geth
	for _, g := range n.Geths {
		if g.Running() {
			list = append(list, g)
		}
	}
	return list
}

// each calls f for all nodes at the same time.
func each[N any](nodes []N, f func(N) error) error {
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, x := range nodes {
		wg.Go(func() { errs[i] = f(x) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
