// SPDX-License-Identifier: LGPL-3.0-or-later

// Package events tells an operator what happens at a replication point while it
// happens. Nobody waits for a listener: one that reads too slowly misses events, and
// is told how many.
package events

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Kind is what happened.
type Kind string

// Kinds of events.
const (
	Join      Kind = "join"      // a peer asked for a session; its endpoint is being proven
	Admitted  Kind = "admitted"  // it is a member
	Refused   Kind = "refused"   // it did not become one
	Leave     Kind = "leave"     // a member is one no more
	Violation Kind = "violation" // a peer or an RP neighbour broke the protocol
	LinkUp    Kind = "link-up"   // datagrams flow to an RP neighbour
	LinkDown  Kind = "link-down" // its link ended
	Rekey     Kind = "rekey"     // the own group keys changed
	Route     Kind = "route"     // the way of an ingress RP's datagrams changed
	Lost      Kind = "lost"      // the listener missed Count events
)

// Event is something that happened. What does not apply is empty.
type Event struct {
	Time    time.Time `json:"time"`
	Kind    Kind      `json:"kind"`
	Node    string    `json:"node,omitempty"`    // devp2p node id, its first 8 bytes in hex
	Addr    string    `json:"addr,omitempty"`    // of the node
	Session string    `json:"session,omitempty"` // index in hex
	Count   uint64    `json:"count,omitempty"`
	Detail  string    `json:"detail,omitempty"` // a reason, or what else there is to know
}

// MaxListeners is the number of listeners that a Hub has at once.
const MaxListeners = 16

var (
	errTooMany = errors.New("too many listen already")
	errEnded   = errors.New("the listener is closed")
)

// Hub passes events to listeners. Its methods may be called concurrently, and Emit on
// a nil Hub, which has no listeners.
type Hub struct {
	mu        sync.Mutex
	listeners map[*Listener]struct{}
}

// NewHub returns a Hub without listeners.
func NewHub() *Hub { return &Hub{listeners: make(map[*Listener]struct{})} }

// Emit gives an event to all who listen. It does not block. An event without a time
// happens now.
func (h *Hub) Emit(e Event) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.listeners) == 0 {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	for l := range h.listeners {
		l.put(e)
	}
}

// Listen returns a Listener that gets what happens from now on, and keeps the newest
// size events, at least one, that were not read.
func (h *Hub) Listen(size int) (*Listener, error) {
	l := &Listener{hub: h, ring: make([]Event, max(1, size)), wake: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.listeners) >= MaxListeners {
		return nil, errTooMany
	}
	h.listeners[l] = struct{}{}
	return l, nil
}

// Listeners returns how many listen.
func (h *Hub) Listeners() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.listeners)
}

// Listener gets the events of a Hub. One goroutine reads it, and closes it.
type Listener struct {
	hub  *Hub
	wake chan struct{} // has an element when there may be something to read

	// These belong to Hub.mu.
	ring    []Event
	first   int // of the events that wait
	waiting int
	lost    uint64
	closed  bool
}

// put is called with Hub.mu held.
func (l *Listener) put(e Event) {
	if l.waiting == len(l.ring) {
		l.first = (l.first + 1) % len(l.ring)
		l.waiting--
		l.lost++
	}
	l.ring[(l.first+l.waiting)%len(l.ring)] = e
	l.waiting++
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Next returns the next event, and waits for it until ctx ends. Where events were
// lost it returns one of kind Lost.
func (l *Listener) Next(ctx context.Context) (Event, error) {
	for {
		if e, ok, err := l.take(); ok || err != nil {
			return e, err
		}
		select {
		case <-l.wake:
		case <-ctx.Done():
			return Event{}, context.Cause(ctx)
		}
	}
}

func (l *Listener) take() (e Event, ok bool, err error) {
	l.hub.mu.Lock()
	defer l.hub.mu.Unlock()
	switch {
	case l.closed:
		return e, false, errEnded
	case l.lost > 0:
		e = Event{Time: l.ring[l.first].Time, Kind: Lost, Count: l.lost}
		l.lost = 0
		return e, true, nil
	case l.waiting == 0:
		return e, false, nil
	}
	e = l.ring[l.first]
	l.ring[l.first] = Event{}
	l.first = (l.first + 1) % len(l.ring)
	l.waiting--
	return e, true, nil
}

// Close ends the listening.
func (l *Listener) Close() {
	l.hub.mu.Lock()
	defer l.hub.mu.Unlock()
	l.closed = true
	delete(l.hub.listeners, l)
}
