// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// advertOf signs an advert of RP n.
func advertOf(t require.TestingT, n int, epoch, sequence uint64, edit func(*Advert)) *Signed {
	a := Advert{Origin: rp(n), Incarnation: incarnation(n, 500), Epoch: epoch, Sequence: sequence}
	if edit != nil {
		edit(&a)
	}
	s, err := Sign(a, keys[n-1])
	require.NoError(t, err)
	return s
}

func adverts(all ...*Signed) *Adverts {
	m := &Adverts{}
	for _, s := range all {
		m.Adverts = append(m.Adverts, Aged{0, s})
	}
	return m
}

// TestHostileAdverts: what 2 sends to 1 changes nothing there, and 1 tells nobody.
func TestHostileAdverts(t *testing.T) {
	forged := advertOf(t, 3, 2000, 1, nil)
	forged.Advert.Budget++ // behind the signature
	another := advertOf(t, 2, 2000, 1, func(a *Advert) { a.Origin = rp(3) })
	garbage := &Signed{Advert: advertOf(t, 3, 2000, 1, nil).Advert}
	for name, c := range map[string]struct {
		m         Message
		violation bool
		count     func(Stats) uint64
	}{
		"changed after it was signed": {adverts(forged), true, func(s Stats) uint64 { return s.Forged }},
		"signed by another":           {adverts(another), true, func(s Stats) uint64 { return s.Forged }},
		"no signature":                {adverts(garbage), true, func(s Stats) uint64 { return s.Forged }},
		"not allowed":                 {adverts(advertOf(t, 9, 1, 1, nil)), false, func(s Stats) uint64 { return s.NotAllowed }},
		"stale":                       {adverts(advertOf(t, 3, 1, 99, nil)), false, func(s Stats) uint64 { return s.Stale }},
		"unknown message":             {strange{}, true, nil},
		"acknowledgement of nothing":  {&GraftAck{ID: 77, Granted: []ids.Incarnation{ingress1}, Refused: []ids.Incarnation{5}}, false, nil},
		"acknowledged advert of none": {&Acked{Hash{9}}, false, nil},
		"prune of nothing":            {&Prune{[]ids.Incarnation{5}}, false, nil},
		"offer of what is known":      {&Offer{[]Version{{rp(3), 1, 1, Hash{}}}}, false, nil},
		"request of nothing":          {&Request{[]ID{42}}, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := square(t)
			core := w.cores[1]
			core.cfg.Allowed = func(node [32]byte) bool { return IDOf(node) != rp(9) }
			sums, before := core.Sums(1), core.Stats()
			err := core.Handle(w.now, rp(2), c.m)
			violation, ok := errors.AsType[*proto.Error](err)
			require.Equal(t, c.violation, ok, "%v", err)
			if ok {
				require.Equal(t, proto.ReasonUnexpected, violation.Reason)
			}
			if c.count != nil {
				require.Equal(t, c.count(before)+1, c.count(core.Stats()))
			}
			require.Equal(t, sums, core.Sums(1))
			for _, a := range core.Actions() {
				send, ok := a.(Send)
				require.True(t, ok && send.To == rp(2), "%#v", a)
			}
		})
	}
}

type strange struct{}

func (strange) Code() uint64 { return 0x0f }
func (strange) check() error { return nil }

func TestMessageWithoutLink(t *testing.T) {
	c := New(t0, config(1, 1))
	require.Error(t, c.Handle(t0, rp(2), &Offer{}))
	c.HeardHello(t0, rp(2), Hello{Interval: 100})
	c.Heard(t0, rp(2))
	require.Empty(t, c.Neighbours())
}

// A stale advert that is older than what is known is answered with the newer one.
func TestStaleAdvertIsCorrected(t *testing.T) {
	w := square(t)
	require.NoError(t, w.cores[1].Handle(w.now, rp(2), adverts(advertOf(t, 3, 1, 99, nil))))
	w.perform(1)
	got := sent[*Adverts](w, 1, 2)
	require.Len(t, got, 1)
	require.Equal(t, w.cores[1].entries[rp(3)].Advert, got[0].Adverts[0].Advert)
}

// An RP that signs one advert after the other is heard at its rate only.
func TestFloodOfOneOrigin(t *testing.T) {
	w := square(t)
	core := w.cores[1]
	before := core.Stats()
	for i := range uint64(200) {
		require.NoError(t, core.Handle(w.now, rp(2), adverts(advertOf(t, 5, 1, i+1, nil))))
	}
	require.Equal(t, uint64(200-originBurst-1), core.Stats().Limited-before.Limited)
	require.Equal(t, uint64(originBurst+1), core.entries[rp(5)].Advert.Sequence)
	later := w.now.Add(time.Second)
	require.NoError(t, core.Handle(later, rp(2), adverts(advertOf(t, 5, 1, 300, nil))))
	require.Equal(t, uint64(300), core.entries[rp(5)].Advert.Sequence)
}

// A neighbour causes only so many signature checks, whatever origins it names.
func TestFloodOfOneNeighbour(t *testing.T) {
	w := square(t)
	core := w.cores[1]
	checks := 0
	core.cfg.Verify = func(s *Signed) (node [32]byte, err error) {
		checks++
		return node, nil
	}
	core.cfg.Allowed = func([32]byte) bool { return false }
	for i := range 3 * verifyBurst {
		s := &Signed{Advert: Advert{Origin: ID(i + 1), Incarnation: 1}}
		require.NoError(t, core.Handle(w.now, rp(2), adverts(s)))
	}
	require.LessOrEqual(t, checks, verifyBurst)
	require.Len(t, core.entries, 4)
}

// A neighbour that says it has everything, and sends nothing, keeps nothing from being asked
// of others.
func TestFloodOfOffers(t *testing.T) {
	for name, version := range map[string]Version{
		"one that nobody has": {rp(5), math.MaxUint64, 1, Hash{}},
		"the one that is new": {rp(5), 1, 1, Hash{}},
	} {
		t.Run(name, func(t *testing.T) {
			w := square(t)
			core := w.cores[1]
			hostile := func() {
				require.NoError(t, core.Handle(w.now, rp(2), &Offer{[]Version{version}}))
				require.NoError(t, core.Handle(w.now, rp(2), &Summary{[]Version{version}}))
				w.perform(1)
			}
			w.forget()
			hostile()
			require.Equal(t, []*Request{{[]ID{rp(5)}}}, sent[*Request](w, 1, 2))
			require.NoError(t, core.Handle(w.now, rp(3), &Offer{[]Version{{rp(5), 1, 1, Hash{}}}}))
			w.perform(1)
			require.Empty(t, sent[*Request](w, 1, 3), "one is asked")
			for range 10 * int(RequestDelay/TreeInterval) {
				hostile()
				w.run(TreeInterval)
			}
			require.Equal(t, []*Request{{[]ID{rp(5)}}}, sent[*Request](w, 1, 3), "once for an offer")
			require.InDelta(t, 10, len(sent[*Request](w, 1, 2)), 2)
		})
	}

	// Whatever origins it names, there is room for what others offer.
	w := square(t)
	core := w.cores[1]
	for i := range 4 * MaxOrigins / MaxVersions {
		m := &Offer{}
		for k := range MaxVersions {
			m.Versions = append(m.Versions, Version{ID(i*MaxVersions + k + 1), 1, 1, Hash{}})
		}
		require.NoError(t, core.Handle(w.now, rp(2), m))
	}
	w.perform(1)
	require.LessOrEqual(t, len(core.requested), offerBurst)
	w.forget()
	require.NoError(t, core.Handle(w.now, rp(3), &Offer{[]Version{{rp(5), 1, 1, Hash{}}}}))
	w.perform(1)
	require.Equal(t, []*Request{{[]ID{rp(5)}}}, sent[*Request](w, 1, 3))
	w.run(2 * RequestDelay)
	require.Empty(t, core.requested)
	require.Empty(t, core.neighbour(rp(2)).offers)
}

// Age is not signed: who lies about it makes no RP vanish that has links.
func TestLieAboutAge(t *testing.T) {
	w := square(t)
	core := w.cores[1]
	s := *core.entries[rp(4)].Signed
	s.Advert.Sequence++
	signed, err := Sign(s.Advert, keys[3])
	require.NoError(t, err)
	require.NoError(t, core.Handle(w.now, rp(2), &Adverts{Adverts: []Aged{{1 << 31, signed}}}))
	w.perform(1)
	w.run(3 * time.Second)
	require.Contains(t, core.entries, rp(4))
	require.True(t, core.reached(rp(4)))
}

// One end alone makes no link, and the dearer end counts.
func TestLieAboutLinks(t *testing.T) {
	w := square(t)
	core := w.cores[1]
	claim := func(cost uint32) func(*Advert) {
		return func(a *Advert) { a.Links = []Link{{Neighbour: rp(4), Cost: cost}} }
	}
	require.NoError(t, core.Handle(w.now, rp(2), adverts(advertOf(t, 5, 1, 1, claim(1)))))
	w.perform(1)
	w.run(2 * time.Second)
	require.False(t, core.reached(rp(5)), "4 does not say so")

	two, four := core.graph.Slot(rp(2)), core.graph.Slot(rp(4))
	honest := core.graph.Cost(two, four)
	lie := w.cores[2].entries[rp(2)].Advert
	lie.Sequence++
	for i := range lie.Links {
		lie.Links[i].Cost = 1
	}
	signed, err := Sign(lie, keys[1])
	require.NoError(t, err)
	require.NoError(t, core.Handle(w.now, rp(2), adverts(signed)))
	core.Tick(core.treesAt)
	require.InDelta(t, honest, core.graph.Cost(two, four), 5)
}

// Hellos with impossible times change no cost.
func TestLieAboutTimes(t *testing.T) {
	w := square(t)
	core := w.cores[1]
	n := core.neighbour(rp(2))
	rtt := n.rtt
	core.HeardHello(w.now, rp(2), Hello{Stamp: 1, Echo: core.micros(w.now) + 5, Interval: 100, Echoes: true, Up: true})
	core.HeardHello(w.now, rp(2), Hello{Stamp: 1, Echo: core.micros(w.now) - 20_000, Hold: 1 << 30, Interval: 100, Echoes: true, Up: true})
	require.Equal(t, uint64(2), core.Stats().BadEchoes)
	require.Equal(t, rtt, n.rtt)
}

// The incarnation of 1 does not fit the key of 2: who brings an advert in which 2 claims it
// breaks the protocol, and no tree changes.
func TestStolenIncarnation(t *testing.T) {
	w := square(t)
	for _, signer := range []int{2, 3} {
		stolen := advertOf(t, signer, 2000, 1, func(a *Advert) { a.Incarnation, a.Publishes = ingress1, true })
		require.ErrorContains(t, w.cores[4].Handle(w.now, rp(2), adverts(stolen)), "not one of it")
		require.NotEqual(t, ingress1, w.cores[4].entries[rp(signer)].Advert.Incarnation)
	}
	require.Equal(t, uint64(2), w.cores[4].Stats().Forged)
	w.forget()
	w.run(3 * time.Second)
	require.Empty(t, took[Route](w, 4))
}

// Of 4,096 incarnations one belongs to an RP.
func TestIncarnationsBelong(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	const draws = 50
	for range draws {
		i, err := DrawIncarnation(rp(1), random)
		require.NoError(t, err)
		require.True(t, Belongs(rp(1), i))
		require.False(t, Belongs(rp(2), i))
	}
	var fit int
	for i := range ids.Incarnation(1 << 18) {
		if Belongs(rp(1), i<<8) {
			fit++
		}
	}
	require.InDelta(t, 64, fit, 40)
	require.False(t, Belongs(rp(1), 0))
	_, err := DrawIncarnation(rp(1), bytes.NewReader(make([]byte, 100)))
	require.Error(t, err)
}

// Should two RPs have one incarnation nevertheless, the lower id has it, wherever one looks.
func TestIncarnationOfTwo(t *testing.T) {
	w := square(t)
	for _, c := range w.cores {
		c.cfg.Verify = func(s *Signed) ([32]byte, error) { return [32]byte(nodeOf(keys[number(s.Advert.Origin)-1])), nil }
	}
	w.cores[4].cfg.Incarnation = ingress1
	w.cores[4].SetPublishes(w.now, true)
	w.run(3 * time.Second)
	for n := range 4 {
		roots := w.cores[n+1].roots
		require.Len(t, roots, 1)
		require.Contains(t, roots, min(rp(1), rp(4)))
	}
}

// A child that asks again and again is served from the cache twice at once, and then every 5 s.
func TestFloodOfGrafts(t *testing.T) {
	w := square(t)
	core := w.cores[1]
	graft := func() (served int) {
		require.NoError(t, core.Handle(w.now, rp(2), &Graft{1, []GraftRoute{{ingress1, []Mark{{groupA, 1}}}}}))
		for _, a := range core.Actions() {
			switch a := a.(type) {
			case Serve:
				served += len(a.Marks)
			}
		}
		return served
	}
	served := 0
	for range 1000 {
		served += graft()
	}
	require.Equal(t, reserve, served)
	require.Equal(t, uint64(1000-reserve), core.Stats().NotServed)
	for range 100 {
		w.run(100 * time.Millisecond)
		served += graft()
	}
	require.InDelta(t, reserve+2, served, 1)

	// Nor does it help to leave between.
	for range 1000 {
		require.NoError(t, core.Handle(w.now, rp(2), &Prune{[]ids.Incarnation{ingress1}}))
		served += graft()
	}
	require.InDelta(t, reserve+2, served, 1)
}

// A child that leaves and comes back again and again changes the datapath eight times, and then
// every 2 s, whether the tree names it or not.
func TestFloodOfFlips(t *testing.T) {
	for name, n := range map[string]int{"named": 2, "guest": 9} {
		t.Run(name, func(t *testing.T) {
			w := square(t)
			s := &stranger{w, 1, n}
			if n == 9 {
				s = w.stranger(1, n)
			}
			const seconds = 4
			for i := range seconds * 250 {
				s.says(&Graft{ID: 7, Routes: []GraftRoute{{Ingress: ingress1}}})
				s.says(&Prune{[]ids.Incarnation{ingress1}})
				if i%25 == 0 {
					s.run(TreeInterval)
				}
			}
			joins := joinBurst + joinRate*seconds + 1
			require.GreaterOrEqual(t, len(took[Route](w, 1)), 2*joinBurst-2)
			require.LessOrEqual(t, float64(len(took[Route](w, 1))), 2*joins)
			s.run(3 * time.Second)
			require.True(t, s.asks(ingress1))
		})
	}
}

// A neighbour becomes a child of all routes together 4,096 times at once, and then 50 times a
// second, however many routes there are.
func TestFloodOfJoins(t *testing.T) {
	w := square(t)
	core := w.cores[1]
	const streams = 600
	var all []ids.Incarnation
	for i := range ids.Incarnation(streams) {
		all = append(all, 0x70000000+i)
		core.route(all[i]).root = &root{slot: -1, branches: map[ID]uint64{rp(2): 1}}
	}
	joins := func() (joins int) {
		for chunk := range slices.Chunk(all, MaxRoutes) {
			m := &Graft{ID: 1}
			for _, ingress := range chunk {
				m.Routes = append(m.Routes, GraftRoute{Ingress: ingress})
			}
			require.NoError(t, core.Handle(w.now, rp(2), m))
			require.NoError(t, core.Handle(w.now, rp(2), &Prune{chunk}))
		}
		for _, a := range core.Actions() {
			if ack, ok := a.(AckGraft); ok {
				joins += len(ack.Granted)
			}
		}
		return joins
	}
	sum := 0
	for range joinBurst {
		sum += joins()
	}
	require.Equal(t, joinsBurst, sum)
	require.Equal(t, uint64(joinBurst*streams-joinsBurst), core.Stats().Refused)
	w.now = w.now.Add(4 * time.Second)
	require.Equal(t, 4*joinsRate, joins())
}

// What a neighbour sends beyond its limits has no effect, is counted, and is told once. Sixty-four
// messages of it break the protocol, unless all of the limit came back before.
func TestExcess(t *testing.T) {
	offer := &Offer{}
	request := &Request{}
	for i := range MaxVersions {
		offer.Versions = append(offer.Versions, Version{ID(i + 1), 9, 9, Hash{}})
		request.Origins = append(request.Origins, rp(3))
	}
	for name, of := range map[string]struct {
		m     Message
		fits  int // messages
		each  int // counted of one
		count func(Stats) uint64
	}{
		"offers":      {offer, offerBurst / MaxVersions, MaxVersions, func(s Stats) uint64 { return s.OffersDropped }},
		"requests":    {request, answerBurst / MaxVersions, MaxVersions, func(s Stats) uint64 { return s.RequestsDropped }},
		"digests":     {&Digest{1 << 40, make([]uint32, Buckets)}, exchangeBurst, 1, func(s Stats) uint64 { return s.DigestsDropped }},
		"sums":        {&RouteSum{77}, exchangeBurst, 1, func(s Stats) uint64 { return s.SumsDropped }},
		"old adverts": {adverts(advertOf(t, 3, 1, 0, nil)), answerBurst, 1, func(s Stats) uint64 { return s.RequestsDropped }},
	} {
		t.Run(name, func(t *testing.T) {
			w := square(t)
			core := w.cores[1]
			n := core.neighbour(rp(2))
			n.conduct = conduct{standings: n.standings}
			say := func(times int) {
				for range times {
					require.NoError(t, core.Handle(w.now, rp(2), of.m))
				}
			}
			for range 2 {
				before := of.count(core.Stats())
				say(of.fits)
				require.Equal(t, before, of.count(core.Stats()))
				say(excessMax)
				require.Equal(t, before+uint64(excessMax*of.each), of.count(core.Stats()))
				told := 0
				for _, a := range core.Actions() {
					if _, ok := a.(Excess); ok {
						told++
					}
				}
				require.Equal(t, 1, told)
				w.now = w.now.Add(10 * time.Second) // all comes back
			}
			say(of.fits + excessMax)
			require.Error(t, core.Handle(w.now, rp(2), of.m))
		})
	}
}

// A parent that says again and again that it serves nothing is asked anew once for
// each RouteSum.
func TestFloodOfServings(t *testing.T) {
	w := square(t)
	core := w.cores[4]
	before := core.Stats().Grafts
	for range 100 {
		require.NoError(t, core.Handle(w.now, rp(2), &Serving{}))
		core.Actions()
		require.NoError(t, core.Handle(w.now, rp(2), &GraftAck{ID: core.lastID, Granted: []ids.Incarnation{ingress1}}))
		core.Actions()
	}
	require.Equal(t, before+1, core.Stats().Grafts)
}
