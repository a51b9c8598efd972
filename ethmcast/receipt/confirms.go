// SPDX-License-Identifier: LGPL-3.0-or-later

// Package receipt is a peer's part of receipts (SPEC 7.15): what it confirms as a
// subscriber, and what it learns as a publisher. It does no I/O and has no clock.
package receipt

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// Limits of SPEC section 11.
const (
	MaxWaiting = 256             // datagrams that ask about objects which are not complete
	MaxWait    = 5 * time.Second // for these objects, as long as reassembly waits
)

// Confirms collects what is to be confirmed, for a random time: so that one message
// takes several, and the messages of many peers do not come at once.
type Confirms struct {
	rand    *rand.Rand
	waiting []waiting // oldest first
	ready   []proto.Place
	due     time.Time // of ready, zero when there is none
}

type waiting struct {
	object uint64
	place  proto.Place
	until  time.Time
}

// NewConfirms returns Confirms without any.
func NewConfirms(rng *rand.Rand) *Confirms { return &Confirms{rand: rng} }

// Asked takes the place of a datagram that asks about the object with an id, which the
// peer has already or not. What finds no room is not confirmed.
func (c *Confirms) Asked(now time.Time, object uint64, place proto.Place, has bool) {
	if has {
		c.confirm(now, place)
		return
	}
	c.expire(now)
	if len(c.waiting) < MaxWaiting {
		c.waiting = append(c.waiting, waiting{object, place, now.Add(MaxWait)})
	}
}

// Delivered says that the peer has an object now.
func (c *Confirms) Delivered(now time.Time, object uint64) {
	c.expire(now)
	c.waiting = slices.DeleteFunc(c.waiting, func(w waiting) bool {
		if w.object == object {
			c.confirm(now, w.place)
		}
		return w.object == object
	})
}

func (c *Confirms) confirm(now time.Time, place proto.Place) {
	if len(c.ready) == proto.MaxPlaces || slices.Contains(c.ready, place) {
		return
	}
	if c.ready = append(c.ready, place); c.due.IsZero() {
		c.due = now.Add(proto.MinConfirm + time.Duration(c.rand.Int64N(int64(proto.MaxConfirm-proto.MinConfirm))))
	}
}

func (c *Confirms) expire(now time.Time) {
	c.waiting = slices.DeleteFunc(c.waiting, func(w waiting) bool { return !now.Before(w.until) })
}

// Tick returns what is to be confirmed now, nil for nothing.
func (c *Confirms) Tick(now time.Time) []proto.Place {
	if c.due.IsZero() || now.Before(c.due) {
		return nil
	}
	ready := c.ready
	c.ready, c.due = nil, time.Time{}
	return ready
}

// Deadline returns when Tick is due next, zero for never.
func (c *Confirms) Deadline() time.Time { return c.due }
