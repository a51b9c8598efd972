// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// idleWait is how long the loop sleeps at most, and so how fast it notices a
// request to stop or to clear.
const idleWait = 50 * time.Millisecond

// Link joins two interfaces of the namespace with the same delay both ways.
type Link struct {
	A, B  string
	Delay time.Duration
}

// wire is a set of links served by one loop on one thread.
type wire struct {
	lines   []*line
	epoll   int
	longest int64 // ns that the loop may sleep while frames wait
	doStop  atomic.Bool
	doClear atomic.Bool
}

func openWire(links []Link) (*wire, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	w := &wire{epoll: epoll, longest: int64(idleWait)}
	for _, link := range links {
		a, err := openRing(link.A)
		if err != nil {
			return nil, err
		}
		b, err := openRing(link.B)
		if err != nil {
			return nil, err
		}
		for _, r := range []*ring{a, b} {
			// Edge-triggered: a waiting frame keeps the socket readable.
			ev := &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(r.fd)}
			if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, r.fd, ev); err != nil {
				return nil, fmt.Errorf("watch %s: %w", r.name, err)
			}
		}
		delay := int64(link.Delay)
		w.lines = append(w.lines, newLine(a, b, delay), newLine(b, a, delay))
		// A frame that arrives during a sleep is due one delay later at the
		// earliest, so a sleep of the shortest delay is always safe.
		w.longest = min(w.longest, max(delay, int64(100*time.Microsecond)))
	}
	return w, nil
}

// run moves frames until stop. It never gives its thread away.
func (w *wire) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // ns
	for !w.doStop.Load() {
		if w.doClear.CompareAndSwap(true, false) {
			for _, l := range w.lines {
				l.clear()
			}
		}
		for _, l := range w.lines {
			l.accept()
		}
		var (
			now     = realtime()
			next    int64
			waiting bool
		)
		for _, l := range w.lines {
			l.forward(now)
			if due, ok := l.next(); ok && (!waiting || due < next) {
				next, waiting = due, true
			}
		}
		if waiting {
			sleep(min(next-realtime(), w.longest))
		} else {
			w.poll()
		}
	}
}

func (w *wire) stop()  { w.doStop.Store(true) }
func (w *wire) clear() { w.doClear.Store(true) }

// sleep uses the system call and not the timers of Go, which are rounded to 1 ms
// when the thread is idle.
func sleep(ns int64) {
	if ns <= 0 {
		return
	}
	ts := unix.NsecToTimespec(ns)
	unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
}

// poll waits for the first frame.
func (w *wire) poll() {
	var events [16]unix.EpollEvent
	unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(w.epoll), uintptr(unsafe.Pointer(&events[0])),
		uintptr(len(events)), uintptr(idleWait.Milliseconds()), 0, 0)
}

// summary adds up all lines. Call it after run has returned.
func (w *wire) summary() Summary {
	var (
		s   Summary
		all lateness
	)
	for _, l := range w.lines {
		s.Frames += l.frames
		s.Bytes += l.bytes
		s.Lost += l.cut + l.refused + l.in.overflows()
		all.merge(&l.late)
	}
	micros := func(ns int64) float64 { return float64(ns) / 1e3 }
	s.P50 = micros(all.quantile(0.50))
	s.P99 = micros(all.quantile(0.99))
	s.Max = micros(all.max)
	if all.count > 0 {
		s.Overdue = float64(all.overdue) / float64(all.count)
	}
	return s
}
