// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// comparedSubscribers are the sizes at which xdp is compared with bare.
var comparedSubscribers = []int{64, 1000}

// windows are how many datagrams may be in flight during a train, in the order of
// trying: bare has no queue, so it takes few.
var windows = []int{4, 2, 1}

// train is datagrams one after another: when all copies of a window have arrived, or are
// lost, the next one follows at once.
type train struct {
	busy   time.Duration // from the injections to the last copies
	copies uint64        // that arrived
	lost   uint64        // copies
}

// perCopy is in ns, NaN without copies.
func (t *train) perCopy() float64 {
	if t.copies == 0 {
		return math.NaN()
	}
	return float64(t.busy.Nanoseconds()) / float64(t.copies)
}

// train loads the lane for some time.
func (l *lane) train(ctx context.Context, window int, d time.Duration) (t train, err error) {
	err = l.lan.Do(func() error {
		for start := time.Now(); time.Since(start) < d; {
			if err := ctx.Err(); err != nil {
				return err
			}
			burst, err := l.burst(ctx, window, l.spin)
			if err != nil {
				return err
			}
			t.busy += burst.span
			t.copies += burst.copies
			t.lost += burst.lost
		}
		return nil
	})
	return t, err
}

// spin waits for copies as settle does, but without a sleep as long as they come soon:
// the CPU is left to whoever else wants it.
func (l *lane) spin(ctx context.Context, from, want uint64) error {
	const soon = 20 * time.Millisecond
	for start := time.Now(); time.Since(start) < soon; {
		copies, err := l.traffic.copies()
		if err != nil || copies-from >= want {
			return err
		}
		// There is no wrapper of sched_yield, which cannot fail.
		_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
	return l.settle(ctx, from, want)
}

// compare sets xdp in relation to bare, for lone datagrams and for a load that both bear.
func (b *bench) compare(ctx context.Context, n int) {
	bare, xdp := b.lane(Bare), b.lane(XDP)
	if bare == nil || xdp == nil || bare.n != n || xdp.n != n || !slices.Contains(comparedSubscribers, n) {
		return
	}
	b.result.compareLone(n)
	if b.cfg.Sustain == 0 {
		return
	}
	if err := b.compareTrains(ctx, n, bare, xdp); err != nil {
		b.failed(XDP, n, "beside bare", err)
	}
}

// compareTrains compares the two under a load.
func (b *bench) compareTrains(ctx context.Context, n int, bare, xdp *lane) error {
	window, err := bare.window(ctx)
	if err != nil {
		return fmt.Errorf("%s: window: %w", bare.name, err)
	}
	var perCopy [3][]float64 // of bare, xdp and bare again, by round
	lost := uint64(0)
	for range b.cfg.Rounds {
		for i, l := range []*lane{bare, xdp, bare} {
			t, err := l.train(ctx, window, b.cfg.Sustain/time.Duration(b.cfg.Rounds))
			if err != nil {
				return fmt.Errorf("%s: train: %w", l.name, err)
			}
			lost += t.lost
			if v := t.perCopy(); !math.IsNaN(v) {
				perCopy[i] = append(perCopy[i], v)
			}
		}
	}
	b.result.compare("sustained", n, window, [3]float64{median(perCopy[0]), median(perCopy[1]), median(perCopy[2])}, lost)
	return nil
}

// lane returns the lane of an engine, nil when it is not measured.
func (b *bench) lane(name string) *lane {
	for _, l := range b.lanes {
		if l.name == name {
			return l
		}
	}
	return nil
}

// window is the largest one that the lane bears.
func (l *lane) window(ctx context.Context) (int, error) {
	const trial = 50 * time.Millisecond
	for _, w := range windows {
		t, err := l.train(ctx, w, trial)
		if err != nil {
			return 0, err
		}
		if t.lost == 0 {
			return w, nil
		}
	}
	return windows[len(windows)-1], nil
}
