// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// Session is a member as an operator sees it.
type Session struct {
	Index   uint32
	Node    enode.ID
	Addr    netip.AddrPort // of its datagrams
	Groups  []uint32       // none in standby; not to be changed
	Mode    proto.DeliveryMode
	Publish bool
	Lease   time.Time // when it ends unless the peer announces itself
}

// sessions are the members. Each belongs to the connection that notes it.
type sessions struct {
	mu sync.Mutex
	by map[uint32]Session
}

// note keeps what a session is now.
func (s *sessions) note(session Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = make(map[uint32]Session)
	}
	s.by[session.Index] = session
}

// extend notes that the lease of a session began anew.
func (s *sessions) extend(index uint32, lease time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if session, ok := s.by[index]; ok {
		session.Lease = lease
		s.by[index] = session
	}
}

// forget removes a session.
func (s *sessions) forget(index uint32) {
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
