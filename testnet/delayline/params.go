// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"errors"
	"fmt"
	"time"
)

// Params is what a link does to frames, the same in both directions.
//
// A frame that arrives is lost with probability Loss. It then waits until the
// rate has served the frames before it, and is lost if that takes longer than
// Queue; takes its length, with the Ethernet header, divided by Rate to be sent;
// and arrives Delay later, plus up to Jitter. Frames keep their order in each
// direction, also with jitter: one that drew a short delay leaves at once after
// the one before it.
type Params struct {
	Delay     time.Duration `json:"delay_ns"`
	Jitter    time.Duration `json:"jitter_ns"`  // evenly distributed between 0 and this
	Rate      uint64        `json:"rate_bit_s"` // 0: unlimited
	Loss      float64       `json:"loss"`       // share of frames, 0..1
	Queue     time.Duration `json:"queue_ns"`   // longest wait for the rate, 0: [DefaultQueue]
	Blackhole bool          `json:"blackhole"`  // all frames are lost, and both ends keep their carrier
}

// DefaultQueue is the longest wait for the rate where none is given.
const DefaultQueue = 50 * time.Millisecond

func (p Params) queue() time.Duration {
	if p.Queue == 0 {
		return DefaultQueue
	}
	return p.Queue
}

func (p Params) validate() error {
	switch {
	case p.Delay < 0:
		return fmt.Errorf("delay %s is negative", p.Delay)
	case p.Jitter < 0:
		return fmt.Errorf("jitter %s is negative", p.Jitter)
	case p.Queue < 0:
		return fmt.Errorf("queue %s is negative", p.Queue)
	case !(p.Loss >= 0 && p.Loss <= 1): // also refuses NaN
		return fmt.Errorf("loss %v is no share between 0 and 1", p.Loss)
	}
	return nil
}

// Link joins two interfaces of the namespace.
type Link struct {
	Name   string `json:"name"` // for [Wire.Set] and [Wire.Counters]
	A      string `json:"a"`    // interface
	B      string `json:"b"`    // interface
	Params `json:"params"`

	// Slots is how many frames may be under way in each direction, a multiple of
	// 64; 0 chooses it from the parameters, see the package comment.
	Slots int `json:"slots"`

	// Pairs has the control traffic counted by source and destination; see [Wire.Pairs].
	Pairs bool `json:"pairs,omitempty"`
}

// Options is what the wire is started with.
type Options struct {
	Links []Link `json:"links"`
	Seed  uint64 `json:"seed"` // of loss and jitter
	Ports Ports  `json:"ports"`
}

func (o *Options) validate() error {
	if len(o.Links) == 0 {
		return errors.New("no links")
	}
	names, interfaces := make(map[string]bool), make(map[string]bool)
	for _, l := range o.Links {
		if l.Name == "" || names[l.Name] {
			return fmt.Errorf("link %q: no name, or a name used before", l.Name)
		}
		names[l.Name] = true
		for _, end := range []string{l.A, l.B} {
			if end == "" || interfaces[end] {
				return fmt.Errorf("link %s: interface %q is empty or used before", l.Name, end)
			}
			interfaces[end] = true
		}
		if err := l.validate(); err != nil {
			return fmt.Errorf("link %s: %w", l.Name, err)
		}
		if l.Slots < 0 || l.Slots%slotsPerBlock != 0 {
			return fmt.Errorf("link %s: %d slots are no multiple of %d", l.Name, l.Slots, slotsPerBlock)
		}
	}
	return nil
}

// What the choice of [Link.Slots] assumes.
const (
	assumedRate  = 400e6 // bit/s, of a link without one
	assumedFrame = 1000  // bytes
	minSlots     = 512
	maxSlots     = 4096
)

// slots is the size of each of the two rings of the link.
func (l Link) slots() int {
	if l.Slots != 0 {
		return l.Slots
	}
	stay, rate := l.Delay+l.Jitter, float64(assumedRate)
	if l.Rate > 0 {
		stay += l.queue()
		rate = float64(l.Rate)
	}
	frames := min(max(stay.Seconds()*rate/(8*assumedFrame), minSlots), maxSlots)
	blocks := (int(frames) + slotsPerBlock - 1) / slotsPerBlock
	return blocks * slotsPerBlock
}
