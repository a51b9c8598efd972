// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// Session is a member as an operator sees it.
type Session struct {
	Index   ids.Session
	Node    enode.ID
	Addr    netip.AddrPort // of its datagrams
	Groups  []ids.Group    // none in standby; not to be changed
	Mode    proto.DeliveryMode
	Publish bool
	Lease   time.Time // when it ends unless the peer announces itself
}

// member is a session of a connection, for other goroutines than the connection's.
type member struct {
	*conn
	index ids.Session
}

// errReplaced is why a session ends whose endpoint another session proved.
var errReplaced = &proto.Error{Reason: proto.ReasonQuit, Detail: "another session proved its endpoint"}

// replace ends the session that proved an endpoint, because a node proves it anew, and
// returns its index. Only a node that receives at the endpoint can prove it, and it would be
// served twice.
func (s *Server) replace(endpoint netip.AddrPort) (index ids.Session, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replaceLocked(endpoint)
}

func (s *Server) replaceLocked(endpoint netip.AddrPort) (index ids.Session, ok bool) {
	earlier, ok := s.endpoints[endpoint]
	if !ok {
		return 0, false
	}
	delete(s.endpoints, endpoint)
	earlier.mail.post(func(now time.Time) {
		if earlier.conn.index == earlier.index {
			earlier.adm.Fail(errReplaced)
			earlier.perform(now)
		}
	})
	return earlier.index, true
}

// enter notes whose session an index is, and that it has its endpoint.
func (s *Server) enter(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.members[c.index] == c {
		return
	}
	s.replaceLocked(c.session.Addr) // a session that was admitted at the same time
	s.members[c.index] = c
	s.endpoints[c.session.Addr] = member{c, c.index}
}

// exit forgets a session.
func (s *Server) exit(session ids.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.members[session]; c != nil {
		delete(s.members, session)
		if s.endpoints[c.session.Addr] == (member{c, session}) {
			delete(s.endpoints, c.session.Addr)
		}
	}
}

// sessions are the members. Each belongs to the connection that notes it.
type sessions struct {
	mu sync.Mutex
	by map[ids.Session]Session
}

// note keeps what a session is now.
func (s *sessions) note(session Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = make(map[ids.Session]Session)
	}
	s.by[session.Index] = session
}

// extend notes that the lease of a session began anew.
func (s *sessions) extend(index ids.Session, lease time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if session, ok := s.by[index]; ok {
		session.Lease = lease
		s.by[index] = session
	}
}

// forget removes a session.
func (s *sessions) forget(index ids.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.by, index)
}

// Sessions returns the members, ordered by index.
func (s *Server) Sessions() []Session {
	s.sessions.mu.Lock()
	all := make([]Session, 0, len(s.sessions.by))
	for _, session := range s.sessions.by {
		all = append(all, session)
	}
	s.sessions.mu.Unlock()
	slices.SortFunc(all, func(a, b Session) int { return cmp.Compare(a.Index, b.Index) })
	return all
}
