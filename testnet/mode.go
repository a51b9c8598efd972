// SPDX-License-Identifier: LGPL-3.0-or-later

package testnet

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/ideal"
	"github.com/ethmcast/mdcs/testnet/measure"
	"github.com/ethmcast/mdcs/testnet/netns"
	"github.com/ethmcast/mdcs/testnet/node"
	"github.com/ethmcast/mdcs/testnet/report"
	"github.com/ethmcast/mdcs/testnet/topology"
	"github.com/ethmcast/mdcs/testnet/workload"
)

// Mode is a way of diffusion.
type Mode string

const (
	Gossip       Mode = "gossip"        // stock geth
	GossipDirect Mode = "gossip-direct" // a geth that sends each transaction to all peers
	GossipRelays Mode = "gossip+relays" // stock geth, and one more at the place of each replication point, a peer of all
	MDCS         Mode = "mdcs"          // patched geth and replication points
	MDCSSocket   Mode = "mdcs-socket"   // likewise, with the socket engine
	Ideal        Mode = "ideal"         // native multicast, without Ethereum nodes: see package ideal
)

// Modes are all modes.
var Modes = []Mode{Gossip, GossipDirect, GossipRelays, MDCS, MDCSSocket, Ideal}

// ParseMode checks the name of a mode.
func ParseMode(s string) (Mode, error) {
	if m := Mode(s); slices.Contains(Modes, m) {
		return m, nil
	}
	var names []string
	for _, m := range Modes {
		names = append(names, string(m))
	}
	return "", fmt.Errorf("mode %q is none of %s", s, strings.Join(names, ", "))
}

// When a run is over. Bytes are counted for at least minTail after the last
// transaction, so that the windows of the modes are of about the same length.
const (
	minTail = 3 * time.Second
	maxTail = 15 * time.Second
)

// leadTime is between the moment the net is up and the first transaction.
const leadTime = 2 * time.Second

// slotTime is half of Ethereum's. It lets transactions that are lost on the way be
// repaired before they are in a block: later no pool takes them.
const slotTime = 6 * time.Second

// A node that is ready still computes cryptographic tables, for a second of processor
// time. The workload waits until the processes of the net together use less than
// quietShare of the machine for quietFor, but no longer than quietTimeout.
const (
	quietShare   = 0.3
	quietFor     = 2 * time.Second
	quietTimeout = 90 * time.Second
)

// logsDir has a directory of logs for each run.
const logsDir = "logs"

// run measures one mode, and gives its outcome to keep while the net is still there.
// What only a running net knows is entered into the summary. That the net cannot be
// removed takes nothing from the outcome, and is a warning.
func (e *experiment) run(ctx context.Context, mode Mode, s *report.Summary, keep func(report.Outcome) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("mode %s, seed %d, round %d: %w", mode, e.seed, e.round, err)
		}
	}()
	e.Log.Info("run begins", "mode", mode, "seed", e.seed, "round", e.round, "half_rate", e.name != "")
	begin := time.Now()
	n, err := e.start(ctx, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err := n.Close(); err != nil {
			e.Log.Warn("not all of the net is removed; the next run tries again, or mdcs testnet clean", "err", err)
		}
	}()
	s.Topology.Links, s.Topology.Routing = string(n.Backend()), string(n.Routing())
	if s.Topology.CongestionControl, err = n.CongestionControl(); err != nil {
		return err
	}
	r := &trial{experiment: e, net: n}
	if mode == Ideal {
		err = r.prepareIdeal(ctx)
	} else {
		err = r.prepareNodes(ctx)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.settle(ctx); err != nil {
		return err
	}
	o, err := r.observe(ctx)
	if err != nil {
		return err
	}
	o.Mode = string(mode)
	o.Run.Seconds = seconds(time.Since(begin))
	d := measure.Summarize(measure.Pairs(r.sendings, r.arrivals.Times()))
	e.Log.Info("run ended", "mode", mode, "seed", e.seed, "round", e.round,
		"delivered", d.Delivered, "p50_ms", report.Figure(d.P50).String(), "p99_ms", report.Figure(d.P99).String())
	return keep(o)
}

// start brings up the net of a mode.
func (e *experiment) start(ctx context.Context, mode Mode) (*Net, error) {
	cfg := Config{
		Topology:  e.top,
		Geth:      e.Geth,
		GethStock: e.GethStock,
		RPD:       e.RPD,
		Patched:   None,
		Links:     e.Links,
		Routing:   e.Routing,
		Seed:      e.seed,
		Slot:      slotTime,
		LogDir:    filepath.Join(e.Dir(), logsDir, fmt.Sprintf("%s%s-%d-%d", e.name, mode, e.seed, e.round)),
		Log:       e.Log,
		Progress:  e.Progress,
	}
	if e.Replay != nil {
		var err error
		if cfg.Accounts, err = workload.Senders(e.Replay.ChainID, e.Replay.Txs); err != nil {
			return nil, err
		}
	}
	switch mode {
	case GossipDirect:
		cfg.GethStock = e.GethDirect
	case GossipRelays:
		cfg.Topology = withRelays(e.top)
	case MDCS:
		cfg.Patched = All
	case MDCSSocket:
		cfg.Patched, cfg.Engine = All, "socket"
	case Ideal:
		return StartNetwork(ctx, cfg)
	}
	return Start(ctx, cfg)
}

// withRelays puts an Ethereum node in the place of each replication point, and
// makes it a peer of all others. Geth dials no more than a third of the 50 peers that
// it may have, so both sides of a relay dial half of its peers.
func withRelays(t *topology.Topology) *topology.Topology {
	relayed := *t
	relayed.Hosts, relayed.Peerings = slices.Clone(t.Hosts), slices.Clone(t.Peerings)
	var relays []string
	nodes := names(t.HostsOf(topology.Geth))
	for i, h := range relayed.Hosts {
		if h.Role != topology.RP {
			continue
		}
		relayed.Hosts[i].Role = topology.Geth
		number := len(relays)
		join := func(k int, other string) {
			pair := [2]string{h.Name, other}
			if (number+k)%2 == 0 {
				slices.Reverse(pair[:])
			}
			relayed.Peerings = append(relayed.Peerings, pair)
		}
		for k, other := range relays {
			join(k, other)
		}
		for k, other := range nodes {
			join(k, other)
		}
		relays = append(relays, h.Name)
	}
	return &relayed
}

// trial is one run of a mode.
type trial struct {
	*experiment
	net *Net

	arrivals *measure.Arrivals
	submit   func(context.Context, workload.Tx) error
	close    func() error
	hosts    []measure.Host // whose traffic is counted
	engine   string         // of the replication points
	sendings []measure.Sending
}

func (r *trial) hashes() []common.Hash {
	hashes := make([]common.Hash, len(r.txs))
	for i, tx := range r.txs {
		hashes[i] = tx.Hash
	}
	return hashes
}

// prepareNodes sends through Ethereum nodes, and takes the arrivals from them.
func (r *trial) prepareNodes(ctx context.Context) error {
	sources := make([]measure.Source, len(r.nodes))
	for i, h := range r.nodes {
		sources[i] = r.net.Geth(h.Name)
	}
	for _, g := range r.net.Geths {
		r.hosts = append(r.hosts, g)
	}
	for _, p := range r.net.RPs {
		r.hosts = append(r.hosts, p)
		var err error
		if r.engine, err = p.Engine(ctx); err != nil {
			return err
		}
	}
	r.submit = func(ctx context.Context, tx workload.Tx) error {
		return r.net.Geth(r.nodes[tx.Node].Name).SendTx(ctx, tx.Raw)
	}
	r.close = func() error {
		r.arrivals.Close()
		return nil
	}
	var err error
	r.arrivals, err = measure.Subscribe(ctx, sources, r.hashes())
	return err
}

// prepareIdeal sends by native multicast.
func (r *trial) prepareIdeal(ctx context.Context) error {
	trees, err := ideal.Trees(r.top, r.nodes)
	if err != nil {
		return err
	}
	cfg := ideal.Config{
		Routers: make(map[string]*netns.Namespace),
		Trees:   trees,
		Port:    node.GethDataPort,
		Txs:     r.hashes(),
	}
	for _, a := range r.top.ASes {
		if cfg.Routers[a.Name], err = r.net.Namespace(a.Name); err != nil {
			return err
		}
	}
	for _, h := range r.nodes {
		ns, err := r.net.Namespace(h.Name)
		if err != nil {
			return err
		}
		cfg.Nodes = append(cfg.Nodes, ideal.Node{Name: h.Name, Addr: h.Addr, NS: ns})
		r.hosts = append(r.hosts, bareHost{h.Name, ns})
	}
	m, err := ideal.Start(ctx, cfg)
	if err != nil {
		return err
	}
	r.arrivals, r.submit, r.close = m.Arrivals, m.Submit, m.Close
	return nil
}

// bareHost is a host on which nothing runs.
type bareHost struct {
	name string
	ns   *netns.Namespace
}

func (h bareHost) Name() string                      { return h.name }
func (h bareHost) Counters() (netns.Counters, error) { return h.ns.Counters(node.Interface) }

// settle waits for the nodes to become quiet.
func (r *trial) settle(ctx context.Context) error {
	deadline := time.Now().Add(quietTimeout)
	before, err := r.net.CPU()
	if err != nil {
		return err
	}
	for {
		if err := wait(ctx, time.Now().Add(quietFor)); err != nil {
			return err
		}
		after, err := r.net.CPU()
		if err != nil {
			return err
		}
		var used float64 // s
		for _, s := range measure.CPUSeconds(before, after) {
			used += s
		}
		if used < quietShare*quietFor.Seconds()*float64(runtime.NumCPU()) {
			return nil
		}
		if time.Now().After(deadline) {
			r.Log.Warn("the nodes did not become quiet", "cores", used/quietFor.Seconds())
			return nil
		}
		before = after
	}
}

// moment is the state of all counters.
type moment struct {
	at       time.Time
	traffic  measure.Traffic
	cpu      map[string]time.Duration
	pressure time.Duration
}

func (r *trial) moment(ctx context.Context) (m moment, err error) {
	if m.traffic, err = measure.Count(ctx, r.hosts); err != nil {
		return m, err
	}
	if m.cpu, err = r.net.CPU(); err != nil {
		return m, err
	}
	m.pressure, err = measure.CPUPressure()
	m.at = time.Now()
	return m, err
}

// observe sends the workload and records what comes of it.
func (r *trial) observe(ctx context.Context) (o report.Outcome, err error) {
	before, err := r.moment(ctx)
	if err != nil {
		return o, err
	}
	if err := r.net.ClearWire(); err != nil {
		return o, err
	}
	sent, err := workload.Send(ctx, r.txs, time.Now().Add(leadTime), r.submit)
	if err != nil {
		return o, err
	}
	if err := workload.Refused(sent); err != nil {
		return o, err
	}
	last := time.Now()
	missing, err := r.arrivals.Wait(ctx, last.Add(maxTail))
	if err != nil {
		return o, err
	}
	if err := wait(ctx, last.Add(minTail)); err != nil {
		return o, err
	}
	if missing > 0 {
		r.Log.Warn("some transactions did not arrive everywhere", "missing", missing)
	}
	wire, err := r.net.WireSummary()
	if err != nil {
		return o, err
	}
	// nil where nobody counts.
	counters, err := r.net.Counters()
	if err != nil && !errors.Is(err, ErrNoWire) {
		return o, err
	}
	after, err := r.moment(ctx)
	if err != nil {
		return o, err
	}
	protocols, err := measure.ProtocolBytes(before.traffic, after.traffic)
	if err != nil {
		return o, err
	}

	sizes := make([]int, len(r.txs))
	for i, tx := range r.txs {
		sizes[i] = len(tx.Raw)
		r.sendings = append(r.sendings, measure.Sending{Origin: tx.Node, At: sent[i].At})
	}
	samples, err := measure.NewFloors(r.top, r.nodes).Samples(measure.Pairs(r.sendings, r.arrivals.Times()), sizes)
	if err != nil {
		return o, err
	}
	o = report.Outcome{
		Round:   r.round,
		Seed:    r.seed,
		Nodes:   r.nodes,
		Txs:     r.txs,
		Sent:    sent,
		Samples: samples,
		Copies:  r.copies(counters),
		Run: report.Run{
			Engine:        r.engine,
			Window:        seconds(after.at.Sub(before.at)),
			CPUPressure:   float64(after.pressure-before.pressure) / float64(after.at.Sub(before.at)),
			Wire:          wire,
			Bytes:         measure.HostBytes(measure.Bytes(before.traffic, after.traffic), counters),
			ProtocolBytes: protocols,
			CPUSeconds:    measure.CPUSeconds(before.cpu, after.cpu),
			Metrics:       measure.MetricChanges(before.traffic, after.traffic),
		},
	}
	for _, h := range r.top.HostsOf(topology.RP) {
		if _, ran := o.Run.Bytes[h.Name]; ran {
			o.RPs = append(o.RPs, h.Name)
		}
	}
	return o, nil
}

// copies are those on the links between ASes that the wire counted.
func (r *trial) copies(counters []delayline.Counters) []measure.LinkCopies {
	framed := uint64(0)
	for _, tx := range r.txs {
		framed += measure.Framed(len(tx.Raw))
	}
	return measure.Copies(measure.TxBytes(counters, measure.InterAS(r.top)), framed)
}

func wait(ctx context.Context, until time.Time) error {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// seconds rounds to milliseconds.
func seconds(d time.Duration) float64 { return d.Round(time.Millisecond).Seconds() }
