// SPDX-License-Identifier: LGPL-3.0-or-later

package outbox

import (
	"crypto/sha256"
	"testing"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// rp is an RP that acknowledges what it gets after rtt, or not at all.
type rp struct {
	t         *testing.T
	o         *Outbox
	path      Path
	now       time.Time
	rtt       time.Duration
	dead      bool
	loseEcho  int // of the next datagrams
	sequence  uint64
	got       []wire.Header
	data      map[uint16][]byte
	echoes    []echo
	published []Published
	failed    [][32]byte
	row       int // of the last one that failed
	silence   time.Duration
	silences  int // Unanswered
}

type echo struct {
	at time.Time
	h  wire.Header
}

func newRP(t *testing.T) *rp {
	r := &rp{
		t: t, o: New(), now: time.Unix(100, 0), rtt: 2 * time.Millisecond, data: make(map[uint16][]byte),
		path: Path{RP: 7, Session: 8, Group: 9, Key: auth.Key{1}, Epoch: 3, Payload: auth.Key{2}, Rate: 1000, Burst: 50},
	}
	r.connect()
	return r
}

func (r *rp) connect() {
	p := r.path
	r.o.SetPath(r.now, &p)
	r.flush()
}

func (r *rp) flush() {
	for _, a := range r.o.Actions() {
		switch a := a.(type) {
		case Datagram:
			r.datagram(a.Bytes)
		case Published:
			r.published = append(r.published, a)
		case Failed:
			r.failed, r.row, r.silence = append(r.failed, a.Hash), a.Row, a.Silence
		case Unanswered:
			r.silences++
		}
	}
}

func (r *rp) datagram(b []byte) {
	h, payload, v := wire.Parse(b)
	if v != wire.Pass || h.Session != r.path.Session || !r.path.Key.CheckHopTag(b, h.HopTag) || !r.path.Payload.CheckPayloadTag(b, h.PayloadTag) {
		r.t.Fatalf("datagram that no RP takes: %v, %v", &h, v)
	}
	if n := len(r.got); n > 0 && r.got[n-1].Sequence >= h.Sequence && h.Sequence != 1 {
		r.t.Fatalf("sequence %d after %d", h.Sequence, r.got[n-1].Sequence)
	}
	r.got = append(r.got, h)
	r.data[h.ESI] = append([]byte(nil), payload...)
	if r.dead {
		return
	}
	r.sequence++
	if r.loseEcho > 0 {
		r.loseEcho--
		return
	}
	h.Type, h.Ingress, h.Sequence = wire.Echo, r.path.RP, r.sequence
	r.echoes = append(r.echoes, echo{r.now.Add(r.rtt), h})
}

// run lets time pass by deadlines.
func (r *rp) run(d time.Duration) {
	for end := r.now.Add(d); ; {
		next := end
		if t := r.o.Deadline(); !t.IsZero() && t.Before(next) {
			next = t
		}
		if len(r.echoes) > 0 && r.echoes[0].at.Before(next) {
			next = r.echoes[0].at
		}
		if next.After(r.now) {
			r.now = next
		}
		for len(r.echoes) > 0 && !r.echoes[0].at.After(r.now) {
			r.o.Echo(r.now, &r.echoes[0].h)
			r.echoes = r.echoes[1:]
		}
		r.o.Tick(r.now)
		r.flush()
		if !r.now.Before(end) {
			return
		}
	}
}

func (r *rp) publish(size int, seed byte, delay time.Duration) [32]byte {
	data := make([]byte, size)
	data[0] = seed
	hash := sha256.Sum256(data)
	if !r.o.Publish(r.now, hash, data, delay, false) {
		r.t.Fatal("refused")
	}
	r.flush()
	return hash
}

func TestPublish(t *testing.T) {
	r := newRP(t)
	hash := r.publish(200, 1, 0)
	if len(r.got) != 1 {
		t.Fatalf("%d datagrams", len(r.got))
	}
	if h := r.got[0]; h.Epoch != 3 || h.Group != 9 || h.Ingress != 0 || h.Flags != 0 || h.K != 1 || h.ObjectLen != 200 {
		t.Errorf("header %+v", h)
	}
	r.run(time.Second)
	if len(r.got) != 1 || len(r.published) != 1 || r.o.Len() != 0 {
		t.Fatalf("%d datagrams, published %v, %d wait", len(r.got), r.published, r.o.Len())
	}
	if p := r.published[0]; p.Hash != hash || p.RP != 7 || p.Sequence != 1 || p.Took != r.rtt {
		t.Errorf("published %+v", p)
	}
	if r.o.SRTT() != r.rtt {
		t.Errorf("round-trip time %v", r.o.SRTT())
	}
}

func TestSymbols(t *testing.T) {
	r := newRP(t)
	r.publish(128<<10, 1, 0) // 113 symbols, above the burst of 50
	if len(r.got) != 50 {
		t.Errorf("%d datagrams at once, burst is 50", len(r.got))
	}
	r.run(time.Second)
	total := 0
	for _, b := range r.data {
		total += len(b)
	}
	if len(r.got) != 113 || total != 128<<10 || len(r.published) != 1 {
		t.Errorf("%d datagrams with %d bytes, published %v", len(r.got), total, r.published)
	}
	began := r.got[0]
	if began.K != 113 || began.N != 113 {
		t.Errorf("header %+v", began)
	}
}

func TestRate(t *testing.T) {
	r := newRP(t)
	const taken = 50 + 100 // the burst, and what leaves in MaxQueueing
	for i := range taken {
		r.publish(100, byte(i), 0)
	}
	r.run(50 * time.Millisecond) // burst 50 and 1000 a second
	if n := len(r.got); n < 95 || n > 101 {
		t.Errorf("%d datagrams in 50 ms", n)
	}
	r.run(time.Second)
	if len(r.published) != taken || len(r.failed) != 0 {
		t.Errorf("%d published, %d failed", len(r.published), len(r.failed))
	}
}

// An object that would wait for too long, for the rate or for the line, is refused, and others after it may not be.
func TestRefusesWhatWouldWait(t *testing.T) {
	r := newRP(t) // burst 50 and 1000 a second
	taken := func(symbols int, seed byte) bool {
		data := make([]byte, symbols*wire.MaxPayload)
		data[0] = seed
		ok := r.o.Publish(r.now, sha256.Sum256(data), data, 0, false)
		r.flush()
		return ok
	}
	if !taken(40, 1) || !taken(100, 2) { // 90 of these wait
		t.Fatal("refused")
	}
	if taken(20, 3) || !taken(5, 4) {
		t.Error("20 would wait for 110 ms, 5 for 95 ms")
	}
	r.run(30 * time.Millisecond)
	if !taken(20, 3) {
		t.Error("20 would wait for 85 ms")
	}
	r.run(time.Second)
	if len(r.published) != 4 || len(r.failed) > 0 {
		t.Fatalf("%d published, %d failed", len(r.published), len(r.failed))
	}

	r.o.SetRoom(r.now, 1) // a slow line
	if !taken(2, 5) {
		t.Fatal("refused before the line is known to be slow")
	}
	r.run(MaxQueueing)
	r.o.SetRoom(r.now, 0)
	r.run(MaxQueueing + time.Millisecond)
	if taken(1, 6) {
		t.Error("taken, though nothing has left for 100 ms")
	}
	r.o.SetRoom(r.now, 10)
	r.flush()
	if !taken(1, 6) {
		t.Error("refused, though the line is free")
	}
}

func TestResend(t *testing.T) {
	r := newRP(t)
	r.loseEcho = 2
	r.publish(100, 1, 0)
	r.run(InitialRTO + time.Millisecond)
	if r.silences != 0 {
		t.Error("one lost datagram is no sign of a lost RP")
	}
	r.run(time.Second)
	if r.silences != 1 {
		t.Errorf("%d times unanswered, after two attempts", r.silences)
	}
	if len(r.got) != 3 || len(r.published) != 1 || r.published[0].Sequence != 3 {
		t.Errorf("%d datagrams, published %+v", len(r.got), r.published)
	}
	if r.o.SRTT() != 0 {
		t.Error("round-trip time taken from a resent datagram")
	}
}

func TestDeadRP(t *testing.T) {
	r := newRP(t)
	r.dead = true
	hash := r.publish(100, 1, 0)
	r.run(2 * time.Second)
	if len(r.got) != MaxAttempts || len(r.failed) != 1 || r.failed[0] != hash || r.o.Len() != 0 {
		t.Errorf("%d datagrams, failed %v", len(r.got), r.failed)
	}
	for i, h := range r.got { // an RP drops a sequence that it had: it acknowledges nothing then
		if h.Sequence != uint64(i+1) || h.ESI != r.got[0].ESI || h.ObjectID != r.got[0].ObjectID {
			t.Errorf("sending %d: %+v", i, h)
		}
	}
}

// What the socket has no room for waits, and is not taken for lost meanwhile.
func TestRoom(t *testing.T) {
	r := newRP(t)
	r.o.SetRoom(r.now, 2)
	r.publish(5*wire.MaxPayload, 1, 0)
	r.run(5 * time.Second)
	if len(r.got) != 2 || len(r.failed) > 0 || !r.o.Short() {
		t.Fatalf("%d datagrams left, failed %v", len(r.got), r.failed)
	}
	r.o.SetRoom(r.now, 3)
	r.flush()
	r.run(time.Second)
	if len(r.got) != 5 || len(r.published) != 1 || r.o.Short() {
		t.Errorf("%d datagrams left, published %v", len(r.got), r.published)
	}
}

// An RP that takes nothing shows in how many objects failed in a row.
func TestRowOfFailures(t *testing.T) {
	r := newRP(t)
	fails := func(seed byte, want int) {
		t.Helper()
		before := len(r.failed)
		r.dead = true
		r.publish(100, seed, 0)
		r.run(2 * time.Second)
		if r.dead = false; len(r.failed) != before+1 || r.row != want {
			t.Fatalf("%d failed, %d of them in a row, want %d", len(r.failed)-before, r.row, want)
		}
	}
	fails(1, 1)
	if r.silence <= 0 || r.silence > 2*time.Second {
		t.Errorf("silent for %v", r.silence)
	}
	fails(2, 2)
	if r.silence < 2*time.Second || r.silence > 4*time.Second {
		t.Errorf("silent for %v", r.silence)
	}
	r.publish(100, 3, 0)
	r.run(2 * time.Second)
	if len(r.published) != 1 {
		t.Fatal("not published")
	}
	fails(4, 1)
	fails(5, 2)
	r.connect() // to another one
	fails(6, 1)
	r.o.SetPath(r.now, nil)
	r.publish(100, 7, 0)
	r.run(2 * time.Second)
	if r.row != 0 {
		t.Error("without an RP none can be deaf")
	}
}

// What the former RP did not acknowledge goes to the next one, flagged.
func TestChangeOfRP(t *testing.T) {
	r := newRP(t)
	r.dead = true
	r.publish(100, 1, 0)
	r.o.SetPath(r.now, nil)
	r.flush()
	r.run(500 * time.Millisecond)
	if len(r.failed) != 0 {
		t.Fatal("gave up while it may find another RP")
	}
	r.dead = false
	r.path.RP, r.path.Session = 17, 18
	r.connect()
	r.run(time.Second)
	last := r.got[len(r.got)-1]
	if len(r.published) != 1 || r.published[0].RP != 17 || last.Flags != wire.FlagRepublished || last.Sequence != 1 {
		t.Errorf("published %+v by %+v", r.published, last)
	}
}

// The last symbol asks for the receipt, as often as it is sent.
func TestReceipt(t *testing.T) {
	r := newRP(t)
	r.dead = true
	data := make([]byte, 2*wire.MaxPayload+1)
	if !r.o.Publish(r.now, sha256.Sum256(data), data, 0, true) {
		t.Fatal("refused")
	}
	r.flush()
	r.run(InitialRTO)
	r.path.RP = 17
	r.connect()
	if len(r.got) != 9 {
		t.Fatalf("%d datagrams", len(r.got))
	}
	for i, h := range r.got {
		want := uint8(0)
		if h.ESI == 2 {
			want = wire.FlagReceipt
		}
		if i >= 6 {
			want |= wire.FlagRepublished
		}
		if h.Flags != want {
			t.Errorf("datagram %d, symbol %d: flags %#x, want %#x", i, h.ESI, h.Flags, want)
		}
	}
}

// Where only the ECHOs tell that the RP lives, it has time for them.
func TestPatience(t *testing.T) {
	r := newRP(t)
	r.publish(100, 1, 0)
	r.run(time.Second)
	r.o.SetPatient(true)
	r.dead = true
	r.publish(100, 2, 0)
	r.run(3*MaxRTO - time.Millisecond)
	if r.silences != 0 {
		t.Error("unanswered too soon")
	}
	r.run(2 * time.Millisecond)
	if r.silences != 1 {
		t.Errorf("%d times unanswered after %v", r.silences, 3*MaxRTO)
	}
}

// A session that is used again goes on with its numbers: its window knows the old ones.
func TestBackToAnRP(t *testing.T) {
	r := newRP(t)
	first := r.path
	r.o.SetPath(r.now, &first)
	r.publish(100, 1, 0)
	second := r.path
	second.RP = 17
	r.o.SetPath(r.now, &second)
	r.publish(100, 2, 0)
	r.o.SetPath(r.now, &first)
	r.got = nil
	r.publish(100, 3, 0)
	if last := r.got[len(r.got)-1]; last.Sequence < 2 {
		t.Errorf("sequence %d again", last.Sequence)
	}
}

func TestWithoutRP(t *testing.T) {
	r := newRP(t)
	r.o.SetPath(r.now, nil)
	hash := r.publish(100, 1, 0)
	r.run(MaxWait + time.Millisecond)
	if len(r.failed) != 1 || r.failed[0] != hash || len(r.got) != 0 {
		t.Errorf("failed %v, %d datagrams", r.failed, len(r.got))
	}
}

func TestCancel(t *testing.T) {
	r := newRP(t)
	hash := r.publish(100, 1, 30*time.Millisecond)
	r.run(20 * time.Millisecond)
	if len(r.got) != 0 || !r.o.Cancel(hash) {
		t.Fatal("not cancelled")
	}
	r.run(time.Second)
	if len(r.got) != 0 || r.o.Len() != 0 {
		t.Error("sent after it was cancelled")
	}
	hash = r.publish(100, 2, 30*time.Millisecond)
	r.run(31 * time.Millisecond)
	if len(r.got) != 1 || r.o.Cancel(hash) {
		t.Error("sent late, or cancelled after it was sent")
	}
}

func TestForeignEcho(t *testing.T) {
	r := newRP(t)
	r.dead = true
	r.publish(100, 1, 0)
	for _, change := range []func(*wire.Header){
		func(h *wire.Header) { h.Ingress++ },
		func(h *wire.Header) { h.ObjectID++ },
		func(h *wire.Header) { h.ESI = 1 },
	} {
		h := r.got[0]
		h.Type, h.Ingress = wire.Echo, r.path.RP
		change(&h)
		r.o.Echo(r.now, &h)
	}
	if r.flush(); len(r.published) != 0 || r.o.Len() != 1 {
		t.Error("taken for an acknowledgement")
	}
}

func TestFull(t *testing.T) {
	r := newRP(t)
	r.dead = true
	hash := r.publish(100, 1, 0)
	if r.o.Publish(r.now, hash, make([]byte, 100), 0, false) {
		t.Error("taken twice")
	}
	for i := r.o.Len(); i < MaxObjects; i++ {
		r.o.Publish(r.now, sha256.Sum256([]byte{byte(i), byte(i >> 8)}), []byte{1}, time.Hour, false)
	}
	if r.o.Publish(r.now, [32]byte{1}, []byte{1}, 0, false) || r.o.Len() != MaxObjects {
		t.Error("no bound")
	}

	r = newRP(t)
	r.o.SetPath(r.now, nil)
	const size = 1 << 17
	for n := byte(0); n < MaxBytes/size; n++ {
		r.publish(size, n, 0)
	}
	if r.o.Publish(r.now, [32]byte{1}, []byte{1}, 0, false) {
		t.Error("no bound of bytes")
	}
	r.run(2 * MaxWait)
	r.publish(size, 1, 0) // the others have failed
}
