// SPDX-License-Identifier: LGPL-3.0-or-later

// Package msgio takes the messages of one connection apart and queues those to it, so
// that a slow reader at the other end stops nobody but itself.
package msgio

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/front"
	"github.com/ethmcast/mdcs/rp/front/rlpx"
)

// Received is what a connection brought: a message, a violation (proto.IsViolation) or
// the error that ended it.
type Received[M any] struct {
	Message M
	Err     error
}

// Receive returns a channel of the messages, which decode makes. A message beyond the
// limit of the connection is a violation. The channel is closed after the first error, or
// when done is closed.
func Receive[M any](r front.Conn, decode func(code uint64, payload []byte) (M, error), done <-chan struct{}) <-chan Received[M] {
	in := make(chan Received[M])
	go func() {
		defer close(in)
		for {
			var got Received[M]
			code, payload, err := r.ReadMsg()
			if size, too := errors.AsType[*rlpx.SizeError](err); too {
				got.Err = &proto.Error{Reason: proto.ReasonMalformed, Detail: size.Error()}
			} else if err != nil {
				got.Err = err
			} else {
				got.Message, got.Err = decode(code, payload)
			}
			select {
			case in <- got:
			case <-done:
				return
			}
			if got.Err != nil {
				return
			}
		}
	}()
	return in
}

// Outbox is the queue of messages to one connection and the goroutine that writes
// them.
type Outbox struct {
	queue  chan message
	queued atomic.Int64  // bytes
	most   int64         // of them
	done   chan struct{} // closed when the writer has returned
}

type message struct {
	code    uint64
	payload []byte
}

// NewOutbox returns an Outbox for size messages that have together no more than some
// bytes, beside a single larger one. Close must be called.
func NewOutbox(w front.Conn, size, bytes int) *Outbox {
	o := &Outbox{queue: make(chan message, size), most: int64(bytes), done: make(chan struct{})}
	go o.write(w)
	return o
}

// write ends with the first error: the connection is lost then, and its reader
// notices.
func (o *Outbox) write(w front.Conn) {
	defer close(o.done)
	for m := range o.queue {
		if w.WriteMsg(m.code, m.payload) != nil {
			return
		}
		o.queued.Add(-int64(len(m.payload)))
	}
}

// Send queues a message. It returns false, and drops it, when the queue is full.
func (o *Outbox) Send(code uint64, payload []byte) bool {
	size := int64(len(payload))
	if queued := o.queued.Add(size); queued > o.most && queued > size {
		o.queued.Add(-size)
		return false
	}
	select {
	case o.queue <- message{code, payload}:
		return true
	default:
		o.queued.Add(-size)
		return false
	}
}

// Close waits until what is queued was written, at most for the time given. No
// Send may follow.
func (o *Outbox) Close(wait time.Duration) {
	close(o.queue)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-o.done:
	case <-timer.C:
	}
}
