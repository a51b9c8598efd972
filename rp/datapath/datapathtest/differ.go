// SPDX-License-Identifier: LGPL-3.0-or-later

package datapathtest

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// Differ gives n random packets, most of them hostile, to two engines in the same
// order. Every verdict and every byte that leaves must be the same. The routes change
// now and then. Halfway some of the peers turn to a channel, if the engines have channels.
func Differ(t *testing.T, a, b New, n int, seed uint64) {
	worlds := [...]*world{newWorld(t, a), newWorld(t, b)}
	for _, w := range worlds {
		// A policer depends on the time, which is not the same in both: two of the
		// sessions get so little back that it does not matter, the others need none.
		for i := range w.sessions {
			if s := &w.sessions[i]; s.Publish {
				s.Rate, s.Burst = 1<<30, 1<<30
			}
			if i == subscriber || i == silent {
				s := &w.sessions[i]
				s.Egress, s.EgressBurst = 1, uint64(n)*40
			}
		}
		w.apply(datapath.Change{Add: w.sessions[:]})
	}
	var seen wire.Counters
	for i := range uint64(n) {
		if i%100 == 0 {
			for _, w := range worlds {
				w.routes(w.randomRoutes(rand.New(rand.NewPCG(seed, ^i)))...)
			}
		}
		if _, ok := worlds[0].subject.(ChannelSubject); ok && i == uint64(n/2) {
			for _, w := range worlds {
				w.listen()
			}
		}
		var verdicts [2]wire.Verdict
		var out [2][]string
		var sent []byte
		for k, w := range worlds {
			p := w.random(rand.New(rand.NewPCG(seed, i)), i)
			w.subject.Age(time.Hour, time.Hour) // how long the engines take does not matter
			sent = p.bytes()
			v, outputs := w.subject.Receive(p.src, sent)
			for j := range outputs { // endpoints by number: the engines have hosts of their own
				outputs[j].Dst = w.numbered(outputs[j].Dst)
			}
			verdicts[k], out[k] = v, lines(outputs)
		}
		if verdicts[0] != verdicts[1] {
			t.Fatalf("packet %d (seed %d): verdicts %v and %v\n%x", i, seed, verdicts[0], verdicts[1], sent)
		}
		if diff := gocmp.Diff(out[0], out[1]); diff != "" {
			t.Fatalf("packet %d (seed %d): outputs differ:\n%s", i, seed, diff)
		}
		seen[verdicts[0]]++
	}
	for v, count := range seen {
		if v := wire.Verdict(v); count == 0 && n >= 10_000 && v != wire.Orphaned {
			t.Errorf("no packet of %d was %v", n, v)
		}
	}
	t.Logf("verdicts %v", seen)
}

// randomRoutes returns routes of all ingress RPs. The RP neighbours' own datagrams may come
// from them; where they go is open.
func (w *world) randomRoutes(r *rand.Rand) (routes []datapath.Route) {
	some := func(nodes ...int) []int {
		return slices.DeleteFunc(nodes, func(int) bool { return r.IntN(2) == 0 })
	}
	return []datapath.Route{
		w.route(incarnation, nil, some(rp, silent)...),
		w.route(ingressOf(rp), append(some(silent), rp), some(rp, silent)...),
		w.route(ingressOf(silent), append(some(rp), silent), some(rp, silent)...),
	}
}

// random returns the i-th packet: a right one, with up to three things wrong. Parts
// of what is wrong are hidden by right tags, so that the later checks see it too.
func (w *world) random(r *rand.Rand, i uint64) *packet {
	p := w.packet(r.IntN(nobody))
	switch r.IntN(10) {
	case 0, 1:
		p.toHeartbeat(i, i)
	case 2:
		p.toHello(i)
	default:
		p.payload = make([]byte, 1+r.IntN(wire.MaxPayload))
		for j := range p.payload {
			p.payload[j] = byte(r.Uint32())
		}
	}
	p.header.Sequence = i + 1
	p.header.ObjectID = max(p.header.ObjectID, i)
	for range r.IntN(4) {
		w.spoil(r, p, i)
	}
	return p
}

// spoil makes one thing of a packet wrong, or unusual.
func (w *world) spoil(r *rand.Rand, p *packet, i uint64) {
	h := &p.header
	switch r.IntN(19) {
	case 0:
		h.Sequence = []uint64{0, i, i / 2, 1, r.Uint64(), 1 << 43, 1<<64 - 1}[r.IntN(7)]
	case 1:
		h.Session = []ids.Session{0, ids.Session(r.Uint32()), w.sessions[r.IntN(nobody)].Index, channelIndex}[r.IntN(4)]
	case 2:
		h.Group = []ids.Group{0, otherGroup, ids.Group(r.Uint32())}[r.IntN(3)]
	case 3:
		h.Ingress = []ids.Incarnation{0, incarnation, ids.Incarnation(r.Uint32()), ingressOf(rp), ingressOf(silent)}[r.IntN(5)]
	case 4:
		h.HopLimit = byte(r.IntN(3))
	case 5:
		h.Epoch = epoch - byte(r.IntN(3))
		if h.Epoch == epoch-1 && r.IntN(2) == 0 {
			p.payloadKey = w.keys[keyID{incarnation, group, h.Epoch}]
		}
	case 6:
		h.Type = wire.Type(r.IntN(16))
	case 7:
		h.Flags = byte(1) << r.IntN(8)
	case 8:
		h.ESI, h.K, h.N = uint16(r.IntN(4)), uint16(r.IntN(4)), uint16(r.IntN(4))
	case 9:
		h.ESI, h.K, h.N = uint16(r.Uint32()), uint16(r.Uint32()), uint16(r.Uint32())
	case 10:
		p.payloadKey = auth.Key{byte(r.Uint32())}
	case 11:
		p.hopKey = auth.Key{byte(r.Uint32())}
	case 12:
		p.src = w.subject.Endpoint(r.IntN(Endpoints))
	case 13:
		cut := r.IntN(wire.MaxDatagram)
		p.raw = func(b []byte) []byte { return b[:min(cut, len(b))] }
	case 14:
		more := r.IntN(100)
		p.raw = func(b []byte) []byte { return append(slices.Clone(b), make([]byte, more)...) }
	case 15:
		bit := r.IntN(8 * wire.MaxDatagram)
		p.raw = func(b []byte) []byte {
			b = slices.Clone(b)
			b[bit/8%len(b)] ^= 1 << (bit % 8)
			return b
		}
	case 16:
		// A symbol of an object of up to three, sometimes of the wrong size.
		object, esi, wrong, more := 1+r.IntN(3*wire.MaxPayload), r.IntN(4), r.IntN(4), r.IntN(2)
		k := wire.SourceSymbols(object)
		size := max(1, min(wire.MaxPayload, object-esi*wire.MaxPayload))
		if wrong == 0 {
			size = 1 + r.IntN(wire.MaxPayload)
		}
		p.payload = slices.Concat(p.payload, make([]byte, wire.MaxPayload))[:size]
		payloadKey, hopKey := p.payloadKey, p.hopKey
		p.raw = func(b []byte) []byte {
			if len(b) != wire.HeaderSize+size {
				return b // its type has no payload
			}
			binary.BigEndian.PutUint16(b[28:], uint16(esi))
			binary.BigEndian.PutUint16(b[30:], uint16(k))
			binary.BigEndian.PutUint16(b[32:], uint16(k+more))
			binary.BigEndian.PutUint32(b[36:], uint32(object))
			wire.SetPayloadTag(b, payloadKey.PayloadTag(b))
			wire.SetHopTag(b, hopKey.HopTag(b))
			return b
		}
	case 17:
		switch h.Session {
		case w.sessions[rp].Index:
			w.from(p, silent)
		case w.sessions[silent].Index:
			w.from(p, rp)
		}
	case 18:
		first := byte(r.Uint32())
		p.raw = func(b []byte) []byte { return append([]byte{first}, b[1:]...) }
	}
}

// numbered returns an endpoint's number in place of its address, and no port in that
// of the channel.
func (w *world) numbered(addr netip.AddrPort) netip.AddrPort {
	for i := range Endpoints {
		if w.subject.Endpoint(i) == addr {
			return netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(i))
		}
	}
	if s, ok := w.subject.(ChannelSubject); ok && s.Channel() == addr {
		return netip.AddrPortFrom(addr.Addr(), 0)
	}
	return addr
}
