// SPDX-License-Identifier: LGPL-3.0-or-later

package datapathtest

import (
	"testing"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// testHeartbeatRate has a parent send heartbeats as fast as it can.
func testHeartbeatRate(t *testing.T, new New) {
	w := newWorld(t, new)
	start := time.Now()
	passed := 0
	for beat := uint64(1); beat <= 200; beat++ {
		p := w.heartbeat(rp, beat, 9)
		switch v, out := w.subject.Receive(p.src, p.bytes()); {
		case v == wire.Pass && len(out) == 3:
			passed++
		case v != wire.OverRate || len(out) > 0:
			t.Fatalf("heartbeat %d: verdict %v, %d copies", beat, v, len(out))
		}
	}
	if most := 1 + int(time.Since(start)/datapath.HeartbeatGap); passed < 1 || passed > most {
		t.Errorf("%d heartbeats passed, at most %d may", passed, most)
	}
	// Another stream has a limit of its own.
	w.beats = uint64(passed)
	p := w.heartbeat(silent, 1, 9)
	compare(t, w.relayed(p, publisher, subscriber, reader), w.pass(p))
}

// honest is the newest sequence of a stream before somebody lies about it.
const honest = 1_000_000

// liar is an RP neighbour that was upstream of a stream, and says what does harm.
type liar struct {
	name string
	lie  func(w *world, evil int)
}

// lies are what an upstream can say of a stream.
var lies = []liar{
	{"a heartbeat far ahead", func(w *world, evil int) {
		w.subject.Age(time.Hour, time.Hour)
		w.say(evil, w.heartbeat(rp, 1<<40-1, 1<<31))
	}},
	{"every word of the window", func(w *world, evil int) {
		for i := range uint64(auth.WindowSize / 32) {
			w.say(evil, w.packet(rp).seq(honest+60_000+32*i))
		}
	}},
	{"the next sequences themselves", func(w *world, evil int) {
		for i := uint64(1); i <= auth.WindowSize; i += stride(i) {
			w.say(evil, w.packet(rp).seq(honest+i))
		}
	}},
	{"the newest and the oldest sequence", func(w *world, evil int) {
		w.subject.Age(time.Hour, time.Hour)
		w.say(evil, w.packet(rp).seq(1<<31))
		w.subject.Age(time.Hour, time.Hour)
		w.say(evil, w.heartbeat(rp, 1, 0))
		w.say(evil, w.packet(rp).seq(1))
	}},
}

// stride is from a sequence beyond the newest to the next that is tried: all of two words of the window, then one in each
// word, and beyond the window a few.
func stride(i uint64) uint64 {
	switch {
	case i < 64:
		return 1
	case i < auth.WindowSize:
		return 32
	}
	return 512
}

// say receives what evil says, whatever the engine makes of it.
func (w *world) say(evil int, p *packet) {
	w.from(p, evil)
	if _, out := w.subject.Receive(p.src, p.bytes()); p.header.Type == wire.Heartbeat && len(out) > 0 {
		w.beats++
	}
}

// testLies has an RP neighbour say what it likes while it is an upstream, alone or beside an
// honest parent. When it is none any more, and the parent has been heard, nothing is left.
func testLies(t *testing.T, new New) {
	peers := []int{publisher, subscriber, reader}
	for _, from := range []struct {
		name string
		from []int
	}{
		{"as the parent", []int{silent}},
		{"as the parent beside an honest one", []int{silent, rp}},
		{"beside the parent", []int{rp, silent}},
	} {
		for _, l := range lies {
			t.Run(l.name+" "+from.name, func(t *testing.T) {
				w := newWorld(t, new)
				for seq := uint64(honest - 10); seq <= honest; seq++ {
					w.pass(w.packet(rp).seq(seq))
				}
				w.routes(w.route(ingressOf(rp), from.from))
				l.lie(w, silent)
				w.routes(w.route(ingressOf(rp), []int{rp}))
				w.subject.Age(auth.RestartAfter, 0)
				w.subject.Age(0, time.Hour)

				// What the parent says goes on down the tree, where the same happens.
				p := w.heartbeat(rp, 1, honest)
				compare(t, w.relayed(p, peers...), w.pass(p))
				for i := uint64(1); i <= 3*auth.WindowSize; i += stride(i) {
					p := w.packet(rp).seq(honest + i)
					compare(t, w.relayed(p, peers...), w.pass(p))
					w.drop(p, wire.Replayed)
				}
			})
		}
	}

	t.Run("an honest change of parents", func(t *testing.T) {
		w := newWorld(t, new)
		w.routes(w.route(ingressOf(rp), []int{silent, rp}))
		var beat uint64
		for seq := uint64(1); seq <= 300; seq++ {
			first, second := rp, silent // the new parent is behind for a while, then ahead
			if seq > 150 {
				first, second = silent, rp
			}
			p := w.from(w.packet(rp).seq(seq), first)
			compare(t, w.relayed(p, peers...), w.pass(p))
			if seq%10 == 0 && seq > 20 {
				// What it says by now is long known, and its own DATA is behind.
				w.subject.Age(-time.Hour, 0)
				beat++
				w.pass(w.from(w.heartbeat(rp, beat, seq-20), silent))
				w.subject.Age(time.Hour, 0)
			}
			w.drop(w.from(w.packet(rp).seq(seq), second), wire.Replayed)
		}
	})
	t.Run("a replay gains nothing", func(t *testing.T) {
		w := newWorld(t, new)
		first := w.heartbeat(rp, 1, 900)
		w.pass(first)
		for seq := uint64(901); seq <= 1000; seq++ {
			w.pass(w.packet(rp).seq(seq))
		}
		w.pass(w.heartbeat(rp, 2, 1000))
		w.subject.Age(time.Hour, time.Hour)
		w.drop(first, wire.Replayed)
		w.routes(w.route(ingressOf(rp), []int{silent}))
		w.routes(w.route(ingressOf(rp), []int{rp}))
		w.subject.Age(time.Hour, time.Hour)
		w.drop(first, wire.Replayed)
		w.drop(w.packet(rp).seq(950), wire.Replayed)
	})
}
