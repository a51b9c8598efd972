// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/codec"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/mesh/tree"
)

func messages(t require.TestingT) []Message {
	advert := advertOf(t, 1, 5, 6, func(a *Advert) {
		a.Publishes, a.Budget, a.Operator = true, 16, "example"
		a.Links = []Link{{2, 100, true}, {3, 200, false}}
		a.Groups = []Members{{1, 5}, {2, 6}}
	})
	versions := []Version{{1, 2, 3, Hash{}}, {4, 5, 6, Hash{7}}}
	return []Message{
		&Digest{1 << 40, make([]uint32, Buckets)},
		&Summary{versions},
		&Request{[]ID{1, 2}},
		&Adverts{Ack: true, Adverts: []Aged{{7, advert}}},
		&Offer{versions},
		&Acked{Hash{1, 2}},
		&Graft{1, []GraftRoute{{2, []Mark{{3, 4}}}}},
		&Prune{[]ids.Incarnation{2, 3}},
		&GraftAck{1, []ids.Incarnation{2}, []ids.Incarnation{3}},
		&RouteSum{1},
		&Serving{[]ids.Incarnation{2, 3}},
	}
}

func TestMessagesRoundTrip(t *testing.T) {
	for _, m := range messages(t) {
		b, err := Encode(m)
		require.NoError(t, err)
		got, err := Decode(m.Code(), b)
		require.NoError(t, err)
		require.Equal(t, m, got)
	}
}

// The largest messages that are sent fit the limit.
func TestLargestMessagesFit(t *testing.T) {
	full := advertOf(t, 1, 1<<40, 1<<20, func(a *Advert) {
		a.Operator = string(make([]byte, MaxOperator))
		for i := range MaxLinks {
			a.Links = append(a.Links, Link{1<<63 + ID(i), tree.MaxCost, true})
		}
		for i := range MaxGroups {
			a.Groups = append(a.Groups, Members{1<<31 + ids.Group(i), 1 << 20})
		}
	})
	var routes []GraftRoute
	var versions []Version
	var ingress []ids.Incarnation
	var marks []Mark
	for i := range ids.Group(MaxGroups) {
		marks = append(marks, Mark{1<<31 + i, 1 << 40})
	}
	for i := range MaxServing {
		ingress = append(ingress, 1<<31+ids.Incarnation(i))
		routes = append(routes, GraftRoute{ingress[i], marks})
		versions = append(versions, Version{1<<63 + ID(i), 1 << 63, 1 << 63, Hash{1}})
	}
	for _, m := range []Message{
		adverts(slices.Repeat([]*Signed{full}, sendAdverts)...),
		&Graft{1 << 31, routes[:sendRoutes]},
		&GraftAck{1 << 31, ingress[:MaxRoutes], ingress[:MaxRoutes]},
		&Summary{versions[:MaxVersions]},
		&Prune{ingress[:MaxRPs]},
		&Serving{ingress},
	} {
		b, err := Encode(m)
		require.NoError(t, err)
		_, err = Decode(m.Code(), b)
		require.NoError(t, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	bad := func(edit func(*Advert)) *Adverts { return adverts(advertOf(t, 1, 1, 1, edit)) }
	links := func(links ...Link) func(*Advert) { return func(a *Advert) { a.Links = links } }
	for name, m := range map[string]Message{
		"short digest":        &Digest{1 << 40, make([]uint32, Buckets-1)},
		"long summary":        &Summary{make([]Version, MaxVersions+1)},
		"long request":        &Request{make([]ID, MaxRPs+1)},
		"long offer":          &Offer{make([]Version, MaxVersions+1)},
		"long prune":          &Prune{make([]ids.Incarnation, MaxRPs+1)},
		"long serving":        &Serving{make([]ids.Incarnation, MaxServing+1)},
		"long graft":          &Graft{1, make([]GraftRoute, MaxRoutes+1)},
		"marks of one group":  &Graft{1, []GraftRoute{{1, []Mark{{7, 1}, {8, 1}, {7, 2}}}}},
		"many marks":          &Graft{1, []GraftRoute{{1, make([]Mark, MaxGroups+1)}}},
		"many adverts":        adverts(slices.Repeat([]*Signed{advertOf(t, 1, 1, 1, nil)}, MaxAdverts+1)...),
		"summary twice":       &Summary{[]Version{{5, 1, 1, Hash{}}, {5, 1, 1, Hash{1}}}},
		"offer out of order":  &Offer{[]Version{{5, 1, 1, Hash{}}, {4, 1, 2, Hash{}}}},
		"request twice":       &Request{[]ID{5, 5}},
		"graft of 0":          &Graft{1, []GraftRoute{{0, nil}}},
		"graft twice":         &Graft{1, []GraftRoute{{7, nil}, {7, nil}}},
		"graft out of order":  &Graft{1, []GraftRoute{{7, nil}, {6, nil}}},
		"prune of 0":          &Prune{[]ids.Incarnation{0, 1}},
		"prune twice":         &Prune{[]ids.Incarnation{1, 1}},
		"serving of 0":        &Serving{[]ids.Incarnation{0}},
		"serving unordered":   &Serving{[]ids.Incarnation{2, 1}},
		"granted 0":           &GraftAck{1, []ids.Incarnation{0}, nil},
		"refused twice":       &GraftAck{1, nil, []ids.Incarnation{3, 3}},
		"many granted":        &GraftAck{1, make([]ids.Incarnation, MaxRoutes+1), nil},
		"no incarnation":      bad(func(a *Advert) { a.Incarnation = 0 }),
		"many links":          bad(links(make([]Link, MaxLinks+1)...)),
		"many groups":         bad(func(a *Advert) { a.Groups = make([]Members, MaxGroups+1) }),
		"long operator":       bad(func(a *Advert) { a.Operator = string(make([]byte, MaxOperator+1)) }),
		"links out of order":  bad(links(Link{3, 1, false}, Link{2, 1, false})),
		"link twice":          bad(links(Link{3, 1, false}, Link{3, 1, false})),
		"link for nothing":    bad(links(Link{3, 0, false})),
		"too dear link":       bad(links(Link{3, tree.MaxCost + 1, false})),
		"link to itself":      bad(links(Link{rp(1), 1, false})),
		"groups out of order": bad(func(a *Advert) { a.Groups = []Members{{2, 1}, {1, 1}} }),
	} {
		b, err := Encode(m)
		require.NoError(t, err)
		_, err = Decode(m.Code(), b)
		e, ok := errors.AsType[*codec.Error](err)
		require.True(t, ok && e.Code == m.Code() && e.Element != "" && e.Want != "", "%s: %v", name, err)
		require.Equal(t, proto.ReasonMalformed, proto.ReasonOf(err), name)
	}
	for code, payload := range map[uint64][]byte{0x00: {0xc0}, 0x0f: {0xc0}, OfferMsg: make([]byte, MaxMessage+1), AckedMsg: {0xc1, 1}, GraftAckMsg: {0xc1, 1, 0}} {
		_, err := Decode(code, payload)
		require.Error(t, err)
	}
}

// FuzzDecode: what decodes is within its limits and encodes to the same bytes.
func FuzzDecode(f *testing.F) {
	for _, m := range messages(f) {
		b, err := Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.Code(), b)
	}
	f.Fuzz(func(t *testing.T, code uint64, payload []byte) {
		m, err := Decode(code, payload)
		if err != nil {
			if _, ok := errors.AsType[*codec.Error](err); !ok {
				t.Fatalf("error of type %T: %v", err, err)
			}
			return
		}
		if err := m.check(); err != nil || m.Code() != code {
			t.Fatalf("decoded %#v of code %#x: %v", m, code, err)
		}
		b, err := Encode(m)
		if err != nil || !bytes.Equal(b, payload) {
			t.Fatalf("%x became %x: %v", payload, b, err)
		}
	})
}

func TestHelloRoundTrip(t *testing.T) {
	for _, h := range []Hello{
		{Stamp: 1, Echo: 2, Hold: 3, Interval: 100},
		{Stamp: 1 << 31, Interval: 1000, Tree: true, Poll: true, Up: true, Echoes: true},
		{Interval: 500, Poll: true, Echoes: true},
	} {
		b := h.Append(nil)
		require.Len(t, b, HelloSize)
		got, err := ParseHello(b)
		require.NoError(t, err)
		require.Equal(t, h, got)
	}
}

// FuzzParseHello: what parses appends to the same bytes.
func FuzzParseHello(f *testing.F) {
	good := (&Hello{Stamp: 1, Echo: 2, Hold: 3, Interval: 100, Up: true}).Append(nil)
	f.Add(good)
	f.Add(good[1:])
	f.Add((&Hello{Interval: 99}).Append(nil))
	f.Add((&Hello{Interval: 1001}).Append(nil))
	f.Add(append(good[:HelloSize-2:HelloSize-2], 16, 0))
	f.Add(append(good[:HelloSize-1:HelloSize-1], 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHello(b)
		if err == nil && !bytes.Equal(h.Append(nil), b) {
			t.Fatalf("%x became %+v", b, h)
		}
		if err == nil && (h.interval() < TreeInterval || h.interval() > Interval) {
			t.Fatalf("interval %v", h.interval())
		}
	})
}
