// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/safchain/ethtool"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/datapathtest"
	"github.com/ethmcast/mdcs/rp/datapath/socket"
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(childEnv); spec != "" {
		os.Exit(child(spec))
	}
	goleak.VerifyTestMain(m)
}

// gro makes an interface poll: a veth takes redirected frames only then.
func gro(t testing.TB, name string) {
	tool, err := ethtool.NewEthtool()
	require.NoError(t, err)
	defer tool.Close()
	require.NoError(t, tool.Change(name, map[string]bool{"rx-gro": true}))
}

// subject is an engine with real hosts around it. It serves any engine.
type subject struct {
	datapath.Engine
	lab     *lab
	nodes   map[netip.AddrPort]*node
	ports   uint16      // of the endpoints
	settled func() bool // nothing is on its way within the engine
}

// node is a UDP socket of a host.
type node struct {
	addr netip.AddrPort
	conn *net.UDPConn
}

// received is a datagram that reached a node.
type received struct {
	datapathtest.Output
	at time.Duration // by the kernel's clock
}

func newSubject(l *lab, e datapath.Engine, ports uint16, settled func() bool) *subject {
	s := &subject{Engine: e, lab: l, nodes: make(map[netip.AddrPort]*node), ports: ports, settled: settled}
	for i := range datapathtest.Endpoints {
		s.node(s.Endpoint(i))
	}
	return s
}

// newXDPSubject returns an engine with one device in front of one host.
func newXDPSubject(t *testing.T, cfg datapath.Config, quiet time.Duration) *subject {
	return newSubjectAt(newLab(t, 1), cfg, Options{Quiet: quiet})
}

func newSubjectAt(l *lab, cfg datapath.Config, opt Options) *subject {
	cfg.Addr = netip.AddrPortFrom(l.rpAddr(0), 0)
	return newSubjectWith(l, cfg, opt)
}

func newSubjectWith(l *lab, cfg datapath.Config, opt Options) *subject {
	opt.Devices = l.devices()
	e := l.attach(func() (*Engine, error) { return Attach(cfg, opt) })
	return newSubject(l, e, 40000, e.settled)
}

// newSocketSubject returns the engine that needs no kernel programs, at another address of the same RP.
func newSocketSubject(l *lab, cfg datapath.Config) *subject {
	addr := l.rpAddr(0).Next().Next().Next()
	l.addAddr(l.rp, l.device(0), addr, 128)
	cfg.Addr = netip.AddrPortFrom(addr, 0)
	var e *socket.Engine
	l.in(l.rp, func() {
		var err error
		e, err = socket.Listen(cfg)
		require.NoError(l.t, err)
	})
	l.t.Cleanup(func() { require.NoError(l.t, e.Close()) })
	// A change of routes waits until what passed was sent.
	nothing := datapath.Change{Routes: []datapath.Route{{Ingress: 1}}}
	return newSubject(l, e, 41000, func() bool { return e.Apply(nothing) == nil })
}

// settled reports whether all that entered a queue came out of it.
func (e *Engine) settled() bool {
	c := e.Counters()
	return c.Queued == c.Dequeued && c.Chained == c.Recirculated && c.Planned == c.Made
}

func (s *subject) Endpoint(i int) netip.AddrPort {
	return netip.AddrPortFrom(s.lab.hostAddr(0), s.ports+uint16(i))
}

// Elsewhere implements datapathtest.SitesSubject.
func (s *subject) Elsewhere() netip.AddrPort {
	return netip.MustParseAddrPort("[2001:db8:1::2]:40000")
}

// Elapse implements datapathtest.SitesSubject.
func (s *subject) Elapse(d time.Duration) {
	e := s.Engine.(*Engine)
	require.NoError(s.lab.t, e.do(func() {
		for i := range e.objects.Memory.Egresses.Len() {
			due := &e.objects.Memory.Egresses.At(i).Due
			atomic.StoreUint64(due, uint64(max(0, int64(atomic.LoadUint64(due))-int64(d))))
		}
	}))
}

// Apply makes sure that those who join are there.
func (s *subject) Apply(c datapath.Change) error {
	for i := range c.Add {
		if addr := c.Add[i].Addr; s.lab.host(addr.Addr()) >= 0 && addr.Port() != 0 {
			s.node(addr)
		}
	}
	if err := s.Engine.Apply(c); err != nil {
		return err
	}
	if e, ok := s.Engine.(*Engine); ok {
		// On a machine under load a host may take longer than Apply waits.
		require.Eventually(s.lab.t, func() bool { return e.missing() == 0 }, 30*time.Second, time.Millisecond)
	}
	return nil
}

// missing returns how many receivers and silent publishers have no next hop.
func (e *Engine) missing() (n int) {
	_ = e.do(func() {
		for _, g := range e.table.groups {
			n += g.peers.Missing()
		}
		for _, s := range e.table.streams {
			n += s.chain.Missing()
		}
		for _, s := range e.table.sessions {
			if _, ok := e.fanout.Echoes()[s.Index]; s.Silent && s.Publish && !ok {
				n++
			}
		}
	})
	return n
}

// node returns the node with an address, which it makes.
func (s *subject) node(addr netip.AddrPort) *node {
	s.lab.t.Helper()
	if n := s.nodes[addr]; n != nil {
		return n
	}
	ns := s.lab.hosts[s.lab.host(addr.Addr())]
	s.lab.addAddr(ns, "h0", addr.Addr(), 128)
	n := s.lab.listen(ns, addr)
	s.nodes[addr] = n
	return n
}

// listen returns a node in a namespace.
func (l *lab) listen(ns netns.NsHandle, addr netip.AddrPort) *node {
	l.t.Helper()
	n := &node{addr: addr}
	l.in(ns, func() {
		var err error
		n.conn, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(addr))
		require.NoError(l.t, err)
		raw, err := n.conn.SyscallConn()
		require.NoError(l.t, err)
		require.NoError(l.t, raw.Control(func(fd uintptr) {
			require.NoError(l.t, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1))
			require.NoError(l.t, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
		}))
	})
	l.t.Cleanup(func() { n.conn.Close() })
	return n
}

// take returns what waits at the node.
func (n *node) take(t testing.TB, from netip.AddrPort) (all []received) {
	raw, err := n.conn.SyscallConn()
	require.NoError(t, err)
	b, oob := make([]byte, 2048), make([]byte, 256)
	require.NoError(t, raw.Read(func(fd uintptr) bool {
		for {
			size, oobSize, _, src, err := unix.Recvmsg(int(fd), b, oob, unix.MSG_DONTWAIT)
			if errors.Is(err, unix.EAGAIN) {
				return true
			}
			require.NoError(t, err)
			sa := src.(*unix.SockaddrInet6)
			require.Equal(t, from, netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)))
			all = append(all, received{
				Output: datapathtest.Output{Dst: n.addr, Data: slices.Clone(b[:size])},
				at:     timestamp(t, oob[:oobSize]),
			})
		}
	}))
	return all
}

func timestamp(t testing.TB, oob []byte) time.Duration {
	messages, err := unix.ParseSocketControlMessage(oob)
	require.NoError(t, err)
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS {
			return time.Duration(native.Uint64(m.Data))*time.Second + time.Duration(native.Uint64(m.Data[8:]))
		}
	}
	t.Fatal("no timestamp")
	return 0
}

// waiting returns what reached the nodes, in the order of arrival.
func (s *subject) waiting() (all []received) {
	for _, n := range s.nodes {
		all = append(all, n.take(s.lab.t, s.Addr())...)
	}
	slices.SortStableFunc(all, func(a, b received) int { return int(a.at - b.at) })
	return all
}

func sent(st datapath.Stats) uint64 { return st.Copies + st.Echoes + st.Heartbeats }

// Receive implements datapathtest.Subject.
func (s *subject) Receive(src netip.AddrPort, b []byte) (wire.Verdict, []datapathtest.Output) {
	t := s.lab.t
	t.Helper()
	require.Empty(t, s.waiting(), "left from before")
	before := s.Stats()
	_, err := s.node(src).conn.WriteToUDPAddrPort(b, s.Addr())
	require.NoError(t, err)
	verdict, deadline := wire.Verdict(0), time.Now().Add(10*time.Second)
	for {
		after := s.Stats().Verdicts
		i := slices.IndexFunc(wire.Verdicts(), func(v wire.Verdict) bool { return after[v] != before.Verdicts[v] })
		if i >= 0 {
			verdict = wire.Verdict(i)
			break
		}
		require.True(t, time.Now().Before(deadline), "no verdict")
		time.Sleep(20 * time.Microsecond)
	}
	if verdict != wire.Pass {
		return verdict, s.outputs(s.waiting())
	}
	return verdict, s.collect(sent(before))
}

// Heartbeat implements datapathtest.Subject.
func (s *subject) Heartbeat(scope datapath.HeartbeatScope) []datapathtest.Output {
	before := s.Stats()
	require.NoError(s.lab.t, s.Engine.Heartbeat(scope))
	return s.collect(sent(before))
}

// Hello implements datapathtest.Subject.
func (s *subject) Hello(session ids.Session, hello [wire.HelloSize]byte) (out []datapathtest.Output, err error) {
	if err := s.Engine.Hello(session, hello); err != nil {
		return nil, err
	}
	require.Eventually(s.lab.t, func() bool {
		out = s.outputs(s.waiting())
		return len(out) > 0
	}, 10*time.Second, time.Millisecond)
	return out, nil
}

// Age implements datapathtest.Subject.
func (s *subject) Age(newest, heartbeat time.Duration) {
	if other, ok := s.Engine.(interface{ Age(_, _ time.Duration) }); ok {
		other.Age(newest, heartbeat)
		return
	}
	e := s.Engine.(*Engine)
	require.NoError(s.lab.t, e.do(func() { e.table.age(newest, heartbeat) }))
}

// age makes what is known of streams older. Nothing is older than the clock.
func (t *table) age(newest, heartbeat time.Duration) {
	for _, s := range t.streams {
		state := t.e.objects.Memory.Streams.At(s.element)
		for word, by := range map[*uint64]time.Duration{&state.Moved: newest, &state.TopAt: newest, &state.BeatDue: heartbeat} {
			atomic.StoreUint64(word, uint64(max(0, int64(atomic.LoadUint64(word))-int64(by))))
		}
	}
}

// Resend implements datapathtest.Subject.
func (s *subject) Resend(session ids.Session, datagrams [][]byte) ([]datapathtest.Output, error) {
	before := s.Stats()
	err := s.Engine.Resend(session, datagrams)
	return s.collect(sent(before)), err
}

// collect returns what the engine has sent since a count, when all has arrived.
func (s *subject) collect(before uint64) []datapathtest.Output {
	t := s.lab.t
	t.Helper()
	var all []received
	still, deadline := 0, time.Now().Add(10*time.Second)
	for still < 3 {
		n := len(all)
		all = append(all, s.waiting()...)
		if s.settled() && len(all) == n && sent(s.Stats())-before == uint64(n) {
			still++
		} else {
			still = 0
		}
		require.True(t, time.Now().Before(deadline), "%d datagrams arrived, %d sent", len(all), sent(s.Stats())-before)
		time.Sleep(300 * time.Microsecond)
	}
	slices.SortStableFunc(all, func(a, b received) int { return int(a.at - b.at) })
	return s.outputs(all)
}

func (s *subject) outputs(all []received) (out []datapathtest.Output) {
	for _, r := range all {
		out = append(out, r.Output)
	}
	return out
}
