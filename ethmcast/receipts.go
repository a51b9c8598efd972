// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"context"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/receipt"
)

// listenerQueue is how many majorities wait for a subscriber of mdcs_subscribe. One that
// reads more slowly misses some; mdcs_receipts has them.
const listenerQueue = receipt.MaxReceipts

// Counters is the answer of mdcs_counters: what the RP in use says of the members of the
// group. They are as old as the mesh's counts, some seconds.
type Counters struct {
	RP      string      `json:"rp,omitempty"` // nobody without counters
	Members uint64      `json:"members"`      // at all RPs
	Here    uint64      `json:"here"`         // at this RP
	RPs     []RPMembers `json:"rps"`          // RPs that it sends to, ordered by id
}

// RPMembers is the members at and behind one RP.
type RPMembers struct {
	RP      string `json:"rp"` // first 8 bytes of the node id
	Members uint64 `json:"members"`
}

// Receipt is an entry of the answer of mdcs_receipts: what RPs say of one transaction
// that this node published. It proves nothing (SPEC 7.15).
type Receipt struct {
	Hash      common.Hash     `json:"hash"`
	Asked     time.Time       `json:"asked"`             // when it was published
	At        *time.Time      `json:"at,omitempty"`      // of the newest word, none before the first
	Ingress   ids.Incarnation `json:"ingress,omitempty"` // RP at which it entered
	Sequence  uint64          `json:"sequence,omitempty"`
	Members   uint64          `json:"members"`   // of the group, without this node
	Sent      uint32          `json:"sent"`      // members that RPs on the tree had
	Confirmed uint32          `json:"confirmed"` // of these
	Majority  bool            `json:"majority"`  // more than half of the members, and the surplus
}

func newReceipt(r receipt.Receipt) Receipt {
	v := Receipt{
		Hash: r.Hash, Asked: r.Asked, Ingress: r.Place.Ingress, Sequence: r.Place.Sequence,
		Members: r.Members, Sent: r.Sent, Confirmed: r.Confirmed, Majority: r.Majority,
	}
	if !r.At.IsZero() {
		v.At = &r.At
	}
	return v
}

// confirm tells the active RP which objects this node has, of those that asked.
func (s *Service) confirm(now time.Time) {
	places := s.confirms.Tick(now)
	if len(places) == 0 || !s.covered || s.active == nil {
		return
	}
	s.active.send(&proto.Confirm{Places: places})
	confirmedMeter.Mark(int64(len(places)))
}

// receipts takes what an RP says of objects that this node published.
func (s *Service) receipts(now time.Time, objects []proto.ObjectReceipt) {
	receiptMeter.Mark(int64(len(objects)))
	for _, o := range objects {
		r, majority := s.book.Take(now, o)
		if !majority {
			continue
		}
		majorityMeter.Mark(1)
		for l := range s.listeners {
			select {
			case l <- newReceipt(r):
			default:
			}
		}
	}
}

// Counters returns how many members the group of transactions has.
func (api *API) Counters() Counters {
	s := api.s
	s.mu.Lock()
	defer s.mu.Unlock()
	answer := Counters{RPs: []RPMembers{}}
	if s.active == nil || s.active.counters == nil {
		return answer
	}
	c := s.active.counters
	answer.RP, answer.Members, answer.Here = s.active.id.String(), c.Members, c.Here
	for _, n := range c.RPs {
		answer.RPs = append(answer.RPs, RPMembers{fmt.Sprintf("%016x", n.RP), n.Members})
	}
	return answer
}

// RequestReceipt asks who gets a transaction when it is published, and returns false if
// it was published with such a request before. After publishing it is too late.
func (api *API) RequestReceipt(hash common.Hash) bool {
	s := api.s
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.book.Request(hash)
}

// Receipts returns the receipts of the last 256 transactions that asked, the newest one
// first.
func (api *API) Receipts() []Receipt {
	s := api.s
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []Receipt{}
	for _, r := range s.book.Receipts() {
		all = append(all, newReceipt(r))
	}
	return all
}

// Majority is the subscription to the receipts that reach a majority, once each.
func (api *API) Majority(ctx context.Context) (*rpc.Subscription, error) {
	notifier, ok := rpc.NotifierFromContext(ctx)
	if !ok {
		return nil, rpc.ErrNotificationsUnsupported
	}
	s, sub, receipts := api.s, notifier.CreateSubscription(), make(chan Receipt, listenerQueue)
	s.mu.Lock()
	s.listeners[receipts] = struct{}{}
	s.mu.Unlock()
	go func() {
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.listeners, receipts)
		}()
		for {
			select {
			case r := <-receipts:
				if notifier.Notify(sub.ID, r) != nil {
					return
				}
			case <-sub.Err():
				return
			case <-s.quit:
				return
			}
		}
	}()
	return sub, nil
}
