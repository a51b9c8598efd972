// SPDX-License-Identifier: LGPL-3.0-or-later

package datapathtest

import (
	"net/netip"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// testCase is one datagram: the packet of a node, what is wrong with it, and what
// must become of it.
type testCase struct {
	name    string
	from    int
	before  func(*world)          // what happened earlier
	edit    func(*world, *packet) // what is wrong, or special
	verdict wire.Verdict
	want    func(*world, *packet) []Output // nil: nothing
}

// publisherSent lets the publisher send its sequences 1 to n.
func publisherSent(n uint64) func(*world) {
	return func(w *world) {
		for seq := uint64(1); seq <= n; seq++ {
			w.pass(w.packet(publisher).seq(seq))
		}
		w.next.published, w.next.assigned = n, n
	}
}

// neighbourSent lets the RP neighbour send a sequence.
func neighbourSent(seq uint64) func(*world) {
	return func(w *world) {
		w.pass(w.packet(rp).seq(seq))
		w.next.relayed = seq
	}
}

// neighbourBeat lets the RP neighbour send a heartbeat.
func neighbourBeat(beat, seq uint64) func(*world) {
	return func(w *world) {
		w.pass(w.heartbeat(rp, beat, seq))
		w.subject.Age(0, datapath.HeartbeatGap) // the next one may come
		w.next.relayed = seq
	}
}

// soon is what happened just now, however long it took.
func soon(before func(*world)) func(*world) {
	return func(w *world) {
		before(w)
		w.subject.Age(-time.Hour, 0)
	}
}

func raw(f func(b []byte) []byte) func(*world, *packet) {
	return func(_ *world, p *packet) { p.raw = f }
}

func flip(i int) func(*world, *packet) {
	return raw(func(b []byte) []byte {
		b[i] ^= 1
		return b
	})
}

var cases = []testCase{
	// What is accepted.
	{
		name: "publisher's datagram goes to the mesh and to all subscribers", from: publisher, verdict: wire.Pass,
		want: func(w *world, p *packet) []Output { return w.published(p, publisher, 1, rp, subscriber, reader) },
	},
	{
		name: "publisher's sequence is its own", from: publisher, verdict: wire.Pass,
		edit: func(_ *world, p *packet) { p.header.Sequence = 1 << 40 },
		want: func(w *world, p *packet) []Output { return w.published(p, publisher, 1, rp, subscriber, reader) },
	},
	{
		name: "sequences are assigned over all publishers", from: subscriber, verdict: wire.Pass,
		before: publisherSent(2),
		want:   func(w *world, p *packet) []Output { return w.published(p, subscriber, 3, rp, publisher, reader) },
	},
	{
		name: "sequences are assigned for each group", from: stranger, verdict: wire.Pass,
		before: publisherSent(2),
		want:   func(w *world, p *packet) []Output { return w.published(p, stranger, 1) },
	},
	{
		name: "publisher's datagram of the epoch before", from: publisher, verdict: wire.Pass,
		edit: func(w *world, p *packet) {
			p.header.Epoch = epoch - 1
			p.payloadKey = w.keys[keyID{incarnation, group, epoch - 1}]
		},
		want: func(w *world, p *packet) []Output { return w.published(p, publisher, 1, rp, subscriber, reader) },
	},
	{
		name: "republished datagram keeps its flag, hop limit and handle are overwritten", from: publisher, verdict: wire.Pass,
		edit: func(_ *world, p *packet) {
			p.header.Flags = wire.FlagRepublished
			p.header.HopLimit, p.header.Handle = 77, 0x1234
		},
		want: func(w *world, p *packet) []Output { return w.published(p, publisher, 1, rp, subscriber, reader) },
	},
	{
		name: "datagram that asks for a receipt keeps its flag", from: publisher, verdict: wire.Pass,
		edit: func(_ *world, p *packet) { p.header.Flags = wire.FlagReceipt },
		want: func(w *world, p *packet) []Output { return w.published(p, publisher, 1, rp, subscriber, reader) },
	},
	{
		name: "RP neighbour's datagram that asks for a receipt keeps its flag", from: rp, verdict: wire.Pass,
		edit: func(_ *world, p *packet) { p.header.Flags = wire.FlagReceipt | wire.FlagRepublished },
		want: func(w *world, p *packet) []Output { return w.relayed(p, publisher, subscriber, reader) },
	},
	{
		name: "full datagram", from: publisher, verdict: wire.Pass,
		edit: func(_ *world, p *packet) { p.payload = make([]byte, wire.MaxPayload) },
		want: func(w *world, p *packet) []Output { return w.published(p, publisher, 1, rp, subscriber, reader) },
	},
	{
		name: "RP neighbour's datagram goes to local subscribers", from: rp, verdict: wire.Pass,
		want: func(w *world, p *packet) []Output { return w.relayed(p, publisher, subscriber, reader) },
	},
	{
		name: "RP neighbour that gets nothing yet is accepted from", from: silent, verdict: wire.Pass,
		want: func(w *world, p *packet) []Output { return w.relayed(p, publisher, subscriber, reader) },
	},
	{
		name: "RP neighbour's last hop", from: rp, verdict: wire.Pass,
		edit: func(_ *world, p *packet) { p.header.HopLimit = 1 },
		want: func(w *world, p *packet) []Output { return w.relayed(p, publisher, subscriber, reader) },
	},
	{
		name: "RP neighbour's first sequence is any", from: rp, verdict: wire.Pass,
		edit: func(_ *world, p *packet) { p.header.Sequence = 1 << 40 },
		want: func(w *world, p *packet) []Output { return w.relayed(p, publisher, subscriber, reader) },
	},
	{
		name: "RP neighbour's sequence ahead of a datagram", from: rp, verdict: wire.Pass,
		before: neighbourSent(5),
		edit:   func(_ *world, p *packet) { p.header.Sequence = 5 + datapath.MaxAhead },
		want:   func(w *world, p *packet) []Output { return w.relayed(p, publisher, subscriber, reader) },
	},
	{
		name: "RP neighbour's sequence ahead of a heartbeat", from: rp, verdict: wire.Pass,
		before: neighbourBeat(1, 1<<30),
		edit:   func(_ *world, p *packet) { p.header.Sequence = 1<<30 + datapath.MaxAhead },
		want:   func(w *world, p *packet) []Output { return w.relayed(p, publisher, subscriber, reader) },
	},
	{
		name: "RP neighbour's late datagram", from: rp, verdict: wire.Pass,
		before: neighbourSent(4000),
		want:   func(w *world, p *packet) []Output { return w.relayed(p, publisher, subscriber, reader) },
	},
	{
		name: "sequence that came with another upstream first", from: rp, verdict: wire.Pass,
		before: func(w *world) {
			p := w.packet(silent)
			p.header.Ingress = ingressOf(rp)
			p.payloadKey = w.packet(rp).payloadKey
			if v, _ := w.subject.Receive(p.src, p.bytes()); v != wire.BadUpstream {
				w.t.Fatalf("wrong upstream: verdict %v", v)
			}
		},
		want: func(w *world, p *packet) []Output { return w.relayed(p, publisher, subscriber, reader) },
	},
	{
		name: "RP neighbour's heartbeat goes to local subscribers", from: rp, verdict: wire.Pass,
		edit: func(_ *world, p *packet) { p.toHeartbeat(1, 9) },
		want: func(w *world, p *packet) []Output { return w.relayed(p, publisher, subscriber, reader) },
	},
	{
		name: "RP neighbour's next heartbeat, nothing published", from: rp, verdict: wire.Pass,
		before: neighbourBeat(1, 9),
		edit:   func(_ *world, p *packet) { p.toHeartbeat(2, 9) },
		want:   func(w *world, p *packet) []Output { return w.relayed(p, publisher, subscriber, reader) },
	},
	{
		name: "RP neighbour's heartbeat after a long pause", from: rp, verdict: wire.Pass,
		before: func(w *world) {
			neighbourBeat(1, 9)(w)
			w.subject.Age(10*time.Second, 10*time.Second)
		},
		edit: func(_ *world, p *packet) { p.toHeartbeat(1000, 10*datapath.MaxAhead) },
		want: func(w *world, p *packet) []Output { return w.relayed(p, publisher, subscriber, reader) },
	},
	{
		name: "RP neighbour's datagram after a long pause", from: rp, verdict: wire.Pass,
		before: func(w *world) {
			neighbourSent(9)(w)
			w.subject.Age(10*time.Second, 0)
		},
		edit: func(_ *world, p *packet) {
			p.header.Sequence = 9 + datapath.MaxAhead + uint64(10*time.Second/datapath.AheadEach)
		},
		want: func(w *world, p *packet) []Output { return w.relayed(p, publisher, subscriber, reader) },
	},
	{
		name: "RP neighbour's heartbeat that was overtaken", from: rp, verdict: wire.Pass,
		before: neighbourBeat(24, 9),
		edit:   func(_ *world, p *packet) { p.toHeartbeat(1, 1<<40) },
	},
	{
		name: "RP neighbour's heartbeat that another stream's overtook", from: rp, verdict: wire.Pass,
		before: func(w *world) {
			w.routes(w.route(ingressOf(silent), []int{rp}))
			w.pass(w.from(w.heartbeat(silent, 24, 9), rp))
		},
		edit: func(_ *world, p *packet) { p.toHeartbeat(23, 9) },
		want: func(w *world, p *packet) []Output { return w.relayed(p, publisher, subscriber, reader) },
	},
	{
		name: "peer's keep-alive with a payload tag that does not count", from: reader, verdict: wire.Pass,
		edit: func(_ *world, p *packet) { p.toHeartbeat(0, 0); p.header.Epoch = epoch - 7 },
	},
	{
		name: "peer's keep-alive", from: reader, verdict: wire.Pass,
		edit: func(_ *world, p *packet) { p.toHeartbeat(0, 0) },
	},
	{
		name: "peer's keep-alive again, with fields that do not count", from: publisher, verdict: wire.Pass,
		before: func(w *world) { w.pass(w.heartbeat(publisher, 7, 7)) },
		edit:   func(_ *world, p *packet) { p.toHeartbeat(7, 7); p.header.Ingress, p.header.Group = 7, 7 },
	},

	{
		name: "RP neighbour's hello", from: rp, verdict: wire.Pass,
		edit: func(_ *world, p *packet) { p.toHello(1) },
	},
	{
		name: "RP neighbour's hello with fields that do not count", from: silent, verdict: wire.Pass,
		edit: func(_ *world, p *packet) {
			p.toHello(1)
			p.header.HopLimit, p.header.Group, p.header.Ingress, p.header.Handle = 0, 7, 7, 7
		},
	},
	{
		name: "RP neighbour's hellos, not in order", from: rp, verdict: wire.Pass,
		before: func(w *world) { w.pass(w.helloFrom(rp, 2)) },
		edit:   func(_ *world, p *packet) { p.toHello(1) },
	},

	// Form.
	{name: "empty", from: publisher, verdict: wire.Truncated, edit: raw(func(b []byte) []byte { return nil })},
	{name: "header cut", from: publisher, verdict: wire.Truncated, edit: raw(func(b []byte) []byte { return b[:wire.HeaderSize-1] })},
	{
		name: "too long", from: publisher, verdict: wire.Oversized,
		edit: raw(func([]byte) []byte { return make([]byte, wire.MaxDatagram+1) }),
	},
	{name: "version 2", from: publisher, verdict: wire.BadVersion, edit: raw(func(b []byte) []byte { b[0] = 2<<4 | b[0]&15; return b })},
	{name: "type 0", from: publisher, verdict: wire.BadType, edit: raw(func(b []byte) []byte { b[0] = 1 << 4; return b })},
	{name: "type 15", from: publisher, verdict: wire.BadType, edit: raw(func(b []byte) []byte { b[0] |= 15; return b })},
	{
		name: "echo from a peer", from: publisher, verdict: wire.BadType,
		edit: func(_ *world, p *packet) { p.toHeartbeat(1, 1); p.header.Type = wire.Echo },
	},
	{
		name: "echo of nobody", from: publisher, verdict: wire.NoSession,
		edit: func(_ *world, p *packet) {
			p.toHeartbeat(1, 1)
			p.header.Type, p.header.Session = wire.Echo, 0x9999
		},
	},
	{
		name: "hello from a peer", from: publisher, verdict: wire.BadType,
		edit: func(_ *world, p *packet) { p.toHello(1) },
	},
	{
		name: "probe from an RP neighbour", from: rp, verdict: wire.BadType,
		edit: func(_ *world, p *packet) {
			p.toHello(1)
			p.header.Type = wire.Probe
			p.payload = make([]byte, 100)
		},
	},
	{
		name: "probe from a peer", from: publisher, verdict: wire.BadType,
		edit: func(_ *world, p *packet) {
			p.toHeartbeat(0, 0)
			p.header.Type = wire.Probe
			p.payload = make([]byte, 100)
		},
	},
	{name: "payload cut", from: publisher, verdict: wire.BadLength, edit: raw(func(b []byte) []byte { return b[:len(b)-1] })},
	{name: "payload padded", from: publisher, verdict: wire.BadLength, edit: raw(func(b []byte) []byte { return append(b, 0) })},
	{name: "no payload", from: publisher, verdict: wire.BadLength, edit: func(_ *world, p *packet) { p.payload = nil }},
	{
		name: "heartbeat with payload", from: rp, verdict: wire.BadLength,
		edit: func(_ *world, p *packet) { p.toHeartbeat(1, 1); p.payload = []byte{0} },
	},
	{
		name: "hello with payload", from: rp, verdict: wire.BadLength,
		edit: func(_ *world, p *packet) { p.toHello(1); p.payload = []byte{0} },
	},
	{name: "undefined flag", from: publisher, verdict: wire.Malformed, edit: func(_ *world, p *packet) { p.header.Flags = 0x80 }},
	{name: "first flag that is not defined", from: rp, verdict: wire.Malformed, edit: func(_ *world, p *packet) { p.header.Flags = 0x04 }},
	{name: "more source symbols than symbols", from: publisher, verdict: wire.Malformed, edit: func(_ *world, p *packet) { p.header.K = 2 }},
	{name: "symbol id beyond N", from: publisher, verdict: wire.Malformed, edit: func(_ *world, p *packet) { p.header.ESI = 1 }},

	// Hop.
	{name: "unknown session", from: publisher, verdict: wire.NoSession, edit: func(_ *world, p *packet) { p.header.Session = 0x9999 }},
	{name: "session 0", from: publisher, verdict: wire.NoSession, edit: func(_ *world, p *packet) { p.header.Session = 0 }},
	{
		name: "source of another peer", from: publisher, verdict: wire.BadSource,
		edit: func(w *world, p *packet) { p.src = w.sessions[subscriber].Addr },
	},
	{
		name: "source unknown", from: publisher, verdict: wire.BadSource,
		edit: func(w *world, p *packet) { p.src = w.subject.Endpoint(nobody) },
	},
	{
		name: "RP neighbour's session from a peer", from: rp, verdict: wire.BadSource,
		edit: func(w *world, p *packet) { p.src = w.sessions[publisher].Addr },
	},
	{name: "hop tag flipped", from: publisher, verdict: wire.BadHopTag, edit: flip(63)},
	{name: "sequence changed on the way", from: publisher, verdict: wire.BadHopTag, edit: flip(23)},
	{name: "payload tag changed on the way", from: publisher, verdict: wire.BadHopTag, edit: flip(48)},
	{
		name: "hop tag by the key of the other direction", from: publisher, verdict: wire.BadHopTag,
		edit: func(w *world, p *packet) { p.hopKey = w.sessions[publisher].SendKey },
	},
	{
		name: "hop tag by another peer's key", from: publisher, verdict: wire.BadHopTag,
		edit: func(w *world, p *packet) { p.hopKey = w.sessions[subscriber].ReceiveKey },
	},
	{
		name: "keep-alive with a wrong hop tag", from: reader, verdict: wire.BadHopTag,
		edit: func(_ *world, p *packet) { p.toHeartbeat(0, 0); p.hopKey = auth.Key{} },
	},
	{
		name: "RP neighbour's hello with a wrong hop tag", from: rp, verdict: wire.BadHopTag,
		edit: func(_ *world, p *packet) { p.toHello(1); p.hopKey = auth.Key{} },
	},
	{
		name: "RP neighbour's heartbeat with a wrong hop tag", from: rp, verdict: wire.BadHopTag,
		edit: func(_ *world, p *packet) { p.toHeartbeat(1, 1<<40); p.hopKey = auth.Key{} },
	},

	// Role.
	{name: "reader publishes", from: reader, verdict: wire.NotPublisher},
	{
		name: "publisher of another group", from: publisher, verdict: wire.NotPublisher,
		edit: func(w *world, p *packet) {
			p.header.Group = otherGroup
			p.payloadKey = w.keys[keyID{incarnation, otherGroup, epoch}]
		},
	},
	{
		name: "publisher of an unknown group", from: publisher, verdict: wire.NotPublisher,
		edit: func(_ *world, p *packet) { p.header.Group = 1 },
	},
	{
		name: "publisher with the engine's own ingress", from: publisher, verdict: wire.BadUpstream,
		edit: func(_ *world, p *packet) { p.header.Ingress = incarnation },
	},
	{
		name: "publisher with an RP neighbour's ingress", from: publisher, verdict: wire.BadUpstream,
		edit: func(w *world, p *packet) { p.header.Ingress = ingressOf(rp) },
	},
	{
		name: "RP neighbour with another's ingress", from: rp, verdict: wire.BadUpstream,
		edit: func(w *world, p *packet) { p.header.Ingress = ingressOf(silent) },
	},
	{
		name: "RP neighbour with the engine's own ingress", from: rp, verdict: wire.BadUpstream,
		edit: func(_ *world, p *packet) { p.header.Ingress = incarnation },
	},
	{name: "RP neighbour without ingress", from: rp, verdict: wire.NoKey, edit: func(_ *world, p *packet) { p.header.Ingress = 0 }},
	{
		name: "RP neighbour's heartbeat of another", from: rp, verdict: wire.BadUpstream,
		edit: func(w *world, p *packet) { p.toHeartbeat(1, 9); p.header.Ingress = ingressOf(silent) },
	},
	{name: "RP neighbour's datagram at its end", from: rp, verdict: wire.HopLimit, edit: func(_ *world, p *packet) { p.header.HopLimit = 0 }},
	{
		name: "RP neighbour's heartbeat at its end", from: rp, verdict: wire.HopLimit,
		edit: func(_ *world, p *packet) { p.toHeartbeat(1, 9); p.header.HopLimit = 0 },
	},

	// Payload.
	{name: "publisher's epoch not installed", from: publisher, verdict: wire.NoKey, edit: func(_ *world, p *packet) { p.header.Epoch = epoch - 2 }},
	{name: "RP neighbour's epoch not installed", from: rp, verdict: wire.NoKey, edit: func(_ *world, p *packet) { p.header.Epoch = epoch - 1 }},
	{name: "RP neighbour's group without key", from: rp, verdict: wire.NoKey, edit: func(_ *world, p *packet) { p.header.Group = otherGroup }},
	{
		name: "RP neighbour's heartbeat of a group without key", from: rp, verdict: wire.NoKey,
		edit: func(_ *world, p *packet) { p.toHeartbeat(1, 9); p.header.Group = otherGroup },
	},
	{
		name: "payload tag by a foreign key", from: publisher, verdict: wire.BadPayloadTag,
		edit: func(_ *world, p *packet) { p.payloadKey = auth.Key{} },
	},
	{name: "payload changed on the way", from: publisher, verdict: wire.BadPayloadTag, edit: flip(wire.HeaderSize)},
	{
		name: "payload tag by the key of the epoch before", from: publisher, verdict: wire.BadPayloadTag,
		edit: func(w *world, p *packet) { p.payloadKey = w.keys[keyID{incarnation, group, epoch - 1}] },
	},
	{
		name: "RP neighbour's payload tag by the engine's own key", from: rp, verdict: wire.BadPayloadTag,
		edit: func(w *world, p *packet) { p.payloadKey = w.keys[keyID{incarnation, group, epoch}] },
	},

	{
		name: "RP neighbour's heartbeat by the engine's own key", from: rp, verdict: wire.BadPayloadTag,
		edit: func(w *world, p *packet) {
			p.toHeartbeat(1, 9)
			p.payloadKey = w.keys[keyID{incarnation, group, epoch}]
		},
	},
	{
		name: "RP neighbour's heartbeat without a payload tag", from: rp, verdict: wire.BadPayloadTag,
		edit: func(w *world, p *packet) {
			p.toHeartbeat(1, 9)
			hop := p.hopKey
			p.raw = func(b []byte) []byte {
				wire.SetPayloadTag(b, [8]byte{})
				wire.SetHopTag(b, hop.HopTag(b))
				return b
			}
		},
	},
	{
		name: "RP neighbour's heartbeat of an epoch that is not installed", from: rp, verdict: wire.NoKey,
		edit: func(_ *world, p *packet) { p.toHeartbeat(1, 9); p.header.Epoch = epoch - 1 },
	},
	{
		name: "RP neighbour's heartbeat without key and taken before", from: rp, verdict: wire.NoKey,
		before: neighbourBeat(1, 9),
		edit:   func(_ *world, p *packet) { p.toHeartbeat(1, 9); p.header.Epoch = epoch - 1 },
	},

	// Rate, sequence.
	{
		name: "publisher beyond its burst", from: publisher, verdict: wire.OverRate,
		before: func(w *world) {
			publisherSent(burst)(w)
			w.next.skip = true // it has nothing left to send
		},
		edit: func(_ *world, p *packet) { p.header.Sequence = burst + 1 },
	},
	{
		name: "publisher beyond its copies", from: publisher, verdict: wire.OverRate,
		before: func(w *world) {
			w.limit(publisher, 1)
			publisherSent(1)(w)
			w.next.skip = true
		},
		edit: func(_ *world, p *packet) { p.header.Sequence = 2 },
	},
	{
		name: "RP neighbour beyond its copies", from: rp, verdict: wire.OverRate,
		before: func(w *world) {
			w.limit(rp, 1)
			neighbourSent(1)(w)
			w.next.skip = true
		},
		edit: func(_ *world, p *packet) { p.header.Sequence = 2 },
	},
	{
		name: "RP neighbour's rate comes before its sequence", from: rp, verdict: wire.OverRate,
		before: func(w *world) {
			w.limit(rp, 1)
			neighbourSent(1)(w)
			w.next.skip = true
		},
		edit: func(_ *world, p *packet) { p.header.Sequence = datapath.MaxAhead + 2 },
	},
	{
		name: "RP neighbour beyond its copies may not beat either", from: rp, verdict: wire.OverRate,
		before: func(w *world) {
			w.limit(rp, 1)
			neighbourSent(1)(w)
			w.next.skip = true
		},
		edit: func(_ *world, p *packet) { p.toHeartbeat(1, 1) },
	},
	{
		name: "RP neighbour's heartbeat too soon after another", from: rp, verdict: wire.OverRate,
		before: func(w *world) {
			neighbourBeat(1, 9)(w)
			w.subject.Age(0, -time.Hour)
		},
		edit: func(_ *world, p *packet) { p.toHeartbeat(2, 9) },
	},
	{name: "publisher's datagram again", from: publisher, verdict: wire.Replayed, before: publisherSent(1)},
	{
		name: "replay is seen before the payload tag is computed", from: publisher, verdict: wire.Replayed,
		before: publisherSent(1),
		edit:   func(_ *world, p *packet) { p.payloadKey = auth.Key{} },
	},
	{
		name: "publisher's datagram behind its window", from: publisher, verdict: wire.TooOld,
		before: func(w *world) {
			w.pass(w.packet(publisher).seq(auth.WindowSize + 1))
			w.next.published, w.next.assigned = auth.WindowSize+1, 1
		},
	},
	{name: "RP neighbour's datagram again", from: rp, verdict: wire.Replayed, before: neighbourSent(1)},
	{
		name: "RP neighbour's datagram behind its window", from: rp, verdict: wire.TooOld,
		before: neighbourSent(auth.WindowSize + 1),
	},
	{
		name: "RP neighbour's heartbeat again", from: rp, verdict: wire.Replayed,
		before: neighbourBeat(2, 9),
		edit:   func(_ *world, p *packet) { p.toHeartbeat(2, 9) },
	},
	{
		name: "RP neighbour's hello again", from: rp, verdict: wire.Replayed,
		before: func(w *world) { w.pass(w.helloFrom(rp, 1)) },
		edit:   func(_ *world, p *packet) { p.toHello(1) },
	},
	{
		name: "RP neighbour's hello behind its window", from: rp, verdict: wire.TooOld,
		before: func(w *world) { w.pass(w.helloFrom(rp, auth.WindowSize+1)) },
		edit:   func(_ *world, p *packet) { p.toHello(1) },
	},
	{
		name: "RP neighbour's much older heartbeat", from: rp, verdict: wire.Replayed,
		before: neighbourBeat(25, 9),
		edit:   func(_ *world, p *packet) { p.toHeartbeat(1, 1<<40) },
	},
	{
		name: "RP neighbour's heartbeat with the first number that is none", from: rp, verdict: wire.Replayed,
		edit: func(_ *world, p *packet) { p.toHeartbeat(1<<40, 9) },
	},
	{
		name: "RP neighbour's heartbeat 0", from: rp, verdict: wire.Replayed,
		edit: func(_ *world, p *packet) { p.toHeartbeat(0, 9) },
	},
	{
		name: "RP neighbour's sequence too far ahead of a heartbeat", from: rp, verdict: wire.FarAhead,
		before: soon(neighbourBeat(1, 0)),
		edit:   func(_ *world, p *packet) { p.header.Sequence = datapath.MaxAhead + 1 },
	},
	{
		name: "RP neighbour's sequence too far ahead of a datagram", from: rp, verdict: wire.FarAhead,
		before: soon(neighbourSent(5)),
		edit:   func(_ *world, p *packet) { p.header.Sequence = 5 + datapath.MaxAhead + 1 },
	},
	{
		name: "RP neighbour's heartbeat too far ahead", from: rp, verdict: wire.FarAhead,
		before: soon(neighbourSent(5)),
		edit:   func(_ *world, p *packet) { p.toHeartbeat(1, 5+datapath.MaxAhead+1) },
	},
	{
		name: "RP neighbour's first sequence beyond the last", from: rp, verdict: wire.FarAhead,
		edit: func(_ *world, p *packet) { p.header.Sequence = datapath.MaxSequence + 1 },
	},
	{
		name: "RP neighbour's first heartbeat beyond the last sequence", from: rp, verdict: wire.FarAhead,
		edit: func(_ *world, p *packet) { p.toHeartbeat(1, datapath.MaxSequence+1) },
	},
	{
		name: "RP neighbour's largest sequence", from: rp, verdict: wire.FarAhead,
		before: neighbourSent(5),
		edit:   func(_ *world, p *packet) { p.header.Sequence = 1<<64 - 1 },
	},
}

// unusable are endpoints that no session may have.
var unusable = []netip.AddrPort{
	{},
	netip.MustParseAddrPort("192.0.2.1:30501"),
	netip.MustParseAddrPort("[::ffff:192.0.2.1]:30501"),
	netip.MustParseAddrPort("[::]:30501"),
	netip.MustParseAddrPort("[ff02::1]:30501"),
	netip.MustParseAddrPort("[2001:db8::1]:0"),
}
