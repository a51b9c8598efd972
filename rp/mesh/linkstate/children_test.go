// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/mesh/tree"
)

// stranger is a neighbour of an RP that says what a test wants.
type stranger struct {
	w    *network
	at   int
	name int
}

// stranger links one to RP n, and waits until it is up.
func (w *network) stranger(n, name int) *stranger {
	s := &stranger{w, n, name}
	s.core().LinkUp(w.now, rp(name))
	s.run(time.Second)
	for by := w.now.Add(holdLast); !s.core().alive(rp(name)) && w.now.Before(by); {
		s.run(TreeInterval)
	}
	require.True(w.t, s.core().alive(rp(name)))
	w.forget()
	return s
}

func (s *stranger) core() *Core { return s.w.cores[s.at] }

// run lets time pass, in which the stranger is heard.
func (s *stranger) run(d time.Duration) {
	for ; d > 0; d -= TreeInterval {
		c := s.core()
		c.HeardHello(s.w.now, rp(s.name), Hello{Stamp: 1, Echo: c.micros(s.w.now) - 2000, Echoes: true, Interval: 1000, Up: true})
		s.w.perform(s.at)
		s.w.run(min(d, TreeInterval))
	}
}

// says sends a message, and returns the answers to it.
func (s *stranger) says(m Message) (answers []*GraftAck) {
	s.w.t.(*testing.T).Helper()
	before := len(took[AckGraft](s.w, s.at))
	require.NoError(s.w.t, s.core().Handle(s.w.now, rp(s.name), m))
	s.w.perform(s.at)
	for _, a := range took[AckGraft](s.w, s.at)[before:] {
		if a.To == rp(s.name) {
			answers = append(answers, a.Message())
		}
	}
	return answers
}

// asks grafts one ingress RP, and reports whether it was granted.
func (s *stranger) asks(ingress ids.Incarnation) bool {
	s.w.t.(*testing.T).Helper()
	answers := s.says(&Graft{ID: 7, Routes: []GraftRoute{{Ingress: ingress}}})
	require.Len(s.w.t, answers, 1)
	require.Len(s.w.t, append(answers[0].Granted, answers[0].Refused...), 1)
	return len(answers[0].Granted) == 1
}

// gets reports whether an RP replicates to the stranger.
func (s *stranger) gets(ingress ids.Incarnation) bool {
	for _, c := range s.w.route(s.at, ingress).Children {
		if c.ID == rp(s.name) {
			return true
		}
	}
	return false
}

// One that no tree names gets the datagrams for some seconds, and then for a quarter of the
// time at most, however it asks. Its reports do not count.
func TestGuest(t *testing.T) {
	w := square(t)
	s := w.stranger(1, 9)
	require.True(t, s.asks(ingress1))
	require.True(t, s.gets(ingress1))
	require.False(t, w.cores[1].Counts(ingress1, rp(9)))
	require.True(t, w.cores[1].Counts(ingress1, rp(2)))
	s.run(Grace - time.Second)
	require.True(t, s.gets(ingress1))
	s.run(2 * time.Second)
	require.False(t, s.gets(ingress1))
	require.Equal(t, uint64(1), w.cores[1].Stats().Dismissed)
	require.False(t, s.asks(ingress1))
	require.Equal(t, uint64(1), w.cores[1].Stats().Refused)

	var got time.Duration
	const all = 3 * time.Minute
	for i := range all / TreeInterval {
		if s.gets(ingress1) {
			got += TreeInterval
		}
		if i%3 == 0 {
			s.says(&Prune{[]ids.Incarnation{ingress1}})
		}
		s.asks(ingress1)
		s.run(TreeInterval)
	}
	require.LessOrEqual(t, got, all/4+Grace)
	require.GreaterOrEqual(t, got, all/10)
	for _, r := range []int{2, 3, 4} {
		require.NotZero(t, w.route(r, ingress1).Parent)
	}
	require.Equal(t, 1, len(w.cores[1].neighbour(rp(9)).standings))
	s.says(&Prune{[]ids.Incarnation{ingress1}})
	s.run(5 * Grace)
	require.Empty(t, w.cores[1].neighbour(rp(9)).standings, "forgotten")
}

// A neighbour that connects anew has what it had left before, for a minute.
func TestGuestThatConnectsAnew(t *testing.T) {
	w := square(t)
	s := w.stranger(1, 9)
	c := w.cores[1]
	require.True(t, s.asks(ingress1))
	s.run(Grace - time.Second)
	verify := c.neighbour(rp(9)).verify.fill(w.now, verifyRate, verifyBurst)
	c.neighbour(rp(9)).verify.left -= verifyBurst
	for range 3 {
		c.LinkDown(w.now, rp(9))
		w.perform(1)
		require.Len(t, c.conducts, 1)
		s = w.stranger(1, 9)
		s.asks(ingress1)
		require.Less(t, c.neighbour(rp(9)).verify.fill(w.now, verifyRate, verifyBurst), verify)
		s.run(2 * time.Second)
	}
	require.False(t, s.gets(ingress1))
	require.Empty(t, c.conducts)
	c.LinkDown(w.now, rp(9))
	w.run(conductMemory + time.Second)
	require.Empty(t, c.conducts, "forgotten")
	require.True(t, w.stranger(1, 9).asks(ingress1))
}

// A guest has no place beyond the copy budget, and makes room for one that the tree names.
func TestBudgetOfGuests(t *testing.T) {
	w := square(t)
	w.cores[1].cfg.Budget = 2
	s := w.stranger(1, 9)
	require.False(t, s.asks(ingress1), "2 and 3 are children")
	w.cores[1].cfg.Budget = 3
	require.True(t, s.asks(ingress1))
	again := w.stranger(1, 10)
	require.False(t, again.asks(ingress1))

	// 3 goes, another guest has its place, and 3 comes back.
	require.NoError(t, w.cores[1].Handle(w.now, rp(3), &Prune{[]ids.Incarnation{ingress1}}))
	w.perform(1)
	require.True(t, again.asks(ingress1))
	require.Len(t, w.route(1, ingress1).Children, 3)
	require.NoError(t, w.cores[1].Handle(w.now, rp(3), &Graft{ID: 99, Routes: []GraftRoute{{Ingress: ingress1}}}))
	w.perform(1)
	require.Len(t, w.route(1, ingress1).Children, 4, "no guest is there for long")
	require.True(t, s.gets(ingress1))
	require.True(t, w.cores[1].Counts(ingress1, rp(3)))
	s.run(Overlap)
	require.Len(t, w.route(1, ingress1).Children, 3)
	require.False(t, s.gets(ingress1), "the one whose time would have been over first")
	require.True(t, again.gets(ingress1))
}

// The budget that all RPs know of binds the tree: none has more children than it.
func TestBudgetOfTrees(t *testing.T) {
	w := newNetwork(t)
	for n := range 5 {
		w.start(n + 1)
		w.cores[n+1].cfg.Budget, w.cores[n+1].cfg.Mode = 2, tree.Star
	}
	w.cores[1].SetPublishes(w.now, true)
	for a := 1; a <= 5; a++ {
		for b := a + 1; b <= 5; b++ {
			w.link(a, b, 10*time.Millisecond)
		}
	}
	w.run(30 * time.Second)
	for n := range 5 {
		require.LessOrEqual(t, len(w.route(n+1, ingress1).Children), 2)
		require.Equal(t, n == 0, w.route(n+1, ingress1).Parent == 0)
	}
	requireAgreement(t, w)
}

// A child that the tree does not name any more, and that does not leave, has some seconds.
func TestFormerChild(t *testing.T) {
	w := square(t)
	w.unlink(1, 2)
	w.run(2 * time.Second)
	c := w.cores[3]
	require.True(t, c.Counts(ingress1, rp(4)))
	w.edit = func(from, to int, m Message) Message {
		if m.Code() == PruneMsg && from == 4 && to == 3 {
			return nil
		}
		return m
	}
	w.link(1, 2, 10*time.Millisecond)
	w.run(LinkDelay + 3*time.Second)
	require.Equal(t, rp(2), w.route(4, ingress1).Parent)
	require.Len(t, w.route(3, ingress1).Children, 1)
	require.True(t, c.Counts(ingress1, rp(4)), "there are reports under way")
	w.run(Grace)
	require.Empty(t, w.route(3, ingress1).Children)
	require.False(t, c.Counts(ingress1, rp(4)))
	require.Equal(t, uint64(1), c.Stats().Dismissed)
	w.edit = nil
	w.run(5 * time.Second)
	requireAgreement(t, w)
}

// An ingress RP that no advert names has no route. Who asks for it has an answer when there
// is an advert; not for long, and not for many.
func TestUnknownIngress(t *testing.T) {
	w := square(t)
	s := w.stranger(2, 9)
	made := incarnation(6, 1)
	require.Empty(t, s.says(&Graft{ID: 7, Routes: []GraftRoute{{Ingress: made}}}))
	require.Empty(t, w.route(2, made))
	require.Empty(t, took[Route](w, 2))

	w.start(6)
	w.cores[6].SetPublishes(w.now, true)
	w.link(3, 6, step)
	s.run(3 * time.Second)
	answers := took[AckGraft](w, 2)
	require.Contains(t, answers, AckGraft{To: rp(9), ID: 7, Granted: []ids.Incarnation{made}})
	require.True(t, s.gets(made))

	c := w.cores[2]
	n := c.neighbour(rp(9))
	routes := len(c.routes)
	var graft Graft
	for i := range ids.Incarnation(20 * MaxRoutes) {
		if graft.Routes = append(graft.Routes, GraftRoute{Ingress: 5000 + i}); len(graft.Routes) == MaxRoutes {
			for _, a := range s.says(&graft) {
				require.Empty(t, a.Granted)
			}
			graft.Routes = nil
		}
	}
	require.Len(t, n.waiting, waitingMax)
	require.Len(t, c.routes, routes)
	require.Equal(t, uint64(19*MaxRoutes), c.Stats().Refused)
	w.forget()
	s.run(Grace + time.Second)
	require.Empty(t, n.waiting)
	for _, r := range took[Route](w, 2) {
		require.Equal(t, made, r.Ingress)
	}
}

// An RP that takes a new incarnation again and again has two routes at most.
func TestManyIncarnationsOfOne(t *testing.T) {
	w := square(t)
	c := w.cores[1]
	for life := range 60 {
		s := advertOf(t, 2, 2000, uint64(life+1), func(a *Advert) {
			*a = w.cores[2].entries[rp(2)].Advert
			a.Epoch, a.Sequence, a.Publishes, a.Incarnation = 2000, uint64(life+1), true, incarnation(2, 10+life)
		})
		require.NoError(t, c.Handle(w.now, rp(3), adverts(s)))
		w.perform(1)
		for range 10 {
			w.run(TreeInterval)
			require.LessOrEqual(t, len(c.routes), 2+2) // and that of 1 itself, and one that ends with the next tick
		}
	}
}

// A new incarnation that comes too soon after three others has a tree later, and the one that
// stays has one in the end.
func TestRateOfIncarnations(t *testing.T) {
	w := square(t)
	c := w.cores[1]
	w.edit = func(_, to int, m Message) Message { // 2 does not hear of them
		if to == 2 {
			return nil
		}
		return m
	}
	var last ids.Incarnation
	trees := 0
	for life := range 30 {
		last = incarnation(2, 10+life)
		s := advertOf(t, 2, 2000, uint64(life+1), func(a *Advert) {
			*a = w.cores[2].entries[rp(2)].Advert
			a.Epoch, a.Sequence, a.Publishes, a.Incarnation = 2000, uint64(life+1), true, last
		})
		require.NoError(t, c.Handle(w.now, rp(3), adverts(s)))
		w.perform(1)
		w.run(time.Second)
		if c.routes[last] != nil {
			trees++
		}
	}
	require.InDelta(t, livesBurst+30*livesRate, trees, 2)
	require.InDelta(t, 30-trees, c.Stats().Limited, 3)
	w.run(12 * time.Second)
	require.NotNil(t, c.routes[last])
	require.Equal(t, rp(2), c.routes[last].origin)
}

// A parent that refuses is left for the backup at once.
func TestRefusal(t *testing.T) {
	w := square(t)
	c := w.cores[4]
	r := c.routes[ingress1]
	w.unlink(2, 4)
	w.run(time.Second)
	require.Equal(t, rp(3), r.parent)
	w.link(2, 4, 10*time.Millisecond)
	for r.parent != rp(2) {
		w.run(step)
	}
	w.way = nil // the Graft is lost
	require.NoError(t, c.Handle(w.now, rp(2), &GraftAck{ID: r.graft, Refused: []ids.Incarnation{ingress1}}))
	w.perform(4)
	require.Equal(t, rp(3), w.route(4, ingress1).Parent, "which still sends")
	require.Equal(t, uint64(1), c.Stats().Refusals)
	w.run(8 * time.Second)
	require.Equal(t, Route{Ingress: ingress1, Parent: rp(2), Backup: rp(3)}, w.route(4, ingress1), "it is asked once more")
	require.Zero(t, c.Stats().GivenUp)

	// The backup of a silent parent refuses: the next one is asked.
	w.forget()
	c.now = w.now
	c.neighbour(rp(2)).doubted = true
	c.doubt(c.neighbour(rp(2)))
	w.perform(4)
	graft := sent[*Graft](w, 4, 3)
	require.Len(t, graft, 1)
	require.NoError(t, c.Handle(w.now, rp(3), &GraftAck{ID: graft[0].ID, Refused: []ids.Incarnation{ingress1}}))
	w.perform(4)
	require.Equal(t, Route{Ingress: ingress1, Parent: rp(2)}, w.route(4, ingress1), "there is none")
}

// A parent of the tree that never replicates loses its link, so that the trees do without it:
// 4 has the datapath's from 3, and is no guest there.
func TestParentThatRefuses(t *testing.T) {
	for name, refuse := range map[string]func(*Core, *GraftAck) Message{
		"refuses":         func(_ *Core, m *GraftAck) Message { return &GraftAck{ID: m.ID, Refused: m.Granted} },
		"does not answer": func(*Core, *GraftAck) Message { return &GraftAck{} },
	} {
		t.Run(name, func(t *testing.T) {
			w := square(t)
			w.unlink(2, 4)
			w.run(2 * time.Second)
			w.edit = func(from, to int, m Message) Message {
				if ack, ok := m.(*GraftAck); ok && from == 2 && to == 4 {
					return refuse(w.cores[2], ack)
				}
				return m
			}
			w.link(2, 4, 10*time.Millisecond)
			for range 600 {
				w.run(100 * time.Millisecond)
				_, up := w.delay[pair(2, 4)]
				require.True(t, up)
				r := w.cores[4].routes[ingress1]
				served := w.route(3, ingress1).Children
				require.Len(t, served, 1)
				require.True(t, r.parent == rp(3) || len(r.old) > 0, "3 sends all the time")
			}
			require.Greater(t, w.cores[4].Stats().GivenUp, uint64(1))
			require.Less(t, w.cores[4].Stats().GivenUp, uint64(8), "held down")
		})
	}
}

// The link of a parent that refuses ends, too, when the backup refuses as well.
func TestParentAndBackupThatRefuse(t *testing.T) {
	w := square(t)
	w.edit = func(from, to int, m Message) Message {
		if ack, ok := m.(*GraftAck); ok && to == 4 {
			return &GraftAck{ID: ack.ID, Refused: ack.Granted}
		}
		return m
	}
	w.unlink(2, 4)
	w.unlink(3, 4)
	w.link(2, 4, 10*time.Millisecond)
	w.link(3, 4, 15*time.Millisecond)
	w.run(15 * time.Second)
	require.NotZero(t, w.cores[4].Stats().GivenUp)
}

// The link of a parent that has no room for one route goes on for another one.
func TestParentWithoutRoom(t *testing.T) {
	w := square(t)
	w.cores[2].SetPublishes(w.now, true)
	w.run(2 * time.Second)
	w.unlink(2, 4)
	w.run(time.Second)
	w.edit = func(from, to int, m Message) Message {
		if ack, ok := m.(*GraftAck); ok && from == 2 && to == 4 && slices.Contains(ack.Granted, ingress1) {
			rest := slices.DeleteFunc(slices.Clone(ack.Granted), func(i ids.Incarnation) bool { return i == ingress1 })
			return &GraftAck{ID: ack.ID, Granted: rest, Refused: []ids.Incarnation{ingress1}}
		}
		return m
	}
	w.link(2, 4, 10*time.Millisecond)
	w.run(15 * time.Second)
	require.Greater(t, w.cores[4].Stats().Refusals, uint64(3))
	require.Zero(t, w.cores[4].Stats().GivenUp)
	require.Equal(t, rp(2), w.route(4, incarnation(2, 1)).Parent)
}

// A parent that is away cannot answer.
func TestParentThatIsAway(t *testing.T) {
	w := square(t)
	c := w.cores[4]
	w.detach(2)
	r := c.routes[ingress1]
	r.acked, r.failing, r.failingOf = false, w.now.Add(-2*giveUpDelay), rp(2)
	w.run(2 * TreeInterval)
	require.True(t, c.alive(rp(2)))
	require.Zero(t, c.Stats().GivenUp)
	require.Zero(t, r.failing)
}

// A parent that the child leaves is pruned when its time is over, and not by what a RouteSum
// finds later.
func TestPruneInTime(t *testing.T) {
	w := square(t)
	w.hear(4, 2)
	w.cut[pair(2, 4)] = true
	w.run(250 * time.Millisecond)
	w.cut[pair(2, 4)] = false
	require.Len(t, sent[*Graft](w, 4, 3), 1)
	w.run(Overlap + 2*TreeInterval)
	require.Equal(t, []*Prune{{[]ids.Incarnation{ingress1}}}, sent[*Prune](w, 4, 3))
	w.run(20 * time.Second)
	require.Len(t, sent[*Prune](w, 4, 3), 1)
	require.Zero(t, w.cores[4].Stats().Repairs, "no RouteSum found anything")
	require.Zero(t, w.cores[3].Stats().Dismissed)
}

// The datapath has no room for a child: it is not one.
func TestRefusedByTheDatapath(t *testing.T) {
	w := square(t)
	c := w.cores[1]
	c.Refuse(w.now, rp(2), ingress1)
	w.perform(1)
	require.Len(t, w.route(1, ingress1).Children, 1)
	require.Equal(t, uint64(1), c.Stats().Refused)
	c.Refuse(w.now, rp(2), ingress1)
	c.Refuse(w.now, rp(9), ingress1)
	c.Refuse(w.now, rp(2), 77)
	require.Empty(t, c.Actions())
}

// A second RP with the key of 4 answers each advert with a newer one. Both give way for longer
// and longer, and it is noticed. After some time without that it is as in the beginning.
func TestTwins(t *testing.T) {
	w := square(t)
	c := w.cores[4]
	bids, newest := 0, Version{Origin: rp(4)}
	for range 2 * 60 * 10 { // 2 minutes
		w.run(TreeInterval)
		if own := c.entries[rp(4)].version; own.newer(newest) {
			bids++
			s := advertOf(t, 4, own.Epoch+1, 1, func(a *Advert) { a.Incarnation = incarnation(4, 77) })
			newest = s.Advert.Version()
			require.NoError(t, c.Handle(w.now, rp(2), adverts(s)))
			w.perform(4)
		}
	}
	require.InDelta(t, 7, bids, 2, "after 0, 1, 3, 7, 15, 31, 63 s")
	require.InDelta(t, bids, c.Stats().Outbids, 1)
	require.Equal(t, c.Stats().Outbids-twinsFrom+1, c.Stats().Twins)
	w.run(outbidMemory + outbidLast)
	before := c.Stats()
	s := advertOf(t, 4, c.epoch+5, 1, nil)
	require.NoError(t, c.Handle(w.now, rp(2), adverts(s)))
	require.Equal(t, before.Outbids+1, c.Stats().Outbids)
	require.Equal(t, before.Twins, c.Stats().Twins)
	require.Equal(t, s.Advert.Epoch+1, c.epoch)
}

// An RP that resumes is told by each neighbour of the advert of its earlier life: that is no twin.
func TestOwnEarlierAdvertIsNoTwin(t *testing.T) {
	w := square(t)
	for n := 2; n <= 6; n++ {
		if n > 4 {
			w.start(n)
			w.link(1, n, 10*time.Millisecond)
		}
	}
	w.run(8 * time.Second)
	w.detach(1)
	w.run(time.Second)
	c := w.resume(1)
	c.expected[rp(9)] = true // and is not there: the first advert waits
	w.run(returnDelay + 3*time.Second)
	require.Zero(t, c.Stats().Outbids)
	require.Zero(t, c.Stats().Twins)
	require.Equal(t, c.epoch, w.cores[4].entries[rp(1)].Advert.Epoch)
}

// An advert with the own key and the largest epoch does not make the own epoch small.
func TestLargestEpoch(t *testing.T) {
	w := square(t)
	c := w.cores[4]
	require.NoError(t, c.Handle(w.now, rp(2), adverts(advertOf(t, 4, 1<<64-1, 5, nil))))
	w.perform(4)
	w.run(time.Second)
	own := c.entries[rp(4)].version
	require.Equal(t, []uint64{1<<64 - 1, 6}, []uint64{own.Epoch, own.Sequence})
	require.Equal(t, own, w.cores[1].entries[rp(4)].version)
}

// Another RP says again and again that it lost a neighbour: that one is asked for a sign of
// life three times, and then every 5 s.
func TestFloodOfSuspicions(t *testing.T) {
	w := square(t)
	c := w.cores[1]
	n := c.neighbour(rp(2))
	polls := 0
	for range 200 {
		w.run(TreeInterval)
		n.heard = w.now.Add(-2 * TreeInterval)
		n.polled = time.Time{}
		c.now = w.now
		c.linksLost([]Link{{Neighbour: rp(2), Cost: 1}}, []Link{{Neighbour: rp(1), Cost: 1}})
		if !n.polled.IsZero() {
			polls++
			n.polled = time.Time{}
		}
		n.alive(w.now)
	}
	require.InDelta(t, 3+4, polls, 1)
}
