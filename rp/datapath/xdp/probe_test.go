// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/safchain/ethtool"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// A PROBE leaves the way of copies, and on the wire it is as each PROBE is.
func TestXDPProbe(t *testing.T) {
	s := newSubjectAt(newLab(t, 2), datapath.Config{Incarnation: testOwn}, Options{})
	e := s.Engine.(*Engine)
	for _, size := range []int{wire.HeaderSize + wire.NonceSize, 1001, wire.MaxDatagram} {
		for host := range 2 {
			nonce := [wire.NonceSize]byte{1, 2, 3, byte(host), 15: byte(size)}
			n := s.node(netip.AddrPortFrom(s.lab.hostAddr(host), 30000))
			before := s.Stats()
			require.NoError(t, s.Probe(n.addr, nonce, size))
			var got []received
			require.Eventually(t, func() bool {
				got = append(got, n.take(t, s.Addr())...) // the host checked the checksum
				return len(got) > 0
			}, 10*time.Second, time.Millisecond)
			require.Len(t, got, 1)
			h := wire.Header{Type: wire.Probe}
			want := append(h.Append(nil), nonce[:]...)
			want = append(want, make([]byte, size-len(want))...)
			require.Equal(t, want, got[0].Data)
			after := s.Stats()
			require.Equal(t, before.Probes+1, after.Probes)
			require.Zero(t, after.SendErrors)
		}
	}
	require.Zero(t, e.probes.Load(), "the socket's")
	require.Error(t, s.Probe(s.Endpoint(0), [wire.NonceSize]byte{}, wire.MaxDatagram+1))
	require.Error(t, s.Probe(s.Endpoint(0), [wire.NonceSize]byte{}, wire.HeaderSize+wire.NonceSize-1))
}

// What copies cannot reach no PROBE reaches, although the socket would: a veth whose other
// end does not poll, a device that is none of the engine's, a node without a route.
func TestXDPProbeFailsWithCopies(t *testing.T) {
	l := newLab(t, 2)
	cfg := datapath.Config{Incarnation: testOwn, Addr: netip.AddrPortFrom(l.rpAddr(0), 0)}
	e := l.attach(func() (*Engine, error) { return Attach(cfg, Options{Devices: []string{"rp0"}}) })
	s := newSubject(l, e, 40000, e.settled)

	err := s.Probe(netip.AddrPortFrom(l.hostAddr(1), 9), [wire.NonceSize]byte{}, 256)
	require.ErrorIs(t, err, datapath.ErrNoWay)
	require.ErrorContains(t, err, "rp1 is none of the devices rp0")
	err = s.Probe(netip.MustParseAddrPort("[2001:dead::1]:9"), [wire.NonceSize]byte{}, 256)
	require.ErrorIs(t, err, datapath.ErrNoWay)
	err = s.Probe(netip.AddrPortFrom(l.rpAddr(0), 9), [wire.NonceSize]byte{}, 256)
	require.ErrorIs(t, err, datapath.ErrNoWay, "the RP's own host")
	err = s.Probe(netip.MustParseAddrPort("[2001:db8::dead]:9"), [wire.NonceSize]byte{}, 256)
	require.ErrorIs(t, err, errUnknown)

	// A member whose route moves there is told of, too.
	require.Empty(t, e.Stats().Lacks)
	_ = e.Apply(datapath.Change{Add: []datapath.Session{{
		Index: 1, Role: datapath.Peer, Addr: netip.AddrPortFrom(l.hostAddr(1), 9), Groups: []ids.Group{testGroup},
	}}})
	lacks := e.Stats().Lacks
	require.Len(t, lacks, 1)
	require.Contains(t, lacks[0].Why, "1 sessions: rp1 is none of the devices rp0")
	require.False(t, lacks[0].NoService, "others are served")
	_ = e.Apply(datapath.Change{Remove: []ids.Session{1}})
	require.Empty(t, e.Stats().Lacks)

	// The host's end polls no more: the device refuses what is redirected.
	poll := func(on bool) {
		l.in(l.hosts[0], func() {
			tool, err := ethtool.NewEthtool()
			require.NoError(t, err)
			defer tool.Close()
			require.NoError(t, tool.Change("h0", map[string]bool{"rx-gro": on}))
		})
	}
	n := s.node(netip.AddrPortFrom(l.hostAddr(0), 30000))
	poll(false)
	before := s.Stats()
	if err = s.Probe(n.addr, [wire.NonceSize]byte{1}, 256); err == nil { // before Linux 6.3 only the attempt tells
		require.Eventually(t, func() bool { return s.Stats().SendErrors > before.SendErrors }, 10*time.Second, time.Millisecond)
	} else {
		require.ErrorIs(t, err, datapath.ErrNoWay)
		require.ErrorContains(t, err, "ethtool -K DEV gro on")
		lacks := s.Stats().Lacks
		require.Len(t, lacks, 1)
		require.Equal(t, "copies by rp0", lacks[0].What)
		require.True(t, lacks[0].NoService, "it is the only device")
	}
	require.Empty(t, n.take(t, s.Addr()))

	// An RP there must not hear that the link is there.
	require.NoError(t, e.Apply(datapath.Change{Add: []datapath.Session{{
		Index: 2, Role: datapath.Mesh, Addr: n.addr, SendSession: 1,
	}}}))
	told := len(s.Stats().Lacks) > 0 // before Linux 6.3 the kernel does not
	err = e.Hello(2, [wire.HelloSize]byte{})
	require.Equal(t, told, errors.Is(err, datapath.ErrNoWay), "%v", err)
	one := func() bool { return len(n.take(t, s.Addr())) == 1 }
	if told {
		require.Empty(t, n.take(t, s.Addr()))
	} else {
		require.Eventually(t, one, 10*time.Second, time.Millisecond)
	}
	poll(true)
	require.Empty(t, s.Stats().Lacks)
	require.NoError(t, e.Hello(2, [wire.HelloSize]byte{}))
	require.Eventually(t, one, 10*time.Second, time.Millisecond)
	require.NoError(t, s.Probe(n.addr, [wire.NonceSize]byte{2}, 256))
	require.Eventually(t, one, 10*time.Second, time.Millisecond)
	require.Empty(t, s.Stats().Lacks)
}

// What the host's own programs send on the recirculation pair reaches no subscriber, also
// when its bytes name slices that are in use.
func TestXDPForeignFrames(t *testing.T) {
	c := newCrowd(t, newLab(t, 1), 0, 40, func(int) int { return 0 })
	e := c.Engine.(*Engine)
	y := c.tally()
	c.publish(100)
	y.complete(c.sessions, 1, 1)

	frames := [][]byte{foreign(t, dhcpDiscover), foreign(t, lldp), make([]byte, 60), make([]byte, 1400)}
	require.NoError(t, e.do(func() {
		for _, s := range e.table.groups[testGroup].peers.Slices() {
			f := frame(c.sessions[0].Addr, c.Addr(), make([]byte, wire.MaxDatagram))
			scratch := native.AppendUint16(make([]byte, 4), uint16(s.Index()))
			scratch = native.AppendUint16(scratch, s.Generation())
			copy(f[ipOff+24:], scratch)
			frames = append(frames, f)
		}
		// An anchor, by which one that did not look would begin the whole chain.
		f := frame(c.sessions[0].Addr, c.Addr(), make([]byte, wire.MaxDatagram))
		native.PutUint16(f[ipOff+24+4:], uint16(e.table.groups[testGroup].peers.Anchor()))
		frames = append(frames, f)
	}))
	require.Len(t, frames, 4+5+1)
	before := c.Stats()
	counters := e.Counters()
	c.lab.in(c.lab.rp, func() {
		a, err := netlink.LinkByName(e.recirc.name + "a")
		require.NoError(t, err)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		for _, f := range frames {
			require.NoError(t, unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: a.Attrs().Index}))
		}
	})
	require.Eventually(t, func() bool {
		return e.Counters().Foreign >= counters.Foreign+uint64(len(frames))
	}, 10*time.Second, time.Millisecond)
	c.publish(100)
	y.complete(c.sessions, 2, 2)
	y.exact(c.sessions, 1)
	after := e.Counters()
	require.Equal(t, counters.Recirculated-counters.Chained, after.Recirculated-after.Chained)
	require.Equal(t, before.SendErrors, c.Stats().SendErrors)
	require.Equal(t, before.Copies+39, c.Stats().Copies, "and an ECHO")
}

// Beginnings of a DHCPDISCOVER and of an LLDP frame, as many hosts send them on each
// Ethernet device that appears. Bytes 42 and 43 of the first one are 1 and 1.
const (
	dhcpDiscover = `ffffffffffff020000000001 0800 45c00148 00000000 4011 78ad 00000000 ffffffff 00440043 0134 0000
		01010600 12345678 0000 0000`
	lldp = `0180c200000e020000000001 88cc 0207 04020000000001 0407 03020000000001 0602 0078 0a04 686f7374`
)

func foreign(t testing.TB, beginning string) []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(beginning), ""))
	require.NoError(t, err)
	return append(b, make([]byte, 342-len(b))...)
}

// An engine runs without its counters where the kernel has no place for them, and says so.
func TestXDPRunsWithoutCounters(t *testing.T) {
	l := newLab(t, 1)
	cfg := datapath.Config{Incarnation: testOwn, Addr: netip.AddrPortFrom(l.rpAddr(0), 0)}
	opt := Options{Devices: l.devices(), refuseCounters: errors.New("no BTF here")}
	e := l.attach(func() (*Engine, error) { return Attach(cfg, opt) })
	require.ElementsMatch(t, []datapath.Lack{
		{What: "counter of copies that devices had no room for", Why: "no BTF here"},
		{What: "counter of frames that the queue of a CPU had no room for", Why: "no BTF here"},
	}, e.Stats().Lacks)
	s := newSubject(l, e, 40000, e.settled)
	n := s.node(s.Endpoint(0))
	require.NoError(t, s.Probe(n.addr, [wire.NonceSize]byte{1}, 256))
	require.Eventually(t, func() bool { return len(n.take(t, s.Addr())) == 1 }, 10*time.Second, time.Millisecond)
}
