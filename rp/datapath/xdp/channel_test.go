// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/objects"
)

// channelSubject is a subject whose first host listens to a channel on its link.
type channelSubject struct {
	*subject
	channel netip.AddrPort
}

func newChannelSubject(s *subject) *channelSubject {
	channel := s.lab.channel(0, s.ports+100)
	s.nodes[channel] = s.lab.join(s.lab.hosts[0], "h0", s.Addr().Addr(), channel)
	return &channelSubject{s, channel}
}

// Channel implements datapathtest.ChannelSubject.
func (s *channelSubject) Channel() netip.AddrPort { return s.channel }

// channel returns the address of a channel on the link to a host.
func (l *lab) channel(host int, port uint16) netip.AddrPort {
	l.t.Helper()
	zone := strconv.Itoa(l.index(host))
	return netip.AddrPortFrom(proto.GroupAddr(testGroup).WithZone(zone), port)
}

// index returns the index of the RP's interface to a host.
func (l *lab) index(host int) int {
	l.t.Helper()
	nl, err := netlink.NewHandleAt(l.rp)
	require.NoError(l.t, err)
	defer nl.Close()
	link, err := nl.LinkByName(l.device(host))
	require.NoError(l.t, err)
	return link.Attrs().Index
}

// join returns a node that made a source-specific join on an interface.
func (l *lab) join(ns netns.NsHandle, name string, source netip.Addr, channel netip.AddrPort) *node {
	l.t.Helper()
	group := netip.AddrPortFrom(channel.Addr().WithZone(""), channel.Port())
	n := l.listen(ns, group)
	n.addr = channel
	l.in(ns, func() {
		intf, err := net.InterfaceByName(name)
		require.NoError(l.t, err)
		require.NoError(l.t, ipv6.NewPacketConn(n.conn).JoinSourceSpecificGroup(intf,
			net.UDPAddrFromAddrPort(group), &net.UDPAddr{IP: source.AsSlice()}))
	})
	return n
}

// newChannelCrowd is a crowd on a channel, of which the first host publishes.
func newChannelCrowd(s *subject, channel netip.AddrPort) *crowd {
	l := s.lab
	c := &crowd{subject: s, sessions: []datapath.Session{{
		Index: 1, Role: datapath.Peer, Addr: netip.AddrPortFrom(l.hostAddr(0), 20000), SendSession: 0x10000,
		SendKey: auth.Key{'s'}, ReceiveKey: auth.Key{'r'}, Groups: []ids.Group{testGroup},
		Silent: true, Publish: true, Rate: 1_000_000, Burst: 1_000_000,
	}, {
		Index: 2, Role: datapath.Channel, Addr: channel, SendSession: 0x10001,
		SendKey: auth.Key{'c'}, Groups: []ids.Group{testGroup},
	}}}
	require.NoError(l.t, c.Apply(datapath.Change{
		Keys: []proto.GroupKey{{Ingress: testOwn, Group: testGroup}},
		Add:  c.sessions,
	}))
	return c
}

// arrives requires that a member of the crowd's channel gets sequences first to last,
// each once, and nothing else.
func (c *crowd) arrives(member *node, first, last uint64) {
	t := c.lab.t
	t.Helper()
	channel := &c.sessions[1]
	seen := make(map[uint64]int)
	require.True(t, eventually(func() bool {
		for _, r := range member.take(t, c.Addr()) {
			h, _, v := wire.Parse(r.Data)
			require.Equal(t, wire.Pass, v)
			require.Equal(t, []any{wire.Data, channel.SendSession}, []any{h.Type, h.Session})
			require.True(t, channel.SendKey.CheckHopTag(r.Data, h.HopTag))
			seen[h.Sequence]++
		}
		return len(seen) >= int(last-first)+1
	}), "%d of %d sequences", len(seen), last-first+1)
	for seq := first; seq <= last; seq++ {
		require.Equal(t, 1, seen[seq], "sequence %d", seq)
	}
	require.Len(t, seen, int(last-first)+1)
}

// tap reads the frames with datagrams of an engine at an interface.
type tap struct {
	t    testing.TB
	fd   int
	from netip.AddrPort
}

func (l *lab) tap(ns netns.NsHandle, name string, from netip.AddrPort) *tap {
	l.t.Helper()
	w := &tap{t: l.t, from: from}
	l.in(ns, func() {
		intf, err := net.InterfaceByName(name)
		require.NoError(l.t, err)
		const all = unix.ETH_P_ALL
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(objects.Port(all)))
		require.NoError(l.t, err)
		require.NoError(l.t, unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20))
		require.NoError(l.t, unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: objects.Port(all), Ifindex: intf.Index}))
	})
	l.t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

// tapped is what distinguishes a frame: where it goes, and how far.
type tapped struct {
	kind     wire.Type
	dst      netip.Addr
	mac      mac
	hopLimit uint8
}

// frames counts the frames since the last call.
func (w *tap) frames() map[tapped]int {
	w.t.Helper()
	count := make(map[tapped]int)
	b := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(w.fd, b, 0)
		if errors.Is(err, unix.EAGAIN) {
			return count
		}
		require.NoError(w.t, err)
		if n <= wireOff || be.Uint16(b[12:]) != unix.ETH_P_IPV6 || b[ipOff+6] != unix.IPPROTO_UDP ||
			netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[ipOff+8:])), be.Uint16(b[udpOff:])) != w.from {
			continue
		}
		dst := netip.AddrFrom16([16]byte(b[ipOff+24:]))
		count[tapped{wire.Type(b[wireOff] & 15), dst, mac(b), b[ipOff+7]}]++
	}
}

// macOf returns the Ethernet address of an interface.
func (l *lab) macOf(ns netns.NsHandle, name string) (addr mac) {
	l.t.Helper()
	l.in(ns, func() {
		intf, err := net.InterfaceByName(name)
		require.NoError(l.t, err)
		addr = mac(intf.HardwareAddr)
	})
	return addr
}

// newSwitchedLab puts a bridge with MLDv2 snooping and a querier between the RP and
// its first host, and more hosts behind the bridge:
//
//	         lan (br0)
//	 +--------+--------+--------+
//	p0       p1       p2       p3
//	 |        |        |        |
//	rp0      h0       h0       h0
//	rp    hosts[0]  more[0]  more[1] ...
func newSwitchedLab(t testing.TB, hosts int) (l *lab, lan netns.NsHandle, more []netns.NsHandle) {
	needKernel(t)
	ip, err := exec.LookPath("ip")
	require.NoError(t, err, "iproute2 is not installed: run make deps")
	l = &lab{t: t, rp: newNamespace(t), hosts: []netns.NsHandle{newNamespace(t)}}
	lan = newNamespace(t)
	for range hosts - 1 {
		more = append(more, newNamespace(t))
	}
	nl, err := netlink.NewHandleAt(lan)
	require.NoError(t, err)
	defer nl.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	require.NoError(t, nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	// A bridge floods until its querier is valid, one response interval (1/100 s) after it began.
	for _, args := range [][]string{
		{"mcast_snooping", "1", "mcast_mld_version", "2", "mcast_query_response_interval", "10"}, {"mcast_querier", "1"},
	} {
		l.in(lan, func() {
			out, err := exec.Command(ip, append([]string{"link", "set", "dev", "br0", "up", "type", "bridge"}, args...)...).CombinedOutput()
			require.NoError(t, err, "%s", out)
		})
	}
	for i, end := range append([]netns.NsHandle{l.rp, l.hosts[0]}, more...) {
		name, addr := "h0", l.rpAddr(0)
		if i == 0 {
			name = l.device(0)
		}
		for range i {
			addr = addr.Next()
		}
		l.plug(lan, fmt.Sprint("p", i), end, name, addr)
	}
	return l, lan, more
}

// plug joins an interface with an address to a port of the bridge.
func (l *lab) plug(lan netns.NsHandle, port string, end netns.NsHandle, name string, addr netip.Addr) {
	l.t.Helper()
	nl, err := netlink.NewHandleAt(lan)
	require.NoError(l.t, err)
	defer nl.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = port
	require.NoError(l.t, nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(end)}))
	link, err := nl.LinkByName(port)
	require.NoError(l.t, err)
	bridge, err := nl.LinkByName("br0")
	require.NoError(l.t, err)
	require.NoError(l.t, nl.LinkSetMaster(link, bridge))
	require.NoError(l.t, nl.LinkSetUp(link))
	l.in(lan, func() { gro(l.t, port) })
	l.setUp(end, name, addr)
	l.isUp(lan, port)
	l.isUp(end, name)
}

// One copy on the RP's link serves all who joined. The bridge keeps it from the others.
func TestXDPChannelBehindSnoopingBridge(t *testing.T) {
	const datagrams, hopLimit = 40, 3
	l, lan, more := newSwitchedLab(t, 4)
	s := newSubjectAt(l, datapath.Config{Incarnation: testOwn, HandleKey: auth.Key{'h'}, HopLimit: hopLimit}, Options{})
	channel := l.channel(0, 40100)
	group, groupMAC := channel.Addr().WithZone(""), mac{0x33, 0x33, 0x80, 0x00, 0x74, 0x78}
	var members []*node
	for _, ns := range []netns.NsHandle{l.hosts[0], more[0], more[1]} {
		members = append(members, l.join(ns, "h0", s.Addr().Addr(), channel))
	}
	link, outside := l.tap(lan, "p0", s.Addr()), l.tap(more[2], "h0", s.Addr())

	// The bridge knows who joined when a PROBE on the channel reaches them and nobody else. The
	// PROBEs before may come before a report of a member.
	probe := map[tapped]int{{wire.Probe, group, groupMAC, hopLimit}: 1}
	require.True(t, eventually(func() bool {
		for _, m := range members { // what is left of the try before
			m.take(t, s.Addr())
		}
		link.frames()
		outside.frames()
		require.NoError(t, s.Probe(channel, [wire.NonceSize]byte{1}, 1000))
		got := make([]int, len(members))
		for end := time.Now().Add(200 * time.Millisecond); slices.Contains(got, 0) && time.Now().Before(end); time.Sleep(time.Millisecond) {
			for i, m := range members {
				got[i] += len(m.take(t, s.Addr()))
			}
		}
		return slices.Equal(got, []int{1, 1, 1}) && maps.Equal(probe, link.frames()) && len(outside.frames()) == 0
	}))

	c := newChannelCrowd(s, channel)
	for range datagrams {
		c.publish(wire.MaxPayload)
	}
	for _, m := range members {
		c.arrives(m, 1, datagrams)
	}
	publisher := c.node(c.sessions[0].Addr)
	var echoes []received
	require.True(t, eventually(func() bool {
		echoes = append(echoes, publisher.take(t, s.Addr())...)
		return len(echoes) >= datagrams
	}))
	require.Equal(t, map[tapped]int{
		{wire.Data, group, groupMAC, hopLimit}:                                 datagrams,
		{wire.Echo, l.hostAddr(0), l.macOf(l.hosts[0], "h0"), unicastHopLimit}: datagrams,
	}, link.frames(), "on the link of the RP")
	require.NoError(t, s.Engine.Heartbeat(datapath.Local))
	beat := map[tapped]int{{wire.Heartbeat, group, groupMAC, hopLimit}: 1}
	require.True(t, eventually(func() bool { return len(members[2].take(t, s.Addr())) == 1 }))
	require.Equal(t, beat, link.frames(), "a silent peer gets no heartbeat")
	require.Empty(t, outside.frames())
	st := s.Stats()
	require.Equal(t, []uint64{datagrams, datagrams, 1, 0}, []uint64{st.Copies, st.Echoes, st.Heartbeats, st.SendErrors})
	require.Equal(t, uint64(datagrams+1), st.Sessions[1].Copies, "of the channel")
}

// eventually reports whether a condition holds soon.
func eventually(cond func() bool) bool {
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// No frame makes the engine believe that it came from a channel.
func TestXDPChannelIsNoSource(t *testing.T) {
	s := newChannelSubject(newXDPSubject(t, datapath.Config{Incarnation: testOwn}, -1))
	c := newChannelCrowd(s.subject, s.channel)
	e := c.Engine.(*Engine)
	h := wire.Header{Type: wire.Heartbeat, Session: c.sessions[1].Index, Group: testGroup}
	b := h.Append(nil)
	wire.SetHopTag(b, c.sessions[1].ReceiveKey.HopTag(b))
	action, _ := e.receive(t, frame(netip.AddrPortFrom(s.channel.Addr().WithZone(""), s.channel.Port()), e.Addr(), b))
	require.Equal(t, uint32(xdpDrop), action)
	require.Equal(t, wire.Counters{wire.BadSource: 1}, e.Stats().Verdicts)
}

// A channel leaves by the device of its zone, which is that of the route to its
// members. One on another interface is refused.
func TestXDPChannelInterface(t *testing.T) {
	l := newLab(t, 3)
	cfg := datapath.Config{Addr: netip.AddrPortFrom(l.rpAddr(0), 0), Incarnation: testOwn}
	e := l.attach(func() (*Engine, error) { return Attach(cfg, Options{Devices: l.devices()[:2]}) })
	s := newSubject(l, e, 40000, e.settled)
	for i := range 2 {
		zone, err := s.Engine.(datapath.Multicaster).Link(l.hostAddr(i))
		require.NoError(t, err)
		require.Equal(t, strconv.Itoa(l.index(i)), zone)
		here, there := l.tap(l.hosts[i], "h0", s.Addr()), l.tap(l.hosts[1-i], "h0", s.Addr())
		c := newChannelCrowd(s, l.channel(i, 40100))
		c.sent = uint64(10 * i)
		member := l.join(l.hosts[i], "h0", s.Addr().Addr(), c.sessions[1].Addr)
		for range 10 {
			c.publish(100)
		}
		c.arrives(member, c.sent-9, c.sent)
		require.Equal(t, 10, here.of(wire.Data))
		require.Zero(t, there.of(wire.Data))
	}
	_, err := e.Link(netip.MustParseAddr("2001:dead::1"))
	require.ErrorContains(t, err, "route to 2001:dead::1")
	const unserved = "rp2 is none of the devices rp0, rp1"
	_, err = e.Link(l.hostAddr(2))
	require.EqualError(t, err, unserved)
	err = e.Apply(datapath.Change{Add: []datapath.Session{{
		Index: 3, Role: datapath.Channel, Addr: l.channel(2, 40100), Groups: []ids.Group{testGroup},
	}}})
	require.ErrorContains(t, err, "session 00000003: channel ")
	require.ErrorContains(t, err, unserved)
	require.NoError(t, e.Close())
	_, err = e.Link(l.hostAddr(0))
	require.ErrorIs(t, err, datapath.ErrClosed)
}

// of counts the frames of a type since the last call.
func (w *tap) of(kind wire.Type) (n int) {
	w.t.Helper()
	for f, count := range w.frames() {
		if f.kind == kind {
			n += count
		}
	}
	return n
}

// A channel waits for its device. One that comes back with another index is that of
// another channel.
func TestXDPChannelDeviceComesBack(t *testing.T) {
	l := newLab(t, 2)
	s := newSubjectAt(l, datapath.Config{Incarnation: testOwn}, Options{})
	c := newChannelCrowd(s, l.channel(1, 40100))
	e := c.Engine.(*Engine)
	join := func() *node { return l.join(l.hosts[1], "h0", e.Addr().Addr(), c.sessions[1].Addr) }
	member := join()
	c.publish(100)
	c.arrives(member, 1, 1)
	reconnect := func(connect func()) {
		t.Helper()
		member.conn.Close()
		nl, err := netlink.NewHandleAt(l.rp)
		require.NoError(t, err)
		defer nl.Close()
		link, err := nl.LinkByName(l.device(1))
		require.NoError(t, err)
		require.NoError(t, nl.LinkDel(link))
		require.True(t, eventually(func() bool { return e.missing() == 1 }))
		connect()
	}
	reconnect(func() {
		c.publish(100)
		require.True(t, eventually(func() bool { return c.Stats().SendErrors == 1 }))
		l.links -= 10 // the same index again
		l.connect(1)
	})
	require.True(t, eventually(func() bool { return e.missing() == 0 }))
	member = join()
	c.publish(100)
	c.arrives(member, 3, 3)

	reconnect(func() { l.connect(1) })
	require.True(t, eventually(func() bool {
		zone, err := e.Link(l.hostAddr(1))
		return err == nil && zone == strconv.Itoa(l.index(1))
	}))
	require.Equal(t, 1, e.missing())
	require.NotEqual(t, c.sessions[1].Addr, l.channel(1, 40100))
	c.sessions[1].Addr = l.channel(1, 40100)
	require.NoError(t, c.Apply(datapath.Change{Add: c.sessions[1:]}))
	member = join()
	c.publish(100)
	c.arrives(member, 4, 4)
}
