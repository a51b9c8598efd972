// SPDX-License-Identifier: LGPL-3.0-or-later

package workload

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Sent is what became of a planned transaction.
type Sent struct {
	At   time.Time     // just before the call that submitted it
	Late time.Duration // of At behind the plan; never negative
	Err  error         // why the node refused it
}

// Send submits the transactions at their times after start, those of one node
// one after another, and returns what became of each. It fails only if ctx ends.
func Send(ctx context.Context, txs []Tx, start time.Time, submit func(context.Context, Tx) error) ([]Sent, error) {
	queues := make(map[int][]int)
	for i, tx := range txs {
		queues[tx.Node] = append(queues[tx.Node], i)
	}
	sent := make([]Sent, len(txs))
	var wg sync.WaitGroup
	for _, queue := range queues {
		wg.Go(func() {
			for _, i := range queue {
				due := start.Add(txs[i].At)
				if !sleepUntil(ctx, due) {
					return
				}
				now := time.Now()
				sent[i].At, sent[i].Late = now, max(0, now.Sub(due))
				sent[i].Err = submit(ctx, txs[i])
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("send workload: %w", err)
	}
	return sent, nil
}

// Refused joins the reasons for which transactions were refused.
func Refused(sent []Sent) error {
	var errs []error
	for i, s := range sent {
		if s.Err != nil {
			errs = append(errs, fmt.Errorf("transaction %d: %w", i, s.Err))
		}
	}
	return errors.Join(errs...)
}

func sleepUntil(ctx context.Context, at time.Time) bool {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
