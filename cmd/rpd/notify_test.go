// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/rp"
)

// manager is a service manager that reads what it is told.
func manager(t *testing.T) (socket string, next func() string) {
	socket = filepath.Join(t.TempDir(), "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return socket, func() string {
		b := make([]byte, 4096)
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(30*time.Second)))
		n, err := conn.Read(b)
		require.NoError(t, err)
		return string(b[:n])
	}
}

func environment(values map[string]string) func(string) string {
	return func(name string) string { return values[name] }
}

// TestWatchdogFollowsLife has the watchdog hear nothing while a part of rpd hangs.
func TestWatchdogFollowsLife(t *testing.T) {
	socket, next := manager(t)
	s := newSupervisor(environment(map[string]string{"NOTIFY_SOCKET": socket, "WATCHDOG_USEC": "3000"}), slog.New(slog.DiscardHandler))
	s.ready()
	require.Equal(t, "READY=1\nSTATUS=serves", next())

	health := make(chan rp.Health)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.watch(ctx, func() rp.Health {
			if h, ok := <-health; ok {
				return h
			}
			return rp.Health{Live: true, Ready: true} // to the end
		})
	}()
	alive := rp.Health{Live: true, Ready: true}
	health <- alive
	require.Equal(t, "WATCHDOG=1\nSTATUS=serves", next())
	health <- alive
	require.Equal(t, "WATCHDOG=1", next())
	hung := rp.Health{NotReady: []string{"the mesh hangs"}, Warnings: []string{"two\nlines"}}
	health <- hung
	require.Equal(t, "STATUS=not ready: the mesh hangs; warning: two lines", next())
	for range 5 {
		health <- hung
	}
	health <- alive
	require.Equal(t, "WATCHDOG=1\nSTATUS=serves", next(), "nothing was told while it hung")
	cancel()
	close(health)
	<-done

	s.reloading()
	text := next()
	for text == "WATCHDOG=1" { // of the last look
		text = next()
	}
	require.True(t, strings.HasPrefix(text, "RELOADING=1\nMONOTONIC_USEC="), text)
	s.reloaded()
	require.Equal(t, "READY=1", next())
	s.stopping()
	require.Equal(t, "STOPPING=1\nSTATUS=drains", next())
}

func TestNoSupervisor(t *testing.T) {
	s := newSupervisor(environment(nil), slog.New(slog.DiscardHandler))
	s.ready()
	s.watch(t.Context(), func() rp.Health { t.Error("asked for nobody"); return rp.Health{} })
	require.Zero(t, s.watchdog)
	other := newSupervisor(environment(map[string]string{"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}), s.log)
	require.Zero(t, other.watchdog, "it is for another process")
	gone := newSupervisor(environment(map[string]string{"NOTIFY_SOCKET": filepath.Join(t.TempDir(), "none")}), s.log)
	gone.ready()
}
