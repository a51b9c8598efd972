// SPDX-License-Identifier: LGPL-3.0-or-later

package wire_test

import (
	"bytes"
	"testing"

	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/ethmcast/wire/wiretest"
)

func load(tb testing.TB) *wiretest.File {
	tb.Helper()
	f, err := wiretest.Load()
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

// formVerdicts are those that Parse gives; the others need a session.
var formVerdicts = map[wire.Verdict]bool{
	wire.Truncated: true, wire.Oversized: true, wire.BadVersion: true, wire.BadType: true,
	wire.BadLength: true, wire.Malformed: true,
}

func TestParseGolden(t *testing.T) {
	f := load(t)
	if len(f.Vectors) < 12 {
		t.Fatalf("%d vectors", len(f.Vectors))
	}
	for _, vector := range f.Vectors {
		h, payload, v := wire.Parse(vector.Datagram)
		want := vector.Verdict
		wrongWay := want == wire.BadType && (h.Type == wire.Echo || h.Type == wire.Probe || h.Type == wire.LinkHello)
		if !formVerdicts[want] || wrongWay {
			want = wire.Pass // the form is right
		}
		if v != want {
			t.Errorf("%s: verdict %v, want %v", vector.Name, v, want)
			continue
		}
		if v == wire.Pass && !bytes.Equal(append(h.Append(nil), payload...), vector.Datagram) {
			t.Errorf("%s: does not encode to what was parsed: %v", vector.Name, &h)
		}
	}
}

func TestParseFields(t *testing.T) {
	h := wire.Header{
		Type: wire.Data, Flags: wire.FlagRepublished, HopLimit: 3, Epoch: 4, Session: 5, Group: 6, Ingress: 7, Sequence: 8,
		Handle: 9, ESI: 0, K: 2, N: 3, PayloadLen: wire.MaxPayload, ObjectLen: wire.MaxPayload + 1, ObjectID: 14,
		PayloadTag: [8]byte{15}, HopTag: [8]byte{16},
	}
	b := append(h.Append(nil), make([]byte, wire.MaxPayload)...)
	got, payload, v := wire.Parse(b)
	if v != wire.Pass || got != h || len(payload) != wire.MaxPayload {
		t.Fatalf("parsed %+v with %d bytes: %v, want %+v", got, len(payload), v, h)
	}
}

// A source symbol has the length that its place in the object gives; a repair
// symbol may have any.
func TestParseSymbolLength(t *testing.T) {
	for _, test := range []struct {
		name       string
		esi, k, n  uint16
		object     uint32
		payload    int
		wantPassed bool
	}{
		{"only symbol", 0, 1, 1, 10, 10, true},
		{"only symbol, short", 0, 1, 1, 10, 9, false},
		{"first of two, full", 0, 2, 2, wire.MaxPayload + 1, wire.MaxPayload, true},
		{"first of two, not full", 0, 2, 2, wire.MaxPayload + 1, 1, false},
		{"last of two", 1, 2, 2, wire.MaxPayload + 1, 1, true},
		{"repair", 2, 2, 3, wire.MaxPayload + 1, 700, true},
		{"too many symbols", 0, 1, wire.MaxSymbols + 1, 10, 10, false},
		{"K above N", 0, 2, 1, wire.MaxPayload + 1, wire.MaxPayload, false},
		{"empty object", 0, 1, 1, 0, 1, false},
	} {
		h := wire.Header{Type: wire.Data, ESI: test.esi, K: test.k, N: test.n, ObjectLen: test.object, PayloadLen: uint16(test.payload)}
		_, _, v := wire.Parse(append(h.Append(nil), make([]byte, test.payload)...))
		if (v == wire.Pass) != test.wantPassed {
			t.Errorf("%s: %v", test.name, v)
		}
	}
}

func TestRewrite(t *testing.T) {
	h := wire.Header{Type: wire.Data, K: 1, N: 1, ObjectLen: 1, PayloadLen: 1, Session: 1, Sequence: 2}
	b := append(h.Append(nil), 'x')
	wire.SetStamp(b, wire.Stamp{Ingress: 10, Sequence: 11, Handle: 12})
	wire.SetSession(b, 13)
	wire.SetPayloadTag(b, [8]byte{14})
	wire.SetHopTag(b, [8]byte{15})
	want := h
	want.HopLimit, want.Ingress, want.Sequence, want.Handle = wire.InitialHopLimit, 10, 11, 12
	want.Session, want.PayloadTag, want.HopTag = 13, [8]byte{14}, [8]byte{15}
	if got, _, v := wire.Parse(b); v != wire.Pass || got != want {
		t.Errorf("stamped: %+v (%v), want %+v", got, v, want)
	}
	wire.SetHopLimit(b, 5)
	wire.SetType(b, wire.Echo)
	want.HopLimit, want.Type = 5, wire.Echo
	if got, _, v := wire.Parse(b[:wire.HeaderSize]); v != wire.Pass || got != want {
		t.Errorf("echo: %+v (%v), want %+v", got, v, want)
	}
}

func TestHello(t *testing.T) {
	hello := [wire.HelloSize]byte{1, 2, 3, 15: 16}
	b := wire.NewLinkHello(7, 1<<40, hello)
	h, payload, v := wire.Parse(b[:])
	if v != wire.Pass || h.Type != wire.LinkHello || h.Session != 7 || h.Sequence != 1<<40 || len(payload) > 0 {
		t.Errorf("parsed %+v with %d bytes: %v", h, len(payload), v)
	}
	if got := wire.HelloOf(b[:]); got != hello {
		t.Errorf("hello %x, want %x", got, hello)
	}
	if _, _, v := wire.Parse(append(b[:], 0)); v != wire.BadLength {
		t.Errorf("with a payload: %v", v)
	}
}

func TestVerdictNames(t *testing.T) {
	seen := make(map[string]bool)
	for _, v := range wire.Verdicts() {
		name := v.String()
		if name == "" || seen[name] {
			t.Errorf("verdict %d: name %q is empty or taken", v, name)
		}
		seen[name] = true
		if got, err := wire.ParseVerdict(name); err != nil || got != v {
			t.Errorf("ParseVerdict(%q) = %v, %v", name, got, err)
		}
	}
	if _, err := wire.ParseVerdict("no such verdict"); err == nil {
		t.Error("unknown name accepted")
	}
}

func FuzzParse(f *testing.F) {
	for _, v := range load(f).Vectors {
		f.Add(v.Datagram)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, payload, v := wire.Parse(b)
		if v != wire.Pass {
			return
		}
		if !bytes.Equal(append(h.Append(nil), payload...), b) {
			t.Fatalf("%x parses to %+v, which encodes differently", b, h)
		}
		if h.Type == wire.Data && (int(h.PayloadLen) != len(payload) || h.ESI >= h.N || h.K > h.N || h.K == 0) {
			t.Fatalf("contradicting fields passed: %+v", h)
		}
	})
}
