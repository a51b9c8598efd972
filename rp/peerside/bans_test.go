// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/membership"
)

// A node that breaks the protocol stays out, longer each time; others at its address only
// when there are several.
func TestBans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		breaks := func(id enode.ID) {
			t.Helper()
			p := r.connectAs(id, home)
			expect[*proto.Status](p)
			p.send(&proto.Announce{})
			require.Equal(t, proto.ReasonUnexpected, expect[*proto.Leave](p).Reason)
			<-p.done
		}
		in := func(id enode.ID, addr netip.Addr) bool {
			t.Helper()
			before := r.Stats().BanRefusals
			p := r.connectAs(id, addr)
			expect[*proto.Status](p)
			refused := r.Stats().BanRefusals > before
			if refused {
				require.Equal(t, proto.ReasonDenied, expect[*proto.Leave](p).Reason)
			}
			p.close()
			return !refused
		}
		bad, far := enode.ID{1}, netip.MustParseAddr("2001:db8:9::1")
		breaks(bad)
		require.False(t, in(bad, home))
		require.False(t, in(bad, far), "a node is banned wherever it is")
		require.True(t, in(enode.ID{2}, home), "and others at its address are not")
		require.False(t, r.BannedAddr(home))
		time.Sleep(banFirst)
		breaks(bad)
		time.Sleep(2*banFirst - time.Second)
		require.False(t, in(bad, home))
		time.Sleep(time.Second)
		require.True(t, in(bad, home))

		breaks(enode.ID{3})
		require.False(t, in(enode.ID{2}, home), "the third violation of an address")
		require.True(t, r.BannedAddr(home))
		require.False(t, r.BannedAddr(far))
		require.True(t, in(enode.ID{2}, far))
		require.Equal(t, uint64(4), r.Stats().Bans)
		require.Equal(t, 2, r.Stats().Banned)
		require.Equal(t, uint64(4), r.Stats().BanRefusals)
		time.Sleep(banFirst)
		require.True(t, in(enode.ID{2}, home))
		require.Zero(t, r.Stats().Banned)

		time.Sleep(banMemory + time.Minute)
		r.bans.set(time.Now(), enode.ID{9}, time.Second)
		require.Len(t, r.bans.by, 1, "the rest is forgotten")
		require.False(t, in(enode.ID{9}, home))
		r.bans.set(time.Now(), enode.ID{9}, 0)
		require.True(t, in(enode.ID{9}, home))

		// An operator bans who is there.
		p := r.connectAs(enode.ID{9}, home)
		r.join(p)
		r.BanNode(enode.ID{9}, time.Hour)
		require.Equal(t, proto.ReasonDenied, expect[*proto.Leave](p).Reason)
		<-p.done
		require.False(t, in(enode.ID{9}, far))
		r.BanAddr(far, time.Hour)
		require.False(t, in(enode.ID{8}, far))
		require.True(t, in(enode.ID{8}, home))
		r.Stop()
	})
}

func TestBansAreBounded(t *testing.T) {
	b := newBans()
	now := time.Now()
	node := func(n int) (id enode.ID) {
		binary.BigEndian.PutUint32(id[:], uint32(n))
		return id
	}
	b.set(now.Add(-time.Hour), enode.ID{0xfe}, 2*time.Hour)
	for n := range maxBans + 10 {
		at := now.Add(time.Duration(n))
		b.mu.Lock()
		b.add(at, node(n), home, 1+n%2, "") // each second one is let in
		b.mu.Unlock()
	}
	require.LessOrEqual(t, len(b.by), maxBans)
	require.Nil(t, b.by[node(1)], "the oldest of those that are let in is forgotten first")
	require.Error(t, b.check(now, node(0), home))
	require.Error(t, b.check(now, node(maxBans+8), home))
	for n := range maxBans {
		b.mu.Lock()
		b.add(now.Add(time.Second+time.Duration(n)), node(maxBans+10+n), home, 1, "")
		b.mu.Unlock()
	}
	require.LessOrEqual(t, len(b.by), maxBans)
	require.NoError(t, b.check(now, node(0), home), "and then the oldest of all")
	require.Error(t, b.check(now, enode.ID{0xfe}, home), "but for what the operator banned")
	require.Equal(t, banLongest, func() (d time.Duration) {
		for range 20 {
			d = b.strike(now, enode.ID{0xff}, home, "")
		}
		return d
	}())
}

// A /64 whose nodes break the protocol, each with a new key and a new address, is banned as
// a whole, longer each time. One node that does so again and again leaves those beside it alone.
func TestBansOfAPrefix(t *testing.T) {
	b := newBans()
	now := time.Now()
	n := uint32(0)
	made := func(site byte) (id enode.ID, addr netip.Addr) {
		n++
		ip := home.As16()
		ip[5] = site
		binary.BigEndian.PutUint32(ip[12:], n)
		binary.BigEndian.PutUint32(id[:], n)
		return id, netip.AddrFrom16(ip)
	}
	for range netStrikes - 1 {
		id, addr := made(1)
		b.strike(now, id, addr, "")
	}
	id, beside := made(1)
	require.NoError(t, b.check(now, id, beside))
	b.strike(now, id, beside, "too much")
	_, beside = made(1)
	require.Error(t, b.check(now, enode.ID{0xff}, beside))
	_, other := made(2)
	require.NoError(t, b.check(now, enode.ID{0xff}, other))
	now = now.Add(banFirst)
	require.NoError(t, b.check(now, enode.ID{0xff}, beside))
	id, addr := made(1)
	b.strike(now, id, addr, "")
	require.Error(t, b.check(now.Add(2*banFirst-1), enode.ID{0xff}, beside))

	id, addr = made(3)
	for range 100 {
		b.strike(now, id, addr, "")
	}
	_, beside = made(3)
	require.NoError(t, b.check(now, enode.ID{0xff}, beside))

	for range 4 * netStrikes { // each hour another one
		id, addr = made(4)
		b.strike(now, id, addr, "")
		now = now.Add(time.Hour)
	}
	_, beside = made(4)
	require.NoError(t, b.check(now.Add(-time.Hour), enode.ID{0xff}, beside), "what is seldom adds up to no ban")
}

// A /48 that breaks the protocol in another /64 each time is banned as a whole, but by no one
// /64; and a prefix that is no site's never is.
func TestBansOfASite(t *testing.T) {
	b := newBans()
	now := time.Now()
	n := uint32(0)
	strike := func(prefix string, net uint16) {
		n++
		ip := netip.MustParsePrefix(prefix).Addr().As16()
		if net != 0 {
			binary.BigEndian.PutUint16(ip[6:], net)
		}
		binary.BigEndian.PutUint32(ip[12:], n)
		var id enode.ID
		binary.BigEndian.PutUint32(id[:], n)
		b.strike(now, id, netip.AddrFrom16(ip), "")
	}
	banned := func(addr string) bool { return b.check(now, enode.ID{0xff}, netip.MustParseAddr(addr)) != nil }
	for range 2 * siteStrikes {
		strike("2001:db8:8::/48", 1)
	}
	require.True(t, banned("2001:db8:8:1:f::"))
	for net := range uint16(siteStrikes - 2) {
		strike("2001:db8:8::/48", 2+net)
	}
	require.False(t, banned("2001:db8:8:ffff::1"))
	strike("2001:db8:8::/48", siteStrikes)
	require.True(t, banned("2001:db8:8:ffff::1"))
	require.False(t, banned("2001:db8:7:ffff::1"))

	for range 2 * netStrikes {
		strike("fe80::/64", 0)
	}
	require.False(t, banned("fe80::ffff:0:0:1"))
}

// A site with more keys and addresses than there is room for, in however many /64s, pushes out
// its own, and nobody else's.
func TestBansOfOthersStay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBans()
		b.max = 128
		now := time.Now()
		strike := func(id enode.ID, addr netip.Addr) {
			now = now.Add(time.Millisecond)
			b.strike(now, id, addr, "")
		}
		honest, twice := netip.MustParseAddr("2001:db8:9::1"), netip.MustParseAddr("2001:db8:9::2")
		strike(enode.ID{0xfe}, honest)
		for range addrStrikes - 1 {
			strike(enode.ID{0xfd}, twice)
		}
		nets := rapid.IntRange(1, 200).Draw(t, "nets")
		again := rapid.IntRange(1, 4).Draw(t, "violations of each node")
		for n := range rapid.IntRange(b.max, 4*b.max).Draw(t, "nodes") {
			ip := home.As16()
			binary.BigEndian.PutUint16(ip[6:], uint16(n%nets))
			binary.BigEndian.PutUint32(ip[12:], uint32(n))
			var id enode.ID
			binary.BigEndian.PutUint32(id[:], uint32(n))
			for range again {
				strike(id, netip.AddrFrom16(ip))
			}
			require.LessOrEqual(t, len(b.by), b.max)
		}
		require.Error(t, b.check(now, enode.ID{0xfe}), "a ban stays")
		require.NoError(t, b.check(now, twice))
		strike(enode.ID{0xfc}, twice)
		require.Error(t, b.check(now, twice), "violations are remembered")
	})
}

// Of the sites that have most as many entries fall away as have to.
func TestShareOf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sites := make(map[netip.Prefix][]int)
		total, largest := 0, 0
		for i, n := range rapid.SliceOfN(rapid.IntRange(1, 50), 1, 10).Draw(t, "sites") {
			sites[netip.PrefixFrom(netip.AddrFrom16([16]byte{byte(i)}), 48)] = make([]int, n)
			total, largest = total+n, max(largest, n)
		}
		over := rapid.IntRange(1, total).Draw(t, "over")
		fallen := func(share int) (n int) {
			for _, all := range sites {
				n += max(0, len(all)-share)
			}
			return n
		}
		share := shareOf(sites, over)
		require.GreaterOrEqual(t, fallen(share), over)
		require.Less(t, fallen(share+1), over, "no more than needed")
	})
}

// A violation shortens no ban.
func TestLongerBansStay(t *testing.T) {
	b := newBans()
	now := time.Now()
	id := enode.ID{1}
	b.set(now, id, 24*time.Hour)
	require.Equal(t, 24*time.Hour, b.strike(now, id, home, ""))
	require.Error(t, b.check(now.Add(23*time.Hour), id, home))
	require.NoError(t, b.check(now.Add(24*time.Hour), id, home))
	b.set(now, id, time.Minute) // an operator may shorten it
	require.NoError(t, b.check(now.Add(time.Minute), id, home))
}

// An operator keeps a prefix out, sees what is banned and why, and lets it in again.
func TestOperatorBans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		prefix := netip.MustParsePrefix("2001:db8:9::/48")
		inside, other := netip.MustParseAddr("2001:db8:9:1::1"), netip.MustParseAddr("2001:db8:a::1")
		p := r.connectAs(enode.ID{1}, inside)
		r.join(p)
		r.BanPrefix(netip.PrefixFrom(inside, 48), time.Hour)
		require.Equal(t, proto.ReasonDenied, expect[*proto.Leave](p).Reason)
		<-p.done
		require.True(t, r.BannedAddr(inside))
		require.False(t, r.BannedAddr(other))

		q := r.connectAs(enode.ID{2}, other)
		expect[*proto.Status](q)
		q.send(&proto.Announce{})
		expect[*proto.Leave](q)
		<-q.done
		bans := r.Bans()
		require.Len(t, bans, 2)
		require.Equal(t, enode.ID{2}, bans[0].Node, "the ban that ends first is the first")
		require.NotEmpty(t, bans[0].Why)
		require.False(t, bans[0].Operator)
		require.Equal(t, Ban{Prefix: prefix, Until: bans[1].Until, Operator: true}, bans[1])
		require.Equal(t, time.Hour, time.Until(bans[1].Until))

		r.BanPrefix(prefix, 0)
		require.False(t, r.BannedAddr(inside))
		r.BanPrefix(netip.PrefixFrom(other, 128), time.Minute)
		require.True(t, r.BannedAddr(other))
		r.BanAddr(other, 0)
		require.False(t, r.BannedAddr(other), "a prefix of one address is the address")

		p = r.connectAs(enode.ID{1}, inside)
		r.join(p)
		require.Equal(t, 1, r.EndSession(enode.ID{1}))
		require.Equal(t, proto.ReasonQuit, expect[*proto.Leave](p).Reason)
		<-p.done
		require.Zero(t, r.EndSession(enode.ID{1}))
		p = r.connectAs(enode.ID{1}, inside)
		r.join(p) // it is not banned
		r.Stop()
	})
}
