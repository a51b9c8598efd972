// SPDX-License-Identifier: LGPL-3.0-or-later

package receipt

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// Limits of SPEC section 11.
const (
	MaxRequests = 256 // objects that were asked about before they were published
	MaxReceipts = 256 // objects that are remembered
)

// Receipt is what RPs said of one object.
type Receipt struct {
	Hash  [32]byte
	Asked time.Time // when it was published
	At    time.Time // of the newest word of the RPs, zero for none

	// What the RPs said, as in proto.ObjectReceipt.
	Place           proto.Place
	Members         uint64
	Sent, Confirmed uint32

	Majority bool // enough confirmed
}

// Book is what a publisher learns about the objects that it asked about.
type Book struct {
	surplus  uint64
	wanted   [][32]byte // to be asked about, oldest first
	receipts []*Receipt // oldest first
}

// NewBook returns an empty Book. The majority of an object is more than half of the
// members and surplus more.
func NewBook(surplus uint64) *Book { return &Book{surplus: surplus} }

// Request says that a receipt of an object is wanted when it is published; the oldest
// of too many requests goes. It reports false when the object was asked about before.
func (b *Book) Request(hash [32]byte) bool {
	if b.receipt(objectID(hash)) != nil {
		return false
	}
	if !slices.Contains(b.wanted, hash) {
		b.wanted = append(b.wanted, hash)
		b.wanted = b.wanted[max(0, len(b.wanted)-MaxRequests):]
	}
	return true
}

// Wanted reports whether a receipt of an object was requested.
func (b *Book) Wanted(hash [32]byte) bool { return slices.Contains(b.wanted, hash) }

// Asked says that an object was published, and that it asks.
func (b *Book) Asked(now time.Time, hash [32]byte) {
	b.wanted = slices.DeleteFunc(b.wanted, func(h [32]byte) bool { return h == hash })
	if b.receipt(objectID(hash)) != nil {
		return
	}
	if len(b.receipts) == MaxReceipts {
		b.receipts = slices.Delete(b.receipts, 0, 1)
	}
	b.receipts = append(b.receipts, &Receipt{Hash: hash, Asked: now})
}

// Cancelled says that an object was not published after all.
func (b *Book) Cancelled(hash [32]byte) {
	b.receipts = slices.DeleteFunc(b.receipts, func(r *Receipt) bool { return r.Hash == hash && r.At.IsZero() })
}

// Take takes a word of an RP. It returns the receipt when that makes a majority, once
// for each object. An object that was sent more than once, or to two RPs, is counted for
// each datagram that asked: the one with the most confirmations is kept. What was not
// asked about is ignored.
func (b *Book) Take(now time.Time, o proto.ObjectReceipt) (majority Receipt, reached bool) {
	r := b.receipt(o.ObjectID)
	if r == nil || !r.At.IsZero() && o.Place != r.Place && o.Confirmed <= r.Confirmed {
		return Receipt{}, false
	}
	r.At, r.Place, r.Members, r.Sent, r.Confirmed = now, o.Place, o.Members, o.Sent, o.Confirmed
	if r.Majority || !b.enough(r) {
		return Receipt{}, false
	}
	r.Majority = true
	return *r, true
}

// enough reports whether a majority confirmed. Both counts of the members are somewhat
// old, so the larger one says how many there are.
func (b *Book) enough(r *Receipt) bool {
	members := max(r.Members, uint64(r.Sent))
	return uint64(r.Confirmed) > members/2 && uint64(r.Confirmed)-members/2 > b.surplus
}

func (b *Book) receipt(object uint64) *Receipt {
	for _, r := range b.receipts {
		if objectID(r.Hash) == object {
			return r
		}
	}
	return nil
}

// Receipts returns what is known, the newest object first.
func (b *Book) Receipts() []Receipt {
	all := make([]Receipt, 0, len(b.receipts))
	for _, r := range slices.Backward(b.receipts) {
		all = append(all, *r)
	}
	return all
}

func objectID(hash [32]byte) uint64 { return binary.BigEndian.Uint64(hash[:]) }
