// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/testnet"
	"github.com/ethmcast/mdcs/testnet/control"
	"github.com/ethmcast/mdcs/testnet/netns"
)

var testnetCommand = &cli.Command{
	Name:            "testnet",
	Category:        otherTools,
	Usage:           "run experiments on a private network in network namespaces (needs root)",
	HideHelpCommand: true,
	Subcommands: []*cli.Command{
		upCommand, statusCommand, execCommand, linkCommand, countersCommand, downCommand, compareCommand,
		topologiesCommand, importCommand, exportCommand, cleanCommand,
	},
	Action: unknownCommand,
}

var (
	linksFlag     = &cli.StringFlag{Name: "links", Value: "wire", Usage: "what delays the links: wire, a delay line in user space that also counts, or netem, with which the replication points have the socket engine and nobody counts copies"}
	gethFlag      = &cli.StringFlag{Name: "geth", Value: "build/geth", Usage: "patched geth"}
	gethStockFlag = &cli.StringFlag{Name: "geth-stock", Value: "build/geth-stock", Usage: "geth as released"}
	rpdFlag       = &cli.StringFlag{Name: "rpd", Value: "build/rpd", Usage: "replication point daemon"}
	outputFlag    = &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "table", Usage: "table or json"}
)

// isRoot is replaced by tests.
var isRoot = func() bool { return os.Geteuid() == 0 }

// findProgram makes the path of a program absolute, as processes run in
// directories of their own, and checks that there is one.
func findProgram(flag string, program *string) error {
	path, err := filepath.Abs(*program)
	if err != nil {
		return err
	}
	*program = path
	switch fi, err := os.Stat(path); {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("--%s: %s does not exist; build it with make", flag, path)
	case err != nil:
		return fmt.Errorf("--%s: %w", flag, err)
	case fi.IsDir() || fi.Mode()&0o111 == 0:
		return fmt.Errorf("--%s: %s is no program", flag, path)
	}
	return nil
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
		_, errNets := control.Nets(netns.StateDir) // removes their files
		return errors.Join(err, errNets)
	},
}
