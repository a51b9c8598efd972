// SPDX-License-Identifier: LGPL-3.0-or-later

package testnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/ethmcast/mdcs/testnet/beacon"
	"github.com/ethmcast/mdcs/testnet/measure"
	"github.com/ethmcast/mdcs/testnet/report"
	"github.com/ethmcast/mdcs/testnet/topology"
	"github.com/ethmcast/mdcs/testnet/workload"
)

// Mode is a way of diffusion.
type Mode string

const (
	Gossip     Mode = "gossip"      // stock geth
	MDCS       Mode = "mdcs"        // patched geth and replication points
	MDCSSocket Mode = "mdcs-socket" // likewise, with the socket engine
)

// ParseMode checks the name of a mode.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case Gossip, MDCS, MDCSSocket:
		return m, nil
	}
	return "", fmt.Errorf("mode %q is none of gossip, mdcs, mdcs-socket", s)
}

// When a mode is over. Bytes are counted for at least minTail after the last
// transaction, so that the windows of the modes are of about the same length.
const (
	minTail = 3 * time.Second
	maxTail = 15 * time.Second
)

// leadTime is between the moment the net is up and the first transaction.
const leadTime = 2 * time.Second

// CompareConfig describes a comparison. All fields are required.
type CompareConfig struct {
	Name     string // of the result
	Results  string // directory that gets a directory Name
	Topology *topology.Topology
	Modes    []Mode
	Txs      int
	Rate     float64 // transactions per second
	Seed     uint64
	Links    LinkBackend
	Versions map[string]string // of the programs, by name

	Geth, GethStock, RPD string

	Log *slog.Logger
}

// Dir is where the result goes.
func (c *CompareConfig) Dir() string { return filepath.Join(c.Results, c.Name) }

// Compare runs the workload once per mode, each time on a fresh net, and writes
// summary.json, arrivals.csv and the logs of all processes.
func Compare(ctx context.Context, cfg CompareConfig) (*report.Summary, error) {
	nodes := len(cfg.Topology.HostsOf(topology.Geth))
	txs, err := workload.Plan(workload.Params{
		ChainID: beacon.ChainID, Seed: cfg.Seed, Txs: cfg.Txs, Rate: cfg.Rate, Nodes: nodes,
	})
	if err != nil {
		return nil, err
	}
	host, err := hostFacts()
	if err != nil {
		return nil, err
	}
	s := &report.Summary{
		Name:     cfg.Name,
		Started:  time.Now().UTC().Truncate(time.Second),
		Notes:    report.Notes,
		Seed:     cfg.Seed,
		Host:     host,
		Versions: cfg.Versions,
		Topology: report.Topology{
			Name:  cfg.Topology.Name,
			Nodes: nodes,
			RPs:   len(cfg.Topology.HostsOf(topology.RP)),
		},
		Workload: describe(txs, cfg.Rate),
		Tx:       make(map[string]report.Tx),
		Runs:     make(map[string]report.Run),
	}
	if err := os.MkdirAll(cfg.Dir(), 0o755); err != nil {
		return nil, fmt.Errorf("compare: %w", err)
	}
	file, err := report.CreateArrivals(cfg.Dir())
	if err != nil {
		return nil, err
	}
	defer file.Close()
	arrivals := report.NewArrivals(file)

	for _, mode := range cfg.Modes {
		cfg.Log.Info("mode begins", "mode", mode)
		pairs, err := runMode(ctx, &cfg, mode, txs, s)
		if err != nil {
			return nil, fmt.Errorf("mode %s: %w", mode, err)
		}
		arrivals.Add(string(mode), names(cfg.Topology.HostsOf(topology.Geth)), pairs)
	}
	s.Judge()
	return s, errors.Join(arrivals.Flush(), s.Write(cfg.Dir()))
}

// runMode measures one mode and enters it into the summary.
func runMode(ctx context.Context, cfg *CompareConfig, mode Mode, txs []workload.Tx, s *report.Summary) (pairs []measure.Pair, err error) {
	begin, used := time.Now(), ""
	logs := filepath.Join(cfg.Dir(), string(mode)) // this mode's logs of an earlier run
	if err := os.RemoveAll(logs); err != nil {
		return nil, err
	}
	patched, engine := None, "auto"
	switch mode {
	case MDCS:
		patched = All
	case MDCSSocket:
		patched, engine = All, "socket"
	}
	n, err := Start(ctx, Config{
		Topology:  cfg.Topology,
		Geth:      cfg.Geth,
		GethStock: cfg.GethStock,
		RPD:       cfg.RPD,
		Patched:   patched,
		Engine:    engine,
		Links:     cfg.Links,
		Seed:      cfg.Seed,
		LogDir:    logs,
		Log:       cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	s.Topology.Links = string(n.Links())
	if s.Topology.CongestionControl, err = n.CongestionControl(); err != nil {
		return nil, err
	}

	for _, r := range n.RPs {
		if used, err = r.Engine(ctx); err != nil {
			return nil, err
		}
	}
	w, err := observe(ctx, n, txs)
	if err != nil {
		return nil, err
	}
	wire, err := n.StopWire()
	if err != nil {
		return nil, err
	}
	if err := n.Close(); err != nil {
		return nil, err
	}
	s.Tx[string(mode)] = w.tx(n)
	run := w.run
	run.Wire, run.Engine = wire, used
	run.Seconds = seconds(time.Since(begin))
	s.Runs[string(mode)] = run
	cfg.Log.Info("mode ended", "mode", mode, "delivered", w.delays.Delivered, "p50_ms", report.Millis(w.delays.P50).String())
	return w.pairs, nil
}

// window is what was observed while the workload ran.
type window struct {
	sent   int
	pairs  []measure.Pair
	delays measure.Distribution
	run    report.Run
}

// observe sends the workload and records arrivals and bytes.
func observe(ctx context.Context, n *Net, txs []workload.Tx) (*window, error) {
	hosts := make([]measure.Host, 0, len(n.Geths)+len(n.RPs))
	sources := make([]measure.Source, len(n.Geths))
	for i, g := range n.Geths {
		sources[i] = g
		hosts = append(hosts, g)
	}
	for _, r := range n.RPs {
		hosts = append(hosts, r)
	}
	hashes := make([]common.Hash, len(txs))
	for i, tx := range txs {
		hashes[i] = tx.Hash
	}
	arrivals, err := measure.Subscribe(ctx, sources, hashes)
	if err != nil {
		return nil, err
	}
	defer arrivals.Close()

	before, err := measure.Count(ctx, hosts)
	if err != nil {
		return nil, err
	}
	if err := n.ClearWire(); err != nil {
		return nil, err
	}
	pressure, err := measure.CPUPressure()
	if err != nil {
		return nil, err
	}
	opened := time.Now()

	sent, err := workload.Send(ctx, txs, opened.Add(leadTime), func(ctx context.Context, tx workload.Tx) error {
		return n.Geths[tx.Node].SendTx(ctx, tx.Raw)
	})
	if err != nil {
		return nil, err
	}
	if err := workload.Refused(sent); err != nil {
		return nil, err
	}
	last := time.Now()
	missing, err := arrivals.Wait(ctx, last.Add(maxTail))
	if err != nil {
		return nil, err
	}
	if err := wait(ctx, last.Add(minTail)); err != nil {
		return nil, err
	}
	if missing > 0 {
		n.cfg.Log.Warn("some transactions did not arrive everywhere", "missing", missing)
	}

	closed := time.Now()
	pressureEnd, err := measure.CPUPressure()
	if err != nil {
		return nil, err
	}
	after, err := measure.Count(ctx, hosts)
	if err != nil {
		return nil, err
	}
	protocols, err := measure.ProtocolBytes(before, after)
	if err != nil {
		return nil, err
	}
	sendings := make([]measure.Sending, len(txs))
	for i, tx := range txs {
		sendings[i] = measure.Sending{Origin: tx.Node, At: sent[i].At}
	}
	pairs := measure.Pairs(sendings, arrivals.Times())
	return &window{
		sent:   len(sent),
		pairs:  pairs,
		delays: measure.Summarize(pairs),
		run: report.Run{
			Window:        seconds(closed.Sub(opened)),
			CPUPressure:   float64(pressureEnd-pressure) / float64(closed.Sub(opened)),
			Pairs:         len(pairs),
			Bytes:         measure.Bytes(before, after),
			ProtocolBytes: protocols,
		},
	}, nil
}

// tx is the row of the mode in the result.
func (w *window) tx(n *Net) report.Tx {
	t := report.Tx{
		Sent:           w.sent,
		DeliveredRatio: w.delays.Delivered,
		P50:            report.Millis(w.delays.P50),
		P90:            report.Millis(w.delays.P90),
		P99:            report.Millis(w.delays.P99),
		Max:            report.Millis(w.delays.Max),
		Slow:           w.delays.Slow,
	}
	for _, g := range n.Geths {
		t.TotalBytes += w.run.Bytes[g.Name()]
	}
	t.BytesPerNode = t.TotalBytes / uint64(len(n.Geths))
	if len(n.RPs) > 0 {
		t.RPBytes = new(uint64)
		for _, r := range n.RPs {
			*t.RPBytes += w.run.Bytes[r.Name()]
		}
		t.TotalBytes += *t.RPBytes
	}
	return t
}

// describe sums up a workload for the result.
func describe(txs []workload.Tx, rate float64) report.Workload {
	w := report.Workload{Txs: len(txs), Rate: rate, Kinds: make(map[string]int)}
	var sizes []int
	total := 0
	for _, tx := range txs {
		w.Kinds[string(tx.Kind)]++
		sizes = append(sizes, len(tx.Raw))
		total += len(tx.Raw)
	}
	w.MinBytes, w.MaxBytes = slices.Min(sizes), slices.Max(sizes)
	w.MeanBytes = float64(total) / float64(len(txs))
	return w
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
