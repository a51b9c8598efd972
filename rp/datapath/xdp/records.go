// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"errors"
	"fmt"
	"math"
	"os"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/ethmcast/mdcs/bpf"
)

// recordPoll is how often the ring buffers are looked at: the programs wake nobody.
const recordPoll = 10 * time.Millisecond

// Record is a copy of a DATA that is replicated: with its stamp, but with the session
// and the hop tag that it came with. Datagram is valid until the function that gets it returns.
type Record struct {
	Session  uint32 // that it came from
	Datagram []byte
}

// reader hands the records of a ring buffer to a function.
type reader struct {
	ring *ringbuf.Reader
	done chan struct{}
}

// read starts a reader.
func read(ring *ebpf.Map, f func(Record)) (*reader, error) {
	rd, err := ringbuf.NewReader(ring)
	if err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	r := &reader{rd, make(chan struct{})}
	go r.run(f)
	return r, nil
}

func (r *reader) run(f func(Record)) {
	defer close(r.done)
	const header = unsafe.Offsetof(bpf.RpRecord{}.Datagram)
	var raw ringbuf.Record
	for {
		r.ring.SetDeadline(time.Now().Add(recordPoll))
		err := r.ring.ReadInto(&raw)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			return // closed
		case len(raw.RawSample) >= int(header):
			b := raw.RawSample
			f(Record{native.Uint32(b), b[header:][:native.Uint32(b[4:])]})
		}
	}
}

func (r *reader) close() {
	r.ring.Close()
	<-r.done
}

// openReaders starts the readers that the options ask for.
func (e *Engine) openReaders() error {
	for _, o := range []struct {
		ring *ebpf.Map
		f    func(Record)
	}{{e.objects.Cache, e.opt.Cache}, {e.objects.Audit, e.opt.Audit}} {
		if o.f == nil {
			continue
		}
		r, err := read(o.ring, o.f)
		if err != nil {
			return err
		}
		e.readers = append(e.readers, r)
	}
	return nil
}

// sample is the share of the audit as the programs compare it with a random number.
func (o *Options) sample() uint32 {
	if o.Audit == nil {
		return 0
	}
	return uint32(min(max(o.AuditShare, 0), 1) * math.MaxUint32)
}
