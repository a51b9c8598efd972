// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"fmt"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
)

const (
	maxHole       = 512  // how far behind the newest sequence a hole is asked for
	maxServed     = 1024 // datagrams of one group
	servesWaiting = 4096 // routes
	serveBatch    = 64
	servePause    = time.Millisecond
)

// serve is datagrams of the cache that a child or a peer misses.
type serve struct {
	session uint32
	ingress uint32
	marks   []linkstate.Mark
}

// Replay sends a session of the datapath what the cache has of the streams of marks and
// is newer than they are, as far as there is time for it. It does not wait.
func (s *Server) Replay(session uint32, marks []proto.Mark) {
	for _, m := range marks {
		select {
		case s.serves <- serve{session, m.Ingress, []linkstate.Mark{{Group: m.Group, Sequence: m.Sequence}}}:
		default:
			s.cfg.Log.Warn("peer not served from the cache", "session", fmt.Sprintf("%08x", session))
			return
		}
	}
}

// queueServe has the goroutine of resend serve a child.
func (s *Server) queueServe(a linkstate.Serve) {
	l := s.links[a.To]
	if l == nil || len(a.Marks) == 0 {
		return // it had nothing yet, so that it misses nothing
	}
	select {
	case s.serves <- serve{l.index, a.Ingress, a.Marks}:
	default:
		s.counters.NotServed++
	}
}

// resend serves children from the cache.
func (s *Server) resend() {
	for {
		select {
		case v := <-s.serves:
			for _, m := range v.marks {
				s.resendSince(v.session, v.ingress, m)
			}
		case <-s.quit:
			return
		}
	}
}

// resendSince sends what is newer than a mark, in batches that the queues on the way
// have room for.
func (s *Server) resendSince(session, ingress uint32, m linkstate.Mark) {
	datagrams := s.cfg.Cache.Since(time.Now(), ingress, m.Group, m.Sequence, maxServed)
	for batch := range slices.Chunk(datagrams, serveBatch) {
		if err := s.cfg.Engine.Resend(session, batch); err != nil {
			s.cfg.Log.Debug("repairs not sent", "session", fmt.Sprintf("%08x", session), "err", err)
			return // the link ended
		}
		s.served.Add(uint64(len(batch)))
		select {
		case <-time.After(servePause):
		case <-s.quit:
			return
		}
	}
}
