// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"net"
	"net/netip"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
	"golang.org/x/net/ipv6"
)

// On a slow line datagrams wait: sendRoom of them for the socket, some more in its buffer of so many bytes,
// and the rest in the outbox, where their time to be acknowledged does not run yet.
const (
	sendRoom   = 32
	sendBuffer = 64 << 10
)

// outgoing is a datagram on its way to an RP.
type outgoing struct {
	bytes []byte
	to    netip.AddrPort
	from  []byte // control message: the address by which the RP knows this node, none for any
}

// source is the control message by which a datagram leaves from an address of this host. Without
// it the kernel prefers addresses that may be others than that of the connection (RFC 6724), from which
// the RP takes nothing (SPEC 8.1).
func source(local netip.Addr) []byte {
	if !local.Is6() || local.Is4In6() {
		return nil
	}
	return (&ipv6.ControlMessage{Src: local.AsSlice()}).Marshal()
}

// sendDatagram sends a datagram to an RP. One that finds no room, or that the kernel refuses, is like
// one lost on the way: what matters is sent again.
func (s *Service) sendDatagram(rp *rpConn, b []byte) {
	if rp == nil {
		return
	}
	select {
	case s.sends <- outgoing{b, rp.dataAddr(), rp.source}:
	default:
		sendErrorMeter.Mark(1)
	}
}

// flushOutbox does what the outbox wants done, and takes as many datagrams of it as there is room for.
func (s *Service) flushOutbox(now time.Time) {
	s.drainOutbox(now)
	s.outbox.SetRoom(now, cap(s.sends)-len(s.sends))
	s.drainOutbox(now)
	if s.short.Store(s.outbox.Short()); s.short.Load() && len(s.sends) == 0 {
		s.poke() // sendLoop may have looked before
	}
}

// sendLoop sends datagrams. On a slow line the socket may have no room for some time, for which
// nobody who has the lock may wait.
func (s *Service) sendLoop() {
	for {
		select {
		case d := <-s.sends:
			if len(s.sends) == 0 && s.short.Swap(false) {
				s.poke()
			}
			if _, _, err := s.socket.WriteMsgUDPAddrPort(d.bytes, d.from, d.to); err != nil {
				sendErrorMeter.Mark(1)
				continue
			}
			sentMeter.Mark(1)
			sentBytesMeter.Mark(int64(len(d.bytes)))
		case <-s.quit:
			return
		}
	}
}

// lookAfter is how often the addresses of connections to RPs are looked for.
const lookAfter = time.Second

// checkAddresses ends connections from addresses that this host has no longer. TCP would
// notice that after many seconds; a new connection, from another address, is made at once.
func (s *Service) checkAddresses(now time.Time) {
	if now.Sub(s.looked) < lookAfter {
		return
	}
	s.looked = now
	var here map[netip.Addr]bool
	for _, rp := range s.rps {
		if rp.conn == nil || rp.conn.peer == nil || !rp.local.IsValid() {
			continue
		}
		if here == nil {
			if here = s.addresses(); here == nil {
				return
			}
		}
		if here[rp.local.WithZone("")] {
			continue
		}
		s.log.Warn("Lost the address of the connection to a replication point, connecting anew", "rp", rp.id, "addr", rp.local)
		peer := rp.conn.peer
		rp.local = netip.Addr{} // told once
		s.wg.Go(func() { peer.Disconnect(p2p.DiscNetworkError) })
	}
}

// hostAddresses returns the addresses of this host, nil if they cannot be told.
func hostAddresses() map[netip.Addr]bool {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	here := make(map[netip.Addr]bool)
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(ip.IP); ok {
				here[addr.Unmap()] = true
			}
		}
	}
	return here
}
