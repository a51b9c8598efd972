// SPDX-License-Identifier: LGPL-3.0-or-later

package socket

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/datapathtest"
)

// links are veth pairs between two network namespaces: near, where the engine is,
// and far, where those are who listen. Pair i has the interfaces n<i> with the
// address 2001:db8:0:<i>::1 and f<i> with 2001:db8:0:<i>::2.
type links struct {
	t         *testing.T
	near, far netns.NsHandle
	nl        *netlink.Handle // of near
}

func newLinks(t *testing.T, pairs int) *links {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	l := &links{t: t}
	l.near, l.far = newNamespace(t), newNamespace(t)
	for _, ns := range []netns.NsHandle{l.near, l.far} {
		l.in(ns, func() { // the link-local address, too, is valid at once
			require.NoError(t, os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0))
		})
	}
	var err error
	l.nl, err = netlink.NewHandleAt(l.near)
	require.NoError(t, err)
	t.Cleanup(l.nl.Close)
	farNL, err := netlink.NewHandleAt(l.far)
	require.NoError(t, err)
	defer farNL.Close()
	up(t, l.nl, "lo", "")
	for i := range pairs {
		near, far := fmt.Sprint("n", i), fmt.Sprint("f", i)
		attrs := netlink.NewLinkAttrs()
		attrs.Name = near
		require.NoError(t, l.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: far, PeerNamespace: netlink.NsFd(l.far)}))
		up(t, l.nl, near, fmt.Sprintf("2001:db8:0:%d::1/64", i))
		up(t, farNL, far, fmt.Sprintf("2001:db8:0:%d::2/64", i))
		require.Eventually(t, func() bool {
			return ready(l.nl, near, fmt.Sprintf("2001:db8:0:%d::1", i)) && ready(farNL, far, fmt.Sprintf("2001:db8:0:%d::2", i))
		}, 10*time.Second, time.Millisecond)
	}
	return l
}

// newNamespace makes a namespace without a name, which goes with the test.
func newNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	require.NoError(t, err)
	defer here.Close()
	ns, err := netns.New()
	require.NoError(t, err)
	require.NoError(t, netns.Set(here))
	t.Cleanup(func() { ns.Close() })
	return ns
}

// up gives an interface an address that is valid at once, and sets it up.
func up(t *testing.T, nl *netlink.Handle, name, addr string) {
	t.Helper()
	link, err := nl.LinkByName(name)
	require.NoError(t, err)
	if addr != "" {
		a, err := netlink.ParseAddr(addr)
		require.NoError(t, err)
		a.Flags = unix.IFA_F_NODAD
		require.NoError(t, nl.AddrAdd(link, a))
	}
	require.NoError(t, nl.LinkSetUp(link))
}

// ready reports whether an interface carries frames and its address is routed to
// the host, which the kernel both does some time later.
func ready(nl *netlink.Handle, name, addr string) bool {
	link, err := nl.LinkByName(name)
	if err != nil || link.Attrs().OperState != netlink.OperUp {
		return false
	}
	routes, err := nl.RouteGet(net.ParseIP(addr))
	return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
}

// in runs f on a thread in a namespace.
func (l *links) in(ns netns.NsHandle, f func()) {
	l.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	require.NoError(l.t, err)
	defer here.Close()
	require.NoError(l.t, netns.Set(ns))
	defer func() { require.NoError(l.t, netns.Set(here)) }()
	f()
}

// index returns the index of a near interface, and how many packets left by it.
func (l *links) index(pair int) (index int, sent uint64) {
	l.t.Helper()
	link, err := l.nl.LinkByName(fmt.Sprint("n", pair))
	require.NoError(l.t, err)
	return link.Attrs().Index, link.Attrs().Statistics.TxPackets
}

// channelSubject is the engine with a receiver that made a source-specific join
// at the other end of a link.
type channelSubject struct {
	*engineSubject
	channel  netip.AddrPort
	receiver *net.UDPConn
	marker   *net.UDPConn // sends over the link to the receiver
}

func (s *channelSubject) Channel() netip.AddrPort { return s.channel }

func (s *channelSubject) Receive(src netip.AddrPort, b []byte) (wire.Verdict, []datapathtest.Output) {
	s.t.Helper()
	v, out := s.engineSubject.Receive(src, b)
	return v, append(out, s.byChannel()...)
}

func (s *channelSubject) Heartbeat(scope datapath.HeartbeatScope) []datapathtest.Output {
	return append(s.engineSubject.Heartbeat(scope), s.byChannel()...)
}

// byChannel returns what was sent to the receiver: what comes before a datagram
// that takes the same way after it.
func (s *channelSubject) byChannel() (out []datapathtest.Output) {
	s.t.Helper()
	_, err := s.marker.Write([]byte("mark"))
	require.NoError(s.t, err)
	require.NoError(s.t, s.receiver.SetReadDeadline(time.Now().Add(10*time.Second)))
	b := make([]byte, 2048)
	for {
		n, src, err := s.receiver.ReadFromUDPAddrPort(b)
		require.NoError(s.t, err)
		if src == localAddr(s.marker) {
			return out
		}
		require.Equal(s.t, s.Addr(), src)
		out = append(out, datapathtest.Output{Dst: s.channel, Data: slices.Clone(b[:n])})
	}
}

// TestNetnsChannels runs the tests of channels over a real link.
func TestNetnsChannels(t *testing.T) {
	l := newLinks(t, 1)
	index, _ := l.index(0)
	datapathtest.RunChannels(t, func(t *testing.T, cfg datapath.Config) datapathtest.Subject {
		s := &channelSubject{channel: netip.AddrPortFrom(proto.GroupAddr(5).WithZone(strconv.Itoa(index)), 40100)}
		cfg.Addr = netip.MustParseAddrPort("[2001:db8::1]:0")
		l.in(l.near, func() {
			s.engineSubject = newEngineSubjectAt(t, cfg)
			var err error
			s.marker, err = net.DialUDP("udp6", net.UDPAddrFromAddrPort(cfg.Addr),
				&net.UDPAddr{IP: net.ParseIP("2001:db8::2"), Port: int(s.channel.Port())})
			require.NoError(t, err)
			t.Cleanup(func() { s.marker.Close() })
		})
		l.in(l.far, func() {
			intf, err := net.InterfaceByName("f0")
			require.NoError(t, err)
			group := &net.UDPAddr{IP: proto.GroupAddr(5).AsSlice(), Port: int(s.channel.Port())}
			s.receiver, err = net.ListenUDP("udp6", group)
			require.NoError(t, err)
			t.Cleanup(func() { s.receiver.Close() })
			source := &net.UDPAddr{IP: s.Addr().Addr().AsSlice()}
			require.NoError(t, ipv6.NewPacketConn(s.receiver).JoinSourceSpecificGroup(intf, group, source))
		})
		return s
	})
}

// A channel leaves by the interface of its zone, and that is the one by which the
// host routes to a peer.
func TestNetnsChannelInterface(t *testing.T) {
	l := newLinks(t, 2)
	var e *Engine
	var err error
	l.in(l.near, func() {
		e, err = Listen(datapath.Config{Addr: netip.MustParseAddrPort("[2001:db8::1]:0"), Incarnation: own, HopLimit: 9})
	})
	require.NoError(t, err)
	defer e.Close()
	hops, err := e.batch.MulticastHopLimit()
	require.NoError(t, err)
	require.Equal(t, 9, hops)

	const many = 50 // more than what the host sends by itself
	for i := range 2 {
		var zone string
		l.in(l.near, func() { zone, err = e.Link(netip.MustParseAddr(fmt.Sprintf("2001:db8:0:%d::2", i))) })
		require.NoError(t, err)
		index, before := l.index(i)
		require.Equal(t, strconv.Itoa(index), zone)
		_, beside := l.index(1 - i)

		channel := netip.AddrPortFrom(proto.GroupAddr(txs).WithZone(zone), 40100)
		for range many {
			require.NoError(t, e.Probe(channel, [wire.NonceSize]byte{1}, wire.MaxDatagram))
		}
		_, probed := l.index(i)
		require.GreaterOrEqual(t, probed-before, uint64(many), "PROBEs by this interface")
		require.NoError(t, e.Apply(datapath.Change{
			Keys: []proto.GroupKey{{Ingress: own, Group: txs, Key: ownKey}},
			Add: []datapath.Session{{
				Index: 1, Role: datapath.Channel, Addr: channel, SendSession: 1, Groups: []ids.Group{txs},
			}},
		}))
		for range many {
			require.NoError(t, e.Heartbeat(datapath.Local))
		}
		_, beaten := l.index(i)
		require.GreaterOrEqual(t, beaten-probed, uint64(many), "heartbeats by this interface")
		_, after := l.index(1 - i)
		require.Less(t, after-beside, uint64(many), "nothing by the other one")
	}
	l.in(l.near, func() { _, err = e.Link(netip.MustParseAddr("2001:db8:ffff::1")) })
	require.Error(t, err, "no route")
	st := e.Stats()
	require.Equal(t, []uint64{2 * many, 2 * many, 0}, []uint64{st.Probes, st.Heartbeats, st.SendErrors})
}
