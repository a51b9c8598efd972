// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/ethmcast/wire/wiretest"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/datapathtest"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/objects"
)

// What a program returns for a frame.
const (
	xdpDrop     = 1
	xdpPass     = 2
	xdpRedirect = 4
)

// Frame offsets.
const (
	ipOff   = 14
	udpOff  = ipOff + 40
	wireOff = udpOff + 8
)

var bareAddr = netip.MustParseAddrPort("[2001:db8::53]:30500")

// newBare returns the programs and their maps without any device: frames come
// from BPF_PROG_TEST_RUN, and nothing leaves.
func newBare(t testing.TB, cfg datapath.Config) *Engine {
	return newBareWith(t, cfg, nil)
}

// newBareWith has the programs loaded by a function.
func newBareWith(t testing.TB, cfg datapath.Config, load func(objects.Options) (*objects.Objects, error)) *Engine {
	needKernel(t)
	boot, err := objects.BootTime()
	require.NoError(t, err)
	e := &Engine{cfg: cfg, opt: Options{Quiet: -1, validity: time.Hour, load: load}, boot: boot, addr: bareAddr}
	t.Cleanup(e.shut)
	e.nl, err = netlink.NewHandle()
	require.NoError(t, err)
	require.NoError(t, e.load())
	e.newFanout()
	e.table = newTable(e)
	require.NoError(t, e.openPaths())
	require.NoError(t, e.fanout.Grow())
	e.table.cpus, err = e.objects.StartFanout()
	require.NoError(t, err)
	return e
}

// frame puts a datagram into Ethernet, IPv6 and UDP.
func frame(src, dst netip.AddrPort, datagram []byte) []byte {
	f := append(make([]byte, 12), 0x86, 0xdd, 0x60, 1, 2, 3)
	f = be.AppendUint16(f, uint16(8+len(datagram)))
	f = append(f, 17, 61)
	f = append(f, src.Addr().AsSlice()...)
	f = append(f, dst.Addr().AsSlice()...)
	f = be.AppendUint16(f, src.Port())
	f = be.AppendUint16(f, dst.Port())
	f = be.AppendUint16(f, uint16(8+len(datagram)))
	return append(append(f, 0xaa, 0xaa), datagram...) // nobody reads the checksum
}

// receive runs the entry program on a frame.
func (e *Engine) receive(t testing.TB, f []byte) (action uint32, out []byte) {
	out = make([]byte, len(f)+256)
	run := ebpf.RunOptions{Data: f, DataOut: out}
	action, err := e.objects.MdcsRpIn.Run(&run)
	require.NoError(t, err)
	return action, run.DataOut
}

// state is everything that a datagram may change, but for the verdicts.
func (e *Engine) state(t testing.TB) (all [][]byte) {
	for _, b := range [][]byte{
		e.objects.Memory.Sessions.Bytes(), e.objects.Memory.Streams.Bytes(), e.objects.Memory.Nexts.Bytes(), e.objects.Memory.Passes.Bytes(),
		fmt.Append(nil, e.objects.ReadCounters()),
	} {
		all = append(all, slices.Clone(b))
	}
	for _, m := range []*ebpf.Map{e.objects.Sessions, e.objects.Streams, e.objects.Echoes, e.objects.Branches} {
		key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
		it := m.Iterate()
		for it.Next(&key, &value) {
			all = append(all, slices.Concat(key, value))
		}
		require.NoError(t, it.Err())
	}
	return all
}

// Each golden vector gets its verdict, counts once, and moves nothing else when it
// is dropped. What passes carries the stamp and the headers that all copies share.
func TestXDPProgramGolden(t *testing.T) {
	f, err := wiretest.Load()
	require.NoError(t, err)
	s := newSeat(t)
	for _, v := range f.Vectors {
		t.Run(v.Name, func(t *testing.T) {
			e := newBareWith(t, datapath.Config{Incarnation: f.Incarnation, HandleKey: auth.Key(f.HandleKey)}, s.load)
			require.NoError(t, e.apply(datapathtest.GoldenState(f)))
			for _, before := range f.History(v) {
				e.receive(t, frame(before.Source, bareAddr, before.Datagram))
			}
			want, state := e.objects.ReadVerdicts(), e.state(t)
			in := frame(v.Source, bareAddr, v.Datagram)
			action, out := e.receive(t, in)
			want[v.Verdict]++
			require.Equal(t, want, e.objects.ReadVerdicts())
			require.Equal(t, uint32(xdpDrop), action) // there is no device to send by
			if v.Verdict != wire.Pass {
				require.Equal(t, in, out, "a datagram that was dropped is as it was")
				for i, b := range e.state(t) {
					require.True(t, bytes.Equal(state[i], b), "map %d moved", i)
				}
			}
			for _, c := range v.Copies {
				if c.Datagram[0]&15 != byte(wire.Echo) {
					got := out[wireOff:]
					require.Len(t, got, len(c.Datagram))
					require.Equal(t, c.Datagram[:4], got[:4])
					require.Equal(t, c.Datagram[8:56], got[8:56], "all but session and hop tag")
					require.Equal(t, c.Datagram[64:], got[64:])
					require.Equal(t, bareAddr.Addr().AsSlice(), out[ipOff+8:ipOff+24])
					require.Equal(t, bareAddr.Port(), be.Uint16(out[udpOff:]))
					require.Equal(t, []byte{0x60, 0, 0, 0}, out[ipOff:ipOff+4])
				}
			}
		})
	}
}

// What is not an mDCS datagram for this RP goes to the kernel, untouched.
func TestXDPProgramPassesWhatIsNotOurs(t *testing.T) {
	e := newBare(t, datapath.Config{Incarnation: 1})
	good := frame(netip.MustParseAddrPort("[2001:db8::2]:1"), bareAddr, make([]byte, 100))
	action, _ := e.receive(t, good)
	require.Equal(t, uint32(xdpDrop), action)
	require.Equal(t, uint64(1), e.objects.ReadVerdicts()[wire.BadVersion])

	for name, edit := range map[string]func(f []byte) []byte{
		"IPv4":                    func(f []byte) []byte { f[12], f[13] = 8, 0; return f },
		"VLAN":                    func(f []byte) []byte { f[12], f[13] = 0x81, 0; return f },
		"IP version":              func(f []byte) []byte { f[ipOff] = 0x40; return f },
		"TCP":                     func(f []byte) []byte { f[ipOff+6] = 6; return f },
		"ICMPv6":                  func(f []byte) []byte { f[ipOff+6] = 58; return f },
		"hop-by-hop options":      func(f []byte) []byte { f[ipOff+6] = 0; return f },
		"fragment":                func(f []byte) []byte { f[ipOff+6] = 44; return f },
		"other address":           func(f []byte) []byte { f[ipOff+39]++; return f },
		"other port":              func(f []byte) []byte { f[udpOff+3]++; return f },
		"UDP longer than IP":      func(f []byte) []byte { f[udpOff+5]++; return f },
		"UDP longer than frame":   func(f []byte) []byte { return f[:len(f)-1] },
		"UDP shorter than header": func(f []byte) []byte { f[udpOff+4], f[udpOff+5] = 0, 7; return f },
		"frame without UDP":       func(f []byte) []byte { return f[:wireOff-1] },
	} {
		t.Run(name, func(t *testing.T) {
			before, state := e.objects.ReadVerdicts(), e.state(t)
			in := edit(slices.Clone(good))
			action, out := e.receive(t, slices.Clone(in))
			require.Equal(t, uint32(xdpPass), action)
			require.Equal(t, in, out)
			require.Equal(t, before, e.objects.ReadVerdicts())
			require.Equal(t, state, e.state(t))
		})
	}
}

// What a driver leaves behind the packet is cut off.
func TestXDPProgramCutsTrailingBytes(t *testing.T) {
	f, err := wiretest.Load()
	require.NoError(t, err)
	v := f.Vectors[0]
	require.Equal(t, wire.Pass, v.Verdict)
	e := newBare(t, datapath.Config{Incarnation: f.Incarnation, HandleKey: auth.Key(f.HandleKey)})
	require.NoError(t, e.apply(datapathtest.GoldenState(f)))
	in := frame(v.Source, bareAddr, v.Datagram)
	_, out := e.receive(t, append(slices.Clone(in), 1, 2, 3, 4))
	require.Equal(t, uint64(1), e.objects.ReadVerdicts()[wire.Pass])
	require.Len(t, out, len(in))
}

// racing is how many senders send the same datagrams at once.
const racing = 4

// However many CPUs see a sequence at once, it is taken once, and own sequences have
// no gaps.
func TestXDPWindowUnderConcurrentWriters(t *testing.T) {
	const datagrams = 3000
	const own, other, group = 7, 8, 9
	e := newBare(t, datapath.Config{Incarnation: own})
	from := [...]datapath.Session{
		{Index: 1, Role: datapath.Peer, Groups: []ids.Group{group}, Publish: true, Rate: 1_000_000, Burst: 1_000_000},
		{Index: 2, Role: datapath.Mesh},
	}
	ingress := [...]ids.Incarnation{0, other}
	for i := range from {
		from[i].Addr = netip.MustParseAddrPort("[2001:db8::2]:4000")
	}
	require.NoError(t, e.apply(datapath.Change{
		Add:    from[:],
		Keys:   []proto.GroupKey{{Ingress: own, Group: group}, {Ingress: other, Group: group}},
		Routes: []datapath.Route{{Ingress: other, From: []ids.Session{2}}},
	}))
	var all [][]byte
	for seq := range uint64(datagrams) {
		for i, s := range from {
			h := wire.Header{
				Type: wire.Data, HopLimit: 8, Session: s.Index, Group: group, Ingress: ingress[i], Sequence: seq,
				K: 1, N: 1, PayloadLen: 9, ObjectLen: 9,
			}
			b := append(h.Append(nil), make([]byte, 9)...)
			wire.SetPayloadTag(b, new(auth.Key).PayloadTag(b))
			wire.SetHopTag(b, s.ReceiveKey.HopTag(b))
			all = append(all, frame(s.Addr, bareAddr, b))
		}
	}
	var senders sync.WaitGroup
	for i := range uint64(racing) {
		senders.Go(func() {
			// Near each other in time and not in order, as on several receive queues.
			r := rand.New(rand.NewPCG(i, 1))
			for part := range slices.Chunk(all, 64) {
				for _, k := range r.Perm(len(part)) {
					if _, err := e.objects.MdcsRpIn.Run(&ebpf.RunOptions{Data: part[k]}); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	senders.Wait()
	v := e.objects.ReadVerdicts()
	require.Equal(t, uint64(2*datagrams), v[wire.Pass])
	require.Equal(t, uint64(2*datagrams*(racing-1)), v[wire.Replayed], "verdicts %v", v)
	marks := e.table.marks()
	require.Equal(t, []proto.Mark{
		{Ingress: own, Group: group, Sequence: datagrams},
		{Ingress: other, Group: group, Sequence: datagrams - 1},
	}, marks)
	require.Zero(t, e.objects.ReadCounters().Contended)
	for _, s := range e.table.stats() {
		require.Equal(t, uint64(datagrams), s.Received)
	}
}

// What the BPF maps of sessions and streams say may be about another session or stream by the time that a program reads
// it: their elements are used again at once. Then a datagram is dropped, and moves nothing of the other one.
func TestXDPElementsOfOthers(t *testing.T) {
	const own, group = 7, 9
	ingress := [...]ids.Incarnation{100, 101}
	from := [...]datapath.Session{{Index: 2, Role: datapath.Mesh}, {Index: 3, Role: datapath.Mesh}}
	e := newBare(t, datapath.Config{Incarnation: own})
	var c datapath.Change
	for i := range from {
		from[i].Addr = netip.AddrPortFrom(netip.MustParseAddr("2001:db8::2"), uint16(4000+i))
		from[i].ReceiveKey = auth.Key{byte(i)}
		c.Keys = append(c.Keys, proto.GroupKey{Ingress: ingress[i], Group: group})
		c.Routes = append(c.Routes, datapath.Route{Ingress: ingress[i], From: []ids.Session{from[0].Index, from[1].Index}})
	}
	c.Add = from[:]
	require.NoError(t, e.apply(c))
	data := func(sequence uint64) []byte {
		h := wire.Header{
			Type: wire.Data, HopLimit: 8, Session: from[0].Index, Group: group, Ingress: ingress[0], Sequence: sequence,
			K: 1, N: 1, PayloadLen: 9, ObjectLen: 9,
		}
		b := append(h.Append(nil), make([]byte, h.PayloadLen)...)
		wire.SetPayloadTag(b, new(auth.Key).PayloadTag(b))
		wire.SetHopTag(b, from[0].ReceiveKey.HopTag(b))
		return frame(from[0].Addr, bareAddr, b)
	}
	var want wire.Counters
	drops := func(v wire.Verdict, f []byte) {
		t.Helper()
		before := slices.Concat(e.state(t)[:2]...)
		e.receive(t, f)
		want[v]++
		require.Equal(t, want, e.objects.ReadVerdicts())
		require.Equal(t, before, slices.Concat(e.state(t)[:2]...))
	}
	e.receive(t, data(1))
	want[wire.Pass]++
	require.Equal(t, want, e.objects.ReadVerdicts())

	key := streamKey(ids.Stream{Ingress: ingress[0], Group: group})
	stream := func(i int) *bpf.RpStream {
		return &bpf.RpStream{State: e.table.streams[ids.Stream{Ingress: ingress[i], Group: group}].element}
	}
	require.NoError(t, e.objects.Streams.Put(key, stream(1)))
	drops(wire.NoKey, data(2))
	require.NoError(t, e.objects.Streams.Put(key, stream(0)))

	var session bpf.RpSession
	require.NoError(t, e.objects.Sessions.Lookup(from[0].Index, &session))
	own0 := session.State
	session.State = e.table.sessions[from[1].Index].state.element
	require.NoError(t, e.objects.Sessions.Put(from[0].Index, &session))
	drops(wire.NoSession, data(2))
	session.State = own0
	require.NoError(t, e.objects.Sessions.Put(from[0].Index, &session))
	e.receive(t, data(2))
	want[wire.Pass]++
	require.Equal(t, want, e.objects.ReadVerdicts())
}

// A datagram is of one stream and of one session, whatever becomes meanwhile of others: the keys of all streams
// change, streams end and begin.
func TestXDPStreamsWhileKeysChange(t *testing.T) {
	const own, other, group, streams = 7, 8, 9, 8
	e := newBare(t, datapath.Config{Incarnation: own})
	from := datapath.Session{Index: 2, Role: datapath.Mesh, Addr: netip.MustParseAddrPort("[2001:db8::2]:4000")}
	stays := proto.GroupKey{Ingress: other, Group: group}
	require.NoError(t, e.apply(datapath.Change{
		Add:    []datapath.Session{from},
		Keys:   []proto.GroupKey{stays},
		Routes: []datapath.Route{{Ingress: other, From: []ids.Session{from.Index}}},
	}))
	h := wire.Header{
		Type: wire.Data, HopLimit: 8, Session: from.Index, Group: group, Ingress: other, Sequence: 1,
		K: 1, N: 1, PayloadLen: 1168, ObjectLen: 1168,
	}
	b := append(h.Append(nil), make([]byte, h.PayloadLen)...)
	wire.SetPayloadTag(b, new(auth.Key).PayloadTag(b))
	wire.SetHopTag(b, from.ReceiveKey.HopTag(b))
	e.receive(t, frame(from.Addr, bareAddr, b))

	const each, runs = 20_000, 50
	done := make(chan error, 1)
	go func() {
		var err error
		for range runs {
			_, err = e.objects.MdcsRpIn.Run(&ebpf.RunOptions{Data: frame(from.Addr, bareAddr, b), Repeat: each})
			if err != nil {
				break
			}
		}
		done <- err
	}()
	for i := uint32(0); ; i++ {
		select {
		case err := <-done:
			require.NoError(t, err)
			want := wire.Counters{wire.Pass: 1, wire.Replayed: each * runs}
			require.Equal(t, want, e.objects.ReadVerdicts())
			require.Len(t, e.table.streams[ids.Stream{Ingress: other, Group: group}].keys, 2)
			return
		default:
		}
		keys := []proto.GroupKey{stays, {Ingress: other, Group: group, Epoch: 1, Key: auth.Key{byte(i)}}}
		for k := range ids.Incarnation(streams) {
			keys = append(keys, proto.GroupKey{Ingress: 100 + k, Group: group, Epoch: uint8(i), Key: auth.Key{byte(i), 1}})
		}
		for k := range keys {
			require.NoError(t, e.table.install(&keys[k]))
		}
		if i%1024 == 0 {
			e.table.retire(ids.Incarnation(100 + i/1024%streams))
			e.table.expire(time.Now().Add(fanout.Quarantine))
		}
	}
}

// The programs' arithmetic is that of datapath.Policer, to the nanosecond.
func TestXDPPolicerProperty(t *testing.T) {
	const own, other, group, receivers = 7, 8, 9, 5
	e := newBare(t, datapath.Config{Incarnation: own})
	from := make([]datapath.Session, receivers)
	for i := range from {
		from[i] = datapath.Session{
			Index: ids.Session(i + 1), Role: datapath.Peer, Groups: []ids.Group{group}, Publish: true,
			Addr: netip.MustParseAddrPort("[2001:db8::2]:4000"),
		}
	}
	// The other RP is upstream of its own stream, and a branch of both.
	from[1] = datapath.Session{Index: 2, Role: datapath.Mesh, Addr: from[0].Addr}
	ingress := [...]ids.Incarnation{0, other}
	branch := []datapath.Branch{{Session: 2, Groups: []ids.Group{group}}}
	routes := []datapath.Route{{Ingress: own, To: branch}, {Ingress: other, From: []ids.Session{2}, To: branch}}
	clock := func() uint64 {
		var now unix.Timespec
		require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
		return uint64(now.Nano())
	}
	sequence := uint64(0)
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.IntRange(0, 1).Draw(t, "session")
		s := &from[k]
		for i := range from {
			from[i].Rate = rapid.Uint32Range(1, 1e9).Draw(t, "rate")
			from[i].Burst = rapid.Uint32Range(1, 1e6).Draw(t, "burst")
			from[i].Egress = rapid.Uint64Range(0, 1e11).Draw(t, "egress")
			from[i].EgressBurst = rapid.Uint64Range(1, 1e11).Draw(t, "egress burst")
		}
		require.NoError(t, e.apply(datapath.Change{
			Add: from, Keys: []proto.GroupKey{{Ingress: own, Group: group}, {Ingress: other, Group: group}}, Routes: routes,
		}))
		size := rapid.IntRange(1, wire.MaxPayload).Draw(t, "payload")
		state := e.objects.Memory.Sessions.At(e.table.sessions[s.Index].state.element)
		datagrams, copies := s.Policers()
		cost := uint64(wire.HeaderSize+size) * receivers

		// Both buckets are full again some time before or after the datagram may pass.
		begin := clock()
		draw := func(p datapath.Policer, what string) uint64 {
			ahead := rapid.Int64Range(-1e9, 1e9).Draw(t, what)
			return uint64(max(0, int64(begin+p.Tolerance)+ahead))
		}
		due, copiesDue := draw(datagrams, "due"), draw(copies, "copies due")
		atomic.StoreUint64(&state.DatagramsDue, due)
		atomic.StoreUint64(&state.CopiesDue, copiesDue)
		sequence++
		h := wire.Header{
			Type: wire.Data, HopLimit: 8, Session: s.Index, Group: group, Ingress: ingress[k], Sequence: sequence,
			K: 1, N: 1, PayloadLen: uint16(size), ObjectLen: uint32(size),
		}
		b := append(h.Append(nil), make([]byte, size)...)
		wire.SetPayloadTag(b, new(auth.Key).PayloadTag(b))
		wire.SetHopTag(b, s.ReceiveKey.HopTag(b))
		before := e.objects.ReadVerdicts()
		_, err := e.objects.MdcsRpIn.Run(&ebpf.RunOptions{Data: frame(s.Addr, bareAddr, b)})
		require.NoError(t, err)
		end := clock()
		after := e.objects.ReadVerdicts()

		got, gotCopies := atomic.LoadUint64(&state.DatagramsDue), atomic.LoadUint64(&state.CopiesDue)
		conforms := func(now uint64) bool { return datagrams.Conforms(due, now) && copies.Conforms(copiesDue, now) }
		if after[wire.OverRate] > before[wire.OverRate] {
			require.False(t, conforms(begin))
			require.Equal(t, due, got)
			require.Equal(t, copiesDue, gotCopies)
			return
		}
		require.Equal(t, before[wire.Pass]+1, after[wire.Pass])
		require.True(t, conforms(end))
		for _, x := range []struct {
			policer        datapath.Policer
			due, got, cost uint64
		}{{datagrams, due, got, 1}, {copies, copiesDue, gotCopies, cost}} {
			require.GreaterOrEqual(t, x.got, x.policer.Charge(x.due, begin, x.cost))
			require.LessOrEqual(t, x.got, x.policer.Charge(x.due, end, x.cost))
		}
	})
}

// One on the wire is as one in the kernel: the maps are read without translation.
func TestWordsAsOnTheWire(t *testing.T) {
	b := make([]byte, 4)
	binary.NativeEndian.PutUint32(b, objects.Wire32(0x01020304))
	require.Equal(t, []byte{1, 2, 3, 4}, b)
	binary.NativeEndian.PutUint16(b, objects.Port(0x0506))
	require.Equal(t, []byte{5, 6}, b[:2])
}
