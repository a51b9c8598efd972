// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/testnet/netns"
)

func TestMain(m *testing.M) {
	RunChild()
	runParent()
	os.Exit(m.Run())
}

// testNet is two hosts with a number of links of their own through one wire:
//
//	a (eth<i>) --- (a<i>) [wire] (b<i>) --- (eth<i>) b
type testNet struct {
	run          *netns.Run
	a, b, middle *netns.Namespace
	wire         *Wire
}

// newTestNet makes links and serves them. The hosts send nothing before the wire
// counts, and what they send before both ends are up gets lost on the link.
func newTestNet(t testing.TB, seed uint64, links ...Link) *testNet {
	t.Helper()
	n := newHosts(t, links...)
	o := Options{Links: slices.Clone(links), Seed: seed, Ports: testPorts}
	for i := range o.Links {
		o.Links[i].Slots = links[i].slots()
		o.Links[i].Params = Params{Blackhole: true}
	}
	var err error
	n.wire, err = Start(n.run, n.middle, o, os.Stderr)
	require.NoError(t, err)
	for i, l := range links {
		require.NoError(t, n.a.SetUp(eth(i), true))
		require.NoError(t, n.b.SetUp(eth(i), true))
		require.NoError(t, n.wire.Set(l.Name, l.Params))
	}
	return n
}

// newHosts makes the net without the delay line, and names the links. GRO is off
// everywhere, as it makes the kernel count frames without their Ethernet header.
func newHosts(t testing.TB, links ...Link) *testNet {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	run, err := netns.NewRun(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, run.Close()) })
	n := &testNet{run: run}
	for _, x := range []struct {
		name string
		ns   **netns.Namespace
	}{{"a", &n.a}, {"b", &n.b}, {"wire", &n.middle}} {
		*x.ns, err = run.Namespace(x.name)
		require.NoError(t, err)
	}
	require.NoError(t, n.middle.Layer2())
	for i := range links {
		l := &links[i]
		l.Name, l.A, l.B = fmt.Sprintf("link%d", i), fmt.Sprintf("a%d", i), fmt.Sprintf("b%d", i)
		for _, end := range []struct {
			host *netns.Namespace
			port string
			addr netip.Addr
		}{{n.a, l.A, addrA(i)}, {n.b, l.B, addrB(i)}} {
			eth := eth(i)
			require.NoError(t, end.host.Veth(eth, n.middle, end.port))
			require.NoError(t, n.middle.NoGRO(end.port))
			require.NoError(t, end.host.NoGRO(eth))
			require.NoError(t, n.middle.SetUp(end.port, true))
			require.NoError(t, end.host.AddAddress(eth, netip.PrefixFrom(end.addr, 64)))
		}
	}
	return n
}

func eth(i int) string { return fmt.Sprintf("eth%d", i) }

func addrA(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::a", i)) }
func addrB(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::b", i)) }

// listen receives datagrams to a port of host b, also late: its buffer takes more
// than net.core.rmem_max allows.
func (n *testNet) listen(t testing.TB, port uint16) *net.UDPConn {
	t.Helper()
	var conn net.PacketConn
	require.NoError(t, n.b.Do(func() (err error) {
		conn, err = net.ListenPacket("udp6", fmt.Sprintf("[::]:%d", port))
		return err
	}))
	t.Cleanup(func() { conn.Close() })
	udp := conn.(*net.UDPConn)
	setOption(t, udp, unix.SO_RCVBUFFORCE, 64<<20)
	return udp
}

func setOption(t testing.TB, conn *net.UDPConn, option, value int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	require.NoError(t, err)
	var failed error
	require.NoError(t, raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, value)
	}))
	require.NoError(t, failed)
}

// dial connects a to a port of b over link i.
func (n *testNet) dial(t testing.TB, network string, i int, port uint16) net.Conn {
	t.Helper()
	conn, err := n.a.Dial(t.Context(), network, netip.AddrPortFrom(addrB(i), port).String())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// greet sends a datagram of class Other and waits for it. Then both ends know each
// other: what waits for neighbour discovery may be overtaken.
func greet(t testing.TB, out net.Conn, in *net.UDPConn) {
	t.Helper()
	var b [100]byte
	_, err := out.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, in.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, _, err = in.ReadFrom(b[:])
	require.NoError(t, err)
}

// numbered is a DATA datagram of a length with a number in its payload.
func numbered(i, length int) []byte {
	b := append(testDatagram(wire.Data, 0), make([]byte, length-wire.HeaderSize)...)
	binary.BigEndian.PutUint32(b[wire.HeaderSize:], uint32(i))
	return b
}

func number(b []byte) int { return int(binary.BigEndian.Uint32(b[wire.HeaderSize:])) }

// frameBytes is the length of the frame around a UDP payload.
func frameBytes(payload int) int { return offTransport + udpHeader + payload }

// shortest is the length of most datagrams here, in bytes.
const shortest = wire.HeaderSize + 4

// send sends DATA datagrams 0..n-1 of a length.
func send(t testing.TB, out net.Conn, n, length int) {
	t.Helper()
	for i := range n {
		_, err := out.Write(numbered(i, length))
		require.NoError(t, err)
	}
}

// receive waits for the next datagram and returns its number.
func receive(t testing.TB, in *net.UDPConn) int {
	t.Helper()
	var b [2000]byte
	require.NoError(t, in.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, _, err := in.ReadFrom(b[:])
	require.NoError(t, err)
	return number(b[:])
}

// settle waits until the wire has accounted for all frames that a and b sent over
// link i, and returns its counters then.
func (n *testNet) settle(t testing.TB, i int) Counters {
	t.Helper()
	var problem error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		all, err := n.wire.Counters()
		require.NoError(t, err)
		c := all[i]
		if problem = n.check(t, i, c); problem == nil {
			return c
		}
	}
	require.NoError(t, problem)
	return Counters{}
}

// check compares the counters of link i with those of the interfaces.
func (n *testNet) check(t testing.TB, i int, c Counters) error {
	t.Helper()
	a, err := n.a.Counters(eth(i))
	require.NoError(t, err)
	b, err := n.b.Counters(eth(i))
	require.NoError(t, err)
	for _, x := range []struct {
		what string
		wire Count
		want Count
	}{
		{"sent by a", c.AB.Forwarded().Plus(c.AB.Lost()), Count{a.TxFrames, a.TxBytes}},
		{"received by b", c.AB.Forwarded(), Count{b.RxFrames, b.RxBytes}},
		{"sent by b", c.BA.Forwarded().Plus(c.BA.Lost()), Count{b.TxFrames, b.TxBytes}},
		{"received by a", c.BA.Forwarded(), Count{a.RxFrames, a.RxBytes}},
	} {
		if c.AB.LostRing > 0 {
			x.wire.Bytes = x.want.Bytes // nobody knows those of the lost frames
		}
		if x.wire != x.want {
			return fmt.Errorf("%s: wire %+v, interface %+v", x.what, x.wire, x.want)
		}
	}
	return nil
}

// stop ends the wire and checks that it lost nothing by itself.
func (n *testNet) stop(t testing.TB) Summary {
	t.Helper()
	s, err := n.wire.Stop()
	require.NoError(t, err)
	require.Zero(t, s.Lost)
	var frames uint64
	for _, bucket := range s.Histogram {
		frames += bucket.Frames
	}
	require.Equal(t, s.Frames, frames, "frames in the histogram")
	t.Logf("%s, %.3f s of CPU, %d frames, late by p50 %.0f us, p99 %.0f us, max %.0f us",
		s.Scheduling, s.CPU, s.Frames, s.P50, s.P99, s.Max)
	return s
}

// The upper bound is generous, as the machine may be busy; the lower one is not.
func TestNetnsDelay(t *testing.T) {
	const frames = 100
	for _, test := range []struct {
		name string
		p    Params
		max  time.Duration // of the median
	}{
		{"delay", Params{Delay: 20 * time.Millisecond}, 35 * time.Millisecond},
		{"jitter keeps order", Params{Delay: 10 * time.Millisecond, Jitter: 10 * time.Millisecond}, 35 * time.Millisecond},
		{"none", Params{}, 15 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newTestNet(t, 1, Link{Params: test.p})
			in, out := n.listen(t, 7000), n.dial(t, "udp6", 0, 7000)
			greet(t, out, in)

			sent := make(chan time.Time, frames)
			go func() {
				for i := range frames {
					sent <- time.Now()
					out.Write(numbered(i, shortest))
					time.Sleep(time.Millisecond)
				}
			}()
			var delays []time.Duration
			for want := range frames {
				require.Equal(t, want, receive(t, in), "frames out of order")
				delays = append(delays, time.Since(<-sent))
			}
			slices.Sort(delays)
			t.Logf("delay: min %v, p50 %v, max %v", delays[0], delays[frames/2], delays[frames-1])
			require.GreaterOrEqual(t, delays[0], test.p.Delay-early)
			require.Less(t, delays[frames/2], test.max)

			n.settle(t, 0)
			s := n.stop(t)
			require.GreaterOrEqual(t, s.Frames, uint64(frames))
		})
	}
}

// One burst fills the queue of a link of 10 Mbit/s: the datagram on the way and
// those that wait at most 20 ms get through, the rest is lost.
func TestNetnsRate(t *testing.T) {
	const (
		frames = 500
		length = 1250 - offTransport - udpHeader // a frame takes 1 ms
	)
	n := newTestNet(t, 1, Link{Params: Params{Rate: 10e6, Queue: 20 * time.Millisecond}})
	in, out := n.listen(t, testPorts.PeerData), n.dial(t, "udp6", 0, testPorts.PeerData)
	greet(t, out, in)
	start := time.Now()
	send(t, out, frames, length)
	burst := time.Since(start)
	got := int(n.settle(t, 0).AB.Classes[Data].Frames)
	require.GreaterOrEqual(t, got, 20)
	require.LessOrEqual(t, got, 22+int(burst.Milliseconds()), "the burst took %v", burst)
	for last := -1; got > 0; got-- {
		i := receive(t, in)
		require.Greater(t, i, last)
		last = i
	}
	n.stop(t)
}

// TCP finds the rate of a link by its losses, and the link does not exceed it.
func TestNetnsRateTCP(t *testing.T) {
	const rate, bytes = 20e6, 1 << 20 // 0.42 s
	n := newTestNet(t, 1, Link{Params: Params{Rate: rate, Delay: 2 * time.Millisecond}})
	var l net.Listener
	require.NoError(t, n.b.Do(func() (err error) {
		l, err = net.Listen("tcp6", "[::]:30303")
		return err
	}))
	defer l.Close()
	received := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			var got int64
			got, err = io.Copy(io.Discard, conn)
			if err == nil && got != bytes {
				err = fmt.Errorf("%d bytes", got)
			}
			conn.Close()
		}
		received <- err
	}()
	conn := n.dial(t, "tcp6", 0, 30303)
	start := time.Now()
	_, err := conn.Write(make([]byte, bytes))
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.NoError(t, <-received)
	took := time.Since(start)

	c := n.settle(t, 0)
	carried := c.AB.Classes[Eth]
	require.GreaterOrEqual(t, carried.Bytes, uint64(bytes+bytes/1428*(offTransport+tcpHeader)))
	require.GreaterOrEqual(t, took.Seconds(), float64(bytes)*8/rate, "faster than the link")
	require.NotZero(t, c.BA.Classes[Eth].Frames, "acknowledgements")
	t.Logf("%.1f Mbit/s of %.0f, %d frames lost in the queue", float64(carried.Bytes)*8/took.Seconds()/1e6, rate/1e6, c.AB.LostQueue.Frames)
	n.stop(t)
}

// The datagrams that get lost are those that the seed says, each time.
func TestNetnsLoss(t *testing.T) {
	const (
		frames = 1000
		loss   = 0.1
		seed   = 7
	)
	want := fates(newShaper(seed, "link0/ab"), Data, loss, frames)
	for range 2 {
		n := newTestNet(t, seed, Link{})
		in, out := n.listen(t, testPorts.PeerData), n.dial(t, "udp6", 0, testPorts.PeerData)
		greet(t, out, in) // by another class
		require.NoError(t, n.wire.Set("link0", Params{Loss: loss}))
		send(t, out, frames, shortest)

		c := n.settle(t, 0).AB
		require.EqualValues(t, frames-trues(want), c.Classes[Data].Frames)
		require.GreaterOrEqual(t, c.LostRandom.Frames, uint64(trues(want)))
		lost := slices.Repeat([]bool{true}, frames)
		for range c.Classes[Data].Frames {
			lost[receive(t, in)] = false
		}
		require.Equal(t, want, lost)
		n.stop(t)
	}
}

func TestNetnsBlackhole(t *testing.T) {
	const frames = 50
	n := newTestNet(t, 1, Link{Params: Params{Delay: time.Millisecond}})
	in, out := n.listen(t, testPorts.PeerData), n.dial(t, "udp6", 0, testPorts.PeerData)
	greet(t, out, in)
	require.NoError(t, n.wire.Set("link0", Params{Delay: time.Millisecond, Blackhole: true}))
	send(t, out, frames, shortest)
	c := n.settle(t, 0).AB
	require.Zero(t, c.Classes[Data].Frames)
	require.GreaterOrEqual(t, c.LostBlackhole.Frames, uint64(frames))

	require.NoError(t, n.wire.Set("link0", Params{Delay: time.Millisecond}))
	send(t, out, frames, shortest)
	for want := range frames {
		require.Equal(t, want, receive(t, in))
	}
	c = n.settle(t, 0).AB
	require.EqualValues(t, frames, c.Classes[Data].Frames)
	n.stop(t)
}

// What is under way when an end goes down is lost. It is the wire's fault unless
// the link was to be down.
func TestNetnsDown(t *testing.T) {
	const frames = 20
	p := Params{Delay: 300 * time.Millisecond}
	for _, planned := range []bool{true, false} {
		n := newTestNet(t, 1, Link{})
		in, out := n.listen(t, testPorts.PeerData), n.dial(t, "udp6", 0, testPorts.PeerData)
		greet(t, out, in)
		require.NoError(t, n.wire.Set("link0", p))
		send(t, out, frames, shortest)
		require.NoError(t, n.wire.Set("link0", Params{Blackhole: planned}))
		require.NoError(t, n.b.SetUp(eth(0), false))
		c := n.settle(t, 0).AB
		require.Zero(t, c.Classes[Data].Frames)
		if planned {
			require.GreaterOrEqual(t, c.LostBlackhole.Frames, uint64(frames))
			n.stop(t)
		} else {
			require.GreaterOrEqual(t, c.LostRefused.Frames, uint64(frames))
		}
	}
}

// A change of the delay is for what arrives after it: what is under way keeps its
// delay, and is not overtaken.
func TestNetnsChange(t *testing.T) {
	n := newTestNet(t, 1, Link{Params: Params{Delay: time.Millisecond}}, Link{Params: Params{Delay: time.Millisecond}})
	in, out := n.listen(t, 7000), n.dial(t, "udp6", 0, 7000)
	other := n.dial(t, "udp6", 1, 7000)
	greet(t, out, in)
	greet(t, other, in)

	require.NoError(t, n.wire.Set("link0", Params{Delay: 300 * time.Millisecond}))
	start := time.Now()
	_, err := out.Write(numbered(1, shortest))
	require.NoError(t, err)
	require.NoError(t, n.wire.Set("link0", Params{}))
	_, err = out.Write(numbered(2, shortest))
	require.NoError(t, err)
	_, err = other.Write(numbered(3, shortest))
	require.NoError(t, err)
	for i, want := range []int{3, 1, 2} {
		require.Equal(t, want, receive(t, in))
		if i == 1 {
			require.GreaterOrEqual(t, time.Since(start), 300*time.Millisecond-early)
		}
	}
	require.ErrorContains(t, n.wire.Set("link9", Params{}), "link9")
	require.ErrorContains(t, n.wire.Set("link0", Params{Loss: 2}), "loss")
	require.NoError(t, n.wire.Set("link0", Params{}), "an error spoiled the protocol")
	n.stop(t)
}

// Each class counts what was sent, and together with the losses they are what
// the interfaces of the hosts counted.
func TestNetnsClasses(t *testing.T) {
	n := newTestNet(t, 1, Link{Params: Params{Delay: time.Millisecond}})
	for i, test := range []struct {
		class   Class
		port    uint16
		payload []byte
	}{
		{Data, testPorts.PeerData, numbered(0, shortest)},
		{Repair, testPorts.RPData, testDatagram(wire.Data, wire.FlagRepublished)},
		{Control, testPorts.RPData, testDatagram(wire.Heartbeat, 0)},
		{Discovery, testPorts.Eth, make([]byte, 150)},
		{Libp2p, testPorts.Libp2p, make([]byte, 160)},
		{BGP, portBFD, make([]byte, 24)},
	} {
		in, out := n.listen(t, test.port), n.dial(t, "udp6", 0, test.port)
		before := n.settle(t, 0)
		for range 10 + i {
			_, err := out.Write(test.payload)
			require.NoError(t, err)
		}
		sent := Count{uint64(10 + i), uint64((10 + i) * frameBytes(len(test.payload)))}
		require.Equal(t, sent.Plus(before.AB.Classes[test.class]), n.settle(t, 0).AB.Classes[test.class], "%v", test.class)
		in.Close()
	}
	for _, test := range []struct {
		class Class
		port  uint16
	}{{Eth, testPorts.Eth}, {Control, testPorts.RPControl}, {Libp2p, testPorts.Libp2p}, {BGP, portBGP}} {
		before := n.settle(t, 0)
		var l net.Listener
		require.NoError(t, n.b.Do(func() (err error) {
			l, err = net.Listen("tcp6", fmt.Sprintf("[::]:%d", test.port))
			return err
		}))
		conn := n.dial(t, "tcp6", 0, test.port)
		l.Close()
		conn.Close()
		c := n.settle(t, 0)
		require.Greater(t, c.AB.Classes[test.class].Frames, before.AB.Classes[test.class].Frames+1, "%v: SYN and ACK", test.class)
		require.Greater(t, c.BA.Classes[test.class].Frames, before.BA.Classes[test.class].Frames, "%v: SYN", test.class)
	}
	require.NoError(t, n.wire.Clear())
	all, err := n.wire.Counters()
	require.NoError(t, err)
	require.Zero(t, all[0].AB.Classes[Data])
	require.Zero(t, all[0].AB.Classes[Libp2p])
	n.stop(t)
}

// What finds all slots taken, or is longer than a slot, is lost and counted.
func TestNetnsOverflow(t *testing.T) {
	const slots, frames = 64, 200
	link := Link{Slots: slots, Params: Params{Delay: 500 * time.Millisecond}}
	n := newTestNet(t, 1, link)
	in, out := n.listen(t, testPorts.PeerData), n.dial(t, "udp6", 0, testPorts.PeerData)
	greet(t, out, in)
	n.settle(t, 0)
	send(t, out, frames, shortest)
	c := n.settle(t, 0).AB
	require.LessOrEqual(t, c.Classes[Data].Frames, uint64(slots))
	require.NotZero(t, c.Classes[Data].Frames)
	require.GreaterOrEqual(t, c.LostRing+c.Classes[Data].Frames, uint64(frames), "a frame of the host's own may be lost too")

	setMTU(t, n.middle, "a0", 3000)
	setMTU(t, n.a, eth(0), 3000)
	require.NoError(t, n.wire.Clear())
	_, err := out.Write(make([]byte, 2500))
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		all, err := n.wire.Counters()
		return err == nil && all[0].AB.LostCut == Count{1, uint64(frameBytes(2500))}
	}, 10*time.Second, 10*time.Millisecond)
	s, err := n.wire.Stop()
	require.NoError(t, err)
	require.EqualValues(t, 1, s.Lost)
}

func setMTU(t testing.TB, ns *netns.Namespace, name string, mtu int) {
	t.Helper()
	require.NoError(t, ns.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(l, mtu)
	}))
}

// TestNetnsRedirects sends frames into a host whose program of XDP redirects them
// to its link. They get to the wire only when the inner end takes them:
//
//	gen (eth0) --- (in) [a: redirect in to eth0] (eth0) --- (a0) [wire] (b0) --- (eth0) b
func TestNetnsRedirects(t *testing.T) {
	const frames = 100
	n := newTestNet(t, 1, Link{Params: Params{Delay: time.Millisecond}})
	gen, err := n.run.Namespace("gen")
	require.NoError(t, err)
	require.NoError(t, gen.Veth("eth0", n.a, "in"))
	require.NoError(t, n.a.SetUp("in", true))
	require.NoError(t, gen.SetUp("eth0", true))

	out := index(t, n.a, eth(0))
	require.NoError(t, n.a.Do(func() error {
		attached, err := attachProgram("in", asm.Instructions{
			asm.Mov.Imm(asm.R1, int32(out)),
			asm.Mov.Imm(asm.R2, 0), // flags
			asm.FnRedirect.Call(),
			asm.Return(),
		})
		if err == nil {
			t.Cleanup(func() { attached.Close() })
		}
		return err
	}))
	to := &unix.SockaddrLinklayer{Ifindex: index(t, gen, "eth0")}
	var fd int
	require.NoError(t, gen.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	defer unix.Close(fd)
	inject := func(frame []byte) {
		for range frames {
			require.NoError(t, unix.Sendto(fd, frame, 0, to))
		}
	}
	inject(testFrame(unix.IPPROTO_UDP, 0, testPorts.Eth, nil)) // of class Discovery, in vain
	attached, err := TakeRedirects(n.middle, "a0")
	require.NoError(t, err)
	defer attached.Close()
	data := testFrame(unix.IPPROTO_UDP, testPorts.RPData, testPorts.PeerData, numbered(0, shortest))
	inject(data)
	require.Eventually(t, func() bool {
		all, err := n.wire.Counters()
		return err == nil && all[0].AB.Classes[Data] == Count{frames, uint64(frames * len(data))}
	}, 10*time.Second, 10*time.Millisecond)
	all, err := n.wire.Counters()
	require.NoError(t, err)
	require.Zero(t, all[0].AB.Classes[Discovery])
	n.stop(t)
}

func index(t testing.TB, ns *netns.Namespace, name string) (i int) {
	t.Helper()
	require.NoError(t, ns.Do(func() error {
		ifi, err := net.InterfaceByName(name)
		if err == nil {
			i = ifi.Index
		}
		return err
	}))
	return i
}

func TestNetnsTakeRedirectsUntilClosed(t *testing.T) {
	n := newHosts(t, Link{})
	attached, err := TakeRedirects(n.middle, "a0")
	require.NoError(t, err)
	_, err = TakeRedirects(n.middle, "a0")
	require.Error(t, err, "there is a program already")
	require.NoError(t, attached.Close())
	again, err := TakeRedirects(n.middle, "a0")
	require.NoError(t, err)
	require.NoError(t, again.Close())
	_, err = TakeRedirects(n.middle, "none")
	require.ErrorContains(t, err, "none")
}

// parentEnv makes the test binary a program that starts a wire in a state
// directory and waits.
const parentEnv = "MDCS_DELAYLINE_TEST_PARENT"

func runParent() {
	dir := os.Getenv(parentEnv)
	if dir == "" {
		return
	}
	err := func() error {
		run, err := netns.NewRun(dir)
		if err != nil {
			return err
		}
		ns, err := run.Namespace("wire")
		if err != nil {
			return err
		}
		if err := ns.Veth("a", ns, "b"); err != nil {
			return err
		}
		for _, name := range []string{"a", "b"} {
			if err := ns.SetUp(name, true); err != nil {
				return err
			}
		}
		w, err := Start(run, ns, Options{Links: []Link{{Name: "x", A: "a", B: "b"}}}, os.Stderr)
		if err != nil {
			return err
		}
		fmt.Println(w.proc.Pid())
		select {}
	}()
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func TestNetnsEndsWithParent(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	dir := t.TempDir()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), parentEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var line [20]byte
	k, err := out.Read(line[:])
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(line[:k])))
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(pid, 0), "the wire runs")

	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	require.Eventually(t, func() bool { return ended(pid) }, 5*time.Second, 10*time.Millisecond)
	cleaned, err := netns.CleanStale(dir)
	require.NoError(t, err)
	require.Len(t, cleaned, 1)
}

// ended reports that a process is gone, or a zombie that waits for its new parent.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return true
	}
	return strings.Contains(string(stat), ") Z ")
}
