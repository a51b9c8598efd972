// SPDX-License-Identifier: LGPL-3.0-or-later

// Package bench measures how fast a replication point copies datagrams to its
// subscribers, and compares the engines of the replication point with the least
// that such copying costs.
//
// Each engine has a lane: namespaces of its own with the replication point in one
// and publisher and subscribers in the other. All lanes stay up and are measured in
// turn, in rounds, because the speed of a machine changes within minutes: only
// figures of one run may be compared.
//
// The clock of a datagram is the kernel's: it starts when the generator lets a frame
// go at the publisher's interface, and stops when the sink at the same interface has
// the last of the copies. Frames of engines in user space are socket buffers when
// they reach the sink; that the kernel makes them linear for it is part of their
// figures.
package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/testnet/measure"
	"github.com/ethmcast/mdcs/testnet/netns"
)

// Config says what to measure.
type Config struct {
	Name        string        // of the result
	Results     string        // directory of all results
	Engines     []string      // of Engines()
	Subscribers []int         // ascending, each at most MaxSubscribers
	Bursts      []int         // datagrams back to back, ascending
	Rounds      int           //
	Sustain     time.Duration // of each sustained load, 0 for none
	Changes     time.Duration // of joining, and of leaving
	Flood       time.Duration //
	Log         *slog.Logger
}

// Full is the whole measurement, Quick one that only shows that everything works.
func Full() Config {
	return Config{
		Engines:     Engines(),
		Subscribers: []int{1, 10, 64, 200, 1000, 4000, 10000},
		Bursts:      []int{1, 8, 32, 64, 128},
		Rounds:      7,
		Sustain:     2 * time.Second,
		Changes:     2 * time.Second,
		Flood:       2 * time.Second,
	}
}

// Quick is a small measurement of a few seconds.
func Quick() Config {
	c := Full()
	c.Subscribers = []int{1, 10, 64}
	c.Bursts = []int{1, 2}
	c.Rounds = 2
	c.Sustain = 300 * time.Millisecond
	c.Changes = 300 * time.Millisecond
	c.Flood = 300 * time.Millisecond
	return c
}

// Dir is where the files of the result go.
func (c *Config) Dir() string { return filepath.Join(c.Results, c.Name) }

// Check returns an error when the configuration cannot be measured.
func (c *Config) Check() error {
	if len(c.Engines) == 0 {
		return errors.New("no engines")
	}
	for i, name := range c.Engines {
		if !slices.Contains(Engines(), name) {
			return fmt.Errorf("engine %q is none of %v", name, Engines())
		}
		if slices.Contains(c.Engines[:i], name) {
			return fmt.Errorf("engine %s stands there twice", name)
		}
	}
	if err := ascending("subscribers", c.Subscribers, MaxSubscribers); err != nil {
		return err
	}
	if err := ascending("bursts", c.Bursts, maxBurst); err != nil {
		return err
	}
	switch {
	case c.Rounds < 1:
		return fmt.Errorf("%d rounds are below 1", c.Rounds)
	case c.Sustain < 0 || c.Changes < 0 || c.Flood < 0:
		return errors.New("negative duration")
	}
	return nil
}

// ascending checks a list of sizes.
func ascending(what string, list []int, most int) error {
	if len(list) == 0 {
		return fmt.Errorf("no %s", what)
	}
	for i, n := range list {
		if n < 1 || n > most {
			return fmt.Errorf("%s: %d is not within 1 and %d", what, n, most)
		}
		if i > 0 && n <= list[i-1] {
			return fmt.Errorf("%s: %d does not follow %d in ascending order", what, n, list[i-1])
		}
	}
	return nil
}

// ErrNotRoot says that namespaces cannot be made.
var ErrNotRoot = errors.New("needs root: the benchmark makes network namespaces and loads kernel programs")

// bench is a measurement that runs.
type bench struct {
	cfg      Config
	traffic  *traffic
	lanes    []*lane
	result   *Result
	capacity map[string]map[int]float64 // copies per second, by engine and subscribers
}

// Fanout measures and returns the result. What it made on the machine is gone when
// it returns. What cannot be measured is in the result, and keeps nothing else from
// being measured. The figures that there are by then are written to the directory of the
// result after each number of subscribers. With an error there may be a result, too.
func Fanout(ctx context.Context, cfg Config) (result *Result, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	b := &bench{cfg: cfg, capacity: make(map[string]map[int]float64)}
	if b.result, err = newResult(&cfg); err != nil {
		return nil, err
	}
	run, err := netns.NewRun(netns.StateDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close(), run.Close()) }()
	if err := b.open(run); err != nil {
		return nil, err
	}
	before, err := measure.CPUPressure()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := b.measure(ctx); err != nil {
		return b.result, err
	}
	after, err := measure.CPUPressure()
	if err != nil {
		return b.result, err
	}
	b.result.Host.CPUPressure = Figure(float64(after-before) / float64(time.Since(start)))
	return b.result, nil
}

// open starts the lanes. Without any there is nothing to measure.
func (b *bench) open(run *netns.Run) error {
	var err error
	if b.traffic, err = newTraffic(run); err != nil {
		return err
	}
	var errs []error
	for _, name := range b.cfg.Engines {
		l, err := newLane(run, name, b.traffic)
		if err != nil {
			errs = append(errs, err)
			b.failed(name, 0, "start", err)
			continue
		}
		b.lanes = append(b.lanes, l)
	}
	if len(b.lanes) == 0 {
		return errors.Join(errs...)
	}
	return nil
}

// failed enters what could not be measured, unless it was interrupted. n is the number of
// subscribers, 0 when that does not matter.
func (b *bench) failed(engine string, n int, what string, err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return
	}
	b.cfg.Log.Warn("not measured", "what", what, "engine", engine, "subscribers", n, "err", err)
	b.result.Failed = append(b.result.Failed, Failed{engine, n, what, err.Error()})
}

func (b *bench) close() error {
	var errs []error
	for _, l := range b.lanes {
		errs = append(errs, l.close())
	}
	if b.traffic != nil {
		errs = append(errs, b.traffic.close())
	}
	return errors.Join(errs...)
}

// measure ends with an error only when it is interrupted, or cannot write.
func (b *bench) measure(ctx context.Context) error {
	for _, n := range b.cfg.Subscribers {
		b.cfg.Log.Info("copies", "subscribers", n)
		b.copies(ctx, n)
		b.compare(ctx, n)
		b.sustain(ctx, n)
		if err := b.save(ctx); err != nil {
			return err
		}
	}
	for _, step := range []struct {
		name string
		run  func(context.Context, *lane, *engine) error
	}{
		{"joins", b.joins},
		{"flood", b.flood},
		{"drop", b.drop},
	} {
		for _, l := range b.lanes {
			e, ok := l.subject.(*engine)
			if !ok {
				continue
			}
			b.cfg.Log.Info(step.name, "engine", l.name)
			if err := step.run(ctx, l, e); err != nil {
				b.failed(l.name, 0, step.name, err)
			}
			if err := b.save(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// save writes the figures that there are.
func (b *bench) save(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return b.result.writeFigures(b.cfg.Dir())
}

// most returns the largest measured number of subscribers that is at most limit, or
// else limit.
func (b *bench) most(limit int) int {
	for _, n := range slices.Backward(b.cfg.Subscribers) {
		if n <= limit {
			return n
		}
	}
	return limit
}

// rate is the given share of what an engine can do for n subscribers, in datagrams
// per second, and at most limit.
func (b *bench) rate(name string, n int, share, limit float64) float64 {
	capacity, ok := b.capacity[name][n]
	if !ok {
		capacity = b.capacity[name][b.cfg.Subscribers[0]]
	}
	return max(1, min(share*capacity/float64(n), limit))
}
