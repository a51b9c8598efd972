// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// numberedHost is one of 65,536 hosts.
func numberedHost(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 14: byte(i >> 8), 15: byte(i)})
}

func TestPairs(t *testing.T) {
	p := new(pairs)
	frame := testFrame(unix.IPPROTO_UDP, 30501, 30501, testDatagram(wire.Heartbeat, 0))
	count := func(from, to int) {
		a, b := numberedHost(from).As16(), numberedHost(to).As16()
		copy(frame[offAddrs:], a[:])
		copy(frame[offAddrs+addrSize:], b[:])
		p.add(frame, len(frame))
	}
	for i := range maxPairs - 1 {
		count(i, i+1)
	}
	count(0, 1)
	count(1, 0)
	count(5000, 6000) // no room
	byPair := make(map[[2]netip.Addr]Count)
	for _, x := range p.list("a-b") {
		require.Equal(t, "a-b", x.Link)
		byPair[[2]netip.Addr{x.From, x.To}] = x.Count
	}
	require.Len(t, byPair, maxPairs)
	size := uint64(len(frame))
	require.Equal(t, Count{2, 2 * size}, byPair[[2]netip.Addr{numberedHost(0), numberedHost(1)}])
	require.Equal(t, Count{1, size}, byPair[[2]netip.Addr{numberedHost(1), numberedHost(0)}])
	require.Equal(t, Count{1, size}, byPair[[2]netip.Addr{numberedHost(7), numberedHost(8)}])
}

// TestNetnsPairs counts control traffic on the one link that asks for it.
func TestNetnsPairs(t *testing.T) {
	n := newTestNet(t, 1, Link{Pairs: true}, Link{})
	in := n.listen(t, testPorts.RPData)
	for i := range 2 {
		out := n.dial(t, "udp", i, testPorts.RPData)
		greet(t, out, in)
		for range 3 {
			_, err := out.Write(testDatagram(wire.Heartbeat, 0))
			require.NoError(t, err)
		}
		send(t, out, 2, shortest)
		n.settle(t, i)
	}
	list, err := n.wire.Pairs()
	require.NoError(t, err)
	require.Equal(t, []Pair{{
		Link: "link0", From: addrA(0), To: addrB(0),
		Count: Count{3, 3 * uint64(frameBytes(wire.HeaderSize))},
	}}, list)
	require.NoError(t, n.wire.Clear())
	list, err = n.wire.Pairs()
	require.NoError(t, err)
	require.Empty(t, list)
	n.stop(t)
}
