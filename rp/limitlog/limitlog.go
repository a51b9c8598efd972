// SPDX-License-Identifier: LGPL-3.0-or-later

// Package limitlog bounds log lines that others can cause. A handler passes some lines
// of each message, then few a minute, and the next line that passes says how many were
// left out. Debug lines are not limited: who asks for them wants all.
package limitlog

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// Burst is how many lines of one message pass at once.
	Burst = 8

	// Interval is the time after which one more line of a message passes.
	Interval = 10 * time.Second
)

// LeftOut is the attribute that counts the lines of a message before this one that did
// not pass.
const LeftOut = "left_out"

// Handler limits the lines of each message. Handlers made of it by WithAttrs and
// WithGroup share its counts. Messages should be constant texts: each distinct one has
// a count of its own, for as long as the handler lives.
type Handler struct {
	slog.Handler
	counts *counts
}

type counts struct {
	mu sync.Mutex
	by map[string]*count
}

// count is a bucket of Burst lines that gains one in each Interval.
type count struct {
	full    time.Time // when the bucket is full again
	leftOut uint64
}

// New returns a logger that writes to h what the limits let pass. If h has limits already,
// these hold, and there are no others.
func New(h slog.Handler) *slog.Logger {
	if _, limited := h.(*Handler); limited {
		return slog.New(h)
	}
	return slog.New(&Handler{h, &counts{by: make(map[string]*count)}})
}

// Handle implements slog.Handler. It goes by the time since the last line, not by the
// time that the record claims: the date may be changed.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelInfo {
		return h.Handler.Handle(ctx, r)
	}
	leftOut, pass := h.counts.take(time.Now(), r.Message)
	if !pass {
		return nil
	}
	if leftOut > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Uint64(LeftOut, leftOut))
	}
	return h.Handler.Handle(ctx, r)
}

func (c *counts) take(now time.Time, message string) (leftOut uint64, pass bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.by[message]
	if n == nil {
		n = &count{full: now}
		c.by[message] = n
	}
	if n.full.Before(now) {
		n.full = now
	}
	if next := n.full.Add(Interval); !next.After(now.Add(Burst * Interval)) {
		n.full = next
		leftOut, n.leftOut = n.leftOut, 0
		return leftOut, true
	}
	n.leftOut++
	return 0, false
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{h.Handler.WithAttrs(attrs), h.counts}
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.Handler.WithGroup(name), h.counts}
}
