// SPDX-License-Identifier: LGPL-3.0-or-later

package limitlog

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Whatever a stranger does, a message has few lines a minute, and none is lost in silence.
func TestLinesAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		log := New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug}))
		require.Same(t, log.Handler(), New(log.Handler()).Handler(), "limits are not doubled")
		lines := func() int {
			n := strings.Count(text.String(), "\n")
			text.Reset()
			return n
		}
		for range 1000 {
			log.With("peer", "a").Warn("peer broke the protocol")
		}
		log.Info("peer joined")
		require.Equal(t, Burst+1, lines(), "each message has a bucket of its own, all peers have one together")

		time.Sleep(Interval)
		log.WithGroup("g").Warn("peer broke the protocol", "k", 1)
		require.Contains(t, text.String(), "left_out=992")
		require.Equal(t, 1, lines())

		passed := 0
		for range 600 { // a minute
			time.Sleep(100 * time.Millisecond)
			log.Warn("peer broke the protocol")
			passed += lines()
		}
		require.Equal(t, int(time.Minute/Interval), passed)

		for range 1000 {
			log.Debug("peer refused")
		}
		require.Equal(t, 1000, lines(), "debug lines are for who wants all")

		time.Sleep(time.Hour)
		for range 1000 {
			log.Warn("peer broke the protocol")
		}
		require.Equal(t, Burst, lines(), "the bucket does not grow beyond its size")
	})
}
