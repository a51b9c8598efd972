// SPDX-License-Identifier: LGPL-3.0-or-later

package meshbench

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const ms = time.Millisecond

// story is a book of datagrams that source 0 sends every 10 ms to two peers, who have
// each after 5 and 50 ms unless an exception says otherwise.
func story(n int, exceptions map[[2]int]arrival) *book {
	b := newBook(3)
	for number := range n {
		b.sent[0] = append(b.sent[0], time.Duration(number)*10*ms)
		for peer, delay := range []time.Duration{1: 5 * ms, 2: 50 * ms} {
			if peer == 0 {
				continue
			}
			a := arrival{at: b.sent[0][number] + delay, times: 1}
			if x, ok := exceptions[[2]int{peer, number}]; ok {
				a = x
			}
			for range a.times {
				b.receive(peer, payload(0, number, 200), b.start.Add(a.at))
			}
		}
	}
	return b
}

func nobody(int) bool { return false }

func TestOutcome(t *testing.T) {
	b := story(10, map[[2]int]arrival{{1, 3}: {}, {2, 4}: {at: 40*ms + lateAfter + 1, times: 1}, {2, 5}: {at: 100 * ms, times: 3}})
	require.Equal(t, outcome{expected: 20, lost: 1, late: 1, duplicated: 2}, b.outcome(span{0, 0, 10}, all))
	require.Equal(t, outcome{expected: 7, duplicated: 2}, b.outcome(span{0, 0, 10}, func(peer int, sent time.Duration) bool {
		return peer == 1 && sent > 30*ms || sent == 0 && peer == 2
	}), "copies too many count anywhere")

	b.receive(1, payload(0, 10, 0), b.start)
	b.receive(1, payload(3, 0, 0), b.start)
	b.receive(1, []byte("short"), b.start)
	require.EqualValues(t, 3, b.alien)
}

func TestDelivered(t *testing.T) {
	b := story(10, map[[2]int]arrival{{1, 3}: {}, {2, 5}: {at: 100 * ms, times: 2}})
	since, ok := b.delivered([]span{{0, 0, 10}})
	require.True(t, ok)
	require.Equal(t, 110*ms, since, "number 6 came to the last one")
	_, ok = b.delivered([]span{{0, 0, 6}})
	require.False(t, ok, "the last one came twice")
	since, ok = b.delivered([]span{{0, 0, 3}})
	require.True(t, ok)
	require.Equal(t, 50*ms, since)
	_, ok = b.delivered(nil)
	require.False(t, ok)
}

func TestHealed(t *testing.T) {
	const failure = 100 * ms // number 9 is on its way to peer 1, number 5 to peer 2
	whole := span{0, 0, 100}
	heal := func(exceptions map[[2]int]arrival) (time.Duration, bool) {
		return story(100, exceptions).healed(whole, failure, nobody)
	}
	at, ok := heal(nil)
	require.True(t, ok)
	require.Zero(t, at, "nobody was cut off")

	late := make(map[[2]int]arrival)
	for number := 10; number < 40; number++ {
		late[[2]int{1, number}] = arrival{at: 460*ms + time.Duration(number)*time.Microsecond, times: 1}
	}
	at, ok = heal(late)
	require.True(t, ok)
	require.Equal(t, 460*ms+39*time.Microsecond, at, "a cache served what was missing, after number 40 had come live")

	longer := make(map[[2]int]arrival)
	for number := 10; number < 100; number++ {
		longer[[2]int{1, number}] = arrival{at: time.Duration(number)*10*ms + 95*ms, times: 1}
	}
	at, ok = heal(longer)
	require.True(t, ok)
	require.Equal(t, 195*ms, at, "the way is longer from now on, and nothing is missing")

	lost := make(map[[2]int]arrival)
	for number := 10; number < 40; number++ {
		lost[[2]int{2, number}] = arrival{}
	}
	at, ok = heal(lost)
	require.True(t, ok)
	require.Equal(t, 450*ms, at, "number 40 was the first to come again")
	at, ok = story(100, lost).healed(whole, failure, func(peer int) bool { return peer == 2 })
	require.True(t, ok)
	require.Zero(t, at, "peer 2 was not asked")

	for number := 40; number < 100; number++ {
		lost[[2]int{2, number}] = arrival{}
	}
	_, ok = heal(lost)
	require.False(t, ok, "nothing came again")
	_, ok = story(100, nil).healed(whole, 0, nobody)
	require.False(t, ok, "nothing is known of the time before")
}

func TestDelay(t *testing.T) {
	b := story(9, map[[2]int]arrival{{1, 3}: {}, {1, 4}: {at: 43 * ms, times: 1}})
	d, ok := b.delay(span{0, 0, 9}, 1)
	require.True(t, ok)
	require.Equal(t, 3*ms, d)
	_, ok = b.delay(span{0, 3, 4}, 1)
	require.False(t, ok)
}
