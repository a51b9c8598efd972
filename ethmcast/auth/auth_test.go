// SPDX-License-Identifier: LGPL-3.0-or-later

package auth_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
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
	keys := make(map[ids.Incarnation]auth.Key)
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
		tagged := h.Type == wire.Data || h.Type == wire.Heartbeat && session.Mesh
		if !tagged || v.Verdict == wire.BadHopTag || v.Verdict == wire.BadUpstream {
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
			copied, _, _ := wire.Parse(c.Datagram)
			if copied.HopTag != send.HopTag(c.Datagram) {
				t.Errorf("%s: hop tag of the copy to %s is wrong", v.Name, c.Session)
			}
			if h.Type == wire.Heartbeat && !group.CheckPayloadTag(c.Datagram, copied.PayloadTag) {
				t.Errorf("%s: payload tag of the copy to %s is wrong", v.Name, c.Session)
			}
		}
	}
	if checked < 20 {
		t.Errorf("only %d vectors have tags", checked)
	}
}

// A tag covers each bit of what it is defined over, and nothing else.
func TestTagCoverage(t *testing.T) {
	data := wire.Header{Type: wire.Data, K: 1, N: 1, ObjectLen: 5, PayloadLen: 5}
	testTagCoverage(t, append(data.Append(nil), "hello"...), func(i int) bool {
		return i >= 8 && i < 12 || i >= 28 && i < 48 || i >= wire.HeaderSize
	})
	beat := wire.Header{Type: wire.Heartbeat}
	testTagCoverage(t, beat.Append(nil), func(i int) bool { return i >= 8 && i < 24 || i >= 40 && i < 48 })
}

func testTagCoverage(t *testing.T, b []byte, tagged func(i int) bool) {
	key := auth.Key{1, 2, 3}
	hop, payload := key.HopTag(b), key.PayloadTag(b)
	for i := 1; i < len(b); i++ { // the first byte says what is covered
		for bit := range 8 {
			b[i] ^= 1 << bit
			inHop, inPayload := i < 56, tagged(i)
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

// What was taken up to where a window restarts stays taken, unless a sequence beyond it took
// the place; what is beyond can be taken again.
func TestWindowRestartProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w auth.Window
		newest := rapid.Uint64Range(0, 20_000).Draw(t, "newest")
		var honest []uint64
		for range rapid.IntRange(0, 50).Draw(t, "honest") {
			seq := newest - min(newest, rapid.Uint64Range(0, 3000).Draw(t, "back"))
			if w.Take(seq) == wire.Pass {
				honest = append(honest, seq)
			}
		}
		displaced := make(map[uint64]bool) // words of which a lie took the place
		for range rapid.IntRange(0, 300).Draw(t, "lies") {
			seq := newest + rapid.OneOf(rapid.Uint64Range(1, 9000), rapid.Uint64Range(1, 1<<43)).Draw(t, "ahead")
			w.Take(seq)
			displaced[seq/32%(auth.WindowSize/32)] = true
		}
		w.Restart(newest)
		for _, seq := range honest {
			if word := seq / 32; newest/32-word < auth.WindowSize/32 && !displaced[word%(auth.WindowSize/32)] {
				if v := w.Check(seq); v != wire.Replayed {
					t.Fatalf("%d was taken, now %v, newest %d", seq, v, newest)
				}
			}
		}
		for range 200 {
			seq := newest + rapid.Uint64Range(1, 2*auth.WindowSize).Draw(t, "next")
			if v := w.Check(seq); v != wire.Pass {
				t.Fatalf("%d beyond %d is %v", seq, newest, v)
			}
		}
		for seq := newest + 1; seq <= newest+10_000; seq++ {
			if v := w.Take(seq); v != wire.Pass {
				t.Fatalf("%d in order is %v, newest %d", seq, v, newest)
			}
		}
	})
}

// Each number of a heartbeat is taken at most once, whatever the order; in order all are, and one that
// less than 24 others overtook.
func TestBeatsProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var beats auth.Beats
		taken := make(map[uint64]bool)
		top := uint64(0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			beat := max(top, 40) - 40 + rapid.OneOf(rapid.Uint64Range(0, 60), rapid.Uint64Range(0, 1<<41)).Draw(t, "beat")
			check := beats.Check(beat)
			v := beats.Take(beat)
			want := wire.Replayed
			if beat > 0 && beat < 1<<40 && !taken[beat] && top < beat+24 {
				want = wire.Pass
			}
			if v != want || check != want {
				t.Fatalf("%d: %v, want %v; highest before %d", beat, v, want, top)
			}
			if v == wire.Pass {
				taken[beat], top = true, max(top, beat)
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
