// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// Terms are what an operator allows members. They may change while the Server runs, see
// SetTerms. They must not be changed in place.
type Terms struct {
	Lease time.Duration // of sessions on connections that begin from now on

	Rate, Burst uint32 // datagrams per second, and at once, that a peer may publish

	// Egress and EgressBurst limit the copies of what a peer publishes, see
	// datapath.Session.
	Egress, EgressBurst uint64

	// Limit is what the copies of everything may take together, bytes per second, 0 for
	// no limit. The engine sees to that. Nobody is granted more, and the RP is full when
	// one more member would leave less than a datagram per second.
	Limit uint64

	// Joiners and Publishers are those who may join, and of these those who may
	// publish; nil is everybody.
	Joiners, Publishers map[enode.ID]bool
}

// limit gives a session the limits of now.
func (t *Terms) limit(s *datapath.Session) {
	s.Rate, s.Burst = 0, 0
	if s.Publish {
		s.Rate, s.Burst = t.Rate, t.Burst
	}
	s.Egress, s.EgressBurst = t.Egress, t.EgressBurst
	if t.Limit != 0 && (s.Egress == 0 || t.Limit < s.Egress) {
		s.Egress, s.EgressBurst = t.Limit, max(1, t.Limit/4)
	}
}

func sameLimits(a, b *datapath.Session) bool {
	return a.Rate == b.Rate && a.Burst == b.Burst && a.Egress == b.Egress && a.EgressBurst == b.EgressBurst
}

// SetTerms changes the terms. Those of present members change, too: they have the new
// limits, and leave when they may not join or when what they may publish is another thing.
// It does not wait for them.
func (s *Server) SetTerms(t Terms) {
	s.terms.Store(&t)
	for _, c := range s.connections() {
		c.mail.post(c.renew)
	}
}

// renew gives a member the terms of now.
func (c *conn) renew(now time.Time) {
	if !c.live {
		return
	}
	session := c.session
	c.srv.terms.Load().limit(&session)
	err := c.listed()
	switch {
	case err != nil:
	case c.mayPublish(c.wants) != session.Publish:
		err = &proto.Error{Reason: proto.ReasonDenied, Detail: "who may publish has changed"}
	case !sameLimits(&session, &c.session):
		if err = c.srv.cfg.Engine.Apply(datapath.Change{Add: []datapath.Session{session}}); err == nil {
			c.session = session
		} else {
			c.log.Error("limits of a member not changed", "err", err)
			err = refusal(err)
		}
	}
	if err != nil {
		c.adm.Fail(err)
		c.perform(now)
	}
}

// End ends sessions for a reason, which the peers are told: members, and those that are
// about to be. It does not wait.
func (s *Server) End(sessions []ids.Session, reason *proto.Error) {
	if len(sessions) == 0 {
		return
	}
	ends := make(map[ids.Session]bool, len(sessions))
	for _, index := range sessions {
		ends[index] = true
	}
	for _, c := range s.connections() { // which index one reserved, it alone knows
		c.mail.post(func(now time.Time) {
			if c.index != 0 && ends[c.index] {
				c.adm.Fail(reason)
				c.perform(now)
			}
		})
	}
}
