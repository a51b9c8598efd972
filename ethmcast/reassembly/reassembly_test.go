// SPDX-License-Identifier: LGPL-3.0-or-later

package reassembly

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/ethmcast/wire"
)

var now = time.Unix(100, 0)

func random(size int, seed byte) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

type piece struct {
	h       wire.Header
	payload []byte
}

// cut returns an object's symbols, numbered from first.
func cut(b []byte, first uint64) (symbols []piece) {
	hash := sha256.Sum256(b)
	k := wire.SourceSymbols(len(b))
	for esi := range k {
		payload := b[esi*wire.MaxPayload : min((esi+1)*wire.MaxPayload, len(b))]
		symbols = append(symbols, piece{wire.Header{
			Type: wire.Data, Ingress: 1, Handle: 2, Sequence: first + uint64(esi), ESI: uint16(esi), K: uint16(k), N: uint16(k),
			PayloadLen: uint16(len(payload)), ObjectLen: uint32(len(b)), ObjectID: binary.BigEndian.Uint64(hash[:]),
		}, payload})
	}
	return symbols
}

func TestAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := New(sha256.Sum256)
		want := random(rapid.IntRange(1, 20*wire.MaxPayload).Draw(t, "size"), 1)
		symbols := cut(want, 50)
		order := rapid.Permutation(symbols).Draw(t, "order")
		for i, s := range order {
			if i > 0 && rapid.Bool().Draw(t, "again") {
				if r := b.Add(now, &order[i-1].h, order[i-1].payload); r.Object != nil {
					t.Fatal("complete by a duplicate")
				}
			}
			r := b.Add(now, &s.h, s.payload)
			if done := i == len(order)-1; done != (r.Object != nil) || r.Bad {
				t.Fatalf("symbol %d of %d: %+v", i+1, len(order), r)
			}
			if r.Object == nil {
				continue
			}
			if !bytes.Equal(r.Object, want) || r.Hash != sha256.Sum256(want) {
				t.Fatal("another object came out")
			}
			for _, s := range symbols {
				if !slices.Contains(r.Sequences, s.h.Sequence) {
					t.Fatalf("sequence %d is not settled: %v", s.h.Sequence, r.Sequences)
				}
			}
		}
		if b.Bytes() != 0 || b.Len() != 0 {
			t.Fatalf("%d bytes in %d objects left", b.Bytes(), b.Len())
		}
	})
}

// A hash that is not what the id claims is not delivered, and does not stand in
// the way of the right object.
func TestWrongHash(t *testing.T) {
	b := New(sha256.Sum256)
	want := random(3000, 1)
	symbols := cut(want, 1)
	forged := cut(random(3000, 2), 10)
	for i := range forged {
		forged[i].h.ObjectID, forged[i].h.Handle = symbols[0].h.ObjectID, 9
		if r := b.Add(now, &forged[i].h, forged[i].payload); r.Object != nil {
			t.Fatal("forged object delivered")
		} else if last := i == len(forged)-1; r.Bad != last {
			t.Fatalf("symbol %d: %+v", i, r)
		}
	}
	var r Result
	for _, s := range symbols {
		r = b.Add(now, &s.h, s.payload)
	}
	if !bytes.Equal(r.Object, want) {
		t.Error("the right object was not delivered")
	}
	single := cut(random(100, 3), 1)[0]
	single.h.ObjectID++
	if r := b.Add(now, &single.h, single.payload); !r.Bad || r.Object != nil {
		t.Errorf("single symbol: %+v", r)
	}
}

// Memory follows what arrived, not what headers claim, and is bounded.
func TestMemory(t *testing.T) {
	b := New(sha256.Sum256)
	arrived := 0
	s := cut(random(MaxObject, 1), 1)[0]
	for range 20_000 {
		s.h.ObjectID++
		b.Add(now, &s.h, s.payload)
		arrived += len(s.payload) + symbolOverhead + 8
		if b.Bytes() > arrived || b.Bytes() > MaxBytes {
			t.Fatalf("%d bytes charged after %d arrived", b.Bytes(), arrived)
		}
	}
	if b.Len() < 1000 {
		t.Errorf("only %d objects wait", b.Len())
	}
	b.Expire(now.Add(MaxAge))
	if b.Bytes() != 0 || b.Len() != 0 {
		t.Errorf("%d bytes in %d objects after they expired", b.Bytes(), b.Len())
	}
	over := cut(random(MaxObject+1, 1), 1)[0]
	if r := b.Add(now, &over.h, over.payload); !r.Bad || b.Len() != 0 {
		t.Errorf("an object over the limit: %+v", r)
	}
	same := cut(random(3000, 1), 1)[0]
	for seq := range uint64(1000) {
		same.h.Sequence = seq
		b.Add(now, &same.h, same.payload)
	}
	if b.Bytes() > 2*wire.MaxPayload {
		t.Errorf("%d bytes for one symbol sent over and over", b.Bytes())
	}
}
