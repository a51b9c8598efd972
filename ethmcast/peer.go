// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"fmt"
	"io"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// sendQueue is the number of messages that wait for one connection. All of them
// are repeated or superseded, so one that finds no room is dropped.
const sendQueue = 64

// conn is one devp2p connection with the capability.
type conn struct {
	id   enode.ID
	peer *p2p.Peer
	out  chan proto.Message
}

func (c *conn) send(m proto.Message) (sent bool) {
	select {
	case c.out <- m:
		return true
	default:
		droppedMeter.Mark(1)
		return false
	}
}

// peerConn is a connection to another node that speaks mdcs/1.
type peerConn struct {
	conn
	ready bool   // its Status was right
	ended bool   // it left or broke the protocol; what it sends is ignored
	told  uint64 // version of the marks that it has, 0 for none
}

// handler is the service's side of a connection.
type handler interface {
	// handle takes a message, fail what could not be decoded. They return what ended
	// the session, once. Neither ends the devp2p connection, which other protocols share.
	handle(now time.Time, m proto.Message) error
	fail(now time.Time, err error) error
	close(now time.Time)
}

// run serves one connection until it breaks. It never returns for what the
// other side sent: that would end the eth protocol of the same peer. A peer
// without that, which is no RP, is disconnected.
func (s *Service) run(peer *p2p.Peer, rw p2p.MsgReadWriter) error {
	if !s.useful(peer) {
		return p2p.DiscUselessPeer
	}
	c := conn{id: peer.ID(), peer: peer, out: make(chan proto.Message, sendQueue)}
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
			err = h.fail(now, err)
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

// useful reports whether a peer is an RP of ours or gossips with this node.
func (s *Service) useful(peer *p2p.Peer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg.Gossips == nil || s.rps[peer.ID()] != nil || s.cfg.Gossips(peer)
}

// readMessage reads and decodes one message; the error is a violation (proto.IsViolation).
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

// open registers a connection: to an RP if it may be used, else to a gossip peer.
func (s *Service) open(c conn, peer *p2p.Peer) (handler, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rp := s.rps[c.id]; rp != nil {
		return s.openRP(c, rp, peer)
	}
	p := &peerConn{conn: c}
	s.peers[c.id] = p
	p.send(&proto.Status{Role: proto.RolePeer, NetworkID: s.cfg.NetworkID, Genesis: s.cfg.Genesis})
	return &peerHandler{s, p}, nil
}

// peerHandler serves the connection to a gossip peer.
type peerHandler struct {
	s *Service
	p *peerConn
}

func (h *peerHandler) handle(now time.Time, m proto.Message) error {
	if h.p.ended {
		return nil
	}
	if err := h.accept(now, m); err != nil {
		return h.fail(now, err)
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
			return &proto.Error{Reason: proto.ReasonChain, Detail: fmt.Sprintf("gossip peer of network %d", m.NetworkID)}
		case m.Role != proto.RolePeer:
			return &proto.Error{Reason: proto.ReasonRole, Detail: fmt.Sprintf("%v that is not configured here", m.Role)}
		}
		h.p.ready = true
		s.coverage.Add(h.p.id)
		s.have(h.p)
	case *proto.Have:
		if !h.p.ready {
			return &proto.Error{Reason: proto.ReasonUnexpected, Detail: "have before status"}
		}
		s.announce(s.coverage.Have(now, h.p.id, m))
	case *proto.Leave:
		h.end(now)
	default:
		return &proto.Error{Reason: proto.ReasonUnexpected, Detail: fmt.Sprintf("message 0x%02x from a gossip peer", m.Code())}
	}
	return nil
}

func (h *peerHandler) fail(now time.Time, err error) error {
	if h.p.ended {
		return nil
	}
	h.p.send(&proto.Leave{Reason: proto.ReasonOf(err)})
	h.end(now)
	return err
}

// end ends the session on a connection that goes on: what is held for the gossip peer is
// announced.
func (h *peerHandler) end(now time.Time) {
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
