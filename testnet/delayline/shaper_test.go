// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const ms = int64(time.Millisecond)

// An idle link of 1 Mbit/s takes a frame of 1,250 bytes in 10 ms. The next ones
// wait for it, and the last one too long.
func TestRateClock(t *testing.T) {
	p := &Params{Rate: 1e6, Delay: 5 * time.Millisecond, Queue: 20 * time.Millisecond}
	s := newShaper(1, "test")
	for _, step := range []struct {
		arrival int64 // ms
		bytes   int
		due     int64 // ms, 0: lost
	}{
		{100, 1250, 115},
		{100, 1250, 125}, // waits 10 ms
		{100, 1250, 135}, // waits 20 ms, just what is allowed
		{100, 1250, 0},   // would wait 30 ms
		{111, 125, 136},  // waits 19 ms and takes 1 ms
		{112, 1250, 146}, // waits 19 ms
		{200, 125, 206},  // idle again
	} {
		due, f := s.admit(p, Data, step.bytes, step.arrival*ms)
		if step.due == 0 {
			require.Equal(t, lostQueue, f, "%+v", step)
			continue
		}
		require.Equal(t, kept, f, "%+v", step)
		require.Equal(t, step.due*ms, due, "%+v", step)
	}
}

func TestDefaultQueue(t *testing.T) {
	p := &Params{Rate: 1e6}
	s := newShaper(1, "test")
	sent := 0
	for range 100 {
		if _, f := s.admit(p, Data, 1250, 0); f == kept {
			sent++
		}
	}
	require.Equal(t, 6, sent, "one at once and one for each 10 ms of 50")
}

func TestNoParametersNoDelay(t *testing.T) {
	s := newShaper(1, "test")
	due, f := s.admit(&Params{}, Other, 64, 42)
	require.Equal(t, kept, f)
	require.EqualValues(t, 42, due)
}

func TestBlackhole(t *testing.T) {
	s := newShaper(1, "test")
	_, f := s.admit(&Params{Blackhole: true, Loss: 1}, Other, 64, 42)
	require.Equal(t, lostBlackhole, f)
}

// fates are the losses among n frames of a class.
func fates(s shaper, class Class, loss float64, n int) []bool {
	lost := make([]bool, n)
	for i := range lost {
		_, f := s.admit(&Params{Loss: loss}, class, 100, int64(i))
		lost[i] = f == lostRandom
	}
	return lost
}

func trues(list []bool) (n int) {
	for _, x := range list {
		if x {
			n++
		}
	}
	return n
}

func TestLossShare(t *testing.T) {
	const n = 100_000
	for _, loss := range []float64{0, 0.001, 0.05, 0.5, 1} {
		got := trues(fates(newShaper(7, "a-b/ab"), Data, loss, n))
		bound := 4 * math.Sqrt(n*loss*(1-loss)) // 4 standard deviations, of a fixed seed
		require.InDelta(t, loss*n, got, bound, "loss %v", loss)
	}
}

func TestLossIsReproducible(t *testing.T) {
	const n, loss = 1000, 0.1
	want := fates(newShaper(7, "a-b/ab"), Data, loss, n)
	require.Equal(t, want, fates(newShaper(7, "a-b/ab"), Data, loss, n))
	require.NotEqual(t, want, fates(newShaper(8, "a-b/ab"), Data, loss, n), "other seed")
	require.NotEqual(t, want, fates(newShaper(7, "a-b/ba"), Data, loss, n), "other direction")
	require.NotEqual(t, want, fates(newShaper(7, "a-b/ab"), Eth, loss, n), "other class")

	more := fates(newShaper(7, "a-b/ab"), Data, 2*loss, n)
	for i := range want {
		require.True(t, more[i] || !want[i], "frame %d is lost at %v and not at %v", i, loss, 2*loss)
	}

	// Frames of another class in between change nothing.
	s := newShaper(7, "a-b/ab")
	for i := range want {
		s.admit(&Params{Loss: loss}, BGP, 100, int64(i))
		_, f := s.admit(&Params{Loss: loss}, Data, 100, int64(i))
		require.Equal(t, want[i], f == lostRandom, "frame %d", i)
	}
}

// Whatever the parameters and however they change, frames keep their order, wait
// no longer than allowed, and the rate is not exceeded.
func TestShaperInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newShaper(rapid.Uint64().Draw(t, "seed"), "test")
		var arrival, last int64
		for range rapid.IntRange(1, 20).Draw(t, "phases") {
			p := &Params{
				Delay:  time.Duration(rapid.Int64Range(0, 100*ms).Draw(t, "delay")),
				Jitter: time.Duration(rapid.Int64Range(0, 20*ms).Draw(t, "jitter")),
				Rate:   rapid.SampledFrom([]uint64{0, 1e6, 1e9}).Draw(t, "rate"),
				Queue:  time.Duration(rapid.Int64Range(0, 30*ms).Draw(t, "queue")),
				Loss:   rapid.SampledFrom([]float64{0, 0.5}).Draw(t, "loss"),
			}
			for range rapid.IntRange(1, 20).Draw(t, "frames") {
				arrival += rapid.Int64Range(0, 10*ms).Draw(t, "pause")
				bytes := rapid.IntRange(60, 1514).Draw(t, "bytes")
				free := s.free
				due, f := s.admit(p, Data, bytes, arrival)
				if f != kept {
					require.Equal(t, free, s.free, "a lost frame used the rate")
					continue
				}
				require.GreaterOrEqual(t, due, last)
				require.GreaterOrEqual(t, due, arrival+int64(p.Delay))
				last = due
				if p.Rate == 0 {
					continue
				}
				require.GreaterOrEqual(t, s.free-max(free, arrival), serialisation(bytes, p.Rate))
				require.LessOrEqual(t, s.free-serialisation(bytes, p.Rate)-arrival, int64(p.queue()))
			}
		}
	})
}

func TestJitterIsEven(t *testing.T) {
	const n = 10_000
	p := &Params{Delay: 10 * time.Millisecond, Jitter: 4 * time.Millisecond}
	s := newShaper(3, "test")
	var sum float64
	for i := range n {
		arrival := int64(i) * 10 * ms // so far apart that order changes nothing
		due, _ := s.admit(p, Data, 100, arrival)
		delay := time.Duration(due - arrival)
		require.GreaterOrEqual(t, delay, p.Delay)
		require.LessOrEqual(t, delay, p.Delay+p.Jitter)
		sum += delay.Seconds()
	}
	require.InDelta(t, 0.012, sum/n, 0.0001)
}

func TestOptionsAreChecked(t *testing.T) {
	good := Link{Name: "x", A: "a", B: "b", Params: Params{Delay: time.Millisecond}}
	require.NoError(t, (&Options{Links: []Link{good}}).validate())
	for name, change := range map[string]func(l *Link){
		"name":           func(l *Link) { l.Name = "" },
		"interface":      func(l *Link) { l.B = "" },
		"same interface": func(l *Link) { l.B = "a" },
		"delay":          func(l *Link) { l.Delay = -1 },
		"jitter":         func(l *Link) { l.Jitter = -1 },
		"queue":          func(l *Link) { l.Queue = -1 },
		"loss above 1":   func(l *Link) { l.Loss = 1.1 },
		"loss below 0":   func(l *Link) { l.Loss = -0.1 },
		"loss no number": func(l *Link) { l.Loss = math.NaN() },
		"slots":          func(l *Link) { l.Slots = 100 },
		"negative slots": func(l *Link) { l.Slots = -64 },
	} {
		l := good
		change(&l)
		require.Error(t, (&Options{Links: []Link{l}}).validate(), name)
	}
	require.Error(t, (&Options{}).validate())
	require.Error(t, (&Options{Links: []Link{good, good}}).validate())
}

func TestSlots(t *testing.T) {
	for _, test := range []struct {
		link Link
		want int
	}{
		{Link{}, minSlots},
		{Link{Params: Params{Delay: 10 * time.Millisecond}}, minSlots},
		{Link{Params: Params{Delay: 40 * time.Millisecond}}, 2048},
		{Link{Params: Params{Delay: 200 * time.Millisecond}}, maxSlots},
		{Link{Params: Params{Rate: 100e6, Delay: 10 * time.Millisecond}}, 768},
		{Link{Params: Params{Rate: 10e9}}, maxSlots},
		{Link{Slots: 64, Params: Params{Rate: 10e9}}, 64},
	} {
		require.Equal(t, test.want, test.link.slots(), "%+v", test.link)
	}
}
