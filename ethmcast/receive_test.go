// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/auth/authtest"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/outbox"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

const (
	testSession = 0x1111
	testChannel = 0x4444
	testIngress = 0x2222
	testGroup   = 0x3333
)

// testOther is the incarnation of another RP than that which sends.
const testOther = testIngress + 100

var (
	testRP         = netip.MustParseAddrPort("[2001:db8::53]:30501")
	testHopKey     = auth.Key{1}
	testChannelKey = auth.Key{3}
	testGroupKey   = auth.Key{2}
	testStream     = ids.Stream{Ingress: testIngress, Group: testGroup}
	testNow        = time.Unix(100, 0)
)

func newTestReceiver() *receiver {
	r := newReceiver()
	r.trusted = r.join(testRP, testIngress, hop{session: testSession, key: testHopKey}, hop{session: testChannel, key: testChannelKey})
	r.install(proto.GroupKey{Ingress: testIngress, Group: testGroup, Epoch: 1, Key: testGroupKey})
	r.install(proto.GroupKey{Ingress: testOther, Group: testGroup, Epoch: 1, Key: testGroupKey})
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
	return fmt.Sprintf("%v %v %v %v %d", *r.senders[0], r.streams[testStream].keys, *r.streams[testStream], len(r.streams), r.buffer.Bytes())
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
		{"hello", testRP, datagram(func(h *wire.Header) { h.Type = wire.LinkHello }, nil), wire.BadType},
		{"length", testRP, datagram(nil, func(b []byte) []byte { return b[:len(b)-1] }), wire.BadLength},
		{"session", testRP, datagram(func(h *wire.Header) { h.Session++ }, nil), wire.NoSession},
		{"source", elsewhere, datagram(nil, nil), wire.BadSource},
		{"hop tag", testRP, datagram(nil, func(b []byte) []byte { b[56] ^= 1; return b }), wire.BadHopTag},
		{"header", testRP, datagram(nil, func(b []byte) []byte { b[16] ^= 1; return b }), wire.BadHopTag},
		{"payload", testRP, datagram(nil, func(b []byte) []byte { b[64] ^= 1; return b }), wire.BadPayloadTag},
		{"ingress", testRP, datagram(func(h *wire.Header) { h.Ingress = 0 }, nil), wire.NoKey},
		{"group", testRP, datagram(func(h *wire.Header) { h.Group++ }, nil), wire.NoKey},
		{"epoch", testRP, datagram(func(h *wire.Header) { h.Epoch = 9 }, nil), wire.NoKey},
		{"heartbeat of an unknown epoch", testRP, datagram(func(h *wire.Header) { h.Type, h.Epoch = wire.Heartbeat, 9 }, nil), wire.NoKey},
		{"heartbeat without a payload tag", testRP, datagram(func(h *wire.Header) { h.Type = wire.Heartbeat }, func(b []byte) []byte {
			wire.SetPayloadTag(b, [8]byte{})
			wire.SetHopTag(b, testHopKey.HopTag(b))
			return b
		}), wire.BadPayloadTag},
		{"echo of another RP's stream", testRP, datagram(func(h *wire.Header) { h.Type, h.Ingress = wire.Echo, testOther }, nil), wire.BadUpstream},
	} {
		r := newTestReceiver()
		before := snapshot(r)
		if _, _, _, v := r.check(testNow, proto.ModeUnicast, test.src, test.b); v != test.want {
			t.Errorf("%s: %v, want %v", test.name, v, test.want)
		}
		if after := snapshot(r); after != before {
			t.Errorf("%s: state changed from %s to %s", test.name, before, after)
		}
		if _, _, _, v := r.check(testNow, proto.ModeUnicast, testRP, datagram(nil, nil)); v != wire.Pass {
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
		{beat(2), wire.Pass}, // overtaken
		{beat(2), wire.Replayed},
		{beat(0), wire.Replayed},
		{beat(40), wire.Pass},
		{beat(16), wire.Replayed},
		{datagram(func(h *wire.Header) { h.Sequence += 4096 }, nil), wire.Pass},
		{datagram(func(h *wire.Header) { h.Sequence++ }, nil), wire.TooOld},
	} {
		if _, _, _, v := r.check(testNow, proto.ModeUnicast, testRP, step.b); v != step.want {
			t.Errorf("step %d: %v, want %v", i, v, step.want)
		}
	}
	r.leave(r.senders[0])
	if _, _, _, v := r.check(testNow, proto.ModeUnicast, testRP, datagram(nil, nil)); v != wire.NoSession {
		t.Errorf("after leaving: %v", v)
	}
}

// An RP that was a liar leaves nothing behind: when another one has served for a while, its
// word on a stream makes the stream start afresh, and the marks follow.
func TestReceiverFollowsTrusted(t *testing.T) {
	for _, test := range []struct {
		name string
		lie  func(seq uint64) []byte
	}{
		{"by DATA", func(seq uint64) []byte {
			return datagram(func(h *wire.Header) { h.Sequence, h.ObjectID = seq, seq }, nil)
		}},
		{"by HEARTBEAT", func(seq uint64) []byte {
			return datagram(func(h *wire.Header) { h.Type, h.ObjectID, h.Sequence = wire.Heartbeat, seq, seq }, nil)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newTestService(t)
			s.group, s.covered = testGroup, true
			s.receiver = newTestReceiver()
			liar := s.receiver.senders[0]
			good := s.receiver.join(netip.AddrPortFrom(testRP.Addr(), 1), testOther, hop{session: 77, key: testHopKey}, hop{})
			now := testNow
			s.marks.Start(testStream, 1000)
			for seq := uint64(1001); seq < 6000; seq++ { // every word of the window, in steps of the largest gap
				s.receive(now, proto.ModeUnicast, testRP, test.lie(1<<30+seq))
			}
			s.receiver.trusted = good
			s.receiver.leave(liar)
			from := func(b []byte) wire.Verdict {
				wire.SetSession(b, 77)
				wire.SetHopTag(b, testHopKey.HopTag(b))
				before := s.receiver.counters
				s.receive(now, proto.ModeUnicast, good.source, b)
				for v := range before {
					if s.receiver.counters[v] != before[v] {
						return wire.Verdict(v)
					}
				}
				return 0
			}
			beat := func(n, seq uint64) []byte {
				return datagram(func(h *wire.Header) { h.Type, h.ObjectID, h.Sequence = wire.Heartbeat, n, seq }, nil)
			}
			now = now.Add(auth.RestartAfter - 1)
			if v := from(beat(1, 1000)); v != wire.Pass {
				t.Fatalf("heartbeat: %v", v)
			}
			if newest, _ := s.receiver.streams[testStream].taken.Newest(); newest < 1<<30 {
				t.Fatalf("started afresh at %d when the last word was just heard", newest)
			}
			now = now.Add(1)
			if v := from(beat(2, 1000)); v != wire.Pass {
				t.Fatalf("heartbeat: %v", v)
			}
			if v := from(beat(1, 900)); v != wire.Replayed {
				t.Fatalf("replayed heartbeat: %v", v)
			}
			marks := func() proto.HaveMark {
				marks, _ := s.marks.Have(0)
				i := slices.IndexFunc(marks, func(m proto.HaveMark) bool { return m.Ingress == testIngress })
				return marks[i]
			}
			if m := marks(); m.First != 1001 || m.Next != 1001 || len(m.Missing) > 0 {
				t.Errorf("marks %+v", m)
			}
			for seq := uint64(1001); seq <= 11_000; seq++ {
				if v := from(datagram(func(h *wire.Header) { h.Sequence, h.ObjectID = seq, objectID(crypto.Keccak256Hash([]byte("payload"))) }, nil)); v != wire.Pass {
					t.Fatalf("sequence %d: %v", seq, v)
				}
			}
			if m := marks(); m.First != 1001 || m.Next != 11_001 || len(m.Missing) > 0 {
				t.Errorf("marks %+v", m)
			}
		})
	}
}

// The mark with which a membership begins may be a lie, too: it ends as each other one.
func TestReceiverFollowsTrustedBehindMark(t *testing.T) {
	s := newTestService(t)
	s.group, s.covered = testGroup, true
	s.receiver = newTestReceiver()
	now := testNow
	s.begin(now, []proto.Mark{{Ingress: testIngress, Group: testGroup, Sequence: 1 << 30}})
	now = now.Add(auth.RestartAfter)
	s.receive(now, proto.ModeUnicast, testRP, datagram(func(h *wire.Header) { h.Type, h.ObjectID, h.Sequence = wire.Heartbeat, 1, 6 }, nil))
	s.receive(now, proto.ModeUnicast, testRP, datagram(func(h *wire.Header) {
		h.Sequence, h.ObjectID = 7, objectID(crypto.Keccak256Hash([]byte("payload")))
	}, nil))
	marks, _ := s.marks.Have(0)
	if len(marks) != 1 || marks[0].First != 7 || marks[0].Next != 8 || len(marks[0].Missing) > 0 {
		t.Errorf("marks %+v", marks)
	}
}

// channelDatagram returns a right datagram of the channel.
func channelDatagram(header func(*wire.Header)) []byte {
	return datagram(func(h *wire.Header) {
		h.Session = testChannel
		if header != nil {
			header(h)
		}
	}, func(b []byte) []byte {
		wire.SetHopTag(b, testChannelKey.HopTag(b))
		return b
	})
}

// Each session is known on its own socket alone, and an ECHO on our own.
func TestReceiverChannel(t *testing.T) {
	echo := func(h *wire.Header) { h.Type = wire.Echo }
	beat := func(h *wire.Header) { h.Type, h.ObjectID = wire.Heartbeat, 1 }
	for _, test := range []struct {
		name string
		by   proto.DeliveryMode
		b    []byte
		want wire.Verdict
	}{
		{"data", proto.ModeSSM, channelDatagram(nil), wire.Pass},
		{"heartbeat", proto.ModeSSM, channelDatagram(beat), wire.Pass},
		{"echo", proto.ModeSSM, channelDatagram(echo), wire.BadType},
		{"our session by the channel", proto.ModeSSM, datagram(nil, nil), wire.NoSession},
		{"the channel's session by our socket", proto.ModeUnicast, channelDatagram(nil), wire.NoSession},
		{"our session, the channel's key", proto.ModeUnicast, channelDatagram(func(h *wire.Header) { h.Session = testSession }), wire.BadHopTag},
		{"data for us alone", proto.ModeUnicast, datagram(nil, nil), wire.Pass},
	} {
		r := newTestReceiver()
		before := snapshot(r)
		if _, _, _, v := r.check(testNow, test.by, testRP, test.b); v != test.want {
			t.Errorf("%s: %v, want %v", test.name, v, test.want)
		}
		if test.want != wire.Pass && snapshot(r) != before {
			t.Errorf("%s: state changed", test.name)
		}
	}

	// The own DATA and its ECHO come in any order, each once; DATA comes once by
	// whichever socket.
	r := newTestReceiver()
	own := func(echo bool, seq uint64) (proto.DeliveryMode, []byte) {
		if echo {
			return proto.ModeUnicast, datagram(func(h *wire.Header) { h.Type, h.Sequence = wire.Echo, seq }, nil)
		}
		return proto.ModeSSM, channelDatagram(func(h *wire.Header) { h.Sequence = seq })
	}
	for i, step := range []struct {
		echo bool
		seq  uint64
		want wire.Verdict
	}{
		{true, 1, wire.Pass}, {false, 1, wire.Pass}, {false, 2, wire.Pass}, {true, 2, wire.Pass},
		{true, 1, wire.Replayed}, {false, 2, wire.Replayed},
	} {
		by, b := own(step.echo, step.seq)
		if _, _, _, v := r.check(testNow, by, testRP, b); v != step.want {
			t.Errorf("step %d: %v, want %v", i, v, step.want)
		}
	}
	if _, _, _, v := r.check(testNow, proto.ModeUnicast, testRP, datagram(func(h *wire.Header) { h.Sequence = 2 }, nil)); v != wire.Replayed {
		t.Errorf("again by our own session: %v", v)
	}
	r.leave(r.senders[0])
	r.join(testRP, testIngress, hop{session: testSession, key: testHopKey}, hop{})
	if _, _, _, v := r.check(testNow, proto.ModeSSM, testRP, channelDatagram(nil)); v != wire.NoSession {
		t.Errorf("in mode unicast: %v", v)
	}
}

// memberOf returns a joiner that an RP admitted.
func memberOf(t *testing.T, now time.Time) *proto.Joiner {
	t.Helper()
	j := proto.NewJoiner(proto.JoinerConfig{Groups: []ids.Group{testGroup}, Port: 1, Rand: rand.Reader})
	j.Want(now, true)
	for _, m := range []proto.Message{
		&proto.Status{Role: proto.RoleRP, Incarnation: testIngress, DataPort: testRP.Port()},
		&proto.Welcome{Session: 1, Lease: 45},
	} {
		if err := j.Handle(now, m); err != nil {
			t.Fatal(err)
		}
	}
	j.Actions()
	return j
}

// What a node publishes comes back by the channel. Before its ECHO or after, it is
// a duplicate: not dropped, not offered to the pool, acknowledged once, and not confirmed.
func TestOwnCopyByChannel(t *testing.T) {
	for name, order := range map[string][]proto.DeliveryMode{
		"echo first": {proto.ModeUnicast, proto.ModeSSM},
		"copy first": {proto.ModeSSM, proto.ModeUnicast},
	} {
		s, err := New(Config{RPs: []*enode.Node{nil}, Publish: PublishAll}, nil)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Unix(100, 0)
		s.receiver, s.covered = newTestReceiver(), true
		s.active = &rpConn{joiner: memberOf(t, now), mode: proto.ModeSSM, sender: s.receiver.senders[0]}
		s.rps[enode.ID{1}] = s.active
		s.outbox.SetPath(now, &outbox.Path{RP: testIngress, Session: 1, Group: testGroup, Rate: 1, Burst: 1})
		object := []byte("payload")
		s.outbox.Publish(now, crypto.Keccak256Hash(object), object, 0, true)
		s.outbox.Actions() // the datagram leaves
		s.marks.Start(testStream, 4)

		duplicates, published := duplicateMeter.Snapshot().Count(), publishedMeter.Snapshot().Count()
		header := func(h *wire.Header) { h.ObjectID = objectID(crypto.Keccak256Hash(object)) }
		for _, by := range order {
			b := channelDatagram(func(h *wire.Header) { header(h); h.Flags = wire.FlagReceipt })
			if by == proto.ModeUnicast {
				b = datagram(func(h *wire.Header) { header(h); h.Type = wire.Echo }, nil)
			}
			s.receive(now, by, testRP, b)
		}
		if n := s.receiver.counters[wire.Pass]; n != 2 {
			t.Errorf("%s: verdicts %v", name, s.receiver.counters)
		}
		if n := duplicateMeter.Snapshot().Count() - duplicates; n != 1 {
			t.Errorf("%s: %d duplicates", name, n)
		}
		if n := publishedMeter.Snapshot().Count() - published; n != 1 || s.outbox.Len() != 0 {
			t.Errorf("%s: acknowledged %d times, %d left", name, n, s.outbox.Len())
		}
		if len(s.deliver.queue) != 0 || s.receiver.buffer.Bytes() != 0 {
			t.Errorf("%s: kept or offered to the pool", name)
		}
		if due := s.confirms.Deadline(); !due.IsZero() {
			t.Errorf("%s: confirms its own object in %v", name, due.Sub(now))
		}
		want := proto.Counter{Ingress: testIngress, Group: testGroup, Received: 2, Duplicates: 1}
		if got := s.marks.Counters(); len(got) != 1 || got[0] != want {
			t.Errorf("%s: counters %+v, want %+v", name, got, want)
		}
	}
}

// The two epochs that the RP told of last are valid, each by the key that was told last.
func TestReceiverEpochs(t *testing.T) {
	for _, test := range authtest.Epochs {
		r := newTestReceiver()
		r.retire(testIngress)
		keys := make(map[uint8]auth.Key)
		for i, epoch := range test.Told {
			keys[epoch] = auth.Key{epoch, byte(i)}
			r.install(proto.GroupKey{Ingress: testIngress, Group: testGroup, Epoch: epoch, Key: keys[epoch]})
		}
		for epoch, key := range keys {
			b := datagram(func(h *wire.Header) { h.Epoch, h.Sequence = epoch, uint64(epoch)+100 }, func(b []byte) []byte {
				wire.SetPayloadTag(b, key.PayloadTag(b))
				wire.SetHopTag(b, testHopKey.HopTag(b))
				return b
			})
			want := wire.NoKey
			if slices.Contains(test.Kept, epoch) {
				want = wire.Pass
			}
			if _, _, _, v := r.check(testNow, proto.ModeUnicast, testRP, b); v != want {
				t.Errorf("%s: epoch %d: %v, want %v", test.Name, epoch, v, want)
			}
		}
		if r.retire(testIngress); r.streams[testStream] != nil {
			t.Errorf("%s: a retired ingress RP has keys", test.Name)
		}
	}
}

// An epoch that is told again has the key that is told then, and what was taken before stays taken.
func TestReceiverEpochAgain(t *testing.T) {
	r := newTestReceiver()
	for _, want := range []wire.Verdict{wire.Pass, wire.Replayed} {
		if _, _, _, v := r.check(testNow, proto.ModeUnicast, testRP, datagram(nil, nil)); v != want {
			t.Errorf("%v, want %v", v, want)
		}
		r.install(proto.GroupKey{Ingress: testIngress, Group: testGroup, Epoch: 1, Key: testGroupKey})
	}
}

// Keys for more streams than a message has room for are refused, those of known streams
// are not.
func TestReceiverKeysAreBounded(t *testing.T) {
	r := newTestReceiver()
	for i := range ids.Incarnation(2 * proto.MaxKeys) {
		r.install(proto.GroupKey{Ingress: testIngress + i, Group: testGroup, Epoch: 1, Key: testGroupKey})
	}
	if len(r.streams) != proto.MaxKeys {
		t.Errorf("keys of %d streams", len(r.streams))
	}
	r.install(proto.GroupKey{Ingress: testIngress, Group: testGroup, Epoch: 2, Key: testGroupKey})
	if len(r.streams[testStream].keys) != 2 {
		t.Error("the next epoch was refused")
	}
}

// An RP in standby has no say in the datagrams that another one replicates. When it
// serves, its keys are those that count.
func TestKeysOfStandby(t *testing.T) {
	s := newTestService(t)
	now := time.Unix(100, 0)
	s.group, s.covered = testGroup, true
	const other = testIngress + 1
	member := func(n byte) *rpConn {
		rp := &rpConn{id: enode.ID{n}, addr: testRP.Addr(), joiner: memberOf(t, now)}
		s.rps[rp.id] = rp
		return rp
	}
	key := func(ingress ids.Incarnation, group ids.Group, epoch uint8) proto.GroupKey {
		return proto.GroupKey{Ingress: ingress, Group: group, Epoch: epoch, Active: true, Key: testGroupKey}
	}
	epochs := func() string {
		all := make(map[ids.Stream]map[uint8]auth.Key)
		for stream, st := range s.receiver.streams {
			all[stream] = st.keys
		}
		return fmt.Sprint(all)
	}

	s.active = member(1)
	s.perform(now, s.active, proto.Joined{
		RP: proto.Status{Incarnation: testIngress}, Keys: []proto.GroupKey{key(testIngress, testGroup, 1), key(other, testGroup, 1), key(other, testGroup+1, 1)},
		Marks: []proto.Mark{{Ingress: testIngress, Group: testGroup, Sequence: 4}, {Ingress: other, Group: testGroup + 1}},
	})
	if len(s.receiver.streams) != 2 || len(s.marks.Counters()) != 1 {
		t.Fatalf("keys %v, counters %v", epochs(), s.marks.Counters())
	}
	before := epochs()
	s.standby = member(2)
	s.perform(now, s.standby, proto.Joined{
		RP: proto.Status{Incarnation: other}, Standby: true, Keys: []proto.GroupKey{key(testIngress, testGroup, 101), key(9, testGroup, 1)},
		Marks: []proto.Mark{{Ingress: other, Group: testGroup}, {Ingress: 9, Group: testGroup}},
	})
	s.perform(now, s.standby, proto.Install{Keys: []proto.GroupKey{key(other, testGroup, 101), key(10, testGroup, 1)}})
	if after := epochs(); after != before {
		t.Errorf("keys %s, want %s", after, before)
	}
	if n := len(s.marks.Counters()); n != 2 {
		t.Errorf("%d streams, want the active one's and that of the standby itself", n)
	}
	if !s.standby.keyed || s.standby.path.Epoch != 101 {
		t.Errorf("publishes to it in epoch %d", s.standby.path.Epoch)
	}

	// What the active one made up is over when another one serves.
	s.perform(now, s.active, proto.Install{Keys: []proto.GroupKey{key(testIngress, testGroup, 101)}})
	s.next, s.standby = s.standby, nil
	s.perform(now, s.next, proto.Served{Terms: proto.Terms{Keys: []proto.GroupKey{key(testIngress, testGroup, 1), key(testIngress, testGroup, 2)}}})
	if got := s.receiver.streams[testStream].keys; len(got) != 2 || got[1] != testGroupKey || got[2] != testGroupKey {
		t.Errorf("keys %v", got)
	}
}

func FuzzReceiver(f *testing.F) {
	f.Add(datagram(nil, nil))
	f.Add(datagram(func(h *wire.Header) { h.Type = wire.Echo }, nil))
	f.Add(datagram(func(h *wire.Header) { h.Type = wire.Heartbeat }, nil))
	f.Add(channelDatagram(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		for by, key := range []auth.Key{proto.ModeUnicast: testHopKey, proto.ModeSSM: testChannelKey} {
			r := newTestReceiver()
			before := snapshot(r)
			h, _, _, v := r.check(testNow, proto.DeliveryMode(by), testRP, b)
			if v == wire.Pass && h.Type != wire.Probe && !key.CheckHopTag(b, h.HopTag) {
				t.Fatalf("passed without a right hop tag: %v", &h)
			}
			if v != wire.Pass && snapshot(r) != before {
				t.Fatalf("verdict %v changed the state", v)
			}
		}
	})
}

// A PROBE from anywhere but the data endpoint of an RP that is being joined gets
// no ProbeAck.
func TestForeignProbe(t *testing.T) {
	s, err := New(Config{RPs: []*enode.Node{nil}, Publish: PublishAll}, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(100, 0)
	out := make(chan proto.Message, sendQueue)
	rp := &rpConn{conn: &conn{out: out}, addr: testRP.Addr()}
	rp.joiner = proto.NewJoiner(proto.JoinerConfig{Groups: []ids.Group{1}, Port: 1, Rand: rand.Reader})
	s.rps[enode.ID{1}] = rp
	rp.joiner.Want(now, true)
	if err := rp.joiner.Handle(now, &proto.Status{Role: proto.RoleRP, Incarnation: 1, DataPort: testRP.Port()}); err != nil {
		t.Fatal(err)
	}
	s.drain(now, rp)
	session := ids.Session(0)
	for len(out) > 0 {
		if join, ok := (<-out).(*proto.Join); ok {
			session = join.Session
		}
	}
	probe := func(src netip.AddrPort) (echoes int) {
		h := wire.Header{Type: wire.Probe}
		nonce := binary.BigEndian.AppendUint32(h.Append(nil), uint32(session))
		s.receive(now, proto.ModeUnicast, src, append(nonce, make([]byte, wire.MaxPayload-4)...))
		s.drain(now, rp)
		for len(out) > 0 {
			if m := <-out; m.Code() == proto.ProbeAckMsg {
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
	session++
	if n := probe(testRP); n != 0 {
		t.Errorf("%d echoes for a PROBE of another peer", n)
	}
}

// An RP can only name RPs that may be used anyway, and not for ever.
func TestRedirects(t *testing.T) {
	s, err := New(Config{RPs: []*enode.Node{nil}, Publish: PublishAll}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var urls []string
	for range 3 {
		key, err := crypto.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		rp := newRPConn(enode.NewV4(&key.PublicKey, testRP.Addr().AsSlice(), 1, 1))
		urls = append(urls, rp.node.URLv4())
		if len(s.order) < 2 {
			s.rps[rp.id] = rp
			s.order = append(s.order, rp)
		}
	}
	from, other, stranger := s.order[0], s.order[1], urls[2]
	names := proto.Redirected{URLs: []string{"no url", stranger, urls[1], urls[0], urls[1]}}
	for i := range maxRedirects + 1 {
		s.hints = nil
		s.redirected(from, names)
		want := 1
		if i == maxRedirects {
			want = 0
		}
		if len(s.hints) != want || want == 1 && s.hints[0] != other {
			t.Errorf("redirect %d: %d hints", i, len(s.hints))
		}
	}
}
