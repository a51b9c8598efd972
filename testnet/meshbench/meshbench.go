// SPDX-License-Identifier: LGPL-3.0-or-later

// Package meshbench measures meshes of real replication points: rpd processes in the
// network namespaces of the testnet, spread over its ASes, with one light peer each,
// which subscribes and, at some of them, publishes.
//
//	AS virginia                                            AS frankfurt
//
//	virginia-rp1 ---.                                  .--- frankfurt-rp1
//	virginia-rp2 ---+-- [router] --- links --- [router] +
//	virginia-peer --'                                  '--- frankfurt-peer
//	(peers of both)                                         (peer of one)
//
// Each RP uses one CPU at a time: there are more of them than CPUs. The peers are part of
// this process, so that one clock sees all datagrams. What is counted in frames and bytes
// is counted by the delay line.
package meshbench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/mesh/tree"
	"github.com/ethmcast/mdcs/testnet"
	"github.com/ethmcast/mdcs/testnet/lightpeer"
	"github.com/ethmcast/mdcs/testnet/measure"
	"github.com/ethmcast/mdcs/testnet/node"
	"github.com/ethmcast/mdcs/testnet/topology"
)

// Sizes of a mesh.
const (
	MinRPs = 2
	MaxRPs = 64
)

// maxSources is how many RPs at most have a peer that publishes; at most half have one.
const maxSources = 10

// Config says what is tried.
type Config struct {
	Topology *topology.Topology // whose ASes the RPs are spread over
	RPs      int
	Mode     tree.Mode
	Seed     uint64

	Deaths int           // of inner RPs, one by one
	Churn  time.Duration // how long RPs are killed and started again, 0 for none

	RPD     string // program
	Engine  string // of its datapath: auto, xdp or socket
	Routing testnet.Routing
	Logs    string // directory for those of the processes, "": none are kept
	Log     *slog.Logger
}

// Sizes and times of a run.
const (
	payloadBytes = 256 // of a datagram

	trickleRate   = 10.0   // datagrams per second of each source, where nothing else is said
	trickleCopies = 2000.0 // and at most as many copies per second in all
	calmTime      = 2 * time.Second
	waitMax       = time.Minute // for a mesh to deliver, all in all

	settleQuiet = 2*linkstate.LinkDelay + 2*time.Second // after the last datagram: trees get better, heartbeats rare
	quietTime   = 20 * time.Second

	shapeRate      = 50.0
	shapeDatagrams = 40
	traceTries     = 5

	deathRate = 500.0  // datagrams per second
	copyRate  = 8000.0 // and at most as many copies per second, whatever the size
	deathLead = 2 * time.Second
	deathTime = 4 * time.Second

	killEvery = 6 * time.Second
	downTime  = 3 * time.Second
	churnRate = 5.0
	joinTime  = 6 * time.Second // that an RP and its peer have until they are counted on
)

// mesh is a running one.
type mesh struct {
	cfg     Config
	net     *testnet.Net
	hosts   []topology.Host // of the RPs
	rps     []*node.RP
	peers   []*lightpeer.Swarm // of one each
	sources []int
	ways    []ways // of the sources
	book    *book
	rng     *rand.Rand
	result  *Result
}

// Run builds a mesh, measures it and removes it. It needs root, and must not run
// beside another one. When the mesh could not do what was tried, the result has what
// was found before, besides the error.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	m, err := newMesh(ctx, cfg)
	if err != nil {
		return nil, err
	}
	err = m.measure(ctx)
	if err != nil {
		m.result.Failed = err.Error()
	}
	return m.result, errors.Join(err, m.close())
}

// newMesh builds a mesh. Its RPs do not run yet.
func newMesh(ctx context.Context, cfg Config) (*mesh, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	top, err := cfg.Topology.WithRPs(cfg.RPs)
	if err != nil {
		return nil, err
	}
	net, err := testnet.StartMesh(ctx, testnet.Config{
		Topology: top, RPD: cfg.RPD, Engine: cfg.Engine, Links: testnet.Wire, Routing: cfg.Routing, Seed: cfg.Seed,
		Mesh: cfg.Mode.String(), RPCPUs: 1, LogDir: cfg.logDir(), Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	hosts := top.HostsOf(topology.RP)
	sources := chooseSources(hosts)
	return &mesh{
		cfg: cfg, net: net, hosts: hosts, rps: net.RPs, sources: sources,
		book: newBook(cfg.RPs), rng: rand.New(rand.NewPCG(cfg.Seed, 3)),
		result: &Result{RPs: cfg.RPs, Mode: cfg.Mode.String(), Sources: len(sources)},
	}, nil
}

// Check returns an error when the mesh cannot be made.
func (c *Config) Check() error {
	if c.RPs < MinRPs || c.RPs > MaxRPs {
		return fmt.Errorf("%d rps are not %d to %d", c.RPs, MinRPs, MaxRPs)
	}
	_, err := c.Topology.WithRPs(c.RPs)
	return err
}

// logDir is where the processes log.
func (c *Config) logDir() string {
	if c.Logs == "" {
		return ""
	}
	return filepath.Join(c.Logs, fmt.Sprintf("%s-%d", c.Mode, c.RPs))
}

// chooseSources takes the first RP of each AS, then the second, and so on.
func chooseSources(rps []topology.Host) (sources []int) {
	most := min(maxSources, max(1, len(rps)/2))
	taken := make(map[string]int) // by AS
	for round := 0; ; round++ {
		clear(taken)
		for i, h := range rps {
			if taken[h.AS]++; taken[h.AS] == round+1 {
				if sources = append(sources, i); len(sources) == most {
					return sources
				}
			}
		}
	}
}

// measure goes through all that is tried.
func (m *mesh) measure(ctx context.Context) (err error) {
	begin := time.Now()
	before, err := measure.CPUPressure()
	if err != nil {
		return err
	}
	defer func() {
		after, failed := measure.CPUPressure()
		if failed == nil {
			m.result.CPUPressure = (after - before).Seconds() / time.Since(begin).Seconds()
		}
		err = errors.Join(err, failed)
	}()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"start", m.start},
		{"quiet", m.quiet},
		{"shape", m.shape},
		{"deaths", m.deaths},
		{"churn", m.churn},
	} {
		m.cfg.Log.Info("mesh bench", "rps", m.cfg.RPs, "mode", m.cfg.Mode, "step", step.name)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%d rps, mode %s, %s: %w", m.cfg.RPs, m.cfg.Mode, step.name, err)
		}
	}
	return nil
}

func (m *mesh) close() error {
	var wg sync.WaitGroup
	for _, p := range m.peers {
		if p != nil {
			wg.Go(p.Stop)
		}
	}
	wg.Wait()
	return m.net.Close()
}

// start starts the RPs and their peers, as many at a time as there are CPUs, and waits until
// all is delivered everywhere.
func (m *mesh) start(ctx context.Context) error {
	var (
		begun = make([]time.Time, len(m.rps))
		errs  = make([]error, len(m.rps))
		room  = make(chan struct{}, runtime.NumCPU())
		wg    sync.WaitGroup
	)
	m.peers = make([]*lightpeer.Swarm, len(m.rps))
	for i, r := range m.rps {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			begun[i] = time.Now()
			if errs[i] = r.Start(ctx); errs[i] == nil {
				m.peers[i], errs[i] = m.newPeer(i)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	last := slices.MaxFunc(begun, time.Time.Compare)
	stop := m.publish(m.sources, m.trickle())
	delivered, err := m.waitDelivery(ctx)
	stop() // to ask all RPs takes the time of the machine
	if err != nil {
		return err
	}
	var complete time.Time
	bounded, cancel := context.WithTimeout(ctx, waitMax)
	defer cancel()
	err = node.Wait(bounded, "a complete mesh", func(ctx context.Context) (err error) {
		complete, err = m.complete(ctx)
		return err
	})
	if err != nil {
		return err
	}
	m.result.CompleteS = complete.Sub(last).Seconds()
	m.result.ConvergeS = max(complete.Sub(last), delivered.Sub(last)).Seconds()
	m.result.Engine, err = m.rps[0].Engine(ctx)
	return err
}

// publish has sources publish at a rate each, in datagrams per second, until the
// function that it returns is called, which tells what they sent. What a source that
// is no member sends is lost.
func (m *mesh) publish(sources []int, rate float64) (stop func() []span) {
	var (
		spans = make([]span, len(sources))
		end   = make(chan struct{})
		wg    sync.WaitGroup
	)
	for i, source := range sources {
		spans[i] = span{source: source, from: m.book.next(source)}
		wg.Go(func() {
			interval := time.Duration(float64(time.Second) / rate)
			next := time.Now().Add(interval * time.Duration(i) / time.Duration(len(sources)))
			for {
				select {
				case <-end:
					return
				case <-time.After(time.Until(next)):
				}
				number := m.book.send(source)
				// The book knows what was not sent: it arrives nowhere.
				_ = m.peers[source].Publish(0, payload(source, number, payloadBytes))
				next = next.Add(interval)
			}
		})
	}
	return sync.OnceValue(func() []span {
		close(end)
		wg.Wait()
		for i, source := range sources {
			spans[i].to = m.book.next(source)
		}
		return spans
	})
}

// waitDelivery waits until all that the sources publish has come everywhere, once and
// in time, for a while, and says since when.
func (m *mesh) waitDelivery(ctx context.Context) (since time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, waitMax)
	defer cancel()
	err = node.Wait(ctx, "delivery to all", func(context.Context) error {
		var spans []span
		for _, source := range m.sources {
			// What was sent just now is on its way.
			s := span{source: source, to: m.book.next(source) - int(m.trickle())}
			if s.to <= 0 {
				return fmt.Errorf("rp %d has not published yet", source)
			}
			spans = append(spans, s)
		}
		at, ok := m.book.delivered(spans)
		if !ok {
			return errors.New(m.missing(spans))
		}
		if calm := m.book.now() - at - time.Second; calm < calmTime {
			return fmt.Errorf("all is delivered, for %v", calm.Round(time.Millisecond))
		}
		since = m.book.start.Add(at)
		return nil
	})
	return since, err
}

// trickle is the rate of each source where nothing else is said.
func (m *mesh) trickle() float64 {
	return min(trickleRate, trickleCopies/float64(m.cfg.RPs*len(m.sources)))
}

func (m *mesh) isSource(rp int) bool { return slices.Contains(m.sources, rp) }

// missing says what of the newest datagrams did not come, and who is no member.
func (m *mesh) missing(spans []span) string {
	text := ""
	for i, p := range m.peers {
		if p.Counters().Members == 0 {
			text += fmt.Sprintf("the peer of %s is no member; ", m.hosts[i].Name)
		}
	}
	var sum outcome
	for _, s := range spans {
		s.from = max(0, s.to-int(m.trickle()))
		sum.add(m.book.outcome(s, all))
	}
	return text + fmt.Sprintf("of %d arrivals %d are lost, %d late, %d twice", sum.expected, sum.lost, sum.late, sum.duplicated)
}

// pause waits, or ends early with an error when ctx does.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
