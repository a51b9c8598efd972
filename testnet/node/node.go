// SPDX-License-Identifier: LGPL-3.0-or-later

// Package node runs the programs of the testnet, geth and rpd, each in a network
// namespace of its own.
//
// A node is made once with its files and may be started, stopped or killed, and
// started again with the same identity and data. Control goes over channels that
// never touch the network under test: geth's IPC socket, and HTTP to the
// loopback interface inside the namespace.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ethmcast/mdcs/testnet/netns"
)

// Interface is the name of the only interface, besides lo, of a host.
const Interface = "eth0"

// pollInterval is the pause between two checks of [Wait].
const pollInterval = 100 * time.Millisecond

// Wait calls check until it returns nil or ctx ends. The error says what was
// waited for, why it ended, and what check said last.
func Wait(ctx context.Context, what string, check func(context.Context) error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last: %v)", what, context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// daemon is what geth and rpd have in common.
type daemon struct {
	run    *netns.Run
	ns     *netns.Namespace
	name   string
	binary string
	log    string // path of the log file
	home   string // HOME of the process
	cpus   int    // that it uses at a time, 0 for all
	http   *http.Client
	proc   atomic.Pointer[netns.Process] // nil before the first start
}

func newDaemon(run *netns.Run, ns *netns.Namespace, name, binary, home, log string) *daemon {
	return &daemon{
		run: run, ns: ns, name: name, binary: binary, home: home, log: log,
		http: &http.Client{
			Timeout: 10 * time.Second,
			// One connection per request: an idle one would not survive a
			// restart of the node.
			Transport: &http.Transport{
				DisableKeepAlives: true,
				DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
					return ns.Dial(ctx, network, addr)
				},
			},
		},
	}
}

// Name is the name of the host.
func (d *daemon) Name() string { return d.name }

// Namespace is where the node runs.
func (d *daemon) Namespace() *netns.Namespace { return d.ns }

// Counters are the totals of the network interface of the host.
func (d *daemon) Counters() (netns.Counters, error) { return d.ns.Counters(Interface) }

// Running reports whether the process exists.
func (d *daemon) Running() bool {
	proc := d.proc.Load()
	return proc != nil && proc.Running()
}

// started reports whether the process was ever started.
func (d *daemon) started() bool { return d.proc.Load() != nil }

// launch starts the process; its output is appended to the log file.
func (d *daemon) launch(args ...string) error {
	if d.Running() {
		return fmt.Errorf("start %s: already running", d.name)
	}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", d.name, err)
	}
	defer log.Close()
	cmd := exec.Command(d.binary, args...)
	// Nothing else of the environment: geth takes GETH_* as flags.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.home}
	if d.cpus > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("GOMAXPROCS=%d", d.cpus))
	}
	cmd.Dir = d.home
	cmd.Stdout, cmd.Stderr = log, log
	proc, err := d.run.Start(d.ns, d.name, cmd)
	if err != nil {
		return err
	}
	d.proc.Store(proc)
	return nil
}

// untilExit is ctx, ended also by the end of the process.
func (d *daemon) untilExit(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	proc := d.proc.Load()
	if proc == nil {
		cancel(fmt.Errorf("%s was never started", d.name))
		return ctx, func() {}
	}
	go func() {
		select {
		case <-proc.Done():
			cancel(d.exitError(proc))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// exitError describes an end that nobody asked for.
func (d *daemon) exitError(proc *netns.Process) error {
	err := proc.Err()
	if err == nil {
		err = errors.New("exit status 0")
	}
	return fmt.Errorf("%s ended: %w; %s ends with:\n%s", d.name, err, d.log, tail(d.log, 5))
}

// stop asks the process to end and waits for it.
func (d *daemon) stop(grace time.Duration) error {
	if proc := d.proc.Load(); proc != nil {
		return proc.Stop(grace)
	}
	return nil
}

// kill ends the process as a crash would.
func (d *daemon) kill() error {
	if proc := d.proc.Load(); proc != nil {
		return proc.Kill()
	}
	return nil
}

// get fetches a page from the loopback interface of the node.
func (d *daemon) get(ctx context.Context, port int, path string) ([]byte, error) {
	url := fmt.Sprintf("http://[::1]:%d%s", port, path)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json") // where there is a choice
	resp, err := d.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.name, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%s: get %s: %w", d.name, path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: get %s: %s: %s", d.name, path, resp.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}

// tail is the last n lines of a file, as far as they can be read.
func tail(path string, n int) string {
	const limit = 4096
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.Size() > limit {
		f.Seek(-limit, io.SeekEnd)
	}
	text, _ := io.ReadAll(f)
	return lastLines(string(text), n)
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
