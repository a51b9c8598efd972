// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/testnet"
	"github.com/ethmcast/mdcs/testnet/netns"
	"github.com/ethmcast/mdcs/testnet/topology"
)

var testnetCommand = &cli.Command{
	Name:            "testnet",
	Usage:           "run experiments on a private network in network namespaces (needs root)",
	HideHelpCommand: true,
	Subcommands:     []*cli.Command{compareCommand, cleanCommand},
	Action:          unknownCommand,
}

var (
	nameFlag      = &cli.StringFlag{Name: "name", Value: "two-as", Usage: "name of the result"}
	resultsFlag   = &cli.StringFlag{Name: "results", Value: "results", Usage: "directory of all results"}
	txsFlag       = &cli.IntFlag{Name: "txs", Value: 300, Usage: "number of transactions"}
	rateFlag      = &cli.Float64Flag{Name: "rate", Value: 20, Usage: "transactions per second; keep nodes x rate below 300 per CPU"}
	seedFlag      = &cli.Uint64Flag{Name: "seed", Value: 1, Usage: "seed of keys and workload"}
	modesFlag     = &cli.StringFlag{Name: "modes", Value: "gossip,mdcs-socket,mdcs", Usage: "what to compare, separated by commas"}
	linksFlag     = &cli.StringFlag{Name: "links", Value: "auto", Usage: "what delays the links: auto, netem or wire"}
	gethFlag      = &cli.StringFlag{Name: "geth", Value: "build/geth", Usage: "patched geth"}
	gethStockFlag = &cli.StringFlag{Name: "geth-stock", Value: "build/geth-stock", Usage: "geth as released"}
	rpdFlag       = &cli.StringFlag{Name: "rpd", Value: "build/rpd", Usage: "replication point daemon"}
	outputFlag    = &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "table", Usage: "table or json"}
)

var compareCommand = &cli.Command{
	Name:  "compare",
	Usage: "diffuse the same transactions by gossip and by mDCS, and measure delay and bytes",
	Flags: []cli.Flag{
		nameFlag, txsFlag, rateFlag, seedFlag, modesFlag, linksFlag,
		gethFlag, gethStockFlag, rpdFlag, resultsFlag, outputFlag,
	},
	Action: compare,
}

// isRoot is replaced by tests.
var isRoot = func() bool { return os.Geteuid() == 0 }

func compare(c *cli.Context) error {
	if c.Args().Present() {
		return fmt.Errorf("unexpected argument %q", c.Args().First())
	}
	output := c.String(outputFlag.Name)
	if output != "table" && output != "json" {
		return fmt.Errorf("--output %q is neither table nor json", output)
	}
	cfg, err := compareConfig(c)
	if err != nil {
		return err
	}
	if !isRoot() {
		return testnet.ErrNotRoot
	}
	if cfg.Versions, err = versions(c.Context, &cfg); err != nil {
		return err
	}
	summary, err := testnet.Compare(c.Context, cfg)
	if err != nil {
		return err
	}
	if output == "json" {
		text, err := summary.JSON()
		if err != nil {
			return err
		}
		_, err = c.App.Writer.Write(text)
		return err
	}
	if err := summary.Table(c.App.Writer); err != nil {
		return err
	}
	fmt.Fprintln(c.App.ErrWriter, "result in", cfg.Dir())
	return nil
}

// compareConfig checks the flags.
func compareConfig(c *cli.Context) (testnet.CompareConfig, error) {
	cfg := testnet.CompareConfig{
		Name:      c.String(nameFlag.Name),
		Results:   c.String(resultsFlag.Name),
		Topology:  topology.TwoAS(),
		Txs:       c.Int(txsFlag.Name),
		Rate:      c.Float64(rateFlag.Name),
		Seed:      c.Uint64(seedFlag.Name),
		Geth:      c.String(gethFlag.Name),
		GethStock: c.String(gethStockFlag.Name),
		RPD:       c.String(rpdFlag.Name),
		Log:       slog.New(slog.NewTextHandler(c.App.ErrWriter, nil)),
	}
	if cfg.Name == "." || cfg.Name == ".." || cfg.Name != filepath.Base(cfg.Name) {
		return cfg, fmt.Errorf("--name %q is no name of a directory", cfg.Name)
	}
	if cfg.Txs < 1 {
		return cfg, fmt.Errorf("--txs %d is below 1", cfg.Txs)
	}
	if !(cfg.Rate > 0) {
		return cfg, fmt.Errorf("--rate %g is not positive", cfg.Rate)
	}
	var err error
	if cfg.Links, err = testnet.ParseLinkBackend(c.String(linksFlag.Name)); err != nil {
		return cfg, fmt.Errorf("--links: %w", err)
	}
	for _, s := range strings.Split(c.String(modesFlag.Name), ",") {
		mode, err := testnet.ParseMode(s)
		if err != nil {
			return cfg, fmt.Errorf("--modes: %w", err)
		}
		if slices.Contains(cfg.Modes, mode) {
			return cfg, fmt.Errorf("--modes: %s stands there twice", mode)
		}
		cfg.Modes = append(cfg.Modes, mode)
	}
	for _, p := range programs(&cfg) {
		// The processes run in directories of their own.
		path, err := filepath.Abs(*p.path)
		if err != nil {
			return cfg, err
		}
		*p.path = path
		switch fi, err := os.Stat(path); {
		case errors.Is(err, os.ErrNotExist):
			return cfg, fmt.Errorf("--%s: %s does not exist; build it with make", p.flag, path)
		case err != nil:
			return cfg, fmt.Errorf("--%s: %w", p.flag, err)
		case fi.IsDir() || fi.Mode()&0o111 == 0:
			return cfg, fmt.Errorf("--%s: %s is no program", p.flag, path)
		}
	}
	return cfg, nil
}

// program is a binary that a comparison needs.
type program struct {
	flag       string
	path       *string
	versionArg string
}

func programs(cfg *testnet.CompareConfig) []program {
	var list []program
	if slices.Contains(cfg.Modes, testnet.Gossip) {
		list = append(list, program{gethStockFlag.Name, &cfg.GethStock, "version"})
	}
	if slices.Contains(cfg.Modes, testnet.MDCS) {
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

var cleanCommand = &cli.Command{
	Name:  "clean",
	Usage: "remove namespaces, processes and data that crashed runs left on this machine",
	Action: func(c *cli.Context) error {
		if !isRoot() {
			return testnet.ErrNotRoot
		}
		prefixes, err := netns.CleanStale(netns.StateDir)
		for _, p := range prefixes {
			fmt.Fprintln(c.App.Writer, "removed", p+"*")
		}
		return err
	},
}
