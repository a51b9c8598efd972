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

// floodRun is how many hostile datagrams go in one run of the generator.
const floodRun = 16 * maxBatch

// floodPort sends hostile datagrams as fast as the generator can, at an interface of
// their own or at the publisher's, while an honest publisher goes on. The publisher
// begins when the first run of hostile datagrams has been sent.
func (b *bench) floodPort(ctx context.Context, l *lane, e *engine, shared bool) error {
	n := b.most(floodSubscribers)
	if err := l.resize(n); err != nil {
		return err
	}
	before, err := l.flooded(e)
	if err != nil {
		return err
	}
	start := time.Now()
	flooding, stop := context.WithCancel(ctx)
	defer stop()
	begun, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- l.hostile(shared, func(ifindex int) error {
			if err := l.flood(ifindex, floodRun); err != nil {
				return err
			}
			close(begun)
			for flooding.Err() == nil {
				if err := l.flood(ifindex, floodRun); err != nil {
					return err
				}
			}
			return nil
		})
	}()
	select {
	case <-begun:
	case err := <-done: // without having begun
		return err
	}
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
	elapsed := time.Since(start)
	if err := l.settle(ctx, before.copies, s.datagrams*uint64(n)); err != nil {
		return err
	}
	sent, err := l.traffic.counters()
	if err != nil {
		return err
	}
	refused := func() (uint64, error) { return refusals(e), nil }
	if err := settle(ctx, refused, before.refused, sent.flooded-before.counters.flooded); err != nil {
		return err
	}
	now, err := l.flooded(e)
	if err != nil {
		return err
	}
	f := Flood{
		Engine: l.name, Shared: shared, Subscribers: n,
		Hostile: now.counters.flooded - before.counters.flooded,
		Refused: now.refused - before.refused,
		Leaked:  now.leaked - before.leaked,
		Honest:  s.datagrams, HonestRate: Figure(s.rate()),
		Overrun: now.overrun - before.overrun,
	}
	f.HostileRate = Figure(float64(f.Hostile) / elapsed.Seconds())
	f.lose(now.accepted-before.accepted, now.honestOverrun-before.honestOverrun, now.copies-before.copies)
	b.result.Flood = append(b.result.Flood, f)
	return nil
}

// lose tells the engine's losses from those of the ring of the publisher's interface,
// which lost overrun datagrams. Of honest datagrams that the engine did not accept, the
// ring can have lost so many at the most; all others count as lost by the engine.
func (f *Flood) lose(accepted, overrun, copies uint64) {
	f.HonestOverrun = min(f.Honest-min(accepted, f.Honest), overrun)
	want := (f.Honest - f.HonestOverrun) * uint64(f.Subscribers)
	f.Lost = int64(want) - int64(copies)
	f.LostShare = Figure(float64(f.Lost) / float64(want))
}

// floodCounters are what counts during a flood: those of generator and sink, the
// engine's, and the frames that found the ring of the engine's interface full, at both
// interfaces and at the publisher's alone.
type floodCounters struct {
	counters
	accepted, refused      uint64
	overrun, honestOverrun uint64
}

func (l *lane) flooded(e *engine) (c floodCounters, err error) {
	if c.counters, err = l.traffic.counters(); err != nil {
		return c, err
	}
	if c.honestOverrun, err = overruns(l.lan, lanLink); err != nil {
		return c, err
	}
	other, err := overruns(l.out, hostileLink)
	if err != nil {
		return c, err
	}
	c.overrun = c.honestOverrun + other
	c.accepted, c.refused = e.Stats().Verdicts[wire.Pass], refusals(e)
	return c, nil
}

// refusals counts what the verdicts of hostile datagrams say.
func refusals(e *engine) uint64 {
	v := e.Stats().Verdicts
	return v[wire.NoSession] + v[wire.BadSource] + v[wire.BadHopTag]
}
