// SPDX-License-Identifier: LGPL-3.0-or-later

// Package ethmcast is multicast diffusion inside geth: it joins a replication
// point (RP), publishes the transactions of this node to it, delivers to the pool
// what arrives by multicast, and leaves out the gossip that multicast makes
// superfluous (SPEC sections 7 to 10).
//
//	RouteTx -> publish -> outbox ----------> RP          (publish.go)
//	RP ------> receive -> reassembly -> deliver -> pool  (receive.go, deliver.go)
//	gossip peers <------ HAVE marks ------> coverage      (peer.go)
//
// It is a member of two RPs: one replicates to it, the other stands by (rp.go,
// choose.go, dial.go). It may look for them (find.go).
//
// The protocol decisions are in the packages below, which do no I/O: proto,
// outbox, reassembly, coverage. This package holds the sockets, the devp2p
// connections, the clock, and one lock around all of them.
package ethmcast

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/lru"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/event"
	"github.com/ethereum/go-ethereum/log"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/ethmcast/mdcs/ethmcast/coverage"
	"github.com/ethmcast/mdcs/ethmcast/discovery"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/outbox"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/receipt"
)

// PublishMode says which transactions a node publishes.
type PublishMode string

// Modes of --mdcs.publish. The RP sees which node publishes a transaction, so an
// operator may keep its own out of it.
const (
	PublishAll     PublishMode = "all"     // own ones and those of uncovered gossip peers
	PublishBridged PublishMode = "bridged" // those of uncovered gossip peers
	PublishNone    PublishMode = "none"
)

// Delivery says how datagrams come to this node.
type Delivery string

// Ways of --mdcs.delivery.
const (
	DeliverUnicast Delivery = "unicast" // a copy of its own for this node
	DeliverSSM     Delivery = "ssm"     // one for all on its link, if the RP and the network can
)

func (d Delivery) mode() proto.DeliveryMode {
	if d == DeliverSSM {
		return proto.ModeSSM
	}
	return proto.ModeUnicast
}

// Config is what the node's operator decides.
type Config struct {
	RPs       []*enode.Node // in order of preference
	Find      *Find         // looks for more, and for the nearest of all; nil: only RPs, in their order
	Port      uint16        // UDP port for datagrams, 0 for any
	Publish   PublishMode
	Delivery  Delivery // "" is DeliverUnicast
	NetworkID uint64
	Genesis   common.Hash

	// Receipts is the share of the transactions published here, chosen at random, that
	// ask who gets them. Surplus is how many confirmations more than half of the members
	// make a majority.
	Receipts float64
	Surplus  uint64

	// Gossips reports whether a peer gossips with this node by eth, too. One that is no RP and does not is of no use,
	// and takes no place of one that is. Nil: all do.
	Gossips func(*p2p.Peer) bool
}

func (c *Config) check() error {
	if len(c.RPs) == 0 && c.Find == nil {
		return errors.New("no replication point given (--mdcs.rp, --mdcs.dns)")
	}
	switch c.Publish {
	case PublishAll, PublishBridged, PublishNone:
	default:
		return fmt.Errorf("unknown publish mode %q, want all, bridged or none", c.Publish)
	}
	if !(c.Receipts >= 0 && c.Receipts <= 1) {
		return fmt.Errorf("share of receipts %v, want 0 to 1", c.Receipts)
	}
	switch c.Delivery {
	case "", DeliverUnicast, DeliverSSM:
		return nil
	}
	return fmt.Errorf("unknown delivery %q, want unicast or ssm", c.Delivery)
}

// Backend is what the service needs of geth.
type Backend interface {
	// Synced reports whether the node accepts transactions.
	Synced() bool
	// Enqueue offers transactions to the pool as if a peer had sent them, and
	// ends the announcements that wait for them. It may sleep when many are refused.
	Enqueue(txs []*types.Transaction) error
	// HasTx reports whether the pool holds a transaction.
	HasTx(hash common.Hash) bool
	// BroadcastTxs gossips those of the transactions that are in the pool to the peers that do
	// not know them, as when they entered the pool. RouteTx is called for each once more.
	BroadcastTxs(hashes []common.Hash)
	// AnnounceTxs announces by eth those of the transactions that the peer does
	// not know. It may block on the peer's queue.
	AnnounceTxs(peer enode.ID, hashes []common.Hash)
	// SubscribeHeads calls f after each change of the chain's head.
	SubscribeHeads(f func()) event.Subscription
}

// preferFirst is the time in which only the first of new RPs is joined: connections
// come up in any order.
const preferFirst = 2 * time.Second

// seenTxs is how many delivered transactions are remembered.
const seenTxs = 1 << 15

// seenTx is a transaction that multicast brought or took.
type seenTx struct {
	hash common.Hash
	ref  *coverage.Ref
	bad  bool // no transaction, or one that multicast does not carry
	own  bool // published here
}

// Service is mDCS in one node. It is a node.Lifecycle.
type Service struct {
	cfg     Config
	self    enode.ID
	group   ids.Group
	backend Backend
	log     log.Logger

	addresses func() map[netip.Addr]bool // of this host

	deliver *deliverer
	heads   event.Subscription
	sends   chan outgoing
	short   atomic.Bool // the outbox waits for room in sends
	wake    chan struct{}
	quit    chan struct{}
	wg      sync.WaitGroup

	mu         sync.Mutex
	socket     *net.UDPConn      // nil before the start, as RPC comes earlier
	network    network           // the same
	finder     *discovery.Finder // the same, and when RPs are not looked for
	enabled    bool
	peers      map[enode.ID]*peerConn
	rps        map[enode.ID]*rpConn // that may be used, connected or not
	order      []*rpConn            // the same, by preference
	active     *rpConn              // replicates to us, or is to; nil for none
	next       *rpConn              // is to take over from active, which goes on until then; nil for none
	standby    *rpConn              // takes over when active is lost; nil for none
	covered    bool                 // multicast serves this node, and the gossip peers know it
	hints      []*rpConn            // that an RP without room named
	redirects  int                  // since an RP served
	nearer     preference
	receiver   *receiver
	outbox     *outbox.Outbox
	marks      coverage.Marks
	coverage   *coverage.Coverage[enode.ID, common.Hash]
	confirms   *receipt.Confirms
	book       *receipt.Book
	listeners  map[chan Receipt]struct{}           // for majorities
	seen       lru.BasicLRU[uint64, seenTx]        // by object id
	given      lru.BasicLRU[common.Hash, struct{}] // back to gossip, as no RP took them
	broadcasts []common.Hash                       // of these, that are still to be gossiped
	announces  []coverage.Announcement[enode.ID, common.Hash]
	haveAt     time.Time // of the last HAVE
	haveOf     uint64    // version of the marks in it
	jitter     *mrand.Rand

	looked      time.Time // for the addresses of connections
	preferUntil time.Time // before which only the first of nodes is joined
}

// New returns a service.
func New(cfg Config, backend Backend) (*Service, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	var seed [16]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return nil, fmt.Errorf("seed: %w", err)
	}
	rng := mrand.New(mrand.NewPCG(binary.BigEndian.Uint64(seed[:]), binary.BigEndian.Uint64(seed[8:])))
	s := &Service{
		cfg:       cfg,
		group:     proto.GroupID(cfg.NetworkID, cfg.Genesis, proto.TopicTxs),
		backend:   backend,
		log:       log.New("service", "mdcs"),
		sends:     make(chan outgoing, sendRoom),
		addresses: hostAddresses,
		wake:      make(chan struct{}, 1),
		quit:      make(chan struct{}),
		enabled:   true,
		rps:       make(map[enode.ID]*rpConn),
		peers:     make(map[enode.ID]*peerConn),
		receiver:  newReceiver(),
		outbox:    outbox.New(),
		coverage:  coverage.New[enode.ID, common.Hash](rng),
		confirms:  receipt.NewConfirms(rng),
		book:      receipt.NewBook(cfg.Surplus),
		listeners: make(map[chan Receipt]struct{}),
		seen:      lru.NewBasicLRU[uint64, seenTx](seenTxs),
		given:     lru.NewBasicLRU[common.Hash, struct{}](seenTxs),
		jitter:    rng,
	}
	s.deliver = newDeliverer(backend, s.log)
	return s, nil
}

// Start opens the UDP socket and connects to the RPs by the node's devp2p server,
// which runs.
func (s *Service) Start(server *p2p.Server) error {
	socket, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6unspecified, Port: int(s.cfg.Port)})
	if err != nil {
		return fmt.Errorf("mdcs data port: %w", err)
	}
	_ = socket.SetWriteBuffer(sendBuffer)
	_ = socket.SetReadBuffer(socketBuffer) // the kernel caps it; a smaller one only loses bursts
	s.mu.Lock()
	s.self, s.socket, s.network = server.Self().ID(), socket, devp2p{server}
	s.mu.Unlock()
	s.deliver.start()
	s.heads = s.backend.SubscribeHeads(s.deliver.newHead)
	s.wg.Go(func() { s.receiveLoop(s.socket, proto.ModeUnicast) })
	s.wg.Go(s.sendLoop)
	s.wg.Go(s.loop)
	if s.cfg.Find != nil {
		if err := s.startFinder(); err != nil {
			return errors.Join(err, s.Stop())
		}
	} else {
		s.SetRPs(s.cfg.RPs)
	}
	s.log.Info("Multicast diffusion started", "rps", len(s.cfg.RPs), "port", s.port(), "publish", s.cfg.Publish)
	return nil
}

// SetRPs replaces the RPs that may be used, in order of preference. The service must
// be started. One that is left out is left; one that moved is dialled at its new address
// when there is no connection.
func (s *Service) SetRPs(nodes []*enode.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.rps
	if s.active == nil {
		s.preferUntil = time.Now().Add(preferFirst)
	}
	s.rps, s.order, s.hints = make(map[enode.ID]*rpConn), nil, nil
	for _, node := range nodes {
		id := node.ID()
		if s.rps[id] != nil {
			continue
		}
		rp := old[id]
		if rp == nil {
			rp = newRPConn(node)
			s.wg.Go(func() { s.keepConnected(rp) })
		}
		rp.node = node
		delete(old, id)
		s.rps[id] = rp
		s.order = append(s.order, rp)
	}
	for _, rp := range old {
		s.forget(time.Now(), rp)
	}
	s.choose(time.Now())
}

// Stop leaves the RPs and ends all goroutines.
func (s *Service) Stop() error {
	if s.finder != nil {
		s.finder.Stop()
	}
	s.mu.Lock()
	s.enabled = false
	s.choose(time.Now())
	close(s.quit)
	for _, rp := range s.order {
		rp.cancel()
	}
	s.mu.Unlock()
	err := s.socket.Close()
	s.heads.Unsubscribe()
	s.wg.Wait()
	s.deliver.stop()
	return err
}

// port returns the UDP port for datagrams, 0 before the start.
func (s *Service) port() uint16 {
	if s.socket == nil {
		return 0
	}
	return uint16(s.socket.LocalAddr().(*net.UDPAddr).Port)
}

// Protocols returns the devp2p capability.
func (s *Service) Protocols() []p2p.Protocol {
	return []p2p.Protocol{{
		Name:     proto.Name,
		Version:  proto.Version,
		Length:   proto.Length,
		Run:      s.run,
		PeerInfo: func(id enode.ID) any { return s.peerInfo(id) },
	}}
}

// APIs returns the RPC namespace mdcs.
func (s *Service) APIs() []rpc.API {
	return []rpc.API{{Namespace: "mdcs", Service: &API{s}}}
}

// loop does what is due in time, and the announcements, which may block.
func (s *Service) loop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-s.wake:
		case <-s.quit:
			return
		}
		now := time.Now()
		s.mu.Lock()
		s.tick(now)
		announces, broadcasts := s.announces, s.broadcasts
		s.announces, s.broadcasts = nil, nil
		next := s.deadline(now)
		s.mu.Unlock()
		if len(broadcasts) > 0 {
			s.backend.BroadcastTxs(broadcasts)
		}
		for _, a := range announces {
			announcedMeter.Mark(int64(len(a.Hashes)))
			s.backend.AnnounceTxs(a.Peer, a.Hashes)
		}
		timer.Reset(time.Until(next))
	}
}

// poke makes the loop look again.
func (s *Service) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// maxTick bounds the time between two looks at Synced, which has no event.
const maxTick = 500 * time.Millisecond

func (s *Service) deadline(now time.Time) time.Time {
	next := now.Add(maxTick)
	earliest := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	for _, rp := range s.rps {
		if rp.joiner != nil {
			earliest(rp.joiner.Deadline())
		}
	}
	earliest(s.outbox.Deadline())
	earliest(s.coverage.Deadline())
	if s.covered && s.marks.Began(s.haveOf) {
		earliest(s.haveAt.Add(coverage.HaveSoon))
	}
	earliest(s.confirms.Deadline())
	return next
}

// tick advances all state machines. The caller holds the lock, as for all below.
func (s *Service) tick(now time.Time) {
	for _, rp := range s.rps {
		if rp.joiner != nil {
			rp.joiner.Tick(now)
			s.drain(now, rp)
		}
	}
	s.checkAddresses(now)
	s.choose(now)
	s.outbox.Tick(now)
	s.flushOutbox(now)
	s.marks.Expire(now)
	s.announce(s.coverage.Tick(now))
	s.sendHave(now, false)
	s.confirm(now)
	s.updateGauges(now)
}

func (s *Service) announce(a []coverage.Announcement[enode.ID, common.Hash]) {
	if len(a) > 0 {
		s.announces = append(s.announces, a...)
		s.poke()
	}
}

// sendHave tells all gossip peers what was delivered: at once when the membership
// changed, else after HaveSoon, HaveInterval or HaveKeepAlive.
func (s *Service) sendHave(now time.Time, changed bool) {
	interval := coverage.HaveKeepAlive
	switch {
	case s.covered && s.marks.Began(s.haveOf):
		interval = coverage.HaveSoon
	case s.marks.Version() != s.haveOf:
		interval = coverage.HaveInterval
	}
	if !changed && now.Sub(s.haveAt) < interval {
		return
	}
	s.haveAt, s.haveOf = now, s.marks.Version()
	for _, p := range s.peers {
		if p.ready {
			s.have(p)
		}
	}
}

// have tells a gossip peer what was delivered since it was told last.
func (s *Service) have(p *peerConn) {
	if !s.covered {
		p.send(&proto.Have{})
		p.told = 0
		return
	}
	marks, whole := s.marks.Have(p.told)
	if p.send(&proto.Have{Covered: true, Whole: whole, Marks: marks}) {
		p.told = s.marks.Version()
	}
}
