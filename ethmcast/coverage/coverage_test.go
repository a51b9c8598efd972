// SPDX-License-Identifier: LGPL-3.0-or-later

package coverage

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
)

var testStream = ids.Stream{Ingress: 7, Group: 1}

type announcements map[string][]string

func collect(into announcements, list []Announcement[string, string]) {
	for _, a := range list {
		into[a.Peer] = append(into[a.Peer], a.Hashes...)
	}
}

// covered returns a Have that has delivered all before next, but for missing.
func covered(next uint64, missing ...uint64) *proto.Have {
	return &proto.Have{Covered: true, Whole: true, Marks: []proto.HaveMark{
		{Ingress: testStream.Ingress, Group: testStream.Group, First: 1, Next: next, Missing: missing},
	}}
}

// newCoverage returns one without guards among the gossip peers that a test names:
// the first two that are added are the guards.
func newCoverage(now time.Time, names ...string) *Coverage[string, string] {
	c := New[string, string](rand.New(rand.NewPCG(1, 1)))
	for _, name := range append([]string{"guard1", "guard2"}, names...) {
		c.Add(name)
		c.Have(now, name, covered(1))
	}
	c.chooseAt = now.Add(time.Hour)
	c.peers["guard1"].guard, c.peers["guard2"].guard = true, true
	return c
}

func at(seq uint64) *Ref { return &Ref{Stream: testStream, Sequence: seq} }

func TestSkipConfirmed(t *testing.T) {
	now := time.Unix(100, 0)
	c := newCoverage(now, "b")
	if !c.Skip(now, "b", "tx", at(5)) {
		t.Fatal("gossip to a covered peer was not left out")
	}
	if c.Held() != 1 {
		t.Fatal("what was left out is not held")
	}
	c.Have(now.Add(time.Second), "b", covered(6))
	if c.Held() != 0 {
		t.Error("held after the marks passed it")
	}
	if a := c.Tick(now.Add(2 * time.Second)); len(a) != 0 {
		t.Errorf("announced %v", a)
	}
}

// A place that was a lie suspends nobody for longer than until the stream starts afresh, at
// the gossip peer or here.
func TestRestart(t *testing.T) {
	const lie = 1 << 30
	for name, restart := range map[string]func(now time.Time, c *Coverage[string, string]){
		"there": func(now time.Time, c *Coverage[string, string]) { c.Have(now, "b", covered(6)) },
		"there, in changes": func(now time.Time, c *Coverage[string, string]) {
			have := covered(6)
			have.Whole = false
			c.Have(now, "b", have)
		},
		"here": func(_ time.Time, c *Coverage[string, string]) { c.Restart(testStream, 6) },
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(100, 0)
			c := newCoverage(now, "b")
			c.Have(now, "b", covered(50))
			c.Skip(now, "b", "first", at(lie))
			now = now.Add(Confirm)
			if got := c.Tick(now); len(got) != 1 || len(got[0].Hashes) != 1 {
				t.Fatalf("announced %v", got)
			}
			c.Have(now, "b", covered(60))
			if c.Skip(now, "b", "second", at(55)) {
				t.Fatal("not suspended")
			}
			restart(now, c)
			if !c.Skip(now, "b", "third", at(70)) {
				t.Fatal("suspended for good")
			}
			c.Have(now, "b", covered(71))
			if c.Held() != 0 {
				t.Error("held after the marks passed it")
			}
		})
	}

	// What is held with such a place is announced all the same, and nobody suspended.
	now := time.Unix(100, 0)
	c := newCoverage(now, "b")
	c.Skip(now, "b", "tx", at(lie))
	c.Restart(testStream, 6)
	got := make(announcements)
	collect(got, c.Tick(now.Add(Confirm)))
	if !slices.Equal(got["b"], []string{"tx"}) {
		t.Errorf("announced %v", got)
	}
	c.Have(now.Add(Confirm), "b", covered(7))
	if !c.Skip(now.Add(Confirm), "b", "next", at(7)) {
		t.Error("suspended for a lie")
	}
}

func TestUnconfirmedIsAnnounced(t *testing.T) {
	now := time.Unix(100, 0)
	c := newCoverage(now, "b")
	c.Skip(now, "b", "lost", at(5))
	c.Skip(now, "b", "arrived", at(6))
	c.Have(now.Add(time.Second), "b", covered(7, 5))
	if a := c.Tick(now.Add(Confirm - time.Millisecond)); len(a) != 0 {
		t.Errorf("announced early: %v", a)
	}
	got := make(announcements)
	collect(got, c.Tick(now.Add(Confirm+sweep)))
	if !slices.Equal(got["b"], []string{"lost"}) || len(got) != 1 {
		t.Errorf("announced %v", got)
	}
	// Suspended until its next is beyond 5, which the next Have says.
	later := now.Add(Confirm + sweep)
	if c.Skip(later, "b", "next", at(8)) {
		t.Error("left out for a gossip peer that just missed one")
	}
	c.Have(later, "b", covered(8, 5))
	if !c.Skip(later, "b", "next", at(8)) {
		t.Error("still suspended")
	}
}

func TestNotCovered(t *testing.T) {
	now := time.Unix(100, 0)
	c := newCoverage(now, "b")
	c.Add("silent")
	for name, skipped := range map[string]bool{
		"unknown": c.Skip(now, "unknown", "tx", at(5)),
		"silent":  c.Skip(now, "silent", "tx", at(5)),
		"stale":   c.Skip(now.Add(Fresh), "b", "tx", at(5)),
		"stream":  c.Skip(now, "b", "tx", &Ref{Stream: ids.Stream{Ingress: 8, Group: 1}, Sequence: 5}),
	} {
		if skipped {
			t.Errorf("%s: gossip left out", name)
		}
	}
	if c.Held() != 0 {
		t.Error("held for a peer that is gossiped to")
	}
}

func TestWithdrawalAnnouncesAll(t *testing.T) {
	now := time.Unix(100, 0)
	c := newCoverage(now, "b", "c")
	for i := range 3 {
		for _, name := range []string{"b", "c"} {
			c.Skip(now, name, fmt.Sprint(i), at(uint64(5+i)))
		}
	}
	got := make(announcements)
	collect(got, c.Have(now, "b", &proto.Have{}))
	if !slices.Equal(got["b"], []string{"0", "1", "2"}) || len(got) != 1 {
		t.Errorf("announced %v", got)
	}
	if c.Skip(now, "b", "3", at(9)) {
		t.Error("left out for a gossip peer that withdrew")
	}
}

func TestPublishing(t *testing.T) {
	now := time.Unix(100, 0)
	c := newCoverage(now, "b")
	ref := c.Publish("tx", testStream)
	c.Skip(now, "b", "tx", ref)
	c.Have(now, "b", covered(100)) // says nothing about a sequence not known yet
	if c.Held() != 1 {
		t.Fatal("released before it has a sequence")
	}
	c.Numbered("tx", testStream, 42)
	c.Have(now, "b", covered(100))
	if c.Held() != 0 {
		t.Error("not released")
	}

	ref = c.Publish("failed", testStream)
	c.Skip(now, "b", "failed", ref)
	got := make(announcements)
	collect(got, c.Abandon("failed"))
	if !slices.Equal(got["b"], []string{"failed"}) {
		t.Errorf("announced %v", got)
	}
	if c.Skip(now, "b", "failed", ref) {
		t.Error("left out after publishing failed")
	}
}

func TestGuardsGetEverything(t *testing.T) {
	now := time.Unix(100, 0)
	c := newCoverage(now, "b")
	for _, name := range []string{"guard1", "guard2", "b"} {
		c.Skip(now, name, "tx", at(5))
		c.Have(now, name, covered(6))
	}
	got := make(announcements)
	for d := time.Duration(0); d < GuardDelay+2*GuardSweep; d += sweep {
		for _, name := range []string{"guard1", "guard2", "b"} {
			c.Have(now.Add(d), name, covered(6))
		}
		collect(got, c.Tick(now.Add(d)))
		if d < GuardDelay && len(got) != 0 {
			t.Fatalf("announced %v after %v", got, d)
		}
	}
	if len(got["guard1"]) != 1 || len(got["guard2"]) != 1 || len(got["b"]) != 0 {
		t.Errorf("announced %v", got)
	}
	c.chooseGuards(now)
	guards := 0
	for _, n := range c.peers {
		if n.guard {
			guards++
		}
	}
	if guards != Guards {
		t.Errorf("%d guards", guards)
	}
}

// Whatever happens, a transaction that was left out for a gossip peer is later
// confirmed by its marks, announced to it, or its connection ended.
func TestNothingIsForgotten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(100, 0)
		c := New[string, string](rand.New(rand.NewPCG(1, 1)))
		names := []string{"a", "b", "c", "d"}
		skipped := make(map[string]map[string]*Ref)
		announced := make(announcements)
		confirmed := make(map[string]map[string]bool) // by marks, at any time while skipped
		next := uint64(1)
		for _, name := range names {
			c.Add(name)
			skipped[name] = make(map[string]*Ref)
			confirmed[name] = make(map[string]bool)
			c.Have(now, name, covered(1))
		}
		var publishing []string
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 600).Draw(t, "ms")) * time.Millisecond)
			collect(announced, c.Tick(now))
			name := rapid.SampledFrom(names).Draw(t, "peer")
			switch rapid.IntRange(0, 4).Draw(t, "event") {
			case 0, 1:
				hash := fmt.Sprint(next)
				ref := at(next)
				if rapid.Bool().Draw(t, "publishing") {
					ref = c.Publish(hash, testStream)
					publishing = append(publishing, hash)
				}
				for _, n := range names {
					if c.Skip(now, n, hash, ref) {
						skipped[n][hash] = ref
					}
				}
				next++
			case 2:
				mark := rapid.Uint64Range(1, next).Draw(t, "mark")
				collect(announced, c.Have(now, name, covered(mark)))
				for hash, ref := range skipped[name] {
					if ref.Sequence != 0 && ref.Sequence < mark {
						confirmed[name][hash] = true
					}
				}
			case 3:
				collect(announced, c.Have(now, name, &proto.Have{}))
			case 4:
				for _, hash := range publishing {
					if rapid.Bool().Draw(t, "acknowledged") {
						c.Numbered(hash, testStream, next)
						next++
					} else {
						collect(announced, c.Abandon(hash))
					}
				}
				publishing = nil
			}
		}
		for range 40 {
			now = now.Add(sweep)
			collect(announced, c.Tick(now))
		}
		for name, txs := range skipped {
			for hash := range txs {
				if !slices.Contains(announced[name], hash) && !confirmed[name][hash] {
					t.Fatalf("%s never got %s", name, hash)
				}
			}
		}
		if c.Held() != 0 {
			t.Fatalf("%d still held long after the last event", c.Held())
		}
	})
}

func TestMarks(t *testing.T) {
	now := time.Unix(100, 0)
	var m Marks
	m.Start(testStream, 10)
	expect := func(first, next uint64, missing ...uint64) {
		t.Helper()
		have, _ := m.Have(0)
		if len(have) != 1 || have[0].First != first || have[0].Next != next || !slices.Equal(have[0].Missing, missing) {
			t.Errorf("marks %+v, want %d to %d without %v", have, first, next, missing)
		}
	}
	expect(11, 11)
	m.Delivered(now, testStream, 9) // before the start
	expect(11, 11)
	m.Delivered(now, testStream, 11)
	expect(11, 12)
	m.Delivered(now, testStream, 15)
	expect(11, 16, 12, 13, 14)
	m.Delivered(now, testStream, 13)
	m.Delivered(now, testStream, 13)
	expect(11, 16, 12, 14)
	m.Expire(now.Add(MissingFor - 1))
	expect(11, 16, 12, 14)
	m.Expire(now.Add(MissingFor))
	expect(15, 16)
	if c := m.Counters()[0]; c.Lost != 2 {
		t.Errorf("counters %+v", c)
	}
	m.Delivered(now, testStream, 1000) // too far to list what is missing
	expect(1000, 1001)
	m.Retire(testStream.Ingress)
	if have, _ := m.Have(0); len(have) != 0 {
		t.Error("marks of a retired RP")
	}
	m.Delivered(now, testStream, 5) // begins by itself
	expect(5, 6)
}

// Have never claims what was not delivered, and its messages keep the limits.
func TestMarksProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(100, 0)
		var m Marks
		start := rapid.Uint64Range(0, 100).Draw(t, "start")
		m.Start(testStream, start)
		delivered := make(map[uint64]bool)
		top := start
		for range rapid.IntRange(0, 300).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 1000).Draw(t, "ms")) * time.Millisecond)
			seq := max(top, 50) - 50 + rapid.Uint64Range(1, 150).Draw(t, "seq")
			m.Delivered(now, testStream, seq)
			m.Expire(now)
			delivered[seq] = true
			top = max(top, seq)
		}
		marks, whole := m.Have(0)
		have := &proto.Have{Covered: true, Whole: whole, Marks: marks}
		b, err := proto.Encode(have)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := proto.Decode(proto.HaveMsg, b); err != nil {
			t.Fatalf("own message breaks a limit: %v", err)
		}
		for seq := uint64(0); seq < top+10; seq++ {
			if have.Marks[0].Covers(seq) && !delivered[seq] {
				t.Fatalf("claims %d, which was not delivered: %+v", seq, have.Marks[0])
			}
		}
	})
}

// A gossip peer that is told what changed knows as much as one that is told all.
func TestMarksChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(100, 0)
		var m Marks
		c := New[string, string](rand.New(rand.NewPCG(1, 1)))
		c.Add("b")
		told := uint64(0)
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			s := ids.Stream{Ingress: ids.Incarnation(rapid.Uint32Range(1, 4).Draw(t, "ingress")), Group: 1}
			switch rapid.IntRange(0, 9).Draw(t, "event") {
			case 0:
				m.Retire(s.Ingress)
			case 1:
				m.Reset()
			case 2:
				now = now.Add(MissingFor)
				m.Expire(now)
			default:
				m.Delivered(now, s, rapid.Uint64Range(1, 20).Draw(t, "sequence"))
			}
			if rapid.Bool().Draw(t, "quiet") {
				continue
			}
			marks, whole := m.Have(told)
			c.Have(now, "b", &proto.Have{Covered: true, Whole: whole, Marks: marks})
			told = m.Version()

			all, _ := m.Have(0)
			known := c.peers["b"].marks
			if len(known) != len(all) {
				t.Fatalf("knows %v, want %v", known, all)
			}
			for _, mark := range all {
				if got := known[mark.Stream()]; !reflect.DeepEqual(got, mark) {
					t.Fatalf("knows %+v, want %+v", got, mark)
				}
			}
		}
	})
}

func TestMarksOfTooManyStreams(t *testing.T) {
	now := time.Unix(100, 0)
	c := newCoverage(now, "b")
	have := covered(6)
	have.Whole = false
	for i := range ids.Incarnation(2 * proto.MaxMarks) {
		have.Marks[0].Ingress = 1000 + i
		c.Have(now, "b", have)
	}
	if n := len(c.peers["b"].marks); n != proto.MaxMarks {
		t.Errorf("%d marks kept", n)
	}
}

// Whatever is missing, a HAVE fits a message, and says of nothing missing that it was
// delivered.
func TestMarksFitAMessage(t *testing.T) {
	now := time.Unix(100, 0)
	const first = 1 << 62 // as long as a sequence gets
	var m Marks
	for i := range ids.Incarnation(2 * proto.MaxMarks) {
		s := ids.Stream{Ingress: 1<<31 + i, Group: 1 << 31}
		m.Start(s, first)
		for lost := range uint64(proto.MaxMissing) {
			m.Delivered(now, s, first+2+2*lost)
		}
	}
	marks, whole := m.Have(0)
	b, err := proto.Encode(&proto.Have{Covered: true, Whole: whole, Marks: marks})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := proto.Decode(proto.HaveMsg, b); err != nil {
		t.Fatalf("%d bytes: %v", len(b), err)
	}
	if len(marks) != proto.MaxMarks || len(m.Counters()) != proto.MaxMarks {
		t.Errorf("%d marks", len(marks))
	}
	told := 0
	for _, mark := range marks {
		told += len(mark.Missing)
		for lost := range uint64(proto.MaxMissing) {
			if mark.Covers(first + 1 + 2*lost) {
				t.Fatalf("covers what is missing: %+v", mark)
			}
		}
		if newest := uint64(first + 2*proto.MaxMissing); !mark.Covers(newest) {
			t.Fatalf("does not cover what was delivered last: %+v", mark)
		}
	}
	if told != maxMissing {
		t.Errorf("told of %d missing, there is room for %d", told, maxMissing)
	}
}
