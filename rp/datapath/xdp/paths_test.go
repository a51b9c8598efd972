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
	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/pindir"
	"github.com/ethmcast/mdcs/rp/hostnet"
)

// sessionAt returns a session with an endpoint at an address.
func sessionAt(index uint32, addr netip.Addr) *session {
	return &session{Session: datapath.Session{Index: index, Addr: netip.AddrPortFrom(addr, 1)}, state: new(sessionState)}
}

// An ND entry that no session goes by is kept for those to come, and changes nothing.
func TestLearn(t *testing.T) {
	p := newPathIndex()
	at := path{Link: 3, Addr: netip.MustParseAddr("2001:db8::2")}
	learn := func(state int, last byte) bool {
		return p.learn(at, hostnet.EntryState{State: state, MAC: mac{2, 5: last}})
	}
	require.False(t, learn(netlink.NUD_REACHABLE, 1))
	require.False(t, learn(netlink.NUD_REACHABLE, 2))
	require.False(t, learn(netlink.NUD_FAILED, 2))
	require.False(t, learn(netlink.NUD_REACHABLE, 3))
	require.Equal(t, mac{2, 5: 3}, p.neighbours[at], "who joins later")

	s := sessionAt(1, at.Addr)
	p.add(s)
	p.move(s, at)
	require.False(t, learn(netlink.NUD_STALE, 3), "it is known")
	require.True(t, learn(netlink.NUD_REACHABLE, 4))
	require.True(t, learn(netlink.NUD_FAILED, 4))
	require.True(t, learn(netlink.NUD_REACHABLE, 4))

	// The kernel only collects an entry that it does not see in use: it is asked for again.
	require.False(t, p.learn(at, hostnet.EntryState{Deleted: true}))
	require.Equal(t, mac{2, 5: 4}, p.neighbours[at])
	require.Equal(t, []hostnet.Entry{at}, p.unasked)
	p.remove(s)
	require.False(t, p.learn(at, hostnet.EntryState{Deleted: true}))
	require.Empty(t, p.neighbours)

	// Those of an interface go with it.
	other := path{Link: 4, Addr: at.Addr}
	for _, entry := range []path{at, other} {
		p.learn(entry, hostnet.EntryState{State: netlink.NUD_PERMANENT, MAC: mac{2, 5: 5}})
	}
	p.forget(at.Link)
	require.Equal(t, map[hostnet.Entry]mac{other: {2, 5: 5}}, p.neighbours)
	require.Equal(t, map[hostnet.Entry]bool{other: true}, p.permanent)
}

// A prefix has exactly those addresses looked up that it covers, each once, however often
// and in whatever order sessions came, moved and went.
func TestPathIndexProperty(t *testing.T) {
	addr := rapid.Custom(func(t *rapid.T) netip.Addr {
		a := netip.MustParseAddr(fmt.Sprintf("2001:db8:%x:%x::%x", rapid.IntRange(0, 3).Draw(t, "a"), rapid.IntRange(0, 3).Draw(t, "b"),
			rapid.IntRange(1, 3).Draw(t, "host")))
		if rapid.IntRange(0, 9).Draw(t, "zone") == 0 {
			return netip.MustParseAddr("fe80::1%7")
		}
		return a
	})
	rapid.Check(t, func(t *rapid.T) {
		p := newPathIndex()
		have := make(map[uint32]*session)
		for range rapid.IntRange(0, 40).Draw(t, "changes") {
			index := uint32(rapid.IntRange(1, 9).Draw(t, "session"))
			if old := have[index]; old != nil {
				p.remove(old)
				delete(have, index)
			}
			if rapid.Bool().Draw(t, "there") {
				have[index] = sessionAt(index, addr.Draw(t, "address"))
				p.add(have[index])
				p.move(have[index], path{Link: rapid.IntRange(0, 2).Draw(t, "link")})
			}
		}
		prefix, err := addr.Draw(t, "prefix").WithZone("").Prefix(rapid.SampledFrom([]int{0, 32, 48, 64, 128}).Draw(t, "bits"))
		if err != nil {
			t.Fatal(err)
		}
		p.covered(prefix)
		p.covered(prefix)
		want := make(map[netip.Addr]bool)
		users := make(map[hostnet.Entry]int)
		for _, s := range have {
			users[s.path]++
			if prefix.Contains(s.Addr.Addr().WithZone("")) {
				want[s.Addr.Addr()] = true
			}
		}
		if len(p.users) != len(users) {
			t.Fatalf("users %v, want %v", p.users, users)
		}
		for entry, n := range users {
			if len(p.users[entry]) != n {
				t.Fatalf("users %v, want %v", p.users, users)
			}
		}
		for len(p.queue) > 0 {
			got, ok := p.next()
			if !ok || !want[got] {
				t.Fatalf("%v is looked up, which %v does not cover", got, prefix)
			}
			delete(want, got)
		}
		if len(want) > 0 {
			t.Fatalf("%v are not looked up", want)
		}
	})
}

// Work for events takes its share of the time, after a backlog that may be done at once.
func TestPathIndexShare(t *testing.T) {
	p, now := newPathIndex(), time.Unix(1, 0)
	_, some := p.waits(now, false)
	require.False(t, some)
	const part = time.Millisecond
	worked := time.Duration(0)
	for end := now.Add(time.Minute); now.Before(end); {
		pause, some := p.waits(now, true)
		require.True(t, some)
		if now = now.Add(pause); !now.Before(end) {
			break
		}
		p.spent(now, now.Add(part))
		now, worked = now.Add(part), worked+part
	}
	require.InDelta(t, float64(backlog+time.Minute/share), float64(worked), float64(10*part))
}

// A device that comes back as another interface, of which the engine hears nothing because
// the kernel lost its events, forwards again, also when it has the index of before.
func TestXDPDeviceDuringOverrun(t *testing.T) {
	for _, same := range []bool{false, true} {
		t.Run(fmt.Sprintf("same index=%v", same), func(t *testing.T) { testDeviceDuringOverrun(t, same) })
	}
}

func testDeviceDuringOverrun(t *testing.T, same bool) {
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
		link, err := e.nl.LinkByName(l.device(0))
		require.NoError(t, err)
		require.NoError(t, e.nl.LinkDel(link))
		if same {
			l.links -= 10
		}
		l.connect(0)
		require.Equal(t, same, l.index(0) == link.Attrs().Index)
		e.watch.Take()
	}))
	for _, s := range c.sessions {
		c.node(s.Addr)
	}
	require.Eventually(t, func() bool {
		var is bool
		require.NoError(t, e.do(func() {
			link, err := e.nl.LinkByName(l.device(0))
			is = err == nil && e.devices[0] != nil && e.devices[0].index == link.Attrs().Index && pindir.Attached(e.devices[0].link, e.devices[0].index) &&
				len(e.paths.queue) == 0 && !e.table.untidy()
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
	s := datapath.Session{Index: 0x7777, Role: datapath.Peer, Addr: netip.AddrPortFrom(addr, 9), Groups: []uint32{1}}
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
// engine looks after the neighbours of its sessions.
func TestXDPKeepsPermanentEntries(t *testing.T) {
	const hosts = 5
	l, e, _ := newMany(t, 2*hosts, hosts)
	for range 3 {
		require.NoError(t, e.do(func() {
			e.askMissing()
			e.keepNeighbours()
			for len(e.paths.unasked) > 0 {
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
	_, e, _ := newMany(t, 2*turn, 2*turn)
	require.NoError(t, e.do(func() {
		e.table.all = true
		for end := time.Now().Add(20 * time.Second); e.table.all && time.Now().Before(end); {
			e.paths.all()
			e.work()
		}
		require.NotEmpty(t, e.paths.queue)
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
			_, known := e.paths.neighbours[entry]
			return !known
		}))
		delete(e.paths.permanent, entry) // as if what the kernel told was lost
		require.NoError(t, e.follow([]uint32{1, 2}))
	}))
	require.Equal(t, 2, e.missing())
	l.addAddr(l.hosts[0], "h0", entry.Addr, 32)
	c.arrive()
}
