// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/rp"
)

// supervisor is the service manager that started rpd, by the protocol of sd_notify(3).
// Without one, all that it is told goes nowhere.
type supervisor struct {
	socket   string        // a name with "@" is abstract
	watchdog time.Duration // within which it wants to hear that rpd lives, 0 for never
	log      *slog.Logger
}

// newSupervisor reads what the service manager put into the environment.
func newSupervisor(getenv func(string) string, log *slog.Logger) *supervisor {
	s := &supervisor{socket: getenv("NOTIFY_SOCKET"), log: log}
	us, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64)
	if pid := getenv("WATCHDOG_PID"); err == nil && us > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		s.watchdog = time.Duration(us) * time.Microsecond
	}
	return s
}

// tellTimeout is how long the service manager may leave its socket full.
const tellTimeout = time.Second

// tell sends variables, such as READY=1. Nothing depends on whether they arrive.
func (s *supervisor) tell(variables ...string) {
	if s.socket == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	if err == nil {
		conn.SetWriteDeadline(time.Now().Add(tellTimeout))
		_, err = conn.Write([]byte(strings.Join(variables, "\n")))
		conn.Close()
	}
	if err != nil {
		s.log.Warn("service manager not told", "what", variables[0], "err", err)
	}
}

func (s *supervisor) ready()    { s.tell("READY=1", "STATUS=serves") }
func (s *supervisor) stopping() { s.tell("STOPPING=1", "STATUS=drains") }

// reloading says that the configuration is read again; reloaded ends that.
func (s *supervisor) reloading() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return
	}
	s.tell("RELOADING=1", "MONOTONIC_USEC="+strconv.FormatInt(now.Nano()/1000, 10))
}

// reloaded leaves the status as watch told it.
func (s *supervisor) reloaded() { s.tell("READY=1") }

// lookInterval is how often watch looks at the health when no watchdog wants it sooner.
const lookInterval = 5 * time.Second

// watch tells the service manager as long as rpd lives, and how it does, until ctx ends.
// It says nothing while a part of rpd hangs: then the watchdog starts rpd anew.
func (s *supervisor) watch(ctx context.Context, health func() rp.Health) {
	if s.socket == "" {
		return
	}
	interval := lookInterval
	if s.watchdog > 0 {
		interval = min(interval, s.watchdog/3)
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	told := ""
	for {
		h := health()
		var variables []string
		if h.Live {
			variables = append(variables, "WATCHDOG=1")
		}
		if status := inWords(&h); status != told {
			variables, told = append(variables, "STATUS="+status), status
		}
		if len(variables) > 0 {
			s.tell(variables...)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// inWords says in one line how an RP does.
func inWords(h *rp.Health) string {
	words := []string{"serves"}
	if !h.Ready {
		words = []string{"not ready: " + strings.Join(h.NotReady, "; ")}
	}
	for _, w := range h.Warnings {
		words = append(words, "warning: "+w)
	}
	return strings.ReplaceAll(strings.Join(words, "; "), "\n", " ")
}
