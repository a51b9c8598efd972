// SPDX-License-Identifier: LGPL-3.0-or-later

package receipt

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/proto"
)

var start = time.Unix(100, 0)

func place(sequence uint64) proto.Place { return proto.Place{Ingress: 1, Group: 2, Sequence: sequence} }

func expect(t *testing.T, what string, got, want any) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestConfirms(t *testing.T) {
	c := NewConfirms(rand.New(rand.NewPCG(1, 2)))
	c.Asked(start, 7, place(1), true)
	due := c.Deadline()
	if wait := due.Sub(start); wait < proto.MinConfirm || wait >= proto.MaxConfirm {
		t.Errorf("confirmed after %v", wait)
	}
	c.Asked(start, 8, place(2), false)
	c.Asked(start, 7, place(1), true) // came twice
	c.Asked(start, 8, place(3), false)
	c.Asked(start, 9, place(4), false)
	c.Delivered(start, 8)
	c.Delivered(start, 8)
	expect(t, "too early", len(c.Tick(due.Add(-1))), 0)
	if got := c.Tick(due); !slices.Equal(got, []proto.Place{place(1), place(2), place(3)}) {
		t.Errorf("confirmed %v", got)
	}
	expect(t, "deadline", c.Deadline().IsZero(), true)
	expect(t, "again", len(c.Tick(due.Add(time.Hour))), 0)
	c.Delivered(start.Add(MaxWait), 9)
	expect(t, "what nobody waits for any more", c.Deadline().IsZero(), true)
}

func TestConfirmsAreBounded(t *testing.T) {
	c := NewConfirms(rand.New(rand.NewPCG(1, 2)))
	for i := range uint64(2 * MaxWaiting) {
		c.Asked(start, i, place(i), true)
		c.Asked(start, 5, place(1000+i), false)
	}
	expect(t, "ready", len(c.ready), proto.MaxPlaces)
	expect(t, "waiting", len(c.waiting), MaxWaiting)
	c.Tick(start.Add(proto.MaxConfirm))
	c.Delivered(start, 5)
	expect(t, "ready", len(c.ready), proto.MaxPlaces)
	expect(t, "waiting", len(c.waiting), 0)
}

func hash(i int) [32]byte { return [32]byte{7: byte(i), 6: byte(i >> 8), 31: 9} }

func said(i int, sequence, members uint64, sent, confirmed uint32) proto.ObjectReceipt {
	return proto.ObjectReceipt{Place: place(sequence), ObjectID: uint64(i), Members: members, Sent: sent, Confirmed: confirmed}
}

func TestBook(t *testing.T) {
	b := NewBook(0)
	expect(t, "request", b.Request(hash(1)), true)
	expect(t, "second request", b.Request(hash(1)), true)
	expect(t, "requests", len(b.wanted), 1)
	expect(t, "wanted", b.Wanted(hash(1)), true)
	b.Asked(start, hash(1))
	b.Asked(start, hash(2))
	b.Asked(start, hash(4))
	b.Cancelled(hash(4))
	expect(t, "wanted", b.Wanted(hash(1)), false)
	expect(t, "too late", b.Request(hash(1)), false)

	take := func(o proto.ObjectReceipt) bool {
		t.Helper()
		r, majority := b.Take(start.Add(time.Second), o)
		if majority && (r.Hash != hash(int(o.ObjectID)) || !r.Majority || r.Confirmed != o.Confirmed) {
			t.Errorf("majority %+v", r)
		}
		return majority
	}
	expect(t, "half", take(said(1, 5, 4, 4, 2)), false)
	expect(t, "more than half", take(said(1, 5, 4, 4, 3)), true)
	expect(t, "all, told before", take(said(1, 5, 4, 4, 4)), false)
	expect(t, "of what was not asked about", take(said(3, 6, 1, 1, 1)), false)
	expect(t, "of few members of many", take(said(2, 7, 9, 3, 3)), false)
	expect(t, "of fewer members than it was sent to", take(said(2, 7, 3, 8, 4)), false)
	expect(t, "another datagram of the object, with less", take(said(2, 8, 1, 1, 1)), false)
	expect(t, "another datagram of the object, with more", take(said(2, 8, 8, 8, 5)), true)

	b.Cancelled(hash(1)) // an RP has it
	got := b.Receipts()
	if len(got) != 2 || got[0].Hash != hash(2) || got[0].Place != place(8) || got[0].Confirmed != 5 || !got[0].Majority ||
		got[1].Asked != start || got[1].At != start.Add(time.Second) || got[1].Members != 4 || got[1].Sent != 4 {
		t.Errorf("receipts %+v", got)
	}
}

func TestSurplus(t *testing.T) {
	for _, c := range []struct {
		surplus, members uint64
		confirmed        uint32
		want             bool
	}{
		{0, 0, 0, false}, {0, 0, 1, true}, {0, 1, 1, true}, {0, 4, 2, false}, {0, 5, 2, false}, {0, 5, 3, true},
		{1, 5, 3, false}, {1, 5, 4, true}, {2, 5, 5, true}, {3, 5, 5, false}, {math.MaxUint64, 5, 5, false},
		{0, math.MaxUint64, math.MaxUint32, false},
	} {
		b := NewBook(c.surplus)
		b.Asked(start, hash(1))
		_, majority := b.Take(start, said(1, 1, c.members, c.confirmed, c.confirmed))
		if majority != c.want {
			t.Errorf("%d of %d members, surplus %d: %v", c.confirmed, c.members, c.surplus, majority)
		}
	}
}

func TestBookIsBounded(t *testing.T) {
	b := NewBook(0)
	for i := range 2 * MaxReceipts {
		b.Request(hash(1000 + i))
		b.Asked(start, hash(i))
	}
	expect(t, "requests", len(b.wanted), MaxRequests)
	expect(t, "newest request", b.Wanted(hash(1000+2*MaxReceipts-1)), true)
	all := b.Receipts()
	expect(t, "receipts", len(all), MaxReceipts)
	expect(t, "newest", all[0].Hash, hash(2*MaxReceipts-1))
	expect(t, "oldest", all[len(all)-1].Hash, hash(MaxReceipts))
}
