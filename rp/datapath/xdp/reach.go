// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// ReachSize is the size of the echo requests of Reach in bytes of ICMPv6: packets as large
// as those with the largest datagram.
const ReachSize = 8 + wire.MaxDatagram

// reachTries is how many echo requests Reach sends.
const reachTries = 3

// ICMPv6 types (RFC 4443 section 4).
const (
	echoRequest = 128
	echoReply   = 129
)

// Reach sends ICMPv6 echo requests to a node the way of copies, and returns how long the
// answer took: that copies arrive there, and datagrams from there arrive here. It needs
// CAP_NET_RAW. The zone of a link-local address is the name of a device.
func (e *Engine) Reach(peer netip.Addr, timeout time.Duration) (time.Duration, error) {
	var conn net.PacketConn
	var err error
	if closed := e.do(func() { conn, err = net.ListenPacket("ip6:ipv6-icmp", e.addr.Addr().String()) }); closed != nil {
		return 0, fmt.Errorf("reach %v: %w", peer, closed)
	}
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w (needs CAP_NET_RAW: run it as root)", err)
	}
	if err != nil {
		return 0, fmt.Errorf("reach %v: %w", peer, err)
	}
	defer conn.Close()
	id := make([]byte, 2)
	if _, err := rand.Read(id); err != nil {
		return 0, fmt.Errorf("reach %v: %w", peer, err)
	}
	var start time.Time
	for sequence := range byte(reachTries) {
		packet := make([]byte, ReachSize)
		packet[0], packet[7] = echoRequest, sequence
		copy(packet[4:], id)
		start = time.Now()
		if err := e.sendWhole(peer, timeout, unix.IPPROTO_ICMPV6, 2, packet); err != nil {
			return 0, fmt.Errorf("reach %v: %w", peer, err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(timeout / reachTries)) // it has deadlines
		b := make([]byte, ReachSize+64)
		for {
			n, _, err := conn.ReadFrom(b)
			if err != nil {
				break
			}
			if n == ReachSize && b[0] == echoReply && [2]byte(b[4:6]) == [2]byte(id) {
				return time.Since(start), nil
			}
		}
	}
	return 0, fmt.Errorf("reach %v: %w: no answer to %d echo requests that the programs sent; does it answer to: ping -6 -s %d %v? "+
		"then switch on GRO where it is, if its device is a veth: ethtool -K DEV gro on", peer, datapath.ErrNoWay, reachTries, ReachSize-8, peer)
}
