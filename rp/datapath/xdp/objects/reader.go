// SPDX-License-Identifier: LGPL-3.0-or-later

package objects

import (
	"fmt"
	"math"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

const (
	// recordPoll is how often the ring buffers of datagrams are looked at: the programs
	// wake nobody for them. While nothing comes, the time doubles up to recordPollMax.
	recordPoll    = 10 * time.Millisecond
	recordPollMax = 160 * time.Millisecond

	// HelloRest is how long hellos are left alone after some were read, so that those of
	// many RP neighbours wake the process together. They say when they came.
	HelloRest = 20 * time.Millisecond
)

// Reader hands what stands in a ring buffer to a function, in a goroutine of its own, until
// Close. It never waits in a system call: the scheduler of Go looks after each such thread many
// times in the first milliseconds.
type Reader struct {
	ring *ringbuf.Reader // closed when the goroutine has ended
	quit chan struct{}   // closed to end it
	done chan struct{}

	poll  time.Duration // until the first look; 0: the programs wake it
	flush chan struct{} // to look at once

	wake *os.File      // the ring, for the poller of Go; nil with poll
	rest time.Duration // after what was read

	mu      sync.Mutex
	waiting []chan struct{} // in Drain, since the last turn
	passing []chan struct{} // in Drain, since the turn before
}

func newReader(ring *ebpf.Map) (*Reader, error) {
	rd, err := ringbuf.NewReader(ring)
	if err != nil {
		return nil, fmt.Errorf("read %v: %w", ring, err)
	}
	rd.SetDeadline(time.Now()) // reads do not wait
	return &Reader{ring: rd, quit: make(chan struct{}), done: make(chan struct{}), flush: make(chan struct{}, 1)}, nil
}

// ReadPolled starts a reader that looks at the ring from time to time. f must not keep what it gets.
func ReadPolled(ring *ebpf.Map, f func([]byte)) (*Reader, error) {
	r, err := newReader(ring)
	if err != nil {
		return nil, err
	}
	r.poll = recordPoll
	go r.runPolled(f)
	return r, nil
}

// ReadWoken starts a reader that the programs wake, and that rests after what it read. f must not
// keep what it gets.
func ReadWoken(ring *ebpf.Map, rest time.Duration, f func([]byte)) (*Reader, error) {
	fd, err := unix.FcntlInt(uintptr(ring.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("read %v: %w", ring, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // what os.NewFile has the poller look after
		unix.Close(fd)
		return nil, fmt.Errorf("read %v: %w", ring, err)
	}
	wake := os.NewFile(uintptr(fd), "ring buffer")
	conn, err := wake.SyscallConn()
	if err != nil {
		wake.Close()
		return nil, fmt.Errorf("read %v: %w", ring, err)
	}
	r, err := newReader(ring)
	if err != nil {
		wake.Close()
		return nil, err
	}
	r.wake, r.rest = wake, rest
	go r.runWoken(conn, f)
	return r, nil
}

func (r *Reader) runPolled(f func([]byte)) {
	defer close(r.done)
	poll := r.poll
	for {
		n := r.read(f, r.ring.AvailableBytes())
		if poll = min(2*poll, recordPollMax); n > 0 {
			poll = r.poll
		}
		wait := poll
		if r.turn() || n > 0 && r.ring.AvailableBytes() > 0 {
			wait = 0
		}
		select {
		case <-time.After(wait):
		case <-r.flush:
		case <-r.quit:
			return
		}
	}
}

func (r *Reader) runWoken(conn syscall.RawConn, f func([]byte)) {
	defer close(r.done)
	_ = conn.Read(func(uintptr) (closed bool) { // waits after each call
		if r.read(f, math.MaxInt) > 0 { // the programs wake only who has read all
			time.Sleep(r.rest)
		}
		return false
	})
}

// read hands out what stands in the ring, until that is empty or some bytes of it were read. It
// returns the number of records.
func (r *Reader) read(f func([]byte), most int) (n int) {
	const header, align = unix.BPF_RINGBUF_HDR_SZ, 8
	var raw ringbuf.Record
	for taken := 0; taken < most; n++ {
		select {
		case <-r.quit:
			return n
		default:
		}
		if r.ring.ReadInto(&raw) != nil {
			return n // no more
		}
		f(raw.RawSample)
		taken += (header + len(raw.RawSample) + align - 1) / align * align
	}
	return n
}

// turn notes that the ring was gone through, and returns whether somebody waits that it is so
// once more.
func (r *Reader) turn() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, passed := range r.passing {
		close(passed)
	}
	r.passing, r.waiting = r.waiting, nil
	return len(r.passing) > 0
}

// Drain returns when the function has had what stands in the ring now, whatever comes meanwhile.
// That is so when the ring was gone through twice: the first time may have begun before.
func (r *Reader) Drain() {
	passed := make(chan struct{})
	r.mu.Lock()
	r.waiting = append(r.waiting, passed)
	r.mu.Unlock()
	r.look()
	select {
	case <-passed:
	case <-r.done:
	}
}

// look has a polled ring looked at.
func (r *Reader) look() {
	select {
	case r.flush <- struct{}{}:
	default:
	}
}

// Close ends the goroutine.
func (r *Reader) Close() {
	close(r.quit)
	if r.wake != nil {
		r.wake.Close()
	}
	<-r.done
	r.ring.Close()
}

// Records returns what calls f with the struct record of the programs.
func Records(f func(datapath.Record)) func([]byte) {
	const header = unsafe.Offsetof(bpf.RpRecord{}.Datagram)
	return func(b []byte) {
		if len(b) >= int(header) {
			f(datapath.NewRecord(ids.Session(native.Uint32(b)), b[header:][:native.Uint32(b[4:])]))
		}
	}
}

// Hellos returns what calls f with the struct hello of the programs, whose clock was zero
// at boot.
func Hellos(boot time.Time, f func(ids.Session, [wire.HelloSize]byte, time.Time)) func([]byte) {
	const session, hello = unsafe.Offsetof(bpf.RpHello{}.Session), unsafe.Offsetof(bpf.RpHello{}.Hello)
	return func(b []byte) {
		if len(b) >= int(hello)+wire.HelloSize {
			now := time.Now()
			age := now.Sub(boot) - time.Duration(native.Uint64(b)) // not boot plus that: the date may have been set since
			f(ids.Session(native.Uint32(b[session:])), [wire.HelloSize]byte(b[hello:]), now.Add(-age))
		}
	}
}
