// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/testnet/lightpeer"
	"github.com/ethmcast/mdcs/testnet/netns"
	"github.com/ethmcast/mdcs/testnet/node"
)

// PeersConfig says with how many peers to measure a replication point.
type PeersConfig struct {
	Name    string        // of the result
	Results string        // directory of all results
	RPD     string        // program of the replication point
	Engine  string        // XDP or Socket
	Peers   []int         // ascending, each at most MaxPeers
	Rate    float64       // datagrams per second of the steady state
	Steady  time.Duration // its length
	Log     *slog.Logger
}

// MaxPeers is the largest number of peers: what a replication point takes unless
// configured.
const MaxPeers = 10_000

// Dir is where the files of the result go.
func (c *PeersConfig) Dir() string { return filepath.Join(c.Results, c.Name) }

// Check returns an error when the configuration cannot be measured.
func (c *PeersConfig) Check() error {
	if c.Engine != XDP && c.Engine != Socket {
		return fmt.Errorf("engine %q is neither %s nor %s", c.Engine, XDP, Socket)
	}
	if err := ascending("peers", c.Peers, MaxPeers); err != nil {
		return err
	}
	switch {
	case c.Peers[0] < 2:
		return errors.New("1 peer has nobody to send to")
	case !(c.Rate > 0 && c.Rate <= maxPeersRate):
		return fmt.Errorf("rate %v is not above 0 and at most %d datagrams per second", c.Rate, maxPeersRate)
	case c.Steady < time.Second:
		return fmt.Errorf("steady state of %v is below 1s", c.Steady)
	}
	return nil
}

const (
	// maxPeersRate is in datagrams per second: how many may be under way is limited.
	maxPeersRate = 1000

	// connecting is how many light peers shake hands at a time.
	connecting = 32

	// joinLimit is how long all peers may take to join.
	joinLimit = 5 * time.Minute

	// restTime lets a replication point come to rest after a storm.
	restTime = 3 * time.Second
)

// Where the replication point and its peers are:
//
//	+--- rp -----------------+      +--- peers ------------------------------+
//	|  rpd   eth0 fd00:1::1 ---------- eth0 fd00:1::2                        |
//	+------------------------+      |  16 peers in each /64 of fd00:2::/32   |
//	                                +----------------------------------------+
var (
	pointAddr    = netip.MustParsePrefix("fd00:1::1/64")
	gatewayAddr  = netip.MustParsePrefix("fd00:1::2/64")
	peersNetwork = netip.MustParsePrefix("fd00:2::/32")
)

// firstPeerPort is the first of the UDP ports of the peers.
const firstPeerPort = 30400

// peersNetworkID is that of a chain which nobody looks at.
const peersNetworkID = 1

// Peers measures a replication point with each number of peers and returns the result, with
// an error the rows that it has. What it made on the machine is gone when it returns; what is
// not is a note in the result.
func Peers(ctx context.Context, cfg PeersConfig) (*PeersResult, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	result, err := newPeersResult(&cfg)
	if err != nil {
		return nil, err
	}
	// A connection is a file of either process; each has some besides.
	if err := lightpeer.RaiseFileLimit(cfg.Peers[len(cfg.Peers)-1] + 4096); err != nil {
		return nil, err
	}
	for _, n := range cfg.Peers {
		cfg.Log.Info("peers", "engine", cfg.Engine, "peers", n)
		row, left, err := peersOf(ctx, &cfg, n)
		if err != nil {
			return result, fmt.Errorf("%d peers: %w", n, errors.Join(err, left))
		}
		if left != nil {
			cfg.Log.Warn("not all is removed; the next run does that, or: mdcs testnet clean", "peers", n, "err", left)
			result.Notes = append(result.Notes, fmt.Sprintf("after %d peers not all was removed: %v", n, left))
		}
		result.Rows = append(result.Rows, *row)
	}
	return result, nil
}

// crowd is a replication point with a number of peers.
type crowd struct {
	cfg   *PeersConfig
	n     int
	rp    *node.RP
	peers *lightpeer.Process
	row   PeersRow
}

// peersOf measures with n peers. left is what stopped it from removing what it made.
func peersOf(ctx context.Context, cfg *PeersConfig, n int) (row *PeersRow, left, err error) {
	run, err := netns.NewRun(netns.StateDir)
	if err != nil {
		return nil, nil, err
	}
	c := &crowd{cfg: cfg, n: n, row: PeersRow{Peers: n}}
	defer func() { left = errors.Join(left, run.Close()) }()
	space, release, err := c.open(ctx, run)
	if err != nil {
		return nil, nil, err
	}
	defer func() { left = errors.Join(left, release()) }()
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"join", func(ctx context.Context) error { return c.join(ctx, run, space) }},
		{"steady state", c.steady},
		{"restart", c.restart},
		{"after the restart", c.after},
	} {
		cfg.Log.Info(step.name, "peers", n)
		if err := step.run(ctx); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return &c.row, c.peers.Stop(), nil
}

// open builds the namespaces and starts the replication point. It returns the namespace
// of the peers, and a function that releases what is not in the namespaces.
func (c *crowd) open(ctx context.Context, run *netns.Run) (*netns.Namespace, func() error, error) {
	rp, err := run.Namespace("rp")
	if err != nil {
		return nil, nil, err
	}
	peers, err := run.Namespace("peers")
	if err != nil {
		return nil, nil, err
	}
	if err := c.connect(rp, peers); err != nil {
		return nil, nil, err
	}
	q, err := newQueue(peers, node.Interface)
	if err != nil {
		return nil, nil, err
	}
	if err := c.startRP(ctx, run, rp); err != nil {
		return nil, nil, errors.Join(err, q.close())
	}
	return peers, q.close, nil
}

// connect links the namespaces, with the peers' addresses.
func (c *crowd) connect(rp, peers *netns.Namespace) error {
	if err := rp.Veth(node.Interface, peers, node.Interface); err != nil {
		return err
	}
	for _, x := range []struct {
		ns   *netns.Namespace
		addr netip.Prefix
	}{{rp, pointAddr}, {peers, gatewayAddr}} {
		if err := x.ns.AddAddress(node.Interface, x.addr); err != nil {
			return err
		}
		if err := ringPerCPU(x.ns, node.Interface); err != nil {
			return err
		}
		if err := x.ns.SetUp(node.Interface, true); err != nil {
			return err
		}
	}
	if err := rp.SetRoute(peersNetwork, gatewayAddr.Addr()); err != nil {
		return err
	}
	return peers.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{
			LinkIndex: lo.Attrs().Index,
			Dst:       &net.IPNet{IP: peersNetwork.Addr().AsSlice(), Mask: net.CIDRMask(peersNetwork.Bits(), 128)},
			Type:      unix.RTN_LOCAL,
			Table:     unix.RT_TABLE_LOCAL,
		})
	})
}

func (c *crowd) startRP(ctx context.Context, run *netns.Run, ns *netns.Namespace) error {
	key, err := crypto.GenerateKey()
	if err != nil {
		return err
	}
	binary, err := filepath.Abs(c.cfg.RPD)
	if err != nil {
		return err
	}
	c.rp, err = node.NewRP(run, ns, node.RPConfig{
		Name:      "rpd",
		Binary:    binary,
		Key:       key,
		Addr:      pointAddr.Addr(),
		NetworkID: peersNetworkID,
		Genesis:   common.Hash{1},
		Dir:       run.Dir(),
		Log:       filepath.Join(run.Dir(), "rpd.log"),
		Engine:    c.cfg.Engine,
	})
	if err != nil {
		return err
	}
	return c.rp.Start(ctx)
}

// usage is what the replication point used until now.
type usage struct {
	at       time.Time
	cpu      float64 // seconds
	resident float64 // bytes
}

func (c *crowd) usage(ctx context.Context) (usage, error) {
	m, err := c.rp.Metrics(ctx)
	return usage{time.Now(), m["process_cpu_seconds_total"], m["process_resident_memory_bytes"]}, err
}

// join lets all peers join at once.
func (c *crowd) join(ctx context.Context, run *netns.Run, ns *netns.Namespace) error {
	idle, err := c.usage(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	c.peers, err = lightpeer.StartProcess(run, ns, lightpeer.Options{
		RP:         c.rp.URL().URLv4(),
		NetworkID:  peersNetworkID,
		Genesis:    common.Hash{1},
		Network:    peersNetwork,
		FirstPort:  firstPeerPort,
		Peers:      c.n,
		Connecting: connecting,
	}, os.Stderr)
	if err != nil {
		return err
	}
	if err := c.peers.Await(ctx, c.n, joinLimit); err != nil {
		return err
	}
	took := time.Since(began)
	c.row.Joins = Figure(float64(c.n) / took.Seconds())
	counters, err := c.peers.Counters(ctx)
	if err != nil {
		return err
	}
	c.row.ControlPerJoin = Figure(float64(counters.ControlSent+counters.ControlReceived) / float64(c.n))
	busy, err := c.usage(ctx)
	if err != nil {
		return err
	}
	c.row.CPUPerJoin = Figure((busy.cpu - idle.cpu) * 1e3 / float64(c.n))
	c.row.resident = idle.resident
	return rest(ctx)
}

// rest waits until the replication point has come to rest, unless ctx ends.
func rest(ctx context.Context) error {
	select {
	case <-time.After(restTime):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// steady publishes at the rate while all peers are members.
func (c *crowd) steady(ctx context.Context) error {
	before, err := c.peers.Counters(ctx)
	if err != nil {
		return err
	}
	first, err := c.usage(ctx)
	if err != nil {
		return err
	}
	delays, err := c.peers.Load(ctx, c.cfg.Rate, c.cfg.Steady)
	if err != nil {
		return err
	}
	last, err := c.usage(ctx)
	if err != nil {
		return err
	}
	after, err := c.peers.Counters(ctx)
	if err != nil {
		return err
	}
	seconds := last.at.Sub(first.at).Seconds()
	control := after.ControlSent + after.ControlReceived - before.ControlSent - before.ControlReceived
	c.row.CPU = Figure(100 * (last.cpu - first.cpu) / seconds)
	c.row.Memory = Figure((last.resident - c.row.resident) / float64(c.n) / 1024)
	c.row.Control = Figure(float64(control) / seconds)
	c.row.Published = delays.Published
	c.row.LastCopy, c.row.LastCopy99 = delayFigures(delays.Last)
	c.row.add(before, after, delays.Missing)
	if after.Members != c.n {
		return fmt.Errorf("%d of %d peers are members", after.Members, c.n)
	}
	return nil
}

// delayFigures are median and 99th percentile in ms.
func delayFigures(list []time.Duration) (median, p99 Figure) {
	if len(list) == 0 {
		return Figure(math.NaN()), Figure(math.NaN())
	}
	list = slices.Sorted(slices.Values(list))
	at := func(i int) Figure { return Figure(float64(list[i]) / 1e6) }
	return at(len(list) / 2), at(len(list) * 99 / 100)
}

// restart kills the replication point and starts it again, so that all peers join once
// more.
func (c *crowd) restart(ctx context.Context) error {
	if err := c.rp.Kill(); err != nil {
		return err
	}
	err := node.Wait(ctx, "the peers to notice", func(ctx context.Context) error {
		counters, err := c.peers.Counters(ctx)
		if err == nil && counters.Members > 0 {
			err = fmt.Errorf("%d are members", counters.Members)
		}
		return err
	})
	if err != nil {
		return err
	}
	began := time.Now()
	if err := c.rp.Start(ctx); err != nil {
		return err
	}
	if err := c.peers.Await(ctx, c.n, joinLimit); err != nil {
		return err
	}
	c.row.Rejoin = Figure(time.Since(began).Seconds())
	return rest(ctx)
}

// afterTime is how long the peers publish after the restart.
const afterTime = 2 * time.Second

// after shows that everything works as before.
func (c *crowd) after(ctx context.Context) error {
	before, err := c.peers.Counters(ctx)
	if err != nil {
		return err
	}
	delays, err := c.peers.Load(ctx, c.cfg.Rate, afterTime)
	if err != nil {
		return err
	}
	after, err := c.peers.Counters(ctx)
	if err != nil {
		return err
	}
	c.row.add(before, after, delays.Missing)
	if want := uint64(2 * c.n); after.Joined > want {
		c.row.Again = after.Joined - want
	}
	return nil
}
