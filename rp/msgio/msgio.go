// SPDX-License-Identifier: LGPL-3.0-or-later

// Package msgio reads and writes the messages of one devp2p capability on one
// connection: bounded before they are read, queued so that a slow reader at the
// other end stops nobody but itself.
package msgio

import (
	"bytes"
	"fmt"
	"io"
	"time"

	"github.com/ethereum/go-ethereum/p2p"

	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// Read returns the next message. A message of more than limit bytes is dropped
// unread and returned as *proto.Error; every other error ends the connection.
func Read(r p2p.MsgReader, limit uint32) (code uint64, payload []byte, err error) {
	msg, err := r.ReadMsg()
	if err != nil {
		return 0, nil, err
	}
	if msg.Size > limit {
		if err := msg.Discard(); err != nil {
			return 0, nil, err
		}
		return 0, nil, &proto.Error{
			Reason: proto.ReasonMalformed,
			Detail: fmt.Sprintf("message 0x%02x of %d bytes", msg.Code, msg.Size),
		}
	}
	payload, err = io.ReadAll(msg.Payload)
	return msg.Code, payload, err
}

// Received is what a connection brought: a message, a violation (*proto.Error) or
// the error that ended it.
type Received[M any] struct {
	Message M
	Err     error
}

// Receive returns a channel of the messages of at most limit bytes, which decode
// makes. It is closed after the first error, or when done is closed.
func Receive[M any](r p2p.MsgReader, limit uint32, decode func(code uint64, payload []byte) (M, error), done <-chan struct{}) <-chan Received[M] {
	in := make(chan Received[M])
	go func() {
		defer close(in)
		for {
			var got Received[M]
			code, payload, err := Read(r, limit)
			if err != nil {
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

// Drain reads and drops messages until the connection ends.
func Drain(r p2p.MsgReader) error {
	for {
		msg, err := r.ReadMsg()
		if err != nil {
			return err
		}
		if err := msg.Discard(); err != nil {
			return err
		}
	}
}

// Outbox is the queue of messages to one connection and the goroutine that writes
// them.
type Outbox struct {
	queue chan message
	done  chan struct{} // closed when the writer has returned
}

type message struct {
	code    uint64
	payload []byte
}

// NewOutbox returns an Outbox for size messages. Close must be called.
func NewOutbox(w p2p.MsgWriter, size int) *Outbox {
	o := &Outbox{queue: make(chan message, size), done: make(chan struct{})}
	go o.write(w)
	return o
}

// write ends with the first error: the connection is lost then, and its reader
// notices.
func (o *Outbox) write(w p2p.MsgWriter) {
	defer close(o.done)
	for m := range o.queue {
		msg := p2p.Msg{Code: m.code, Size: uint32(len(m.payload)), Payload: bytes.NewReader(m.payload)}
		if w.WriteMsg(msg) != nil {
			return
		}
	}
}

// Send queues a message. It returns false, and drops it, when the queue is full.
func (o *Outbox) Send(code uint64, payload []byte) bool {
	select {
	case o.queue <- message{code, payload}:
		return true
	default:
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
