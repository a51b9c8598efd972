// SPDX-License-Identifier: LGPL-3.0-or-later

package socket

import (
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// session is a Session in the table. What a sender needs of it never changes: a
// replacement is another session that may share the state.
type session struct {
	datapath.Session
	dst     net.Addr // Addr as the socket wants it
	control []byte   // control message that goes with each datagram, nil for none
	state   *sessionState
	removed bool // from the table; of no concern to a sender
}

// sessionState is what moves while datagrams pass.
type sessionState struct {
	window   auth.Window   // of a peer's own sequences
	policer  policer       // of a publisher
	received uint64        // datagrams accepted
	heard    time.Duration // last accepted datagram, on the table's clock
	copies   atomic.Uint64 // datagrams sent
}

func newSession(s datapath.Session, old *session) *session {
	s.Groups = slices.Clone(s.Groups)
	dst, control := datapath.Destination(s.Addr)
	next := &session{Session: s, dst: net.UDPAddrFromAddrPort(dst), control: control}
	if old != nil && old.ReceiveKey == s.ReceiveKey {
		next.state = old.state
	} else {
		next.state = new(sessionState)
	}
	next.state.policer.set(s.Rate, s.Burst)
	return next
}

// has reports whether the session has the group.
func (s *session) has(group uint32) bool { return slices.Contains(s.Groups, group) }

// seal makes a header the session's own: its index, its hop tag.
func (s *session) seal(header *[wire.HeaderSize]byte) {
	wire.SetSession(header[:], s.SendSession)
	wire.SetHopTag(header[:], s.SendKey.HopTag(header[:]))
}

// policer admits a rate of datagrams with a burst, by the generic cell rate
// algorithm: due is when the bucket would be full again.
type policer struct {
	interval  time.Duration // between datagrams at the granted rate
	tolerance time.Duration // how far due may lie in the future
	due       time.Duration
}

func (p *policer) set(rate, burst uint32) {
	if rate == 0 || burst == 0 {
		return
	}
	p.interval = time.Second / time.Duration(rate)
	p.tolerance = time.Duration(burst-1) * p.interval
}

// conforms reports whether a datagram may pass now.
func (p *policer) conforms(now time.Duration) bool { return p.due-now <= p.tolerance }

// take accounts for a datagram that passes.
func (p *policer) take(now time.Duration) { p.due = max(p.due, now) + p.interval }
