// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/coverage"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/outbox"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/reassembly"
)

// minBackoff is the least range of the random wait before a transaction of an
// uncovered gossip peer is published: others may have heard it too (SPEC 9.3).
const minBackoff = 50 * time.Millisecond

// RouteTx is called once for each transaction that enters the pool, with the
// peers that know it already. It publishes the transaction if that is this
// node's to do. The returned function reports whether gossip of it to one peer
// is to be left out; nil stands for never.
func (s *Service) RouteTx(tx *types.Transaction, known []enode.ID) (skip func(enode.ID) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()

	now, hash := time.Now(), tx.Hash()
	if s.given.Contains(hash) {
		return nil
	}
	ref := s.refOf(hash)
	if ref == nil {
		if ref = s.publish(now, tx, known); ref == nil {
			return nil
		}
	}
	return func(peer enode.ID) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		ok := s.coverage.Skip(time.Now(), peer, hash, ref)
		if ok {
			skippedMeter.Mark(1)
		}
		return ok
	}
}

// refOf returns the place in multicast of a transaction, nil if it has none.
func (s *Service) refOf(hash common.Hash) *coverage.Ref {
	if x, ok := s.seen.Get(objectID(hash)); ok && x.hash == hash {
		return x.ref
	}
	return nil
}

func objectID(hash common.Hash) uint64 { return binary.BigEndian.Uint64(hash[:]) }

// publish hands a transaction to the outbox if it is this node's to publish.
func (s *Service) publish(now time.Time, tx *types.Transaction, known []enode.ID) *coverage.Ref {
	local := len(known) == 0
	switch {
	case s.path() == nil:
		return nil
	case tx.Type() == types.BlobTxType: // too large, and its sidecar is fetched in cells
		return nil
	case s.cfg.Publish == PublishNone || s.cfg.Publish == PublishBridged && local:
		return nil
	case slices.ContainsFunc(known, func(id enode.ID) bool { return s.coverage.Covers(now, id) }):
		return nil // it came by gossip from one that has an RP itself
	}
	object, err := tx.MarshalBinary()
	if err != nil || len(object) > reassembly.MaxObject {
		return nil
	}
	var delay time.Duration
	if !local {
		delay = time.Duration(s.jitter.Int64N(int64(max(minBackoff, 4*s.outbox.SRTT()))))
	}
	hash := tx.Hash()
	asks := s.book.Wanted(hash) || s.jitter.Float64() < s.cfg.Receipts
	if !s.outbox.Publish(now, hash, object, delay, asks) {
		return nil
	}
	if asks {
		s.book.Asked(now, hash)
		askedMeter.Mark(1)
	}
	ref := s.coverage.Publish(hash, ids.Stream{Ingress: s.active.joiner.RP().Incarnation, Group: s.group})
	s.flushOutbox(now)
	s.poke()
	return ref
}

// An RP is lost that left so many objects in a row without an ECHO, for so long at least: that is no
// short outage.
const (
	deafAfter   = 3
	deafSilence = proto.SuspectTimeout
)

// giveBack hands a transaction that the RP did not take to gossip, as if it had just entered the
// pool: pushed to some and announced to the others.
func (s *Service) giveBack(hash common.Hash) {
	s.coverage.Abandon(hash) // all who lack it get it now
	s.given.Add(hash, struct{}{})
	s.broadcasts = append(s.broadcasts, hash)
	failedMeter.Mark(1)
	s.poke()
}

// drainOutbox does what the outbox wants done.
func (s *Service) drainOutbox(now time.Time) {
	unanswered, deaf := false, false
	for _, a := range s.outbox.Actions() {
		switch a := a.(type) {
		case outbox.Datagram:
			s.sendDatagram(s.active, a.Bytes)
		case outbox.Published:
			stream := ids.Stream{Ingress: a.RP, Group: s.group}
			s.coverage.Numbered(a.Hash, stream, a.Sequence)
			s.seen.Add(objectID(a.Hash), seenTx{hash: a.Hash, ref: &coverage.Ref{Stream: stream, Sequence: a.Sequence}, own: true})
			publishedMeter.Mark(1)
			ackTimer.Update(a.Took)
			if s.active != nil {
				s.active.joiner.Echoed()
			}
		case outbox.Failed:
			s.giveBack(a.Hash)
			deaf = deaf || a.Row >= deafAfter && a.Silence >= deafSilence
		case outbox.Unanswered:
			unanswered = true
		}
	}
	if (unanswered || deaf) && s.active != nil { // may change the RP
		if deaf {
			s.active.joiner.Deaf(now)
		} else {
			s.active.joiner.Unanswered(now)
		}
		s.drain(now, s.active)
		s.choose(now)
	}
}
