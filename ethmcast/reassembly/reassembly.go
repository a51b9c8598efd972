// SPDX-License-Identifier: LGPL-3.0-or-later

// Package reassembly puts the symbols of an object together (SPEC section 9.2).
//
// An object is collected under the key (ingress RP, handle, object id, K, N, object
// length), so that a claim of another publisher cannot spoil it. Memory grows with
// the bytes that arrived, never with what a header claims, and is bounded: the oldest
// incomplete object goes first. Nothing counts as seen before its hash is right.
package reassembly

import (
	"container/list"
	"encoding/binary"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// Bounds of SPEC section 11.
const (
	MaxObject = 128 << 10       // bytes, geth's limit for a transaction
	MaxBytes  = 16 << 20        // of symbols that wait, over all objects
	MaxAge    = 5 * time.Second // of an incomplete object
)

// symbolOverhead is what a waiting symbol costs besides its payload, in bytes.
const symbolOverhead = 64

// Hash is keccak256 or what takes its place in a test.
type Hash func([]byte) [32]byte

// Result is what became of a symbol.
type Result struct {
	Object    []byte   // complete and verified, else nil; valid until the payload is reused
	Hash      [32]byte // of Object
	Sequences []uint64 // sequences that the symbols of Object came with
	Bad       bool     // complete, but not what its id says; dropped
}

// Buffer collects symbols. It is not safe for concurrent use.
type Buffer struct {
	hash    Hash
	objects map[key]*object
	order   *list.List // of *object, oldest first
	bytes   int
}

type key struct {
	ingress ids.Incarnation
	handle  uint32
	id      uint64
	k, n    uint16
	length  uint32
}

type object struct {
	key       key
	began     time.Time
	symbols   map[uint16][]byte
	sequences []uint64
	bytes     int
	element   *list.Element
}

// New returns an empty buffer.
func New(hash Hash) *Buffer {
	return &Buffer{hash: hash, objects: make(map[key]*object), order: list.New()}
}

// Add takes a DATA symbol that passed wire.Parse and all tags. The payload is
// copied if it has to wait.
func (b *Buffer) Add(now time.Time, h *wire.Header, payload []byte) Result {
	b.Expire(now)
	if h.ObjectLen > MaxObject || h.ESI >= h.K {
		return Result{Bad: true}
	}
	if h.K == 1 {
		return b.verify(h.ObjectID, payload, []uint64{h.Sequence})
	}
	k := key{h.Ingress, h.Handle, h.ObjectID, h.K, h.N, h.ObjectLen}
	o := b.objects[k]
	if o == nil {
		o = &object{key: k, began: now, symbols: make(map[uint16][]byte)}
		o.element = b.order.PushBack(o)
		b.objects[k] = o
	}
	if len(o.sequences) < 2*int(h.K) { // resent symbols come with sequences of their own
		o.sequences = append(o.sequences, h.Sequence)
		b.grow(o, 8)
	}
	if _, ok := o.symbols[h.ESI]; !ok {
		o.symbols[h.ESI] = append([]byte(nil), payload...)
		b.grow(o, len(payload)+symbolOverhead)
	}
	if len(o.symbols) < int(h.K) {
		for b.bytes > MaxBytes {
			b.drop(b.order.Front().Value.(*object))
		}
		return Result{}
	}
	b.drop(o)
	whole := make([]byte, 0, h.ObjectLen)
	for esi := range h.K {
		whole = append(whole, o.symbols[esi]...)
	}
	return b.verify(h.ObjectID, whole, o.sequences)
}

func (b *Buffer) verify(id uint64, object []byte, sequences []uint64) Result {
	hash := b.hash(object)
	if binary.BigEndian.Uint64(hash[:]) != id {
		return Result{Bad: true}
	}
	return Result{Object: object, Hash: hash, Sequences: sequences}
}

func (b *Buffer) grow(o *object, n int) {
	o.bytes += n
	b.bytes += n
}

func (b *Buffer) drop(o *object) {
	delete(b.objects, o.key)
	b.order.Remove(o.element)
	b.bytes -= o.bytes
}

// Expire drops what has been incomplete for MaxAge.
func (b *Buffer) Expire(now time.Time) {
	for e := b.order.Front(); e != nil && now.Sub(e.Value.(*object).began) >= MaxAge; e = b.order.Front() {
		b.drop(e.Value.(*object))
	}
}

// Bytes returns the memory charged for incomplete objects.
func (b *Buffer) Bytes() int { return b.bytes }

// Len returns the number of incomplete objects.
func (b *Buffer) Len() int { return len(b.objects) }
