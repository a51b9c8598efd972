// SPDX-License-Identifier: LGPL-3.0-or-later

// Package outbox publishes objects to one RP (SPEC section 9.1).
//
// An object is cut into symbols of wire.MaxPayload bytes, each sent in a datagram
// until the RP's ECHO of it came back, at most MaxAttempts times. An object whose
// symbols are all acknowledged is published; one that is not, or that finds no
// RP within MaxWait, has failed and goes by gossip. A change of RP sends what is
// not acknowledged to the new one, marked as republished.
//
// The package does no I/O; actions come out of Actions, in order.
package outbox

import (
	"container/heap"
	"encoding/binary"
	"math"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// Parameters of SPEC section 11.
const (
	MaxAttempts = 3                      // per symbol and RP
	InitialRTO  = 100 * time.Millisecond // before the first ECHO
	MinRTO      = 20 * time.Millisecond
	MaxRTO      = 200 * time.Millisecond
	MaxWait     = time.Second            // of an object without an RP
	MaxObjects  = 1 << 14                // waiting; more are refused
	MaxBytes    = 8 << 20                // of these
	MaxQueueing = 100 * time.Millisecond // until an object is sent; one that would wait longer is refused
)

// Path is the session on which to publish. Its owner may change Epoch, Payload, Rate
// and Burst at any time. It counts the datagrams of the session, so a session that is
// used again after another keeps its Path.
type Path struct {
	RP      ids.Incarnation // incarnation
	Session ids.Session
	Group   ids.Group
	Key     auth.Key // of the hop
	Epoch   uint8
	Payload auth.Key // group key of (RP, group, epoch)
	Rate    uint32   // datagrams per second
	Burst   uint32   // datagrams at once

	sequence uint64 // publisher's own, of the last datagram
}

// Action is a Datagram, a Published, a Failed or an Unanswered.
type Action interface{ action() }

// Datagram is to be sent to the RP.
type Datagram struct{ Bytes []byte }

// Published says that the RP took the whole object; Sequence is the one of its
// last acknowledged symbol, in (RP, group) of the path.
type Published struct {
	Hash     [32]byte
	RP       ids.Incarnation
	Sequence uint64
	Took     time.Duration // from when it was due to the last ECHO
}

// Failed says that the object was not published.
type Failed struct {
	Hash [32]byte

	// Objects that were sent and failed on this path since its last ECHO, this one included, and the time
	// since the first of them was due.
	Row     int
	Silence time.Duration
}

// Unanswered says that a symbol was sent more than once without an ECHO.
type Unanswered struct{}

func (Datagram) action()   {}
func (Published) action()  {}
func (Failed) action()     {}
func (Unanswered) action() {}

// Outbox holds the objects that wait for their ECHOs.
type Outbox struct {
	path    *Path
	objects map[uint64]*object
	bytes   int // of these
	timers  timers
	ready   []symbolRef // to send when tokens allow
	actions []Action

	patient bool      // not sure of the RP
	failed  int       // objects on the path since the last ECHO,
	silent  time.Time // and when the first of them was due
	srtt    time.Duration
	tokens  float64
	filled  time.Time
	room    int       // datagrams that may be given out
	full    time.Time // since when there is none, zero when there is
}

type object struct {
	id      uint64
	hash    [32]byte
	data    []byte
	symbols []symbol
	left    int // symbols without ECHO
	flags   uint8
	receipt bool      // the last symbol asks for one
	sent    bool      // a datagram of it left
	began   time.Time // when it was first due
	expires time.Time // while it waits for an RP
	due     time.Time // when Tick has to look at it
	index   int       // in timers
}

type symbol struct {
	attempts int
	sent     time.Time
	queued   bool
	acked    bool
}

type symbolRef struct {
	object *object
	esi    int
}

// New returns an empty outbox without a path.
func New() *Outbox { return &Outbox{objects: make(map[uint64]*object), room: math.MaxInt} }

// SetRoom says how many datagrams may be given out now, and gives out those that waited for room. The time
// to wait for an ECHO begins when a datagram is given out: what the socket has no room for should wait here.
func (o *Outbox) SetRoom(now time.Time, datagrams int) {
	o.room = datagrams
	o.send(now)
	switch {
	case !o.Short():
		o.full = time.Time{}
	case o.full.IsZero():
		o.full = now
	}
}

// Short reports whether datagrams wait for room.
func (o *Outbox) Short() bool { return o.path != nil && len(o.ready) > 0 && o.room <= 0 }

// Actions returns what is to be done since the last call.
func (o *Outbox) Actions() []Action {
	a := o.actions
	o.actions = nil
	return a
}

// Path returns the path that is used, nil for none.
func (o *Outbox) Path() *Path { return o.path }

// Len returns the number of objects that wait.
func (o *Outbox) Len() int { return len(o.objects) }

// SetPatient makes the retransmission time-out as long as it may be: for an RP of which
// only the ECHOs tell that it lives, so that a late one is not taken for its end.
func (o *Outbox) SetPatient(patient bool) { o.patient = patient }

// SRTT returns the smoothed round-trip time to the RP, zero before the first ECHO.
func (o *Outbox) SRTT() time.Duration { return o.srtt }

// Publish takes an object with its keccak256 hash, to be sent after delay unless
// cancelled before. Receipt has it ask who gets it. Publish reports false when the
// outbox is full, holds the object already, or would let it wait for too long.
func (o *Outbox) Publish(now time.Time, hash [32]byte, data []byte, delay time.Duration, receipt bool) bool {
	id := binary.BigEndian.Uint64(hash[:])
	if len(o.objects) >= MaxObjects || o.bytes+len(data) > MaxBytes || o.objects[id] != nil || len(data) == 0 {
		return false
	}
	k := wire.SourceSymbols(len(data))
	if o.queueing(now, k) > MaxQueueing {
		return false
	}
	x := &object{id: id, hash: hash, data: data, symbols: make([]symbol, k), left: k, due: now.Add(delay), receipt: receipt}
	o.objects[id] = x
	o.bytes += len(data)
	heap.Push(&o.timers, x)
	o.Tick(now)
	return true
}

// queueing returns how long an object of n symbols would wait until all of it is sent: for the granted rate, or
// for the line, which is taken to be as slow as it was.
func (o *Outbox) queueing(now time.Time, n int) time.Duration {
	if o.path == nil {
		return 0
	}
	o.refill(now)
	wait := time.Duration((float64(len(o.ready)+n) - o.tokens) / float64(o.path.Rate) * float64(time.Second))
	if !o.full.IsZero() {
		wait = max(wait, now.Sub(o.full))
	}
	return wait
}

// refill adds the tokens of the time that passed.
func (o *Outbox) refill(now time.Time) {
	o.tokens = min(o.tokens+now.Sub(o.filled).Seconds()*float64(o.path.Rate), float64(o.path.Burst))
	o.filled = now
}

// Sent reports whether the object with this id was sent and is not acknowledged.
func (o *Outbox) Sent(id uint64) bool {
	x := o.objects[id]
	return x != nil && x.sent
}

// Cancel drops an object that was not sent yet and reports whether there was one.
func (o *Outbox) Cancel(hash [32]byte) bool {
	x := o.objects[binary.BigEndian.Uint64(hash[:])]
	if x == nil || x.sent {
		return false
	}
	o.remove(x)
	return true
}

// SetPath changes the RP, nil for none. What the former RP did not acknowledge
// starts again on the new path.
func (o *Outbox) SetPath(now time.Time, p *Path) {
	o.ready = nil
	o.path, o.srtt, o.failed = p, 0, 0
	if p != nil {
		o.tokens, o.filled = float64(p.Burst), now
	}
	for _, x := range o.objects {
		clear(x.symbols)
		x.left, x.expires = len(x.symbols), time.Time{}
		if x.sent {
			x.flags |= wire.FlagRepublished
		}
		if !x.began.IsZero() {
			x.due = now
		}
	}
	heap.Init(&o.timers)
	o.Tick(now)
}

// Echo takes the RP's acknowledgement of a symbol.
func (o *Outbox) Echo(now time.Time, h *wire.Header) {
	x := o.objects[h.ObjectID]
	if x == nil || o.path == nil || h.Ingress != o.path.RP || int(h.ESI) >= len(x.symbols) {
		return
	}
	s := &x.symbols[h.ESI]
	if s.acked || s.attempts == 0 {
		return
	}
	s.acked, o.failed = true, 0
	if s.attempts == 1 {
		o.sample(now.Sub(s.sent))
	}
	if x.left--; x.left == 0 {
		o.remove(x)
		o.act(Published{Hash: x.hash, RP: h.Ingress, Sequence: h.Sequence, Took: now.Sub(x.began)})
	}
}

// sample smooths the round-trip time (RFC 6298 section 2, gain 1/8).
func (o *Outbox) sample(rtt time.Duration) {
	if o.srtt == 0 {
		o.srtt = rtt
	}
	o.srtt += (rtt - o.srtt) / 8
}

// rto returns the time to wait for the ECHO of an attempt, counted from 1.
func (o *Outbox) rto(attempt int) time.Duration {
	rto := InitialRTO
	switch {
	case o.patient:
		rto = MaxRTO
	case o.srtt != 0:
		rto = min(max(4*o.srtt, MinRTO), MaxRTO)
	}
	return rto << (attempt - 1)
}

// Tick sends and gives up what is due.
func (o *Outbox) Tick(now time.Time) {
	for len(o.timers) > 0 && !o.timers[0].due.After(now) {
		x := o.timers[0]
		if o.path == nil {
			o.withoutPath(now, x)
			continue
		}
		if !o.queue(now, x) {
			o.remove(x)
			if o.failed++; o.failed == 1 {
				o.silent = x.began
			}
			o.act(Failed{x.hash, o.failed, now.Sub(o.silent)})
			continue
		}
		heap.Fix(&o.timers, x.index)
	}
	o.send(now)
}

// withoutPath lets an object wait for an RP until MaxWait.
func (o *Outbox) withoutPath(now time.Time, x *object) {
	if !x.expires.IsZero() {
		o.remove(x)
		o.act(Failed{Hash: x.hash})
		return
	}
	x.begin(now)
	x.expires = now.Add(MaxWait)
	x.due = x.expires
	heap.Fix(&o.timers, x.index)
}

func (x *object) begin(now time.Time) {
	if x.began.IsZero() {
		x.began = now
	}
}

// queue puts the symbols of x that are due into the send queue and sets the next
// due time. It reports false when a symbol has no attempt left.
func (o *Outbox) queue(now time.Time, x *object) bool {
	next := now.Add(o.rto(MaxAttempts))
	answered := true
	for i := range x.symbols {
		s := &x.symbols[i]
		if s.acked {
			continue
		}
		if s.queued {
			next = earlier(next, now.Add(MinRTO))
			continue
		}
		if s.attempts > 0 {
			if due := s.sent.Add(o.rto(s.attempts)); due.After(now) {
				next = earlier(next, due)
				continue
			}
			if s.attempts > 1 && answered {
				answered = false
				o.act(Unanswered{})
			}
		}
		if s.attempts == MaxAttempts {
			return false
		}
		s.queued = true
		o.ready = append(o.ready, symbolRef{x, i})
		next = earlier(next, now.Add(o.rto(s.attempts+1)))
	}
	x.begin(now)
	x.due = next
	return true
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// send sends from the queue as far as the granted rate allows.
func (o *Outbox) send(now time.Time) {
	if o.path == nil || len(o.ready) == 0 {
		return
	}
	o.refill(now)
	n := 0
	for ; n < len(o.ready) && o.tokens >= 1 && o.room > 0; n++ {
		ref := o.ready[n]
		s := &ref.object.symbols[ref.esi]
		s.queued = false
		if s.acked || o.objects[ref.object.id] != ref.object {
			continue
		}
		s.attempts++
		s.sent, ref.object.sent = now, true
		o.tokens--
		o.room--
		o.act(Datagram{o.encode(ref.object, ref.esi)})
	}
	if o.ready = o.ready[n:]; len(o.ready) == 0 {
		o.ready = nil
	}
}

func (o *Outbox) encode(x *object, esi int) []byte {
	payload := x.data[esi*wire.MaxPayload : min((esi+1)*wire.MaxPayload, len(x.data))]
	o.path.sequence++
	flags := x.flags
	if x.receipt && esi == len(x.symbols)-1 {
		flags |= wire.FlagReceipt
	}
	h := wire.Header{
		Type:       wire.Data,
		Flags:      flags,
		Epoch:      o.path.Epoch,
		Session:    o.path.Session,
		Group:      o.path.Group,
		Sequence:   o.path.sequence,
		ESI:        uint16(esi),
		K:          uint16(len(x.symbols)),
		N:          uint16(len(x.symbols)),
		PayloadLen: uint16(len(payload)),
		ObjectLen:  uint32(len(x.data)),
		ObjectID:   x.id,
	}
	b := append(h.Append(make([]byte, 0, wire.HeaderSize+len(payload))), payload...)
	wire.SetPayloadTag(b, o.path.Payload.PayloadTag(b))
	wire.SetHopTag(b, o.path.Key.HopTag(b))
	return b
}

// KeepAlive returns a HEARTBEAT for the RP, which keeps the address state of
// firewalls on the way.
func (p *Path) KeepAlive() []byte {
	h := wire.Header{Type: wire.Heartbeat, Session: p.Session, Group: p.Group}
	b := h.Append(nil)
	wire.SetHopTag(b, p.Key.HopTag(b))
	return b
}

// Deadline returns when Tick is due next, zero for never.
func (o *Outbox) Deadline() (next time.Time) {
	if len(o.timers) > 0 {
		next = o.timers[0].due
	}
	if len(o.ready) > 0 && o.path != nil && o.room > 0 {
		wait := time.Duration((1 - o.tokens) / float64(o.path.Rate) * float64(time.Second))
		if refill := o.filled.Add(max(wait, time.Millisecond)); next.IsZero() || refill.Before(next) {
			next = refill
		}
	}
	return next
}

func (o *Outbox) remove(x *object) {
	delete(o.objects, x.id)
	o.bytes -= len(x.data)
	heap.Remove(&o.timers, x.index)
}

func (o *Outbox) act(a Action) { o.actions = append(o.actions, a) }

// timers is a heap of objects by due time.
type timers []*object

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, k int) bool { return t[i].due.Before(t[k].due) }
func (t timers) Swap(i, k int) {
	t[i], t[k] = t[k], t[i]
	t[i].index, t[k].index = i, k
}
func (t *timers) Push(x any) {
	o := x.(*object)
	o.index = len(*t)
	*t = append(*t, o)
}
func (t *timers) Pop() any {
	old := *t
	x := old[len(old)-1]
	old[len(old)-1] = nil
	*t = old[:len(old)-1]
	return x
}
