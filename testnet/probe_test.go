// SPDX-License-Identifier: LGPL-3.0-or-later

package testnet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet/topology"
)

// prober sends datagrams between all hosts of a net. Each host has one socket,
// which answers what others ask.
type prober struct {
	t     *testing.T
	hosts []topology.Host
	conns []*net.UDPConn

	mu      sync.Mutex
	asked   map[uint64]time.Time // when, by number
	answers map[uint64]time.Duration
}

const probePort = 7

func newProber(t *testing.T, n *Net, hosts []topology.Host) *prober {
	p := &prober{t: t, hosts: hosts, asked: make(map[uint64]time.Time), answers: make(map[uint64]time.Duration)}
	for _, h := range hosts {
		ns, err := n.Namespace(h.Name)
		require.NoError(t, err)
		require.NoError(t, ns.Do(func() error {
			conn, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(h.Addr, probePort)))
			p.conns = append(p.conns, conn)
			return err
		}))
		conn := p.conns[len(p.conns)-1]
		t.Cleanup(func() { conn.Close() })
		go p.serve(conn)
	}
	return p
}

// A probe is a byte, question or answer, and a number of 8 bytes.
const (
	question = 'q'
	answer   = 'a'
	probeLen = 9
)

func (p *prober) serve(conn *net.UDPConn) {
	b := make([]byte, 64)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return // closed
		}
		switch {
		case n != probeLen:
		case b[0] == question:
			b[0] = answer
			conn.WriteToUDPAddrPort(b[:n], from)
		default:
			now, number := time.Now(), binary.BigEndian.Uint64(b[1:])
			p.mu.Lock()
			if at, ok := p.asked[number]; ok {
				p.answers[number] = now.Sub(at)
				delete(p.asked, number)
			}
			p.mu.Unlock()
		}
	}
}

// ask sends a question, which never waits, and returns its number.
func (p *prober) ask(from, to int) uint64 {
	p.mu.Lock()
	number := uint64(len(p.asked)+len(p.answers))<<32 | uint64(from)<<16 | uint64(to)
	p.asked[number] = time.Now()
	p.mu.Unlock()
	b := make([]byte, probeLen)
	b[0] = question
	binary.BigEndian.PutUint64(b[1:], number)
	p.conns[from].WriteToUDPAddrPort(b, netip.AddrPortFrom(p.hosts[to].Addr, probePort)) // no route: as if it were lost
	return number
}

// rounds asks along all pairs of the hosts that match, several times, and returns
// the round-trip times of each pair by the numbers of the hosts. Whoever does not
// answer within the pause has lost. The questions do not go out all at once: their
// sender would delay them.
func (p *prober) rounds(match func(topology.Host) bool, count int, pause time.Duration) map[[2]int][]time.Duration {
	numbers := make(map[uint64][2]int)
	for range count {
		for from, a := range p.hosts {
			for to, b := range p.hosts {
				if from != to && match(a) && match(b) {
					numbers[p.ask(from, to)] = [2]int{from, to}
					time.Sleep(200 * time.Microsecond)
				}
			}
		}
		time.Sleep(pause)
	}
	times := make(map[[2]int][]time.Duration)
	p.mu.Lock()
	defer p.mu.Unlock()
	for number, pair := range numbers {
		if d, ok := p.answers[number]; ok {
			times[pair] = append(times[pair], d)
		}
	}
	return times
}

// requireAll waits until all pairs of hosts reach each other.
func (p *prober) requireAll() {
	p.t.Helper()
	p.requireOnly(func(topology.Host, topology.Host) bool { return true })
}

// requireOnly waits until those pairs of hosts reach each other that should, and
// no others in the same round. Lines may lose frames: a pair counts if it worked
// once since the last round with one that should not.
func (p *prober) requireOnly(should func(a, b topology.Host) bool) {
	p.t.Helper()
	var missing, wrong []string
	reached := make(map[[2]int]bool)
	for range 15 {
		wrong, missing = nil, nil
		for pair := range p.rounds(func(topology.Host) bool { return true }, 1, 800*time.Millisecond) {
			reached[pair] = true
			if a, b := p.hosts[pair[0]], p.hosts[pair[1]]; !should(a, b) {
				wrong = append(wrong, a.Name+" to "+b.Name)
			}
		}
		for from, a := range p.hosts {
			for to, b := range p.hosts {
				if from != to && should(a, b) && !reached[[2]int{from, to}] {
					missing = append(missing, a.Name+" to "+b.Name)
				}
			}
		}
		if len(missing)+len(wrong) == 0 {
			return
		}
		if len(wrong) > 0 {
			clear(reached)
		}
	}
	require.Empty(p.t, missing, "no path")
	require.Empty(p.t, wrong, "a path that should not be")
}

// watch asks along a path until it is stopped. The path must lose nothing by
// itself.
type watch struct {
	p        *prober
	from, to int
	stop     chan struct{}
	stopped  sync.WaitGroup

	mu   sync.Mutex
	sent []sentProbe
}

type sentProbe struct {
	number uint64
	at     time.Time
}

const watchStep = 10 * time.Millisecond

func (p *prober) watch(from, to int) *watch {
	w := &watch{p: p, from: from, to: to, stop: make(chan struct{})}
	w.stopped.Go(func() {
		tick := time.NewTicker(watchStep)
		defer tick.Stop()
		for {
			at := time.Now()
			number := p.ask(from, to)
			w.mu.Lock()
			w.sent = append(w.sent, sentProbe{number, at})
			w.mu.Unlock()
			select {
			case <-w.stop:
				return
			case <-tick.C:
			}
		}
	})
	return w
}

// answered are the times of the questions since a moment that were answered.
func (w *watch) answered(since time.Time) []time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	var times []time.Time
	for _, s := range w.sent {
		if _, ok := w.p.answers[s.number]; ok && !s.at.Before(since) {
			times = append(times, s.at)
		}
	}
	return times
}

// await waits until 30 questions since a moment were answered.
func (w *watch) await(since time.Time) {
	w.p.t.Helper()
	require.Eventually(w.p.t, func() bool { return len(w.answered(since)) >= 30 }, 30*time.Second, watchStep,
		"%s does not reach %s", w.p.hosts[w.from].Name, w.p.hosts[w.to].Name)
}

// outage makes a change, waits until the path works a second later, and returns
// the longest time between two questions in a row that were answered.
func (p *prober) outage(from, to string, change func()) time.Duration {
	p.t.Helper()
	w := p.watch(p.index(from), p.index(to))
	w.await(time.Now())
	begin := time.Now()
	change()
	w.await(begin.Add(time.Second))
	close(w.stop)
	w.stopped.Wait()
	var longest time.Duration
	times := w.answered(time.Time{})
	for i := range times[1:] {
		longest = max(longest, times[i+1].Sub(times[i]))
	}
	return longest
}

func (p *prober) index(host string) int {
	p.t.Helper()
	i := slices.IndexFunc(p.hosts, func(h topology.Host) bool { return h.Name == host })
	require.GreaterOrEqual(p.t, i, 0, host)
	return i
}
