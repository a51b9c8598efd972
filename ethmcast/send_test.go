// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
)

// A connection whose address this host has no longer is ended, once.
func TestLostAddress(t *testing.T) {
	s := newTestService(t)
	now := time.Unix(100, 0)
	local, other := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	here := map[netip.Addr]bool{local: true, other: true}
	looks := 0
	s.addresses = func() map[netip.Addr]bool { looks++; return here }
	s.checkAddresses(now)
	if looks > 0 {
		t.Error("looked without a connection")
	}

	rp := newRPConn(enode.NewV4(&key(t).PublicKey, other.AsSlice(), 1, 1))
	rp.conn, rp.local = &conn{id: rp.id, peer: p2p.NewPeer(rp.id, "rp", nil)}, local
	s.rps[rp.id] = rp
	lost := func() bool { return !rp.local.IsValid() }
	for range 10 {
		now = now.Add(lookAfter / 5)
		s.checkAddresses(now)
	}
	if looks != 2 || lost() {
		t.Errorf("looked %d times in 2 s, lost: %t", looks, lost())
	}
	here = nil // cannot be told
	now = now.Add(lookAfter)
	if s.checkAddresses(now); lost() {
		t.Error("an address is lost that the host may have")
	}
	here = map[netip.Addr]bool{other: true}
	now = now.Add(lookAfter)
	if s.checkAddresses(now); !lost() {
		t.Error("the address is not missed")
	}
	looks = 0
	now = now.Add(lookAfter)
	if s.checkAddresses(now); looks > 0 {
		t.Error("an ended connection is looked after")
	}
}

// Whoever has datagrams for an RP does not wait for the socket. What finds no room is counted.
func TestSendingDoesNotWait(t *testing.T) {
	s := newTestService(t) // nobody reads what it has to send
	rp := &rpConn{addr: testRP.Addr(), joiner: memberOf(t, time.Now())}
	errors := sendErrorMeter.Snapshot().Count()
	for range sendRoom + 3 {
		s.sendDatagram(rp, []byte{1})
	}
	if n := sendErrorMeter.Snapshot().Count() - errors; n != 3 || len(s.sends) != sendRoom {
		t.Errorf("%d datagrams wait, %d are counted as errors", len(s.sends), n)
	}
	s.sendDatagram(nil, []byte{1}) // without an RP nothing is sent
}

// Datagrams leave from the address of the connection, whatever others the host has.
func TestLeavesFromAddress(t *testing.T) {
	s := newTestService(t)
	at := func(addr string) *net.UDPConn {
		c, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 0)))
		if err != nil {
			t.Skip("no IPv6: ", err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	to := at("::1")
	s.socket = at("::")
	s.wg.Go(s.sendLoop)
	defer func() { close(s.quit); s.wg.Wait() }()
	send := func(from netip.Addr) {
		s.sends <- outgoing{[]byte{7}, to.LocalAddr().(*net.UDPAddr).AddrPort(), source(from)}
	}
	errors := sendErrorMeter.Snapshot().Count()
	send(netip.MustParseAddr("2001:db8::dead")) // which nobody has
	send(netip.IPv6LinkLocalAllNodes())
	send(netip.Addr{})
	send(netip.MustParseAddr("::1"))
	for range 2 {
		b := make([]byte, 10)
		_ = to.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, from, err := to.ReadFromUDPAddrPort(b)
		if err != nil || n != 1 || from.Addr() != netip.IPv6Loopback() {
			t.Fatalf("%d bytes from %v: %v", n, from, err)
		}
	}
	if n := sendErrorMeter.Snapshot().Count() - errors; n != 2 {
		t.Errorf("%d errors, want 2", n)
	}
}
