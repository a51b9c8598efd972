// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/config"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp"
	"github.com/ethmcast/mdcs/rp/host"
)

// hostCommand tells what this machine lacks for the XDP engine.
func hostCommand(stdout io.Writer) *cli.Command {
	peerFlag := &cli.StringFlag{Name: "peer", Usage: "host on a link that answers echo requests, default: the default router's `ADDRESS`"}
	return &cli.Command{
		Name:  "host",
		Usage: "look at this machine",
		Subcommands: []*cli.Command{{
			Name:  "check",
			Usage: "tell what the XDP engine needs and does not find, and send frames through the device and back to prove it",
			Flags: []cli.Flag{configFlag, peerFlag},
			Action: func(c *cli.Context) error {
				file, err := configFile(c)
				if err != nil {
					return err
				}
				cfg, err := config.Load(file)
				if err != nil {
					return err
				}
				var peer netip.Addr
				if text := c.String(peerFlag.Name); text != "" {
					if peer, err = netip.ParseAddr(text); err != nil {
						return fmt.Errorf("--%s: %w", peerFlag.Name, err)
					}
				}
				report, runs, lacks := checkHost(c.Context, cfg, peer, stdout)
				fmt.Fprint(stdout, report)
				if len(lacks) > 0 {
					fmt.Fprintf(stdout, "without  %s\n", strings.Join(lacks, "\nwithout  "))
				}
				if err := report.Err(); err != nil && runs {
					return errors.New("the xdp engine runs here, but its copies do not arrive: peers behind this way are refused")
				} else if err != nil && cfg.Datapath.Engine == "xdp" {
					return errors.New("the xdp engine cannot run here as it is configured")
				} else if err != nil {
					return errors.New("the xdp engine cannot run here as it is configured; the socket engine can")
				}
				return nil
			},
		}},
	}
}

// checkWait is how long host check waits for an address, enough for a check for duplicates.
const checkWait = 5 * time.Second

// liveTimeout is how long host check waits for the answer of a host on a link.
const liveTimeout = 3 * time.Second

// checkHost does what rpd does to open the XDP engine, but for the pins, and sends frames by
// it. It says what is missing, whether the engine runs, and what it runs without.
func checkHost(ctx context.Context, cfg *config.Config, peer netip.Addr, stdout io.Writer) (report host.Report, runs bool, lacks []string) {
	note := func(what string, err error, format string, args ...any) bool {
		report = append(report, host.Finding{What: what, Err: err, Detail: fmt.Sprintf(format, args...)})
		return err == nil
	}
	open := func(what, format string, args ...any) {
		report = append(report, host.Finding{What: what, Open: true, Detail: fmt.Sprintf(format, args...)})
	}
	addr := netip.AddrPortFrom(cfg.Node.Address, cfg.Node.DataPort)
	if err := host.AwaitAddress(ctx, addr.Addr(), checkWait, func(why string) {
		fmt.Fprintf(stdout, "waiting for %v: %s\n", addr.Addr(), why)
	}); !note("address", err, "%v", addr.Addr()) {
		return report, false, nil
	}
	report = append(report, host.Basics(addr.Addr(), cfg.Datapath.Devices)...)
	if report.Err() != nil {
		return report, false, nil
	}
	if pin := cfg.Datapath.Pin; pin != "" {
		if err := xdp.CheckPin(pin); err != nil {
			lacks = append(lacks, "pins ("+err.Error()+")")
		} else if dir, err := xdp.Left(pin, addr); dir != "" {
			open("xdp engine", "a datapath forwards here, pinned at %s: that of an rpd that runs (see: mdcs status), or was killed and the next goes on with it", dir)
			return report, runs, lacks
		} else if err != nil {
			note("pin", err, "")
			return report, runs, lacks
		} else {
			note("pin", nil, "%s: outlives rpd", pin)
		}
	}
	devices := cfg.Datapath.Devices
	if len(devices) == 0 {
		name, err := host.Device(addr.Addr())
		if err != nil {
			note("device", err, "")
			return report, runs, lacks
		}
		devices = []string{name}
	}
	if err := xdp.Taken(cfg.Datapath.Pin, addr, devices); err != nil {
		note("xdp engine", err, "")
		return report, runs, lacks
	}
	if err := host.Misplaced(addr.Addr(), devices); err != nil {
		note("device", err, "")
		return report, runs, lacks
	}
	for _, device := range devices {
		if cfg.Datapath.Pin == "" || xdp.CheckPin(cfg.Datapath.Pin) != nil {
			break
		}
		dir, err := xdp.Occupant(cfg.Datapath.Pin, addr, device)
		if err != nil {
			note("xdp engine", err, "")
			return report, runs, lacks
		}
		if dir != "" {
			open("xdp engine", "%s has the datapath of a dead rpd at another address or port, pinned at %s: rpd takes it down first", device, dir)
			return report, runs, lacks
		}
	}
	c := datapath.Config{
		Addr: addr, Incarnation: 1,
		// With these the programs are those of rpd: the verifier does not look at what is switched off.
		Hello: func(ids.Session, [wire.HelloSize]byte, time.Time) {},
		Cache: func(datapath.Record) {},
	}
	engine, err := openXDP(c, xdp.Options{Devices: devices})
	if !note("xdp engine", err, "its programs are loaded, and attached to %s", strings.Join(devices, ", ")) {
		return report, runs, lacks
	}
	defer engine.Close()
	runs = true
	for _, l := range engine.Lacks() {
		if l.NoService {
			note(l.What, errors.New(l.Why), "")
		} else {
			lacks = append(lacks, fmt.Sprintf("%s (%s)", l.What, l.Why))
		}
	}
	if !peer.IsValid() {
		router, ok, err := host.Router(devices)
		if err != nil {
			note("live frames", err, "")
			return report, runs, lacks
		}
		if !ok {
			open("live frames", "no default router behind %s to send them to: name a host on a link that answers pings: --peer ADDRESS", strings.Join(devices, ", "))
			return report, runs, lacks
		}
		peer = router
	}
	took, err := engine.Reach(peer, liveTimeout)
	note("live frames", err, "the programs sent an echo request of %d bytes to %v, which answered within %v", xdp.ReachSize, peer, took.Round(time.Microsecond))
	return report, runs, lacks
}
