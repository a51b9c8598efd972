// SPDX-License-Identifier: LGPL-3.0-or-later

package events

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Each listener gets all that happens after it came, in order.
func TestHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub()
		h.Emit(Event{Kind: Join}) // before anybody listened
		a, err := h.Listen(4)
		require.NoError(t, err)
		b, err := h.Listen(4)
		require.NoError(t, err)
		h.Emit(Event{Kind: Admitted, Node: "ab"})
		past := time.Unix(1, 0)
		h.Emit(Event{Kind: Leave, Time: past})
		for _, l := range []*Listener{a, b} {
			e, err := l.Next(t.Context())
			require.NoError(t, err)
			require.Equal(t, Event{Kind: Admitted, Node: "ab", Time: time.Now()}, e)
			e, err = l.Next(t.Context())
			require.NoError(t, err)
			require.Equal(t, Event{Kind: Leave, Time: past}, e)
		}

		// It waits for the next one.
		got := make(chan Event)
		go func() {
			e, _ := a.Next(t.Context())
			got <- e
		}()
		synctest.Wait()
		h.Emit(Event{Kind: Rekey})
		require.Equal(t, Rekey, (<-got).Kind)

		a.Close()
		require.Equal(t, 1, h.Listeners())
		_, err = a.Next(t.Context())
		require.ErrorIs(t, err, errEnded)
		e, err := b.Next(t.Context())
		require.NoError(t, err)
		require.Equal(t, Rekey, e.Kind)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = b.Next(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// Who reads too slowly has the newest events, and the number of those that it missed
// before them.
func TestSlowListener(t *testing.T) {
	h := NewHub()
	l, err := h.Listen(3)
	require.NoError(t, err)
	next := func() Event {
		t.Helper()
		e, err := l.Next(t.Context())
		require.NoError(t, err)
		return e
	}
	for round := range 3 {
		for i := range 10 {
			h.Emit(Event{Kind: Join, Detail: strconv.Itoa(i)})
		}
		e := next()
		require.Equal(t, Lost, e.Kind, "round %d", round)
		require.Equal(t, uint64(7), e.Count)
		require.False(t, e.Time.IsZero())
		for _, want := range []string{"7", "8", "9"} {
			require.Equal(t, want, next().Detail)
		}
		require.Zero(t, l.waiting)
	}
}

// No event is neither delivered nor counted as lost, whoever emits at once.
func TestConcurrentEmit(t *testing.T) {
	h := NewHub()
	l, err := h.Listen(8)
	require.NoError(t, err)
	const emitters, each = 4, 1000
	var wg sync.WaitGroup
	for range emitters {
		wg.Go(func() {
			for range each {
				h.Emit(Event{Kind: Join})
			}
		})
	}
	seen := uint64(0)
	for seen < emitters*each {
		e, err := l.Next(t.Context())
		require.NoError(t, err)
		seen += max(1, e.Count)
	}
	wg.Wait()
	require.Equal(t, uint64(emitters*each), seen)
}

func TestLimits(t *testing.T) {
	(*Hub)(nil).Emit(Event{Kind: Join}) // must not panic
	h := NewHub()
	for range MaxListeners {
		_, err := h.Listen(0)
		require.NoError(t, err)
	}
	_, err := h.Listen(0)
	require.ErrorIs(t, err, errTooMany)
}
