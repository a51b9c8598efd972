// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/testnet"
	"github.com/ethmcast/mdcs/testnet/report"
	"github.com/ethmcast/mdcs/testnet/topology"
	"github.com/ethmcast/mdcs/testnet/workload"
)

// preset is the size of a comparison.
type preset struct {
	modes      []testnet.Mode
	txs, seeds int
	half       bool
}

var presets = map[string]preset{
	"quick": {modes: []testnet.Mode{testnet.Gossip, testnet.MDCS, testnet.MDCSSocket, testnet.Ideal}, txs: 400, seeds: 1},
	"full":  {modes: testnet.Modes, txs: 500, seeds: 3, half: true},
}

const asPreset = "as the preset says"

var (
	presetFlag     = &cli.StringFlag{Name: "preset", Value: "quick", Usage: "quick: gossip, mDCS with both engines, and ideal multicast, once; full: all modes, three seeds, and once more at half the rate"}
	resultFlag     = &cli.StringFlag{Name: "name", Usage: "`NAME` of the result", DefaultText: "that of the topology"}
	resultsFlag    = &cli.StringFlag{Name: "results", Value: "results", Usage: "`DIRECTORY` of all results"}
	modesFlag      = &cli.StringFlag{Name: "modes", Usage: "what to compare, separated by commas: " + modeNames(testnet.Modes), DefaultText: asPreset}
	txsFlag        = &cli.IntFlag{Name: "txs", Usage: "`NUMBER` of transactions of a run", DefaultText: asPreset}
	rateFlag       = &cli.Float64Flag{Name: "rate", Value: 25, Usage: "transactions per second; keep nodes x rate below 300 per CPU"}
	burstFlag      = &cli.IntFlag{Name: "burst", Usage: "`NUMBER` of transactions sent at once now and then, 0: none"}
	burstEveryFlag = &cli.DurationFlag{Name: "burst-every", Value: 4 * time.Second, Usage: "time between bursts"}
	bumpsFlag      = &cli.Float64Flag{Name: "bumps", Value: 0.03, Usage: "share of transactions that replace another one by a higher fee"}
	seedFlag       = &cli.Uint64Flag{Name: "seed", Value: 1, Usage: "first seed of keys, loss and workload"}
	seedsFlag      = &cli.IntFlag{Name: "seeds", Usage: "`NUMBER` of seeds, each with peerings of its own", DefaultText: asPreset}
	repeatFlag     = &cli.IntFlag{Name: "rounds", Value: 1, Usage: "runs of each mode with each seed, in turn with the other modes"}
	halfFlag       = &cli.BoolFlag{Name: "half-rate", Usage: "run once more at half the rate, and name the figures that depend on it", DefaultText: asPreset}
	sweepFlag      = &cli.StringFlag{Name: "sweep", Usage: "one comparison for each value: `KEY=A,B,C` with KEY " + strings.Join(testnet.SweepKeys(), ", ")}
	replayFlag     = &cli.StringFlag{Name: "replay", Usage: "send the workload of a `FILE`"}
	saveFlag       = &cli.StringFlag{Name: "save-workload", Usage: "write the workload of the first seed to a `FILE`, and run nothing"}
	gethDirectFlag = &cli.StringFlag{Name: "geth-direct", Value: "build/geth-direct", Usage: "geth that sends to all peers"}
)

func modeNames(modes []testnet.Mode) string {
	names := make([]string, len(modes))
	for i, m := range modes {
		names[i] = string(m)
	}
	return strings.Join(names, ",")
}

var compareCommand = &cli.Command{
	Name:  "compare",
	Usage: "diffuse the same transactions in several ways, and measure delay and bytes",
	Flags: []cli.Flag{
		presetFlag, modesFlag, topologyFlag, nodesFlag, degreeFlag,
		txsFlag, rateFlag, burstFlag, burstEveryFlag, bumpsFlag, replayFlag, saveFlag,
		seedFlag, seedsFlag, repeatFlag, halfFlag, sweepFlag, linksFlag, routingFlag,
		gethFlag, gethStockFlag, gethDirectFlag, rpdFlag, resultFlag, resultsFlag, outputFlag,
	},
	Action: compare,
}

func compare(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	output := c.String(outputFlag.Name)
	if output != "table" && output != "json" {
		return fmt.Errorf("--output %q is neither table nor json", output)
	}
	cfg, err := compareConfig(c)
	if err != nil {
		return err
	}
	if file := c.String(saveFlag.Name); file != "" {
		return saveWorkload(&cfg, file)
	}
	configs := []testnet.CompareConfig{cfg}
	if s := c.String(sweepFlag.Name); s != "" {
		if configs, err = cfg.Sweep(s); err != nil {
			return fmt.Errorf("--%s: %w", sweepFlag.Name, err)
		}
	}
	if !isRoot() {
		return testnet.ErrNotRoot
	}
	found, err := versions(c.Context, &cfg)
	if err != nil {
		return err
	}
	bar := newProgressBar(c.App.ErrWriter)
	defer bar.end()
	for _, cfg := range configs {
		cfg.Versions, cfg.Progress = found, bar.show
		summary, err := testnet.Compare(c.Context, cfg)
		bar.end()
		if summary != nil { // also of the runs before one that failed
			err = errors.Join(err, printSummary(c.App.Writer, summary, output))
			fmt.Fprintln(c.App.ErrWriter, "result in", cfg.Dir())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func printSummary(w io.Writer, s *report.Summary, output string) error {
	if output == "table" {
		return s.Table(w)
	}
	text, err := s.JSON()
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

// compareConfig checks the flags.
func compareConfig(c *cli.Context) (testnet.CompareConfig, error) {
	cfg := testnet.CompareConfig{
		Name:    c.String(resultFlag.Name),
		Results: c.String(resultsFlag.Name),
		Workload: workload.Params{
			Rate:       c.Float64(rateFlag.Name),
			Burst:      c.Int(burstFlag.Name),
			BurstEvery: c.Duration(burstEveryFlag.Name),
			Bumps:      c.Float64(bumpsFlag.Name),
		},
		Rounds:     c.Int(repeatFlag.Name),
		Geth:       c.String(gethFlag.Name),
		GethStock:  c.String(gethStockFlag.Name),
		GethDirect: c.String(gethDirectFlag.Name),
		RPD:        c.String(rpdFlag.Name),
		Log:        slog.New(slog.NewTextHandler(c.App.ErrWriter, nil)),
	}
	p, ok := presets[c.String(presetFlag.Name)]
	if !ok {
		return cfg, fmt.Errorf("--preset %q is neither quick nor full", c.String(presetFlag.Name))
	}
	cfg.Modes, cfg.Workload.Txs, cfg.HalfRate = p.modes, p.txs, p.half
	if c.IsSet(txsFlag.Name) {
		cfg.Workload.Txs = c.Int(txsFlag.Name)
	}
	if c.IsSet(seedsFlag.Name) {
		p.seeds = c.Int(seedsFlag.Name)
	}
	if c.IsSet(halfFlag.Name) {
		cfg.HalfRate = c.Bool(halfFlag.Name)
	}
	switch {
	case cfg.Workload.Txs < 1:
		return cfg, fmt.Errorf("--txs %d is below 1", cfg.Workload.Txs)
	case !(cfg.Workload.Rate > 0):
		return cfg, fmt.Errorf("--rate %g is not positive", cfg.Workload.Rate)
	case p.seeds < 1:
		return cfg, fmt.Errorf("--seeds %d is below 1", p.seeds)
	case cfg.Rounds < 1:
		return cfg, fmt.Errorf("--rounds %d is below 1", cfg.Rounds)
	}
	if cfg.Workload.Burst == 0 {
		cfg.Workload.BurstEvery = 0
	}
	for i := range p.seeds {
		cfg.Seeds = append(cfg.Seeds, c.Uint64(seedFlag.Name)+uint64(i))
	}

	var err error
	if cfg.Topology, err = describedTopology(c); err != nil {
		return cfg, err
	}
	if cfg.Name == "" {
		cfg.Name = cfg.Topology.Name
	}
	if cfg.Name == "." || cfg.Name == ".." || cfg.Name != filepath.Base(cfg.Name) {
		return cfg, fmt.Errorf("--name %q is no name of a directory", cfg.Name)
	}
	if cfg.Links, err = testnet.ParseLinkBackend(c.String(linksFlag.Name)); err != nil {
		return cfg, fmt.Errorf("--links: %w", err)
	}
	if cfg.Routing, err = testnet.ParseRouting(c.String(routingFlag.Name)); err != nil {
		return cfg, fmt.Errorf("--routing: %w", err)
	}
	if c.IsSet(modesFlag.Name) {
		if cfg.Modes, err = parseModes(c.String(modesFlag.Name)); err != nil {
			return cfg, fmt.Errorf("--modes: %w", err)
		}
	}
	if file := c.String(replayFlag.Name); file != "" {
		if cfg.Replay, err = readWorkload(file); err != nil {
			return cfg, fmt.Errorf("--replay: %w", err)
		}
	}
	for _, p := range programs(&cfg) {
		if err := findProgram(p.flag, p.path); err != nil {
			return cfg, err
		}
	}
	return cfg, nil
}

// describedTopology reads the topology that the flags name, without its nodes.
func describedTopology(c *cli.Context) (*topology.Topology, error) {
	top, err := topology.Load(c.String(topologyFlag.Name))
	if err != nil {
		return nil, err
	}
	if c.IsSet(nodesFlag.Name) {
		top.Nodes.Count = c.Int(nodesFlag.Name)
	}
	if c.IsSet(degreeFlag.Name) {
		top.Nodes.Degree = c.Int(degreeFlag.Name)
	}
	return top, nil
}

func parseModes(names string) ([]testnet.Mode, error) {
	var modes []testnet.Mode
	for name := range strings.SplitSeq(names, ",") {
		mode, err := testnet.ParseMode(name)
		if err != nil {
			return nil, err
		}
		if slices.Contains(modes, mode) {
			return nil, fmt.Errorf("%s stands there twice", mode)
		}
		modes = append(modes, mode)
	}
	return modes, nil
}

func readWorkload(file string) (*workload.File, error) {
	in, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	f, err := workload.Read(in)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &f, nil
}

func saveWorkload(cfg *testnet.CompareConfig, file string) (err error) {
	f, err := cfg.Planned()
	if err != nil {
		return err
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(workload.Write(out, f), out.Close())
}

// program is a binary that a comparison needs.
type program struct {
	flag       string
	path       *string
	versionArg string
}

func programs(cfg *testnet.CompareConfig) []program {
	runs := func(modes ...testnet.Mode) bool {
		return slices.ContainsFunc(modes, func(m testnet.Mode) bool { return slices.Contains(cfg.Modes, m) })
	}
	var list []program
	if runs(testnet.Gossip, testnet.GossipRelays) {
		list = append(list, program{gethStockFlag.Name, &cfg.GethStock, "version"})
	}
	if runs(testnet.GossipDirect) {
		list = append(list, program{gethDirectFlag.Name, &cfg.GethDirect, "version"})
	}
	if runs(testnet.MDCS, testnet.MDCSSocket) {
		list = append(list,
			program{gethFlag.Name, &cfg.Geth, "version"},
			program{rpdFlag.Name, &cfg.RPD, "--version"})
	}
	return list
}

func versions(ctx context.Context, cfg *testnet.CompareConfig) (map[string]string, error) {
	found := map[string]string{"mdcs": version}
	for _, p := range programs(cfg) {
		v, err := testnet.Version(ctx, *p.path, p.versionArg)
		if err != nil {
			return nil, err
		}
		found[p.flag] = v
	}
	return found, nil
}
