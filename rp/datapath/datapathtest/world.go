// SPDX-License-Identifier: LGPL-3.0-or-later

package datapathtest

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// The world around the engine:
//
//	publisher ---+                          +--- rp        (own datagrams go to it)
//	subscriber --+--- engine (incarnation) -+
//	reader ------+    group, other          +--- silent rp (accepted from only)
//	stranger (other group only)
//
// What either RP neighbour is the ingress of comes from it, and goes to peers alone.
const (
	publisher  = iota // publishes to the group
	subscriber        // publishes to the group
	reader            // only subscribes
	stranger          // publishes to the other group
	rp                // RP neighbour that the own datagrams of the group go to
	silent            // RP neighbour that nothing goes to
	nobody            // endpoint without a session
)

const (
	incarnation = 0x0a0a0a0a
	group       = 0x67726f75
	otherGroup  = 0x6f746865
	epoch       = 255 // the next one is 0
	burst       = 3   // of the publishers, at one datagram per second
)

var handleKey = auth.Key{0xaa, 1, 2, 3}

type world struct {
	t        *testing.T
	subject  Subject
	sessions [nobody]datapath.Session
	keys     map[keyID]auth.Key
	next     *next
	beats    uint64 // heartbeats that the engine has sent

	hellos  chan Hello
	records chan datapath.Record
}

type keyID struct {
	ingress ids.Incarnation
	group   ids.Group
	epoch   uint8
}

// ingressOf is the incarnation of an RP neighbour.
func ingressOf(node int) ids.Incarnation { return 0xb0 + ids.Incarnation(node) }

func newWorld(t *testing.T, new New) *world { return newLimitedWorld(t, new, 0, 0) }

// newLimitedWorld has a limit of all copies.
func newLimitedWorld(t *testing.T, new New, egress, egressBurst uint64) *world {
	w := &world{
		t:       t,
		keys:    make(map[keyID]auth.Key),
		hellos:  make(chan Hello, 100),
		records: make(chan datapath.Record, 1000),
	}
	w.subject = new(t, datapath.Config{
		Incarnation: incarnation,
		HandleKey:   handleKey,
		Egress:      egress,
		EgressBurst: egressBurst,
		Hello:       w.takeHello,
		Cache:       w.takeRecord,
	})
	for i := range w.sessions {
		n := byte(i + 1)
		s := datapath.Session{
			Index:       0x1000 + ids.Session(n),
			Role:        datapath.Peer,
			Addr:        w.subject.Endpoint(i),
			SendSession: 0x2000 + ids.Session(n),
			SendKey:     auth.Key{'s', n},
			ReceiveKey:  auth.Key{'r', n},
			Groups:      []ids.Group{group},
		}
		switch i {
		case publisher, subscriber:
			s.Publish, s.Rate, s.Burst = true, 1, burst
		case stranger:
			s.Publish, s.Rate, s.Burst = true, 1, burst
			s.Groups = []ids.Group{otherGroup}
		case rp, silent:
			s.Role, s.Groups = datapath.Mesh, nil
		}
		w.sessions[i] = s
	}
	w.apply(datapath.Change{
		Keys: []proto.GroupKey{
			w.key(incarnation, group, epoch-1),
			w.key(incarnation, group, epoch),
			w.key(incarnation, otherGroup, epoch),
			w.key(ingressOf(rp), group, epoch),
			w.key(ingressOf(silent), group, epoch),
		},
		Add: w.sessions[:],
		Routes: []datapath.Route{
			w.route(incarnation, nil, rp),
			w.route(ingressOf(rp), []int{rp}),
			w.route(ingressOf(silent), []int{silent}),
		},
	})
	w.next = &next{w: w}
	return w
}

// takeHello and takeRecord are called by a goroutine of the engine. What is not looked
// at is of no concern.
func (w *world) takeHello(session ids.Session, hello [wire.HelloSize]byte, at time.Time) {
	if since := time.Since(at); since < 0 || since > time.Minute {
		panic(fmt.Sprintf("hello that came %v ago", since))
	}
	select {
	case w.hellos <- Hello{session, hello}:
	default:
	}
}

func (w *world) takeRecord(r datapath.Record) {
	r.Datagram = slices.Clone(r.Datagram)
	select {
	case w.records <- r:
	default:
	}
}

// route returns the route of an ingress RP by nodes, to which the group goes.
func (w *world) route(ingress ids.Incarnation, from []int, to ...int) datapath.Route {
	r := datapath.Route{Ingress: ingress}
	for _, i := range from {
		r.From = append(r.From, w.sessions[i].Index)
	}
	for _, i := range to {
		r.To = append(r.To, datapath.Branch{Session: w.sessions[i].Index, Groups: []ids.Group{group}})
	}
	return r
}

// key returns the key of (ingress, group, epoch).
func (w *world) key(ingress ids.Incarnation, group ids.Group, epoch uint8) proto.GroupKey {
	k := auth.Key{'g', byte(ingress), byte(group), epoch}
	w.keys[keyID{ingress, group, epoch}] = k
	return proto.GroupKey{Ingress: ingress, Group: group, Epoch: epoch, Key: k}
}

func (w *world) apply(c datapath.Change) {
	w.t.Helper()
	if err := w.subject.Apply(c); err != nil {
		w.t.Fatalf("apply: %v", err)
	}
}

// pass receives a packet that must be accepted.
func (w *world) pass(p *packet) []Output {
	w.t.Helper()
	if p.header.Type == wire.Heartbeat {
		w.subject.Age(0, datapath.HeartbeatGap)
	}
	v, out := w.subject.Receive(p.src, p.bytes())
	if v != wire.Pass {
		w.t.Fatalf("%v: verdict %v", &p.header, v)
	}
	if p.header.Type == wire.Heartbeat && len(out) > 0 {
		w.beats++
	}
	return out
}

// packet is a datagram to the engine: right as it comes from world.packet, wrong
// as a case edits it. Tags are computed last.
type packet struct {
	src        netip.AddrPort
	header     wire.Header
	payload    []byte
	payloadKey auth.Key
	hopKey     auth.Key
	raw        func(b []byte) []byte // last change to the bytes
}

// packet returns a DATA of one symbol from a node, its first one.
func (w *world) packet(from int) *packet {
	s := &w.sessions[from]
	p := &packet{
		src:     s.Addr,
		payload: []byte("one symbol of an object"),
		hopKey:  s.ReceiveKey,
		header: wire.Header{
			Type:     wire.Data,
			Epoch:    epoch,
			Session:  s.Index,
			Group:    group,
			Sequence: 1,
			K:        1,
			N:        1,
			ObjectID: 0x0102030405060708,
		},
	}
	ingress := ids.Incarnation(incarnation)
	switch {
	case from == stranger:
		p.header.Group = otherGroup
	case s.Role == datapath.Mesh:
		ingress = ingressOf(from)
		p.header.Ingress = ingress
		p.header.Handle = 0xfeed
		p.header.HopLimit = wire.InitialHopLimit
	}
	p.payloadKey = w.keys[keyID{ingress, p.header.Group, epoch}]
	return p
}

// heartbeat returns a HEARTBEAT from a node, as an RP neighbour sends it.
func (w *world) heartbeat(from int, beat, seq uint64) *packet {
	p := w.packet(from)
	p.toHeartbeat(beat, seq)
	return p
}

func (p *packet) toHeartbeat(beat, seq uint64) {
	h := &p.header
	p.payload = nil
	*h = wire.Header{
		Type:     wire.Heartbeat,
		HopLimit: h.HopLimit,
		Epoch:    h.Epoch,
		Session:  h.Session,
		Group:    h.Group,
		Ingress:  h.Ingress,
		Sequence: seq,
		ObjectID: beat,
	}
}

// testHelloOf is what the hellos of a sequence say.
func testHelloOf(seq uint64) (hello [wire.HelloSize]byte) {
	for i := range hello {
		hello[i] = byte(0xf0-i) ^ byte(seq)
	}
	return hello
}

// helloFrom returns a LINK_HELLO from a node.
func (w *world) helloFrom(from int, seq uint64) *packet {
	p := w.packet(from)
	p.toHello(seq)
	return p
}

func (p *packet) toHello(seq uint64) {
	p.payload = nil
	b := wire.NewLinkHello(p.header.Session, seq, testHelloOf(seq))
	p.header, _, _ = wire.Parse(b[:])
}

// seq returns p with another sequence.
func (p *packet) seq(seq uint64) *packet {
	p.header.Sequence = seq
	return p
}

// bytes encodes the packet.
func (p *packet) bytes() []byte {
	h := p.header
	if h.Type == wire.Data {
		h.PayloadLen = uint16(len(p.payload))
		h.ObjectLen = uint32(len(p.payload))
	}
	b := append(h.Append(nil), p.payload...)
	if h.Type == wire.Data || h.Type == wire.Heartbeat {
		wire.SetPayloadTag(b, p.payloadKey.PayloadTag(b))
	}
	wire.SetHopTag(b, p.hopKey.HopTag(b))
	if p.raw != nil {
		b = p.raw(b)
	}
	return b
}

// copyTo returns the datagram that a session gets: header and payload, with its
// index and its hop tag.
func copyTo(s *datapath.Session, h wire.Header, payload []byte) Output {
	h.Session = s.SendSession
	b := append(h.Append(nil), payload...)
	wire.SetHopTag(b, s.SendKey.HopTag(b))
	return Output{Dst: s.Addr, Data: b}
}

// parsed returns the header of the packet as it was sent.
func (p *packet) parsed() wire.Header {
	h, _, _ := wire.Parse(p.bytes())
	return h
}

// published returns what must become of a publisher's packet: an ECHO for itself,
// and copies with the stamp to all others of the group.
func (w *world) published(p *packet, from int, seq uint64, to ...int) []Output {
	h := p.parsed()
	h.HopLimit = wire.InitialHopLimit
	h.Ingress = incarnation
	h.Sequence = seq
	h.Handle = handleKeyOf(w.sessions[from].Index, h.ObjectID)
	echo := h
	echo.Type = wire.Echo
	out := []Output{copyTo(&w.sessions[from], echo, nil)}
	for _, i := range to {
		out = append(out, copyTo(&w.sessions[i], h, p.payload))
	}
	return out
}

// relayed returns what must become of an RP neighbour's packet. A heartbeat gets the next
// number of the engine.
func (w *world) relayed(p *packet, to ...int) []Output {
	h := p.parsed()
	h.HopLimit--
	if h.Type == wire.Heartbeat {
		h.ObjectID = w.beats + 1
		h.PayloadTag = p.payloadKey.PayloadTag(h.Append(nil))
	}
	var out []Output
	for _, i := range to {
		out = append(out, copyTo(&w.sessions[i], h, p.payload))
	}
	return out
}

// beat returns what the engine's own heartbeat of a group must be, by the older of its keys.
func (w *world) beat(group ids.Group, beat, seq uint64, to ...int) (out []Output) {
	h := wire.Header{
		Type:     wire.Heartbeat,
		HopLimit: wire.InitialHopLimit,
		Epoch:    epoch - 1,
		Group:    group,
		Ingress:  incarnation,
		Sequence: seq,
		ObjectID: beat,
	}
	key, older := w.keys[keyID{incarnation, group, h.Epoch}]
	if !older {
		h.Epoch = epoch
		key = w.keys[keyID{incarnation, group, epoch}]
	}
	h.PayloadTag = key.PayloadTag(h.Append(nil))
	for _, i := range to {
		out = append(out, copyTo(&w.sessions[i], h, nil))
	}
	return out
}

func handleKeyOf(session ids.Session, object uint64) uint32 {
	k := handleKey
	return k.Handle(session, object)
}

// next is what datagrams must still find after one that was dropped: a publisher
// that may send, own sequences without a gap, an RP neighbour's next sequence.
type next struct {
	w         *world
	published uint64 // accepted of the publisher before
	assigned  uint64 // own sequences in the group before
	relayed   uint64 // newest sequence of the RP neighbour before
	skip      bool   // the case left nothing to send
}

func (n *next) check(t *testing.T) {
	t.Helper()
	if n.skip {
		return
	}
	w := n.w
	p := w.packet(publisher).seq(n.published + 1)
	compare(t, w.published(p, publisher, n.assigned+1, rp, subscriber, reader), w.pass(p))
	p = w.packet(rp).seq(n.relayed + 1)
	compare(t, w.relayed(p, publisher, subscriber, reader), w.pass(p))
}
