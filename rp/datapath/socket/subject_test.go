// SPDX-License-Identifier: LGPL-3.0-or-later

package socket

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/datapathtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestTable runs the engines' tests on the core and the sender, without a socket.
func TestTable(t *testing.T) {
	datapathtest.Run(t, func(_ *testing.T, cfg datapath.Config) datapathtest.Subject {
		return newTableSubject(cfg)
	})
}

// TestSocketEngine runs them over real UDP sockets on the loopback interface.
func TestSocketEngine(t *testing.T) { datapathtest.Run(t, newEngineSubject) }

// TestChannels runs those of multicast channels, without a socket.
func TestChannels(t *testing.T) {
	datapathtest.RunChannels(t, func(_ *testing.T, cfg datapath.Config) datapathtest.Subject {
		return newTableSubject(cfg)
	})
}

// TestSites runs those of the sites' shares, without a socket.
func TestSites(t *testing.T) {
	datapathtest.RunSites(t, func(_ *testing.T, cfg datapath.Config) datapathtest.SitesSubject {
		return newTableSubject(cfg)
	})
}

// tableSubject is the engine without socket and clock.
type tableSubject struct {
	*table
	sender *sender
	taps   taps
	wire   *recorder
	now    time.Duration
}

func newTableSubject(cfg datapath.Config) *tableSubject {
	r := new(recorder)
	return &tableSubject{
		table:  newTable(cfg),
		sender: newSender(r),
		taps:   taps{hello: cfg.Hello, cache: cfg.Cache},
		wire:   r,
		now:    time.Second,
	}
}

func (s *tableSubject) Endpoint(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), uint16(40000+i))
}

func (s *tableSubject) Elsewhere() netip.AddrPort {
	return netip.MustParseAddrPort("[2001:db8:1::1]:40000")
}

func (s *tableSubject) Elapse(d time.Duration) { s.now += d }

func (s *tableSubject) Channel() netip.AddrPort {
	return netip.AddrPortFrom(proto.GroupAddr(5).WithZone("7"), 40100)
}

func (s *tableSubject) Apply(c datapath.Change) error { return s.apply(s.now, c) }

func (s *tableSubject) Marks() []proto.Mark { return s.marks() }

func (s *tableSubject) Stats() datapath.Stats {
	st := datapath.Stats{
		Copies:     s.sender.sent.copies.Load(),
		CopyBytes:  s.sender.sent.copyBytes.Load(),
		Echoes:     s.sender.sent.echoes.Load(),
		SendErrors: s.sender.sent.errors.Load(),
	}
	st.Verdicts, st.Sessions = s.stats(time.Unix(0, 0))
	return st
}

func (s *tableSubject) Receive(src netip.AddrPort, b []byte) (wire.Verdict, []datapathtest.Output) {
	var f fanout
	v := s.process(s.now, src, b, &f)
	s.sender.send(&f)
	if v == wire.Pass {
		s.taps.take(&f)
	}
	return v, s.wire.take()
}

func (s *tableSubject) Heartbeat(scope datapath.HeartbeatScope) []datapathtest.Output {
	for _, f := range s.heartbeats(scope) {
		s.sender.send(&f)
	}
	return s.wire.take()
}

func (s *tableSubject) Hello(session ids.Session, hello [wire.HelloSize]byte) ([]datapathtest.Output, error) {
	to, b, err := s.hello(session, hello)
	if err != nil {
		return nil, err
	}
	return []datapathtest.Output{{Dst: to.Addr, Data: b[:]}}, nil
}

func (s *tableSubject) Resend(session ids.Session, datagrams [][]byte) ([]datapathtest.Output, error) {
	to, err := s.resendTo(session, datagrams)
	if err != nil {
		return nil, err
	}
	if err := s.spare(0, datagrams); err != nil {
		return nil, err
	}
	s.sender.resend(to, datagrams)
	return s.wire.take(), nil
}

func (s *tableSubject) SetEgress(rate, burst uint64) { s.setEgress(rate, burst) }

func (s *tableSubject) Heard(session ids.Session) time.Time { return s.heard(session, time.Now()) }

// Age implements datapathtest.Subject.
func (s *tableSubject) Age(newest, heartbeat time.Duration) { s.age(newest, heartbeat) }

// recorder is a batchWriter that keeps what is written, a few datagrams at a time.
type recorder struct {
	out    []datapathtest.Output
	refuse func(dst netip.AddrPort) bool
}

func (r *recorder) WriteBatch(ms []ipv6.Message, _ int) (n int, err error) {
	for _, m := range ms[:min(len(ms), 3)] {
		dst := destination(&m)
		if r.refuse != nil && r.refuse(dst) {
			if n == 0 {
				return 0, errors.New("no route")
			}
			return n, nil
		}
		r.out = append(r.out, datapathtest.Output{Dst: dst, Data: slices.Concat(m.Buffers...)})
		n++
	}
	return n, nil
}

// destination returns where a message goes: the zone of a multicast address is
// the interface of the control message.
func destination(m *ipv6.Message) netip.AddrPort {
	dst := m.Addr.(*net.UDPAddr).AddrPort()
	var control ipv6.ControlMessage
	if err := control.Parse(m.OOB); err == nil && control.IfIndex != 0 {
		dst = netip.AddrPortFrom(dst.Addr().WithZone(strconv.Itoa(control.IfIndex)), dst.Port())
	}
	return dst
}

func (r *recorder) take() []datapathtest.Output {
	out := r.out
	r.out = nil
	return out
}

// engineSubject is the engine with a socket for each node around it.
type engineSubject struct {
	*Engine
	t     *testing.T
	nodes []*net.UDPConn
}

func newEngineSubject(t *testing.T, cfg datapath.Config) datapathtest.Subject {
	cfg.Addr = loopback
	return newEngineSubjectAt(t, cfg)
}

// newEngineSubjectAt returns a subject at an address of this host.
func newEngineSubjectAt(t *testing.T, cfg datapath.Config) *engineSubject {
	e, err := Listen(cfg)
	require.NoError(t, err)
	s := &engineSubject{Engine: e, t: t}
	for range datapathtest.Endpoints {
		c, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(cfg.Addr))
		require.NoError(t, err)
		s.nodes = append(s.nodes, c)
	}
	t.Cleanup(func() {
		for _, c := range s.nodes {
			c.Close()
		}
		require.NoError(t, e.Close())
	})
	return s
}

func (s *engineSubject) Endpoint(i int) netip.AddrPort { return localAddr(s.nodes[i]) }

func localAddr(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

func (s *engineSubject) Receive(src netip.AddrPort, b []byte) (wire.Verdict, []datapathtest.Output) {
	s.t.Helper()
	before := s.Stats().Verdicts
	i := slices.IndexFunc(s.nodes, func(c *net.UDPConn) bool { return localAddr(c) == src })
	_, err := s.nodes[i].WriteToUDPAddrPort(b, s.Addr())
	require.NoError(s.t, err)
	var verdict wire.Verdict
	require.Eventually(s.t, func() bool {
		after := s.Stats().Verdicts
		for v := range after {
			if after[v] != before[v] {
				verdict = wire.Verdict(v)
				return true
			}
		}
		return false
	}, 10*time.Second, time.Millisecond, "no verdict")
	// The lock is free when all copies were sent, and the loopback interface
	// delivers before a send returns.
	s.sending.Lock()
	defer s.sending.Unlock()
	return verdict, s.received()
}

func (s *engineSubject) Heartbeat(scope datapath.HeartbeatScope) []datapathtest.Output {
	require.NoError(s.t, s.Engine.Heartbeat(scope))
	return s.received()
}

func (s *engineSubject) Hello(session ids.Session, hello [wire.HelloSize]byte) ([]datapathtest.Output, error) {
	err := s.Engine.Hello(session, hello)
	return s.received(), err
}

func (s *engineSubject) Resend(session ids.Session, datagrams [][]byte) ([]datapathtest.Output, error) {
	err := s.Engine.Resend(session, datagrams)
	return s.received(), err
}

// received returns what waits at the nodes.
func (s *engineSubject) received() (out []datapathtest.Output) {
	for _, c := range s.nodes {
		m := []ipv6.Message{{Buffers: [][]byte{make([]byte, 2048)}}}
		for {
			_, err := ipv6.NewPacketConn(c).ReadBatch(m, unix.MSG_DONTWAIT)
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			require.NoError(s.t, err)
			require.Equal(s.t, s.Addr(), m[0].Addr.(*net.UDPAddr).AddrPort())
			out = append(out, datapathtest.Output{Dst: localAddr(c), Data: slices.Clone(m[0].Buffers[0][:m[0].N])})
		}
	}
	return out
}
