// SPDX-License-Identifier: LGPL-3.0-or-later

// Package bgp fills the routing tables of a testnet: with BIRD 2, one process per
// border router and route server, or by computation, without BGP.
//
// The policy is that of Gao and Rexford (2001), as [topology.Topology.BGP]
// computes it: both ways lead to the same routes.
package bgp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ethmcast/mdcs/testnet/netns"
	"github.com/ethmcast/mdcs/testnet/topology"
)

// ErrNoBIRD says that BIRD is not installed.
var ErrNoBIRD = errors.New("bird is not installed: run make deps")

// Find looks for BIRD in PATH and where Debian puts it.
func Find() (string, error) {
	for _, name := range []string{"bird", "/usr/sbin/bird"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrNoBIRD
}

// Network is a set of BIRD processes.
type Network struct {
	top      *topology.Topology
	routers  map[string]*netns.Namespace
	speakers []speaker
	want     map[string][]topology.Route // of each AS
	dir      string
	procs    map[string]*netns.Process
}

// Start starts a BIRD in the namespace of each AS and IXP, given by name. dir
// gets configurations and control sockets; logs go to logDir, one file per
// process. The processes end with the run.
func Start(run *netns.Run, t *topology.Topology, routers map[string]*netns.Namespace, dir, logDir string) (*Network, error) {
	bird, err := Find()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("start BGP: %w", err)
	}
	n := &Network{
		top: t, routers: routers, speakers: speakers(t), want: make(map[string][]topology.Route), dir: dir,
		procs: make(map[string]*netns.Process),
	}
	for _, s := range n.speakers {
		if err := n.start(run, bird, s, logDir); err != nil {
			return nil, fmt.Errorf("start BGP at %s: %w", s.name, err)
		}
	}
	for _, as := range t.ASes {
		n.want[as.Name] = t.Routes(as.Name)
	}
	return n, nil
}

func (n *Network) start(run *netns.Run, bird string, s speaker, logDir string) error {
	file := filepath.Join(n.dir, s.name+".conf")
	if err := os.WriteFile(file, []byte(s.config()), 0o600); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(logDir, "bird-"+s.name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	// A router has its processor for itself: while other programs keep the
	// machine busy, it must not miss the beats of BFD.
	cmd := exec.Command("nice", "-n", "-20", bird, "-f", "-c", file, "-s", n.socket(s.name))
	cmd.Stdout, cmd.Stderr = log, log
	n.procs[s.name], err = run.Start(n.routers[s.name], "bird-"+s.name, cmd)
	return err
}

func (n *Network) socket(name string) string { return filepath.Join(n.dir, name+".ctl") }

// pollInterval is the pause between two looks at the tables.
const pollInterval = 20 * time.Millisecond

// WaitConverged waits until all sessions are established and the kernel of each
// router has the routes of [topology.Topology.Routes].
func (n *Network) WaitConverged(ctx context.Context) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := n.converged(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for BGP: %w (last: %w)", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// converged says what is missing. It asks BIRD first, which is then awake, see
// [speaker.config].
func (n *Network) converged(ctx context.Context) error {
	for name, p := range n.procs {
		if !p.Running() {
			return fmt.Errorf("bird of %s ended: %w", name, p.Err())
		}
	}
	sessions, err := n.Sessions(ctx)
	if err != nil {
		return err
	}
	for _, s := range sessions {
		if s.State != Established {
			return fmt.Errorf("session of %s with %s: %s", s.Router, s.Neighbour, s.State)
		}
	}
	for _, as := range n.top.ASes {
		if err := check(as.Name, n.routers[as.Name], n.want[as.Name]); err != nil {
			return err
		}
	}
	return nil
}

// Check compares the routes in the kernel of all routers with those of
// [topology.Topology.Routes].
func Check(t *topology.Topology, routers map[string]*netns.Namespace) error {
	var errs []error
	for _, as := range t.ASes {
		errs = append(errs, check(as.Name, routers[as.Name], t.Routes(as.Name)))
	}
	return errors.Join(errs...)
}

func check(as string, ns *netns.Namespace, want []topology.Route) error {
	list, err := ns.Routes()
	if err != nil {
		return err
	}
	have := make(map[netip.Prefix]netip.Addr)
	for _, r := range list {
		have[r.Dst] = r.Via
	}
	for _, r := range want {
		if via, ok := have[r.To]; !ok {
			return fmt.Errorf("router %s has no route to %s", as, r.To)
		} else if via != r.Via {
			return fmt.Errorf("router %s has a route to %s via %s instead of %s", as, r.To, via, r.Via)
		}
	}
	if len(have) != len(want) {
		return fmt.Errorf("router %s has %d routes instead of %d", as, len(have), len(want))
	}
	return nil
}

// Session is one end of a BGP session.
type Session struct {
	Router    string `json:"router"`    // name of the AS or IXP
	Neighbour string `json:"neighbour"` // likewise
	State     string `json:"state"`     // as BIRD calls it
}

// Established is the state of a session that works.
const Established = "Established"

// Sessions asks all BIRDs for the state of their sessions.
func (n *Network) Sessions(ctx context.Context) ([]Session, error) {
	lists := make([][]Session, len(n.speakers))
	errs := make([]error, len(n.speakers))
	var wg sync.WaitGroup
	for i, s := range n.speakers {
		wg.Go(func() { lists[i], errs[i] = n.sessions(ctx, s) })
	}
	wg.Wait()
	return slices.Concat(lists...), errors.Join(errs...)
}

// queryTimeout limits the answer of one BIRD.
const queryTimeout = 5 * time.Second

func (n *Network) sessions(ctx context.Context, s speaker) ([]Session, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", n.socket(s.name))
	if err != nil {
		return nil, fmt.Errorf("ask bird of %s: %w", s.name, err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(queryTimeout))
	states, err := askProtocols(conn)
	if err != nil {
		return nil, fmt.Errorf("ask bird of %s: %w", s.name, err)
	}
	var list []Session
	for _, x := range s.sessions {
		list = append(list, Session{Router: s.name, Neighbour: x.neighbour, State: states[x.protocol]})
	}
	return list, nil
}

// askProtocols asks for the state of the BGP protocols, by name. BIRD greets
// with a line, and each line of an answer begins with a code of four digits and a
// minus, the last one with a code and a space; a line that begins with a space
// continues the code before:
//
//	2002-Name       Proto      Table      State  Since         Info
//	1002-bgp0       BGP        ---        up     10:00:00.000  Established
//	 bgp1       BGP        ---        start  10:00:00.000  Connect
//	0000
func askProtocols(conn io.ReadWriter) (map[string]string, error) {
	lines := bufio.NewReader(conn)
	if _, err := lines.ReadString('\n'); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, "show protocols\n"); err != nil {
		return nil, err
	}
	states := make(map[string]string)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return nil, err
		}
		text := strings.TrimPrefix(line, " ")
		if len(text) == len(line) {
			if len(line) < 5 {
				return nil, fmt.Errorf("unexpected answer %q", line)
			}
			if line[4] == ' ' { // the last one
				if !strings.HasPrefix(line, "0") {
					return nil, fmt.Errorf("refused: %s", strings.TrimSpace(line))
				}
				return states, nil
			}
			text = line[5:]
		}
		const name, kind, state, info = 0, 1, 3, 5
		if f := strings.Fields(text); len(f) > state && f[kind] == "BGP" {
			states[f[name]] = f[state]
			if len(f) > info {
				states[f[name]] = f[info]
			}
		}
	}
}

// Static makes the routes of all routers those that BGP would choose while some
// links and IXP ports, given by name, are down.
func Static(t *topology.Topology, routers map[string]*netns.Namespace, down map[string]bool) error {
	for _, as := range t.ASes {
		ns := routers[as.Name]
		have, err := ns.Routes()
		if err != nil {
			return err
		}
		old := make(map[netip.Prefix]netip.Addr)
		for _, r := range have {
			old[r.Dst] = r.Via
		}
		for _, r := range t.RoutesWithout(as.Name, down) {
			if old[r.To] != r.Via {
				if err := ns.SetRoute(r.To, r.Via); err != nil {
					return err
				}
			}
			delete(old, r.To)
		}
		for _, dst := range slices.SortedFunc(maps.Keys(old), netip.Prefix.Compare) {
			if err := ns.DelRoute(dst); err != nil {
				return err
			}
		}
	}
	return nil
}
