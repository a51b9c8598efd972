// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/testnet/bench"
)

var benchCommand = &cli.Command{
	Name:            "bench",
	Category:        otherTools,
	Usage:           "measure replication points on this machine, and simulated ones",
	HideHelpCommand: true,
	Subcommands:     []*cli.Command{fanoutCommand, peersCommand, meshCommand},
	Action:          unknownCommand,
}

var (
	benchNameFlag   = &cli.StringFlag{Name: "name", Value: "fanout", Usage: "name of the result"}
	enginesFlag     = &cli.StringFlag{Name: "engines", Usage: "what to measure, separated by commas", DefaultText: "all"}
	subscribersFlag = &cli.StringFlag{Name: "subscribers", Usage: "numbers of subscribers, ascending, separated by commas", DefaultText: list(bench.Full().Subscribers)}
	burstsFlag      = &cli.StringFlag{Name: "bursts", Usage: "numbers of datagrams back to back, ascending, separated by commas", DefaultText: list(bench.Full().Bursts)}
	roundsFlag      = &cli.IntFlag{Name: "rounds", Usage: "measurements of everything in turn; 7 or more for figures to rely on", DefaultText: strconv.Itoa(bench.Full().Rounds)}
	sustainFlag     = &cli.DurationFlag{Name: "sustain", Usage: "time of each sustained load: for each engine and number of subscribers at 60 % of what that engine can do, and for xdp beside bare with up to 4 datagrams in flight, as many as bare bears without loss; 0 for none", DefaultText: bench.Full().Sustain.String()}
	quickFlag       = &cli.BoolFlag{Name: "quick", Usage: "measure little, in a few seconds"}
	benchJSONFlag   = &cli.BoolFlag{Name: "json", Usage: "print JSON instead of a table"}
)

var fanoutCommand = &cli.Command{
	Name:  "fanout",
	Usage: "copy datagrams to 1 to 10,000 subscribers by each engine, and by less than an engine does",
	Flags: []cli.Flag{
		benchNameFlag, enginesFlag, subscribersFlag, burstsFlag, roundsFlag, sustainFlag,
		quickFlag, resultsFlag, benchJSONFlag,
	},
	Action: fanout,
}

func fanout(c *cli.Context) error {
	if c.Args().Present() {
		return fmt.Errorf("unexpected argument %q", c.Args().First())
	}
	cfg, err := fanoutConfig(c)
	if err != nil {
		return err
	}
	if !isRoot() {
		return bench.ErrNotRoot
	}
	result, err := bench.Fanout(c.Context, cfg)
	if result == nil {
		return err
	}
	if err == nil && len(result.Failed) > 0 {
		err = fmt.Errorf("%d of the measurements failed, the first by: %s", len(result.Failed), result.Failed[0].Error)
	}
	return errors.Join(err, printFanout(c, &cfg, result))
}

func printFanout(c *cli.Context, cfg *bench.Config, result *bench.Result) error {
	if err := result.Write(cfg.Dir()); err != nil {
		return err
	}
	fmt.Fprintln(c.App.ErrWriter, "result in", cfg.Dir())
	if !c.Bool(benchJSONFlag.Name) {
		return result.Table(c.App.Writer)
	}
	text, err := result.JSON()
	if err != nil {
		return err
	}
	_, err = c.App.Writer.Write(text)
	return err
}

// fanoutConfig checks the flags.
func fanoutConfig(c *cli.Context) (bench.Config, error) {
	cfg := bench.Full()
	if c.Bool(quickFlag.Name) {
		cfg = bench.Quick()
	}
	cfg.Name = c.String(benchNameFlag.Name)
	cfg.Results = c.String(resultsFlag.Name)
	cfg.Log = slog.New(slog.NewTextHandler(c.App.ErrWriter, nil))
	if cfg.Name == "." || cfg.Name == ".." || cfg.Name != filepath.Base(cfg.Name) {
		return cfg, fmt.Errorf("--name %q is no name of a directory", cfg.Name)
	}
	if c.IsSet(enginesFlag.Name) {
		cfg.Engines = strings.Split(c.String(enginesFlag.Name), ",")
	}
	for _, x := range []struct {
		flag string
		to   *[]int
	}{{subscribersFlag.Name, &cfg.Subscribers}, {burstsFlag.Name, &cfg.Bursts}} {
		if !c.IsSet(x.flag) {
			continue
		}
		var err error
		if *x.to, err = numbers(c.String(x.flag)); err != nil {
			return cfg, fmt.Errorf("--%s: %w", x.flag, err)
		}
	}
	if c.IsSet(roundsFlag.Name) {
		cfg.Rounds = c.Int(roundsFlag.Name)
	}
	if c.IsSet(sustainFlag.Name) {
		cfg.Sustain = c.Duration(sustainFlag.Name)
	}
	return cfg, cfg.Check()
}

// numbers reads integers that are separated by commas.
func numbers(s string) (all []int, err error) {
	for _, field := range strings.Split(s, ",") {
		n, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("%q is no number", field)
		}
		all = append(all, n)
	}
	return all, nil
}

// list is the inverse of numbers.
func list(all []int) string {
	fields := make([]string, len(all))
	for i, n := range all {
		fields[i] = strconv.Itoa(n)
	}
	return strings.Join(fields, ",")
}
