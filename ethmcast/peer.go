// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/coverage"
	"github.com/ethmcast/mdcs/ethmcast/outbox"
	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// sendQueue is the number of messages that wait for one connection. All of them
// are repeated or superseded, so one that finds no room is dropped.
const sendQueue = 64

// conn is one devp2p connection with the capability.
type conn struct {
	id  enode.ID
	out chan proto.Message
}

func (c *conn) send(m proto.Message) {
	select {
	case c.out <- m:
	default:
		droppedMeter.Mark(1)
	}
}

// rpConn is a connection to a configured RP.
type rpConn struct {
	conn
	addr    netip.Addr // of the RP
	local   netip.Addr // our end of the connection
	joiner  *proto.Joiner
	channel *net.UDPConn // its multicast channel, nil for none
}

// usable reports whether the RP can be joined or serves already.
func (rp *rpConn) usable() bool {
	switch rp.joiner.State() {
	case proto.JoinerIdle, proto.JoinerJoining, proto.JoinerActive:
		return true
	}
	return false
}

// peerConn is a connection to another node that speaks mdcs/1.
type peerConn struct {
	conn
	ready bool // its Status was right
	ended bool // it broke the protocol; what it sends is ignored
}

// handler is the service's side of a connection.
type handler interface {
	// handle takes a message, fail what could not be decoded. Neither ends the
	// devp2p connection, which other protocols share.
	handle(now time.Time, m proto.Message) error
	fail(now time.Time, err error)
	close(now time.Time)
}

// run serves one connection until it breaks. It never returns for what the
// other side sent: that would end the eth protocol of the same peer.
func (s *Service) run(peer *p2p.Peer, rw p2p.MsgReadWriter) error {
	c := conn{id: peer.ID(), out: make(chan proto.Message, sendQueue)}
	h, err := s.open(c, peer)
	if err != nil {
		s.log.Warn("Replication point not usable", "rp", peer.ID(), "err", err)
	}
	quit := make(chan struct{})
	defer close(quit)
	go func() {
		for {
			select {
			case m := <-c.out:
				if p2p.Send(rw, m.Code(), m) != nil {
					return // the read side sees it too
				}
			case <-quit:
				return
			}
		}
	}()
	if h != nil {
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			h.close(time.Now())
		}()
	}
	for {
		msg, err := rw.ReadMsg()
		if err != nil {
			return err
		}
		m, err := readMessage(&msg)
		if discardErr := msg.Discard(); discardErr != nil {
			return discardErr
		}
		if h == nil {
			continue
		}
		s.mu.Lock()
		now := time.Now()
		if err != nil {
			h.fail(now, err)
		} else {
			err = h.handle(now, m)
		}
		s.mu.Unlock()
		if err != nil {
			violationMeter.Mark(1)
			s.log.Warn("Ended mdcs session", "peer", peer.ID(), "err", err)
		}
	}
}

// readMessage reads and decodes one message; the error is a *proto.Error.
func readMessage(msg *p2p.Msg) (proto.Message, error) {
	if msg.Size > proto.MaxMessage {
		return nil, &proto.Error{Reason: proto.ReasonMalformed, Detail: fmt.Sprintf("message 0x%02x of %d bytes", msg.Code, msg.Size)}
	}
	payload, err := io.ReadAll(msg.Payload)
	if err != nil {
		return nil, &proto.Error{Reason: proto.ReasonMalformed, Detail: err.Error()}
	}
	return proto.Decode(msg.Code, payload)
}

// open registers a connection: to an RP if it is a configured or found one, else to a neighbour.
func (s *Service) open(c conn, peer *p2p.Peer) (handler, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.isRP(c.id) {
		p := &peerConn{conn: c}
		s.peers[c.id] = p
		p.send(&proto.Status{Role: proto.RolePeer, NetworkID: s.cfg.NetworkID, Genesis: s.cfg.Genesis})
		return &peerHandler{s, p}, nil
	}
	tcp, ok := peer.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return nil, fmt.Errorf("no TCP address: %v", peer.RemoteAddr())
	}
	addr, ok := netip.AddrFromSlice(tcp.IP)
	if addr = addr.Unmap(); !ok || !addr.Is6() {
		return nil, fmt.Errorf("%v is not an IPv6 address", tcp.IP)
	}
	rp := &rpConn{conn: c, addr: addr, local: localAddr(peer), joiner: proto.NewJoiner(proto.JoinerConfig{
		Self:      s.self,
		Remote:    c.id,
		NetworkID: s.cfg.NetworkID,
		Genesis:   s.cfg.Genesis,
		Groups:    []uint32{s.group},
		Publish:   s.cfg.Publish != PublishNone,
		Port:      s.port(),
		Mode:      s.cfg.Delivery.mode(),
		Rand:      rand.Reader,
	})}
	s.rps[c.id] = rp
	s.drain(time.Now(), rp)
	return &rpHandler{s, rp}, nil
}

// localAddr returns our address of a connection, zero when it has none.
func localAddr(peer *p2p.Peer) netip.Addr {
	if tcp, ok := peer.LocalAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr()
	}
	return netip.Addr{}
}

func (s *Service) isRP(id enode.ID) bool {
	for _, rp := range s.nodes {
		if rp.ID() == id {
			return true
		}
	}
	return false
}

// rpHandler serves the connection to an RP.
type rpHandler struct {
	s  *Service
	rp *rpConn
}

func (h *rpHandler) handle(now time.Time, m proto.Message) error {
	err := h.rp.joiner.Handle(now, m)
	h.s.drain(now, h.rp)
	h.s.choose(now)
	return err
}

func (h *rpHandler) fail(now time.Time, err error) {
	h.rp.joiner.Fail(now, err)
	h.s.drain(now, h.rp)
	h.s.choose(now)
}

func (h *rpHandler) close(now time.Time) {
	s := h.s
	delete(s.rps, h.rp.id)
	s.unsubscribe(h.rp)
	if s.active == h.rp {
		s.active = nil
		s.left(now, errDisconnected)
		s.choose(now)
	}
}

var errDisconnected = fmt.Errorf("disconnected")

// drain does what an RP's state machine wants done, which may make it want more.
func (s *Service) drain(now time.Time, rp *rpConn) {
	for actions := rp.joiner.Actions(); len(actions) > 0; actions = rp.joiner.Actions() {
		s.poke() // deadlines may have moved
		for _, a := range actions {
			s.perform(now, rp, a)
		}
	}
}

func (s *Service) perform(now time.Time, rp *rpConn, a proto.Action) {
	switch a := a.(type) {
	case proto.Send:
		rp.send(a.Message)
	case proto.Subscribe:
		rp.joiner.Subscribed(s.subscribe(rp, a))
	case proto.Joined:
		s.join(now, rp, a)
	case proto.Install:
		s.install(a.Keys)
		for _, ingress := range a.Retired {
			s.receiver.retire(ingress)
			s.marks.Retire(ingress)
		}
	case proto.AnnounceDue:
		rp.send(&proto.Announce{Counters: s.marks.Counters()})
		s.sendDatagram(s.outbox.KeepAlive())
	case proto.Left:
		s.unsubscribe(rp)
		s.left(now, a.Err)
	}
}

// join begins a membership.
func (s *Service) join(now time.Time, rp *rpConn, j proto.Joined) {
	if s.mode = j.Mode; j.Mode == proto.ModeUnicast {
		s.unsubscribe(rp)
	}
	s.receiver.join(rp.dataAddr(), hop{j.ReceiveSession, j.ReceiveKey}, hop{j.Channel.Session, j.Channel.Key})
	s.marks.Reset()
	for _, m := range j.Marks {
		s.marks.Start(coverage.Stream{Ingress: m.Ingress, Group: m.Group}, m.Sequence)
	}
	s.joined = true
	s.install(j.Keys)
	if key, ok := activeKey(j.Keys, j.RP.Incarnation, s.group); ok {
		s.outbox.SetPath(now, &outbox.Path{
			RP:      j.RP.Incarnation,
			Session: j.SendSession,
			Group:   s.group,
			Key:     j.SendKey,
			Epoch:   key.Epoch,
			Payload: key.Key,
			Rate:    j.Rate,
			Burst:   j.Burst,
		})
	}
	s.drainOutbox(now)
	s.sendHave(now, true)
	s.log.Info("Joined replication point", "rp", rp.id, "addr", rp.dataAddr(), "incarnation", fmt.Sprintf("%08x", j.RP.Incarnation),
		"delivery", j.Mode)
}

// activeKey returns the key in which to publish by an ingress RP.
func activeKey(keys []proto.GroupKey, ingress, group uint32) (proto.GroupKey, bool) {
	for _, k := range keys {
		if k.Ingress == ingress && k.Group == group && k.Active {
			return k, true
		}
	}
	return proto.GroupKey{}, false
}

// install installs group keys, and publishes in the new epoch of our RP.
func (s *Service) install(keys []proto.GroupKey) {
	for _, k := range keys {
		s.receiver.install(k)
	}
	if s.active != nil {
		if k, ok := activeKey(keys, s.active.joiner.RP().Incarnation, s.group); ok {
			s.outbox.SetGroupKey(k.Epoch, k.Key)
		}
	}
}

// left ends a membership, or an attempt: all neighbours gossip to us again.
func (s *Service) left(now time.Time, err error) {
	if !s.joined {
		s.log.Debug("Replication point not joined", "err", err)
		return
	}
	s.joined = false
	s.receiver.leave()
	s.outbox.SetPath(now, nil)
	s.drainOutbox(now)
	s.sendHave(now, true)
	s.log.Warn("Left replication point", "err", err)
}

// peerHandler serves the connection to a neighbour.
type peerHandler struct {
	s *Service
	p *peerConn
}

func (h *peerHandler) handle(now time.Time, m proto.Message) error {
	if h.p.ended {
		return nil
	}
	if err := h.accept(now, m); err != nil {
		h.fail(now, err)
		return err
	}
	return nil
}

func (h *peerHandler) accept(now time.Time, m proto.Message) error {
	s := h.s
	switch m := m.(type) {
	case *proto.Status:
		switch {
		case h.p.ready:
			return &proto.Error{Reason: proto.ReasonUnexpected, Detail: "second status"}
		case m.NetworkID != s.cfg.NetworkID || m.Genesis != s.cfg.Genesis:
			return &proto.Error{Reason: proto.ReasonChain, Detail: fmt.Sprintf("neighbour of network %d", m.NetworkID)}
		case m.Role != proto.RolePeer:
			return &proto.Error{Reason: proto.ReasonRole, Detail: fmt.Sprintf("%v that is not configured here", m.Role)}
		}
		h.p.ready = true
		s.coverage.Add(h.p.id)
		h.p.send(s.have())
	case *proto.Have:
		if !h.p.ready {
			return &proto.Error{Reason: proto.ReasonUnexpected, Detail: "have before status"}
		}
		s.announce(s.coverage.Have(now, h.p.id, m))
	case *proto.Leave:
		s.coverage.Remove(h.p.id)
		h.p.ended, h.p.ready = true, false
	default:
		return &proto.Error{Reason: proto.ReasonUnexpected, Detail: fmt.Sprintf("message 0x%02x from a neighbour", m.Code())}
	}
	return nil
}

func (h *peerHandler) fail(now time.Time, err error) {
	if h.p.ended {
		return
	}
	h.p.send(&proto.Leave{Reason: proto.ReasonOf(err)})
	h.s.announce(h.s.coverage.Have(now, h.p.id, &proto.Have{}))
	h.s.coverage.Remove(h.p.id)
	h.p.ended, h.p.ready = true, false
}

func (h *peerHandler) close(time.Time) {
	h.s.coverage.Remove(h.p.id)
	if h.s.peers[h.p.id] == h.p {
		delete(h.s.peers, h.p.id)
	}
}
