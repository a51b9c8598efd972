// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"context"
	"time"
)

const (
	// stayers is how many subscribers are there while others join and leave.
	stayers = 1000

	// joinCycles is how often some join and leave again, and joinsPerCycle how many
	// at most: an engine keeps what is left of a session for some seconds.
	joinCycles    = 8
	joinsPerCycle = 1024

	// joinBatch is the number of sessions in one change of the batched joins.
	joinBatch = 64

	// joinLoad is the share of the capacity that the traffic takes meanwhile, and
	// joinRate its limit in datagrams per second.
	joinLoad = 0.2
	joinRate = 1000
)

// joins lets subscribers join and leave while datagrams flow, first one by one, then
// in batches, and counts what those who stayed got.
func (b *bench) joins(ctx context.Context, l *lane, e *engine) error {
	if b.cfg.Changes == 0 {
		return nil
	}
	n := b.most(stayers)
	if err := l.resize(n); err != nil {
		return err
	}
	for _, batch := range []int{1, joinBatch} {
		if err := b.join(ctx, l, e, n, batch); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) join(ctx context.Context, l *lane, e *engine, n, batch int) error {
	before, err := l.traffic.received(n)
	if err != nil {
		return err
	}
	flowing, stop := context.WithCancel(ctx)
	var s stream
	done := make(chan error, 1)
	go func() {
		done <- l.lan.Do(func() (err error) {
			s, err = l.stream(flowing, b.rate(l.name, n, joinLoad, joinRate), time.Hour)
			return err
		})
	}()
	c, err := b.change(ctx, e, n, batch)
	stop()
	if e := <-done; err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if err := l.quiet(ctx); err != nil {
		return err
	}
	after, err := l.traffic.received(n)
	if err != nil {
		return err
	}
	lost, duplicated := stayed(before, after, s.datagrams)
	b.result.Joins = append(b.result.Joins, Joins{
		Engine: l.name, Stayers: n, Batch: batch,
		Changes: c.changes, JoinRate: c.rate(c.joining), LeaveRate: c.rate(c.leaving),
		Datagrams: s.datagrams, Rate: Figure(s.rate()),
		Lost: lost, Duplicated: duplicated,
	})
	return nil
}

// changes are subscribers who joined and left again, and how long each took in all.
type changes struct {
	changes          int
	joining, leaving time.Duration
}

// rate is in changes per second.
func (c *changes) rate(d time.Duration) Figure { return Figure(float64(c.changes) / d.Seconds()) }

// change lets subscribers beyond the first n join and leave again, in cycles that are
// spread over the time.
func (b *bench) change(ctx context.Context, e *engine, n, batch int) (c changes, err error) {
	const share = 2 * joinCycles // of the time, for the joins and for the leaves of a cycle
	for start := time.Now(); time.Since(start) < b.cfg.Changes; {
		cycle := time.Now()
		joined, err := repeat(ctx, n, batch, joinsPerCycle, b.cfg.Changes/share, e.add)
		c.joining += time.Since(cycle)
		if err != nil {
			return c, err
		}
		leave := time.Now()
		if _, err := repeat(ctx, n, batch, joined, time.Hour, e.remove); err != nil {
			return c, err
		}
		c.leaving += time.Since(leave)
		c.changes += joined
		time.Sleep(b.cfg.Changes/joinCycles - time.Since(cycle))
	}
	return c, nil
}

// repeat calls f with ranges of subscribers beyond n, until these are most or the time
// is over, and returns how many there were.
func repeat(ctx context.Context, n, batch, most int, d time.Duration, f func(first, last int) error) (done int, err error) {
	for start := time.Now(); done < most && time.Since(start) < d; done += batch {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		if err := f(n+done+1, n+done+batch); err != nil {
			return done, err
		}
	}
	return done, nil
}

// quiet waits until no copy arrives any more.
func (l *lane) quiet(ctx context.Context) error {
	copies, err := l.traffic.copies()
	if err != nil {
		return err
	}
	return l.settle(ctx, copies, 1<<62)
}
