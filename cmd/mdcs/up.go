// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/testnet"
	"github.com/ethmcast/mdcs/testnet/control"
	"github.com/ethmcast/mdcs/testnet/netns"
	"github.com/ethmcast/mdcs/testnet/topology"
)

const asShipped = "as the topology says"

// Flags that say what network there is.
var (
	topologyFlag = &cli.StringFlag{Name: "topology", Value: "ten-as", Usage: "a shipped topology (see testnet topologies) or a `FILE`"}
	nodesFlag    = &cli.IntFlag{Name: "nodes", Usage: "`NUMBER` of Ethereum nodes", DefaultText: asShipped}
	degreeFlag   = &cli.IntFlag{Name: "degree", Usage: "peers of each node, 0: all others", DefaultText: asShipped}
	graphFlag    = &cli.Uint64Flag{Name: "seed", Usage: "seed of peerings, keys, loss and jitter", DefaultText: asShipped}

	topologyFlags = []cli.Flag{topologyFlag, nodesFlag, degreeFlag, graphFlag}
)

// loadTopology reads the topology that the flags name, with its nodes.
func loadTopology(c *cli.Context) (*topology.Topology, error) {
	top, err := describedTopology(c)
	if err != nil {
		return nil, err
	}
	p := top.Nodes
	if c.IsSet(graphFlag.Name) {
		p.Seed = c.Uint64(graphFlag.Name)
	}
	return top.Populate(p)
}

var (
	netFlag     = &cli.StringFlag{Name: "name", Usage: "`NAME` of the net", DefaultText: "that of the topology; later, the only net that is up"}
	modeFlag    = &cli.StringFlag{Name: "mode", Value: "mdcs", Usage: "mdcs: patched nodes and replication points; gossip: nodes as released"}
	routingFlag = &cli.StringFlag{Name: "routing", Value: "auto", Usage: "auto, bird, or static (the same routes, computed)"}
	engineFlag  = &cli.StringFlag{Name: "engine", Value: "auto", Usage: "datapath of the replication points: auto, xdp or socket"}
	logsFlag    = &cli.StringFlag{Name: "logs", Usage: "keep the logs of all processes in a `DIRECTORY`"}
	detachFlag  = &cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "return when the net is up, and let it run"}
)

var upCommand = &cli.Command{
	Name:  "up",
	Usage: "start a net, and run it until it is interrupted or taken down",
	Flags: append([]cli.Flag{
		netFlag, detachFlag, modeFlag, linksFlag, routingFlag, engineFlag, gethFlag, gethStockFlag, rpdFlag, logsFlag,
	}, topologyFlags...),
	Action: up,
}

func up(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	cfg, err := upConfig(c)
	if err != nil {
		return err
	}
	name := c.String(netFlag.Name)
	if name == "" {
		name = cfg.Topology.Name
	}
	if err := control.CheckName(name); err != nil {
		return err
	}
	if !isRoot() {
		return testnet.ErrNotRoot
	}
	if c.Bool(detachFlag.Name) {
		return upDetached(c, name)
	}
	return upHere(c, name, cfg)
}

// upConfig checks the flags.
func upConfig(c *cli.Context) (cfg testnet.Config, err error) {
	if cfg.Topology, err = loadTopology(c); err != nil {
		return cfg, err
	}
	if cfg.Links, err = testnet.ParseLinkBackend(c.String(linksFlag.Name)); err != nil {
		return cfg, fmt.Errorf("--links: %w", err)
	}
	if cfg.Routing, err = testnet.ParseRouting(c.String(routingFlag.Name)); err != nil {
		return cfg, fmt.Errorf("--routing: %w", err)
	}
	cfg.Engine = c.String(engineFlag.Name)
	switch cfg.Engine {
	case "auto", "xdp", "socket":
	default:
		return cfg, fmt.Errorf("--engine %q is none of auto, xdp, socket", cfg.Engine)
	}
	cfg.Seed = cfg.Topology.Nodes.Seed
	cfg.LogDir = c.String(logsFlag.Name)
	cfg.Log = slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: slog.LevelWarn}))
	cfg.Geth, cfg.GethStock, cfg.RPD = c.String(gethFlag.Name), c.String(gethStockFlag.Name), c.String(rpdFlag.Name)
	switch mode := c.String(modeFlag.Name); mode {
	case "mdcs":
		cfg.Patched = testnet.All
		err = errors.Join(findProgram(gethFlag.Name, &cfg.Geth), findProgram(rpdFlag.Name, &cfg.RPD))
	case "gossip":
		cfg.Patched = testnet.None
		err = findProgram(gethStockFlag.Name, &cfg.GethStock)
	default:
		err = fmt.Errorf("--mode %q is neither mdcs nor gossip", mode)
	}
	return cfg, err
}

// upHere runs the net in this process.
func upHere(c *cli.Context, name string, cfg testnet.Config) error {
	server, err := control.Listen(netns.StateDir, name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(c.Context)
	defer cancel(nil)
	go func() {
		select {
		case <-server.Down():
			cancel(errTakenDown)
		case <-ctx.Done():
		}
	}()
	bar := newProgressBar(c.App.ErrWriter)
	cfg.Progress = func(p testnet.Progress) {
		server.Progress(p)
		bar.show(p)
	}
	n, err := testnet.Start(ctx, cfg)
	bar.end()
	if err != nil {
		return errors.Join(err, server.Close(err))
	}
	server.Ready(n)
	fmt.Fprintf(c.App.Writer, "net %s is up: %d hosts in %d ASes, links by %s, routes by %s\n",
		name, len(cfg.Topology.Hosts), len(cfg.Topology.ASes), n.Backend(), n.Routing())
	<-ctx.Done()
	err = n.Close()
	err = errors.Join(err, server.Close(err))
	if err == nil && c.Context.Err() != nil {
		return c.Context.Err()
	}
	return err
}

var errTakenDown = errors.New("taken down")

// upDetached runs the net in another process, and returns when it is up.
func upDetached(c *cli.Context, name string) error {
	client, err := control.NewClient(netns.StateDir, name)
	if err != nil {
		return err
	}
	if _, err := client.Status(c.Context); err == nil {
		return fmt.Errorf("net %s %w", name, control.ErrUp)
	}
	child, logFile, err := startDetached(c, name)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	failed := func(err error) error {
		text, _ := os.ReadFile(logFile)
		os.Remove(logFile)
		return fmt.Errorf("net %s did not start: %w\n%s", name, err, strings.TrimSpace(string(text)))
	}

	bar := newProgressBar(c.App.ErrWriter)
	defer bar.end()
	const pollInterval = 100 * time.Millisecond
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			bar.end()
			return failed(errors.Join(errors.New("its process ended"), err))
		case <-c.Context.Done():
			child.Process.Signal(syscall.SIGTERM)
			<-ended
			return c.Context.Err()
		case <-tick.C:
		}
		st, err := client.Status(c.Context)
		if err != nil {
			continue // not yet, or not any more: then it ended
		}
		if st.Ready {
			bar.end()
			fmt.Fprintf(c.App.Writer, "net %s is up, run by process %d\n", name, st.Pid)
			return nil
		}
		bar.show(st.Progress)
	}
}

// startDetached starts this program again with the same flags, in a session of its
// own.
func startDetached(c *cli.Context, name string) (*exec.Cmd, string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	if err := os.MkdirAll(netns.StateDir, 0o755); err != nil {
		return nil, "", err
	}
	logFile := control.LogFile(netns.StateDir, name)
	log, err := os.Create(logFile)
	if err != nil {
		return nil, "", err
	}
	defer log.Close()
	args := []string{"testnet", "up"}
	for _, f := range c.Command.Flags {
		flag := f.Names()[0]
		if flag != detachFlag.Name && flag != netFlag.Name && c.IsSet(flag) {
			args = append(args, fmt.Sprintf("--%s=%v", flag, c.Value(flag)))
		}
	}
	cmd := exec.Command(self, append(args, "--"+netFlag.Name, name)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, logFile, cmd.Start()
}

// progressBar shows how far a start is: on a terminal in one line that changes,
// else with a line per stage.
type progressBar struct {
	w        io.Writer
	terminal bool

	mu    sync.Mutex
	last  testnet.Progress
	begin time.Time
	drawn bool // the line is not ended
}

func newProgressBar(w io.Writer) *progressBar {
	b := &progressBar{w: w, begin: time.Now()}
	if f, ok := w.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		b.terminal = err == nil
	}
	return b
}

const barLength = 30

func (b *progressBar) show(p testnet.Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.Stage == "" || p == b.last || p.Stage == b.last.Stage && p.Done < b.last.Done {
		return
	}
	elapsed := time.Since(b.begin).Seconds()
	switch {
	case b.terminal && p.Total > 0:
		done := barLength * p.Done / p.Total
		fmt.Fprintf(b.w, "\r\x1b[K%5.1f s  [%s%s] %s %d/%d", elapsed,
			strings.Repeat("#", done), strings.Repeat(".", barLength-done), p.Stage, p.Done, p.Total)
		b.drawn = true
	case b.terminal:
		fmt.Fprintf(b.w, "\r\x1b[K%5.1f s  %s", elapsed, p.Stage)
		b.drawn = true
	case p.Stage != b.last.Stage:
		fmt.Fprintf(b.w, "%5.1f s  %s\n", elapsed, p.Stage)
	}
	b.last = p
}

// end leaves the terminal at the beginning of a line.
func (b *progressBar) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.drawn {
		fmt.Fprintf(b.w, "\r\x1b[K")
		b.drawn = false
	}
}
