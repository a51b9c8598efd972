// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
)

//	1 --- 2 --- 3 --- 4
//
// A publisher at 1 is let in when everybody is on the tree and has the keys, also at the
// members, however far away.
func TestPublisherWaitsForTree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p := n.chain(4)
		for _, o := range p {
			require.Empty(t, o.Stats().Routes, "nobody publishes")
		}
		p[3].installer.takes.Store(int64(500 * time.Millisecond))
		start := time.Now()
		ready, ended := p[0].Admit(true)
		<-ready
		took := time.Since(start)
		require.Less(t, took, admitTimeout)
		require.Greater(t, took, time.Duration(p[3].installer.takes.Load()))
		require.Equal(t, map[byte]int{2: 1, 3: 1, 4: 1}, n.reach(p[0]))
		for _, o := range p[1:] {
			require.True(t, o.has(firstKey(p[0].incarnation)), "rp %d", o.name)
		}
		again, _ := p[0].Admit(true)
		synctest.Wait()
		require.True(t, closed(again), "the tree is there")
		subscriber, _ := p[2].Admit(false)
		synctest.Wait()
		require.True(t, closed(subscriber))
		ended()
	})
}

// What the operator sees.
func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.delay[[2]byte{2, 3}] = 10 * time.Millisecond
		p := n.chain(3)
		p[0].Admit(true)
		n.settle()
		st := p[1].Stats()
		require.Len(t, st.Neighbours, nodes-1)
		up := make(map[linkstate.ID]Neighbour)
		for _, o := range st.Neighbours {
			if o.Up() {
				up[o.RP] = o
				require.NotZero(t, o.Session)
				require.True(t, o.Tree)
			} else {
				require.Equal(t, Disconnected, o.State)
			}
		}
		require.Len(t, up, 2)
		require.Equal(t, 20*time.Millisecond, up[idOf(t, 3)].RTT.Round(time.Millisecond))
		require.InDelta(t, 200, up[idOf(t, 3)].Cost, 10)
		require.Equal(t, p[2].incarnation, up[idOf(t, 3)].Incarnation)
		require.Equal(t, []Route{{
			Ingress: p[0].incarnation, RP: idOf(t, 1), Parent: idOf(t, 1),
			Children: []Child{{RP: idOf(t, 3), Groups: []ids.Group{group}}},
		}}, st.Routes)
		require.Len(t, st.Database, 3)
		for _, a := range st.Database {
			require.Positive(t, a.Age)
			require.Len(t, a.Operator, 1)
			require.Equal(t, a.Origin == idOf(t, 1), a.Publishes)
		}
		require.True(t, st.Settled)
		require.False(t, st.Publishes)
		first := p[0].Stats()
		require.True(t, first.Publishes && first.Planted)

		edges, ok := p[2].Tree(idOf(t, 1))
		require.True(t, ok)
		parents := make(map[linkstate.ID]linkstate.ID)
		for _, e := range edges {
			parents[e.RP] = e.Parent
			require.Equal(t, e.RP == idOf(t, 1), e.Cost == 0)
		}
		require.Equal(t, map[linkstate.ID]linkstate.ID{idOf(t, 1): 0, idOf(t, 2): idOf(t, 1), idOf(t, 3): idOf(t, 2)}, parents)
		_, ok = p[2].Tree(idOf(t, 2))
		require.False(t, ok, "it does not publish")
		n.stop()
		require.Equal(t, Disconnected, p[1].Stats().Neighbours[0].State)
	})
}

//	    2
//	  /   \
//	1       4      2 is nearer than 3
//	  \   /
//	    3
//
// The host of 2 dies: 4 gets everything by 3, and what it missed from its cache.
func TestParentDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.delay[[2]byte{1, 3}], n.delay[[2]byte{3, 4}] = 4*time.Millisecond, 6*time.Millisecond
		var p []*point
		for name := range byte(4) {
			p = append(p, n.start(name+1, incarnationOf(name+1, 0)))
		}
		n.link(p[0], p[1])
		n.link(p[0], p[2])
		n.link(p[1], p[3])
		n.link(p[2], p[3])
		n.settle()
		ready, _ := p[0].Admit(true)
		<-ready
		n.settle()
		require.Equal(t, map[byte]int{2: 1, 3: 1, 4: 1}, n.reach(p[0]))
		require.Equal(t, idOf(t, 2), p[3].Stats().Routes[0].Parent)
		require.Equal(t, idOf(t, 3), p[3].Stats().Routes[0].Backup)

		// 3 has what 4 will miss; 4 misses 3 and what comes after 4.
		for sequence := range uint64(9) {
			p[2].cfg.Cache.Add(time.Now(), data(p[0].incarnation, sequence+1))
		}
		for _, sequence := range []uint64{1, 2, 4} {
			p[3].cfg.Cache.Add(time.Now(), data(p[0].incarnation, sequence))
		}
		p[3].engine.marks = []proto.Mark{{Ingress: p[0].incarnation, Group: group, Sequence: 9}} // by a heartbeat
		p[2].engine.Resends()

		p[1].dead.Store(true)
		healed := within(t, time.Second, func() bool { return maps.Equal(map[byte]int{3: 1, 4: 1}, n.reach(p[0])) })
		require.Less(t, healed, 400*time.Millisecond)
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		var sequences []uint64
		for _, r := range p[2].engine.Resends() {
			for _, b := range r.Datagrams {
				h, _, _ := wire.Parse(b)
				sequences = append(sequences, h.Sequence)
			}
		}
		require.Equal(t, []uint64{3, 4, 5, 6, 7, 8, 9}, sequences)
		n.settle()
		require.Equal(t, idOf(t, 3), p[3].Stats().Routes[0].Parent)
		require.Equal(t, uint64(1), p[3].Stats().Core.Failovers)
		require.Equal(t, uint64(7), p[2].Stats().Served)

		// It comes back to life, and is the parent again, without a gap.
		p[1].dead.Store(false)
		within(t, 10*time.Second, func() bool { return p[3].Stats().Routes[0].Parent == idOf(t, 2) })
		for range 40 {
			reached := n.reach(p[0])
			for _, name := range []byte{3, 4} {
				require.Positive(t, reached[name])
			}
			time.Sleep(100 * time.Millisecond)
		}
		require.Equal(t, map[byte]int{2: 1, 3: 1, 4: 1}, n.reach(p[0]))
	})
}

// data returns a stamped DATA.
func data(ingress ids.Incarnation, sequence uint64) []byte {
	h := wire.Header{
		Type: wire.Data, Group: group, Ingress: ingress, Sequence: sequence, K: 1, N: 1, PayloadLen: 1, ObjectLen: 1,
	}
	return append(h.Append(nil), 1)
}

// A new key is acknowledged when all members of all RPs have it, or when time is over,
// which it is sooner the farther away an RP is.
func TestRekey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p := n.chain(4)
		ready, _ := p[0].Admit(true)
		<-ready
		key := firstKey(p[0].incarnation)
		offer := func() (int, time.Duration) {
			key.Epoch++
			key.Key[1]++
			start := time.Now()
			missing := p[0].Offer([]proto.GroupKey{key}, 5*time.Second)
			return missing, time.Since(start)
		}
		p[3].installer.takes.Store(int64(time.Second))
		missing, took := offer()
		require.Zero(t, missing)
		require.Greater(t, took, time.Second)
		require.Less(t, took, 1200*time.Millisecond)
		for _, o := range p[1:] {
			require.True(t, o.has(key), "rp %d", o.name)
		}
		for _, o := range p {
			require.Zero(t, o.Stats().KeysRefused)
		}

		// The last one gets the key and does not answer in time: 2 and 3 wait for less long.
		p[3].installer.takes.Store(int64(memberTimeout))
		p[2].installer.takes.Store(0)
		require.True(t, p[3].call(func() { p[3].ingresses[p[0].incarnation].installing = true })) // for ever
		missing, took = offer()
		require.Zero(t, missing, "2 gave the answer")
		require.Less(t, took, 5*time.Second)
		require.Greater(t, took, 2*time.Second)

		// The neighbour itself does not answer.
		p[1].dead.Store(true)
		missing, took = offer()
		require.LessOrEqual(t, missing, 1)
		require.LessOrEqual(t, took, 5*time.Second)
	})
}

// An RP that restarts is another ingress RP: the others forget the one before at once,
// or when it stays away.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p := n.chain(2)
		p = append(p, n.start(3, incarnationOf(3, 0)))
		cut := n.link(p[1], p[2])
		n.settle()
		p[2].Admit(true)
		n.settle()
		require.True(t, p[0].has(firstKey(incarnationOf(3, 0))))
		p[0].installer.take()

		p[2].Stop()
		cut()
		p[2] = n.start(3, incarnationOf(3, 1))
		cut = n.link(p[1], p[2])
		p[2].Admit(true)
		n.settle()
		require.False(t, p[0].has(firstKey(incarnationOf(3, 0))))
		require.True(t, p[0].has(firstKey(incarnationOf(3, 1))))
		require.Equal(t, map[byte]int{1: 1, 2: 1}, n.reach(p[2]))
		require.True(t, slices.ContainsFunc(p[0].installer.take(), func(i install) bool { return slices.Contains(i.retired, incarnationOf(3, 0)) }))

		p[2].Stop()
		cut()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.True(t, p[0].has(firstKey(incarnationOf(3, 1))), "it may come back")
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, []install{{nil, []ids.Incarnation{incarnationOf(3, 1)}}}, p[0].installer.take())
		require.Empty(t, p[0].Stats().Routes)
	})
}

// The tree of an RP outlives its last publisher by ten minutes.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p := n.chain(2)
		p[1].join()
		_, ended := p[0].Admit(true)
		n.settle()
		ended()
		ended()
		time.Sleep(idleTimeout - time.Minute)
		synctest.Wait()
		require.Equal(t, map[byte]int{2: 1}, n.reach(p[0]))
		_, ended = p[0].Admit(true) // counts anew
		synctest.Wait()
		ended()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		require.Equal(t, map[byte]int{2: 1}, n.reach(p[0]))
		time.Sleep(idleTimeout)
		synctest.Wait()
		require.Empty(t, n.reach(p[0]))
		require.False(t, p[0].Stats().Publishes)
		require.Empty(t, p[1].Stats().Routes)

		ready, _ := p[0].Admit(true)
		<-ready
		require.Equal(t, map[byte]int{2: 1}, n.reach(p[0]))
		require.True(t, p[1].has(firstKey(p[0].incarnation)))
	})
}

// An RP without members for a minute gets no datagrams, and soon gets them when there is
// a member.
func TestMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p := n.chain(3)
		p[0].Admit(true)
		n.settle()
		require.Equal(t, map[byte]int{2: 1, 3: 1}, n.reach(p[0]))
		time.Sleep(2 * membersLinger)
		synctest.Wait()
		require.Empty(t, n.reach(p[0]))
		p[2].join()
		took := within(t, 5*time.Second, func() bool { return maps.Equal(map[byte]int{2: 1, 3: 1}, n.reach(p[0])) })
		require.Less(t, took, 2*time.Second)
	})
}

//	1 --- 2 --- 3
//	 \         /
//	  --- 4 ---      4 is farther
//
// 2 leaves: the datagrams of 1 come to 3 all the time.
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.delay[[2]byte{1, 4}] = 5 * time.Millisecond
		p := n.chain(3)
		p = append(p, n.start(4, incarnationOf(4, 0)))
		n.link(p[0], p[3])
		n.link(p[3], p[2])
		n.settle()
		ready, _ := p[0].Admit(true)
		<-ready
		n.settle()
		require.Equal(t, idOf(t, 2), p[2].Stats().Routes[0].Parent)
		start := time.Now()
		left := make(chan time.Duration, 1)
		go func() {
			p[1].Leave()
			left <- time.Since(start)
			p[1].Stop()
		}()
		over := within(t, 10*time.Second, func() bool {
			require.Positive(t, n.reach(p[0])[3])
			return !p[1].Connected(p[0].node.ID())
		})
		require.LessOrEqual(t, <-left, leaveTimeout)
		require.Positive(t, over)
		require.Equal(t, idOf(t, 4), p[2].Stats().Routes[0].Parent)
		require.Zero(t, p[2].Stats().Core.Failovers, "it was not lost, it was left")

		start = time.Now()
		p[3].Leave() // nobody else is there for 3
		require.LessOrEqual(t, time.Since(start), leaveTimeout)
		start = time.Now()
		p[2].Leave()
		require.Less(t, time.Since(start), leaveLook, "nobody depends on a leaf")
	})
}

// An RP alone lets everybody in at once.
func TestAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p := n.start(1, incarnationOf(1, 0), func(c *Config) { c.Neighbours = nil })
		ready, _ := p.Admit(false)
		synctest.Wait()
		require.True(t, closed(ready))
		start := time.Now()
		ready, _ = p.Admit(true)
		<-ready
		require.Less(t, time.Since(start), 100*time.Millisecond)
		require.Zero(t, p.Offer([]proto.GroupKey{firstKey(incarnationOf(1, 0))}, time.Second))
		p.Stop()
		ready, ended := p.Admit(true)
		require.True(t, closed(ready))
		ended()
		require.Error(t, p.Start())
	})
}

// Nobody waits for a mesh that is not there for longer than 3 s.
func TestMeshAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p := n.start(1, incarnationOf(1, 0))
		start := time.Now()
		subscriber, _ := p.Admit(false)
		publisher, _ := p.Admit(true)
		<-subscriber
		<-publisher
		require.InDelta(t, admitTimeout.Seconds(), time.Since(start).Seconds(), 0.1)
		p.Stop()
	})
}

// Connections are made to all of a small mesh, and to a dozen RPs of a large one, in
// place of those that do not answer.
func TestChoose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		connects := make(chan []*enode.Node, 10)
		next := func() []*enode.Node {
			synctest.Wait()
			require.Len(t, connects, 1)
			return <-connects
		}
		connect := func(nodes []*enode.Node, _ bool) { connects <- nodes }
		p := n.start(1, incarnationOf(1, 0), func(c *Config) { c.Connect = connect })
		require.Equal(t, p.cfg.Neighbours, next())
		p.Stop()

		var all []*enode.Node
		for name := range byte(linkstate.FullMesh + 20) {
			all = append(all, nodeOf(t, name+2))
		}
		p = n.start(1, incarnationOf(1, 0), func(c *Config) {
			c.Neighbours = all
			c.Connect = connect
			c.Measure = func(_ context.Context, nodes []*enode.Node) map[enode.ID]time.Duration {
				time.Sleep(time.Second)
				rtts := make(map[enode.ID]time.Duration)
				for i, n := range nodes {
					if n.ID() != all[7].ID() { // does not answer
						rtts[n.ID()] = time.Duration(len(nodes)-i) * time.Millisecond
					}
				}
				return rtts
			}
		})
		require.Len(t, next(), linkstate.Far, "any, while it measures")
		time.Sleep(time.Second)
		first := next()
		require.Len(t, first, linkstate.Near+linkstate.Far)
		for _, near := range all[len(all)-linkstate.Near:] {
			require.True(t, slices.ContainsFunc(first, func(n *enode.Node) bool { return n.ID() == near.ID() }))
		}
		time.Sleep(chooseInterval + 2*time.Second)
		second := next()
		require.NotEmpty(t, second)
		for _, n := range second {
			require.NotContains(t, first, n, "it did not connect")
			require.NotEqual(t, all[7], n)
		}
		p.Stop()
	})
}

func TestNewRefuses(t *testing.T) {
	v4 := enode.NewV4(nodeOf(t, 2).Pubkey(), []byte{192, 0, 2, 1}, 30500, 0)
	for name, neighbours := range map[string][]*enode.Node{
		"twice": {nodeOf(t, 2), nodeOf(t, 2)},
		"ipv4":  {v4},
	} {
		_, err := New(Config{Key: keyOf(t, 1), Neighbours: neighbours, Log: slog.New(slog.DiscardHandler)})
		require.Error(t, err, name)
	}
}
