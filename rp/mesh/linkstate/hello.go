// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"encoding/binary"
	"fmt"
	"time"
)

// HelloSize is the length of a hello in bytes. It fits the 20 bytes of a datagram's
// header that say what is published (offsets 28 to 47), of which a hello has nothing.
const HelloSize = 16

// Hello is what a datagram says that keeps a link up. All fields are big-endian:
//
//	off  size  field
//	0    4     Stamp: the sender's clock in microseconds, modulo 2^32
//	4    4     Echo: the newest stamp of the receiver
//	8    4     Hold: microseconds since that arrived
//	12   2     Interval: milliseconds until the next hello, 100 to 1000
//	14   1     flags: 1 tree edge, 2 answer at once, 4 link is up, 8 Echo is valid
//	15   1     Slack: units of 10 ms by which the sender may be late
type Hello struct {
	Stamp, Echo, Hold uint32
	Interval          uint16
	Slack             uint8
	Tree              bool // the sender has the link on a tree: both send often
	Poll              bool // the sender wants a hello at once
	Up                bool // the sender hears the receiver
	Echoes            bool // Echo and Hold are valid
}

func (h *Hello) flags() []*bool { return []*bool{&h.Tree, &h.Poll, &h.Up, &h.Echoes} }

// Append appends the hello's bytes.
func (h *Hello) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, h.Stamp)
	b = binary.BigEndian.AppendUint32(b, h.Echo)
	b = binary.BigEndian.AppendUint32(b, h.Hold)
	b = binary.BigEndian.AppendUint16(b, h.Interval)
	var flags byte
	for i, set := range h.flags() {
		if *set {
			flags |= 1 << i
		}
	}
	return append(b, flags, h.Slack)
}

// ParseHello parses a hello and checks its limits.
func ParseHello(b []byte) (h Hello, err error) {
	if len(b) != HelloSize {
		return h, fmt.Errorf("hello of %d bytes", len(b))
	}
	h = Hello{
		Stamp:    binary.BigEndian.Uint32(b),
		Echo:     binary.BigEndian.Uint32(b[4:]),
		Hold:     binary.BigEndian.Uint32(b[8:]),
		Interval: binary.BigEndian.Uint16(b[12:]),
		Slack:    b[15],
	}
	flags := h.flags()
	for i, set := range flags {
		*set = b[14]>>i&1 != 0
	}
	if b[14]>>len(flags) != 0 {
		return Hello{}, fmt.Errorf("hello with flags %02x", b[14])
	}
	if i := h.interval(); i < TreeInterval || i > Interval {
		return Hello{}, fmt.Errorf("hello with interval %v", i)
	}
	return h, nil
}

func (h *Hello) interval() time.Duration { return time.Duration(h.Interval) * time.Millisecond }

// slackUnit is the unit of Slack.
const slackUnit = 10 * time.Millisecond

func (h *Hello) slack() time.Duration { return time.Duration(h.Slack) * slackUnit }
