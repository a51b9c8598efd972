// SPDX-License-Identifier: LGPL-3.0-or-later

package socket

import (
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
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

	datagrams, copies datapath.Policer // of what comes from it
	site              *site            // whose share it uses, nil for none
}

// site has a share of what all copies may take. Its bucket is the due of its policer.
type site = datapath.Place[*share]

type share struct {
	datapath.Policer
	due uint64 // ns on the table's clock
}

// sessionState is what moves while datagrams pass.
type sessionState struct {
	window       auth.Window   // of a peer's own sequences, or an RP neighbour's hellos
	beats        auth.Beats    // of an RP neighbour's heartbeats
	hellos       uint64        // sent
	datagramsDue uint64        // of the policers, ns on the table's clock
	copiesDue    uint64        //
	received     uint64        // datagrams accepted
	heard        time.Duration // last accepted datagram, on the table's clock
	copies       atomic.Uint64 // datagrams sent
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
	next.datagrams, next.copies = s.Policers()
	return next
}

// has reports whether the session has the group.
func (s *session) has(group ids.Group) bool { return slices.Contains(s.Groups, group) }

// seal makes a header the session's own: its index, its hop tag.
func (s *session) seal(header *[wire.HeaderSize]byte) {
	wire.SetSession(header[:], s.SendSession)
	wire.SetHopTag(header[:], s.SendKey.HopTag(header[:]))
}

// conforms reports whether the policers let a datagram from a session pass now. It is the
// share of the session's site that lets it pass when the bucket of all copies spares nothing.
func (t *table) conforms(s *session, now time.Duration) (ok, shares bool) {
	if !s.datagrams.Conforms(s.state.datagramsDue, uint64(now)) || !s.copies.Conforms(s.state.copiesDue, uint64(now)) ||
		!t.copies.Conforms(t.due, uint64(now)) {
		return false, false
	}
	if t.copies.Spares(t.due, uint64(now)) {
		return true, false
	}
	return s.site.Bucket.Conforms(s.site.Bucket.due, uint64(now)), true
}

// charge accounts for a datagram from a session that passes and goes out in bytes of copies.
func (t *table) charge(s *session, now time.Duration, copies int, shares bool) {
	s.state.datagramsDue = s.datagrams.Charge(s.state.datagramsDue, uint64(now), 1)
	s.state.copiesDue = s.copies.Charge(s.state.copiesDue, uint64(now), uint64(copies))
	t.due = t.copies.Charge(t.due, uint64(now), uint64(copies))
	if shares {
		s.site.Bucket.due = s.site.Bucket.Charge(s.site.Bucket.due, uint64(now), uint64(copies))
	}
}

// share makes the policers of the sites' shares those of now.
func (t *table) share() {
	for p := range t.sites.All() {
		p.Bucket.Policer = t.sites.Share(p.Site, t.egress, t.egressBurst)
	}
}
