// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/datapathtest"
)

// Heartbeats are copied by the programs, each for its receiver, and are like those that
// the socket sends where the kernel cannot do that.
func TestXDPHeartbeat(t *testing.T) {
	const n = 100
	c := newCrowd(t, newLab(t, 2), 0, n, func(i int) int { return i % 2 })
	e := c.Engine.(*Engine)
	y := c.tally()
	c.publish(100)
	y.complete(c.sessions, 1, 1)
	before := c.Stats()
	check := func(beat uint64, out []datapathtest.Output) {
		t.Helper()
		seen := make(map[netip.AddrPort]int)
		for _, o := range out {
			h, _, v := wire.Parse(o.Data)
			require.Equal(t, wire.Pass, v)
			s := &c.sessions[h.Session-0x10000]
			require.True(t, s.SendKey.CheckHopTag(o.Data, h.HopTag))
			require.Equal(t, s.Addr, o.Dst)
			require.Equal(t, wire.Header{Type: wire.Heartbeat, HopLimit: wire.InitialHopLimit, Group: testGroup, Ingress: testOwn,
				Sequence: 1, ObjectID: beat, Session: h.Session, PayloadTag: new(auth.Key).PayloadTag(o.Data), HopTag: h.HopTag}, h)
			seen[o.Dst]++
		}
		require.Len(t, out, n)
		require.Len(t, seen, n)
	}
	check(1, c.Heartbeat(datapath.Local))
	check(2, c.Heartbeat(datapath.All))
	require.Zero(t, e.heartbeats.Load(), "the socket's")

	var beats []beat
	require.NoError(t, e.pulse.do(func() { beats = e.table.beats(datapath.All) }))
	sentBefore := sent(c.Stats())
	e.sendBeats(beats)
	check(3, c.collect(sentBefore))

	after := c.Stats()
	require.Equal(t, before.Heartbeats+3*n, after.Heartbeats)
	require.Zero(t, after.SendErrors)
	for i := range after.Sessions {
		require.Equal(t, before.Sessions[i].Copies+3, after.Sessions[i].Copies)
	}
}

// The kernel keeps the ND entries of hosts to whom only the programs send.
func TestXDPKeepsEntries(t *testing.T) {
	c := newCrowd(t, newLab(t, 1), 0, 1, func(int) int { return 0 })
	e := c.Engine.(*Engine)
	ip := net.IP(c.lab.hostAddr(0).AsSlice())
	is := func() *netlink.Neigh {
		all, err := e.nl.NeighList(100, netlink.FAMILY_V6)
		require.NoError(t, err)
		for i := range all {
			if all[i].IP.Equal(ip) {
				return &all[i]
			}
		}
		return nil
	}
	require.NoError(t, e.do(func() {
		stale := is()
		require.NotNil(t, stale)
		stale.State = netlink.NUD_STALE
		require.NoError(t, e.nl.NeighSet(stale))
		require.Equal(t, netlink.NUD_STALE, is().State)
		e.paths.KeepEntries()
	}))
	require.Eventually(t, func() bool {
		var state int
		require.NoError(t, e.do(func() { state = is().State }))
		return state&(netlink.NUD_DELAY|netlink.NUD_PROBE|netlink.NUD_REACHABLE) != 0
	}, 10*time.Second, time.Millisecond)
}
