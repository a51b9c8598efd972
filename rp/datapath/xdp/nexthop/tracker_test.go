// SPDX-License-Identifier: LGPL-3.0-or-later

package nexthop

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/hostnet"
)

// An ND entry that no session goes by is kept for those to come, and changes nothing.
func TestLearn(t *testing.T) {
	p := newTracker(Config{})
	at := Path{Link: 3, Addr: netip.MustParseAddr("2001:db8::2")}
	learn := func(state int, last byte) bool {
		return p.note(at, hostnet.EntryState{State: state, MAC: hostnet.MAC{2, 5: last}})
	}
	require.False(t, learn(netlink.NUD_REACHABLE, 1))
	require.False(t, learn(netlink.NUD_REACHABLE, 2))
	require.False(t, learn(netlink.NUD_FAILED, 2))
	require.False(t, learn(netlink.NUD_REACHABLE, 3))
	require.Equal(t, hostnet.MAC{2, 5: 3}, p.entries[at], "who joins later")

	s := NewEndpoint(1, at.Addr, Path{})
	p.Add(s)
	p.move(s, at)
	require.False(t, learn(netlink.NUD_STALE, 3), "it is known")
	require.True(t, learn(netlink.NUD_REACHABLE, 4))
	require.True(t, learn(netlink.NUD_FAILED, 4))
	require.True(t, learn(netlink.NUD_REACHABLE, 4))

	// The kernel only collects an entry that it does not see in use: it is asked for again.
	require.False(t, p.note(at, hostnet.EntryState{Deleted: true}))
	require.Equal(t, hostnet.MAC{2, 5: 4}, p.entries[at])
	require.Equal(t, []Path{at}, p.unasked)
	p.Remove(s)
	require.False(t, p.note(at, hostnet.EntryState{Deleted: true}))
	require.Empty(t, p.entries)

	// Those of an interface go with it.
	other := Path{Link: 4, Addr: at.Addr}
	for _, entry := range []Path{at, other} {
		p.note(entry, hostnet.EntryState{State: netlink.NUD_PERMANENT, MAC: hostnet.MAC{2, 5: 5}})
	}
	p.Forget(at.Link)
	require.Equal(t, map[Path]hostnet.MAC{other: {2, 5: 5}}, p.entries)
	require.Equal(t, map[Path]bool{other: true}, p.permanent)
}

// A prefix has exactly those addresses looked up that it covers, each once, however often
// and in whatever order sessions came, moved and went.
func TestTrackerProperty(t *testing.T) {
	addr := rapid.Custom(func(t *rapid.T) netip.Addr {
		a := netip.MustParseAddr(fmt.Sprintf("2001:db8:%x:%x::%x", rapid.IntRange(0, 3).Draw(t, "a"), rapid.IntRange(0, 3).Draw(t, "b"),
			rapid.IntRange(1, 3).Draw(t, "host")))
		if rapid.IntRange(0, 9).Draw(t, "zone") == 0 {
			return netip.MustParseAddr("fe80::1%7")
		}
		return a
	})
	rapid.Check(t, func(t *rapid.T) {
		p := newTracker(Config{})
		have := make(map[ids.Session]*Endpoint)
		for range rapid.IntRange(0, 40).Draw(t, "changes") {
			index := ids.Session(rapid.IntRange(1, 9).Draw(t, "session"))
			if old := have[index]; old != nil {
				p.Remove(old)
				delete(have, index)
			}
			if rapid.Bool().Draw(t, "there") {
				have[index] = NewEndpoint(index, addr.Draw(t, "address"), Path{})
				p.Add(have[index])
				p.move(have[index], Path{Link: rapid.IntRange(0, 2).Draw(t, "link")})
			}
		}
		prefix, err := addr.Draw(t, "prefix").WithZone("").Prefix(rapid.SampledFrom([]int{0, 32, 48, 64, 128}).Draw(t, "bits"))
		if err != nil {
			t.Fatal(err)
		}
		p.lookUpCovered(prefix)
		p.lookUpCovered(prefix)
		want := make(map[netip.Addr]bool)
		users := make(map[Path]int)
		for _, s := range have {
			users[s.path]++
			if prefix.Contains(s.Addr.WithZone("")) {
				want[s.Addr] = true
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
func TestTrackerShare(t *testing.T) {
	p, now := newTracker(Config{}), time.Unix(1, 0)
	require.False(t, p.Waiting())
	const part = time.Millisecond
	worked := time.Duration(0)
	for end := now.Add(time.Minute); now.Before(end); {
		if now = now.Add(p.Pause(now)); !now.Before(end) {
			break
		}
		p.Spend(now, now.Add(part))
		now, worked = now.Add(part), worked+part
	}
	require.InDelta(t, float64(backlog+time.Minute/share), float64(worked), float64(10*part))
}
