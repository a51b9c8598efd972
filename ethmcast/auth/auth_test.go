// SPDX-License-Identifier: LGPL-3.0-or-later

package auth_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/ethmcast/wire/wiretest"
)

func load(t *testing.T) *wiretest.File {
	t.Helper()
	f, err := wiretest.Load()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestHopKeysGolden(t *testing.T) {
	for i, d := range load(t).Derivations {
		send, receive := auth.HopKeys(d.Self, d.Remote, d.Own, d.Theirs)
		if send != d.Send || receive != d.Receive {
			t.Errorf("derivation %d: keys %x and %x, want %x and %x", i, send, receive, d.Send, d.Receive)
		}
		send, receive = auth.HopKeys(d.Remote, d.Self, d.Theirs, d.Own)
		if send != d.Receive || receive != d.Send {
			t.Errorf("derivation %d: the other side has other keys", i)
		}
	}
}

func TestHandleGolden(t *testing.T) {
	for _, h := range load(t).Handles {
		key := auth.Key(h.Key)
		if got := key.Handle(h.Session, h.ObjectID); got != h.Handle {
			t.Errorf("handle %08x, want %08x", got, h.Handle)
		}
		if key.Handle(h.Session, h.ObjectID+1) == h.Handle {
			t.Error("two objects of a publisher have the same handle")
		}
	}
}

// Every vector whose form is right has the tags that its verdict says.
func TestTagsGolden(t *testing.T) {
	f := load(t)
	keys := make(map[uint32]auth.Key)
	for _, k := range f.Keys {
		keys[k.Ingress] = k.Key
	}
	checked := 0
	for _, v := range f.Vectors {
		h, _, form := wire.Parse(v.Datagram)
		if form != wire.Pass || v.Verdict == wire.NoSession {
			continue
		}
		var session wiretest.Session
		for _, s := range f.Sessions {
			if s.Index == h.Session {
				session = s
			}
		}
		checked++
		hop := auth.Key(session.Receive)
		if ok := hop.CheckHopTag(v.Datagram, h.HopTag); ok != (v.Verdict != wire.BadHopTag) {
			t.Errorf("%s: hop tag right: %v", v.Name, ok)
		}
		if h.Type != wire.Data || v.Verdict == wire.BadHopTag || v.Verdict == wire.BadUpstream {
			continue
		}
		ingress := f.Incarnation
		if session.Mesh {
			ingress = h.Ingress
		}
		group := keys[ingress]
		if ok := group.CheckPayloadTag(v.Datagram, h.PayloadTag); ok != (v.Verdict != wire.BadPayloadTag) {
			t.Errorf("%s: payload tag right: %v", v.Name, ok)
		}
		for _, c := range v.Copies {
			s, _ := f.Session(c.Session)
			send := auth.Key(s.Send)
			if copied, _, _ := wire.Parse(c.Datagram); copied.HopTag != send.HopTag(c.Datagram) {
				t.Errorf("%s: hop tag of the copy to %s is wrong", v.Name, c.Session)
			}
		}
	}
	if checked < 20 {
		t.Errorf("only %d vectors have tags", checked)
	}
}

// A tag covers each bit of what it is defined over, and nothing else.
func TestTagCoverage(t *testing.T) {
	key := auth.Key{1, 2, 3}
	h := wire.Header{Type: wire.Data, K: 1, N: 1, ObjectLen: 5, PayloadLen: 5}
	b := append(h.Append(nil), "hello"...)
	hop, payload := key.HopTag(b), key.PayloadTag(b)
	for i := range b {
		for bit := range 8 {
			b[i] ^= 1 << bit
			inHop := i < 56
			inPayload := i >= 8 && i < 12 || i >= 28 && i < 48 || i >= wire.HeaderSize
			if changed := !key.CheckHopTag(b, hop); changed != inHop {
				t.Fatalf("byte %d bit %d: hop tag changed: %v", i, bit, changed)
			}
			if changed := !key.CheckPayloadTag(b, payload); changed != inPayload {
				t.Fatalf("byte %d bit %d: payload tag changed: %v", i, bit, changed)
			}
			b[i] ^= 1 << bit
		}
	}
}

func TestWindow(t *testing.T) {
	var w auth.Window
	for _, step := range []struct {
		seq  uint64
		want wire.Verdict
	}{
		{0, wire.Pass},
		{0, wire.Replayed},
		{5, wire.Pass},
		{4, wire.Pass}, // late, but new
		{5, wire.Replayed},
		{4095, wire.Pass},
		{4096, wire.Pass}, // takes over the word of 0
		{1, wire.TooOld},
		{32, wire.Pass}, // another word
		{1 << 43, wire.Pass},
		{4097, wire.TooOld},
	} {
		if got := w.Check(step.seq); got != step.want {
			t.Errorf("Check(%d) = %v, want %v", step.seq, got, step.want)
		}
		if got := w.Take(step.seq); got != step.want {
			t.Errorf("Take(%d) = %v, want %v", step.seq, got, step.want)
		}
	}
}

// Each sequence is taken at most once, whatever the order, and one within 4,096
// of the newest is taken the first time that it comes.
func TestWindowProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w auth.Window
		taken := make(map[uint64]bool)
		newest := uint64(0)
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			seq := max(newest, 5000) - 5000 + rapid.Uint64Range(0, 6000).Draw(t, "seq")
			v := w.Take(seq)
			switch {
			case v == wire.Pass && taken[seq]:
				t.Fatalf("%d taken twice", seq)
			case v != wire.Pass && !taken[seq] && (seq > newest || newest/32-seq/32 < auth.WindowSize/32):
				t.Fatalf("%d refused as %v, newest %d", seq, v, newest)
			case v == wire.Pass:
				taken[seq] = true
				newest = max(newest, seq)
			}
		}
	})
}

func BenchmarkHopTag(b *testing.B) {
	key := auth.Key{1}
	datagram := make([]byte, wire.HeaderSize)
	for b.Loop() {
		key.HopTag(datagram)
	}
}

func BenchmarkPayloadTag(b *testing.B) {
	key := auth.Key{1}
	datagram := make([]byte, wire.MaxDatagram)
	b.SetBytes(wire.MaxPayload)
	for b.Loop() {
		key.PayloadTag(datagram)
	}
}
