// SPDX-License-Identifier: LGPL-3.0-or-later

package datapath

import "sync"

// Batcher is an Engine that joins concurrent changes into one: while a change is
// being applied, those that arrive wait and go together next. An engine whose
// changes are dear then keeps up with any number of joins per second. A change
// that the engine refuses fails all that went with it.
type Batcher struct {
	Engine

	turn chan struct{} // holds the one token of who applies a batch

	mu   sync.Mutex
	next *batch // collecting, nil when nothing waits
}

type batch struct {
	change Change
	done   chan struct{} // closed when err is set
	err    error
}

// NewBatcher returns a Batcher in front of an engine.
func NewBatcher(e Engine) *Batcher {
	b := &Batcher{Engine: e, turn: make(chan struct{}, 1)}
	b.turn <- struct{}{}
	return b
}

// Apply implements Engine.
func (b *Batcher) Apply(c Change) error {
	b.mu.Lock()
	mine := b.next
	first := mine == nil
	if first {
		mine = &batch{done: make(chan struct{})}
		b.next = mine
	}
	mine.change.Merge(c)
	b.mu.Unlock()

	if !first {
		<-mine.done
		return mine.err
	}
	// The first of a batch applies it, when the batch before is done.
	<-b.turn
	defer func() { b.turn <- struct{}{} }()
	b.mu.Lock()
	b.next = nil
	b.mu.Unlock()

	mine.err = b.Engine.Apply(mine.change)
	close(mine.done)
	return mine.err
}
