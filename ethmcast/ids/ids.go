// SPDX-License-Identifier: LGPL-3.0-or-later

// Package ids has the numbers by which the parts of mDCS name things (SPEC 1): one type each, so
// that the compiler finds a group that stands where a session index belongs.
//
// It is a package of its own below wire, because keys, messages, members and routes are named by
// these numbers too, and have nothing to do with datagrams. It imports nothing but the standard
// library. In RLP, in JSON and on the wire the types are the numbers that they are made of.
package ids

import (
	"cmp"
	"fmt"
)

// Session is a session index: the end that receives datagrams hands it out, and they carry it. 0 is none.
type Session uint32

// Incarnation is one life of the datapath of an RP: the RP draws it when its datapath begins, and stamps
// it as ingress RP. 0 is none.
type Incarnation uint32

// Group is a group id: the first 4 bytes of a hash, as a big-endian number (proto.GroupID).
type Group uint32

// Stream names the datagrams that one ingress RP stamped in one group: one space of sequences.
type Stream struct {
	Ingress Incarnation
	Group   Group
}

// String returns both numbers in hex: "00abcdef/f1020304".
func (s Stream) String() string { return fmt.Sprintf("%08x/%08x", uint32(s.Ingress), uint32(s.Group)) }

// Compare orders streams by ingress RP, then by group, as cmp.Compare does.
func (s Stream) Compare(o Stream) int {
	return cmp.Or(cmp.Compare(s.Ingress, o.Ingress), cmp.Compare(s.Group, o.Group))
}
