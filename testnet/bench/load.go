// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"context"
	"math"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/wire"
)

const (
	// sustained is the share of the capacity at which nothing may be lost.
	sustained = 0.6

	// maxRate is what the generator can do with certainty, in datagrams per second.
	maxRate = 200_000

	// maxDebt is how many datagrams a stream that was held up may make up for.
	maxDebt = 2 * maxBatch
)

// stream is a steady flow of datagrams that was sent.
type stream struct {
	datagrams uint64
	duration  time.Duration
}

// rate is in datagrams per second.
func (s *stream) rate() float64 { return float64(s.datagrams) / s.duration.Seconds() }

// maxRuns is how often a second a stream lets the generator run at most: the kernel has
// ids for 65,534 runs (see [transmit]), and takes a second to free some.
const maxRuns = 5000

// runSize is how many datagrams of a stream go in one run of the generator.
func runSize(rate float64) int { return min(max(int(math.Ceil(rate/maxRuns)), 1), maxBatch) }

// stream injects a number of datagrams per second until the context ends or the
// time is over. It must run in the lane's lan.
func (l *lane) stream(ctx context.Context, rate float64, d time.Duration) (s stream, err error) {
	first, err := l.traffic.injected()
	if err != nil {
		return s, err
	}
	least := runSize(rate)
	start, debt := time.Now(), 0.0 // datagrams that are due but were not sent
	for last := start; ctx.Err() == nil && time.Since(start) < d; {
		now := time.Now()
		debt = min(debt+rate*now.Sub(last).Seconds(), maxDebt)
		last = now
		if n := min(int(debt), maxBatch); n >= least {
			if err := l.inject(n); err != nil {
				return s, err
			}
			debt -= float64(n)
			continue
		}
		time.Sleep(min(time.Duration((float64(least)-debt)/rate*1e9), time.Millisecond))
	}
	injected, err := l.traffic.injected()
	return stream{injected - first, time.Since(start)}, err
}

// sustain loads each engine for some time and counts what is lost.
func (b *bench) sustain(ctx context.Context, n int) {
	if b.cfg.Sustain == 0 {
		return
	}
	for _, l := range b.lanes {
		capacity, ok := b.capacity[l.name][n]
		if !ok || ctx.Err() != nil {
			continue
		}
		if err := b.sustainLane(ctx, n, l, capacity); err != nil {
			b.failed(l.name, n, "sustained load", err)
		}
	}
}

func (b *bench) sustainLane(ctx context.Context, n int, l *lane, capacity float64) error {
	before, err := l.traffic.counters()
	if err != nil {
		return err
	}
	var s stream
	err = l.lan.Do(func() (err error) {
		s, err = l.stream(ctx, b.rate(l.name, n, sustained, maxRate), b.cfg.Sustain)
		return err
	})
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	want := s.datagrams * uint64(n)
	if err := l.settle(ctx, before.copies, want); err != nil {
		return err
	}
	copies, err := l.traffic.copies()
	if err != nil {
		return err
	}
	got := copies - before.copies
	b.result.Sustained = append(b.result.Sustained, Sustained{
		Engine: l.name, Subscribers: n, Seconds: Figure(s.duration.Seconds()),
		Rate: Figure(s.rate()), Share: Figure(s.rate() * float64(n) / capacity),
		Datagrams: s.datagrams, Lost: int64(want) - int64(got),
		Gbit: Figure(float64(got) * LineSize * 8 / s.duration.Seconds() / 1e9),
	})
	return nil
}

// floodSubscribers is how many subscribers the honest publisher has during a flood.
const floodSubscribers = 64

// honestRate is the honest publisher's during a flood, in datagrams per second.
const honestRate = 1000

// flood measures both floods.
func (b *bench) flood(ctx context.Context, l *lane, e *engine) error {
	if b.cfg.Flood == 0 {
		return nil
	}
	for _, shared := range []bool{false, true} {
		if err := b.floodPort(ctx, l, e, shared); err != nil {
			return err
		}
	}
	return nil
}

// floodPort sends hostile datagrams as fast as the generator can, at an interface of
// their own or at the publisher's, while an honest publisher goes on.
func (b *bench) floodPort(ctx context.Context, l *lane, e *engine, shared bool) error {
	n := b.most(floodSubscribers)
	if err := l.resize(n); err != nil {
		return err
	}
	before, err := l.traffic.counters()
	if err != nil {
		return err
	}
	refused := refusals(e)
	flooding, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		done <- l.hostile(shared, func(ifindex int) error {
			for flooding.Err() == nil {
				if err := l.flood(ifindex, 16*maxBatch); err != nil {
					return err
				}
			}
			return nil
		})
	}()
	var s stream
	err = l.lan.Do(func() (err error) {
		s, err = l.stream(ctx, honestRate, b.cfg.Flood)
		return err
	})
	stop()
	if e := <-done; err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	want := s.datagrams * uint64(n)
	if err := l.settle(ctx, before.copies, want); err != nil {
		return err
	}
	now, err := l.traffic.counters()
	if err != nil {
		return err
	}
	hostile := now.flooded - before.flooded
	lost := int64(want) - int64(now.copies-before.copies)
	b.result.Flood = append(b.result.Flood, Flood{
		Engine: l.name, Shared: shared, Subscribers: n, Hostile: hostile,
		HostileRate: Figure(float64(hostile) / s.duration.Seconds()),
		Refused:     refusals(e) - refused,
		Leaked:      now.leaked - before.leaked,
		Honest:      s.datagrams, HonestRate: Figure(s.rate()),
		Lost: lost, LostShare: Figure(float64(lost) / float64(want)),
	})
	return nil
}

// refusals counts what the verdicts of hostile datagrams say.
func refusals(e *engine) uint64 {
	v := e.Stats().Verdicts
	return v[wire.NoSession] + v[wire.BadSource] + v[wire.BadHopTag]
}
