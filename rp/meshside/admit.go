// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"sync"
	"time"
)

// Times of admission (SPEC section 11).
const (
	admitTimeout = 3 * time.Second  // that a peer waits for the mesh
	idleTimeout  = 10 * time.Minute // that the own tree outlives the last publisher
)

// admission is how far this RP is with what its peers rely on: that it gets the datagrams
// of all ingress RPs, and that there is a tree for what they publish themselves.
type admission struct {
	startAt time.Time
	settled bool // this RP is on the trees of all ingress RPs, or it took too long

	mayPublish bool // the neighbours know the incarnation
	publishers int
	publishes  bool      // there is, or will be, a tree
	planted    bool      // all on it have the keys, or it took too long
	idleAt     time.Time // when the tree ends, without publishers
	queue      []applicant
}

// applicant is a peer that waits.
type applicant struct {
	publish bool
	ready   chan struct{}
	due     time.Time
}

func (s *Server) startAdmission() {
	s.startAt = s.now
	alone := len(s.neighbours) == 0 && !s.cfg.Finds // else the link state says when
	s.settled, s.mayPublish = alone, alone
	if s.cfg.Publishes {
		s.publishes, s.idleAt = true, s.now.Add(idleTimeout)
		s.core.SetPublishes(s.now, true)
	}
}

// Admit says that a peer is about to be let in, and whether it publishes. It may be let in
// when ready is closed, after 3 s at most: this RP gets the datagrams of all ingress RPs
// then, and if the peer publishes, the mesh knows the own keys and to whom its datagrams
// go. Ended is to be called when the peer is gone, let in or not.
func (s *Server) Admit(publish bool) (ready <-chan struct{}, ended func()) {
	a := applicant{publish: publish, ready: make(chan struct{})}
	if !s.do(func() {
		a.due = s.now.Add(admitTimeout)
		s.queue = append(s.queue, a)
		if !publish {
			return
		}
		s.publishers++
		if !s.publishes {
			s.publishes, s.planted = true, false
			s.core.SetPublishes(s.now, true)
		}
	}) {
		close(a.ready)
	}
	var once sync.Once
	return a.ready, func() {
		once.Do(func() {
			if publish {
				s.do(s.publisherGone)
			}
		})
	}
}

func (s *Server) publisherGone() {
	s.publishers--
	s.idleAt = s.now.Add(idleTimeout)
}

// checkAdmission lets peers in.
func (s *Server) checkAdmission() {
	if !s.settled {
		s.settled = s.attached() || s.now.Sub(s.startAt) >= admitTimeout
	}
	if s.publishes && !s.planted && s.mayPublish {
		own := s.ingress(s.cfg.Incarnation)
		s.planted = s.spanned() && len(s.missing(own, own.version)) == 0
	}
	waiting := s.queue[:0]
	for _, a := range s.queue {
		late := !s.now.Before(a.due)
		if late && a.publish {
			s.planted = true // as far as it can be
		}
		if late || s.settled && (s.planted || !a.publish) {
			close(a.ready)
		} else {
			waiting = append(waiting, a)
		}
	}
	s.queue = waiting
}

// spanned reports whether there is an own tree and all neighbours are on it.
func (s *Server) spanned() bool {
	if len(s.neighbours) == 0 {
		return true
	}
	if _, ok := s.core.TreeParent(s.self, s.self); !ok {
		return false
	}
	for _, n := range s.core.Neighbours() {
		if parent, _ := s.core.TreeParent(s.self, n.ID); n.Up && parent == 0 {
			return false
		}
	}
	return true
}

// attached reports whether this RP gets the datagrams of all ingress RPs: who has the
// keys was given them by a parent that replicates to it.
func (s *Server) attached() bool {
	if s.core.Learning() {
		return false
	}
	s.sweepSoon()
	if !s.hasAll() {
		return false
	}
	s.sweep() // what came since the last time counts, too
	return s.hasAll()
}

// hasAll reports whether this RP has a parent and keys in the trees of all ingress RPs that
// the last sweep found.
func (s *Server) hasAll() bool {
	for incarnation, id := range s.origins {
		in := s.ingresses[incarnation]
		if id != s.self && (in == nil || in.route.Parent == 0 || in.version == 0 || in.installed < in.version) {
			return false
		}
	}
	return true
}

// tickAdmission gives the own tree up when nobody published for long.
func (s *Server) tickAdmission() {
	if s.publishes && s.publishers == 0 && !s.now.Before(s.idleAt) {
		s.publishes, s.planted = false, false
		s.core.SetPublishes(s.now, false)
	}
}
