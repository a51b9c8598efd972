// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/rp/datapath"
)

// A neighbour that no session goes by is kept for those to come, and changes nothing.
func TestXDPLearn(t *testing.T) {
	e := newBare(t, datapath.Config{Incarnation: 1})
	at := path{ifindex: 3, via: netip.MustParseAddr("2001:db8::2")}
	learn := func(state int, last byte) bool {
		return e.learn(netlink.NeighUpdate{Type: unix.RTM_NEWNEIGH, Neigh: netlink.Neigh{
			LinkIndex: at.ifindex, IP: at.via.AsSlice(), State: state, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, last},
		}})
	}
	e.devices[0] = &device{name: "eth0", index: at.ifindex}
	t.Cleanup(func() { e.devices[0] = nil }) // before shut
	require.False(t, learn(netlink.NUD_REACHABLE, 1))
	require.False(t, learn(netlink.NUD_REACHABLE, 2))
	require.False(t, learn(netlink.NUD_FAILED, 2))
	require.False(t, learn(netlink.NUD_REACHABLE, 3))
	hop, found := e.hop(at)
	require.True(t, found, "who joins later")
	require.Equal(t, mac{2, 5: 3}, hop.dst)

	e.table.sessions[1] = &session{Session: datapath.Session{Index: 1}, path: at, state: new(sessionState)}
	require.False(t, learn(netlink.NUD_STALE, 3), "it is known")
	require.True(t, learn(netlink.NUD_REACHABLE, 4))
	require.True(t, learn(netlink.NUD_FAILED, 4))
	require.True(t, learn(netlink.NUD_REACHABLE, 4))
}

// Events without a pause do not put off the resolution.
func TestResolvesDuringEvents(t *testing.T) {
	e := &Engine{late: time.NewTimer(time.Hour)}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		e.resolveSoon()
		select {
		case <-e.late.C:
			return
		case <-time.After(settle / 10):
		}
	}
	t.Fatal("paths are not looked up")
}
