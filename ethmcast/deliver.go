// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"sync"

	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/log"
)

const (
	deliverQueue   = 1 << 13 // transactions that wait for the pool
	deliverBatch   = 64      // transactions of one Enqueue
	deliverWorkers = 32      // concurrent Enqueues; each may sleep 200 ms on refusals
	refusedMax     = 1 << 12 // refused transactions kept for the next heads
	refusedHeads   = 2       // heads after which a refused transaction is offered again
)

// deliverer offers received transactions to the pool. One that the pool refuses
// is offered again after each of the next two heads: multicast may be faster
// than the block that makes it valid.
type deliverer struct {
	backend Backend
	log     log.Logger
	queue   chan *types.Transaction
	heads   chan struct{}
	quit    chan struct{}
	wg      sync.WaitGroup
	slots   chan struct{}

	mu      sync.Mutex
	refused []refusedTx
}

type refusedTx struct {
	tx    *types.Transaction
	heads int // left
}

func newDeliverer(backend Backend, log log.Logger) *deliverer {
	return &deliverer{
		backend: backend,
		log:     log,
		queue:   make(chan *types.Transaction, deliverQueue),
		heads:   make(chan struct{}, 1),
		quit:    make(chan struct{}),
		slots:   make(chan struct{}, deliverWorkers),
	}
}

func (d *deliverer) start() {
	d.wg.Add(1)
	go d.loop()
}

func (d *deliverer) stop() {
	close(d.quit)
	d.wg.Wait()
}

// offer takes a transaction unless the queue is full.
func (d *deliverer) offer(tx *types.Transaction) bool {
	select {
	case d.queue <- tx:
		return true
	default:
		overflowMeter.Mark(1)
		return false
	}
}

// newHead offers refused transactions again. Heads in quick succession count as one.
func (d *deliverer) newHead() {
	select {
	case d.heads <- struct{}{}:
	default:
	}
}

func (d *deliverer) loop() {
	defer d.wg.Done()
	for {
		select {
		case tx := <-d.queue:
			d.enqueue(d.fill(refusedTx{tx, refusedHeads}))
		case <-d.heads:
			d.mu.Lock()
			again := d.refused
			d.refused = nil
			d.mu.Unlock()
			for len(again) > 0 {
				n := min(len(again), deliverBatch)
				d.enqueue(again[:n:n])
				again = again[n:]
			}
		case <-d.quit:
			return
		}
	}
}

// fill makes a batch of what waits already.
func (d *deliverer) fill(first refusedTx) []refusedTx {
	batch := []refusedTx{first}
	for len(batch) < deliverBatch {
		select {
		case tx := <-d.queue:
			batch = append(batch, refusedTx{tx, refusedHeads})
		default:
			return batch
		}
	}
	return batch
}

// enqueue hands a batch to the pool from a goroutine of its own, as one batch of
// refused transactions must not hold up the next.
func (d *deliverer) enqueue(batch []refusedTx) {
	select {
	case d.slots <- struct{}{}:
	case <-d.quit:
		return
	}
	d.wg.Add(1)
	go func() {
		defer func() { <-d.slots; d.wg.Done() }()
		txs := make([]*types.Transaction, len(batch))
		for i, r := range batch {
			txs[i] = r.tx
		}
		if err := d.backend.Enqueue(txs); err != nil {
			d.log.Debug("Delivering transactions failed", "count", len(txs), "err", err)
			return
		}
		deliveredMeter.Mark(int64(len(txs)))
		d.keep(batch)
	}()
}

// keep keeps those of a batch that the pool did not take.
func (d *deliverer) keep(batch []refusedTx) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range batch {
		if r.heads == 0 || d.backend.HasTx(r.tx.Hash()) || len(d.refused) >= refusedMax {
			continue
		}
		r.heads--
		d.refused = append(d.refused, r)
		refusedMeter.Mark(1)
	}
}
