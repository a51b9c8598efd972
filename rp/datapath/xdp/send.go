// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/objects"
)

// sendBatch is the number of datagrams in one system call.
const sendBatch = 64

// sendBuffer is the size of the socket's buffer in bytes.
const sendBuffer = 4 << 20

// Byte orders: checksums are computed over little-endian words, and what the programs read of
// their own in a frame stands there as in memory.
var (
	le     = binary.LittleEndian
	be     = binary.BigEndian
	native = binary.NativeEndian
)

// listen opens the socket that LINK_HELLOs and what is sent again leave by. It holds
// the port; what arrives there by the kernel's own path is no datagram of a session, and
// is dropped before it takes memory.
func listen(addr netip.AddrPort) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = setOptions(int(fd)) }); e != nil {
			return e
		}
		return err
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp6", addr.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

func setOptions(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1); err != nil {
		return fmt.Errorf("set IPV6_DONTFRAG: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer); err != nil {
		return fmt.Errorf("set SO_SNDBUFFORCE: %w", err)
	}
	nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	filter := unix.SockFprog{Len: uint16(len(nothing)), Filter: &nothing[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &filter); err != nil {
		return fmt.Errorf("set SO_ATTACH_FILTER: %w", err)
	}
	return nil
}

// Hello implements datapath.Engine.
func (e *Engine) Hello(index ids.Session, hello [wire.HelloSize]byte) error {
	if e.closed.Load() {
		return datapath.ErrClosed
	}
	var s *session
	var sequence uint64
	var noWay *string
	e.table.withState(index, func(found *session, state *bpf.RpSessionState) {
		if found.Role != datapath.Mesh {
			return
		}
		s = found
		if noWay = s.state.noWay.Load(); noWay == nil {
			sequence = atomic.AddUint64(&state.Hellos, 1)
		}
	})
	if s == nil {
		return fmt.Errorf("hello: no mesh session %08x", index)
	}
	if noWay != nil {
		return fmt.Errorf("hello on session %08x: %w: %s", index, datapath.ErrNoWay, *noWay)
	}
	b := wire.NewLinkHello(s.SendSession, sequence, hello)
	wire.SetHopTag(b[:], s.SendKey.HopTag(b[:]))
	if _, err := e.conn.WriteToUDPAddrPort(b[:], s.Addr); err != nil {
		e.sendErrors.Add(1)
		return fmt.Errorf("hello on session %08x: %w", index, err)
	}
	s.state.copies.Add(1)
	return nil
}

// Heard implements datapath.Engine.
func (e *Engine) Heard(index ids.Session) (at time.Time) {
	e.table.withState(index, func(_ *session, state *bpf.RpSessionState) {
		if atomic.LoadUint64(&state.Received) > 0 {
			at = e.boot.Add(time.Duration(atomic.LoadUint64(&state.Heard)))
		}
	})
	return at
}

// Resend implements datapath.Engine.
func (e *Engine) Resend(index ids.Session, datagrams [][]byte) error {
	if e.closed.Load() {
		return datapath.ErrClosed
	}
	s := e.table.lookup(index)
	if s == nil {
		return fmt.Errorf("resend: no session %08x", index)
	}
	for _, b := range datagrams {
		if h, _, v := wire.Parse(b); v != wire.Pass || h.Type != wire.Data {
			return fmt.Errorf("resend: %v that is %v, want DATA", h.Type, v)
		}
	}
	if err := e.spare(index, datagrams); err != nil {
		return err
	}
	for part := range slices.Chunk(datagrams, sendBatch) {
		var batch [sendBatch]ipv6.Message
		for i, b := range part {
			batch[i] = s.message(b[:wire.HeaderSize], b[wire.HeaderSize:])
		}
		e.send(batch[:len(part)], func(from, n int) {
			s.state.copies.Add(uint64(n))
			e.copies.Add(uint64(n))
			for _, b := range part[from:][:n] {
				e.copyBytes.Add(uint64(len(b)))
			}
		})
	}
	return nil
}

// spare accounts for datagrams that are sent once more to a session, if the limit of all
// copies has room for them. The programs charge the same bucket.
func (e *Engine) spare(index ids.Session, datagrams [][]byte) error {
	bytes := 0
	for _, b := range datagrams {
		bytes += len(b)
	}
	err := fmt.Errorf("resend: no session %08x", index) // which may have ended just now
	if e.closed.Load() {
		err = datapath.ErrClosed
	}
	e.table.withState(index, func(*session, *bpf.RpSessionState) {
		if err = nil; !e.objects.ChargeEgress(time.Since(e.boot), bytes) {
			err = datapath.ErrOverRate
		}
	})
	return err
}

// SetEgress implements datapath.Engine.
func (e *Engine) SetEgress(rate, burst uint64) {
	_ = e.do(func() { // a closed engine has no limit
		t := e.table
		t.egress, t.egressBurst = rate, burst
		e.objects.SetEgress(0, datapath.NewPolicer(rate, burst))
		e.objects.FillEgress(0)
		t.share()
		for p := range t.sites.All() {
			e.objects.FillEgress(p.Bucket)
		}
	})
}

// message is a datagram to the session, with its index and hop tag.
func (s *session) message(header, payload []byte) ipv6.Message {
	own := [wire.HeaderSize]byte(header)
	wire.SetSession(own[:], s.SendSession)
	wire.SetHopTag(own[:], s.SendKey.HopTag(own[:]))
	dst, control := datapath.Destination(s.Addr)
	m := ipv6.Message{Buffers: [][]byte{own[:]}, OOB: control, Addr: net.UDPAddrFromAddrPort(dst)}
	if len(payload) > 0 {
		m.Buffers = append(m.Buffers, payload)
	}
	return m
}

// beat is a HEARTBEAT of an own stream and who gets it.
type beat struct {
	header [wire.HeaderSize]byte
	stream ownStream
	scope  datapath.HeartbeatScope
}

// anchor returns the chain with all receivers.
func (b *beat) anchor() uint32 {
	if b.scope == datapath.All {
		return b.stream.all
	}
	return b.stream.local
}

// Heartbeat implements datapath.Engine. The programs make the copies, as those of DATA.
func (e *Engine) Heartbeat(scope datapath.HeartbeatScope) error {
	e.sending.Lock()
	defer e.sending.Unlock()
	var refused []beat
	err := e.pulse.do(func() {
		for _, b := range e.table.beats(scope) {
			if e.fanOut(&b) != nil { // before Linux 5.18
				refused = append(refused, b)
			}
		}
	})
	e.sendBeats(refused)
	return err
}

// fanOut has the programs send a beat to all of its chain.
func (e *Engine) fanOut(b *beat) error {
	_, err := e.objects.MdcsRpOwn.Run(&ebpf.RunOptions{
		Data: b.frame(e.addr, e.objects.Cookie()), Repeat: 1, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: 1,
	})
	return err
}

// frame returns the beat as mdcs_rp_in leaves a datagram: what each copy has of its own is
// missing, the destination address is struct scratch of the programs, and the frame begins
// with the cookie of those that are on their way.
func (b *beat) frame(from netip.AddrPort, cookie uint64) []byte {
	const udpLen = 8 + wire.HeaderSize
	source := from.Addr().As16()
	common := be.AppendUint16(slices.Clone(source[:]), from.Port())
	common = be.AppendUint16(be.AppendUint16(common, udpLen), udpLen)
	common = be.AppendUint16(common, unix.IPPROTO_UDP)
	common = append(common, b.header[:4]...) // without session and hop tag
	common = append(common, b.header[8:56]...)

	f := append(native.AppendUint64(nil, cookie), 0, 0, 0, 0)
	f = be.AppendUint16(f, unix.ETH_P_IPV6)
	f = be.AppendUint16(append(f, 6<<4, 0, 0, 0), udpLen)
	f = append(f, unix.IPPROTO_UDP, unicastHopLimit)
	f = append(f, source[:]...)
	f = native.AppendUint16(append(f, 0, 0, 0, 0), uint16(b.anchor()))
	f = append(f, 0, 0, 0, 0, 0, 0) // no generation, from no session
	f = append(native.AppendUint16(f, objects.Sum16(common)), byte(b.stream.cpu), 0)
	f = be.AppendUint16(f, from.Port())
	f = be.AppendUint16(append(f, 0, 0), udpLen)
	return append(append(f, 0, 0), b.header[:]...)
}

// sendBeats sends beats by the socket, a batch at a time.
func (e *Engine) sendBeats(beats []beat) {
	for _, b := range beats {
		for part := range slices.Chunk(e.table.receivers(&b), sendBatch) {
			var batch [sendBatch]ipv6.Message
			for i, s := range part {
				batch[i] = s.message(b.header[:], nil)
			}
			e.send(batch[:len(part)], func(from, n int) {
				e.heartbeats.Add(uint64(n))
				for _, s := range part[from:][:n] {
					s.state.copies.Add(1)
				}
			})
		}
	}
}

// send sends a batch, and tells which n of it, from one on, were sent. A datagram that
// the host refuses is counted and skipped.
func (e *Engine) send(batch []ipv6.Message, sent func(from, n int)) {
	for next := 0; next < len(batch); {
		n, err := e.batch.WriteBatch(batch[next:], 0)
		if err != nil || n == 0 {
			e.sendErrors.Add(1)
			n = 1
		} else {
			sent(next, n)
		}
		next += n
	}
}

// beats returns the next heartbeat of each own stream that somebody within the scope
// gets. It is for the thread of the pulse.
func (t *table) beats(scope datapath.HeartbeatScope) []beat {
	own := t.own.Load()
	if own == nil {
		return nil
	}
	var beats []beat
	for _, s := range *own {
		if s.peers == 0 && (scope != datapath.All || len(s.branches) == 0) {
			continue
		}
		h := wire.Header{
			Type:     wire.Heartbeat,
			HopLimit: wire.InitialHopLimit,
			Epoch:    s.key.epoch,
			Group:    s.id.Group,
			Ingress:  s.id.Ingress,
			Sequence: atomic.LoadUint64(&t.e.objects.Memory.Streams.At(s.element).Newest),
			ObjectID: atomic.AddUint64(&t.e.objects.Memory.Lives.At(0).Beats, 1),
		}
		b := beat{[wire.HeaderSize]byte(h.Append(nil)), s, scope}
		wire.SetPayloadTag(b.header[:], s.key.key.PayloadTag(b.header[:]))
		beats = append(beats, b)
	}
	return beats
}

// ownMarks returns the newest sequence of each own stream, ordered by group. It is for the
// thread of the pulse.
func (t *table) ownMarks() (marks []proto.Mark) {
	own := t.own.Load()
	if own == nil {
		return nil
	}
	for _, s := range *own {
		marks = append(marks, proto.Mark{Ingress: s.id.Ingress, Group: s.id.Group, Sequence: atomic.LoadUint64(&t.e.objects.Memory.Streams.At(s.element).Newest)})
	}
	return marks
}

// receivers returns the sessions that get a beat.
func (t *table) receivers(b *beat) (to []*session) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if b.scope == datapath.All {
		for _, index := range b.stream.branches {
			if s := t.sessions[index]; s != nil {
				to = append(to, s)
			}
		}
	}
	for _, s := range t.sessions {
		if s.Role != datapath.Mesh && !s.Silent && slices.Contains(s.Groups, b.stream.id.Group) {
			to = append(to, s)
		}
	}
	return to
}
