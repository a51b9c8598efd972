// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/events"
)

// token returns what proves later that this RP admitted a session: a MAC that the RP
// can compute again without a memory of it (SPEC 7.10). It is zero when nothing
// outlives the process.
func (s *Server) token(id enode.ID, session ids.Session, endpoint netip.AddrPort) (t proto.Token) {
	if s.cfg.ResumeKey == nil {
		return proto.Token{}
	}
	mac := hmac.New(sha256.New, s.cfg.ResumeKey)
	addr := endpoint.Addr().As16()
	b := binary.BigEndian.AppendUint32(nil, uint32(s.cfg.Status.Incarnation))
	b = binary.BigEndian.AppendUint32(b, uint32(session))
	b = append(b, addr[:]...)
	b = binary.BigEndian.AppendUint16(b, endpoint.Port())
	mac.Write(append(b, id[:]...))
	copy(t[:], mac.Sum(nil))
	return t
}

// readmit goes on with a session of the datapath that this RP took over.
func (c *conn) readmit(now time.Time, m *proto.Resume) {
	session, err := c.claim(m)
	if err != nil {
		c.log.Debug("peer not resumed", "reason", err)
		c.srv.refused.Add(1)
		c.adm.Fail(err)
		return
	}
	groups := session.Groups
	if len(groups) == 0 {
		groups = m.Groups
	}
	c.wants = m.Publish
	if c.srv.cfg.Admit != nil { // the datapath serves it already: nothing is to be waited for
		_, c.ended = c.srv.cfg.Admit(session.Publish)
	}
	c.begin(session, groups)
	c.srv.resumed.Add(1)
	c.adm.Resumed(now, c.grant(), len(session.Groups) == 0)
	mode := proto.ModeUnicast
	if session.Silent {
		mode = proto.ModeSSM
	}
	c.noteSession(mode)
	c.emit(events.Admitted, "resumed")
	c.log.Info("peer resumed", "port", m.Port, "session", fmt.Sprintf("%08x", c.index), "standby", len(session.Groups) == 0)
}

// claim takes the session, and its index, if it is the peer's and still as it may be.
func (c *conn) claim(m *proto.Resume) (datapath.Session, error) {
	cfg := &c.srv.cfg
	unknown := func(why string) (datapath.Session, error) {
		return datapath.Session{}, &proto.Error{Reason: proto.ReasonSession, Detail: why}
	}
	if err := c.mayJoin(); err != nil {
		return datapath.Session{}, err
	}
	endpoint := netip.AddrPortFrom(c.addr, m.Port)
	want := c.srv.token(c.id, m.Session, endpoint)
	switch {
	case cfg.ResumeKey == nil || !hmac.Equal(want[:], m.Token[:]):
		return unknown("wrong token")
	case cfg.Adopted == nil:
		return unknown("no session is older than this process")
	}
	session, ok := cfg.Adopted.Claim(func(s datapath.Session) bool {
		return s.Index == m.Session && s.Role == datapath.Peer && s.Addr == endpoint
	})
	if !ok {
		return unknown("the datapath does not have it")
	}
	drop := func(why string) (datapath.Session, error) {
		if err := cfg.Engine.Apply(datapath.Change{Remove: []ids.Session{session.Index}}); err != nil {
			c.log.Error("session not removed", "err", err)
		}
		return unknown(why)
	}
	slices.Sort(session.Groups)
	if session.Publish != c.mayPublish(m.Publish) || len(session.Groups) > 0 && !slices.Equal(session.Groups, m.Groups) {
		return drop("it is another than wanted now")
	}
	if err := cfg.Members.Restore(session.Index, c.addr); err != nil {
		return drop(err.Error())
	}
	c.index = session.Index
	if session.Silent {
		if err := c.resumeChannel(session.Groups[0]); err != nil {
			cfg.Members.Release(c.index)
			c.index = 0
			return drop(err.Error())
		}
	}
	limited := session
	if c.srv.terms.Load().limit(&limited); !sameLimits(&limited, &session) {
		if err := cfg.Engine.Apply(datapath.Change{Add: []datapath.Session{limited}}); err != nil {
			c.leaveChannel()
			cfg.Members.Release(c.index)
			c.index = 0
			return drop(err.Error())
		}
	}
	return limited, nil
}

func (c *conn) resumeChannel(group ids.Group) error {
	if c.srv.cfg.Link == nil {
		return fmt.Errorf("delivery mode ssm is not offered any more")
	}
	link, err := c.srv.cfg.Link(c.addr)
	if err != nil {
		return err
	}
	id := channelID{group, link}
	if _, err := c.srv.channels.resume(id); err != nil {
		return err
	}
	c.link, c.channel = link, &id
	return nil
}
