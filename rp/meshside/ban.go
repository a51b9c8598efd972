// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"fmt"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/mesh"
)

// Limits on what a neighbour can cause (SPEC 12.11).
const (
	banFirst  = time.Minute      // after a violation; twice as long each further time,
	banLast   = 15 * time.Minute // up to this
	banMemory = time.Hour        // without a violation, after which it begins anew

	linkBurst = 20              // links of a neighbour at once,
	linkEach  = 3 * time.Second // and then one each

	messageRate  = 1000             // KiB of messages per second, each rounded up
	messageBurst = 4096             // at once
	floodTime    = 10 * time.Second // for which a neighbour may be faster than that, and is slowed down

	helloShare = 16   // hellos of one neighbour that may wait
	helloRate  = 100  // hellos per second,
	helloBurst = 2000 // and at once: those of a process that was stopped
)

// bucket is a token bucket in time: full is when it is full again.
type bucket struct{ full time.Time }

// take takes tokens, each of which comes back in a time, and returns for how long there are
// fewer than none of burst.
func (b *bucket) take(now time.Time, tokens, burst int, each time.Duration) (short time.Duration) {
	if b.full.Before(now) {
		b.full = now
	}
	b.full = b.full.Add(time.Duration(tokens) * each)
	return max(0, b.full.Sub(now)-time.Duration(burst)*each)
}

// wait is for how long there is no token of burst.
func (b *bucket) wait(now time.Time, burst int, each time.Duration) time.Duration {
	if b.full.Before(now) {
		return 0
	}
	return max(0, b.full.Sub(now)-time.Duration(burst-1)*each)
}

// ban is what a neighbour did not keep to.
type ban struct {
	until  time.Time     // until when its connections are ended at once
	shun   time.Time     // until when no connection is made to it
	last   time.Duration // of the series
	strike time.Time     // the last one
	links  bucket
}

// strike bans a neighbour that broke the protocol. One that did so before its Hello was taken may
// be of another version or configuration, which its operator mends: such a ban is short each time.
func (s *Server) strike(n *neighbour, known bool) {
	d := banFirst
	if known {
		if s.now.Sub(n.ban.strike) > banMemory {
			n.ban.last = 0
		}
		n.ban.strike = s.now
		n.ban.last = min(max(2*n.ban.last, banFirst), banLast)
		d = n.ban.last
	}
	n.ban.until = s.now.Add(d)
	s.shun(n, d)
	n.log.Warn("neighbour banned", "for", d)
}

// shun has no connection made to a neighbour for a time.
func (s *Server) shun(n *neighbour, d time.Duration) {
	n.ban.shun = s.now.Add(d)
	s.relist()
}

// byed takes a Bye. A neighbour that says that this RP broke the protocol would say so again:
// it may connect itself, when it wants to.
func (s *Server) byed(n *neighbour, bye mesh.ByeError) {
	switch bye.Reason {
	case proto.ReasonMalformed, proto.ReasonUnexpected, proto.ReasonChain, proto.ReasonRole:
		s.shun(n, banFirst)
	}
}

// relist has the connections chosen anew.
func (s *Server) relist() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shunned = make(map[enode.ID]bool)
	for id, n := range s.neighbours {
		if s.now.Before(n.ban.shun) {
			s.shunned[id] = true
		}
	}
	close(s.listed)
	s.listed = make(chan struct{})
}

// tickBans ends bans.
func (s *Server) tickBans() {
	for _, n := range s.neighbours {
		if !n.ban.shun.IsZero() && !s.now.Before(n.ban.shun) {
			n.ban.shun = time.Time{}
			s.relist()
		}
	}
}

// flood is what a neighbour does that sends much more than an RP has to say.
func flood(what string) error {
	return &proto.Error{Reason: proto.ReasonUnexpected, Detail: fmt.Sprintf("flood of %s", what)}
}

// pace is how fast the messages of a neighbour are read, on one connection after the other.
type pace struct {
	mu sync.Mutex
	bucket
	slowed time.Duration // since the bucket was full
}

// slowDown slows a connection down after a message of some bytes. It returns false when the
// neighbour has been too fast for too long.
func (s *Server) slowDown(l *link, size int) bool {
	p := &l.pace
	p.mu.Lock()
	now := time.Now()
	if !p.full.After(now) {
		p.slowed = 0
	}
	short := p.take(now, 1+size>>10, messageBurst, time.Second/messageRate)
	p.slowed += short
	slowed := p.slowed
	p.mu.Unlock()
	if short == 0 {
		return true
	}
	s.slowed.Add(1)
	select {
	case <-time.After(short):
	case <-l.ended:
	}
	return slowed < floodTime
}
