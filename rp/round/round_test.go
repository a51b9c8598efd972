// SPDX-License-Identifier: LGPL-3.0-or-later

package round

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := New[string](3)
		require.Empty(t, r.Wait(nil, time.Hour, nil), "nobody was asked")

		r.Answer("a")
		go func() {
			time.Sleep(time.Second)
			r.Answer("b")
		}()
		require.Empty(t, r.Wait([]string{"a", "b"}, time.Hour, nil))
		require.Equal(t, time.Second, time.Since(start))

		r = New[string](3)
		r.Answer("b")
		require.Equal(t, []string{"a", "c"}, r.Wait([]string{"a", "b", "c"}, time.Second, nil))
		require.Equal(t, 2*time.Second, time.Since(start))

		quit := make(chan struct{})
		close(quit)
		require.Empty(t, r.Wait([]string{"a"}, time.Hour, quit))
		require.Equal(t, 2*time.Second, time.Since(start))
	})
}
