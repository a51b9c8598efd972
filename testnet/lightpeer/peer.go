// SPDX-License-Identifier: LGPL-3.0-or-later

package lightpeer

import (
	"context"
	"crypto/ecdsa"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/front/rlpx"
)

// The peers of a swarm first dial within spreadEach for each of them, and spread at most.
// One that lost its connection dials within spread, and after a failure up to twice as
// late, but not later than maxRedial.
const (
	spreadEach = time.Millisecond
	spread     = time.Second
	maxRedial  = 4 * time.Second
)

var (
	errLost      = errors.New("connection lost")
	errNotMember = errors.New("not a member")
	errNoKey     = errors.New("no active group key")
)

// peer is one light peer.
type peer struct {
	swarm    *Swarm
	number   int // in the swarm
	key      *ecdsa.PrivateKey
	id       enode.ID
	endpoint netip.AddrPort
	socket   *socket

	mu      sync.Mutex
	conn    *conn         // nil without one; written to with mu held
	joiner  *proto.Joiner // nil without a connection
	member  *proto.Joined // nil when not a member
	beats   auth.Beats    // heartbeats taken of the membership
	streams []*stream     // of the membership
	sent    uint64        // sequence of the last DATA
	welcome bool          // the peer was a member on this connection
	pinged  time.Time
}

// stream is what a peer knows of (ingress RP, group).
type stream struct {
	ingress ids.Incarnation
	group   ids.Group
	keys    []proto.GroupKey // the newest two epochs

	taken  auth.Stream
	echoes auth.Window

	begun      bool   // base is known
	base       uint64 // what comes after it is for this peer
	newest     uint64
	got        uint64 // sequences after base, by DATA or as own by ECHO
	duplicates uint64
}

// run keeps the peer connected until ctx ends.
func (p *peer) run(ctx context.Context) {
	within := min(spread, time.Duration(len(p.swarm.peers))*spreadEach)
	for {
		select {
		case <-time.After(rand.N(within)):
		case <-ctx.Done():
			return
		}
		select {
		case p.swarm.connecting <- struct{}{}:
		case <-ctx.Done():
			return
		}
		c, err := connect(ctx, p.swarm.cfg.In, p.key, p.endpoint.Addr(), p.swarm.cfg.RP, &p.swarm.controlSent, &p.swarm.controlReceived)
		<-p.swarm.connecting
		if err == nil && p.serve(ctx, c) {
			within = spread
		} else {
			within = min(max(2*within, spread), maxRedial)
		}
		p.swarm.failed.Add(1)
	}
}

// serve speaks mdcs/1 until the connection ends, and reports whether the peer became a
// member.
func (p *peer) serve(ctx context.Context, c *conn) (joined bool) {
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	defer c.close()
	now := time.Now()
	p.mu.Lock()
	p.conn, p.welcome, p.pinged = c, false, now
	p.joiner = proto.NewJoiner(proto.JoinerConfig{
		Self:      p.id,
		Remote:    p.swarm.cfg.RP.ID(),
		NetworkID: p.swarm.cfg.NetworkID,
		Genesis:   p.swarm.cfg.Genesis,
		Groups:    []ids.Group{p.swarm.group},
		Publish:   !p.swarm.cfg.ReadOnly,
		Port:      p.endpoint.Port(),
		Rand:      crand.Reader,
	})
	p.joiner.Want(now, true)
	p.perform()
	p.mu.Unlock()
	for {
		code, payload, err := c.read()
		p.mu.Lock()
		now := time.Now()
		switch {
		case err != nil || code == rlpx.DisconnectMsg:
			p.joiner.Fail(now, errLost)
			p.perform()
			p.conn, p.joiner = nil, nil
			joined = p.welcome
			p.mu.Unlock()
			return joined
		case code == rlpx.PingMsg:
			p.write(rlpx.PongMsg, emptyList)
		case code >= capabilityMsg:
			p.message(now, code-capabilityMsg, payload)
		}
		p.mu.Unlock()
	}
}

var emptyList = []byte{0xc0} // of RLP

// write sends a message. An error is left to the reader, who has it too. p.mu is held.
func (p *peer) write(code uint64, payload []byte) {
	if p.conn.write(code, payload) != nil {
		p.conn.close()
	}
}

// message takes a message of mdcs/1. p.mu is held.
func (p *peer) message(now time.Time, code uint64, payload []byte) {
	m, err := proto.Decode(code, payload)
	if err != nil {
		p.joiner.Fail(now, err)
	} else if err = p.joiner.Handle(now, m); err != nil {
		p.swarm.refused.Add(1)
	}
	p.perform()
}

func (p *peer) tick(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.joiner == nil {
		return
	}
	if now.Sub(p.pinged) >= rlpx.PingInterval {
		p.pinged = now
		p.write(rlpx.PingMsg, emptyList)
	}
	p.joiner.Tick(now)
	p.perform()
}

// perform does what the joiner wants. p.mu is held.
func (p *peer) perform() {
	for _, a := range p.joiner.Actions() {
		switch a := a.(type) {
		case proto.Send:
			p.send(a.Message)
		case proto.Joined:
			p.join(time.Now(), &a)
		case proto.Install:
			p.install(a.Keys)
			p.streams = slices.DeleteFunc(p.streams, func(s *stream) bool {
				retired := slices.Contains(a.Retired, s.ingress)
				if retired {
					p.swarm.lostMemberships.Add(s.lost())
				}
				return retired
			})
		case proto.AnnounceDue:
			p.announce()
		case proto.Left:
			p.swarm.lostMemberships.Add(p.lost())
			p.member, p.streams = nil, nil
		}
	}
}

// join begins a membership. p.mu is held.
func (p *peer) join(now time.Time, m *proto.Joined) {
	p.member, p.streams, p.beats, p.sent, p.welcome = m, nil, 0, 0, true
	for _, mark := range m.Marks {
		s := p.stream(mark.Ingress, mark.Group)
		s.begun, s.base, s.newest = true, mark.Sequence, mark.Sequence
		s.taken.Raise(now, mark.Sequence)
	}
	p.install(m.Keys)
	p.swarm.joined.Add(1)
}

func (p *peer) send(m proto.Message) {
	payload, err := proto.Encode(m)
	if err != nil { // a message of ours always encodes
		panic(err)
	}
	p.write(capabilityMsg+m.Code(), payload)
}

// announce sends an Announce and the keep-alive beside it.
func (p *peer) announce() {
	var m proto.Announce
	for _, s := range p.streams {
		m.Counters = append(m.Counters, proto.Counter{
			Ingress: s.ingress, Group: s.group, Received: s.got, Lost: s.lost(), Duplicates: s.duplicates,
		})
	}
	p.send(&m)
	h := wire.Header{Type: wire.Heartbeat, Session: p.member.SendSession, Group: p.swarm.group}
	p.datagram(h.Append(nil))
}

// datagram sends a datagram to the RP. One that is lost here is like one lost on the way.
func (p *peer) datagram(b []byte) {
	wire.SetHopTag(b, p.member.SendKey.HopTag(b))
	p.socket.send(b, p.endpoint.Addr(), netip.AddrPortFrom(p.swarm.rp, p.member.RP.DataPort))
}

// stream returns a stream, which it adds when it is new.
func (p *peer) stream(ingress ids.Incarnation, group ids.Group) *stream {
	if s := p.find(ingress, group); s != nil {
		return s
	}
	s := &stream{ingress: ingress, group: group}
	p.streams = append(p.streams, s)
	return s
}

// find returns a stream, nil when it is not known.
func (p *peer) find(ingress ids.Incarnation, group ids.Group) *stream {
	for _, s := range p.streams {
		if s.ingress == ingress && s.group == group {
			return s
		}
	}
	return nil
}

func (p *peer) install(keys []proto.GroupKey) {
	for _, k := range keys {
		s := p.stream(k.Ingress, k.Group)
		s.keys = slices.DeleteFunc(s.keys, func(old proto.GroupKey) bool { return old.Epoch == k.Epoch })
		if k.Active {
			for i := range s.keys {
				s.keys[i].Active = false
			}
		}
		s.keys = append(s.keys, k)
		s.keys = s.keys[max(0, len(s.keys)-2):]
	}
}

// lost returns how many sequences are missing in all streams. p.mu is held.
func (p *peer) lost() (n uint64) {
	for _, s := range p.streams {
		n += s.lost()
	}
	return n
}

func (s *stream) lost() uint64 { return s.newest - s.base - s.got }

// publish sends one DATA.
func (p *peer) publish(object []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.member == nil {
		return errNotMember
	}
	s := p.find(p.member.RP.Incarnation, p.swarm.group)
	if s == nil {
		return errNoKey
	}
	i := slices.IndexFunc(s.keys, func(k proto.GroupKey) bool { return k.Active })
	if i < 0 {
		return errNoKey
	}
	p.sent++
	h := wire.Header{
		Type:       wire.Data,
		Epoch:      s.keys[i].Epoch,
		Session:    p.member.SendSession,
		Group:      p.swarm.group,
		Sequence:   p.sent,
		K:          1,
		N:          1,
		PayloadLen: uint16(len(object)),
		ObjectLen:  uint32(len(object)),
		ObjectID:   binary.BigEndian.Uint64(crypto.Keccak256(object)),
	}
	b := append(h.Append(make([]byte, 0, wire.MaxDatagram)), object...)
	wire.SetPayloadTag(b, s.keys[i].Key.PayloadTag(b))
	p.datagram(b)
	return nil
}

// receive takes a datagram that arrived at the socket at a Unix time in ns.
func (p *peer) receive(now time.Time, src netip.AddrPort, b []byte, at int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h, payload, v := wire.Parse(b)
	if v == wire.Pass && h.Type == wire.Probe {
		if p.joiner != nil && src == netip.AddrPortFrom(p.swarm.rp, p.joiner.RP().DataPort) {
			p.joiner.Probe([wire.NonceSize]byte(payload), len(b))
			p.perform()
		}
		return
	}
	if v == wire.Pass && p.member == nil {
		p.swarm.early.Add(1)
		return
	}
	if v == wire.Pass {
		v = p.check(now, &h, src, b)
	}
	switch {
	case v == wire.Replayed && h.Type == wire.Data:
		p.swarm.duplicates.Add(1)
		p.swarm.report(p.number, payload, at)
	case v != wire.Pass:
		p.swarm.refused.Add(1)
	default:
		p.joiner.Heard(now)
		switch h.Type {
		case wire.Data:
			p.swarm.received.Add(1)
			p.swarm.arrived(payload, at)
			p.swarm.report(p.number, payload, at)
		case wire.Echo:
			p.swarm.echoes.Add(1)
		}
	}
}

// check gives the verdict on a member's datagram (SPEC 9.2), and books it.
func (p *peer) check(now time.Time, h *wire.Header, src netip.AddrPort, b []byte) wire.Verdict {
	switch {
	case h.Session != p.member.ReceiveSession:
		return wire.NoSession
	case src != netip.AddrPortFrom(p.swarm.rp, p.member.RP.DataPort):
		return wire.BadSource
	case !p.member.ReceiveKey.CheckHopTag(b, h.HopTag):
		return wire.BadHopTag
	}
	s := p.find(h.Ingress, h.Group)
	if s == nil {
		return wire.NoKey
	}
	if h.Type == wire.Echo {
		v := s.echoes.Take(h.Sequence)
		s.book(h.Sequence, v)
		return v
	}
	i := slices.IndexFunc(s.keys, func(k proto.GroupKey) bool { return k.Epoch == h.Epoch })
	if i < 0 {
		return wire.NoKey
	}
	if !s.keys[i].Key.CheckPayloadTag(b, h.PayloadTag) {
		return wire.BadPayloadTag
	}
	if h.Type == wire.Heartbeat {
		v := p.beats.Take(h.ObjectID)
		if v == wire.Pass {
			s.beat(h.Sequence, s.taken.Follow(now, p.member, h.ObjectID, h.Sequence))
		}
		return v
	}
	v := s.taken.Take(now, h.Sequence)
	if v == wire.Replayed {
		s.duplicates++
	}
	s.book(h.Sequence, v)
	return v
}

// beat takes the newest sequence that a heartbeat tells. It is where a stream begins that is
// not known, or begins afresh.
func (s *stream) beat(newest uint64, restarted bool) {
	if restarted || !s.begun {
		s.begun, s.base, s.newest, s.got = true, newest, newest, 0
	}
	s.newest = max(s.newest, newest)
}

// book counts a sequence that passed.
func (s *stream) book(sequence uint64, v wire.Verdict) {
	if v != wire.Pass {
		return
	}
	if !s.begun {
		s.begun, s.base, s.newest = true, sequence-1, sequence-1
	}
	if sequence > s.base {
		s.got++
		s.newest = max(s.newest, sequence)
	}
}
