// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"github.com/ethereum/go-ethereum/p2p"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/mesh"
	"github.com/ethmcast/mdcs/rp/msgio"
	"github.com/ethmcast/mdcs/rp/round"
)

const (
	outboxSize   = 32          // messages that may wait for a neighbour
	flushTimeout = time.Second // for the last messages of a link
)

var (
	errStopping = errors.New("rp stops")
	errLost     = errors.New("connection lost")
	errSlow     = errors.New("neighbour reads too slowly")
)

// link is one connection to a neighbour. All its state belongs to the goroutine of
// run.
type link struct {
	srv       *Server
	neighbour *neighbour
	addr      netip.Addr // of the neighbour, when it connected
	log       *slog.Logger
	offers    chan *offer
	installs  chan mesh.Install // the neighbour's offers, for the installer
	installed chan uint32       // IDs of those that are installed
	done      chan struct{}     // closed when run returns

	core    *mesh.Link
	out     *msgio.Outbox
	index   uint32            // of the own session
	session datapath.Session  // zero Index before Up
	waiting map[uint32]*offer // by ID
	fatal   error             // ends the connection
}

// offer is own keys for all links. Each link that takes it answers.
type offer struct {
	keys []proto.GroupKey
	round.Round[*link]
}

func newLink(s *Server, n *neighbour) *link {
	return &link{
		srv:       s,
		neighbour: n,
		addr:      n.Addr,
		log:       s.cfg.Log.With("rp", n.ID.TerminalString(), "addr", n.Addr),
		offers:    make(chan *offer),
		installs:  make(chan mesh.Install, mesh.MaxOffers),
		installed: make(chan uint32),
		done:      make(chan struct{}),
		waiting:   make(map[uint32]*offer),
	}
}

// run keeps the link until it ends, and returns why.
func (l *link) run(rw p2p.MsgReadWriter) error {
	defer close(l.done)
	cfg := &l.srv.cfg
	index, err := cfg.Members.Link()
	if err != nil {
		return err
	}
	defer cfg.Members.Release(index)
	var share auth.Share
	if _, err := io.ReadFull(cfg.Rand, share[:]); err != nil {
		return fmt.Errorf("no random bytes: %w", err)
	}
	l.index = index
	l.core = mesh.NewLink(time.Now(), mesh.Config{
		Self:   cfg.Self,
		Remote: l.neighbour.ID,
		Groups: cfg.Groups,
		Hello: mesh.Hello{
			NetworkID:   cfg.NetworkID,
			Genesis:     cfg.Genesis,
			Incarnation: cfg.Incarnation,
			DataPort:    cfg.DataPort,
			Session:     index,
			Share:       share,
		},
	})
	in := msgio.Receive(rw, mesh.MaxMessage, mesh.Decode, l.done)
	l.srv.wg.Go(l.installer)
	defer close(l.installs)
	l.out = msgio.NewOutbox(rw, outboxSize)
	defer l.out.Close(flushTimeout)

	timer := time.NewTimer(mesh.HelloTimeout)
	defer timer.Stop()
	l.perform()
	for l.fatal == nil {
		timer.Reset(l.untilTick())
		select {
		case r := <-in:
			l.handle(r)
		case o := <-l.offers:
			l.offer(o)
		case id := <-l.installed:
			l.core.Installed(id)
		case <-timer.C:
			l.core.Tick(time.Now())
		case <-l.srv.quit:
			l.core.Fail(errStopping)
			l.fatal = p2p.DiscQuitting
		}
		l.perform()
	}
	return l.fatal
}

func (l *link) handle(r msgio.Received[mesh.Message]) {
	err := r.Err
	switch _, violation := errors.AsType[*proto.Error](err); {
	case err == nil:
		err = l.core.Handle(r.Message)
	case violation:
		l.core.Fail(err)
	default:
		l.core.Fail(errLost)
		l.fatal = r.Err
		return
	}
	if err != nil {
		l.srv.violations.Add(1)
		l.fatal = p2p.DiscSubprotocolError
	}
}

// untilTick returns the time until something is due.
func (l *link) untilTick() time.Duration {
	deadline := l.core.Deadline()
	if deadline.IsZero() {
		return time.Hour
	}
	return time.Until(deadline)
}

// perform does what the link wants, which may make it want more.
func (l *link) perform() {
	for actions := l.core.Actions(); len(actions) > 0; actions = l.core.Actions() {
		for _, a := range actions {
			switch a := a.(type) {
			case mesh.Send:
				l.send(a.Message)
			case mesh.Up:
				l.up(a)
			case mesh.Install:
				l.installs <- a // has room for all that a neighbour may offer
			case mesh.Replicate:
				l.replicate()
			case mesh.Acked:
				l.answer(a.ID)
			case mesh.Down:
				l.down(a.Err)
			}
		}
		l.srv.setState(l.neighbour, l.core.State())
	}
}

func (l *link) send(m mesh.Message) {
	payload, err := mesh.Encode(m)
	if err != nil { // a message of ours always encodes
		l.fatal = fmt.Errorf("encode message 0x%02x: %w", m.Code(), err)
		return
	}
	if !l.out.Send(m.Code(), payload) && l.fatal == nil {
		l.fatal = errSlow
		l.core.Fail(errSlow)
	}
}

// up accepts the neighbour's datagrams, and offers the own keys.
func (l *link) up(a mesh.Up) {
	if err := l.srv.opened(l.neighbour, a.Hello.Incarnation, l.index); err != nil {
		l.core.Fail(err)
		return
	}
	session := datapath.Session{
		Index:       l.index,
		Role:        datapath.Mesh,
		Addr:        netip.AddrPortFrom(l.addr, a.Hello.DataPort),
		SendSession: a.Hello.Session,
		SendKey:     a.SendKey,
		ReceiveKey:  a.ReceiveKey,
		Ingress:     a.Hello.Incarnation,
		Egress:      l.srv.cfg.Egress,
		EgressBurst: l.srv.cfg.EgressBurst,
	}
	l.session = session
	if err := l.srv.cfg.Engine.Apply(datapath.Change{Add: []datapath.Session{session}}); err != nil {
		l.core.Fail(fmt.Errorf("accept from neighbour: %w", err))
		return
	}
	l.log.Info("neighbour known", "incarnation", fmt.Sprintf("%08x", a.Hello.Incarnation), "data", session.Addr)
	l.core.Offer(time.Now(), l.srv.cfg.Keys.Of(l.srv.cfg.Incarnation))
}

// installer gives the neighbour's keys to the members, one offer after the other.
// It runs beside the link because that takes as long as the slowest member.
func (l *link) installer() {
	for offer := range l.installs {
		missing, err := l.srv.install(l.neighbour, offer.Keys)
		if err != nil {
			l.log.Error("keys of neighbour not installed", "err", err)
			continue // the neighbour gets no answer and ends the link
		}
		if missing > 0 {
			l.log.Warn("keys of neighbour not at all members", "missing", missing)
		}
		select {
		case l.installed <- offer.ID:
		case <-l.done:
		}
	}
}

// replicate begins to replicate to the neighbour. The heart-beat tells it the
// sequence that datagrams begin with.
func (l *link) replicate() {
	l.session.Groups = l.srv.cfg.Groups
	if err := l.srv.cfg.Engine.Apply(datapath.Change{Add: []datapath.Session{l.session}}); err != nil {
		l.core.Fail(fmt.Errorf("replicate to neighbour: %w", err))
		return
	}
	if err := l.srv.cfg.Engine.Heartbeat(); err != nil {
		l.log.Debug("heart-beat not sent", "err", err) // the next one is due soon
	}
	l.log.Info("mesh link up")
}

// down ends the session.
func (l *link) down(reason error) {
	if l.fatal == nil {
		l.fatal = p2p.DiscRequested
	}
	if l.session.Index != 0 {
		err := l.srv.cfg.Engine.Apply(datapath.Change{Remove: []uint32{l.session.Index}})
		if err != nil && !errors.Is(err, datapath.ErrClosed) {
			l.log.Error("session of neighbour not removed", "err", err)
		}
		l.srv.closed(l.neighbour)
	}
	for id := range l.waiting {
		l.answer(id)
	}
	level := slog.LevelWarn
	if reason == errStopping {
		level = slog.LevelInfo
	}
	l.log.Log(context.Background(), level, "mesh link down", "reason", reason)
}

// offer passes own keys on to the neighbour.
func (l *link) offer(o *offer) {
	id, ok := l.core.Offer(time.Now(), o.keys)
	if !ok {
		o.Answer(l) // it gets them when it is known
		return
	}
	l.waiting[id] = o
}

// answer says that this link is done with an offer.
func (l *link) answer(id uint32) {
	if o := l.waiting[id]; o != nil {
		delete(l.waiting, id)
		o.Answer(l)
	}
}
