// SPDX-License-Identifier: LGPL-3.0-or-later

package socket

import (
	"net"
	"net/netip"
	"sync/atomic"

	"golang.org/x/net/ipv6"

	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// batchSize is the number of datagrams in one system call, of either direction.
const batchSize = 64

// batchWriter is the sending half of ipv6.PacketConn.
type batchWriter interface {
	WriteBatch(ms []ipv6.Message, flags int) (int, error)
}

// sentCounters are read while the sender runs.
type sentCounters struct {
	copies, copyBytes, echoes, heartbeats, errors atomic.Uint64
}

// sender collects datagrams and sends them in batches. Headers are copied into its
// own slots; payloads are shared by all copies and must stay until flush.
type sender struct {
	conn    batchWriter
	sent    sentCounters
	n       int // slots in use
	headers [batchSize][wire.HeaderSize]byte
	buffers [batchSize][2][]byte
	batch   [batchSize]ipv6.Message
	to      [batchSize]*session
}

func newSender(conn batchWriter) *sender {
	s := &sender{conn: conn}
	for i := range s.batch {
		s.buffers[i][0] = s.headers[i][:]
	}
	return s
}

// send sends all datagrams of a fan-out.
func (s *sender) send(f *fanout) {
	f.copies(s.put)
	s.flush()
}

// resend sends datagrams once more, to one session.
func (s *sender) resend(to *session, datagrams [][]byte) {
	for _, b := range datagrams {
		header := [wire.HeaderSize]byte(b)
		to.seal(&header)
		s.put(to, &header, b[wire.HeaderSize:])
	}
	s.flush()
}

// put takes one slot.
func (s *sender) put(to *session, header *[wire.HeaderSize]byte, payload []byte) {
	i := s.n
	s.headers[i] = *header
	s.buffers[i][1] = payload
	s.batch[i].Buffers = s.buffers[i][:2]
	if len(payload) == 0 {
		s.batch[i].Buffers = s.buffers[i][:1]
	}
	s.batch[i].Addr = to.dst
	s.batch[i].OOB = to.control
	s.to[i] = to
	if s.n++; s.n == batchSize {
		s.flush()
	}
}

// flush sends what the slots hold. A datagram that the host refuses is counted
// and skipped: the others must not suffer from one bad route.
func (s *sender) flush() {
	for rest := s.batch[:s.n]; len(rest) > 0; {
		sent, err := s.conn.WriteBatch(rest, 0)
		if err != nil || sent == 0 {
			s.sent.errors.Add(1)
			sent = 1
		} else {
			s.count(s.n-len(rest), sent)
		}
		rest = rest[sent:]
	}
	s.n = 0
}

// count accounts for slots that were sent.
func (s *sender) count(from, n int) {
	var copies, bytes, echoes, heartbeats uint64
	for i := from; i < from+n; i++ {
		switch wire.Type(s.headers[i][0] & 15) {
		case wire.Data:
			copies++
			bytes += uint64(wire.HeaderSize + len(s.buffers[i][1]))
		case wire.Echo:
			echoes++
		case wire.Heartbeat:
			heartbeats++
		}
		s.to[i].state.copies.Add(1)
	}
	s.sent.copies.Add(copies)
	s.sent.copyBytes.Add(bytes)
	s.sent.echoes.Add(echoes)
	s.sent.heartbeats.Add(heartbeats)
}

// udpAddr converts the address of a received message; the zero AddrPort belongs
// to no session.
func udpAddr(a net.Addr) (addr netip.AddrPort) {
	if u, ok := a.(*net.UDPAddr); ok {
		addr = u.AddrPort()
	}
	return addr
}
