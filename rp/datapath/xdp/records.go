// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

const (
	// recordPoll is how often the ring buffers of datagrams are looked at: the programs
	// wake nobody for them. While nothing comes, the time doubles up to recordPollMax.
	recordPoll    = 10 * time.Millisecond
	recordPollMax = 80 * time.Millisecond

	// helloRest is how long hellos are left alone after some were read, so that those of
	// many neighbours wake the process together. They say when they came.
	helloRest = 20 * time.Millisecond
)

// reader hands what stands in a ring buffer to a function.
type reader struct {
	ring *ringbuf.Reader
	poll time.Duration // until the first look; 0: the programs wake it
	rest time.Duration // after what was read
	done chan struct{}

	mu      sync.Mutex
	waiting []chan struct{} // in drain, since the last turn
	passing []chan struct{} // in drain, since the one before
}

// read starts a reader. It looks at the ring each poll, or is woken when poll is 0, and
// then rests after what it read.
func read(ring *ebpf.Map, poll, rest time.Duration, f func([]byte)) (*reader, error) {
	rd, err := ringbuf.NewReader(ring)
	if err != nil {
		return nil, fmt.Errorf("read %v: %w", ring, err)
	}
	r := &reader{ring: rd, poll: poll, rest: rest, done: make(chan struct{})}
	go r.run(f)
	return r, nil
}

func (r *reader) run(f func([]byte)) {
	defer close(r.done)
	var raw ringbuf.Record
	poll, some := r.poll, false
	r.pause(poll)
	for {
		switch err := r.ring.ReadInto(&raw); {
		case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, ringbuf.ErrFlushed):
			poll = min(2*poll, recordPollMax)
			if some {
				poll, some = r.poll, false
				time.Sleep(r.rest)
			}
			r.turn()
			r.pause(poll)
		case err != nil:
			return // closed
		default:
			f(raw.RawSample)
			if !some && r.rest > 0 {
				r.ring.SetDeadline(time.Now()) // read the rest, and do not wait
			}
			some = true
		}
	}
}

// pause sets the time of the next look at the ring.
func (r *reader) pause(poll time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case len(r.passing) > 0:
		r.ring.SetDeadline(time.Now())
	case poll > 0:
		r.ring.SetDeadline(time.Now().Add(poll))
	default:
		r.ring.SetDeadline(time.Time{})
	}
}

// turn notes that the ring was empty.
func (r *reader) turn() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, passed := range r.passing {
		close(passed)
	}
	r.passing, r.waiting = r.waiting, nil
}

// drain returns when the function has had what stands in the ring now. That is so when
// the ring was empty twice: the first time may have been before.
func (r *reader) drain() {
	passed := make(chan struct{})
	r.mu.Lock()
	r.waiting = append(r.waiting, passed)
	r.mu.Unlock()
	_ = r.ring.Flush() // else it takes until the next look
	select {
	case <-passed:
	case <-r.done:
	}
}

func (r *reader) close() {
	r.ring.Close()
	<-r.done
}

// openReaders starts the readers that somebody listens to.
func (e *Engine) openReaders() error {
	for _, o := range []struct {
		ring   *ebpf.Map
		poll   time.Duration
		rest   time.Duration
		wanted bool
		f      func([]byte)
		reader **reader
	}{
		{e.objects.Cache, recordPoll, 0, e.cfg.Cache != nil, records(e.cfg.Cache), &e.cache},
		{e.objects.Audit, recordPoll, 0, e.opt.Audit != nil, records(e.opt.Audit), new(*reader)},
		{e.objects.Hellos, 0, helloRest, e.cfg.Hello != nil, hellos(e.boot, e.cfg.Hello), new(*reader)},
	} {
		if !o.wanted {
			continue
		}
		r, err := read(o.ring, o.poll, o.rest, o.f)
		if err != nil {
			return err
		}
		*o.reader = r
		e.readers = append(e.readers, r)
	}
	return nil
}

// records returns what calls f with the struct record of the programs.
func records(f func(datapath.Record)) func([]byte) {
	const header = unsafe.Offsetof(bpf.RpRecord{}.Datagram)
	return func(b []byte) {
		if len(b) >= int(header) {
			f(datapath.NewRecord(native.Uint32(b), b[header:][:native.Uint32(b[4:])]))
		}
	}
}

// hellos returns what calls f with the struct hello of the programs, whose clock was zero
// at boot.
func hellos(boot time.Time, f func(uint32, [wire.HelloSize]byte, time.Time)) func([]byte) {
	const session, hello = unsafe.Offsetof(bpf.RpHello{}.Session), unsafe.Offsetof(bpf.RpHello{}.Hello)
	return func(b []byte) {
		if len(b) >= int(hello)+wire.HelloSize {
			now := time.Now()
			age := now.Sub(boot) - time.Duration(native.Uint64(b)) // not boot plus that: the date may have been set since
			f(native.Uint32(b[session:]), [wire.HelloSize]byte(b[hello:]), now.Add(-age))
		}
	}
}

// sample is the share of the audit as the programs compare it with a random number.
func (o *Options) sample() uint32 {
	if o.Audit == nil {
		return 0
	}
	return uint32(min(max(o.AuditShare, 0), 1) * math.MaxUint32)
}
