// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/net/ipv6"

	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// subscribe joins a channel of an RP and reports whether it could. What it opens
// is closed by unsubscribe.
func (s *Service) subscribe(rp *rpConn, a proto.Subscribe) bool {
	s.unsubscribe(rp)
	group := netip.AddrPortFrom(proto.GroupAddr(a.Group), a.Port)
	socket, err := listenChannel(rp.local, rp.addr, group)
	if err != nil {
		s.log.Warn("Multicast not available, using unicast", "group", group, "err", err)
		return false
	}
	_ = socket.SetReadBuffer(socketBuffer)
	rp.channel = socket
	s.wg.Go(func() { s.receiveLoop(socket, proto.ModeSSM) })
	return true
}

// unsubscribe leaves the channel, if there is one.
func (s *Service) unsubscribe(rp *rpConn) {
	if rp.channel != nil {
		rp.channel.Close()
		rp.channel = nil
	}
}

// listenChannel returns a socket that receives what source sends to group, on the
// interface that has the address local.
func listenChannel(local, source netip.Addr, group netip.AddrPort) (*net.UDPConn, error) {
	intf, err := interfaceOf(local)
	if err != nil {
		return nil, err
	}
	// For a multicast address Go shares the port with other nodes of this host.
	socket, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(group))
	if err != nil {
		return nil, err
	}
	err = ipv6.NewPacketConn(socket).JoinSourceSpecificGroup(intf, &net.UDPAddr{IP: group.Addr().AsSlice()}, &net.UDPAddr{IP: source.AsSlice()})
	if err != nil {
		socket.Close()
		return nil, fmt.Errorf("join on %s: %w", intf.Name, err)
	}
	return socket, nil
}

// interfaceOf returns the interface that has an address. That of the connection to
// an RP is the one by which its datagrams come.
func interfaceOf(addr netip.Addr) (*net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for i := range all {
		addrs, err := all[i].Addrs()
		if err != nil {
			return nil, fmt.Errorf("addresses of %s: %w", all[i].Name, err)
		}
		for _, a := range addrs {
			if ip, ok := a.(*net.IPNet); ok && ip.IP.Equal(addr.AsSlice()) {
				return &all[i], nil
			}
		}
	}
	return nil, fmt.Errorf("no interface has address %v", addr)
}
