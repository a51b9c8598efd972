// SPDX-License-Identifier: LGPL-3.0-or-later

package socket

import (
	"net/netip"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// fanout is what becomes of an accepted datagram: the header of all copies but
// for session and hop tag, and who gets one. The payload is the received one.
type fanout struct {
	header  [wire.HeaderSize]byte
	payload []byte
	from    *session   // that it came from: gets no copy
	echo    bool       // it gets the header as ECHO, first
	mesh    []*session // before the peers: their subscribers wait longest
	peers   []*session
	first   int                   // peer that the copies begin with
	hello   bool                  // an accepted HELLO, of which no copies are made
	scratch [wire.HeaderSize]byte // header of one copy
}

// receivers is the number of sessions that the datagram is for. The one that it came
// from is among them if it gets the copies of others.
func (f *fanout) receivers() int { return len(f.mesh) + len(f.peers) }

// copies calls put for each datagram in the order of sending. put must not keep
// the header.
func (f *fanout) copies(put func(to *session, header *[wire.HeaderSize]byte, payload []byte)) {
	header := &f.scratch
	*header = f.header
	if f.echo {
		wire.SetType(header[:], wire.Echo)
		f.from.seal(header)
		put(f.from, header, nil)
		*header = f.header
	}
	for _, part := range [...][]*session{f.mesh, f.peers[f.first:], f.peers[:f.first]} {
		for _, to := range part {
			if to == f.from {
				continue
			}
			to.seal(header)
			put(to, header, f.payload)
		}
	}
}

// process gives a datagram its verdict and, when it is accepted, fills in f. The
// fan-out is empty for a keep-alive and a HELLO. A datagram that is not accepted changes
// nothing but the counter of its verdict. f refers to b.
func (t *table) process(now time.Duration, src netip.AddrPort, b []byte, f *fanout) wire.Verdict {
	*f = fanout{}
	h, payload, v := wire.Parse(b)
	t.mu.Lock()
	defer t.mu.Unlock()
	if v == wire.Pass {
		v = t.accept(now, src, b, &h, payload, f)
	}
	t.verdicts[v]++
	return v
}

// accept is the part of the pipeline after parsing. The order of the checks is
// normative (SPEC 6.2): cheap before dear, and what changes state last.
func (t *table) accept(now time.Duration, src netip.AddrPort, b []byte, h *wire.Header, payload []byte, f *fanout) wire.Verdict {
	s := t.sessions[h.Session]
	switch {
	case s == nil:
		return wire.NoSession
	case s.Addr != src:
		return wire.BadSource
	case !s.ReceiveKey.CheckHopTag(b, h.HopTag):
		return wire.BadHopTag
	case h.Type == wire.Hello && s.Role == datapath.Mesh:
	case h.Type != wire.Data && h.Type != wire.Heartbeat:
		return wire.BadType
	}
	v := wire.Pass // a peer's HEARTBEAT: it says only that the peer is there
	switch {
	case s.Role == datapath.Peer && h.Type == wire.Data:
		v = t.publish(now, s, b, h, payload, f)
	case h.Type == wire.Hello:
		v = s.state.window.Take(h.Sequence)
		f.header, f.from, f.hello = [wire.HeaderSize]byte(b), s, v == wire.Pass
	case s.Role == datapath.Mesh && h.Type == wire.Data:
		v = t.relay(now, s, b, h, payload, f)
	case s.Role == datapath.Mesh:
		v = t.relayHeartbeat(s, b, h, f)
	}
	if v == wire.Pass {
		s.state.received++
		s.state.heard = now
	}
	return v
}

// publish takes a peer's DATA: it is stamped and goes to the branches of the own route
// and to all subscribers, the publisher's own copy as ECHO.
func (t *table) publish(now time.Duration, s *session, b []byte, h *wire.Header, payload []byte, f *fanout) wire.Verdict {
	switch {
	case !s.Publish || !s.has(h.Group):
		return wire.NotPublisher
	case h.Ingress != 0:
		return wire.BadUpstream
	}
	stream := t.streams[datapath.Stream{Ingress: t.own, Group: h.Group}]
	if stream == nil {
		return wire.NoKey
	}
	if v := authentic(stream, b, h, &s.state.window); v != wire.Pass {
		return v
	}
	if !t.conforms(s, now) {
		return wire.OverRate
	}
	if v := s.state.window.Take(h.Sequence); v != wire.Pass {
		return v
	}
	stream.newest++

	f.header, f.payload = [wire.HeaderSize]byte(b), payload
	wire.SetStamp(f.header[:], wire.Stamp{
		Ingress:  t.own,
		Sequence: stream.newest,
		Handle:   t.handle.Handle(s.Index, h.ObjectID),
	})
	f.echo = true
	t.to(f, s, stream, h.Group, stream.newest)
	t.charge(s, now, f.receivers()*len(b))
	return wire.Pass
}

// relayed returns the stream of what a neighbouring RP relays, if the RP is among the
// upstreams of the stream's route.
func (t *table) relayed(s *session, h *wire.Header) (*stream, wire.Verdict) {
	stream := t.streams[datapath.Stream{Ingress: h.Ingress, Group: h.Group}]
	switch {
	case stream == nil:
		return nil, wire.NoKey
	case !slices.Contains(stream.upstreams, s.Index):
		return nil, wire.BadUpstream
	case h.HopLimit == 0:
		return nil, wire.HopLimit
	}
	return stream, wire.Pass
}

// relay takes a neighbouring RP's DATA: it goes on along the route of its ingress RP
// and to the local subscribers.
func (t *table) relay(now time.Duration, s *session, b []byte, h *wire.Header, payload []byte, f *fanout) wire.Verdict {
	stream, v := t.relayed(s, h)
	if v != wire.Pass {
		return v
	}
	if v := authentic(stream, b, h, &stream.window); v != wire.Pass {
		return v
	}
	if !t.conforms(s, now) {
		return wire.OverRate
	}
	if stream.known && h.Sequence > stream.newest && h.Sequence-stream.newest > datapath.MaxAhead {
		return wire.FarAhead
	}
	if v := stream.window.Take(h.Sequence); v != wire.Pass {
		return v
	}
	stream.newest, stream.known = max(stream.newest, h.Sequence), true

	f.header, f.payload = [wire.HeaderSize]byte(b), payload
	wire.SetHopLimit(f.header[:], h.HopLimit-1)
	t.to(f, s, stream, h.Group, h.Sequence)
	t.charge(s, now, f.receivers()*len(b))
	return wire.Pass
}

// relayHeartbeat takes the newest sequence of an ingress RP where its datagrams go. It may be far ahead: that is how a stream is found again after a
// pause. A stream without any key is none of ours, so that a neighbour cannot make
// the table grow.
func (t *table) relayHeartbeat(s *session, b []byte, h *wire.Header, f *fanout) wire.Verdict {
	stream, v := t.relayed(s, h)
	switch {
	case v != wire.Pass:
		return v
	case h.ObjectID <= stream.beat:
		return wire.Replayed
	}
	stream.beat = h.ObjectID
	stream.newest, stream.known = max(stream.newest, h.Sequence), true

	f.header = [wire.HeaderSize]byte(b)
	wire.SetHopLimit(f.header[:], h.HopLimit-1)
	t.to(f, s, stream, h.Group, h.Sequence)
	return wire.Pass
}

// authentic checks the payload: its key, the window without changing it because
// that is cheaper than the tag, the tag.
func authentic(s *stream, b []byte, h *wire.Header, window *auth.Window) wire.Verdict {
	key := s.key(h.Epoch)
	if key == nil {
		return wire.NoKey
	}
	if v := window.Check(h.Sequence); v != wire.Pass {
		return v
	}
	if !key.CheckPayloadTag(b, h.PayloadTag) {
		return wire.BadPayloadTag
	}
	return wire.Pass
}

// to directs f, which came from a session, along the route of its stream and to the
// local subscribers of the group. The copies to these begin with another one for each
// sequence, so that nobody is always the last.
func (t *table) to(f *fanout, from *session, s *stream, group uint32, seq uint64) {
	f.from, f.mesh, f.peers = from, s.branches, t.groups[group]
	if len(f.peers) > 0 {
		f.first = int(seq % uint64(len(f.peers)))
	}
}

// heartbeats returns a fan-out for each own group that somebody within the scope has:
// the newest sequence assigned.
func (t *table) heartbeats(scope datapath.HeartbeatScope) []fanout {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []fanout
	for id, s := range t.streams {
		if id.Ingress != t.own {
			continue
		}
		var f fanout
		t.to(&f, nil, s, id.Group, s.newest)
		if scope == datapath.Local {
			f.mesh = nil
		}
		if f.receivers() == 0 {
			continue
		}
		s.beat++
		h := wire.Header{
			Type:     wire.Heartbeat,
			HopLimit: wire.InitialHopLimit,
			Group:    id.Group,
			Ingress:  t.own,
			Sequence: s.newest,
			ObjectID: s.beat,
		}
		f.header = [wire.HeaderSize]byte(h.Append(nil))
		all = append(all, f)
	}
	return all
}
