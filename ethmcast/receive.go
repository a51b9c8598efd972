// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/coverage"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/reassembly"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// socketBuffer is the UDP receive buffer in bytes: a block's worth of datagrams
// from several RPs at once.
const socketBuffer = 4 << 20

// hop is how the datagrams of a session are known.
type hop struct {
	session ids.Session // 0: none
	key     auth.Key
	beats   auth.Beats // heartbeats taken
}

// sender is an RP that this node is a member of.
type sender struct {
	source      netip.AddrPort
	incarnation ids.Incarnation
	hops        [2]hop // by mode: our own session, the channel
}

// streamState is what is known of a stream, whichever RP it comes from.
type streamState struct {
	keys   map[uint8]auth.Key // by epoch
	epochs []uint8            // of these keys, in the order in which they came last
	taken  auth.Stream
	echoes auth.Window
}

// receiver checks the datagrams of the RPs that this node is a member of (SPEC 9.2). What
// belongs to a stream is the same from all. It does no I/O.
type receiver struct {
	senders  []*sender
	trusted  *sender // whose heartbeats are believed: that of the active RP; nil for none
	streams  map[ids.Stream]*streamState
	buffer   *reassembly.Buffer
	counters wire.Counters
}

func newReceiver() *receiver {
	return &receiver{buffer: reassembly.New(func(b []byte) [32]byte { return crypto.Keccak256Hash(b) })}
}

// join begins to accept datagrams of an RP, by a session and by a channel. What is
// known of streams is forgotten when there was no RP.
func (r *receiver) join(source netip.AddrPort, incarnation ids.Incarnation, own, channel hop) *sender {
	if len(r.senders) == 0 {
		r.streams = make(map[ids.Stream]*streamState)
	}
	s := &sender{source: source, incarnation: incarnation}
	s.hops = [...]hop{proto.ModeUnicast: own, proto.ModeSSM: channel}
	r.senders = append(r.senders, s)
	return s
}

// leave ends what join began; nil ends nothing.
func (r *receiver) leave(s *sender) {
	r.senders = slices.DeleteFunc(r.senders, func(other *sender) bool { return other == s })
	if r.trusted == s {
		r.trusted = nil
	}
}

// sender returns the RP whose session this is by the socket of a mode, nil for none.
func (r *receiver) sender(by proto.DeliveryMode, session ids.Session) *sender {
	for _, s := range r.senders {
		if session != 0 && s.hops[by].session == session {
			return s
		}
	}
	return nil
}

// replace installs the group keys of an RP that serves from now on. Epochs of these
// streams that it does not have do not count any more, whoever told of them.
func (r *receiver) replace(keys []proto.GroupKey) {
	for _, k := range keys {
		if st := r.streams[k.Stream()]; st != nil {
			clear(st.keys)
			st.epochs = nil
		}
	}
	for _, k := range keys {
		r.install(k)
	}
}

// epochsKept is how many epochs of a stream are valid at a time (SPEC 5.6).
const epochsKept = 2

// install adds a group key if there is room for its stream. The epochs that came last are kept, as
// the RP that told of them does: what comes from it has these keys, whatever it was told before. An
// epoch that comes again came last.
func (r *receiver) install(k proto.GroupKey) {
	s := k.Stream()
	st := r.streams[s]
	if st == nil {
		if len(r.streams) >= proto.MaxKeys {
			return
		}
		st = &streamState{keys: make(map[uint8]auth.Key)}
		r.streams[s] = st
	}
	st.keys[k.Epoch] = k.Key
	st.epochs = append(slices.DeleteFunc(st.epochs, func(epoch uint8) bool { return epoch == k.Epoch }), k.Epoch)
	if len(st.epochs) > epochsKept {
		delete(st.keys, st.epochs[0])
		st.epochs = st.epochs[1:]
	}
}

// retire forgets an ingress RP.
func (r *receiver) retire(ingress ids.Incarnation) {
	maps.DeleteFunc(r.streams, func(s ids.Stream, _ *streamState) bool { return s.Ingress == ingress })
}

// reached notes that an RP told by control message how far a stream has come.
func (r *receiver) reached(now time.Time, s ids.Stream, seq uint64) {
	if st := r.streams[s]; st != nil {
		st.taken.Raise(now, seq)
	}
}

// known reports whether a stream has come as far as a sequence: what was collected when
// somebody claimed more is delivered, and not marked.
func (r *receiver) known(s ids.Stream, seq uint64) bool {
	st := r.streams[s]
	if st == nil {
		return false
	}
	newest, ok := st.taken.Newest()
	return ok && seq <= newest
}

// check gives the verdict on a datagram that came to the socket of a mode. Only
// wire.Pass changes any state; PROBE passes unauthenticated, as its nonce is
// checked by who sent it.
//
// The key of a channel is everybody's on the link. So an ECHO, which is about this
// peer alone, never comes by it, and the channel's session by no other socket.
//
// A HEARTBEAT of the trusted RP may make a stream start afresh, which check reports: then
// what an RP before claimed of it is void.
func (r *receiver) check(now time.Time, by proto.DeliveryMode, src netip.AddrPort, b []byte) (h wire.Header, payload []byte, restarted bool, v wire.Verdict) {
	h, payload, v = wire.Parse(b)
	from := r.sender(by, h.Session)
	switch {
	case v != wire.Pass:
		return h, nil, false, v
	case h.Type == wire.Probe:
		return h, payload, false, wire.Pass
	case from == nil:
		return h, nil, false, wire.NoSession
	case src != from.source:
		return h, nil, false, wire.BadSource
	case !from.hops[by].key.CheckHopTag(b, h.HopTag):
		return h, nil, false, wire.BadHopTag
	case h.Type == wire.LinkHello || h.Type == wire.Echo && by == proto.ModeSSM:
		return h, nil, false, wire.BadType
	}
	st := r.streams[h.Stream()]
	switch {
	case st == nil:
		return h, nil, false, wire.NoKey
	case h.Type == wire.Echo && h.Ingress != from.incarnation:
		return h, nil, false, wire.BadUpstream
	case h.Type == wire.Echo:
		return h, nil, false, st.echoes.Take(h.Sequence)
	}
	key, ok := st.keys[h.Epoch]
	if !ok {
		return h, nil, false, wire.NoKey
	}
	if h.Type == wire.Heartbeat {
		v = from.hops[by].beats.Check(h.ObjectID)
	} else {
		v = st.taken.Check(h.Sequence)
	}
	switch {
	case v != wire.Pass:
		return h, nil, false, v
	case !key.CheckPayloadTag(b, h.PayloadTag):
		return h, nil, false, wire.BadPayloadTag
	case h.Type == wire.Data:
		return h, payload, false, st.taken.Take(now, h.Sequence)
	}
	_ = from.hops[by].beats.Take(h.ObjectID) // as checked
	if from == r.trusted {
		restarted = st.taken.Follow(now, from, h.ObjectID, h.Sequence)
	}
	return h, nil, restarted, wire.Pass
}

// receiveLoop reads the datagrams of a mode until its socket is closed.
func (s *Service) receiveLoop(socket *net.UDPConn, by proto.DeliveryMode) {
	buf := make([]byte, wire.MaxDatagram+1) // one more shows an oversized datagram
	for {
		n, src, err := socket.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.log.Debug("Receiving a datagram failed", "err", err)
			continue
		}
		s.mu.Lock()
		s.receive(time.Now(), by, netip.AddrPortFrom(src.Addr().Unmap().WithZone(""), src.Port()), buf[:n])
		s.mu.Unlock()
	}
}

// receive takes one datagram.
func (s *Service) receive(now time.Time, by proto.DeliveryMode, src netip.AddrPort, b []byte) {
	h, payload, restarted, v := s.receiver.check(now, by, src, b)
	s.receiver.counters[v]++
	verdictMeters[v].Mark(1)
	if v != wire.Pass {
		return
	}
	receivedBytesMeter.Mark(int64(len(b)))
	if h.Type == wire.Probe {
		s.probe(now, src, payload, len(b))
		return
	}
	if rp := s.rpOf(s.receiver.sender(by, h.Session)); rp != nil && by == rp.mode {
		rp.joiner.Heard(now)
	}
	stream := h.Stream()
	switch h.Type {
	case wire.Echo:
		s.marks.Delivered(now, stream, h.Sequence)
		s.outbox.Echo(now, &h)
		s.drainOutbox(now)
	case wire.Heartbeat:
		if restarted {
			s.marks.Restart(stream, h.Sequence)
			s.coverage.Restart(stream, h.Sequence)
		}
		if s.covered {
			s.marks.Begin(stream, h.Sequence)
		}
	case wire.Data:
		s.data(now, stream, &h, payload)
	}
}

// probe answers the PROBE of an RP that we joined.
func (s *Service) probe(now time.Time, src netip.AddrPort, payload []byte, size int) {
	for _, rp := range s.rps {
		if rp.conn != nil && rp.dataAddr() == src {
			rp.joiner.Probe([wire.NonceSize]byte(payload), size)
			s.drain(now, rp)
			return
		}
	}
}

// data takes a symbol that passed all checks.
func (s *Service) data(now time.Time, stream ids.Stream, h *wire.Header, payload []byte) {
	x, seen := s.seen.Get(h.ObjectID)
	asks, place := h.AsksReceipt(), proto.Place{Ingress: h.Ingress, Group: h.Group, Sequence: h.Sequence}
	// By a channel comes, before or after its ECHO, what this node publishes itself.
	if seen || s.active.serves(proto.ModeSSM) && s.outbox.Sent(h.ObjectID) {
		s.marks.Delivered(now, stream, h.Sequence)
		s.marks.Duplicate(stream)
		duplicateMeter.Mark(1)
		if asks && seen && !x.bad && !x.own {
			s.confirms.Asked(now, h.ObjectID, place, true)
			s.poke()
		}
		return
	}
	if asks {
		s.confirms.Asked(now, h.ObjectID, place, false)
	}
	object := s.receiver.buffer.Add(now, h, payload)
	switch {
	case object.Bad:
		badObjectMeter.Mark(1)
		return
	case object.Object == nil:
		return
	}
	tx := new(types.Transaction)
	err := tx.UnmarshalBinary(object.Object)
	bad := err != nil || tx.Type() == types.BlobTxType
	if bad {
		badObjectMeter.Mark(1) // nobody can deliver it: no reason to ask for it again
	} else if !s.deliver.offer(tx) {
		return // no room: the marks must not say that it arrived
	} else if s.confirms.Delivered(now, h.ObjectID); !s.confirms.Deadline().IsZero() {
		s.poke()
	}
	for _, seq := range object.Sequences {
		if s.receiver.known(stream, seq) {
			s.marks.Delivered(now, stream, seq)
		}
	}
	s.seen.Add(h.ObjectID, seenTx{hash: object.Hash, ref: &coverage.Ref{Stream: stream, Sequence: h.Sequence}, bad: bad})
	if s.outbox.Cancel(object.Hash) {
		s.book.Cancelled(object.Hash)
	}
	s.coverage.Numbered(object.Hash, stream, h.Sequence)
}
