// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
)

const (
	maxHole         = 512                  // how far behind the newest sequence a hole is asked for
	maxServed       = 1024                 // datagrams of one stream
	childrenWaiting = linkstate.MaxServing // routes of one child
	peersWaiting    = 16384
	serveBatch      = 64
	servePause      = time.Millisecond // after each batch, or as many datagrams of several peers

	// A datagram that left before a session began may come to the cache so much later. What
	// comes after that was sent to the session anyway.
	cacheDelay = 250 * time.Millisecond

	// What is sent again waits until new datagrams leave room for it, so long, and looks
	// so often.
	servePatience = 500 * time.Millisecond
	serveLook     = 5 * time.Millisecond
)

// serve is datagrams of the cache that a child or a peer misses.
type serve struct {
	session ids.Session
	peer    netip.Addr // zero for a child
	marks   []proto.Mark
	by      time.Time // what came later is not missed
	owed    int       // datagrams, when the peer began to wait
}

// turns is what children wait for. Each child has its turn for one batch, whatever the others
// ask for.
type turns struct {
	mu      sync.Mutex
	waiting map[ids.Session][]*turn // by session
	order   []ids.Session           // sessions, the next one first
	wake    chan struct{}           // that there is something
}

// turn is a route of one child.
type turn struct {
	serve           // marks: without those that are under way
	left  [][]byte  // of the mark under way
	until time.Time // when room for the next batch has to be there; zero: it was there
}

// add has a child wait. It returns false when the child waits for too much.
func (t *turns) add(v serve) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.waiting[v.session]
	if len(all) == childrenWaiting {
		return false
	}
	if len(all) == 0 {
		t.order = append(t.order, v.session)
	}
	t.waiting[v.session] = append(all, &turn{serve: v})
	select {
	case t.wake <- struct{}{}:
	default:
	}
	return true
}

// next returns the oldest turn of the next child, nil for none.
func (t *turns) next() *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.order) == 0 {
		return nil
	}
	session := t.order[0]
	t.order = append(t.order[1:], session)
	return t.waiting[session][0]
}

// done ends the turn that next returned.
func (t *turns) done(session ids.Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting[session] = t.waiting[session][1:]
	if len(t.waiting[session]) == 0 {
		delete(t.waiting, session)
		t.order = slices.DeleteFunc(t.order, func(s ids.Session) bool { return s == session })
	}
}

// resender sends children and peers what they missed, from the cache. Children go first,
// even between two batches of a peer: all below them miss the same. Peers have limits by
// where they are.
type resender struct {
	cfg      *Config
	quit     <-chan struct{}
	children turns
	peers    chan serve
	unpaused int // datagrams since the last pause

	served  atomic.Uint64 // datagrams
	leftOut atomic.Uint64 // peers, and routes of children, that did not get all, for want of room or by a limit
	expired atomic.Uint64 // datagrams that the cache dropped while a peer waited for them
}

func newResender(cfg *Config, quit <-chan struct{}) *resender {
	return &resender{
		cfg: cfg, quit: quit, peers: make(chan serve, peersWaiting),
		children: turns{waiting: make(map[ids.Session][]*turn), wake: make(chan struct{}, 1)},
	}
}

// Replay sends a session of the datapath, whose peer is at an address, what the cache has
// of the streams of marks and is newer than they are, as far as there is room for it. It
// does not wait.
func (s *Server) Replay(session ids.Session, peer netip.Addr, marks []proto.Mark) {
	now := time.Now()
	v := serve{session: session, peer: peer, marks: marks, by: now.Add(cacheDelay)}
	for _, m := range marks {
		v.owed += s.cfg.Cache.Newer(now, m.Stream(), m.Sequence, maxServed)
	}
	select {
	case s.resender.peers <- v:
	default:
		s.resender.leftOut.Add(1)
	}
}

// queueServe has the resender serve a child.
func (s *Server) queueServe(a linkstate.Serve) {
	l := s.links[a.To]
	if l == nil || len(a.Marks) == 0 {
		return // it had nothing yet, so that it misses nothing
	}
	v := serve{session: l.index, by: time.Now().Add(cacheDelay)}
	for _, m := range a.Marks {
		v.marks = append(v.marks, proto.Mark{Ingress: a.Ingress, Group: m.Group, Sequence: m.Sequence})
	}
	if !s.resender.children.add(v) {
		s.counters.NotServed++
	}
}

// run serves until quit is closed.
func (r *resender) run() {
	for {
		r.serveChildren()
		select {
		case <-r.children.wake:
		case v := <-r.peers:
			r.serve(v)
		case <-r.quit:
			return
		}
	}
}

// serveChildren serves all children that wait.
func (r *resender) serveChildren() {
	for v := r.children.next(); v != nil; v = r.children.next() {
		if r.serveTurn(v) {
			r.children.done(v.session)
		}
		select {
		case <-r.quit:
			return
		default:
		}
	}
}

// serveTurn sends a child one batch, and reports whether that was the last one of the route. A
// batch without room is tried again in the next turn, for a while.
func (r *resender) serveTurn(v *turn) (over bool) {
	for ; len(v.left) == 0; v.marks = v.marks[1:] {
		if len(v.marks) == 0 {
			return true
		}
		v.left = r.since(&v.serve, v.marks[0])
	}
	batch := v.left[:min(serveBatch, len(v.left))]
	err := r.cfg.Engine.Resend(v.session, batch)
	if !errors.Is(err, datapath.ErrOverRate) {
		v.left, v.until = v.left[len(batch):], time.Time{}
		return !r.sent(v.serve, batch, err) || len(v.left) == 0 && len(v.marks) == 0
	}
	if v.until.IsZero() {
		v.until = time.Now().Add(servePatience)
	}
	if !time.Now().Before(v.until) {
		r.leftOut.Add(1)
		return true
	}
	return !r.pause(serveLook)
}

// since returns what the cache has behind a mark of who is served.
func (r *resender) since(v *serve, m proto.Mark) [][]byte {
	return r.cfg.Cache.Since(time.Now(), m.Stream(), m.Sequence, v.by, maxServed)
}

// missed yields what a peer misses, in batches of datagrams of one stream or of several.
func (r *resender) missed(v *serve) iter.Seq[[][]byte] {
	return func(yield func([][]byte) bool) {
		var batch [][]byte
		for _, m := range v.marks {
			for _, b := range r.since(v, m) {
				if batch = append(batch, b); len(batch) < serveBatch {
					continue
				}
				if !yield(batch) {
					return
				}
				batch = nil
			}
		}
		if len(batch) > 0 {
			yield(batch)
		}
	}
}

// serve serves a peer.
func (r *resender) serve(v serve) {
	n := 0
	for batch := range r.missed(&v) {
		r.serveChildren()
		if err := r.cfg.Members.Replay(time.Now(), v.peer, size(batch)); err != nil {
			r.leftOut.Add(1)
			return
		}
		if !r.sent(v, batch, r.send(v, batch)) {
			return
		}
		n += len(batch)
	}
	if n < v.owed {
		r.expired.Add(uint64(v.owed - n))
		r.cfg.Log.Warn("peers waited for what they missed until it was no longer kept",
			"session", fmt.Sprintf("%08x", v.session), "missed", v.owed, "sent", n)
	}
}

// sent notes how a batch was sent. It returns false when nothing more is to be sent.
func (r *resender) sent(v serve, batch [][]byte, err error) bool {
	switch {
	case errors.Is(err, datapath.ErrOverRate):
		r.leftOut.Add(1)
		return false
	case err != nil:
		r.cfg.Log.Debug("repairs not sent", "session", fmt.Sprintf("%08x", v.session), "err", err)
		return false // the session ended
	}
	r.served.Add(uint64(len(batch)))
	if r.unpaused += len(batch); r.unpaused < serveBatch {
		return true
	}
	r.unpaused = 0
	return r.pause(servePause)
}

// send sends a peer a batch as soon as new datagrams leave room for it.
func (r *resender) send(v serve, batch [][]byte) error {
	began := time.Now()
	for {
		err := r.cfg.Engine.Resend(v.session, batch)
		if !errors.Is(err, datapath.ErrOverRate) || time.Since(began) >= servePatience || !r.pause(serveLook) {
			return err
		}
		r.serveChildren()
	}
}

// pause returns false when the Server stops meanwhile.
func (r *resender) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-r.quit:
		return false
	}
}

func size(datagrams [][]byte) (bytes int) {
	for _, b := range datagrams {
		bytes += len(b)
	}
	return bytes
}
