// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A frame leaves up to early before it is due or the rest of granularity after
// it, and what falls between two turns of the loop shares one of them: many
// frames per second cost few wake-ups, and the mean error is small.
const (
	granularity = 100 * time.Microsecond
	early       = granularity / 2
)

// loop is a set of links served by one thread. All fields belong to that thread,
// except those of do.
type loop struct {
	lines    []*line // two of each link
	due      []int64 // of each line, ns: a scan of them costs less than a heap
	ports    Ports
	batch    batch
	late     lateness
	epoll    int
	events   []unix.EpollEvent
	timeout  unix.Timespec
	start    time.Time // where the clock of the loop is zero
	stopping bool

	mu      sync.Mutex             // one caller of do at a time
	stopped bool                   // do has nobody left to ask; under mu
	job     atomic.Pointer[func()] // nil when it is done
	posted  int                    // eventfd: there is a job
	done    int                    // eventfd: it is done
}

// jobEvent is the number of the posted event among those of the lines.
const jobEvent = -1

func openLoop(o *Options) (*loop, error) {
	p := &loop{ports: o.Ports, start: time.Now()}
	var err error
	if p.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	if p.posted, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	if p.done, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	if err := p.watch(p.posted, jobEvent, unix.EPOLLIN); err != nil {
		return nil, err
	}
	rings, err := openRings(o.Links)
	if err != nil {
		return nil, err
	}
	for i, link := range o.Links {
		a, b := rings[2*i], rings[2*i+1]
		for _, l := range []*line{
			newLine(a, b, link.Params, newShaper(o.Seed, link.Name+"/ab")),
			newLine(b, a, link.Params, newShaper(o.Seed, link.Name+"/ba")),
		} {
			// Edge-triggered: a waiting frame keeps the socket readable.
			if err := p.watch(l.in.fd, len(p.lines), unix.EPOLLIN|unix.EPOLLET); err != nil {
				return nil, err
			}
			if link.Pairs {
				l.pairs = new(pairs)
			}
			p.lines = append(p.lines, l)
			p.due = append(p.due, never)
		}
	}
	p.events = make([]unix.EpollEvent, len(p.lines)+1)
	return p, nil
}

// openRings opens the rings at the ends of the links, A and B in turn. It does so
// side by side, as the kernel makes each one wait for all CPUs.
func openRings(links []Link) ([]*ring, error) {
	rings, errs := make([]*ring, 2*len(links)), make([]error, 2*len(links))
	var wg sync.WaitGroup
	for i, link := range links {
		for k, name := range []string{link.A, link.B} {
			wg.Go(func() { rings[2*i+k], errs[2*i+k] = openRing(name, link.slots()) })
		}
	}
	wg.Wait()
	return rings, errors.Join(errs...)
}

func (p *loop) watch(fd, event int, events uint32) error {
	ev := &unix.EpollEvent{Events: events, Fd: int32(event)}
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, ev); err != nil {
		return fmt.Errorf("watch for frames: %w", err)
	}
	return nil
}

// run moves frames until stop. It never gives its thread away.
func (p *loop) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // ns
	for !p.stopping {
		accepted := p.accept(p.wait())
		forwarded := p.forward()
		if accepted+forwarded > 0 {
			sleep(granularity)
		}
	}
}

// now is the time of the loop in ns, and origin its zero in ns of
// CLOCK_REALTIME. Only origin moves when the clock of the machine is set.
func (p *loop) now() (now, origin int64) {
	t := time.Now()
	now = int64(t.Sub(p.start))
	return now, t.UnixNano() - now
}

// wait returns what happened when a frame arrived or is due, or a job is posted.
func (p *loop) wait() []unix.EpollEvent {
	next := slices.Min(p.due)
	if next == never {
		// The loop is idle, and so may the Go scheduler be.
		n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.epoll), uintptr(unsafe.Pointer(&p.events[0])),
			uintptr(len(p.events)), ^uintptr(0), 0, 0)
		return p.happened(n, errno)
	}
	now, _ := p.now()
	p.timeout = unix.NsecToTimespec(max(0, next-int64(early)-now))
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(p.epoll), uintptr(unsafe.Pointer(&p.events[0])),
		uintptr(len(p.events)), uintptr(unsafe.Pointer(&p.timeout)), 0, 0)
	return p.happened(n, errno)
}

func (p *loop) happened(n uintptr, errno unix.Errno) []unix.EpollEvent {
	if errno != 0 { // a signal of the Go runtime
		return nil
	}
	return p.events[:n]
}

// accept reads the rings in which there is something new, does the job if there
// is one, and returns the number of frames.
func (p *loop) accept(events []unix.EpollEvent) (n int) {
	posted := false
	for _, ev := range events {
		if ev.Fd == jobEvent {
			posted = true
		} else {
			n += p.acceptFrom(int(ev.Fd))
		}
	}
	if posted {
		// What the job changes is for the frames that arrive from now on.
		for i := range p.lines {
			n += p.acceptFrom(i)
		}
		p.doJob()
	}
	return n
}

func (p *loop) acceptFrom(i int) int {
	now, origin := p.now()
	n := p.lines[i].accept(&p.ports, now, origin)
	p.due[i] = p.lines[i].due()
	return n
}

// forward sends all frames that are due and returns their number.
func (p *loop) forward() (n int) {
	now, _ := p.now()
	for i, due := range p.due {
		for due <= now+int64(early) {
			n += p.lines[i].forward(&p.batch, &p.late, now, int64(early))
			due = p.lines[i].due()
			p.due[i] = due
			now, _ = p.now()
		}
	}
	return n
}

// do runs f on the thread of the loop, after all frames that arrived before the
// call, and waits for it. f must neither allocate nor wait. It reports whether
// the loop still ran.
func (p *loop) do(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return false
	}
	p.job.Store(&f)
	signalEvent(p.posted)
	for p.job.Load() != nil {
		var count [8]byte
		unix.Read(p.done, count[:])
	}
	p.stopped = p.stopping
	return true
}

// doJob is the loop's half of do.
func (p *loop) doJob() {
	var count [8]byte
	unix.RawSyscall(unix.SYS_READ, uintptr(p.posted), uintptr(unsafe.Pointer(&count)), uintptr(len(count)))
	if f := p.job.Load(); f != nil {
		(*f)()
		p.job.Store(nil)
		signalEvent(p.done)
	}
}

// signalEvent adds one to an eventfd.
func signalEvent(fd int) {
	one := uint64(1)
	unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one))
}

// sleep uses the system call and not the timers of Go, which are rounded to 1 ms
// when the thread is idle.
func sleep(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
}
