// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"crypto/rand"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/cache"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/datapathtest"
	"github.com/ethmcast/mdcs/rp/membership"
)

// newTestResender returns a resender whose cache has n datagrams of ingress RP 1.
func newTestResender(t *testing.T, n uint64, limits membership.Limits) (*resender, *datapathtest.Recorder) {
	engine := new(datapathtest.Recorder)
	quit := make(chan struct{})
	r := newResender(&Config{
		Engine:  engine,
		Cache:   cache.New(cache.DefaultBytes, cache.DefaultAge),
		Members: membership.New(limits, rand.Reader),
		Log:     slog.New(slog.DiscardHandler),
	}, quit)
	for sequence := range n {
		r.cfg.Cache.Add(time.Now(), data(1, sequence+1))
	}
	done := make(chan struct{})
	t.Cleanup(func() { close(quit); <-done })
	go func() { defer close(done); r.run() }()
	return r, engine
}

var (
	all  = []proto.Mark{{Ingress: 1, Group: group}}
	peer = netip.MustParseAddr("2001:db8::1")
)

// waits returns that a session, a child or a peer, misses all of the cache.
func waits(session ids.Session) serve {
	return serve{session: session, peer: peer, marks: all, by: time.Now()}
}

// Who waits: two peers, then a child. The child is served before the second batch of the
// first peer.
func TestChildrenAreServedBeforePeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, engine := newTestResender(t, 3*serveBatch, membership.Limits{})
		var order []ids.Session
		engine.OnResend = func(session ids.Session, _ [][]byte) error { order = append(order, session); return nil }
		r.peers <- waits(1)
		r.peers <- waits(2)
		synctest.Wait()
		r.children.add(waits(9))
		time.Sleep(time.Second)
		require.Equal(t, []ids.Session{1, 9, 9, 9, 1, 1, 2, 2, 2}, order)
		require.Equal(t, uint64(len(order)*serveBatch), r.served.Load())
		require.Zero(t, r.leftOut.Load())
	})
}

// A child that misses much, on many routes, has its turn as each other child.
func TestChildrenInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, engine := newTestResender(t, 3*serveBatch, membership.Limits{})
		var order []ids.Session
		engine.OnResend = func(session ids.Session, _ [][]byte) error {
			order = append(order, session)
			if session == 7 {
				return datapath.ErrOverRate // it keeps nobody else waiting
			}
			return nil
		}
		for range childrenWaiting {
			require.True(t, r.children.add(waits(9)))
		}
		require.False(t, r.children.add(waits(9)), "of one child there is room for so many")
		synctest.Wait() // the first batch is sent
		require.True(t, r.children.add(waits(7)))
		require.True(t, r.children.add(waits(8)))
		time.Sleep(100 * time.Millisecond)
		require.Equal(t, []ids.Session{9, 9, 7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 9, 7}, order[:14])
		time.Sleep(time.Minute)
		require.Equal(t, uint64(1), r.leftOut.Load(), "the route of 7")
		require.Nil(t, r.children.next())
	})
}

// What is sent again waits while new datagrams need all that copies may take, for a while.
func TestRepairsWaitForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, engine := newTestResender(t, 2*serveBatch, membership.Limits{})
		began, free := time.Now(), 300*time.Millisecond
		engine.OnResend = func(session ids.Session, _ [][]byte) error {
			if session != 9 && time.Since(began) < free {
				return datapath.ErrOverRate
			}
			return nil
		}
		r.peers <- waits(1)
		time.Sleep(100 * time.Millisecond)
		require.Empty(t, engine.Resends())
		r.children.add(waits(9)) // need not wait behind the peer
		time.Sleep(100 * time.Millisecond)
		require.Len(t, engine.Resends(), 2)
		time.Sleep(200 * time.Millisecond)
		require.Len(t, engine.Resends(), 2)

		free = time.Hour // too long
		r.peers <- waits(1)
		time.Sleep(servePatience + 100*time.Millisecond)
		require.Equal(t, uint64(1), r.leftOut.Load())
		free = 0
		r.peers <- waits(2)
		time.Sleep(100 * time.Millisecond)
		require.Equal(t, []ids.Session{2, 2}, slices.Collect(func(yield func(ids.Session) bool) {
			for _, s := range engine.Resends() {
				yield(s.Session)
			}
		}))
	})
}

// Peers of one /64 get their share of repairs, whatever sessions and nodes they are, and
// leave others what these need.
func TestRepairsOfAPrefixAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, engine := newTestResender(t, 1000, membership.Limits{Replays: 100_000})
		for session := range ids.Session(1000) {
			r.peers <- waits(session)
		}
		time.Sleep(5 * time.Second)
		sent := 0
		for _, s := range engine.Resends() {
			sent += size(s.Datagrams)
		}
		require.InDelta(t, 100_000*10*2/3, sent, 100_000, "two thirds of what all may have in 10 s")
		require.Positive(t, r.leftOut.Load())
		r.peers <- serve{session: 2000, peer: netip.MustParseAddr("2001:db9::1"), marks: all, by: time.Now()}
		time.Sleep(time.Second)
		again := engine.Resends()
		require.NotEmpty(t, again)
		require.Equal(t, ids.Session(2000), again[len(again)-1].Session)
	})
}

// A queue that is full costs the newest peer its repair, and nobody waits.
func TestReplayDoesNotWait(t *testing.T) {
	cfg := &Config{Cache: cache.New(cache.DefaultBytes, cache.DefaultAge)}
	r := newResender(cfg, nil) // it does not run
	s := &Server{cfg: *cfg, resender: r}
	for range peersWaiting + 3 {
		s.Replay(1, peer, all)
	}
	require.Equal(t, uint64(3), r.leftOut.Load())
}

// When an RP dies its members turn to this one, all at once. Each is sent what it missed, of
// all streams, before the cache forgets it, and nothing that it was sent live.
func TestReplayOfManyPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, engine := newTestResender(t, 0, membership.Limits{})
		s := &Server{cfg: *r.cfg, resender: r}
		const peers, streams = 5000, 10
		var marks []proto.Mark
		for ingress := range ids.Incarnation(streams) {
			r.cfg.Cache.Add(time.Now(), data(1+ingress, 7))
			r.cfg.Cache.Add(time.Now(), data(1+ingress, 8))
			marks = append(marks, proto.Mark{Ingress: 1 + ingress, Group: group, Sequence: 7})
		}
		for session := range ids.Session(peers) {
			s.Replay(session, peer, marks)
		}
		time.Sleep(2 * cacheDelay)
		for ingress := range ids.Incarnation(streams) {
			r.cfg.Cache.Add(time.Now(), data(1+ingress, 9))
		}
		time.Sleep(cache.DefaultAge)
		got := make(map[ids.Session]map[ids.Incarnation]int)
		for _, x := range engine.Resends() {
			for _, b := range x.Datagrams {
				h, _, _ := wire.Parse(b)
				require.Equal(t, uint64(8), h.Sequence)
				if got[x.Session] == nil {
					got[x.Session] = make(map[ids.Incarnation]int)
				}
				got[x.Session][h.Ingress]++
			}
		}
		require.Len(t, got, peers)
		for session, of := range got {
			require.Len(t, of, streams, session)
		}
		require.Equal(t, uint64(peers*streams), r.served.Load())
		require.Zero(t, r.expired.Load())
		require.Zero(t, r.leftOut.Load())
	})
}

// What the cache forgot while a peer waited is counted.
func TestReplayExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, engine := newTestResender(t, 100, membership.Limits{})
		s := &Server{cfg: *r.cfg, resender: r}
		engine.OnResend = func(session ids.Session, _ [][]byte) error {
			if session == 1 {
				time.Sleep(cache.DefaultAge)
			}
			return nil
		}
		s.Replay(1, peer, all)
		s.Replay(2, peer, all)
		time.Sleep(3 * cache.DefaultAge)
		require.Equal(t, uint64(100), r.served.Load())
		require.Equal(t, uint64(100), r.expired.Load())
	})
}
