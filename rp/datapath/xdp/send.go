// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// sendBatch is the number of datagrams in one system call.
const sendBatch = 64

// sendBuffer is the size of the socket's buffer in bytes.
const sendBuffer = 4 << 20

// listen opens the socket that PROBEs and own HEARTBEATs are sent from. It holds the
// port; what arrives there by the kernel's own path is no datagram of a session, and
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

// Probe implements datapath.Engine.
func (e *Engine) Probe(dst netip.AddrPort, nonce [wire.NonceSize]byte, size int) error {
	if e.closed.Load() {
		return datapath.ErrClosed
	}
	if size < wire.HeaderSize+wire.NonceSize || size > wire.MaxDatagram {
		return fmt.Errorf("probe of %d bytes", size)
	}
	h := wire.Header{Type: wire.Probe}
	b := append(h.Append(make([]byte, 0, wire.MaxDatagram)), nonce[:]...)
	dst, control := datapath.Destination(dst)
	if _, _, err := e.conn.WriteMsgUDPAddrPort(b[:size], control, dst); err != nil {
		e.sendErrors.Add(1)
		return fmt.Errorf("probe: %w", err)
	}
	e.probes.Add(1)
	return nil
}

// Hello, Resend and Heard implement datapath.Engine.
func (e *Engine) Hello(uint32, [wire.HelloSize]byte) error {
	return errors.New("hello: this engine has none yet")
}

func (e *Engine) Resend(uint32, [][]byte) error {
	return errors.New("resend: this engine has none yet")
}

func (e *Engine) Heard(uint32) time.Time { return time.Time{} }

// beat is a HEARTBEAT of an own stream and who gets it.
type beat struct {
	header wire.Header
	to     []*session
}

// Heartbeat implements datapath.Engine. The socket sends them, a batch at a time: that
// also keeps the kernel's neighbour entries in use.
func (e *Engine) Heartbeat(datapath.HeartbeatScope) error {
	e.sending.Lock()
	defer e.sending.Unlock()
	var beats []beat
	if err := e.do(func() { beats = e.table.beats() }); err != nil {
		return err
	}
	var batch [sendBatch]ipv6.Message
	for _, b := range beats {
		for len(b.to) > 0 {
			n := min(len(b.to), len(batch))
			for i, s := range b.to[:n] {
				b.header.Session = s.SendSession
				datagram := b.header.Append(make([]byte, 0, wire.HeaderSize))
				wire.SetHopTag(datagram, s.SendKey.HopTag(datagram))
				dst, control := datapath.Destination(s.Addr)
				batch[i] = ipv6.Message{Buffers: [][]byte{datagram}, OOB: control, Addr: net.UDPAddrFromAddrPort(dst)}
			}
			e.send(batch[:n], b.to[:n])
			b.to = b.to[n:]
		}
	}
	return nil
}

// send sends a batch. A datagram that the host refuses is counted and skipped.
func (e *Engine) send(batch []ipv6.Message, to []*session) {
	for len(batch) > 0 {
		n, err := e.batch.WriteBatch(batch, 0)
		if err != nil || n == 0 {
			e.sendErrors.Add(1)
			n = 1
		} else {
			e.heartbeats.Add(uint64(n))
			for _, s := range to[:n] {
				s.state.copies.Add(1)
			}
		}
		batch, to = batch[n:], to[n:]
	}
}

// beats returns the next heart-beat of each own stream that has receivers.
func (t *table) beats() []beat {
	to := make(map[uint32][]*session)
	for _, role := range []datapath.Role{datapath.Mesh, datapath.Peer, datapath.Channel} {
		for _, s := range t.sessions {
			if s.Role != role || s.Silent {
				continue
			}
			for _, group := range s.Groups {
				to[group] = append(to[group], s)
			}
		}
	}
	var beats []beat
	for id, s := range t.streams {
		if id.ingress != t.e.cfg.Incarnation || len(to[id.group]) == 0 {
			continue
		}
		state := t.e.memory.streams.at(s.element)
		next := load(&state.Beat) + 1
		store(&state.Beat, next)
		beats = append(beats, beat{
			to: to[id.group],
			header: wire.Header{
				Type:     wire.Heartbeat,
				HopLimit: wire.InitialHopLimit,
				Group:    id.group,
				Ingress:  id.ingress,
				Sequence: load(&state.Newest),
				ObjectID: next,
			},
		})
	}
	return beats
}
