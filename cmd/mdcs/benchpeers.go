// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/testnet/bench"
	"github.com/ethmcast/mdcs/testnet/lightpeer"
)

var (
	peersNameFlag   = &cli.StringFlag{Name: "name", Value: "peers", Usage: "name of the result"}
	peersEngineFlag = &cli.StringFlag{Name: "engine", Value: bench.XDP, Usage: "datapath of the replication point: xdp or socket"}
	peersFlag       = &cli.StringFlag{Name: "peers", Value: "1000", Usage: fmt.Sprintf("numbers of peers, ascending, separated by commas, up to %d", bench.MaxPeers)}
	peersRateFlag   = &cli.Float64Flag{Name: "rate", Value: 10, Usage: "datagrams per second of the steady state"}
	steadyFlag      = &cli.DurationFlag{Name: "steady", Value: 30 * time.Second, Usage: "length of the steady state; peers announce themselves every 15s"}
)

var peersCommand = &cli.Command{
	Name:  "peers",
	Usage: "let up to 10,000 peers join one rpd, publish, and join again after a restart",
	Flags: []cli.Flag{
		peersNameFlag, peersEngineFlag, peersFlag, peersRateFlag, steadyFlag, rpdFlag, resultsFlag, benchJSONFlag,
	},
	Action: benchPeers,
}

func benchPeers(c *cli.Context) error {
	if c.Args().Present() {
		return fmt.Errorf("unexpected argument %q", c.Args().First())
	}
	cfg, err := peersConfig(c)
	if err != nil {
		return err
	}
	if !isRoot() {
		return bench.ErrNotRoot
	}
	if _, err := os.Stat(cfg.RPD); err != nil {
		return fmt.Errorf("--%s: %w", rpdFlag.Name, err)
	}
	result, err := bench.Peers(c.Context, cfg)
	if result == nil || len(result.Rows) == 0 {
		return err
	}
	if err := errors.Join(err, result.Write(cfg.Dir())); err != nil {
		return err
	}
	fmt.Fprintln(c.App.ErrWriter, "result in", cfg.Dir())
	if !c.Bool(benchJSONFlag.Name) {
		return result.Table(c.App.Writer)
	}
	text, err := result.RowsJSON()
	if err != nil {
		return err
	}
	_, err = c.App.Writer.Write(text)
	return err
}

// peersConfig checks the flags.
func peersConfig(c *cli.Context) (cfg bench.PeersConfig, err error) {
	cfg = bench.PeersConfig{
		Name:    c.String(peersNameFlag.Name),
		Results: c.String(resultsFlag.Name),
		RPD:     c.String(rpdFlag.Name),
		Engine:  c.String(peersEngineFlag.Name),
		Rate:    c.Float64(peersRateFlag.Name),
		Steady:  c.Duration(steadyFlag.Name),
		Log:     slog.New(slog.NewTextHandler(c.App.ErrWriter, nil)),
	}
	if cfg.Name == "." || cfg.Name == ".." || cfg.Name != filepath.Base(cfg.Name) {
		return cfg, fmt.Errorf("--name %q is no name of a directory", cfg.Name)
	}
	if cfg.Peers, err = numbers(c.String(peersFlag.Name)); err != nil {
		return cfg, fmt.Errorf("--%s: %w", peersFlag.Name, err)
	}
	return cfg, cfg.Check()
}

// lightpeersCommand is what the benchmark starts this program with, inside the
// namespace of the peers.
var lightpeersCommand = &cli.Command{
	Name:   lightpeer.Command,
	Hidden: true,
	Action: func(c *cli.Context) error {
		if c.Args().Present() {
			return fmt.Errorf("%s takes no arguments", lightpeer.Command)
		}
		return lightpeer.Main(os.Stdin, c.App.Writer)
	},
}
