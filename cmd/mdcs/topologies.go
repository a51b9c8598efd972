// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/testnet/bgp"
	"github.com/ethmcast/mdcs/testnet/topology"
)

var topologiesCommand = &cli.Command{
	Name:   "topologies",
	Usage:  "list the topologies that are shipped",
	Flags:  []cli.Flag{outputFlag},
	Before: checkOutput,
	Action: func(c *cli.Context) error {
		if err := noArguments(c); err != nil {
			return err
		}
		type entry struct {
			Name  string `json:"name"`
			ASes  int    `json:"ases"`
			IXPs  int    `json:"ixps"`
			Links int    `json:"links"`
			RPs   int    `json:"rps"`
			Nodes int    `json:"nodes"` // that the file asks for
		}
		var list []entry
		for _, name := range topology.Names() {
			t, err := topology.Load(name)
			if err != nil {
				return err
			}
			list = append(list, entry{name, len(t.ASes), len(t.IXPs), len(t.Links), len(t.HostsOf(topology.RP)), t.Nodes.Count})
		}
		return output(c, list, func(w io.Writer) {
			row(w, "NAME", "ASES", "IXPS", "LINKS", "RPS", "NODES")
			for _, e := range list {
				row(w, e.Name, e.ASes, e.IXPs, e.Links, e.RPs, e.Nodes)
			}
		})
	},
}

var importCommand = &cli.Command{
	Name:            "import",
	Usage:           "make a topology file of another emulator's configuration",
	HideHelpCommand: true,
	Action:          unknownCommand,
	Subcommands: []*cli.Command{{
		Name:      "mini-internet",
		Usage:     "read the configuration of nsg-ethz/mini_internet_project and write a topology to standard output",
		ArgsUsage: "DIRECTORY",
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return errors.New("need the directory with the configuration files")
			}
			t, skipped, err := topology.ImportMiniInternet(os.DirFS(c.Args().First()))
			if err != nil {
				return fmt.Errorf("%s: %w", c.Args().First(), err)
			}
			for _, s := range skipped {
				fmt.Fprintln(c.App.ErrWriter, "skipped:", s)
			}
			_, err = c.App.Writer.Write(t.TOML())
			return err
		},
	}},
}

var directoryFlag = &cli.StringFlag{Name: "directory", Usage: "where the files go", Required: true}

var exportCommand = &cli.Command{
	Name:            "export",
	Usage:           "write a topology in other forms",
	HideHelpCommand: true,
	Action:          unknownCommand,
	Subcommands: []*cli.Command{
		exportTo("dot", "for Graphviz", func(t *topology.Topology) []byte { return []byte(t.DOT()) }),
		exportTo("svg", "a picture", func(t *topology.Topology) []byte { return []byte(t.SVG()) }),
		exportTo("toml", "with all defaults written out", (*topology.Topology).TOML),
		exportTo("seed", "a program for the SEED emulator", (*topology.Topology).SEED),
		{
			Name:  "containerlab",
			Usage: "a containerlab topology with the configuration of BIRD",
			Flags: append([]cli.Flag{directoryFlag}, topologyFlags...),
			Action: func(c *cli.Context) error {
				if err := noArguments(c); err != nil {
					return err
				}
				t, err := loadTopology(c)
				if err != nil {
					return err
				}
				files := t.Containerlab(func(router string) []byte { return bgp.Config(t, router) })
				for _, name := range slices.Sorted(maps.Keys(files)) {
					path := filepath.Join(c.String(directoryFlag.Name), filepath.FromSlash(name))
					if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
						return err
					}
					if err := os.WriteFile(path, files[name], 0o644); err != nil {
						return err
					}
					fmt.Fprintln(c.App.Writer, path)
				}
				return nil
			},
		},
	},
}

// exportTo is a command that writes one text to standard output.
func exportTo(name, usage string, text func(*topology.Topology) []byte) *cli.Command {
	return &cli.Command{
		Name:  name,
		Usage: usage,
		Flags: topologyFlags,
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			t, err := loadTopology(c)
			if err != nil {
				return err
			}
			_, err = c.App.Writer.Write(text(t))
			return err
		},
	}
}
