// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"cmp"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
)

func TestMeshAgrees(t *testing.T) {
	w := square(t)
	for n := range 4 {
		require.Equal(t, w.cores[1].Sums(1), w.cores[n+1].Sums(1))
		require.Len(t, w.cores[n+1].entries, 4)
	}
	require.Equal(t, Route{Ingress: ingress1, Children: []Child{{ID: min(rp(2), rp(3))}, {ID: max(rp(2), rp(3))}}}, w.route(1, ingress1))
	require.Equal(t, Route{Ingress: ingress1, Parent: rp(2), Backup: rp(3)}, w.route(4, ingress1))
	require.Equal(t, []Child{{ID: rp(4)}}, w.route(2, ingress1).Children)
	require.Empty(t, w.route(3, ingress1).Children)

	// 20 ms of round trip at both ends, in units of 0.1 ms.
	for _, l := range w.cores[1].entries[rp(2)].Advert.Links {
		require.InDelta(t, map[ID]float64{rp(1): 200, rp(4): 200}[l.Neighbour], l.Cost, 100)
	}
	w.run(10 * time.Second)
	for n := range 4 {
		require.Empty(t, took[Route](w, n+1), "nothing changes when all is quiet")
		for _, s := range took[Send](w, n+1) {
			require.IsType(t, &RouteSum{}, s.Message)
		}
		require.Zero(t, w.cores[n+1].Stats().Repairs)
	}
}

// An RP that starts knows that it lacks the adverts of others, until it has them all.
func TestLearning(t *testing.T) {
	w := square(t)
	require.False(t, w.cores[2].Learning())
	w.start(5)
	w.link(5, 4, 100*time.Millisecond)
	for !w.cores[5].alive(rp(4)) {
		w.run(step)
	}
	require.Len(t, w.cores[5].entries, 1)
	require.True(t, w.cores[5].Learning())
	for begin := w.now; w.cores[5].Learning(); w.run(step) {
		require.Less(t, w.now.Sub(begin), 5*time.Second)
	}
	require.Len(t, w.cores[5].entries, 5)
}

func TestChanged(t *testing.T) {
	w := square(t)
	begun := w.now
	w.run(10 * time.Second)
	for n := range 4 {
		require.Less(t, w.cores[n+1].Stats().Changed, begun)
	}
	w.unlink(2, 4) // 4 gets its datagrams by 3 then
	w.run(time.Second)
	require.Less(t, w.cores[1].Stats().Changed, begun)
	w.start(5)
	w.link(5, 4, step)
	begun = w.now
	w.run(5 * time.Second)
	for n := range 5 {
		require.Greater(t, w.cores[n+1].Stats().Changed, begun)
	}
}

// Groups without members below a child do not go there; the first and the last
// member are known at once.
func TestPruning(t *testing.T) {
	w := square(t)
	require.Equal(t, []Child{{ID: rp(4)}}, w.route(2, ingress1).Children)
	w.cores[4].SetMembers(w.now, []Members{{groupB, 3}, {groupA, 0}})
	w.run(1500 * time.Millisecond)
	require.Equal(t, []Child{{ID: rp(4), Groups: []ids.Group{groupB}}}, w.route(2, ingress1).Children)
	for _, c := range w.route(1, ingress1).Children {
		require.Equal(t, c.ID == rp(2), len(c.Groups) == 1)
	}
	w.cores[4].SetMembers(w.now, nil)
	w.run(1500 * time.Millisecond)
	require.Equal(t, []Child{{ID: rp(4)}}, w.route(2, ingress1).Children)
}

// Counts are advertised when they changed by an eighth, 5 s after the advert before.
func TestCounts(t *testing.T) {
	w := square(t)
	c := w.cores[4]
	advertised := func() uint32 { return w.cores[1].entries[rp(4)].Advert.Groups[0].Count }
	c.SetMembers(w.now, []Members{{groupA, 100}})
	w.run(time.Second)
	require.Equal(t, uint32(100), advertised())
	c.SetMembers(w.now, []Members{{groupA, 200}})
	w.run(3 * time.Second)
	require.Equal(t, uint32(100), advertised(), "not yet")
	w.run(2 * time.Second)
	require.Equal(t, uint32(200), advertised())
	c.SetMembers(w.now, []Members{{groupA, 210}})
	w.run(10 * time.Second)
	require.Equal(t, uint32(200), advertised(), "too little")
}

// The death of a parent: after two hellos that did not come the backup is asked,
// after three it is the parent.
func TestFailover(t *testing.T) {
	w := square(t)
	w.hear(4, 2)
	w.kill(2)
	w.run(215 * time.Millisecond)
	require.Empty(t, sent[*Graft](w, 4, 3))
	w.run(70 * time.Millisecond)
	graft := sent[*Graft](w, 4, 3)
	require.Len(t, graft, 1)
	require.Equal(t, []GraftRoute{{ingress1, []Mark{{groupA, uint64(ingress1)}}}}, graft[0].Routes)
	require.Equal(t, Route{Ingress: ingress1, Parent: rp(2), Backup: rp(3), Previous: []ID{rp(3)}}, w.route(4, ingress1),
		"both are accepted from")
	require.Equal(t, []ID{rp(4)}, []ID{w.route(3, ingress1).Children[0].ID})
	require.Equal(t, []Serve{{rp(4), ingress1, []Mark{{groupA, uint64(ingress1)}}}}, took[Serve](w, 3))

	require.Empty(t, took[NeighbourDown](w, 4))
	w.run(40 * time.Millisecond)
	require.Equal(t, rp(3), w.route(4, ingress1).Parent)
	require.Contains(t, took[NeighbourDown](w, 4), NeighbourDown{rp(2)})
	w.run(5 * time.Second)
	require.Equal(t, Route{Ingress: ingress1, Parent: rp(3)}, w.route(4, ingress1))
	require.Empty(t, w.cores[1].entries[rp(4)].Advert.Links[1:], "the link to 2 is withdrawn")

	// It comes back as another incarnation, and takes its place, make before break.
	w.forget()
	w.start(2)
	w.run(10 * time.Second)
	require.Equal(t, rp(2), w.route(4, ingress1).Parent)
	require.Len(t, sent[*Graft](w, 4, 2), 1)
	require.Len(t, sent[*Prune](w, 4, 3), 1)
	require.Empty(t, w.route(3, ingress1).Children)
	var previous bool
	for _, r := range took[Route](w, 4) {
		previous = previous || r.Parent == rp(2) && len(r.Previous) == 1 && r.Previous[0] == rp(3)
	}
	require.True(t, previous, "the old parent was accepted besides")
}

// A parent that was only late stays, and the backup is pruned.
func TestFalseAlarm(t *testing.T) {
	w := square(t)
	w.hear(4, 2)
	w.cut[pair(2, 4)] = true
	w.run(250 * time.Millisecond)
	w.cut[pair(2, 4)] = false
	w.run(5 * time.Second)
	require.Empty(t, took[NeighbourDown](w, 4))
	require.Len(t, sent[*Graft](w, 4, 3), 1)
	require.Len(t, sent[*Prune](w, 4, 3), 1)
	require.Equal(t, Route{Ingress: ingress1, Parent: rp(2), Backup: rp(3)}, w.route(4, ingress1))
	require.Empty(t, w.route(3, ingress1).Children)
}

// A link is silent for a second while a restarted mesh finds its trees: a Prune is
// lost on it, and the same parent is asked again soon after.
func TestPruneIsLost(t *testing.T) {
	w := newNetwork(t)
	for n := range 5 {
		w.start(n + 1)
		w.cores[n+1].SetPublishes(w.now, n < 2)
		for m := range n {
			w.link(m+1, n+1, step)
		}
	}
	w.delay[pair(2, 3)] = 3 * step
	w.run(280 * time.Millisecond)
	w.kill(3)
	w.run(30 * time.Millisecond)
	w.cut[pair(1, 2)] = true
	w.run(1095 * time.Millisecond)
	w.cut[pair(1, 2)] = false
	w.run(8 * time.Second)
	requireAgreement(t, w)
}

// What a parent does besides what it is asked for is found by the next RouteSum.
func TestRepair(t *testing.T) {
	w := square(t)
	w.run(2 * time.Second)
	w.forget()
	two, three := w.cores[2], w.cores[3]
	two.dismiss(two.neighbour(rp(4)), two.routes[ingress1])
	two.touch(two.routes[ingress1])
	three.routes[ingress1].children[rp(4)] = new(child)
	three.touch(three.routes[ingress1])
	w.perform(2)
	w.perform(3)
	require.Empty(t, w.route(2, ingress1).Children)
	w.run(RouteSumDelay*5/4 + Interval) // 4 learns of the edge to 3 by a hello
	require.Equal(t, []Child{{ID: rp(4)}}, w.route(2, ingress1).Children)
	require.Empty(t, w.route(3, ingress1).Children)
	require.Equal(t, uint64(2), w.cores[4].Stats().Repairs)
	require.Len(t, sent[*Graft](w, 4, 2), 1)
	require.Equal(t, []*Prune{{[]ids.Incarnation{ingress1}}}, sent[*Prune](w, 4, 3))
	require.Len(t, took[Serve](w, 2), 1, "the cache has what was missed")

	w.run(RouteSumDelay * 2)
	require.Equal(t, uint64(2), w.cores[4].Stats().Repairs)
	requireAgreement(t, w)
}

// A new parent that does not acknowledge is left for one that still sends.
func TestGraftWithoutAnswer(t *testing.T) {
	w := square(t)
	c := w.cores[4]
	c.now = w.now
	r := c.routes[ingress1]
	c.setParent(r, rp(3)) // as if the tree wanted it
	r.wanted = rp(3)
	c.Actions() // lost
	require.Equal(t, rp(3), r.parent)
	require.Equal(t, rp(2), r.old[0].id)
	w.run(2 * time.Second)
	require.Equal(t, uint64(1), c.Stats().Timeouts)
	require.Equal(t, Route{Ingress: ingress1, Parent: rp(2), Backup: rp(3)}, w.route(4, ingress1))
}

// A parent that the tree wants, and that never acknowledges, is asked about once per second,
// however often trees are computed.
func TestGraftWithoutAnswerAgain(t *testing.T) {
	w := square(t)
	c := w.cores[4]
	r := c.routes[ingress1]
	w.unlink(2, 4)
	w.run(100 * time.Millisecond)
	require.Equal(t, rp(3), r.parent)
	w.forget()
	for range 500 {
		c.changed(rp(1))
		w.run(10 * time.Millisecond)
		r.acked, r.graft = false, 0 // as if no GraftAck came
	}
	require.Less(t, len(sent[*Graft](w, 4, 3)), 7)
	require.Greater(t, len(sent[*Graft](w, 4, 3)), 2)
}

// Of many upstreams the one that sends stays, until another one does.
func TestUpstreamThatSendsStays(t *testing.T) {
	c := square(t).cores[4]
	r := c.routes[ingress1]
	require.Equal(t, rp(2), r.parent)
	for _, id := range []ID{11, 12, 13} {
		c.neighbours = append(c.neighbours, &neighbour{id: id, up: true})
		slices.SortFunc(c.neighbours, func(a, b *neighbour) int { return cmp.Compare(a.id, b.id) })
		c.setParent(r, id)
	}
	require.Equal(t, ID(13), r.parent)
	require.Equal(t, []ID{rp(2), 12}, []ID{r.old[0].id, r.old[1].id})
}

// An RP that leaves goes on until its children have other parents.
func TestLeave(t *testing.T) {
	w := square(t)
	w.cores[2].Leave(w.now)
	w.run(1500 * time.Millisecond)
	require.Equal(t, rp(3), w.route(4, ingress1).Parent)
	require.Equal(t, []ID{rp(2)}, w.route(4, ingress1).Previous)
	require.Equal(t, rp(4), w.route(2, ingress1).Children[0].ID)
	w.run(3 * time.Second)
	require.Empty(t, w.route(2, ingress1).Children, "now it may end")
	require.Empty(t, took[NeighbourDown](w, 4))
}

// RPs that lose a neighbour tell others, who ask it for a sign of life at once.
func TestSuspicion(t *testing.T) {
	w := newNetwork(t)
	for n := range 4 {
		w.start(n + 1)
	}
	w.cores[1].SetPublishes(w.now, true)
	w.link(1, 2, 10*time.Millisecond)
	w.link(1, 3, 20*time.Millisecond)
	w.link(2, 3, 10*time.Millisecond)
	w.link(2, 4, 10*time.Millisecond) // 3 and 4 have a link that no tree uses
	w.link(3, 4, 80*time.Millisecond)
	w.run(8 * time.Second)
	require.False(t, w.cores[4].OnTree(rp(3)))
	w.forget()
	w.kill(3)
	w.run(1200 * time.Millisecond)
	require.Equal(t, []NeighbourDown{{rp(3)}}, took[NeighbourDown](w, 4), "sooner than three hellos of a second")
}

// What came before a neighbour was asked for a sign of life, and is handled after, is no
// answer.
func TestOldSignOfLife(t *testing.T) {
	w := square(t)
	c := w.cores[4]
	w.run(150 * time.Millisecond)
	n := c.neighbour(rp(3))
	c.now = w.now
	n.heard = w.now.Add(-2 * TreeInterval)
	c.suspect(rp(3))
	require.Equal(t, w.now, n.polled)
	h := Hello{Stamp: 1, Interval: 1000, Up: true}
	c.HeardHello(w.now.Add(-step), rp(3), h)
	require.False(t, n.polled.IsZero())
	c.HeardHello(w.now, rp(3), h)
	require.True(t, n.polled.IsZero())
}

func TestMayPublish(t *testing.T) {
	w := newNetwork(t)
	w.start(1)
	w.start(2)
	w.run(time.Second)
	require.Empty(t, took[MayPublish](w, 1))
	w.link(1, 2, 300*time.Millisecond)
	w.run(1500 * time.Millisecond)
	require.Empty(t, took[MayPublish](w, 1), "the neighbour's acknowledgement is on the way")
	w.run(10 * time.Second)
	require.Len(t, took[MayPublish](w, 1), 1)

	// The acknowledgement counts, not the time.
	w = newNetwork(t)
	w.start(1)
	w.start(2)
	w.link(1, 2, 10*time.Millisecond)
	w.run(2 * time.Second)
	require.Len(t, took[MayPublish](w, 1), 1)
	require.NotEmpty(t, sent[*Acked](w, 2, 1))

	// Alone there is nobody to wait for.
	w = newNetwork(t)
	w.start(1)
	w.run(AckDelay - time.Second)
	require.Empty(t, took[MayPublish](w, 1))
	w.run(2 * time.Second)
	require.Len(t, took[MayPublish](w, 1), 1)
}

// Two halves that changed without each other agree after they met, and each knows
// what the other half had never told it.
func TestMerge(t *testing.T) {
	w := square(t)
	w.unlink(2, 4)
	w.unlink(1, 3)
	w.run(3 * time.Second)
	w.cores[2].SetMembers(w.now, []Members{{groupA, 1}})
	w.cores[3].SetMembers(w.now, []Members{{groupB, 1}})
	w.run(2 * time.Second)
	require.NotEqual(t, w.cores[1].Sums(1), w.cores[3].Sums(1))
	w.link(2, 4, 10*time.Millisecond)
	w.run(8 * time.Second)
	for n := range 4 {
		require.Equal(t, w.cores[1].Sums(1), w.cores[n+1].Sums(1))
	}
	require.Equal(t, rp(4), w.route(3, ingress1).Parent)
}

// What cannot be reached is forgotten after a time.
func TestForgets(t *testing.T) {
	w := square(t)
	w.kill(4)
	w.run(MaxAge - 5*time.Second)
	require.Len(t, w.cores[1].entries, 4)
	w.run(20 * time.Second)
	require.Len(t, w.cores[1].entries, 3)
	require.Equal(t, -1, w.cores[1].graph.Slot(rp(4)))

	w.kill(1)
	w.run(5 * time.Second)
	require.NotEmpty(t, w.cores[2].routes)
	w.run(goneDelay)
	require.Empty(t, w.cores[2].routes)
	require.Equal(t, []RouteGone{{ingress1}}, took[RouteGone](w, 2))
}

// A restart with a clock that went backwards: the old advert comes back from the
// neighbours, and the RP outbids it.
func TestOwnOldAdvert(t *testing.T) {
	w := square(t)
	w.kill(4)
	w.run(time.Second)
	w.lives[4] = -100
	w.start(4)
	w.run(8 * time.Second)
	require.Greater(t, w.cores[4].epoch, uint64(1001))
	require.Equal(t, w.cores[4].cfg.Incarnation, w.cores[1].entries[rp(4)].Advert.Incarnation)
	require.Equal(t, w.cores[1].Sums(1), w.cores[4].Sums(1))
}

// An RP that joins a mesh which was quiet for long keeps the old adverts until it has
// paths.
func TestJoinsQuietMesh(t *testing.T) {
	w := square(t)
	w.run(MaxAge + 10*time.Second)
	w.start(5)
	w.link(4, 5, 10*time.Millisecond)
	w.run(5 * time.Second)
	require.Equal(t, w.cores[1].Sums(1), w.cores[5].Sums(1))
	require.Equal(t, rp(4), w.route(5, ingress1).Parent)
}

// The digest waits until both ends are up: from then on the other end tells what is
// new.
func TestDigestWhenBothAreUp(t *testing.T) {
	c := New(t0, config(1, 1))
	c.LinkUp(t0, rp(2))
	digests := func(at time.Time, up bool) (n int) {
		c.HeardHello(at, rp(2), Hello{Stamp: 1, Echo: c.micros(at) - 10_000, Echoes: true, Interval: 100, Up: up})
		c.Tick(at)
		for _, a := range c.Actions() {
			if send, ok := a.(Send); ok && send.Message.Code() == DigestMsg {
				n++
			}
		}
		return n
	}
	at := t0
	for range 10 {
		at = at.Add(TreeInterval)
		require.Zero(t, digests(at, false))
	}
	require.True(t, c.alive(rp(2)))
	require.Equal(t, 1, digests(at.Add(TreeInterval), true))
	require.Zero(t, digests(at.Add(2*TreeInterval), true))
}

// Each neighbour gets a digest every 60 to 75 s.
func TestDigests(t *testing.T) {
	w := square(t)
	w.run(2 * DigestDelay)
	w.forget()
	const digests = 20
	w.run(digests * DigestDelay * 9 / 8)
	require.InDelta(t, digests, len(sent[*Digest](w, 1, 2)), digests/10)
	require.InDelta(t, digests, len(sent[*Digest](w, 2, 1)), digests/10)
}

// A route whose time is over when its last neighbour is found dead ends once.
func TestRouteEndsOnce(t *testing.T) {
	w := square(t)
	c := w.cores[4]
	w.forget()
	r := c.routes[ingress1]
	c.now = w.now
	c.unfollow(rp(1), ingress1)
	r.gone = c.tickAt
	c.down(c.neighbour(rp(2)))
	c.Tick(c.tickAt)
	var told []Action
	for _, a := range c.Actions() {
		switch a.(type) {
		case Route, RouteGone:
			told = append(told, a)
		}
	}
	require.Equal(t, []Action{RouteGone{ingress1}}, told)
}

// The process of 2 dies, and its datapath goes on: nobody turns to another way, neither
// while it is away nor when it is back. Then it knows what it has to.
func TestAway(t *testing.T) {
	w := square(t)
	before := make(map[int]Route)
	for n := 1; n <= 4; n++ {
		before[n] = w.route(n, ingress1)
	}
	w.forget()
	w.detach(2)
	for range 20 { // its datapath brings datagrams
		w.run(awayDoubt / 2)
		w.cores[4].Heard(w.now, rp(2))
	}
	require.False(t, slices.ContainsFunc(w.cores[4].Neighbours(), func(n Neighbour) bool { return n.ID == rp(2) && n.Up }))
	w.resume(2)
	w.run(2 * time.Second)
	require.Equal(t, before[2], w.route(2, ingress1))
	require.Equal(t, uint64(1), w.cores[2].Stats().Published, "with all links at once")
	require.Len(t, sent[*Graft](w, 4, 2), 1)
	w.run(20 * time.Second)
	for n := 1; n <= 4; n++ {
		require.Equal(t, before[n], w.route(n, ingress1))
		if n != 2 {
			require.Empty(t, took[Route](w, n), "rp %d", n)
		}
		require.Empty(t, took[NeighbourDown](w, n))
		for m := 1; m <= 4; m++ {
			require.Empty(t, sent[*Prune](w, n, m))
		}
		require.Equal(t, w.cores[1].Sums(1), w.cores[n].Sums(1))
	}
}

// The process of 2 dies, and its datapath with it, whatever it said: nothing comes from there.
// A second later 4 has the datagrams from its backup, until 2 is back or given up.
func TestAwayAndSilent(t *testing.T) {
	w := square(t)
	w.detach(2)
	w.run(awayDoubt - step)
	require.Empty(t, sent[*Graft](w, 4, 3))
	w.run(awayDoubt / 2)
	require.Len(t, sent[*Graft](w, 4, 3), 1)
	require.Equal(t, Route{Ingress: ingress1, Parent: rp(2), Backup: rp(3), Previous: []ID{rp(3)}}, w.route(4, ingress1))
	require.Len(t, w.route(3, ingress1).Children, 1)
	w.run(10 * time.Second)
	require.Len(t, w.route(3, ingress1).Children, 1, "as long as 2 is away")
	w.resume(2)
	w.run(Overlap + time.Second)
	require.Equal(t, Route{Ingress: ingress1, Parent: rp(2), Backup: rp(3)}, w.route(4, ingress1))
	require.Empty(t, w.route(3, ingress1).Children)
	require.Len(t, sent[*Prune](w, 4, 3), 1)

	w.run(time.Minute)
	w.detach(2)
	for range int(awayTime/step) + 400 {
		w.run(step)
		require.True(t, w.cores[4].alive(rp(2)) || w.route(4, ingress1).Parent == rp(3))
		if w.now.Sub(w.cores[4].neighbour(rp(2)).awaySince) > awayDoubt+10*step {
			require.NotEmpty(t, w.route(3, ingress1).Children)
		}
	}
	require.Equal(t, rp(3), w.route(4, ingress1).Parent)
}

// One that does not come back is lost after the time, or when there is no use in waiting,
// and meanwhile nobody turns to it.
func TestAwayForGood(t *testing.T) {
	w := square(t)
	w.hear(4, 3)
	w.detach(3) // the backup
	w.cut[pair(2, 4)] = true
	w.run(time.Second)
	require.Empty(t, sent[*Graft](w, 4, 3))
	require.Zero(t, w.route(4, ingress1).Parent, "nobody else is there")
	w.cut[pair(2, 4)] = false
	w.run(LinkDelay + 2*time.Second)
	require.Equal(t, rp(2), w.route(4, ingress1).Parent)
	w.detach(2)
	w.run(7500 * time.Millisecond)
	require.NotContains(t, took[NeighbourDown](w, 4), NeighbourDown{rp(3)})
	w.run(time.Second)
	require.Contains(t, took[NeighbourDown](w, 4), NeighbourDown{rp(3)})
	require.Equal(t, rp(2), w.route(4, ingress1).Parent)
	w.cores[4].LinkDown(w.now, rp(2))
	w.perform(4)
	require.Zero(t, w.route(4, ingress1).Parent)
	require.Zero(t, w.cores[4].LinkAway(w.now, rp(2), w.now.Add(time.Second)))

	// It is met again, but does not hear.
	w.start(2)
	w.run(5 * time.Second)
	require.True(t, w.cores[4].alive(rp(2)))
	w.detach(2)
	w.cores[4].LinkUp(w.now, rp(2))
	w.run(Missed*Interval - step)
	require.True(t, w.cores[4].alive(rp(2)))
	w.run(2 * step)
	require.False(t, w.cores[4].alive(rp(2)))
}

// One that connects again and again, and is never heard, is not waited for any longer.
func TestAwayHasAnEnd(t *testing.T) {
	w := square(t)
	w.detach(2)
	began := w.now
	for w.cores[4].alive(rp(2)) {
		w.cores[4].LinkUp(w.now, rp(2))
		w.perform(4)
		w.run(Interval)
		if w.cores[4].LinkAway(w.now, rp(2), w.now.Add(awayTime)).IsZero() {
			w.cores[4].LinkDown(w.now, rp(2))
		}
		w.perform(4)
		require.LessOrEqual(t, w.now.Sub(began), awayTime+Missed*Interval)
	}
	require.GreaterOrEqual(t, w.now.Sub(began), awayTime)
}

// A neighbour that is lost again and again has to be heard for longer each time. One that
// was lost once is up again at once.
func TestHoldDown(t *testing.T) {
	w := square(t)
	c := w.cores[4]
	var held []time.Duration
	for range 4 {
		w.cut[pair(2, 4)] = true
		for c.alive(rp(2)) {
			w.run(step)
		}
		begin := w.now
		w.cut[pair(2, 4)] = false
		for !c.alive(rp(2)) {
			w.run(step)
			require.Less(t, w.now.Sub(begin), 2*holdLast)
		}
		held = append(held, w.now.Sub(begin))
	}
	require.Less(t, held[0], 2*time.Second)
	require.Greater(t, held[2], held[1])
	require.Greater(t, held[3], 3*time.Second)
}

// An RP that says that it is late is not found dead for that.
func TestSlack(t *testing.T) {
	w := square(t)
	w.hear(4, 2)
	c := w.cores[4]
	c.HeardHello(w.now, rp(2), Hello{Stamp: 1, Interval: 100, Tree: true, Up: true, Slack: 50})
	w.cut[pair(2, 4)] = true
	w.run(700 * time.Millisecond)
	require.True(t, c.alive(rp(2)))
	require.Empty(t, took[NeighbourDown](w, 4))
	w.run(200 * time.Millisecond)
	require.Equal(t, []NeighbourDown{{rp(2)}}, took[NeighbourDown](w, 4))

	// It says so when its ticks come late.
	c = w.cores[1]
	w.forget()
	w.now = w.now.Add(240 * time.Millisecond)
	c.Tick(w.now)
	var slack uint8
	for _, a := range c.Actions() {
		if h, ok := a.(SendHello); ok {
			slack = h.Hello.Slack
		}
	}
	require.GreaterOrEqual(t, slack, uint8(14))
}

// However often something changes, an RP advertises itself five times at once and then
// each second at most.
func TestOwnRate(t *testing.T) {
	w := square(t)
	c := w.cores[4]
	before := c.Stats().Published
	for i := range 100 {
		c.SetMembers(w.now, []Members{{groupA, uint32(i % 2)}})
		w.run(100 * time.Millisecond)
	}
	require.InDelta(t, 14, float64(c.Stats().Published-before), 2)
	w.run(2 * time.Second)
	require.Equal(t, []Members{{groupA, 1}}, w.cores[1].entries[rp(4)].Advert.Groups)
}

// A neighbour that is on no tree any more gets five more LINK_HELLOs in the shorter interval, which announce the
// longer one, so that the loss of one does not look like the loss of many.
func TestHellosSlowDown(t *testing.T) {
	w := newNetwork(t)
	c := w.start(1)
	c.LinkUp(w.now, rp(2))
	n := c.neighbour(rp(2))
	n.up, n.heard, n.interval, n.theirs = true, w.now, 10*time.Second, true
	announced := func(d time.Duration) (intervals []uint16) {
		for _, a := range append(c.Actions(), tickFor(w, c, d)...) {
			if h, ok := a.(SendHello); ok {
				intervals = append(intervals, h.Hello.Interval)
			}
		}
		return intervals
	}
	require.Subset(t, []uint16{100}, announced(time.Second))
	n.theirs = false
	require.Equal(t, []uint16{1000, 1000, 1000, 1000, 1000}, announced(900*time.Millisecond))
	require.Len(t, announced(5*time.Second), 5)
}

// tickFor has time go by for one RP alone.
func tickFor(w *network, c *Core, d time.Duration) (actions []Action) {
	for end := w.now.Add(d); !c.Deadline().After(end); {
		w.now = c.Deadline()
		c.Tick(w.now)
		actions = append(actions, c.Actions()...)
	}
	return actions
}
