// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
)

const (
	maxHole         = 512  // how far behind the newest sequence a hole is asked for
	maxServed       = 1024 // datagrams of one stream
	childrenWaiting = 4096 // routes
	peersWaiting    = 16384
	serveBatch      = 64
	servePause      = time.Millisecond

	// What is sent again waits until new datagrams leave room for it, so long, and looks
	// so often.
	servePatience = 500 * time.Millisecond
	serveLook     = 5 * time.Millisecond
)

// serve is datagrams of the cache that a child or a peer misses.
type serve struct {
	session uint32
	peer    netip.Addr // zero for a child
	marks   []proto.Mark
}

// resender sends children and peers what they missed, from the cache. Children go first,
// even between two batches of a peer: all below them miss the same. Peers have limits by
// where they are.
type resender struct {
	cfg      *Config
	quit     <-chan struct{}
	children chan serve
	peers    chan serve

	served  atomic.Uint64 // datagrams
	leftOut atomic.Uint64 // peers that did not get all, for want of room or by a limit
}

func newResender(cfg *Config, quit <-chan struct{}) *resender {
	return &resender{cfg: cfg, quit: quit, children: make(chan serve, childrenWaiting), peers: make(chan serve, peersWaiting)}
}

// Replay sends a session of the datapath, whose peer is at an address, what the cache has
// of the streams of marks and is newer than they are, as far as there is room for it. It
// does not wait.
func (s *Server) Replay(session uint32, peer netip.Addr, marks []proto.Mark) {
	select {
	case s.resender.peers <- serve{session, peer, marks}:
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
	v := serve{session: l.index}
	for _, m := range a.Marks {
		v.marks = append(v.marks, proto.Mark{Ingress: a.Ingress, Group: m.Group, Sequence: m.Sequence})
	}
	select {
	case s.resender.children <- v:
	default:
		s.counters.NotServed++
	}
}

// run serves until quit is closed.
func (r *resender) run() {
	for {
		r.serveChildren()
		select {
		case v := <-r.children:
			r.serve(v)
		case v := <-r.peers:
			r.serve(v)
		case <-r.quit:
			return
		}
	}
}

// serveChildren serves all children that wait.
func (r *resender) serveChildren() {
	for {
		select {
		case v := <-r.children:
			r.serve(v)
		default:
			return
		}
	}
}

func (r *resender) serve(v serve) {
	for _, m := range v.marks {
		datagrams := r.cfg.Cache.Since(time.Now(), m.Ingress, m.Group, m.Sequence, maxServed)
		for batch := range slices.Chunk(datagrams, serveBatch) {
			if v.peer.IsValid() {
				r.serveChildren()
				if err := r.cfg.Members.Replay(time.Now(), v.peer, size(batch)); err != nil {
					r.leftOut.Add(1)
					return
				}
			}
			switch err := r.send(v, batch); {
			case errors.Is(err, datapath.ErrOverRate):
				r.leftOut.Add(1)
				return
			case err != nil:
				r.cfg.Log.Debug("repairs not sent", "session", fmt.Sprintf("%08x", v.session), "err", err)
				return // the session ended
			}
			r.served.Add(uint64(len(batch)))
			if !r.pause(servePause) {
				return
			}
		}
	}
}

// send sends a batch as soon as new datagrams leave room for it. A child need not wait
// behind a peer.
func (r *resender) send(v serve, batch [][]byte) error {
	began := time.Now()
	for {
		err := r.cfg.Engine.Resend(v.session, batch)
		if !errors.Is(err, datapath.ErrOverRate) || time.Since(began) >= servePatience || !r.pause(serveLook) {
			return err
		}
		if v.peer.IsValid() {
			r.serveChildren()
		}
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
