// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/datapath"
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

// stuck is an engine whose thread answers nothing while a channel is there.
type stuck struct {
	datapath.Engine
	on atomic.Pointer[chan struct{}]
}

func (e *stuck) Marks() []proto.Mark {
	if on := e.on.Load(); on != nil {
		<-*on
	}
	return e.Engine.Marks()
}

// TestWatchdogOfAStuckEngine has an rpd that serves, with the engine's thread stuck: the service
// manager hears of it, and nothing of life until the thread goes on.
func TestWatchdogOfAStuckEngine(t *testing.T) {
	control, err := freePort(false)
	require.NoError(t, err)
	data, err := freePort(true)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "rpd.toml")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `
[node]
key_file = "%s/key"
address = "::1"
control_port = %d
data_port = %d
[chain]
network_id = 1
genesis = "0x0100000000000000000000000000000000000000000000000000000000000000"
[datapath]
engine = "socket"
pin = ""
`, t.TempDir(), control, data), 0o600))
	cfg, err := load(path)
	require.NoError(t, err)
	c, err := rpConfig(cfg, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	engine, open := new(stuck), c.Engine
	c.Engine = func(d datapath.Config) (datapath.Engine, error) {
		var err error
		engine.Engine, err = open(d)
		return engine, err
	}
	point, err := rp.New(*c)
	require.NoError(t, err)
	require.NoError(t, point.Start())
	defer point.Stop()

	socket, next := manager(t)
	s := newSupervisor(environment(map[string]string{"NOTIFY_SOCKET": socket, "WATCHDOG_USEC": "300000"}), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	var looks atomic.Int32
	dead := make(chan int32, 1) // the look that saw it first
	watching.Go(func() {
		s.watch(ctx, func() rp.Health {
			h, n := point.Health(), looks.Add(1)
			if !h.Live {
				select {
				case dead <- n:
				default:
				}
			}
			return h
		})
	})
	alive := func(text string) bool { return strings.Contains(text, "WATCHDOG=1") }
	require.True(t, alive(next()))

	on := make(chan struct{})
	engine.on.Store(&on)
	text := next()
	for alive(text) {
		text = next()
	}
	require.Contains(t, text, "STATUS=not ready: the thread of the engine")
	first := <-dead
	for looks.Load() < first+10 {
		require.False(t, alive(text), "life of a stuck engine: %q", text)
		text = next() // for how long it is stuck
	}
	engine.on.Store(nil)
	close(on)
	for !alive(text) {
		text = next()
	}
}
