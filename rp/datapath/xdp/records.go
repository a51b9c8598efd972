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

// recordPoll is how often the ring buffers of datagrams are looked at: the programs wake
// nobody for them.
const recordPoll = 10 * time.Millisecond

// reader hands what stands in a ring buffer to a function.
type reader struct {
	ring *ringbuf.Reader
	poll time.Duration // 0: the programs wake it
	done chan struct{}

	mu      sync.Mutex
	waiting []chan struct{} // in drain, since the last turn
	passing []chan struct{} // in drain, since the one before
}

// read starts a reader.
func read(ring *ebpf.Map, poll time.Duration, f func([]byte)) (*reader, error) {
	rd, err := ringbuf.NewReader(ring)
	if err != nil {
		return nil, fmt.Errorf("read %v: %w", ring, err)
	}
	r := &reader{ring: rd, poll: poll, done: make(chan struct{})}
	go r.run(f)
	return r, nil
}

func (r *reader) run(f func([]byte)) {
	defer close(r.done)
	var raw ringbuf.Record
	r.pause()
	for {
		switch err := r.ring.ReadInto(&raw); {
		case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, ringbuf.ErrFlushed):
			r.turn()
			r.pause()
		case err != nil:
			return // closed
		default:
			f(raw.RawSample)
		}
	}
}

// pause sets the time of the next look at the ring.
func (r *reader) pause() {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case len(r.passing) > 0:
		r.ring.SetDeadline(time.Now())
	case r.poll > 0:
		r.ring.SetDeadline(time.Now().Add(r.poll))
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
		wanted bool
		f      func([]byte)
		reader **reader
	}{
		{e.objects.Cache, recordPoll, e.cfg.Cache != nil, records(e.cfg.Cache), &e.cache},
		{e.objects.Audit, recordPoll, e.opt.Audit != nil, records(e.opt.Audit), new(*reader)},
		{e.objects.Hellos, 0, e.cfg.Hello != nil, hellos(e.cfg.Hello), new(*reader)},
	} {
		if !o.wanted {
			continue
		}
		r, err := read(o.ring, o.poll, o.f)
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

// hellos returns what calls f with the struct hello of the programs.
func hellos(f func(uint32, [wire.HelloSize]byte)) func([]byte) {
	const header = unsafe.Offsetof(bpf.RpHello{}.Hello)
	return func(b []byte) {
		if len(b) >= int(header)+wire.HelloSize {
			f(native.Uint32(b), [wire.HelloSize]byte(b[header:]))
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
