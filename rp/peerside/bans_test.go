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
		time.Sleep(banFirst)
		breaks(bad)
		time.Sleep(2*banFirst - time.Second)
		require.False(t, in(bad, home))
		time.Sleep(time.Second)
		require.True(t, in(bad, home))

		breaks(enode.ID{3})
		require.False(t, in(enode.ID{2}, home), "the third violation of an address")
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
	for n := range uint32(maxBans + 10) {
		var id enode.ID
		binary.BigEndian.PutUint32(id[:], n)
		b.set(now.Add(time.Duration(n)), id, time.Hour)
	}
	require.LessOrEqual(t, len(b.by), maxBans)
	require.NoError(t, b.check(now, enode.ID{}, home), "the oldest are forgotten")
	var last enode.ID
	binary.BigEndian.PutUint32(last[:], maxBans+9)
	require.Error(t, b.check(now, last, home))
	require.Equal(t, banLongest, func() (d time.Duration) {
		for range 20 {
			d = b.strike(now, enode.ID{0xff}, home)
		}
		return d
	}())
}
