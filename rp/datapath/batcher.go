// SPDX-License-Identifier: LGPL-3.0-or-later

package datapath

import (
	"errors"
	"sync"
)

// Batcher is an Engine that joins concurrent changes into one: while a change is
// being applied, those that arrive wait and go together next. An engine whose
// changes are expensive then keeps up with any number of joins per second. Each caller is
// told of the refusals of its own elements.
type Batcher struct {
	Engine

	turn chan struct{} // holds the one token of who applies a batch

	mu   sync.Mutex
	next *batch // collecting, nil when nothing waits
}

type batch struct {
	changes []Change
	done    chan struct{} // closed when errs is set
	errs    []error       // of the changes
}

// NewBatcher returns a Batcher in front of an engine.
func NewBatcher(e Engine) *Batcher {
	b := &Batcher{Engine: e, turn: make(chan struct{}, 1)}
	b.turn <- struct{}{}
	return b
}

// Apply implements Engine. A change that waits for its receivers holds up no other.
func (b *Batcher) Apply(c Change) error {
	err := b.stage(c)
	await(b.Engine, c)
	return err
}

func (b *Batcher) stage(c Change) error {
	b.mu.Lock()
	mine := b.next
	first := mine == nil
	if first {
		mine = &batch{done: make(chan struct{})}
		b.next = mine
	}
	i := len(mine.changes)
	mine.changes = append(mine.changes, c)
	b.mu.Unlock()

	if !first {
		<-mine.done
		return mine.errs[i]
	}
	// The first of a batch applies it, when the batch before is done.
	<-b.turn
	defer func() { b.turn <- struct{}{} }()
	b.mu.Lock()
	b.next = nil
	b.mu.Unlock()

	mine.errs = b.apply(mine.changes)
	close(mine.done)
	return mine.errs[i]
}

func (b *Batcher) apply(changes []Change) (errs []error) {
	var all Change
	for _, c := range changes {
		all.Merge(c)
	}
	err := stage(b.Engine, all)
	refused, ok := errors.AsType[*Refused](err)
	for _, c := range changes {
		if ok {
			errs = append(errs, refused.Of(c))
		} else {
			errs = append(errs, err)
		}
	}
	return errs
}
