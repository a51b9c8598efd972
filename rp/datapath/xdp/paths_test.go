// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/nexthop"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/pindir"
	"github.com/ethmcast/mdcs/rp/hostnet"
)

// A device that comes back as another interface, of which the engine hears nothing because
// the kernel tells of no event any more, forwards again, also when it has the index of before.
func TestXDPDeviceWithoutEvents(t *testing.T) {
	for _, same := range []bool{false, true} {
		t.Run(fmt.Sprintf("same index=%v", same), func(t *testing.T) { testDeviceWithoutEvents(t, same) })
	}
}

func testDeviceWithoutEvents(t *testing.T, same bool) {
	const n = 10
	l := newLab(t, 1)
	c := newCrowd(t, l, 0, n, func(int) int { return 0 })
	e := c.Engine.(*Engine)
	y := c.tally()
	c.publish(100)
	y.complete(c.sessions, 1, 1)

	for _, s := range c.sessions { // their addresses go with their interface
		c.nodes[s.Addr].conn.Close()
		delete(c.nodes, s.Addr)
	}
	require.NoError(t, e.do(func() {
		e.paths.Close() // its events end
		link, err := e.nl.LinkByName(l.device(0))
		require.NoError(t, err)
		require.NoError(t, e.nl.LinkDel(link))
		if same {
			l.links -= 10
		}
		l.connect(0)
		require.Equal(t, same, l.index(0) == link.Attrs().Index)
	}))
	for _, s := range c.sessions {
		c.node(s.Addr)
	}
	require.Eventually(t, func() bool {
		var is bool
		require.NoError(t, e.do(func() {
			link, err := e.nl.LinkByName(l.device(0))
			is = err == nil && e.devices[0] != nil && e.devices[0].index == link.Attrs().Index && pindir.Attached(e.devices[0].link, e.devices[0].index) &&
				e.paths.Resolved() && !e.table.untidy()
		}))
		return is && e.missing() == 0
	}, 10*time.Second, 10*time.Millisecond)
	y = c.tally()
	c.publish(100)
	y.complete(c.sessions, 2, 2)
}

// An address that is waited for in vain holds up no other call.
func TestXDPAwaitHoldsUpNobody(t *testing.T) {
	c := newCrowd(t, newLab(t, 1), 0, 1, func(int) int { return 0 })
	e := c.Engine.(*Engine)
	base := c.lab.hostAddr(0).As16()
	silent := slices.Clone(base[:])
	silent[15] = 0x99 // nobody has it
	addr, _ := netip.AddrFromSlice(silent)
	s := datapath.Session{Index: 0x7777, Role: datapath.Peer, Addr: netip.AddrPortFrom(addr, 9), Groups: []ids.Group{1}}
	applied := make(chan error)
	go func() { applied <- e.Apply(datapath.Change{Add: []datapath.Session{s}}) }()
	require.Eventually(t, func() bool { return e.table.lookup(s.Index) != nil }, 10*time.Second, time.Millisecond)
	calls := 0
	for done := false; !done; calls++ {
		e.Marks()
		select {
		case err := <-applied:
			require.NoError(t, err)
			done = true
		default:
		}
	}
	require.Greater(t, calls, 10)
}

// An ND entry that the host's operator made permanent stays permanent, however often the
// engine looks after the ND entries of its sessions.
func TestXDPKeepsPermanentEntries(t *testing.T) {
	const hosts = 5
	l, e, _ := newMany(t, 2*hosts, hosts)
	for range 3 {
		require.NoError(t, e.do(func() {
			e.paths.AskMissing()
			e.paths.KeepEntries()
			for e.paths.Waiting() {
				e.work()
			}
		}))
	}
	entries, err := hostnet.Entries(e.nl)
	require.NoError(t, err)
	for i := range hosts {
		entry := hostnet.Entry{Link: e.devices[0].index, Addr: l.manyAddr(i)}
		require.Equal(t, netlink.NUD_PERMANENT, entries[entry].State, "%v", entry)
	}
	require.Zero(t, e.missing())
}

// While addresses are looked up all the time, chains that are all to be made anew are made
// within a short time.
func TestXDPAllWhilePathsAreLookedUp(t *testing.T) {
	_, e, _ := newMany(t, 2*nexthop.Turn, 2*nexthop.Turn)
	require.NoError(t, e.do(func() {
		e.table.all = true
		for end := time.Now().Add(20 * time.Second); e.table.all && time.Now().Before(end); {
			e.paths.LookUpAll()
			e.work()
		}
		require.False(t, e.paths.Resolved())
		require.False(t, e.table.all)
	}))
}

// A host that did not answer, of which the kernel does not tell any more, is asked for again and
// found when it is back.
func TestXDPFailedEntryIsAskedForAgain(t *testing.T) {
	l := newLab(t, 1)
	c := newCrowd(t, l, 0, 2, func(int) int { return 0 })
	e := c.Engine.(*Engine)
	c.next()
	entry := hostnet.Entry{Link: l.index(0), Addr: l.hostAddr(0)}
	l.in(l.hosts[0], func() {
		h0, err := netlink.LinkByName("h0")
		require.NoError(t, err)
		require.NoError(t, netlink.AddrDel(h0, &netlink.Addr{IPNet: &net.IPNet{IP: entry.Addr.AsSlice(), Mask: net.CIDRMask(32, 128)}}))
	})
	require.NoError(t, e.do(func() {
		require.NoError(t, e.nl.NeighSet(&netlink.Neigh{LinkIndex: entry.Link, Family: netlink.FAMILY_V6, State: netlink.NUD_FAILED, IP: entry.Addr.AsSlice()}))
		require.True(t, eventually(func() bool {
			s, err := hostnet.Lookup(entry)
			return err == nil && s.State == netlink.NUD_FAILED
		}))
		require.True(t, eventually(func() bool {
			e.takeEvents()
			_, known := e.paths.MAC(entry)
			return !known
		}))
		e.paths.Forget(entry.Link) // as if what the kernel told was lost
		require.NoError(t, e.follow([]ids.Session{1, 2}))
	}))
	require.Equal(t, 2, e.missing())
	l.addAddr(l.hosts[0], "h0", entry.Addr, 32)
	c.arrive()
}
