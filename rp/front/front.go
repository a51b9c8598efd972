// SPDX-License-Identifier: LGPL-3.0-or-later

// Package front is where the other nodes come in: it accepts the connections to the
// control port, runs the handshakes of RLPx, and lets a capability serve each connection.
// It is made for thousands of nodes that nobody knows: what they may take is bounded in
// all and for each prefix (Table), each state ends at a deadline, and what one of them
// claims takes no memory (package rlpx).
//
//	accept -> first bytes 3 s -> handshake and Hello 5 s -> served: without a session 10 to 60 s,
//	                                                        silent 30 s, a message 10 s, a write 5 s
//
// Trusted nodes, the other RPs that the operator named, count for no limit: by their
// address at accept, by their key after the handshake.
package front

import (
	"net/netip"

	"github.com/ethereum/go-ethereum/p2p/enode"
)

// Conn is a connection on which one capability is served. One goroutine may read while
// another one writes.
type Conn interface {
	// ID is the node at the other end, which proved it by its Hello.
	ID() enode.ID

	// Addr is the address that the connection comes from or goes to.
	Addr() netip.Addr

	// ReadMsg returns the next message of the capability. The payload belongs to the
	// caller. A message beyond the limit is *rlpx.SizeError. An error ends the connection.
	ReadMsg() (code uint64, payload []byte, err error)

	// WriteMsg sends a message and does not keep the payload. It takes 5 s at most. An
	// error ends the connection.
	WriteMsg(code uint64, payload []byte) error

	// SetSession says whether the node has a session now. Who has none is asked to
	// leave after some time, earlier when places run short, and can send but small
	// messages until the first session.
	SetSession(on bool)
}

// Protocol is a capability.
type Protocol struct {
	Name       string
	Version    uint
	Length     uint64 // message codes
	MaxMessage int    // bytes

	// Bounded says that the capability itself ends connections on which too much comes.
	// Messages of others are read at a pace, except those of trusted nodes.
	Bounded bool

	// Dialled says that the capability is served on connections that the Server made, too.
	Dialled bool

	// Allowed reports whether a node may be served; nil is everybody. It is asked when
	// the node is known, before anything of it is read.
	Allowed func(enode.ID) bool

	// Run serves a connection until it ends. Of the error that it returns the other
	// side is told the p2p.DiscReason, if there is one in it.
	Run func(Conn) error
}

// Reason is why a connection was refused or ended by the front.
type Reason uint8

// Reasons. Each is a label of a metric.
const (
	Taken          Reason = iota // it was not refused
	TooFast                      // the prefix connects too often
	Full64                       // the /64 has its number of connections
	Full48                       // the /48 has
	Full                         // all have, and the prefix is not one of the small ones
	FullHandshakes               // likewise of handshakes
	Displaced                    // a connection of a smaller prefix needed the place
	Silent                       // the handshake was not done in time
	BadHandshake                 // nor would it ever
	Banned                       // the address may not come in for some time
	Unlisted                     // the node may not be served
	Useless                      // no capability in common
	Duplicate                    // the node has a connection
	Idle                         // no session for too long
	Breach                       // of devp2p
	Host                         // no file descriptor or no memory
	reasons
)

func (r Reason) String() string {
	return [...]string{"taken", "too_fast", "full_64", "full_48", "full", "full_handshakes", "displaced", "silent", "bad_handshake",
		"banned", "unlisted", "useless", "duplicate", "idle", "breach", "host"}[r]
}

// Reasons returns all reasons for which a connection is refused or ended.
func Reasons() (all []Reason) {
	for r := Taken + 1; r < reasons; r++ {
		all = append(all, r)
	}
	return all
}

// Stats counts connections. Those of trusted nodes are RP neighbours, all others are
// strangers, with or without a session.
type Stats struct {
	Strangers  int // at present, those that shake hands among them
	Handshakes int // of strangers, under way
	Idle       int // strangers without a session, handshakes not counted
	Neighbours int // at present
	Accepted   uint64
	Delayed    uint64            // messages of strangers who send faster than they are read
	Refused    map[Reason]uint64 // or ended by the front; has all reasons
}
