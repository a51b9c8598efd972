// SPDX-License-Identifier: LGPL-3.0-or-later

// Package meshside keeps the links to the neighbouring RPs: it runs mdcsmesh/1
// (SPEC section 12) on each connection to a node of the allow-list, and no other.
package meshside

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/keyring"
	"github.com/ethmcast/mdcs/rp/membership"
	"github.com/ethmcast/mdcs/rp/mesh"
	"github.com/ethmcast/mdcs/rp/round"
)

// RetireAfter is how long the keys and windows of a neighbour outlive its link:
// one that comes back with the same incarnation goes on with its sequences.
const RetireAfter = time.Minute

// Installer gives keys to the datapath and to the members.
type Installer interface {
	Install(keys []proto.GroupKey, retired []uint32, timeout time.Duration) (missing int, err error)
}

// Config is what a Server works with.
type Config struct {
	Self        enode.ID
	NetworkID   uint64
	Genesis     [32]byte
	Incarnation uint32
	DataPort    uint16
	Groups      []uint32 // served
	Neighbours  []*enode.Node

	// Egress and EgressBurst limit the copies of what a neighbour sends, see
	// datapath.Session.
	Egress, EgressBurst uint64

	Engine  datapath.Engine
	Keys    *keyring.Ring
	Members *membership.Table
	Peers   Installer
	Rand    io.Reader // safe for concurrent use
	Log     *slog.Logger
}

// Neighbour is the state of one neighbour of the allow-list.
type Neighbour struct {
	ID          enode.ID
	Addr        netip.Addr
	Connected   bool
	State       mesh.State // while connected
	Incarnation uint32     // the latest, 0 when it was never known
	Session     uint32     // own index, 0 without a link
}

// Up reports whether datagrams flow to the neighbour.
func (n *Neighbour) Up() bool { return n.Connected && n.State == mesh.Replicating }

// Server keeps the links.
type Server struct {
	cfg  Config
	quit chan struct{}
	wg   sync.WaitGroup // links, and installs on their behalf

	violations, linksLost atomic.Uint64

	mu         sync.Mutex
	stopped    bool
	neighbours map[enode.ID]*neighbour
}

// neighbour is an RP of the allow-list. Its fields belong to Server.mu.
type neighbour struct {
	Neighbour
	node     *enode.Node
	allowed  bool
	link     *link       // nil without a connection
	retire   *time.Timer // armed while the link is down
	absence  int         // counts the times that it is armed or not needed any more
	replaced []uint32    // earlier incarnations that are not retired yet

	// installing is held while keys of this neighbour are installed or retired,
	// which keeps these changes in order. It is taken before Server.mu.
	installing sync.Mutex
}

// Stats counts since the start.
type Stats struct {
	Neighbours []Neighbour // in the order of their ids
	Violations uint64
	LinksLost  uint64 // links that were up and ended
}

// New returns a Server. It serves when its Protocol runs.
func New(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, quit: make(chan struct{}), neighbours: make(map[enode.ID]*neighbour)}
	for _, n := range cfg.Neighbours {
		addr := n.IPAddr()
		switch {
		case !addr.Is6() || addr.Is4In6():
			return nil, fmt.Errorf("neighbour %v: address %v is not ipv6", n.ID().TerminalString(), addr)
		case n.ID() == cfg.Self:
			return nil, fmt.Errorf("neighbour %v is this node itself", n.ID().TerminalString())
		case s.neighbours[n.ID()] != nil:
			return nil, fmt.Errorf("neighbour %v stands twice", n.ID().TerminalString())
		}
		s.neighbours[n.ID()] = newNeighbour(n)
	}
	return s, nil
}

func newNeighbour(n *enode.Node) *neighbour {
	return &neighbour{Neighbour: Neighbour{ID: n.ID(), Addr: n.IPAddr()}, node: n, allowed: true}
}

// Protocol returns the devp2p capability.
func (s *Server) Protocol() p2p.Protocol {
	return p2p.Protocol{Name: mesh.Name, Version: mesh.Version, Length: mesh.Length, Run: s.run}
}

// run keeps the link of one connection until it ends.
func (s *Server) run(p *p2p.Peer, rw p2p.MsgReadWriter) error {
	s.mu.Lock()
	n := s.neighbours[p.ID()]
	if s.stopped || n == nil || !n.allowed || n.link != nil {
		stopped := s.stopped
		s.mu.Unlock()
		if !stopped {
			s.cfg.Log.Warn("mesh link refused: not among the neighbours",
				"rp", p.ID().TerminalString(), "addr", p.RemoteAddr())
		}
		return p2p.DiscUselessPeer
	}
	l := newLink(s, n)
	n.link, n.Connected, n.State = l, true, mesh.Connected
	s.wg.Add(1)
	s.mu.Unlock()

	err := l.run(rw)

	s.mu.Lock()
	n.link, n.Connected = nil, false
	s.mu.Unlock()
	s.wg.Done()
	return err
}

// Connected reports whether there is a connection to a neighbour.
func (s *Server) Connected(id enode.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.neighbours[id]
	return n != nil && n.Connected
}

// Offer gives own keys to all neighbours that are linked and returns how many had
// not acknowledged after the timeout; they are logged.
func (s *Server) Offer(keys []proto.GroupKey, timeout time.Duration) (missing int) {
	links := s.links()
	o := &offer{keys: keys, Round: round.New[*link](len(links))}
	var asked []*link
	for _, l := range links {
		select {
		case l.offers <- o:
			asked = append(asked, l)
		case <-l.done:
		case <-s.quit:
			return 0
		}
	}
	late := o.Wait(asked, timeout, s.quit)
	for _, l := range late {
		l.log.Warn("own keys not acknowledged", "timeout", timeout)
	}
	return len(late)
}

func (s *Server) links() []*link {
	s.mu.Lock()
	defer s.mu.Unlock()
	var links []*link
	for _, n := range s.neighbours {
		if n.link != nil {
			links = append(links, n.link)
		}
	}
	return links
}

// Stats returns the state of all neighbours and the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{Violations: s.violations.Load(), LinksLost: s.linksLost.Load()}
	for _, n := range s.neighbours {
		if n.allowed || n.Connected {
			st.Neighbours = append(st.Neighbours, n.Neighbour)
		}
	}
	slices.SortFunc(st.Neighbours, func(a, b Neighbour) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return st
}

// Stop ends all links with Bye. It returns when none is left.
func (s *Server) Stop() {
	s.mu.Lock()
	if !s.stopped {
		s.stopped = true
		close(s.quit)
		for _, n := range s.neighbours {
			if n.retire != nil {
				n.retire.Stop()
			}
		}
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// opened notes a neighbour's Hello. It refuses an incarnation that another
// neighbour has.
func (s *Server) opened(n *neighbour, incarnation, session uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range s.neighbours {
		if other != n && other.Incarnation == incarnation {
			return &proto.Error{
				Reason: proto.ReasonUnexpected,
				Detail: fmt.Sprintf("incarnation %08x is that of %v", incarnation, other.ID.TerminalString()),
			}
		}
	}
	if n.retire != nil {
		n.retire.Stop()
	}
	n.absence++
	if n.Incarnation != 0 && n.Incarnation != incarnation {
		n.replaced = append(n.replaced, n.Incarnation)
	}
	n.Incarnation, n.Session = incarnation, session
	return nil
}

// install gives a neighbour's keys to the members, and with them the news that its
// earlier incarnations are gone.
func (s *Server) install(n *neighbour, keys []proto.GroupKey) (missing int, err error) {
	n.installing.Lock()
	defer n.installing.Unlock()
	s.mu.Lock()
	retired := n.replaced
	n.replaced = nil
	s.mu.Unlock()
	return s.cfg.Peers.Install(keys, retired, mesh.InstallTimeout)
}

// closed notes the end of a link on which a Hello had come. The neighbour's keys go
// when it stays away.
func (s *Server) closed(n *neighbour) {
	s.linksLost.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	n.Session = 0
	if s.stopped {
		return
	}
	n.absence++
	absence := n.absence
	n.retire = time.AfterFunc(RetireAfter, func() { s.retire(n, absence) })
}

// retire forgets a neighbour that stayed away.
func (s *Server) retire(n *neighbour, absence int) {
	n.installing.Lock()
	defer n.installing.Unlock()
	s.mu.Lock()
	if s.stopped || n.absence != absence {
		s.mu.Unlock()
		return
	}
	retired := append(n.replaced, n.Incarnation)
	n.replaced, n.Incarnation = nil, 0
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	s.cfg.Log.Info("neighbour retired", "rp", n.ID.TerminalString())
	_, err := s.cfg.Peers.Install(nil, retired, mesh.InstallTimeout)
	if err != nil && !errors.Is(err, datapath.ErrClosed) {
		s.cfg.Log.Error("neighbour not retired", "rp", n.ID.TerminalString(), "err", err)
	}
}

// setState publishes the state of a link.
func (s *Server) setState(n *neighbour, st mesh.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.State = st
}
