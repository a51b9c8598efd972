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

	"github.com/ethmcast/mdcs/testnet/beacon"
	"github.com/ethmcast/mdcs/testnet/measure"
	"github.com/ethmcast/mdcs/testnet/plot"
	"github.com/ethmcast/mdcs/testnet/report"
	"github.com/ethmcast/mdcs/testnet/topology"
	"github.com/ethmcast/mdcs/testnet/workload"
)

// replicates of the bootstrap, enough for intervals of 95 %.
const replicates = 2000

// CompareConfig describes a comparison. All fields but those marked are required.
type CompareConfig struct {
	Name     string             // of the result
	Results  string             // directory that gets a directory Name
	Topology *topology.Topology // before Populate; its Nodes say how many and with which peers
	Modes    []Mode

	// Workload is what to send; the number of nodes, their weights and the seed
	// are filled in. Replay, if not nil, is sent instead.
	Workload workload.Params
	Replay   *workload.File

	// Every mode runs Rounds times with each of the Seeds, in turn with the other
	// modes. A seed is that of keys, loss and workload; the choice of peers is that
	// of the topology with the first one, and another one with each of the others.
	Seeds  []uint64
	Rounds int

	// HalfRate sends the same transactions at half the rate once more, with the
	// first seed. What then differs has to do with the machine.
	HalfRate bool

	Links    LinkBackend
	Routing  Routing
	Versions map[string]string // of the programs, by name

	// Programs; those that the modes run are required.
	Geth, GethStock, GethDirect, RPD string

	Log      *slog.Logger
	Progress func(Progress) // optional, see [Config]
}

// Dir is where the result goes.
func (c *CompareConfig) Dir() string { return filepath.Join(c.Results, c.Name) }

// Compare sends the same transactions in all modes, each time on a fresh net, and
// writes the result: see packages report and plot. The logs of all processes are
// beside it. The figures of a run are written before its net is removed. If a run fails,
// Compare ends there, and returns the summary of the runs before it beside the error, or
// nil if there is none.
func Compare(ctx context.Context, cfg CompareConfig) (*report.Summary, error) {
	if len(cfg.Modes) == 0 || len(cfg.Seeds) == 0 || cfg.Rounds < 1 {
		return nil, fmt.Errorf("compare: %d modes, %d seeds, %d rounds", len(cfg.Modes), len(cfg.Seeds), cfg.Rounds)
	}
	if err := os.MkdirAll(cfg.Dir(), 0o755); err != nil {
		return nil, fmt.Errorf("compare: %w", err)
	}
	// Logs of an earlier run would be taken for those of this one.
	if err := os.RemoveAll(filepath.Join(cfg.Dir(), logsDir)); err != nil {
		return nil, fmt.Errorf("compare: %w", err)
	}
	file, err := report.CreateArrivals(cfg.Dir())
	if err != nil {
		return nil, err
	}
	defer file.Close()
	arrivals := report.NewArrivals(file)

	s, err := cfg.newSummary()
	if err != nil {
		return nil, err
	}
	errRun := cfg.runAll(ctx, s, func(o report.Outcome) error {
		arrivals.Add(o)
		s.Add(o)
		s.Finish(measure.Bootstrap{}) // the intervals take a while, and come at the end
		return errors.Join(arrivals.Flush(), s.Write(cfg.Dir()))
	})
	if len(s.Each) == 0 {
		return nil, errRun
	}
	bootstrap := measure.Bootstrap{Replicates: replicates, Seed: cfg.Seeds[0]}
	s.Finish(bootstrap)
	if cfg.HalfRate && errRun == nil {
		var half *report.Summary
		if half, errRun = cfg.half(ctx, bootstrap); errRun == nil {
			s.CompareHalf(half.Tx)
		}
	}
	return s, errors.Join(errRun, s.Write(cfg.Dir()), plot.Write(cfg.Dir(), s))
}

// runAll runs all modes with all seeds. keep gets the outcome of each run.
func (c *CompareConfig) runAll(ctx context.Context, s *report.Summary, keep func(report.Outcome) error) error {
	s.Planned = len(c.Modes) * len(c.Seeds) * c.Rounds
	for round := 1; round <= c.Rounds; round++ {
		for i := range c.Seeds {
			e, err := c.experiment(i, round)
			if err != nil {
				return err
			}
			// What comes first on a machine may have it better or worse.
			for k := range c.Modes {
				if err := e.run(ctx, c.Modes[(k+round-1+i)%len(c.Modes)], s, keep); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// half runs all modes once with the first seed, at half the rate.
func (c *CompareConfig) half(ctx context.Context, b measure.Bootstrap) (*report.Summary, error) {
	slow := *c
	slow.Seeds = c.Seeds[:1]
	e, err := slow.experiment(0, 1)
	if err != nil {
		return nil, err
	}
	e.name = "half-rate-"
	for i := range e.txs {
		e.txs[i].At *= 2
	}
	s, err := slow.newSummary()
	if err != nil {
		return nil, err
	}
	keep := func(o report.Outcome) error {
		s.Add(o)
		return nil
	}
	for _, mode := range slow.Modes {
		if err := e.run(ctx, mode, s, keep); err != nil {
			return nil, err
		}
	}
	s.Finish(b)
	return s, nil
}

// newSummary has what is known before the first run.
func (c *CompareConfig) newSummary() (*report.Summary, error) {
	e, err := c.experiment(0, 1)
	if err != nil {
		return nil, err
	}
	host, err := HostFacts()
	if err != nil {
		return nil, err
	}
	return &report.Summary{
		Name:     c.Name,
		Started:  time.Now().UTC().Truncate(time.Second),
		Notes:    report.Notes,
		Nodes:    len(e.nodes),
		ASes:     len(e.top.ASes),
		Seed:     c.Seeds[0],
		Seeds:    c.Seeds,
		Rounds:   c.Rounds,
		Host:     host,
		Versions: c.Versions,
		Topology: report.Topology{
			Name:   e.top.Name,
			Nodes:  len(e.nodes),
			RPs:    len(e.top.HostsOf(topology.RP)),
			ASes:   len(e.top.ASes),
			IXPs:   len(e.top.IXPs),
			Degree: e.top.Nodes.Degree,
		},
		Workload: describe(e.txs, c.Workload),
	}, nil
}

// experiment is what all modes have in common.
type experiment struct {
	*CompareConfig
	name  string // starts that of the directory of logs
	round int
	seed  uint64
	top   *topology.Topology
	nodes []topology.Host // to which tx.Node refers
	txs   []workload.Tx
}

// experiment makes that with seed number i.
func (c *CompareConfig) experiment(i, round int) (*experiment, error) {
	population := c.Topology.Nodes
	population.Seed += uint64(i)
	top, err := c.Topology.Populate(population)
	if err != nil {
		return nil, err
	}
	e := &experiment{
		CompareConfig: c,
		round:         round,
		seed:          c.Seeds[i],
		top:           top,
		nodes:         top.HostsOf(topology.Geth),
	}
	if c.Replay != nil {
		if c.Replay.Nodes != len(e.nodes) || c.Replay.ChainID != beacon.ChainID {
			return nil, fmt.Errorf("replay: the file is for %d nodes of chain %d, the network has %d of chain %d",
				c.Replay.Nodes, c.Replay.ChainID, len(e.nodes), beacon.ChainID)
		}
		e.txs = slices.Clone(c.Replay.Txs)
		return e, nil
	}
	ases, share := make([]string, len(e.nodes)), make(map[string]float64)
	for k, h := range e.nodes {
		ases[k] = h.AS
	}
	for _, a := range top.ASes {
		share[a.Name] = a.Share
	}
	p := c.Workload
	p.ChainID, p.Seed, p.Nodes, p.Weights = beacon.ChainID, e.seed, len(e.nodes), workload.Weights(ases, share)
	e.txs, err = workload.Plan(p)
	return e, err
}

// describe sums up a workload for the result.
func describe(txs []workload.Tx, p workload.Params) report.Workload {
	// What gossip does not send unasked (geth's eth/handler.go, txMaxBroadcastSize).
	const announced = 4096
	w := report.Workload{
		Txs:        len(txs),
		Rate:       p.Rate,
		Burst:      p.Burst,
		BurstEvery: p.BurstEvery.Seconds(),
		Kinds:      make(map[string]int),
	}
	var sizes []int
	total := 0
	for _, tx := range txs {
		w.Kinds[string(tx.Kind)]++
		sizes = append(sizes, len(tx.Raw))
		total += len(tx.Raw)
		if len(tx.Raw) > announced {
			w.Announced++
		}
	}
	w.MinBytes, w.MaxBytes = slices.Min(sizes), slices.Max(sizes)
	w.MeanBytes = float64(total) / float64(len(txs))
	return w
}
