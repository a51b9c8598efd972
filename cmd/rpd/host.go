// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/rp/config"
	"github.com/ethmcast/mdcs/rp/datapath/xdp"
	"github.com/ethmcast/mdcs/rp/host"
)

// hostCommand tells what this machine lacks for the XDP engine.
func hostCommand(stdout io.Writer) *cli.Command {
	peerFlag := &cli.StringFlag{Name: "peer", Usage: "neighbour that answers echo requests, default: the default router's `ADDRESS`"}
	return &cli.Command{
		Name:  "host",
		Usage: "look at this machine",
		Subcommands: []*cli.Command{{
			Name:  "check",
			Usage: "tell what the XDP engine needs and does not find, and send frames through the device and back to prove it",
			Flags: []cli.Flag{configFlag, peerFlag},
			Action: func(c *cli.Context) error {
				cfg, err := config.Load(c.String(configFlag.Name))
				if err != nil {
					return err
				}
				var peer netip.Addr
				if text := c.String(peerFlag.Name); text != "" {
					if peer, err = netip.ParseAddr(text); err != nil {
						return fmt.Errorf("--%s: %w", peerFlag.Name, err)
					}
				}
				report := host.Basics(cfg.Node.Address)
				if report.Err() == nil {
					report = append(report, host.Live(cfg.Node.Address, peer)...)
				}
				missing := report.Err()
				if pin := cfg.Datapath.Pin; pin != "" { // the engine runs without
					report = append(report, host.Finding{What: "pin", Err: xdp.CheckPin(pin), Detail: pin + ": outlives rpd"})
				}
				fmt.Fprint(stdout, report)
				if missing != nil {
					return errors.New("the xdp engine cannot run here; the socket engine can")
				}
				return nil
			},
		}},
	}
}
