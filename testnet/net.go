// SPDX-License-Identifier: LGPL-3.0-or-later

// Package testnet runs a private Ethereum network with replication points on one
// Linux machine: each host and each router in a network namespace of its own, BGP
// between the routers, links with delay, rate and loss, real geth and rpd
// processes, and a stand-in for the consensus layer.
//
// [Start] brings a [Net] up and [Net.Close] removes it. A scenario test reads
// like this:
//
//	n, err := testnet.Start(ctx, testnet.Config{
//		Topology: top, // of topology.Load, with nodes by Populate
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
	"bytes"
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
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/testnet/beacon"
	"github.com/ethmcast/mdcs/testnet/bgp"
	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/netns"
	"github.com/ethmcast/mdcs/testnet/node"
	"github.com/ethmcast/mdcs/testnet/topology"
	"github.com/ethmcast/mdcs/testnet/workload"
)

// Limits on the start of a net. Each node needs about 2 s of processor time, most
// of it for cryptographic tables.
const (
	startTimeout    = 3 * time.Minute
	convergeTimeout = 30 * time.Second
)

// Routing is what fills the routing tables of the ASes.
type Routing string

const (
	RoutingAuto Routing = "auto"   // bird where it is installed, else static
	BIRD        Routing = "bird"   // BGP and BFD by BIRD 2
	Static      Routing = "static" // computed: the same routes without BGP
)

// ParseRouting checks the name of a routing.
func ParseRouting(s string) (Routing, error) {
	switch r := Routing(s); r {
	case RoutingAuto, BIRD, Static:
		return r, nil
	}
	return "", fmt.Errorf("routing %q is none of auto, bird, static", s)
}

// Config describes a net. Zero fields have a default unless they say otherwise.
type Config struct {
	Topology *topology.Topology // required

	// Programs. Geth is the patched one and runs where Patched says so, GethStock
	// elsewhere. Only those in use are required.
	Geth, GethStock, RPD string

	// Patched chooses the nodes that speak mDCS; nil means none. Replication
	// points run if there is one such node.
	Patched func(host string) bool

	Links   LinkBackend // default Wire
	Routing Routing     // default RoutingAuto
	Engine  string      // datapath of the replication points, default auto
	Pin     string      // directory on a bpf file system that keeps it when one dies, "" for none
	Mesh    string      // kind of trees between the replication points: star or last; "": the daemon's default
	RPCPUs  int         // that each replication point uses at a time, 0 for all
	Seed    uint64      // of all keys, and of loss and jitter

	// Delivery is wished by the nodes that speak mDCS: unicast, which is the default,
	// or ssm, which is offered then.
	Delivery string

	Slot time.Duration // between two blocks, whole seconds; default beacon.SlotTime

	// Accounts have money from the first block on; default those of package
	// workload with this seed.
	Accounts []common.Address

	LogDir string       // one file per process; default: in the scratch directory
	Log    *slog.Logger // default: discard

	// Progress is called at each step of the start, from several goroutines; nil
	// means nobody wants to know.
	Progress func(Progress)
}

// Progress says how far the start of a net is.
type Progress struct {
	Stage string `json:"stage"` // in words
	Done  int    `json:"done"`  // of Total
	Total int    `json:"total"` // 0: the stage cannot be counted
}

// All and None are choices for Config.Patched.
func All(string) bool  { return true }
func None(string) bool { return false }

func (c *Config) setDefaults() {
	if c.Patched == nil {
		c.Patched = None
	}
	if c.Links == "" {
		c.Links = Wire
	}
	if c.Routing == "" {
		c.Routing = RoutingAuto
	}
	if c.Engine == "" {
		c.Engine = "auto"
	}
	if c.Slot == 0 {
		c.Slot = beacon.SlotTime
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Progress == nil {
		c.Progress = func(Progress) {}
	}
}

// Net is a running network. Close removes all of it.
type Net struct {
	Geths []*node.Geth // in the order of the topology
	RPs   []*node.RP   // likewise; empty without a patched node, but for [StartMesh]

	cfg     Config
	run     *netns.Run
	links   sync.Mutex // guards the state of the lines and of static routes
	fabric  *fabric
	bgp     *bgp.Network // nil with static routes
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
	return start(ctx, cfg, (*Net).startNodes)
}

// StartNetwork is Start without nodes: it returns when the routes are there.
func StartNetwork(ctx context.Context, cfg Config) (*Net, error) {
	return start(ctx, cfg, (*Net).converge)
}

// StartMesh is Start with replication points alone. It returns when the routes are
// there and the RPs are made: the caller starts them. There is a genesis block, and
// no chain.
func StartMesh(ctx context.Context, cfg Config) (*Net, error) {
	return start(ctx, cfg, func(n *Net, ctx context.Context) error {
		n.genesis = beacon.Genesis(uint64(time.Now().Unix()), nil).ToBlock()
		if err := n.makeRPs(); err != nil {
			return err
		}
		return n.converge(ctx)
	})
}

func start(ctx context.Context, cfg Config, rest func(*Net, context.Context) error) (*Net, error) {
	cfg.setDefaults()
	if err := cfg.Topology.Validate(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	stale, err := netns.CleanStale(netns.StateDir)
	if err != nil {
		cfg.Log.Warn("not all that an earlier run left is removed", "err", err)
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
	if err := n.build(); err != nil {
		return nil, err
	}
	if err := rest(n, ctx); err != nil {
		return nil, err
	}
	up = true
	return n, nil
}

// ErrNotRoot says that namespaces cannot be made.
var ErrNotRoot = errors.New("needs root: the testnet makes network namespaces")

// ndEntries is how many ND entries the hosts of a topology have at most: each has all
// others of its LAN, by a global and by a link-local address.
func ndEntries(top *topology.Topology) (n int) {
	lans := make(map[string]int)
	for _, h := range top.Hosts {
		lans[h.AS]++
	}
	for _, hosts := range lans {
		n += 2 * (hosts + 1) * (hosts + 1) // with the router
	}
	return n
}

// build makes the network and starts its routing.
func (n *Net) build() (err error) {
	top := n.cfg.Topology
	n.cfg.Progress(Progress{Stage: "network"})
	if n.cfg.LogDir == "" {
		n.cfg.LogDir = filepath.Join(n.run.Dir(), "log")
	}
	if err := os.MkdirAll(n.cfg.LogDir, 0o755); err != nil {
		return fmt.Errorf("start net: %w", err)
	}
	begin := time.Now()
	if err := n.run.RoomForNDEntries(ndEntries(top)); err != nil {
		n.cfg.Log.Warn("packets may be lost: no room for all ND entries", "err", err)
	}
	if n.fabric, err = buildFabric(n.run, top, n.cfg.Links, n.cfg.Seed, n.cfg.LogDir); err != nil {
		return err
	}
	n.cfg.Log.Info("network built", "prefix", n.run.Prefix(), "ases", len(top.ASes), "hosts", len(top.Hosts),
		"lines", len(n.fabric.lines), "by", n.fabric.backend, "took", time.Since(begin).Round(time.Millisecond))

	if n.cfg.Routing == RoutingAuto {
		n.cfg.Routing = BIRD
		if _, err := bgp.Find(); err != nil {
			n.cfg.Log.Info("routes are computed", "reason", err)
			n.cfg.Routing = Static
		}
	}
	if n.cfg.Routing == Static {
		return bgp.Static(top, n.fabric.routers, nil)
	}
	n.bgp, err = bgp.Start(n.run, top, n.fabric.routers, filepath.Join(n.run.Dir(), "bgp"), n.cfg.LogDir)
	return err
}

// converge waits for the routes.
func (n *Net) converge(ctx context.Context) error {
	if n.bgp == nil {
		return nil
	}
	n.cfg.Progress(Progress{Stage: "routing"})
	ctx, cancel := context.WithTimeoutCause(ctx, convergeTimeout,
		fmt.Errorf("BGP did not converge within %s", convergeTimeout))
	defer cancel()
	begin := time.Now()
	if err := n.bgp.WaitConverged(ctx); err != nil {
		return err
	}
	n.cfg.Log.Info("BGP converged", "took", time.Since(begin).Round(time.Millisecond))
	return nil
}

// startNodes starts replication points and Ethereum nodes.
func (n *Net) startNodes(ctx context.Context) error {
	// The data directories are made while the routers exchange their routes.
	var (
		made error
		wg   sync.WaitGroup
	)
	wg.Go(func() { made = n.makeNodes(ctx) })
	err := n.converge(ctx)
	wg.Wait()
	if err := errors.Join(err, made); err != nil {
		return err
	}
	begin := time.Now()
	if err := n.startRPs(ctx); err != nil {
		return err
	}
	err = n.countEach("Ethereum nodes", len(n.Geths), func(i int) error { return n.Geths[i].Start(ctx) })
	if err != nil {
		return err
	}
	n.cfg.Log.Info("nodes started", "geths", len(n.Geths), "rps", len(n.RPs), "took", time.Since(begin).Round(time.Millisecond))

	begin = time.Now()
	if len(n.RPs) > 0 {
		n.cfg.Progress(Progress{Stage: "mesh"})
		if err := each(n.RPs, func(r *node.RP) error { return r.WaitReady(ctx) }); err != nil {
			return err
		}
	}
	n.cfg.Progress(Progress{Stage: "peers"})
	if err := n.connect(ctx); err != nil {
		return err
	}
	n.cfg.Progress(Progress{Stage: "chain"})
	if err := n.startChain(ctx); err != nil {
		return err
	}
	if n.patched() > 0 {
		n.cfg.Progress(Progress{Stage: "multicast"})
		if err := n.WaitMulticast(ctx); err != nil {
			return err
		}
	}
	n.cfg.Progress(Progress{Stage: "first block"})
	if err := n.WaitHead(ctx, 1); err != nil {
		return err
	}
	// The rush of the start is no measure of how exact the links are.
	if err := n.ClearWire(); err != nil {
		return err
	}
	n.cfg.Log.Info("net is up", "took", time.Since(begin).Round(time.Millisecond))
	return nil
}

// startRPs starts the replication points one after another, in the order of their
// node ids: the one with the larger id dials a little later. Two dials that cross
// on a long path end each other, and are tried again only after 35 s; so all of
// the earlier ones have found nobody before the next one listens.
func (n *Net) startRPs(ctx context.Context) error {
	order := slices.Clone(n.RPs)
	slices.SortFunc(order, func(a, b *node.RP) int {
		idA, idB := a.ID(), b.ID()
		return bytes.Compare(idA[:], idB[:])
	})
	for i, r := range order {
		n.cfg.Progress(Progress{"replication points", i, len(order)})
		if err := r.Start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// countEach calls f for 0 to total-1 at the same time, and reports progress.
func (n *Net) countEach(stage string, total int, f func(int) error) error {
	if total == 0 {
		return nil
	}
	var done atomic.Int64
	n.cfg.Progress(Progress{stage, 0, total})
	numbers := make([]int, total)
	for i := range numbers {
		numbers[i] = i
	}
	return each(numbers, func(i int) error {
		err := f(i)
		n.cfg.Progress(Progress{stage, int(done.Add(1)), total})
		return err
	})
}

// connect makes the peerings, each from one side.
func (n *Net) connect(ctx context.Context) error {
	err := each(n.cfg.Topology.Peerings, func(p [2]string) error {
		return n.Geth(p[0]).Connect(ctx, n.Geth(p[1]).URL())
	})
	if err != nil {
		return err
	}
	return n.WaitPeers(ctx)
}

// startChain makes the nodes accept transactions and the chain grow.
func (n *Net) startChain(ctx context.Context) error {
	engines := make([]beacon.Engine, len(n.Geths))
	for i, g := range n.Geths {
		engines[i] = g
	}
	driver := beacon.New(engines, n.genesis, n.cfg.Slot, n.cfg.Log)
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
		keys  = make(map[string]*ecdsa.PrivateKey)
		urls  = make(map[string]*enode.Node)
	)
	for i, h := range geths {
		keys[h.Name] = workload.Key(n.cfg.Seed, "geth", i)
		urls[h.Name] = node.GethURL(keys[h.Name], h.Addr)
	}
	for i, h := range n.cfg.Topology.HostsOf(topology.RP) {
		urls[h.Name] = node.RPURL(workload.Key(n.cfg.Seed, "rp", i), h.Addr)
	}
	byName := func(names []string) []*enode.Node {
		nodes := make([]*enode.Node, len(names))
		for i, name := range names {
			nodes[i] = urls[name]
		}
		return nodes
	}

	if len(geths) == 0 {
		return fmt.Errorf("topology %s has no Ethereum node", n.cfg.Topology.Name)
	}
	accounts := n.cfg.Accounts
	if accounts == nil {
		accounts = workload.Addresses(n.cfg.Seed, len(geths))
	}
	genesis := beacon.Genesis(uint64(time.Now().Unix()), accounts)
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
		g, err := node.NewGeth(n.run, n.fabric.spaces[h.Name], node.GethConfig{
			Name:      h.Name,
			Binary:    n.binary(h),
			Key:       keys[h.Name],
			Addr:      h.Addr,
			NetworkID: beacon.ChainID,
			Dir:       dir,
			Log:       filepath.Join(n.cfg.LogDir, h.Name+".log"),
			Peers:     byName(n.cfg.Topology.Peers(h.Name)),
			Multicast: n.cfg.Patched(h.Name),
			RPs:       byName(names(nearestRPs(n.cfg.Topology, h))),
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
	return n.makeRPs()
}

// makeRPs writes keys and configuration of the replication points.
func (n *Net) makeRPs() error {
	engine, err := n.engine()
	if err != nil {
		return err
	}
	var (
		rps  = n.cfg.Topology.HostsOf(topology.RP)
		keys = make([]*ecdsa.PrivateKey, len(rps))
		urls = make([]*enode.Node, len(rps))
	)
	for i, h := range rps {
		keys[i] = workload.Key(n.cfg.Seed, "rp", i)
		urls[i] = node.RPURL(keys[i], h.Addr)
	}
	for i, h := range rps {
		dir := filepath.Join(n.run.Dir(), h.Name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("make %s: %w", h.Name, err)
		}
		r, err := node.NewRP(n.run, n.fabric.spaces[h.Name], node.RPConfig{
			Name:      h.Name,
			Binary:    n.cfg.RPD,
			Key:       keys[i],
			Addr:      h.Addr,
			NetworkID: beacon.ChainID,
			Genesis:   n.genesis.Hash(),
			Dir:       dir,
			Log:       filepath.Join(n.cfg.LogDir, h.Name+".log"),
			Peers:     slices.Concat(urls[:i], urls[i+1:]),
			Mesh:      n.cfg.Mesh,
			Engine:    engine,
			SSM:       n.cfg.Delivery == "ssm",
			Pin:       n.cfg.Pin,
			CPUs:      n.cfg.RPCPUs,
		})
		if err != nil {
			return err
		}
		n.RPs = append(n.RPs, r)
	}
	return nil
}

// engine is the datapath engine to ask for. Frames that XDP sends pass no
// queueing discipline, so netem would not delay them.
func (n *Net) engine() (string, error) {
	if n.fabric.backend != Netem || n.cfg.Engine == "socket" {
		return n.cfg.Engine, nil
	}
	if n.cfg.Engine == "xdp" {
		return "", errors.New("netem does not delay what the xdp engine sends: take --links wire or another engine")
	}
	n.cfg.Log.Warn("the replication points have the socket engine: netem does not delay what the xdp engine sends")
	return "socket", nil
}

// nearestRPs are the replication points that a node is given: one, and another
// one for the case that it is lost.
func nearestRPs(t *topology.Topology, h topology.Host) []topology.Host {
	rps := t.Nearest(h, topology.RP)
	return rps[:min(2, len(rps))]
}

func names(hosts []topology.Host) []string {
	list := make([]string, len(hosts))
	for i, h := range hosts {
		list[i] = h.Name
	}
	return list
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
		if n.fabric != nil {
			n.fabric.close()
		}
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

// Topology is what the net was built from.
func (n *Net) Topology() *topology.Topology { return n.cfg.Topology }

// Backend is what shapes the lines: [Netem] or [Wire].
func (n *Net) Backend() LinkBackend { return n.fabric.backend }

// Routing is what fills the routing tables: [BIRD] or [Static].
func (n *Net) Routing() Routing { return n.cfg.Routing }

// Namespace finds the namespace of a host, a router by the name of its AS, or
// that of an IXP.
func (n *Net) Namespace(name string) (*netns.Namespace, error) { return n.fabric.space(name) }

// CongestionControl is the TCP congestion control of the hosts.
func (n *Net) CongestionControl() (string, error) {
	return n.fabric.spaces[n.cfg.Topology.Hosts[0].Name].CongestionControl()
}

// CPU is the processor time that each process of the net used so far: nodes by
// the names of their hosts, "bird-" and the name of the AS or IXP, and the delay
// line.
func (n *Net) CPU() (map[string]time.Duration, error) { return n.run.CPU() }

// SetLink changes a line: that of a host, by its name; a link between two ASes,
// "A-B" in any order; or the port of an AS at an IXP, "IXP:AS". Static routes
// follow at once if lines go down or up, as those of BGP do by themselves.
func (n *Net) SetLink(name string, change LinkChange) error {
	n.links.Lock()
	defer n.links.Unlock()
	l, err := n.fabric.find(name)
	if err != nil {
		return err
	}
	was := l.isDown()
	if err := n.fabric.change(l, change); err != nil || l.isDown() == was {
		return err
	}
	return n.reroute()
}

// Partition takes down all links between groups of ASes, and what an earlier
// call took down up again. ASes that no group names stay together. Without
// groups, all links are up that [Net.SetLink] did not take down.
func (n *Net) Partition(groups [][]string) error {
	n.links.Lock()
	defer n.links.Unlock()
	if err := n.fabric.partition(groups); err != nil {
		return err
	}
	return n.reroute()
}

// reroute adapts static routes to the lines that are down.
func (n *Net) reroute() error {
	if n.cfg.Routing != Static {
		return nil
	}
	return bgp.Static(n.cfg.Topology, n.fabric.routers, n.fabric.down())
}

// WaitConverged waits until all BGP sessions are up and the routers have the
// routes of the whole topology, so it returns only when no link is down.
func (n *Net) WaitConverged(ctx context.Context) error { return n.converge(ctx) }

// Links are all lines: those of hosts, the links between ASes, and the ports of
// IXPs.
func (n *Net) Links() []LinkStatus {
	n.links.Lock()
	defer n.links.Unlock()
	return n.fabric.links()
}

// ErrNoWire says that no delay line runs, so nobody counts.
var ErrNoWire = errors.New("no delay line runs: the links have no delay, or netem gives it")

// Counters are the frames and bytes by line, direction and class.
func (n *Net) Counters() ([]delayline.Counters, error) {
	if n.fabric.wire == nil {
		return nil, ErrNoWire
	}
	return n.fabric.wire.Counters()
}

// Pairs are the frames and bytes of control traffic on the lines of replication
// points, by source and destination.
func (n *Net) Pairs() ([]delayline.Pair, error) {
	if n.fabric.wire == nil {
		return nil, ErrNoWire
	}
	return n.fabric.wire.Pairs()
}

// ClearWire makes the delay line start its counting anew.
func (n *Net) ClearWire() error {
	if n.fabric.wire == nil {
		return nil
	}
	return n.fabric.wire.Clear()
}

// WireSummary is what the delay line did since its start or the last
// [Net.ClearWire]; nil if there is none.
func (n *Net) WireSummary() (*delayline.Summary, error) {
	if n.fabric.wire == nil {
		return nil, nil
	}
	s, err := n.fabric.wire.Summary()
	if err != nil {
		return nil, err
	}
	return &s, nil
}

// StopWire ends the delay line, and with it all connection over lines with delay,
// and returns its summary; nil if there is none.
func (n *Net) StopWire() (*delayline.Summary, error) {
	if n.fabric.wire == nil {
		return nil, nil
	}
	s, err := n.fabric.wire.Stop()
	if err != nil {
		return nil, err
	}
	return &s, nil
}
