// SPDX-License-Identifier: LGPL-3.0-or-later

package receipts

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/ethmcast/ids"
)

var (
	start = time.Unix(100, 0)
	key   = Key{Ingress: 1, Group: 2, Sequence: 3}
)

func TestReports(t *testing.T) {
	r := New()
	r.Open(start, key, 3)
	r.Confirm(start, 7, key)
	require.Empty(t, r.Tick(start.Add(Interval-1)))
	require.Equal(t, start.Add(Interval), r.Deadline())
	now := start.Add(Interval)
	require.Equal(t, []Report{{key, Count{3, 1}}}, r.Tick(now))
	require.Equal(t, start.Add(Lifetime), r.Deadline(), "nothing new is to be told")

	r.Confirm(now, 7, key) // again
	require.Empty(t, r.Tick(now.Add(Interval)))
	r.Confirm(now, 8, key)
	r.Child(now, 1, Report{key, Count{10, 4}})
	require.Empty(t, r.Tick(now.Add(Interval-1)), "not more often")
	now = now.Add(Interval)
	require.Equal(t, []Report{{key, Count{13, 6}}}, r.Tick(now))

	r.Child(now, 1, Report{key, Count{10, 9}}) // replaces the one before
	r.Child(now, 2, Report{key, Count{5, 5}})
	now = now.Add(time.Second)
	require.Equal(t, []Report{{key, Count{18, 16}}}, r.Tick(now))

	r.Confirm(now, 9, key)
	require.Equal(t, []Report{{key, Count{18, 17}}}, r.Tick(start.Add(Lifetime)), "the rest is told at the end")
	require.Zero(t, r.Deadline())
	r.Confirm(now, 10, key)
	require.Empty(t, r.Tick(start.Add(time.Hour)))
}

func TestNothingConfirmed(t *testing.T) {
	r := New()
	r.Open(start, key, 0)
	require.Empty(t, r.Tick(start.Add(Lifetime)), "an RP without peers has nothing to tell")
	r.Open(start, key, 2)
	require.Equal(t, []Report{{key, Count{2, 0}}}, r.Tick(start.Add(Interval)))
}

func TestLies(t *testing.T) {
	r := New()
	r.Open(start, key, 2)
	for session := range ids.Session(10) {
		r.Confirm(start, session, key)
	}
	r.Child(start, 1, Report{key, Count{5, 1000}})
	require.Equal(t, []Report{{key, Count{7, 7}}}, r.Tick(start.Add(Interval)), "never more than it was sent to")
	r.Child(start, 2, Report{key, Count{math.MaxUint32, math.MaxUint32}})
	require.Equal(t, []Report{{key, Count{math.MaxUint32, math.MaxUint32}}}, r.Tick(start.Add(2*Interval)))

	r.Confirm(start, 1, Key{1, 2, 4}) // nobody asked
	r.Child(start, 1, Report{Key{1, 2, 4}, Count{1, 1}})
	require.Empty(t, r.Tick(start.Add(3*Interval)))
	for i := range uint64(2 * MaxOpen) {
		r.Open(start, Key{9, 9, i}, 1)
	}
	require.Len(t, r.requests, MaxOpen)
	require.Equal(t, uint64(MaxOpen+1), r.Refused())
	for child := range uint64(2 * MaxChild) {
		r.Child(start, child, Report{key, Count{1, 1}})
	}
	require.Len(t, r.requests[key].children, MaxChild)
}

// The last report of a tree of RPs says what happened at all of them, in whatever order
// reports are made, as long as the last one of each arrives.
func TestTreeProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "rps")
		tables, parents := make([]*Table, n), make([]int, n)
		var want Count
		for i := range tables {
			tables[i] = New()
			if i > 0 {
				parents[i] = rapid.IntRange(0, i-1).Draw(t, "parent")
			}
			sent := rapid.Uint32Range(0, 5).Draw(t, "sent")
			tables[i].Open(start, key, sent)
			want.Sent += sent
		}
		var got Count
		tick := func(i int, now time.Time) {
			for _, report := range tables[i].Tick(now) {
				if i == 0 {
					got = report.Count
				} else {
					tables[parents[i]].Child(now, uint64(i), report)
				}
			}
		}
		now := start
		confirmed := make(map[[2]int]bool)
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 100).Draw(t, "ms")) * time.Millisecond)
			i := rapid.IntRange(0, n-1).Draw(t, "rp")
			if rapid.Bool().Draw(t, "tick") {
				tick(i, now)
				continue
			}
			session := rapid.IntRange(0, 9).Draw(t, "session")
			before := len(tables[i].requests[key].confirmed)
			tables[i].Confirm(now, ids.Session(session), key)
			if len(tables[i].requests[key].confirmed) > before {
				if confirmed[[2]int{i, session}] {
					t.Fatal("counted twice")
				}
				confirmed[[2]int{i, session}] = true
				want.Confirmed++
			}
		}
		for range n { // each report moves one edge up
			now = now.Add(Interval)
			for i := n - 1; i >= 0; i-- {
				tick(i, now)
			}
		}
		if got != want {
			t.Fatalf("reported %+v, want %+v", got, want)
		}
	})
}
