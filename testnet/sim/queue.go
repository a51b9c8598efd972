// SPDX-License-Identifier: LGPL-3.0-or-later

package sim

import (
	"time"

	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
)

// event is something that happens at a time.
type event struct {
	at    time.Duration // since the start
	order uint64        // among those of the same time
	kind  kind
	to    int32 // RP
	from  int32
	life  int32 // of the connection, or of the RP

	sequence uint32 // of a datagram
	stream   int32
	replayed bool

	hello   linkstate.Hello
	message linkstate.Message
	do      func()
}

type kind uint8

const (
	wake kind = iota
	hello
	message
	data
	call
)

// queue is a heap of events.
type queue struct {
	events []*event
	free   []*event
	order  uint64
}

func (q *queue) less(i, j int) bool {
	a, b := q.events[i], q.events[j]
	return a.at < b.at || a.at == b.at && a.order < b.order
}

// push adds an event and returns it to be filled.
func (q *queue) push(at time.Duration, k kind) *event {
	var e *event
	if n := len(q.free); n > 0 {
		e = q.free[n-1]
		q.free = q.free[:n-1]
		*e = event{}
	} else {
		e = new(event)
	}
	q.order++
	e.at, e.order, e.kind = at, q.order, k
	q.events = append(q.events, e)
	for i := len(q.events) - 1; i > 0; {
		up := (i - 1) / 2
		if !q.less(i, up) {
			break
		}
		q.events[i], q.events[up] = q.events[up], q.events[i]
		i = up
	}
	return e
}

// pop removes the first event, nil when there is none. It is valid until release.
func (q *queue) pop() *event {
	if len(q.events) == 0 {
		return nil
	}
	first, last := q.events[0], len(q.events)-1
	q.events[0] = q.events[last]
	q.events = q.events[:last]
	for i := 0; ; {
		next := 2*i + 1
		if next+1 < last && q.less(next+1, next) {
			next++
		}
		if next >= last || !q.less(next, i) {
			return first
		}
		q.events[i], q.events[next] = q.events[next], q.events[i]
		i = next
	}
}

func (q *queue) release(e *event) { q.free = append(q.free, e) }
