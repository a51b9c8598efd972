// SPDX-License-Identifier: LGPL-3.0-or-later

package socket

import (
	"net/netip"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
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
	hello   bool                  // an accepted LINK_HELLO, of which no copies are made
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
// fan-out is empty for a keep-alive and a LINK_HELLO. A datagram that is not accepted changes
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
	case h.Type == wire.LinkHello && s.Role == datapath.Mesh:
	case h.Type != wire.Data && h.Type != wire.Heartbeat:
		return wire.BadType
	}
	v := wire.Pass // a peer's HEARTBEAT: it says only that the peer is there
	switch {
	case h.Type == wire.LinkHello:
		v = s.state.window.Take(h.Sequence)
		f.header, f.from, f.hello = [wire.HeaderSize]byte(b), s, v == wire.Pass
	case s.Role == datapath.Mesh:
		v = t.relay(now, s, b, h, payload, f)
	case h.Type == wire.Data:
		v = t.publish(now, s, b, h, payload, f)
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
	stream := t.streams[ids.Stream{Ingress: t.own, Group: h.Group}]
	if stream == nil {
		return wire.NoKey
	}
	if v := authentic(stream, b, h, s.state.window.Check(h.Sequence)); v != wire.Pass {
		return v
	}
	ok, shares := t.conforms(s, now)
	if !ok {
		return wire.OverRate
	}
	if v := s.state.window.Take(h.Sequence); v != wire.Pass {
		return v
	}
	stream.assigned++

	f.header, f.payload = [wire.HeaderSize]byte(b), payload
	wire.SetStamp(f.header[:], wire.Stamp{
		Ingress:  t.own,
		Sequence: stream.assigned,
		Handle:   t.handle.Handle(s.Index, h.ObjectID),
	})
	f.echo = true
	t.to(f, s, stream, h.Group, stream.assigned)
	t.charge(s, now, f.receivers()*len(b), shares)
	return wire.Pass
}

// relayed returns the stream of what an RP neighbour relays, if the RP is among the
// upstreams of the stream's route.
func (t *table) relayed(s *session, h *wire.Header) (*stream, wire.Verdict) {
	stream := t.streams[h.Stream()]
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

// relay takes an RP neighbour's DATA or HEARTBEAT: it goes on along the route of its
// ingress RP and to the local subscribers. A HEARTBEAT gets a number of this RP, so that
// nobody but the next hop's sender numbers what the next hop takes. One that does not come
// from the parent, or was overtaken by another of its stream, says no more than that the sender
// is there.
func (t *table) relay(now time.Duration, s *session, b []byte, h *wire.Header, payload []byte, f *fanout) wire.Verdict {
	stream, v := t.relayed(s, h)
	if v != wire.Pass {
		return v
	}
	beat := h.Type == wire.Heartbeat
	if beat {
		v = s.state.beats.Check(h.ObjectID)
	} else {
		v = stream.taken.Check(h.Sequence)
	}
	if v = authentic(stream, b, h, v); v != wire.Pass {
		return v
	}
	if beat && (stream.upstreams[0] != s.Index || stream.taken.Overtaken(s.state, h.ObjectID)) {
		return s.state.beats.Take(h.ObjectID)
	}
	ok, shares := t.conforms(s, now)
	switch {
	case !ok || beat && now < stream.beatDue:
		return wire.OverRate
	case stream.farAhead(now, h.Sequence):
		return wire.FarAhead
	}
	at := time.Unix(0, int64(now))
	f.header, f.payload = [wire.HeaderSize]byte(b), payload
	if beat {
		_ = s.state.beats.Take(h.ObjectID) // as checked
		stream.beatDue = now + datapath.HeartbeatGap
		stream.taken.Follow(at, s.state, h.ObjectID, h.Sequence)
		t.number(f.header[:], stream.key(h.Epoch))
	} else {
		_ = stream.taken.Take(at, h.Sequence) // as checked
	}
	if h.Sequence >= stream.top {
		stream.top, stream.topAt = h.Sequence, now
	}
	wire.SetHopLimit(f.header[:], h.HopLimit-1)
	t.to(f, s, stream, h.Group, h.Sequence)
	t.charge(s, now, f.receivers()*len(b), shares)
	return wire.Pass
}

// farAhead reports whether a sequence is beyond what an honest ingress RP can have reached
// since the highest one came.
func (s *stream) farAhead(now time.Duration, seq uint64) bool {
	if seq > datapath.MaxSequence {
		return true
	}
	_, known := s.taken.Newest()
	more := uint64(max(0, now-s.topAt) / datapath.AheadEach)
	return known && seq > s.top && seq-s.top > datapath.MaxAhead+more
}

// number makes a HEARTBEAT the next one that this RP sends.
func (t *table) number(header []byte, key *auth.Key) {
	t.beats++
	wire.SetBeat(header, t.beats)
	wire.SetPayloadTag(header, key.PayloadTag(header))
}

// authentic checks what a DATA or HEARTBEAT says: its key, what the window thinks of it
// because that is cheaper than the tag, the tag.
func authentic(s *stream, b []byte, h *wire.Header, window wire.Verdict) wire.Verdict {
	key := s.key(h.Epoch)
	switch {
	case key == nil:
		return wire.NoKey
	case window != wire.Pass:
		return window
	case !key.CheckPayloadTag(b, h.PayloadTag):
		return wire.BadPayloadTag
	}
	return wire.Pass
}

// to directs f, which came from a session, along the route of its stream and to the
// local subscribers of the group. The copies to these begin with another one for each
// sequence, so that nobody is always the last.
func (t *table) to(f *fanout, from *session, s *stream, group ids.Group, seq uint64) {
	f.from, f.mesh, f.peers = from, s.branches, t.groups[group]
	if len(f.peers) > 0 {
		f.first = int(seq % uint64(len(f.peers)))
	}
}

// heartbeats returns a fan-out for each own group that somebody within the scope has:
// the newest sequence assigned. The older key is known wherever the newer one is, and
// where that has yet to come.
func (t *table) heartbeats(scope datapath.HeartbeatScope) []fanout {
	t.mu.Lock()
	defer t.mu.Unlock()
	var own []ids.Group
	for id := range t.streams {
		if id.Ingress == t.own {
			own = append(own, id.Group)
		}
	}
	slices.Sort(own)
	var all []fanout
	for _, group := range own {
		s := t.streams[ids.Stream{Ingress: t.own, Group: group}]
		var f fanout
		t.to(&f, nil, s, group, s.assigned)
		if scope == datapath.Local {
			f.mesh = nil
		}
		if f.receivers() == 0 {
			continue
		}
		h := wire.Header{
			Type:     wire.Heartbeat,
			HopLimit: wire.InitialHopLimit,
			Epoch:    s.keys[0].epoch,
			Group:    group,
			Ingress:  t.own,
			Sequence: s.assigned,
		}
		f.header = [wire.HeaderSize]byte(h.Append(nil))
		t.number(f.header[:], &s.keys[0].key)
		all = append(all, f)
	}
	return all
}
