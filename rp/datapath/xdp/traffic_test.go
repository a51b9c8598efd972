// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/objects"
)

const (
	testOwn   = 0x0a0a0a0a
	testGroup = 0x00007478
)

// crowd is an engine with subscribers on its hosts, of which the first publishes.
type crowd struct {
	*subject
	sessions []datapath.Session
	sent     uint64
}

// newCrowd has n sessions, the i-th on the host that host(i) says.
func newCrowd(t testing.TB, l *lab, quiet time.Duration, n int, host func(i int) int) *crowd {
	return newCrowdWith(t, l, Options{Quiet: quiet}, n, host)
}

func newCrowdWith(t testing.TB, l *lab, opt Options, n int, host func(i int) int) *crowd {
	c := &crowd{
		subject:  newSubjectAt(l, datapath.Config{Incarnation: testOwn, HandleKey: auth.Key{'h'}}, opt),
		sessions: crowdSessions(l, n, host),
	}
	require.NoError(t, c.Apply(c.change()))
	return c
}

// crowdSessions returns n sessions, of which the first publishes.
func crowdSessions(l *lab, n int, host func(i int) int) (sessions []datapath.Session) {
	for i := range n {
		sessions = append(sessions, datapath.Session{
			Index:       ids.Session(i + 1),
			Role:        datapath.Peer,
			Addr:        netip.AddrPortFrom(l.hostAddr(host(i)), uint16(20000+i)),
			SendSession: ids.Session(0x10000 + i),
			SendKey:     auth.Key{'s', byte(i), byte(i >> 8)},
			ReceiveKey:  auth.Key{'r', byte(i), byte(i >> 8)},
			Groups:      []ids.Group{testGroup},
		})
	}
	sessions[0].Publish, sessions[0].Rate, sessions[0].Burst = true, 1_000_000, 1_000_000
	return sessions
}

// change makes all sessions members.
func (c *crowd) change() datapath.Change {
	return datapath.Change{Keys: []proto.GroupKey{{Ingress: testOwn, Group: testGroup}}, Add: c.sessions}
}

// publish sends the next datagram.
func (c *crowd) publish(size int) {
	c.sent++
	h := wire.Header{
		Type: wire.Data, Session: 1, Group: testGroup, Sequence: c.sent, K: 1, N: 1,
		PayloadLen: uint16(size), ObjectLen: uint32(size), ObjectID: c.sent,
	}
	b := append(h.Append(nil), make([]byte, size)...)
	wire.SetPayloadTag(b, new(auth.Key).PayloadTag(b))
	wire.SetHopTag(b, c.sessions[0].ReceiveKey.HopTag(b))
	_, err := c.node(c.sessions[0].Addr).conn.WriteToUDPAddrPort(b, c.Addr())
	require.NoError(c.lab.t, err)
}

// tally counts what reached each session, and makes sure that it was meant for it.
type tally struct {
	c    *crowd
	seen map[netip.AddrPort]map[uint64]int // by sequence
	last time.Duration                     // arrival of the last one
}

func (c *crowd) tally() *tally {
	return &tally{c: c, seen: make(map[netip.AddrPort]map[uint64]int)}
}

func (y *tally) take() {
	t := y.c.lab.t
	for _, r := range y.c.waiting() {
		h, _, v := wire.Parse(r.Data)
		require.Equal(t, wire.Pass, v)
		s := &y.c.sessions[h.Session-0x10000]
		require.Equal(t, s.Addr, r.Dst, "a copy for another session")
		require.True(t, s.SendKey.CheckHopTag(r.Data, h.HopTag))
		want := wire.Data
		if h.Session == 0x10000 && h.Ingress == testOwn {
			want = wire.Echo
		}
		require.Equal(t, want, h.Type)
		if y.seen[r.Dst] == nil {
			y.seen[r.Dst] = make(map[uint64]int)
		}
		y.seen[r.Dst][h.Sequence]++
		y.last = max(y.last, r.at)
	}
}

// complete waits until sessions have sequences first to last, each once.
func (y *tally) complete(sessions []datapath.Session, first, last uint64) {
	t := y.c.lab.t
	t.Helper()
	arrived := func() bool {
		y.take()
		for _, s := range sessions {
			for seq := first; seq <= last; seq++ {
				if y.seen[s.Addr][seq] == 0 {
					return false
				}
			}
		}
		return true
	}
	for deadline := time.Now().Add(10 * time.Second); !arrived() && time.Now().Before(deadline); {
		time.Sleep(50 * time.Microsecond)
	}
	for _, s := range sessions {
		for seq := first; seq <= last; seq++ {
			if y.seen[s.Addr][seq] != 1 {
				var counters Counters
				if e, ok := y.c.Engine.(*Engine); ok {
					counters = e.Counters()
				}
				t.Fatalf("session %08x got sequence %d %d times; %+v\n%s", s.Index, seq, y.seen[s.Addr][seq],
					counters, y.c.lab.drops())
			}
		}
	}
}

// Who stays gets every datagram once while others join and leave.
func TestXDPChangesUnderTraffic(t *testing.T) {
	const stayers, all, datagrams = 40, 120, 1000
	c := newCrowd(t, newLab(t, 1), 0, all, func(int) int { return 0 })
	y, stop, done := c.tally(), make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			// Each time others, some of them at once.
			var change datapath.Change
			for k := range 1 + i%7 {
				s := c.sessions[stayers+(i*13+k*5)%(all-stayers)]
				if (i+k)%2 == 0 {
					change.Remove = append(change.Remove, s.Index)
				} else {
					change.Add = append(change.Add, s)
				}
			}
			if err := c.Engine.Apply(change); err != nil {
				done <- err
				return
			}
		}
	}()
	// A few datagrams are in flight at a time, however slow the machine is just now:
	// what a full ring drops is not what this is about.
	for seq := uint64(1); seq <= datagrams; seq++ {
		c.publish(100)
		if seq > 3 {
			y.complete(c.sessions[:stayers], seq-3, seq-3)
		}
	}
	close(stop)
	require.NoError(t, <-done)
	y.complete(c.sessions[:stayers], 1, datagrams)
	for addr, seen := range y.seen {
		for seq, n := range seen {
			require.Equal(t, 1, n, "%v got sequence %d", addr, seq)
		}
	}
}

// Copies leave by the device that leads to their receiver, whatever the order.
func TestXDPTwoDevices(t *testing.T) {
	for name, quiet := range paths {
		t.Run(name, func(t *testing.T) {
			const n, datagrams = 100, 20
			c := newCrowd(t, newLab(t, 2), quiet, n, func(i int) int { return i * i / 3 % 2 })
			y := c.tally()
			for range datagrams {
				c.publish(wire.MaxPayload)
				time.Sleep(time.Millisecond)
			}
			y.complete(c.sessions, 1, datagrams)
			st := c.Stats()
			require.Equal(t, uint64(datagrams*(n-1)), st.Copies)
			require.Equal(t, uint64(datagrams), st.Echoes)
			require.Zero(t, st.SendErrors)
		})
	}
}

// A device may go and come back, with its index or another one; the receivers behind the
// other device do not notice.
func TestXDPDeviceComesBack(t *testing.T) {
	for _, same := range []bool{false, true} {
		t.Run(fmt.Sprintf("same index=%v", same), func(t *testing.T) { testDeviceComesBack(t, same) })
	}
}

func testDeviceComesBack(t *testing.T, same bool) {
	const n = 40
	l := newLab(t, 2)
	c := newCrowd(t, l, 0, n, func(i int) int { return i % 2 })
	e := c.Engine.(*Engine)
	var near, far []datapath.Session
	for i, s := range c.sessions {
		if i%2 == 0 {
			near = append(near, s)
		} else {
			far = append(far, s)
		}
	}
	y := c.tally()
	c.publish(100)
	y.complete(c.sessions, 1, 1)

	nl, err := netlink.NewHandleAt(l.rp)
	require.NoError(t, err)
	defer nl.Close()
	link, err := nl.LinkByName(l.device(1))
	require.NoError(t, err)
	require.NoError(t, nl.LinkDel(link))
	attached := func(want bool) {
		t.Helper()
		require.Eventually(t, func() bool {
			var is bool
			require.NoError(t, e.do(func() { is = e.devices[1] != nil }))
			return is == want
		}, 10*time.Second, time.Millisecond)
	}
	attached(false)
	missing := func(want int) {
		t.Helper()
		require.Eventually(t, func() bool { return e.missing() == want }, 10*time.Second, time.Millisecond)
	}
	missing(len(far))
	c.publish(100)
	y.complete(near, 1, 2)

	for _, s := range far { // their addresses went with their interface
		c.nodes[s.Addr].conn.Close()
		delete(c.nodes, s.Addr)
	}
	index := link.Attrs().Index
	if same {
		l.links -= 10
	}
	l.connect(1)
	require.Equal(t, same, l.index(1) == index)
	for _, s := range far {
		c.node(s.Addr)
	}
	attached(true)
	missing(0)
	require.Equal(t, uint64(len(far)), c.Stats().SendErrors)
	y = c.tally()
	c.publish(100)
	y.complete(c.sessions, 3, 3)
}

// A burst does not overflow what the fan-out passes through. What the ring of a device has no
// room for is counted.
func TestXDPBurst(t *testing.T) {
	const n, burst = 64, 64
	c := newCrowd(t, newLab(t, 1), 0, n, func(int) int { return 0 })
	y := c.tally()
	for range burst {
		c.publish(200)
	}
	copies := func() (all uint64) {
		y.take()
		for _, seen := range y.seen {
			for seq, times := range seen {
				require.Equal(t, 1, times, "sequence %d", seq)
			}
			all += uint64(len(seen))
		}
		return all
	}
	require.Eventually(t, func() bool { return copies()+c.Stats().SendErrors == n*burst }, 10*time.Second, time.Millisecond,
		"each copy arrives or is counted")
	counters := c.Engine.(*Engine).Counters()
	require.Zero(t, counters.Stale+counters.NoReplica+counters.NoTrim+counters.QueueLost+counters.RecircLost)
	// Before Linux 6.5 a device waits with what is in its ring until ksoftirqd had its turn, when that has something to do:
	// the veth's ring may fill up.
	if !kernelBefore(t, 6, 5) {
		require.Zero(t, c.Stats().SendErrors, "%+v\n%s", counters, c.lab.drops())
	}
	t.Logf("%d of %d datagrams went inline, %d copies found no room", counters.Inlined, burst, c.Stats().SendErrors)
}

// The slices of many receivers are queued even for a lone datagram, from the peers on.
func TestXDPLongChainIsQueued(t *testing.T) {
	for _, n := range []int{fanout.MaxInline * fanout.SliceSize, fanout.MaxInline*fanout.SliceSize + 1} {
		c := newCrowd(t, newLab(t, 1), time.Nanosecond, n, func(int) int { return 0 })
		y := c.tally()
		c.publish(100)
		y.complete(c.sessions, 1, 1)
		counters := c.Engine.(*Engine).Counters()
		require.Equal(t, uint64(1), counters.Inlined)
		queued := uint64(0)
		if n > fanout.MaxInline*fanout.SliceSize {
			queued = fanout.MaxInline + 1
		}
		require.Equal(t, queued, counters.Queued)
	}
}

// What the queue of the fan-out has no room for is counted.
func TestXDPQueueOverflow(t *testing.T) {
	const frames, room = 64, 8
	c := newCrowd(t, newLab(t, 1), -1, 1, func(int) int { return 0 })
	e := c.Engine.(*Engine)
	before := e.Counters()
	require.NoError(t, e.do(func() {
		cpu := e.table.cpus[0]
		value := objects.CPUQueue{QueueSize: room, Program: uint32(e.objects.MdcsRpFan.FD())}
		require.NoError(t, e.objects.FanCpus.Put(cpu, value))
		scratch := native.AppendUint32(nil, 0)
		scratch = native.AppendUint16(scratch, uint16(e.table.groups[testGroup].peers.Anchor()))
		scratch = append(scratch, make([]byte, 8)...)
		scratch = append(scratch, byte(cpu), 0)
		f := frame(c.sessions[0].Addr, c.Addr(), make([]byte, wire.HeaderSize))
		copy(f[ipOff+24:], scratch)
		native.PutUint64(f, e.objects.Cookie())
		// One turn, so that on this CPU nothing leaves the queue meanwhile.
		_, err := e.objects.MdcsRpRecirc.Run(&ebpf.RunOptions{
			Data: f, Repeat: frames, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: frames,
		})
		require.NoError(t, err)
	}))
	counters := e.Counters()
	require.Equal(t, before.Queued+frames, counters.Queued)
	require.Eventually(t, func() bool {
		counters = e.Counters()
		return counters.Dequeued-before.Dequeued+counters.QueueLost == frames
	}, 10*time.Second, time.Millisecond)
	require.Positive(t, counters.QueueLost)
	require.Contains(t, e.Stats().Overflows, datapath.Overflow{Queue: "fan-out", Lost: counters.QueueLost})
}

// The recirculation pair has no address, which does not depend on a writable /proc/sys: what the host sent there would
// reach the programs.
func TestXDPPairHasNoAddress(t *testing.T) {
	l := newLab(t, 1)
	e := newSubjectAt(l, datapath.Config{Incarnation: 1}, Options{}).Engine.(*Engine)
	l.in(l.rp, func() {
		for _, name := range []string{e.recirc.name + "a", e.recirc.name + "b"} {
			link, err := netlink.LinkByName(name)
			require.NoError(t, err)
			addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
			require.NoError(t, err)
			require.Empty(t, addrs, name)
			mode, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/addr_gen_mode")
			require.NoError(t, err)
			require.Equal(t, "1\n", string(mode), name)
		}
	})
}

// A recirculation pair that a killed process left is replaced.
func TestXDPReplacesOldPair(t *testing.T) {
	l := newLab(t, 1)
	cfg := datapath.Config{Addr: netip.AddrPortFrom(l.rpAddr(0), 30500), Incarnation: 1}
	attach := func() *Engine {
		return l.attach(func() (*Engine, error) { return Attach(cfg, Options{Devices: l.devices()}) })
	}
	e := attach()
	name := e.recirc.name
	require.NoError(t, e.Close())
	nl, err := netlink.NewHandleAt(l.rp)
	require.NoError(t, err)
	defer nl.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name + "a"
	require.NoError(t, nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "b"}))
	attach()
}

// Nothing is left behind: neither by an engine that was closed, nor by one that
// could not start.
func TestXDPLeavesNothing(t *testing.T) {
	l := newLab(t, 1)
	nl, err := netlink.NewHandleAt(l.rp)
	require.NoError(t, err)
	defer nl.Close()
	links := func() (names []string) {
		all, err := nl.LinkList()
		require.NoError(t, err)
		for _, link := range all {
			attrs := link.Attrs()
			require.True(t, attrs.Xdp == nil || !attrs.Xdp.Attached, "%s has a program", attrs.Name)
			names = append(names, attrs.Name)
		}
		return names
	}
	before := links()
	cfg := datapath.Config{Addr: netip.AddrPortFrom(l.rpAddr(0), 30500), Incarnation: 1}
	for _, bad := range []struct {
		cfg  datapath.Config
		opt  Options
		want string
	}{
		{cfg, Options{}, "attach: 0 devices"},
		{cfg, Options{Devices: []string{"rp0", "none"}}, "attach XDP to none: Link not found"},
		{cfg, Options{Devices: []string{"rp0", "rp0"}}, "attach XDP to rp0: "},
		{cfg, Options{Devices: []string{"lo"}}, "attach XDP to lo: "},
		{datapath.Config{Addr: cfg.Addr}, Options{Devices: l.devices()}, "attach: incarnation 0"},
		{datapath.Config{Addr: netip.MustParseAddrPort("[2001:db8::99]:1"), Incarnation: 1}, Options{Devices: l.devices()}, "cannot assign"},
	} {
		l.in(l.rp, func() {
			_, err := Attach(bad.cfg, bad.opt)
			require.ErrorContains(t, err, bad.want)
			require.NotContains(t, err.Error(), "\n")
		})
		require.Equal(t, before, links())
	}
	e := l.attach(func() (*Engine, error) { return Attach(cfg, Options{Devices: l.devices()}) })
	l.in(l.rp, func() {
		_, err := Attach(cfg, Options{Devices: l.devices()})
		require.ErrorContains(t, err, "address already in use")
	})
	require.NoError(t, e.Close())
	require.NoError(t, e.Close())
	require.Equal(t, before, links())
	require.ErrorIs(t, e.Apply(datapath.Change{}), datapath.ErrClosed)
	require.ErrorIs(t, e.Heartbeat(datapath.All), datapath.ErrClosed)
	require.ErrorIs(t, e.Hello(1, [wire.HelloSize]byte{}), datapath.ErrClosed)
	require.ErrorIs(t, e.Resend(1, nil), datapath.ErrClosed)
	require.Zero(t, e.Heard(1))
	require.ErrorIs(t, e.Probe(cfg.Addr, [wire.NonceSize]byte{}, 256), datapath.ErrClosed)
	require.Empty(t, e.Marks())
}

// BenchmarkXDPLone is the time from the sending of a lone datagram to its arrival at
// the last of 64 subscribers, by the kernel's clock.
func BenchmarkXDPLone(b *testing.B) {
	for name, quiet := range paths {
		b.Run(name, func(b *testing.B) {
			c := newCrowd(b, newLab(b, 1), quiet, 65, func(int) int { return 0 })
			y := c.tally()
			var all []time.Duration
			for b.Loop() {
				time.Sleep(2 * time.Millisecond)
				start := time.Duration(time.Now().UnixNano())
				c.publish(1000)
				y.complete(c.sessions, c.sent, c.sent)
				all = append(all, y.last-start)
			}
			slices.Sort(all)
			b.ReportMetric(float64(all[len(all)/2].Nanoseconds())/1000, "us-median")
			b.ReportMetric(float64(all[len(all)/10].Nanoseconds())/1000, "us-p10")
		})
	}
}
