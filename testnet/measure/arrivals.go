// SPDX-License-Identifier: LGPL-3.0-or-later

package measure

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/rpc"
)

// Source is a node that reports new transactions of its pool.
type Source interface {
	Name() string
	Client() *rpc.Client
}

// Arrivals records when transactions enter the pools of nodes.
type Arrivals struct {
	index map[common.Hash]int

	mu      sync.Mutex
	times   [][]time.Time // [tx][node], zero: not yet
	missing int           // zero entries
	broken  error
	change  chan struct{} // closed at the last arrival or the first error

	subs []*rpc.ClientSubscription
	done sync.WaitGroup
}

// Subscribe begins to record the transactions with the given hashes.
func Subscribe(ctx context.Context, nodes []Source, txs []common.Hash) (*Arrivals, error) {
	a := NewArrivals(txs, len(nodes))
	for i, node := range nodes {
		hashes := make(chan common.Hash, 1024)
		sub, err := node.Client().EthSubscribe(ctx, hashes, "newPendingTransactions")
		if err != nil {
			a.Close()
			return nil, fmt.Errorf("subscribe at %s: %w", node.Name(), err)
		}
		a.subs = append(a.subs, sub)
		a.done.Go(func() {
			for {
				select {
				case hash := <-hashes:
					a.Record(i, hash, time.Now())
				case err := <-sub.Err():
					if err != nil {
						a.fail(fmt.Errorf("subscription at %s ended: %w", node.Name(), err))
					}
					return
				}
			}
		})
	}
	return a, nil
}

// NewArrivals begins to record what [Arrivals.Record] is told.
func NewArrivals(txs []common.Hash, nodes int) *Arrivals {
	a := &Arrivals{
		index:   make(map[common.Hash]int, len(txs)),
		times:   make([][]time.Time, len(txs)),
		missing: len(txs) * nodes,
		change:  make(chan struct{}),
	}
	for i, hash := range txs {
		a.index[hash] = i
		a.times[i] = make([]time.Time, nodes)
	}
	return a
}

// Record notes the first arrival of a transaction at a node; a reorganised block
// may bring it again. Other transactions are ignored.
func (a *Arrivals) Record(node int, hash common.Hash, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	tx, ok := a.index[hash]
	if !ok || !a.times[tx][node].IsZero() {
		return
	}
	a.times[tx][node] = at
	a.missing--
	if a.missing == 0 && a.broken == nil {
		close(a.change)
	}
}

func (a *Arrivals) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken == nil && a.missing > 0 {
		close(a.change)
	}
	if a.broken == nil {
		a.broken = err
	}
}

// Wait waits until everything has arrived everywhere or the deadline has passed,
// and returns the number of missing arrivals, those at the origins included. It
// fails if a subscription broke or ctx ended.
func (a *Arrivals) Wait(ctx context.Context, deadline time.Time) (missing int, err error) {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-a.change:
	case <-timer.C:
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for arrivals: %w", context.Cause(ctx))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.missing, a.broken
}

// Times returns a copy of what was recorded, by transaction and node. A zero
// time means that nothing arrived.
func (a *Arrivals) Times() [][]time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	times := make([][]time.Time, len(a.times))
	for i, t := range a.times {
		times[i] = slices.Clone(t)
	}
	return times
}

// Close ends the recording.
func (a *Arrivals) Close() {
	for _, sub := range a.subs {
		sub.Unsubscribe()
	}
	a.done.Wait()
}
