// SPDX-License-Identifier: LGPL-3.0-or-later

package front

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/rp/membership"
)

var start = time.Unix(1_700_000_000, 0)

// at is an address of a /32, a /48 in it and a /64 in that.
func at(net32, net48, net64 int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("2001:%x:%x:%x::1", net32, net48, net64))
}

// open takes a place that must be free, and returns whose place it was.
func open(t *testing.T, table *Table, now time.Time, addr netip.Addr) (place, victim *Place) {
	t.Helper()
	place, victim, reason := table.Open(now, addr)
	require.Equal(t, Taken, reason)
	return place, victim
}

// refused tries to take a place, and returns why there is none.
func refused(t *testing.T, table *Table, now time.Time, addr netip.Addr) Reason {
	t.Helper()
	place, victim, reason := table.Open(now, addr)
	require.Nil(t, place)
	require.Nil(t, victim)
	return reason
}

func TestLimitsOfPrefixes(t *testing.T) {
	table := NewTable(Limits{Per64: 2, Per48: 3})
	first, _ := open(t, table, start, at(1, 1, 1))
	open(t, table, start, at(1, 1, 1))
	require.Equal(t, Full64, refused(t, table, start, at(1, 1, 1)))
	open(t, table, start, at(1, 1, 2))
	// The site is full: the LAN with two makes room for a third one.
	_, victim := open(t, table, start, at(1, 1, 3))
	require.Same(t, first, victim)
	require.Equal(t, Full48, refused(t, table, start, at(1, 1, 2)), "as many as the others have")
	open(t, table, start, at(1, 2, 1))
	table.SetLimits(Limits{Per64: 3, Per48: 4})
	open(t, table, start, at(1, 1, 1))
}

// Whatever one site does, another one gets in at once, and the places are all used.
func TestOneSiteKeepsNobodyOut(t *testing.T) {
	const places = 100
	table := NewTable(Limits{Connections: places})
	var mine []*Place
	for range places {
		p, victim := open(t, table, start, at(1, 1, 1))
		require.Nil(t, victim)
		mine = append(mine, p)
	}
	require.Equal(t, Full, refused(t, table, start, at(1, 1, 1)))
	table.SetSession(start, mine[0], true) // never taken away
	for i := range places/2 - 1 {
		_, victim := open(t, table, start, at(2, i, 1))
		require.Same(t, mine[i+1], victim, "the oldest without a session")
		require.False(t, table.has(victim))
	}
	require.Equal(t, Full, refused(t, table, start, at(2, 1, 1)), "as many as the other one has")
	require.Equal(t, places, table.n)
	_, victim := open(t, table, start, at(3, 1, 1)) // a third one has less than both
	require.NotNil(t, victim)
	require.Equal(t, places, table.n)
}

// Handshakes have places of their own, and those that are done need none.
func TestHandshakesAreBounded(t *testing.T) {
	table := NewTable(Limits{Handshakes: 4})
	var mine []*Place
	for range 4 {
		p, _ := open(t, table, start, at(1, 1, 1))
		mine = append(mine, p)
	}
	require.Equal(t, FullHandshakes, refused(t, table, start, at(1, 1, 1)))
	_, victim := open(t, table, start, at(2, 1, 1))
	require.Same(t, mine[0], victim)
	table.Shaken(mine[1])
	open(t, table, start, at(1, 1, 1))
	require.Equal(t, 5, table.n)
}

// A site that is full takes no further handshake where all are under way, whatever else of it
// could make room.
func TestHandshakesOfAFullSite(t *testing.T) {
	table := NewTable(Limits{Per48: 4, Handshakes: 3})
	for range 4 {
		p, _ := open(t, table, start, at(1, 1, 1))
		table.Shaken(p)
	}
	var shaking []*Place
	for range 3 {
		p, _ := open(t, table, start, at(2, 1, 1))
		shaking = append(shaking, p)
	}
	require.Equal(t, FullHandshakes, refused(t, table, start, at(1, 1, 2)), "no handshake of its site makes room")
	require.Equal(t, 3, table.shaking.root.n)

	table.SetLimits(Limits{Per48: 3, Handshakes: 3})
	_, victim := open(t, table, start, at(2, 1, 2))
	require.Same(t, shaking[0], victim)
	require.Equal(t, 3, table.shaking.root.n)
	require.Equal(t, 7, table.n)
}

func TestRateOfConnections(t *testing.T) {
	table := NewTable(Limits{Rates: membership.Rates{All: 1000, Per48: 20, Per64: 2}})
	flood := func(now time.Time) (taken int) {
		for range 1000 {
			if p, _, reason := table.Open(now, at(1, 1, 1)); reason == Taken {
				taken++
				table.Close(p)
			} else {
				require.Equal(t, TooFast, reason)
			}
		}
		return taken
	}
	require.Equal(t, 10, flood(start))
	require.Zero(t, flood(start))
	require.InDelta(t, 10, flood(start.Add(time.Minute)), 1)
	open(t, table, start, at(1, 1, 2))
}

func TestIdle(t *testing.T) {
	table := NewTable(Limits{Connections: 4, Idle: time.Minute, IdleFull: 10 * time.Second})
	shaking, _ := open(t, table, start, at(1, 1, 1)) // has its own deadline
	idle, _ := open(t, table, start, at(1, 1, 2))
	table.Shaken(idle)
	require.Empty(t, table.Expire(start.Add(time.Minute-1)))
	require.Equal(t, []*Place{idle}, table.Expire(start.Add(time.Minute)))
	require.Empty(t, table.Expire(start.Add(time.Hour)))
	require.Equal(t, 1, table.n)

	// A session ends the time, and its end begins it again.
	p, _ := open(t, table, start, at(1, 1, 3))
	table.Shaken(p)
	table.SetSession(start, p, true)
	require.Empty(t, table.Expire(start.Add(time.Hour)))
	table.SetSession(start.Add(time.Hour), p, false)
	require.Empty(t, table.Expire(start.Add(time.Hour+59*time.Second)))
	// More than half of the places are taken: the time is short.
	open(t, table, start.Add(time.Hour), at(1, 1, 4))
	require.Equal(t, []*Place{p}, table.Expire(start.Add(time.Hour+10*time.Second)))
	table.Close(p) // again, to no effect
	table.SetSession(start, p, false)
	table.Close(shaking)
	require.Equal(t, 1, table.n)
	require.Len(t, table.per64, 1)
}

// check compares what the table counts with its places.
func check(t *testing.T, table *Table, all map[*Place]bool) {
	require.Equal(t, len(all), table.n)
	per48, per64 := make(map[netip.Prefix]int), make(map[netip.Prefix]int)
	idle := 0
	for p, session := range all {
		require.True(t, table.has(p))
		per48[p.prefixes[1]]++
		per64[p.prefixes[2]]++
		require.Equal(t, !session, table.idle.has(p))
		if !session {
			idle++
		}
	}
	require.Equal(t, per48, table.per48)
	require.Equal(t, per64, table.per64)
	require.Equal(t, idle, table.idle.root.n)
	var count func(p *part) int
	count = func(p *part) (n int) {
		for _, sub := range p.within {
			require.Positive(t, sub.n)
			n += count(sub)
		}
		if p.places != nil {
			n = p.places.Len()
		}
		require.Equal(t, p.n, n)
		return n
	}
	count(&table.idle.root)
	count(&table.shaking.root)
}

// In any order, the table counts what there is, keeps its limits, and forgets the rest.
func TestTableInAnyOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	table := NewTable(Limits{Connections: 40, Per48: 20, Per64: 10, Handshakes: 15, Idle: time.Minute, IdleFull: 10 * time.Second})
	all := make(map[*Place]bool) // whether it has a session
	pick := func() *Place {
		for p := range all {
			return p
		}
		return nil
	}
	now := start
	for range 4_000 {
		now = now.Add(time.Duration(rng.IntN(200)) * time.Millisecond)
		switch p := pick(); {
		case rng.IntN(3) > 0 || p == nil:
			place, victim, reason := table.Open(now, at(rng.IntN(3), rng.IntN(2), rng.IntN(3)))
			if reason == Taken {
				all[place] = false
				delete(all, victim)
			}
		case rng.IntN(4) == 0:
			table.Close(p)
			delete(all, p)
		case rng.IntN(2) == 0:
			table.Shaken(p)
			all[p] = !all[p]
			table.SetSession(now, p, all[p])
		default:
			for _, p := range table.Expire(now) {
				require.False(t, all[p])
				delete(all, p)
			}
		}
		check(t, table, all)
		require.LessOrEqual(t, table.n, 40)
		require.LessOrEqual(t, table.shaking.root.n, 15)
	}
	for p := range all {
		table.Close(p)
	}
	check(t, table, nil)
	require.Empty(t, table.idle.root.within)
	require.Empty(t, table.shaking.root.within)
}

func TestReasonsHaveNames(t *testing.T) {
	names := make(map[string]bool)
	for _, r := range Reasons() {
		names[r.String()] = true
	}
	require.Len(t, names, int(reasons)-1)
}

// A full table that a thousand prefixes fight for.
func BenchmarkOpen(b *testing.B) {
	table := NewTable(Limits{Connections: 11_314})
	for i := range 11_314 {
		table.Open(start, at(i%500, i%7, i))
	}
	i := 0
	for b.Loop() {
		i++
		table.Open(start, at(1000+i%500, 1, i%60_000))
	}
}
