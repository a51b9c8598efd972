// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"context"
	"fmt"
	"math"
	"time"
)

const (
	// maxBurst is the largest burst: the ring of a veth end holds 256 frames.
	maxBurst = 128

	// blockCopies is about how many copies a block has, if that is more than a few
	// datagrams.
	blockCopies = 20_000

	// rowTime is how long a row is measured at most, but for one round: the large bursts
	// of engines in user space take seconds.
	rowTime = 5 * time.Second

	// pause is between bursts. An engine that treats a lone datagram in another way
	// than a burst must find it alone. The generator's CPU does not sleep meanwhile:
	// how long it takes to wake up is not a property of an engine.
	pause = 2 * time.Millisecond
)

// repeats is how many bursts a block has.
func repeats(n, size int) int {
	least := 1
	if size == 1 {
		least = 3
	}
	return min(max(blockCopies/(n*size), least), 40)
}

// blocks are those of one engine and one size of bursts, one a round.
type blocks struct {
	lane  *lane
	again bool // second time in each round
	size  int
	list  []block
	spent time.Duration
	err   error // ends the row
}

// copies measures all engines with n subscribers.
func (b *bench) copies(ctx context.Context, n int) {
	var ready []*lane
	for _, l := range b.lanes {
		err := l.resize(n)
		if err == nil {
			err = b.memory(l)
		}
		if err == nil {
			err = l.prove(ctx)
		}
		if err != nil {
			b.failed(l.name, n, "copies", err)
			continue
		}
		ready = append(ready, l)
	}
	plan := b.plan(ready)
	for range b.cfg.Rounds {
		for _, x := range plan {
			if x.spent > rowTime || x.err != nil || ctx.Err() != nil {
				continue
			}
			start := time.Now()
			var block block
			if block, x.err = x.lane.block(ctx, x.size, repeats(n, x.size)); x.err == nil {
				x.list = append(x.list, block)
			}
			x.spent += time.Since(start)
		}
	}
	if ctx.Err() != nil {
		return
	}
	for _, x := range plan {
		if x.err != nil {
			b.failed(x.lane.name, n, fmt.Sprintf("copies of bursts of %d", x.size), x.err)
			continue
		}
		row := newRow(x, n)
		b.result.Rows = append(b.result.Rows, row)
		b.learn(&row)
	}
	b.result.compareBare(n)
}

// plan is what is measured in each round. What is compared stands close together;
// the bare copying is measured a second time as far away from its first as anything
// it is compared with.
func (b *bench) plan(lanes []*lane) (plan []*blocks) {
	for _, size := range b.cfg.Bursts {
		for _, l := range lanes {
			plan = append(plan, &blocks{lane: l, size: size})
		}
		for _, l := range lanes {
			if l.name == Bare {
				plan = append(plan, &blocks{lane: l, size: size, again: true})
			}
		}
	}
	return plan
}

// learn keeps the capacity: that of the largest burst without loss.
func (b *bench) learn(row *Row) {
	if row.Again || row.Lost > 0 || !row.PerCopy.known() || row.PerCopy == 0 {
		return
	}
	if b.capacity[row.Engine] == nil {
		b.capacity[row.Engine] = make(map[int]float64)
	}
	b.capacity[row.Engine][row.Subscribers] = 1e9 / float64(row.PerCopy)
}

// newRow sums up blocks with n subscribers.
func newRow(x *blocks, n int) Row {
	row := Row{Engine: x.lane.name, Again: x.again, Subscribers: n, Burst: x.size, Rounds: len(x.list)}
	var perCopy, span []float64
	for _, blk := range x.list {
		for _, burst := range blk {
			row.Copies += burst.copies
			row.Lost += burst.lost
			row.Duplicated += burst.duplicated
		}
		if v := blk.perCopy(); !math.IsNaN(v) {
			perCopy = append(perCopy, v)
			span = append(span, blk.span())
		}
	}
	row.PerCopy, row.LastCopy = Figure(median(perCopy)), Figure(median(span))
	row.Gbit = Figure(LineSize * 8 / float64(row.PerCopy))
	return row
}

// block injects bursts of a size. It ends early after a burst with loss: there each
// burst costs the time to be sure.
func (l *lane) block(ctx context.Context, size, repeat int) (blk block, err error) {
	err = l.lan.Do(func() error {
		for range repeat {
			for start := time.Now(); time.Since(start) < pause; {
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			burst, err := l.burst(ctx, size, l.settle)
			if err != nil {
				return err
			}
			blk = append(blk, burst)
			if burst.lost > 0 {
				return nil
			}
		}
		return nil
	})
	return blk, err
}

// burst injects size datagrams back to back and waits for their copies by settle or the
// like. It must run in the lane's lan.
func (l *lane) burst(ctx context.Context, size int, settle func(ctx context.Context, from, want uint64) error) (burst, error) {
	before, err := l.traffic.counters()
	if err != nil {
		return burst{}, err
	}
	if err := l.inject(size); err != nil {
		return burst{}, err
	}
	// A signal makes the kernel begin again with the batch.
	injected, err := l.traffic.injected()
	if err != nil {
		return burst{}, err
	}
	sent := injected - before.injected
	if err := settle(ctx, before.copies, sent*uint64(l.n)); err != nil {
		return burst{}, err
	}
	list, err := l.traffic.arrivals(before.injected, int(sent))
	if err != nil {
		return burst{}, err
	}
	return newBurst(list, l.n), nil
}

// prove sends some datagrams and checks that each subscriber gets one right copy of
// each, and the publisher of an engine of the replication point its ECHO.
func (l *lane) prove(ctx context.Context) (err error) {
	const datagrams = 3
	if err := l.traffic.verify(true); err != nil {
		return err
	}
	defer func() {
		if e := l.traffic.verify(false); err == nil {
			err = e
		}
	}()
	counted, err := l.traffic.counters()
	if err != nil {
		return err
	}
	before, err := l.traffic.received(l.n)
	if err != nil {
		return err
	}
	blk, err := l.block(ctx, 1, datagrams)
	if err != nil {
		return err
	}
	after, err := l.traffic.received(l.n)
	if err != nil {
		return err
	}
	now, err := l.traffic.counters()
	if err != nil {
		return err
	}
	lost, duplicated := stayed(before, after, uint64(len(blk)))
	echoes := uint64(0)
	if _, ok := l.subject.(*engine); ok {
		echoes = datagrams
	}
	invalid, echoed := now.invalid-counted.invalid, now.echoes-counted.echoes
	if lost+duplicated+invalid > 0 || echoed != echoes {
		return fmt.Errorf("%s does not work: of %d copies of %d lone datagrams %d are lost, %d too many, %d wrong; %d of %d ECHO",
			l.name, l.n, datagrams, lost, duplicated, invalid, echoed, echoes)
	}
	return nil
}
