// SPDX-License-Identifier: LGPL-3.0-or-later

// Command rpd is the daemon of a replication point.
package main

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/admin"
	"github.com/ethmcast/mdcs/rp/config"
	"github.com/ethmcast/mdcs/rp/host"
	"github.com/ethmcast/mdcs/rp/limitlog"
	"github.com/ethmcast/mdcs/rp/metrics"
)

// version is set by the linker: -X main.version=...
var version = "unknown"

//go:embed rpd.toml
var defaultConfig string

func main() {
	os.Exit(run(os.Args, os.Stdout, os.Stderr))
}

// run is main for tests: it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal does not wait
	if err := newApp(stdout, stderr).RunContext(ctx, args); err != nil {
		fmt.Fprintf(stderr, "rpd: %v\n", err)
		return 1
	}
	return 0
}

var configFlag = &cli.StringFlag{Name: "config", Usage: "configuration `FILE`"}

// configFile returns the flag. It is not a required flag: the library would ask each command for
// it, and print all the help above the error.
func configFile(c *cli.Context) (string, error) {
	if !c.IsSet(configFlag.Name) {
		return "", fmt.Errorf("--%s FILE is missing", configFlag.Name)
	}
	return c.String(configFlag.Name), nil
}

func newApp(stdout, stderr io.Writer) *cli.App {
	return &cli.App{
		Name:            "rpd",
		Usage:           "replication point of multicast diffusion for Ethereum",
		Version:         version,
		Writer:          stdout,
		ErrWriter:       stderr,
		HideHelpCommand: true,
		ExitErrHandler:  func(*cli.Context, error) {}, // run reports the error
		Flags:           []cli.Flag{configFlag},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fmt.Errorf("unknown command %q", c.Args().First())
			}
			file, err := configFile(c)
			if err != nil {
				return err
			}
			return serve(c.Context, file, stderr)
		},
		Commands: []*cli.Command{
			hostCommand(stdout),
			{
				Name:  "config",
				Usage: "print or check a configuration",
				Subcommands: []*cli.Command{
					{
						Name:  "default",
						Usage: "print a configuration with all keys, their defaults and what they mean",
						Action: func(*cli.Context) error {
							_, err := io.WriteString(stdout, defaultConfig)
							return err
						},
					},
					{
						Name:      "check",
						Usage:     "check a configuration file",
						ArgsUsage: "FILE",
						Action: func(c *cli.Context) error {
							if c.NArg() != 1 {
								return fmt.Errorf("config check wants one file")
							}
							_, err := load(c.Args().First())
							return err
						},
					},
				},
			},
			{
				Name:  "enode",
				Usage: "print the enode URL that others need; makes the node key when it is missing",
				Flags: []cli.Flag{configFlag},
				Action: func(c *cli.Context) error {
					return printRecord(c, stdout, (*enode.Node).URLv4)
				},
			},
			{
				Name:  "record",
				Usage: "print the node record (ENR) for a tree in DNS; makes the node key when it is missing",
				Flags: []cli.Flag{configFlag},
				Action: func(c *cli.Context) error {
					return printRecord(c, stdout, (*enode.Node).String)
				},
			},
		},
	}
}

// load reads a configuration that rpd would serve by: what starts, reloads and checks one
// agrees on it.
func load(path string) (*config.Config, error) {
	cfg, err := config.Load(path)
	if err != nil {
		return nil, err
	}
	return cfg, cfg.CheckEdited()
}

// printRecord prints the node record of a configuration in some form.
func printRecord(c *cli.Context, stdout io.Writer, form func(*enode.Node) string) error {
	file, err := configFile(c)
	if err != nil {
		return err
	}
	cfg, err := config.Load(file)
	if err != nil {
		return err
	}
	n, err := record(cfg)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, form(n))
	return err
}

// drainTimeout is how long a replication point that ends waits for its members to turn
// to another (SPEC 7.12).
const drainTimeout = 5 * time.Second

// addressWait is how long an address may come late, as at boot.
const addressWait = 30 * time.Second

// serve runs the replication point until ctx ends.
func serve(ctx context.Context, path string, stderr io.Writer) error {
	cfg, err := load(path)
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	level.Set(cfg.Log.Level)
	log := limitlog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	hangups := make(chan os.Signal, 1) // from now on one does not end rpd
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	log.Info("rpd starts", "version", version, "config", path)
	for _, addr := range addresses(cfg) {
		if err := host.AwaitAddress(ctx, addr, addressWait, func(why string) {
			log.Warn("waiting for the address", "address", addr, "reason", why, "at_most", addressWait)
		}); ctx.Err() != nil {
			return nil // stopped before it began
		} else if err != nil {
			return fmt.Errorf("address %w", err)
		}
	}
	var listener net.Listener
	if cfg.Admin.Listen != "" { // before the datapath of an rpd before is adopted: it may fail
		if listener, err = admin.Listen(cfg.Admin.Listen); err != nil {
			return err
		}
		defer listener.Close()
	}
	point, err := newRP(cfg, log)
	if err != nil {
		return err
	}
	if err := point.Start(); err != nil {
		return err
	}
	defer point.Stop()
	if path := cfg.Admin.Socket; path != "" {
		operator := admin.Operator{Point: point, Version: version}
		server, err := admin.StartSocket(path, operator.Handler(), log)
		if err != nil { // who is served need not care
			log.Warn("no socket for mdcs", "err", err)
		} else {
			defer server.Stop()
		}
	}
	if listener != nil {
		registry := prometheus.NewRegistry()
		registry.MustRegister(metrics.NewCollector(point), collectors.NewGoCollector(),
			collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
		defer admin.Serve(listener, admin.Handler(registry, point.Health), log).Stop()
	}
	systemd := newSupervisor(os.Getenv, log)
	systemd.ready()
	var watching sync.WaitGroup
	watching.Go(func() { systemd.watch(ctx, point.Health) })
	defer watching.Wait()
	for now := cfg; ctx.Err() == nil; {
		select {
		case <-hangups:
			systemd.reloading()
			now = reload(point, path, now, level, log)
			systemd.reloaded()
		case <-ctx.Done():
		}
	}
	systemd.stopping()
	drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	point.Drain(drain)
	log.Info("rpd stops")
	return nil
}

// addresses returns those that rpd needs of its host.
func addresses(cfg *config.Config) []netip.Addr {
	all := []netip.Addr{cfg.Node.Address}
	if cfg.Admin.Listen == "" {
		return all
	}
	if a, err := net.ResolveTCPAddr("tcp", cfg.Admin.Listen); err == nil && a.IP != nil { // else admin.Listen says what is wrong
		all = append(all, a.AddrPort().Addr().Unmap())
	}
	return all
}

var _ metrics.Source = (*rp.RP)(nil)
