// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/codec"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// Operations of FuzzNeighbour besides messages, which have the number of their code.
const (
	opHello  = 0x10 + iota // 16 bytes
	opWait                 // a byte: units of 100 ms
	opUp                   // the link of 4
	opDown                 // likewise
	opAway                 // likewise
	opRefuse               // 4 bytes: an ingress RP, to 4
	opHeard
	ops
)

// witness is RP 1 with the neighbours 2 and 3, which do their part, and 4, which does
// what a fuzzer wants. 1 and 2 publish; 2 and 3 are children of 1, and 2 is its parent.
//
//	2 --- 1 --- 3
//	      |
//	      4
type witness struct {
	t       *testing.T
	now     time.Time
	core    *Core
	honest  map[[65]byte]bool // signatures of adverts that are not of 4
	budget  int
	patient time.Duration // for which it still waits: an input is not to cost more than some others
}

func newWitness(t *testing.T) *witness {
	w := &witness{t: t, now: t0, honest: make(map[[65]byte]bool), budget: 3, patient: 2 * time.Minute}
	cfg := config(1, 1)
	cfg.Budget, cfg.Rand = w.budget, rand.New(rand.NewPCG(1, 1))
	cfg.Allowed = func(node [32]byte) bool { return number(IDOf(node)) >= 1 && number(IDOf(node)) <= 4 }
	cfg.Verify = func(s *Signed) (node [32]byte, err error) {
		n := number(s.Advert.Origin)
		if n == 0 || n != 4 && !w.honest[s.Signature] || !Belongs(s.Advert.Origin, s.Advert.Incarnation) {
			return node, errors.New("not signed by its origin")
		}
		return [32]byte(nodeOf(keys[n-1])), nil
	}
	cfg.Sign = func(a Advert) (*Signed, error) {
		s := &Signed{Advert: a}
		binary.BigEndian.PutUint64(s.Signature[:], a.Sequence)
		w.honest[s.Signature] = true
		return s, nil
	}
	w.core = New(w.now, cfg)
	w.core.SetPublishes(w.now, true)
	for n := 2; n <= 4; n++ {
		w.core.LinkUp(w.now, rp(n))
	}
	w.wait(time.Second)
	for n := 2; n <= 3; n++ {
		s := &Signed{Advert: Advert{
			Origin: rp(n), Incarnation: incarnation(n, 1), Epoch: 1, Sequence: 1, Publishes: n == 2, Budget: 8,
			Links: []Link{{Neighbour: rp(1), Cost: 20}},
		}}
		s.Signature[64] = byte(n)
		w.honest[s.Signature] = true
		w.handle(n, adverts(s))
	}
	w.wait(6 * time.Second)
	for n := 2; n <= 3; n++ {
		w.handle(n, &Graft{ID: 1, Routes: []GraftRoute{{Ingress: ingress1}}})
	}
	w.wait(time.Second)
	if r := w.core.routes[incarnation(2, 1)]; r == nil || r.parent != rp(2) {
		t.Fatalf("no parent in the tree of 2: %+v", r)
	}
	return w
}

func (w *witness) handle(n int, m Message) {
	if err := w.core.Handle(w.now, rp(n), m); err != nil {
		w.t.Fatal(err)
	}
	w.check()
}

// wait lets time pass, in which 2 and 3 are heard, and 4 until it is down.
func (w *witness) wait(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(TreeInterval)
		for n := 2; n <= 3; n++ {
			w.core.HeardHello(w.now, rp(n), Hello{Stamp: 1, Echo: w.core.micros(w.now) - 2000, Echoes: true, Interval: 100, Tree: true, Up: true})
		}
		if w.core.stats.Published < 2 {
			w.core.HeardHello(w.now, rp(4), Hello{Stamp: 1, Echo: w.core.micros(w.now) - 2000, Echoes: true, Interval: 1000, Up: true})
		}
		if !w.now.Before(w.core.Deadline()) {
			w.core.Tick(w.now)
		}
		w.check()
	}
}

// check fails unless what holds whatever 4 does holds.
func (w *witness) check() {
	c, t := w.core, w.t
	sentTo4 := 0
	for _, a := range c.Actions() {
		switch a := a.(type) {
		case Send:
			b, err := Encode(a.Message)
			if err == nil {
				_, err = Decode(a.Message.Code(), b)
			}
			if err != nil {
				t.Fatalf("sends what cannot be decoded: %+v: %v", a.Message, err)
			}
			if g, ok := a.Message.(*Graft); ok && a.To != rp(4) {
				w.acknowledge(a.To, g)
			}
			if a.To == rp(4) {
				sentTo4++
			}
		case AckGraft:
			for _, ingress := range a.Granted {
				if r := c.routes[ingress]; r == nil || r.children[a.To] == nil || r.told == nil {
					t.Fatalf("grants %08x, of which there is no route", ingress)
				}
			}
			if b, err := Encode(a.Message()); err != nil {
				t.Fatal(err)
			} else if _, err := Decode(GraftAckMsg, b); err != nil {
				t.Fatal(err)
			}
		}
	}
	if sentTo4 > 2000 {
		t.Fatalf("%d messages to 4 at once", sentTo4)
	}
	if len(c.routes) > 2+2+1 {
		t.Fatalf("%d routes of 3 RPs that publish", len(c.routes))
	}
	for _, r := range c.order {
		if r.ingress == 0 {
			t.Fatal("route of ingress 0")
		}
		guests := 0
		for id, ch := range r.children {
			if !c.alive(id) {
				t.Fatalf("child %016x is not up", id)
			}
			if !ch.guest.IsZero() {
				guests++
				if ch.until.Sub(w.now) > Grace {
					t.Fatalf("guest for %v", ch.until.Sub(w.now))
				}
			}
		}
		if guests > 0 && len(r.children) > w.budget {
			t.Fatalf("%d children of %08x, %d of them guests, budget %d", len(r.children), r.ingress, guests, w.budget)
		}
		for _, id := range append([]ID{r.parent}, export(r)...) {
			if id == rp(4) && r.ingress != incarnation(4, 1) && c.claims(r.ingress) != rp(4) && r.origin != rp(4) {
				t.Fatalf("4 is an upstream of %08x", r.ingress)
			}
		}
	}
	if w.core.stats.Published >= 2 && c.routes[ingress1] != nil && c.routes[incarnation(2, 1)] != nil && w.settled() {
		own, two := c.routes[ingress1], c.routes[incarnation(2, 1)]
		for n := 2; n <= 3; n++ {
			if own.children[rp(n)] == nil {
				t.Fatalf("%d is no child any more", n)
			}
		}
		if two.parent != rp(2) {
			t.Fatalf("parent of the stream of 2 is %016x", two.parent)
		}
	}
	for _, n := range c.neighbours {
		if len(n.waiting) > waitingMax || len(n.offers) > MaxOrigins || len(n.standings) > len(c.routes)+64 ||
			len(n.graft)+len(n.prune)+len(n.adverts)+len(n.requests) > 0 {
			t.Fatalf("%016x: %d waiting, %d offers, %d standings", n.id, len(n.waiting), len(n.offers), len(n.standings))
		}
	}
	if len(c.entries) > 4 {
		t.Fatalf("%d adverts of 4 RPs", len(c.entries))
	}
}

func export(r *route) (ids []ID) {
	for _, p := range r.old {
		ids = append(ids, p.id)
	}
	return ids
}

// settled reports whether 2 and 3 asked for what they get.
func (w *witness) settled() bool { return w.now.Sub(t0) > 8*time.Second }

// acknowledge answers a Graft as an RP does.
func (w *witness) acknowledge(to ID, g *Graft) {
	ack := &GraftAck{ID: g.ID}
	for _, r := range g.Routes {
		ack.Granted = append(ack.Granted, r.Ingress)
	}
	if err := w.core.Handle(w.now, to, ack); err != nil {
		w.t.Fatal(err)
	}
}

// step does one operation, and returns what is left of the input.
func (w *witness) step(in []byte) []byte {
	op := in[0] % ops
	in = in[1:]
	size := 0
	switch {
	case op < 0x10 && len(in) >= 2:
		size = int(binary.BigEndian.Uint16(in)) % 2048
		in = in[2:]
	case op == opHello:
		size = HelloSize
	case op == opWait:
		size = 1
	case op == opRefuse:
		size = 4
	}
	if size > len(in) {
		return nil
	}
	b := in[:size]
	switch op {
	case opHello:
		if h, err := ParseHello(b); err == nil {
			w.core.HeardHello(w.now, rp(4), h)
		}
	case opWait:
		d := min(time.Duration(b[0])*TreeInterval, w.patient)
		w.patient -= d
		w.wait(d)
	case opUp:
		w.core.LinkUp(w.now, rp(4))
	case opDown:
		w.core.LinkDown(w.now, rp(4))
	case opAway:
		w.core.LinkAway(w.now, rp(4), w.now.Add(15*time.Second))
	case opRefuse:
		w.core.Refuse(w.now, rp(4), ids.Incarnation(binary.BigEndian.Uint32(b)))
	case opHeard:
		w.core.Heard(w.now, rp(4))
	default:
		m, err := Decode(uint64(op), b)
		if err != nil {
			if _, ok := errors.AsType[*codec.Error](err); !ok {
				w.t.Fatalf("error of type %T: %v", err, err)
			}
			break
		}
		if err := w.core.Handle(w.now, rp(4), m); err != nil {
			if _, ok := errors.AsType[*proto.Error](err); !ok {
				w.t.Fatalf("error of type %T: %v", err, err)
			}
			w.core.LinkDown(w.now, rp(4)) // as the shell does
			w.check()
			w.core.LinkUp(w.now, rp(4))
		}
	}
	w.check()
	return in[size:]
}

// FuzzNeighbour: whatever one neighbour does, the routes of the others are as they were, what
// it has is bounded, and no route is granted that there is not.
func FuzzNeighbour(f *testing.F) {
	message := func(m Message) []byte {
		b, err := Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		return append(binary.BigEndian.AppendUint16([]byte{byte(m.Code())}, uint16(len(b))), b...)
	}
	up := append([]byte{opHello}, (&Hello{Stamp: 1, Interval: 100, Up: true, Tree: true}).Append(nil)...)
	wait := func(n byte) []byte { return []byte{opWait, n} }
	join := func(parts ...[]byte) (all []byte) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	own := func(sequence uint64, life int, publishes bool) []byte {
		return message(adverts(advertOf(f, 4, 1, sequence, func(a *Advert) {
			a.Incarnation, a.Publishes, a.Budget, a.Links = incarnation(4, life), publishes, 8, []Link{{rp(1), 1, true}}
		})))
	}
	for _, m := range messages(f) {
		f.Add(join(message(m), up, wait(10), message(m)))
	}
	two := incarnation(2, 1)
	both := &Graft{9, []GraftRoute{{min(ingress1, two), []Mark{{groupA, 1}}}, {max(ingress1, two), nil}}}
	f.Add(join(message(both), wait(255), message(both), message(&Prune{[]ids.Incarnation{two}}), message(both)))
	f.Add(join(own(1, 1, true), wait(100), up, message(&Graft{1, []GraftRoute{{incarnation(4, 1), nil}}}), own(2, 2, true), wait(5), own(3, 3, true), wait(255), wait(255)))
	f.Add(join(own(1, 1, false), wait(255), message(&GraftAck{1, []ids.Incarnation{two}, nil}), message(&Serving{[]ids.Incarnation{two}}), message(&RouteSum{7}), wait(200)))
	f.Add(join([]byte{opAway}, wait(200), []byte{opUp}, up, wait(50), []byte{opDown}, wait(10), []byte{opUp}, up, up, up))
	f.Add(join(message(both), join([]byte{opRefuse}, binary.BigEndian.AppendUint32(nil, uint32(two))), wait(1)))
	f.Add(join(message(&Offer{[]Version{{rp(1), 1 << 60, 1, Hash{}}}}), message(&Summary{[]Version{{rp(3), 9, 9, Hash{}}}}), wait(100)))
	f.Fuzz(func(t *testing.T, in []byte) {
		w := newWitness(t)
		for steps := 0; len(in) > 0 && steps < 64; steps++ {
			in = w.step(in)
		}
		w.wait(time.Second)
	})
}
