// SPDX-License-Identifier: LGPL-3.0-or-later

package fanout

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// No element is handed out twice, none comes back before its quarantine ends, and none is lost.
func TestElementsProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const first, end = 5, 25
		s, now := NewElements(first, end), time.Unix(1, 0)
		taken, retired := make(map[uint32]bool), make(map[uint32]time.Time)
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			some := func(m map[uint32]bool) (uint32, bool) {
				for e := range uint32(end) {
					if m[e] && rapid.Bool().Draw(t, "this") {
						return e, true
					}
				}
				return 0, false
			}
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0, 1:
				e, err := s.Take()
				if len(taken)+len(retired) == end-first {
					require.Error(t, err)
					continue
				}
				require.NoError(t, err)
				require.False(t, taken[e])
				require.NotContains(t, retired, e)
				require.True(t, first <= e && e < end)
				taken[e] = true
			case 2:
				if e, ok := some(taken); ok {
					s.Retire(e, now)
					delete(taken, e)
					retired[e] = now
				}
			case 3:
				if e, ok := some(taken); ok {
					s.GiveBack(e)
					delete(taken, e)
				}
			case 4:
				now = now.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "seconds")) * time.Second)
				for _, e := range s.Expire(now) {
					require.GreaterOrEqual(t, now.Sub(retired[e]), Quarantine)
					delete(retired, e)
				}
			}
			require.Equal(t, end-first-len(taken)-len(retired), s.Left())
			require.Len(t, s.Retired(), len(retired))
		}
	})
}

// The reasons of a GoneError are found.
func TestGoneError(t *testing.T) {
	why := errors.New("why")
	require.ErrorIs(t, &GoneError{3, "eth3", why}, why)
	require.EqualError(t, &GoneError{3, "eth3", why}, "device eth3: why")
}
