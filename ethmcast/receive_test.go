// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/coverage"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

const (
	testSession = 0x1111
	testIngress = 0x2222
	testGroup   = 0x3333
)

var (
	testRP       = netip.MustParseAddrPort("[2001:db8::53]:30501")
	testHopKey   = auth.Key{1}
	testGroupKey = auth.Key{2}
)

func newTestReceiver() *receiver {
	r := newReceiver()
	r.join(testSession, testRP, testHopKey)
	r.install(proto.GroupKey{Ingress: testIngress, Group: testGroup, Epoch: 1, Key: testGroupKey})
	return r
}

// datagram returns a right DATA datagram with changes: to the header before the
// tags are made, to the bytes after.
func datagram(header func(*wire.Header), bytes func([]byte) []byte) []byte {
	payload := []byte("payload")
	h := wire.Header{
		Type: wire.Data, Session: testSession, Group: testGroup, Ingress: testIngress, Sequence: 5, Epoch: 1,
		K: 1, N: 1, PayloadLen: uint16(len(payload)), ObjectLen: uint32(len(payload)), ObjectID: 6,
	}
	if header != nil {
		header(&h)
	}
	if h.Type != wire.Data {
		payload = nil
	}
	b := append(h.Append(nil), payload...)
	wire.SetPayloadTag(b, testGroupKey.PayloadTag(b))
	wire.SetHopTag(b, testHopKey.HopTag(b))
	if bytes != nil {
		b = bytes(b)
	}
	return b
}

// snapshot is all state of a receiver that a datagram could change.
func snapshot(r *receiver) string {
	return fmt.Sprintf("%v %v %v %v %d", r.session, r.keys, *r.windows[coverage.Stream{Ingress: testIngress, Group: testGroup}], r.beats, r.buffer.Bytes())
}

func TestReceiverVerdicts(t *testing.T) {
	elsewhere := netip.MustParseAddrPort("[2001:db8::53]:30502")
	for _, test := range []struct {
		name string
		src  netip.AddrPort
		b    []byte
		want wire.Verdict
	}{
		{"truncated", testRP, datagram(nil, func(b []byte) []byte { return b[:63] }), wire.Truncated},
		{"oversized", testRP, make([]byte, wire.MaxDatagram+1), wire.Oversized},
		{"version", testRP, datagram(nil, func(b []byte) []byte { b[0] = 0x21; return b }), wire.BadVersion},
		{"type", testRP, datagram(nil, func(b []byte) []byte { b[0] = 0x1f; return b }), wire.BadType},
		{"length", testRP, datagram(nil, func(b []byte) []byte { return b[:len(b)-1] }), wire.BadLength},
		{"session", testRP, datagram(func(h *wire.Header) { h.Session++ }, nil), wire.NoSession},
		{"source", elsewhere, datagram(nil, nil), wire.BadSource},
		{"hop tag", testRP, datagram(nil, func(b []byte) []byte { b[56] ^= 1; return b }), wire.BadHopTag},
		{"header", testRP, datagram(nil, func(b []byte) []byte { b[16] ^= 1; return b }), wire.BadHopTag},
		{"payload", testRP, datagram(nil, func(b []byte) []byte { b[64] ^= 1; return b }), wire.BadPayloadTag},
		{"ingress", testRP, datagram(func(h *wire.Header) { h.Ingress++ }, nil), wire.NoKey},
		{"group", testRP, datagram(func(h *wire.Header) { h.Group++ }, nil), wire.NoKey},
		{"epoch", testRP, datagram(func(h *wire.Header) { h.Epoch = 9 }, nil), wire.NoKey},
	} {
		r := newTestReceiver()
		before := snapshot(r)
		if _, _, v := r.check(test.src, test.b); v != test.want {
			t.Errorf("%s: %v, want %v", test.name, v, test.want)
		}
		if after := snapshot(r); after != before {
			t.Errorf("%s: state changed from %s to %s", test.name, before, after)
		}
		if _, _, v := r.check(testRP, datagram(nil, nil)); v != wire.Pass {
			t.Errorf("%s: the right datagram after it: %v", test.name, v)
		}
	}
}

func TestReceiverReplay(t *testing.T) {
	r := newTestReceiver()
	beat := func(n uint64) []byte {
		return datagram(func(h *wire.Header) { h.Type, h.ObjectID = wire.Heartbeat, n }, nil)
	}
	echo := datagram(func(h *wire.Header) { h.Type, h.Sequence = wire.Echo, 7 }, nil)
	for i, step := range []struct {
		b    []byte
		want wire.Verdict
	}{
		{datagram(nil, nil), wire.Pass},
		{datagram(nil, nil), wire.Replayed},
		{echo, wire.Pass},
		{echo, wire.Replayed},
		{beat(3), wire.Pass},
		{beat(3), wire.Replayed},
		{beat(2), wire.Replayed},
		{beat(4), wire.Pass},
		{datagram(func(h *wire.Header) { h.Sequence += 4096 }, nil), wire.Pass},
		{datagram(func(h *wire.Header) { h.Sequence++ }, nil), wire.TooOld},
	} {
		if _, _, v := r.check(testRP, step.b); v != step.want {
			t.Errorf("step %d: %v, want %v", i, v, step.want)
		}
	}
	r.leave()
	if _, _, v := r.check(testRP, datagram(nil, nil)); v != wire.NoSession {
		t.Errorf("after leaving: %v", v)
	}
}

// The newest two epochs are valid, across the wrap of the epoch's 8 bits.
func TestReceiverEpochs(t *testing.T) {
	r := newTestReceiver()
	for _, epoch := range []uint8{2, 3, 255, 0} {
		r.install(proto.GroupKey{Ingress: testIngress, Group: testGroup, Epoch: epoch, Key: testGroupKey})
	}
	for epoch, want := range map[uint8]wire.Verdict{2: wire.NoKey, 3: wire.NoKey, 255: wire.Pass, 0: wire.Pass} {
		b := datagram(func(h *wire.Header) { h.Epoch, h.Sequence = epoch, uint64(epoch)+100 }, nil)
		if _, _, v := r.check(testRP, b); v != want {
			t.Errorf("epoch %d: %v, want %v", epoch, v, want)
		}
	}
	r.retire(testIngress)
	if _, _, v := r.check(testRP, datagram(nil, nil)); v != wire.NoKey {
		t.Errorf("retired ingress RP: %v", v)
	}
}

func FuzzReceiver(f *testing.F) {
	f.Add(datagram(nil, nil))
	f.Add(datagram(func(h *wire.Header) { h.Type = wire.Echo }, nil))
	f.Add(datagram(func(h *wire.Header) { h.Type = wire.Heartbeat }, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newTestReceiver()
		before := snapshot(r)
		h, _, v := r.check(testRP, b)
		if v == wire.Pass && h.Type != wire.Probe && !testHopKey.CheckHopTag(b, h.HopTag) {
			t.Fatalf("passed without a right hop tag: %v", &h)
		}
		if v != wire.Pass && snapshot(r) != before {
			t.Fatalf("verdict %v changed the state", v)
		}
	})
}

// A PROBE from anywhere but the data endpoint of an RP that is being joined gets
// no Echo.
func TestForeignProbe(t *testing.T) {
	s, err := New(Config{RPs: []*enode.Node{nil}, Publish: PublishAll}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(100, 0)
	rp := &rpConn{conn: conn{out: make(chan proto.Message, sendQueue)}, addr: testRP.Addr()}
	rp.joiner = proto.NewJoiner(proto.JoinerConfig{Groups: []uint32{1}, Port: 1, Rand: rand.Reader})
	s.rps[enode.ID{1}] = rp
	rp.joiner.Want(now, true)
	if err := rp.joiner.Handle(now, &proto.Status{Role: proto.RoleRP, Incarnation: 1, DataPort: testRP.Port()}); err != nil {
		t.Fatal(err)
	}
	probe := func(src netip.AddrPort) (echoes int) {
		h := wire.Header{Type: wire.Probe}
		s.receive(now, src, append(h.Append(nil), make([]byte, wire.MaxPayload)...))
		s.drain(now, rp)
		for len(rp.out) > 0 {
			if m := <-rp.out; m.Code() == proto.EchoMsg {
				echoes++
			}
		}
		return echoes
	}
	if n := probe(netip.MustParseAddrPort("[2001:db8::53]:1")); n != 0 {
		t.Errorf("%d echoes for a PROBE from another port", n)
	}
	if n := probe(netip.MustParseAddrPort("[2001:db8::54]:30501")); n != 0 {
		t.Errorf("%d echoes for a PROBE from another address", n)
	}
	if n := probe(testRP); n != 1 {
		t.Errorf("%d echoes for the RP's own PROBE", n)
	}
}
