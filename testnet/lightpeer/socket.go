// SPDX-License-Identifier: LGPL-3.0-or-later

package lightpeer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/wire"
)

const (
	// socketBuffer takes the copies of some datagrams to all peers of a socket.
	socketBuffer = 32 << 20

	// batch is how many datagrams are read at a time.
	batch = 64
)

// socket is the UDP socket of all peers with one port.
type socket struct {
	port uint16
	conn *net.UDPConn
	ip   *ipv6.PacketConn
}

// openSocket opens a port at all addresses, and lets packets leave from any.
func openSocket(port uint16) (*socket, error) {
	var config net.ListenConfig
	config.Control = func(network, address string, raw syscall.RawConn) error {
		var errs []error
		control := raw.Control(func(fd uintptr) {
			for _, option := range []struct{ level, name, value int }{
				{unix.SOL_IPV6, unix.IPV6_FREEBIND, 1},
				{unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1},
				{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1},
			} {
				errs = append(errs, unix.SetsockoptInt(int(fd), option.level, option.name, option.value))
			}
			// Beyond the host's limit for root; others get what the limit lets them have.
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer) != nil {
				errs = append(errs, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer))
			}
		})
		return errors.Join(append(errs, control)...)
	}
	c, err := config.ListenPacket(context.Background(), "udp6", netip.AddrPortFrom(netip.IPv6Unspecified(), port).String())
	if err != nil {
		return nil, fmt.Errorf("udp port %d: %w", port, err)
	}
	conn := c.(*net.UDPConn)
	return &socket{port, conn, ipv6.NewPacketConn(conn)}, nil
}

func (s *socket) close() { s.conn.Close() }

// send sends a datagram from an address. One that the kernel refuses is lost.
func (s *socket) send(b []byte, from netip.Addr, to netip.AddrPort) {
	source := ipv6.ControlMessage{Src: from.AsSlice()}
	_, _, _ = s.conn.WriteMsgUDPAddrPort(b, source.Marshal(), to)
}

// receive gives the datagrams of a socket to its peers until it is closed.
func (s *Swarm) receive(socket *socket) {
	messages := make([]ipv6.Message, batch)
	for i := range messages {
		messages[i].Buffers = [][]byte{make([]byte, wire.MaxDatagram+1)} // one more shows an oversized one
		messages[i].OOB = make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo)+unix.CmsgSpace(sizeofTimespec))
	}
	for {
		n, err := socket.ip.ReadBatch(messages, 0)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error for a datagram that was sent: the RP is away
		}
		now := time.Now()
		for i := range messages[:n] {
			m := &messages[i]
			src, ok := m.Addr.(*net.UDPAddr)
			to, at := ancillary(m.OOB[:m.NN])
			p := s.byEndpoint[netip.AddrPortFrom(to, socket.port)]
			if ok && p != nil {
				p.receive(now, src.AddrPort(), m.Buffers[0][:m.N], at)
			}
		}
	}
}

// sizeofTimespec is the size of a time in the kernel's messages.
const sizeofTimespec = 16

// ancillary returns where a datagram was sent to and when it arrived, Unix time in ns.
func ancillary(b []byte) (to netip.Addr, at int64) {
	for len(b) > 0 {
		header, data, rest, err := unix.ParseOneSocketControlMessage(b)
		if err != nil {
			return to, at
		}
		switch {
		case header.Level == unix.SOL_IPV6 && header.Type == unix.IPV6_PKTINFO && len(data) >= 16:
			to = netip.AddrFrom16([16]byte(data))
		case header.Level == unix.SOL_SOCKET && header.Type == unix.SCM_TIMESTAMPNS && len(data) >= sizeofTimespec:
			at = int64(binary.NativeEndian.Uint64(data))*1e9 + int64(binary.NativeEndian.Uint64(data[8:]))
		}
		b = rest
	}
	return to, at
}
