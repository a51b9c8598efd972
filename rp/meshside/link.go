// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/p2p"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/events"
	"github.com/ethmcast/mdcs/rp/front"
	"github.com/ethmcast/mdcs/rp/mesh"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/msgio"
)

const (
	outboxSize   = 1024        // messages that may wait for a neighbour: a database of 4,096 RPs is 350
	flushTimeout = time.Second // for the last messages of a link
)

var (
	errStopping = errors.New("rp stops")
	errLost     = errors.New("connection lost")
	errSlow     = errors.New("neighbour reads too slowly")
)

// link is one connection to a neighbour. It belongs to the goroutine of serve, but for
// what does not change, and err when ended is closed.
type link struct {
	*neighbour
	rw    front.Conn
	log   *slog.Logger
	out   *msgio.Outbox
	ended chan struct{}
	err   error // that ends the connection

	state    *mesh.Link
	index    ids.Session      // of the own session, 0 for none
	data     netip.AddrPort   // endpoint of the neighbour
	session  datapath.Session // as the datapath has it
	outlives bool             // the neighbour's datapath goes on when its process dies
	open     bool             // the core and the datapath have it
	proven   bool             // the neighbour accepts what is sent by the session
	over     bool             // nothing more is sent

	// Group keys.
	due   map[ids.Incarnation]bool   // ingress RPs whose keys are to be offered
	sent  map[uint32][]sentKeys      // by ID of the offer
	acked map[ids.Incarnation]uint64 // versions, by ingress RP
}

// message is one message of a neighbour: exactly one of its parts.
type message struct {
	link  mesh.Message
	state linkstate.Message
	size  int // bytes
}

func decode(code uint64, payload []byte) (m message, err error) {
	m.size = len(payload)
	if code < linkstate.DigestMsg || code > linkstate.ServingMsg {
		m.link, err = mesh.Decode(code, payload)
	} else {
		m.state, err = linkstate.Decode(code, payload)
	}
	return m, err
}

// run keeps one connection until its link ends, and returns why.
func (s *Server) run(rw front.Conn) error {
	n := s.neighbour(rw.ID())
	if n == nil { // removed since the front asked
		return p2p.DiscUselessPeer
	}
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return p2p.DiscQuitting
	}
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	l := &link{
		neighbour: n,
		rw:        rw,
		log:       n.log,
		ended:     make(chan struct{}),
		due:       make(map[ids.Incarnation]bool),
		sent:      make(map[uint32][]sentKeys),
		acked:     make(map[ids.Incarnation]uint64),
	}
	l.out = msgio.NewOutbox(rw, outboxSize, outboxSize*mesh.MaxMessage)
	defer l.out.Close(flushTimeout)
	if !s.do(func() { s.connected(l) }) {
		return p2p.DiscQuitting
	}
	in := msgio.Receive(rw, decode, l.ended)
	for {
		select {
		case r, ok := <-in:
			if !ok || !s.do(func() { s.received(l, r) }) || r.Err != nil {
				<-l.ended
				return l.err
			}
			if !s.slowDown(l, r.Message.size) {
				s.do(func() { s.received(l, msgio.Received[message]{Err: flood("messages")}) })
			}
		case <-l.ended:
			return l.err
		}
	}
}

// connected begins a link.
func (s *Server) connected(l *link) {
	n := l.neighbour
	switch {
	case s.neighbours[n.node.ID()] != n: // removed meanwhile
		l.end(p2p.DiscUselessPeer)
		return
	case n.link != nil:
		l.end(p2p.DiscAlreadyConnected)
		return
	case s.now.Before(n.ban.until):
		s.counters.Banned++
		l.end(p2p.DiscUselessPeer)
		return
	case n.ban.links.take(s.now, 1, linkBurst, linkEach) > 0:
		s.counters.Violations++
		s.strike(n, true)
		l.end(p2p.DiscUselessPeer)
		return
	}
	n.link = l
	n.connected.Store(true)
	index, err := s.cfg.Members.Link()
	var share auth.Share
	if err == nil {
		_, err = io.ReadFull(s.cfg.Rand, share[:])
	}
	l.index = index
	l.state = mesh.NewLink(s.now, mesh.Config{
		Self:   s.id,
		Remote: n.node.ID(),
		Groups: s.cfg.Groups,
		Hello: mesh.Hello{
			NetworkID:   s.cfg.NetworkID,
			Genesis:     s.cfg.Genesis,
			Incarnation: s.cfg.Incarnation,
			DataPort:    s.cfg.DataPort,
			Session:     index,
			Share:       share,
			Outlives:    s.cfg.Outlives,
		},
	})
	switch {
	case err != nil:
		l.state.Fail(fmt.Errorf("no session: %w", err))
	case s.connections() > linkstate.MaxPeers:
		l.state.Fail(&proto.Error{Reason: proto.ReasonFull, Detail: fmt.Sprintf("%d neighbours", linkstate.MaxPeers)})
	}
	s.drive(l)
}

func (s *Server) connections() (n int) {
	for _, o := range s.neighbours {
		if o.link != nil {
			n++
		}
	}
	return n
}

// received takes what a connection brought.
func (s *Server) received(l *link, r msgio.Received[message]) {
	if l.over {
		return
	}
	err := r.Err
	switch {
	case err != nil && !proto.IsViolation(err):
		l.err = err
		s.fail(l, errLost)
		return
	case err == nil && r.Message.link != nil:
		err = l.state.Handle(r.Message.link)
	case err == nil && l.open:
		err = s.core.Handle(s.now, l.id, r.Message.state)
	case err == nil:
		err = &proto.Error{
			Reason: proto.ReasonUnexpected,
			Detail: fmt.Sprintf("message 0x%02x before Hello", r.Message.state.Code()),
		}
	}
	if err != nil {
		s.blame(l, err)
	}
	s.drive(l)
}

// blame has a link end because of what the neighbour did.
func (s *Server) blame(l *link, err error) {
	if l.over {
		return
	}
	s.counters.Violations++
	s.emit(l, events.Violation, err.Error())
	l.err = p2p.DiscSubprotocolError
	l.state.Fail(err)
	s.strike(l.neighbour, l.open)
}

// fail ends a link.
func (s *Server) fail(l *link, reason error) {
	if !l.over {
		l.state.Fail(reason)
		s.drive(l)
	}
}

// tickLinks does what is due on links.
func (s *Server) tickLinks() {
	for _, n := range s.neighbours {
		if l := n.link; l != nil {
			l.state.Tick(s.now)
			s.drive(l)
		}
	}
}

// drive does what a link wants, which may make it want more.
func (s *Server) drive(l *link) {
	for actions := l.state.Actions(); len(actions) > 0; actions = l.state.Actions() {
		for _, a := range actions {
			switch a := a.(type) {
			case mesh.Send:
				payload, err := mesh.Encode(a.Message)
				s.send(l, a.Message.Code(), payload, err)
			case mesh.Up:
				s.up(l, a)
			case mesh.Install:
				s.offered(l, a)
			case mesh.Acked:
				s.acked(l, a.ID)
			case mesh.Reported:
				s.reported(l, a.Reports)
			case mesh.Down:
				s.down(l, a.Err)
			}
		}
	}
}

// send queues an encoded message.
func (s *Server) send(l *link, code uint64, payload []byte, err error) {
	switch {
	case l.over:
	case err != nil: // a message of ours always encodes
		s.fail(l, fmt.Errorf("encode message 0x%02x: %w", code, err))
	case !l.out.Send(code, payload):
		l.over = true
		l.state.Fail(errSlow)
		s.drive(l)
	}
}

// up accepts the neighbour's datagrams, and lets the link state have the link.
func (s *Server) up(l *link, a mesh.Up) {
	n := l.neighbour
	l.data, l.outlives = netip.AddrPortFrom(l.addr(), a.Hello.DataPort), a.Hello.Outlives
	session := datapath.Session{
		Index:       l.index,
		Role:        datapath.Mesh,
		Addr:        l.data,
		SendSession: a.Hello.Session,
		SendKey:     a.SendKey,
		ReceiveKey:  a.ReceiveKey,
		Egress:      s.cfg.Egress,
		EgressBurst: s.cfg.EgressBurst,
	}
	if err := s.apply(datapath.Change{Add: []datapath.Session{session}}); err != nil {
		l.state.Fail(fmt.Errorf("accept from neighbour: %w", err))
		return
	}
	other := n.incarnation != 0 && n.incarnation != a.Hello.Incarnation
	s.endOutlived(n, func(o outlived) bool { return other || o.data != l.data })
	if len(n.outlived) == 0 { // then nothing of what was before goes on
		s.core.LinkDown(s.now, l.id)
		l.proven = true
	}
	n.keep(s.now.Add(awayTimeout))
	l.session = session
	l.open, n.incarnation = true, a.Hello.Incarnation
	l.rw.SetSession(true)
	s.links[l.id], s.sessions[l.index] = l, l
	s.reroute(n)
	s.core.LinkUp(s.now, l.id)
	l.log.Info("neighbour known", "incarnation", fmt.Sprintf("%08x", a.Hello.Incarnation), "data", session.Addr)
}

// SetEgress changes the limit of the copies of what one neighbour sends, for links that
// stand, too.
func (s *Server) SetEgress(egress, burst uint64) {
	s.call(func() {
		s.cfg.Egress, s.cfg.EgressBurst = egress, burst
		var change datapath.Change
		for _, l := range s.links {
			if l.session.Egress == egress && l.session.EgressBurst == burst {
				continue
			}
			session := l.session
			session.Egress, session.EgressBurst = egress, burst
			change.Add = append(change.Add, session)
		}
		if len(change.Add) == 0 {
			return
		}
		err := s.apply(change)
		refused, some := errors.AsType[*datapath.Refused](err)
		if err != nil && !some {
			s.log.Error("limits of neighbours not changed", "err", err)
			return
		}
		for _, session := range change.Add {
			l := s.sessions[session.Index]
			if some && refused.Sessions[session.Index] != nil {
				l.log.Error("limit of a neighbour not changed", "err", refused.Sessions[session.Index])
				continue
			}
			l.session = session
		}
	})
}

// emit tells the operator what happened to a link.
func (s *Server) emit(l *link, kind events.Kind, detail string) {
	e := events.Event{Kind: kind, Node: l.neighbour.node.ID().TerminalString(), Addr: l.addr().String(), Detail: detail}
	if l.open {
		e.Session = fmt.Sprintf("%08x", l.index)
	}
	s.cfg.Events.Emit(e)
}

// down ends a link. Of one whose neighbour died, but not its datapath, the session and
// the routes go on for a while.
func (s *Server) down(l *link, reason error) {
	l.over = true
	var until time.Time // the neighbour is away
	if l.open {
		s.emit(l, events.LinkDown, reason.Error())
		s.counters.LinksLost++
		delete(s.links, l.id)
		delete(s.sessions, l.index)
		l.open = false
		if l.outlives && errors.Is(reason, errLost) {
			until = s.core.LinkAway(s.now, l.id, s.now.Add(awayTimeout))
		}
		s.outlive(l, until)
		if until.IsZero() {
			s.core.LinkDown(s.now, l.id)
			s.endOutlived(l.neighbour, func(outlived) bool { return true })
		}
	} else {
		s.cfg.Members.Release(l.index)
	}
	if bye, ok := errors.AsType[mesh.ByeError](reason); ok {
		s.byed(l.neighbour, bye)
	}
	s.waits = slices.DeleteFunc(s.waits, func(w *wait) bool { return w.of == l })
	l.neighbour.link = nil
	l.connected.Store(false)
	level := slog.LevelWarn
	if errors.Is(reason, errStopping) {
		level = slog.LevelInfo
	}
	l.log.Log(context.Background(), level, "mesh link down", "reason", reason, "outlived", !until.IsZero())
	if l.err == nil {
		l.err = p2p.DiscRequested
	}
	l.end(l.err)
}

// end lets the connection go.
func (l *link) end(err error) {
	l.over, l.err = true, err
	close(l.ended)
}

// endAll ends all links because the RP stops.
func (s *Server) endAll() {
	for _, n := range s.neighbours {
		if l := n.link; l != nil {
			l.err = p2p.DiscQuitting
			s.fail(l, errStopping)
		}
	}
}
