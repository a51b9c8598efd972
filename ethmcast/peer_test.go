// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/coverage"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
)

func newTestService(t *testing.T) *Service {
	t.Helper()
	s, err := New(Config{RPs: []*enode.Node{nil}, Publish: PublishAll}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// gossipPeer is one that covers testStream from the beginning.
func gossipPeer(t *testing.T, s *Service, now time.Time) *peerHandler {
	t.Helper()
	h := &peerHandler{s, &peerConn{conn: conn{id: enode.ID{7}, out: make(chan proto.Message, sendQueue)}}}
	s.peers[h.p.id] = h.p
	marks := []proto.HaveMark{{Ingress: testIngress, Group: testGroup, First: 1, Next: 1}}
	for _, m := range []proto.Message{
		&proto.Status{Role: proto.RolePeer},
		&proto.Have{Covered: true, Whole: true, Marks: marks},
	} {
		if err := h.handle(now, m); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// A gossip peer that ends its session in whatever way is announced what was held for it.
func TestHeldIsAnnouncedAtTheEnd(t *testing.T) {
	now := time.Unix(100, 0)
	for name, end := range map[string]func(*peerHandler){
		"leave":     func(h *peerHandler) { _ = h.handle(now, &proto.Leave{}) },
		"violation": func(h *peerHandler) { _ = h.handle(now, &proto.Status{Role: proto.RolePeer}) },
		"garbage":   func(h *peerHandler) { _ = h.fail(now, errors.New("garbage")) },
	} {
		s := newTestService(t)
		h := gossipPeer(t, s, now)
		hash := common.Hash{5}
		if !s.coverage.Skip(now, h.p.id, hash, &coverage.Ref{Stream: testStream, Sequence: 1}) {
			t.Fatal("not held")
		}
		end(h)
		if len(s.announces) != 1 || s.announces[0].Peer != h.p.id || len(s.announces[0].Hashes) != 1 || s.announces[0].Hashes[0] != hash {
			t.Errorf("%s: announced %v", name, s.announces)
		}
		if s.coverage.Held() != 0 || s.coverage.Covers(now, h.p.id) {
			t.Errorf("%s: the gossip peer is covered still", name)
		}
	}
}

// After the end of its session nobody makes this node log, or answer.
func TestViolationCountsOnce(t *testing.T) {
	now := time.Unix(100, 0)
	garbage := &proto.Error{Reason: proto.ReasonMalformed, Detail: "garbage"}

	h := gossipPeer(t, newTestService(t), now)
	if err := h.fail(now, garbage); err == nil {
		t.Error("garbage of a gossip peer ends nothing")
	}
	left := &peerHandler{h.s, &peerConn{conn: h.p.conn}}
	if err := left.handle(now, &proto.Leave{}); err != nil {
		t.Fatal(err)
	}

	s := newTestService(t)
	s.enabled = false
	rp := &rpConn{id: enode.ID{8}, conn: &conn{out: make(chan proto.Message, sendQueue)}}
	rp.joiner = proto.NewJoiner(proto.JoinerConfig{Groups: []ids.Group{testGroup}, Port: 1, Rand: rand.Reader})
	barred := &rpHandler{s, rp, rp.conn}
	if err := barred.fail(now, garbage); err == nil || rp.state() != proto.JoinerBarred {
		t.Errorf("garbage in place of a status: %v, state %v", err, rp.state())
	}

	for name, h := range map[string]handler{"ended": h, "left": left, "barred": barred} {
		sent := len(barred.conn.out) + len(left.p.out)
		if err := h.fail(now, garbage); err != nil {
			t.Errorf("%s: garbage: %v", name, err)
		}
		if err := h.handle(now, &proto.Have{}); err != nil {
			t.Errorf("%s: a message: %v", name, err)
		}
		if len(barred.conn.out)+len(left.p.out) != sent {
			t.Errorf("%s: answered", name)
		}
	}
}

// A peer that neither gossips with this node nor is an RP of ours takes no place.
func TestUselessPeers(t *testing.T) {
	s := newTestService(t)
	asked := 0
	s.cfg.Gossips = func(*p2p.Peer) bool { asked++; return false }
	peer := p2p.NewPeer(enode.ID{9}, "useless", nil)
	if err := s.run(peer, nil); err != p2p.DiscUselessPeer || asked != 1 {
		t.Errorf("%v, asked %d times", err, asked)
	}
	rp := newRPConn(enode.NewV4(&key(t).PublicKey, testRP.Addr().AsSlice(), 1, 1))
	s.rps[rp.id] = rp
	if !s.useful(p2p.NewPeer(rp.id, "rp", nil)) || asked != 1 {
		t.Error("an RP is of use")
	}
	s.cfg.Gossips = func(*p2p.Peer) bool { return true }
	if !s.useful(peer) {
		t.Error("a gossip peer is of use")
	}
}

func key(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}
