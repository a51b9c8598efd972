// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/testnet/netns"
)

func TestCheck(t *testing.T) {
	for _, c := range []Config{Full(), Quick()} {
		require.NoError(t, c.Check())
	}
	for want, change := range map[string]func(*Config){
		"no engines":                      func(c *Config) { c.Engines = nil },
		`engine "fpga" is none of`:        func(c *Config) { c.Engines = []string{"fpga"} },
		"bare stands there twice":         func(c *Config) { c.Engines = []string{Bare, TC, Bare} },
		"no subscribers":                  func(c *Config) { c.Subscribers = nil },
		"0 is not within 1 and 16383":     func(c *Config) { c.Subscribers = []int{0} },
		"10 does not follow 64":           func(c *Config) { c.Subscribers = []int{1, 64, 10} },
		"bursts: 129 is not within 1 and": func(c *Config) { c.Bursts = []int{129} },
		"0 rounds are below 1":            func(c *Config) { c.Rounds = 0 },
		"negative duration":               func(c *Config) { c.Sustain = -1 },
	} {
		c := Quick()
		change(&c)
		require.ErrorContains(t, c.Check(), want)
	}
}

func TestMost(t *testing.T) {
	b := &bench{cfg: Full()}
	require.Equal(t, 1000, b.most(1000))
	require.Equal(t, 200, b.most(999))
	b.cfg.Subscribers = []int{4000}
	require.Equal(t, 64, b.most(64))
}

func TestRate(t *testing.T) {
	b := &bench{cfg: Quick(), capacity: make(map[string]map[int]float64)}
	b.learn(&Row{Engine: XDP, Subscribers: 10, Burst: 1, PerCopy: 500})
	b.learn(&Row{Engine: XDP, Subscribers: 10, Burst: 2, PerCopy: 400})
	b.learn(&Row{Engine: XDP, Subscribers: 10, Burst: 8, PerCopy: 100, Lost: 1})
	require.InDelta(t, 150_000, b.rate(XDP, 10, 0.6, 1e9), 1e-3, "0.6 of 2.5 million copies, by 10")
	require.Equal(t, 1000.0, b.rate(XDP, 10, 0.6, 1000))
	require.Equal(t, 1.0, b.rate(Bare, 10, 0.6, 1000), "nothing is known")
}

// TestBenchFanoutQuick measures little with everything, and looks at the counts.
func TestBenchFanoutQuick(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces and loads kernel programs")
	}
	cfg := Quick()
	cfg.Name, cfg.Results = "quick", t.TempDir()
	cfg.Sustain = 100 * time.Millisecond
	cfg.Changes = 200 * time.Millisecond
	cfg.Flood = 200 * time.Millisecond
	r, err := Fanout(t.Context(), cfg)
	require.NoError(t, err)
	require.Empty(t, r.Failed)
	requireNothingLeft(t)

	perSize := len(cfg.Engines) + 1 // bare twice
	require.Len(t, r.Rows, len(cfg.Subscribers)*len(cfg.Bursts)*perSize)
	for _, row := range r.Rows {
		want := cfg.Rounds * repeats(row.Subscribers, row.Burst) * row.Burst * row.Subscribers
		require.EqualValues(t, want, row.Copies, "%+v", row)
		require.Zero(t, row.Lost, "%+v", row)
		require.Zero(t, row.Duplicated, "%+v", row)
		require.True(t, row.PerCopy.known() && row.LastCopy.known() && row.Gbit.known(), "%+v", row)
	}
	require.Len(t, r.Noise, len(cfg.Subscribers)*len(cfg.Bursts))
	require.Len(t, r.Sustained, len(cfg.Subscribers)*len(cfg.Engines))
	for _, s := range r.Sustained {
		require.NotZero(t, s.Datagrams)
		if s.Engine == XDP || s.Engine == Socket { // the others have no queue that is long enough
			require.Zero(t, s.Lost, "%+v", s)
		}
	}
	require.Len(t, r.Joins, 4, "two engines, two sizes of changes")
	for _, j := range r.Joins {
		require.NotZero(t, j.Changes)
		require.NotZero(t, j.Datagrams)
		require.Zero(t, j.Lost+j.Duplicated, "%+v", j)
	}
	require.Len(t, r.Memory, 2*len(cfg.Subscribers))
	for _, m := range r.Memory {
		require.Equal(t, m.Engine == XDP, m.Maps > 0, "%+v", m)
	}
	require.Len(t, r.Drop, 4)
	require.Len(t, r.Flood, 4, "two engines, two ports")
	for i, f := range r.Flood {
		require.Equal(t, i%2 == 1, f.Shared)
		require.Zero(t, f.Leaked, "%+v", f)
		require.GreaterOrEqual(t, f.Hostile, uint64(floodRun), "%+v", f)
		require.NotZero(t, f.Refused, "%+v", f)
		require.LessOrEqual(t, f.Refused+f.Overrun-f.HonestOverrun, f.Hostile, "%+v", f)
		if f.Engine == XDP {
			require.Equal(t, f.Hostile, f.Refused+f.Overrun-f.HonestOverrun, "the program sees all that the ring takes: %+v", f)
			if !f.Shared {
				require.Zero(t, f.Lost, "%+v", f)
			}
		}
	}
	require.Len(t, r.Compared, 2, "lone and sustained, at 64 alone")
	for i, c := range r.Compared {
		require.Equal(t, []string{"lone", "sustained"}[i], c.Load)
		require.Equal(t, 64, c.Subscribers)
		require.Zero(t, c.Lost, "%+v", c)
		require.Greater(t, float64(c.Ratio), 0.5, "%+v", c)
		require.True(t, c.Noise.known(), "%+v", c)
	}
	require.NoError(t, r.Write(cfg.Dir()))
}

// TestFloodBegins: hostile datagrams are there before the honest stream begins, however
// short that is.
func TestFloodBegins(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces and loads kernel programs")
	}
	cfg := Quick()
	cfg.Name, cfg.Results, cfg.Log = "flood", t.TempDir(), slog.New(slog.DiscardHandler)
	cfg.Engines, cfg.Subscribers, cfg.Bursts, cfg.Rounds = []string{XDP}, []int{1}, []int{1}, 1
	cfg.Sustain, cfg.Changes, cfg.Flood = 0, 0, time.Nanosecond
	r, err := Fanout(t.Context(), cfg)
	require.NoError(t, err)
	require.Empty(t, r.Failed)
	require.Len(t, r.Flood, 2)
	for _, f := range r.Flood {
		require.GreaterOrEqual(t, f.Hostile, uint64(1024), "%+v", f)
	}
}

// TestInterrupt ends a measurement that has begun.
func TestInterrupt(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces and loads kernel programs")
	}
	cfg := Full()
	cfg.Engines = []string{Bare, Sendmmsg}
	cfg.Name, cfg.Results = "interrupted", t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := Fanout(ctx, cfg)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	requireNothingLeft(t)
}

// broken is a subject that cannot have many subscribers.
type broken struct {
	subject
	most int
}

func (s broken) resize(from, to int) error {
	if to > s.most {
		return errors.New("broken")
	}
	return s.subject.resize(from, to)
}

// TestFailedIsNotAll has one of two engines break on the way. What it did before stays,
// and all that the other one does.
func TestFailedIsNotAll(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces and loads kernel programs")
	}
	cfg := Quick()
	cfg.Name, cfg.Results, cfg.Log = "broken", t.TempDir(), slog.New(slog.DiscardHandler)
	cfg.Engines, cfg.Subscribers, cfg.Bursts, cfg.Rounds, cfg.Sustain = []string{Bare, TC}, []int{1, 2}, []int{1}, 1, 0
	run, err := netns.NewRun(netns.StateDir)
	require.NoError(t, err)
	defer run.Close()
	b := &bench{cfg: cfg, capacity: make(map[string]map[int]float64)}
	b.result, err = newResult(&cfg)
	require.NoError(t, err)
	defer func() { require.NoError(t, b.close()) }()
	require.NoError(t, b.open(run))
	tc := b.lane(TC)
	tc.subject = broken{tc.subject, 1}
	require.NoError(t, b.measure(t.Context()))

	for _, n := range cfg.Subscribers {
		require.NotNil(t, b.result.find(Bare, false, n, 1))
		require.Equal(t, n == 1, b.result.find(TC, false, n, 1) != nil)
	}
	require.Equal(t, []Failed{{TC, 2, "copies", "tc: 2 subscribers: broken"}}, b.result.Failed)
	text, err := os.ReadFile(filepath.Join(cfg.Dir(), TableFile))
	require.NoError(t, err)
	require.Contains(t, string(text), "not measured")
	require.Contains(t, string(text), "broken")
	require.FileExists(t, filepath.Join(cfg.Dir(), ResultFile))
}

// TestNothingMeasured writes a result in which everything failed.
func TestNothingMeasured(t *testing.T) {
	r, err := newResult(new(Full()))
	require.NoError(t, err)
	r.Failed = []Failed{{XDP, 0, "start", "refused"}}
	require.NoError(t, r.Write(t.TempDir()))
}

func TestWhileFull(t *testing.T) {
	var pauses time.Duration
	sleep := func(d time.Duration) { pauses += d }
	full := 3
	require.NoError(t, whileFull(func() error {
		if full--; full >= 0 {
			return fmt.Errorf("run program: %w", unix.ENOSPC)
		}
		return nil
	}, sleep))
	require.Equal(t, 3*fullPause, pauses)
	other := errors.New("other")
	require.Equal(t, other, whileFull(func() error { return other }, sleep))
	require.Equal(t, 3*fullPause, pauses)
	require.ErrorIs(t, whileFull(func() error { return unix.ENOSPC }, sleep), unix.ENOSPC)
	require.Greater(t, fullTries*fullPause, 5*time.Second, "the kernel frees ids once a second")
}

// TestRunSize keeps a stream below the number of runs that the kernel has ids for.
func TestRunSize(t *testing.T) {
	require.Equal(t, 1, runSize(1))
	for _, rate := range []float64{1, maxRuns, maxRuns + 1, maxRate} {
		require.LessOrEqual(t, rate/float64(runSize(rate)), float64(maxRuns))
	}
	require.Equal(t, maxBatch, runSize(1e9))
}

// requireNothingLeft looks for the state of a run of this process, which lists all that
// the run has on the machine.
func requireNothingLeft(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(netns.StateDir, "*.json"))
	require.NoError(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // of another process
		}
		require.NoError(t, err)
		var state netns.State
		require.NoError(t, json.Unmarshal(text, &state))
		require.NotEqual(t, os.Getpid(), state.Owner.Pid, "%s is left", state.Prefix)
	}
}
