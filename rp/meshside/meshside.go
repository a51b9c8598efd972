// SPDX-License-Identifier: LGPL-3.0-or-later

// Package meshside is this RP's place in the mesh (SPEC section 12). It runs mdcsmesh/1
// on each connection to a node of the allow-list, and no other; has package linkstate
// decide who replicates to whom; and does what that decides: routes and hellos in the
// datapath, group keys along the trees, repairs from the cache.
//
// One goroutine owns the state of all links, the link state and the keys. What takes
// long, because others have to answer, runs beside it.
package meshside

import (
	"context"
	"crypto/ecdsa"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	randv2 "math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/cache"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/events"
	"github.com/ethmcast/mdcs/rp/front"
	"github.com/ethmcast/mdcs/rp/keyring"
	"github.com/ethmcast/mdcs/rp/limitlog"
	"github.com/ethmcast/mdcs/rp/membership"
	"github.com/ethmcast/mdcs/rp/mesh"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/mesh/tree"
)

const (
	// catchUp is how long a process that was stopped, or got no processor, lets the
	// engine read what came meanwhile, before it takes neighbours for dead.
	catchUp = 20 * time.Millisecond

	// leaveTimeout is how long Leave waits for the children to find other parents.
	leaveTimeout = 3 * time.Second
	leaveLook    = 50 * time.Millisecond

	// membersLinger is how long a group without members counts as one that has some.
	membersLinger = time.Minute
)

// Installer gives keys to the datapath and to the members.
type Installer interface {
	Install(keys []proto.GroupKey, retired []ids.Incarnation, timeout time.Duration) (missing int, err error)
}

// Config is what a Server works with.
type Config struct {
	Key         *ecdsa.PrivateKey // of the node: signs its adverts
	NetworkID   uint64
	Genesis     [32]byte
	Incarnation ids.Incarnation
	DataPort    uint16
	Groups      []ids.Group   // served
	Neighbours  []*enode.Node // the allow-list at the start: all RPs, with IPv6 addresses; itself is ignored
	Finds       bool          // others are looked for: see SetNeighbours

	Operator string    // who runs this RP, at most linkstate.MaxOperator bytes
	Mode     tree.Mode // the same in all of the mesh, as is Alpha
	Alpha    int       // of tree.Light, in percent; 0 for the default
	Budget   int       // children in one tree, 0 for no bound

	// Outlives says that the datapath goes on when this process dies.
	Outlives bool

	// Adopted and Routes are those of a datapath that outlived another process, nil
	// without one: its sessions with neighbours and its routes are the Server's.
	Adopted *datapath.Orphans
	Routes  []datapath.Route

	// Publishes says that there are publishers from the start on: those of an adopted
	// datapath.
	Publishes bool

	// Egress and EgressBurst limit the copies of what a neighbour sends, see
	// datapath.Session.
	Egress, EgressBurst uint64

	// Measure returns the round-trip times to nodes, as far as they answer. A mesh of
	// linkstate.FullMesh RPs or more needs it to choose neighbours; without it they
	// are chosen at random.
	Measure func(ctx context.Context, nodes []*enode.Node) map[enode.ID]time.Duration

	// Connect is told to which nodes there shall be connections, at the start and
	// when that changes, and whether all of them connect, too. Others of the allow-list
	// connect by themselves.
	Connect func(nodes []*enode.Node, mutual bool)

	// Receipted is told what is known of objects that the peer of a session published,
	// and Counted, once per second, how many members the groups have; nil: nobody.
	Receipted func(session ids.Session, objects []proto.ObjectReceipt)
	Counted   func(groups []proto.Counters)

	Engine  datapath.Engine
	Hellos  *Hellos      // from the engine
	Cache   *cache.Cache // of what the engine replicated
	Asked   *Receipts    // of that, what asks for receipts
	Keys    *keyring.Ring
	Members *membership.Table
	Peers   Installer
	Rand    io.Reader // safe for concurrent use
	Log     *slog.Logger
	Events  *events.Hub // nil when nobody may listen
}

// Server is this RP's place in the mesh. New makes it, Start lets it take connections,
// Stop ends it for good.
type Server struct {
	cfg        Config
	log        *slog.Logger // of what neighbours and members cause: limited
	id         enode.ID
	self       linkstate.ID
	neighbours map[enode.ID]*neighbour     // changed by the goroutine of serve, with mu
	rps        map[linkstate.ID]*neighbour // the same by id

	inputs chan func()   // for the goroutine of serve
	quit   chan struct{} // closed by Stop
	done   chan struct{} // closed when the goroutine of serve has ended
	wg     sync.WaitGroup

	mu               sync.Mutex
	started, stopped bool
	list             []*enode.Node     // the neighbours as they were given
	shunned          map[enode.ID]bool // of them, to which no connection is to be made
	listed           chan struct{}     // closed when one of both changes

	// What follows belongs to the goroutine of serve.

	core     *linkstate.Core
	now      time.Time // of the newest input
	waited   bool      // for the engine, after a stop of the process
	links    map[linkstate.ID]*link
	sessions map[ids.Session]*link // the same by own index

	routes    map[ids.Incarnation]datapath.Route // that the datapath does not have yet
	refused   map[ids.Incarnation]bool           // whose newest it refused, and whether for want of room
	retryAt   time.Time                          // when it is asked for these again
	adopted   adopted
	beat      bool                             // somebody got the own keys
	beatUntil time.Time                        // for how long it counts that the own tree moved
	beatAt    time.Time                        // not before
	newest    []proto.Mark                     // of the engine, nil when to be asked for
	known     map[linkstate.ID]known           // from the database
	origins   map[ids.Incarnation]linkstate.ID // of ingress RPs, by incarnation
	swept     time.Time

	inhabited map[ids.Group]time.Time // groups, when they had members last

	keys       *keyring.Ring // as it goes to children
	ingresses  map[ids.Incarnation]*ingress
	stale      map[*ingress]bool // whose keys the members do not have
	installAt  time.Time         // they are told not before
	waits      []*wait
	waitsMoved bool // since they were looked at, something came that may end some

	admission
	resender *resender

	counters  Counters
	countedAt time.Time     // when members were counted last
	twins     uint64        // as the link state counted them last
	slowed    atomic.Uint64 // messages that were read later, of the goroutines of connections
}

// neighbour is a node of the allow-list.
type neighbour struct {
	node      *enode.Node
	id        linkstate.ID
	connected atomic.Bool

	log  *slog.Logger // of what the neighbour causes: limited
	pace pace         // of its messages

	// Of the goroutine of serve.
	link        *link           // nil without a connection
	incarnation ids.Incarnation // the latest, 0 when it was never known
	ban         ban
	hellos      bucket
	heard       time.Time // as the core knows

	// Sessions by which datagrams still go, although their connections ended. What goes
	// to the neighbour goes by the first one, until its new session is proven.
	outlived []outlived
}

// New returns a Server. It must be stopped when it was started.
func New(cfg Config) (*Server, error) {
	s := &Server{
		cfg:        cfg,
		id:         enode.PubkeyToIDV4(&cfg.Key.PublicKey),
		neighbours: make(map[enode.ID]*neighbour),
		rps:        make(map[linkstate.ID]*neighbour),
		inputs:     make(chan func()),
		quit:       make(chan struct{}),
		done:       make(chan struct{}),
		links:      make(map[linkstate.ID]*link),
		sessions:   make(map[ids.Session]*link),
		routes:     make(map[ids.Incarnation]datapath.Route),
		refused:    make(map[ids.Incarnation]bool),
		known:      make(map[linkstate.ID]known),
		origins:    make(map[ids.Incarnation]linkstate.ID),
		keys:       keyring.New(),
		ingresses:  make(map[ids.Incarnation]*ingress),
		stale:      make(map[*ingress]bool),
		inhabited:  make(map[ids.Group]time.Time),
		listed:     make(chan struct{}),
	}
	s.resender = newResender(&s.cfg, s.quit)
	s.self = linkstate.IDOf(s.id)
	s.log = limitlog.New(cfg.Log.Handler())
	ids := map[linkstate.ID]bool{s.self: true}
	for _, node := range cfg.Neighbours {
		if node.ID() == s.id {
			continue // so that all RPs of a mesh may have one list
		}
		if err := s.check(node, ids); err != nil {
			return nil, err
		}
		n := s.newNeighbour(node)
		ids[n.id] = true
		s.neighbours[node.ID()], s.rps[n.id] = n, n
		s.list = append(s.list, node)
	}
	return s, nil
}

func (s *Server) newNeighbour(node *enode.Node) *neighbour {
	log := limitlog.New(s.cfg.Log.Handler()).With("rp", node.ID().TerminalString(), "addr", node.IPAddr())
	return &neighbour{node: node, id: linkstate.IDOf(node.ID()), log: log}
}

// check says why a node cannot be a neighbour beside others with some ids.
func (s *Server) check(n *enode.Node, others map[linkstate.ID]bool) error {
	addr := n.IPAddr()
	switch {
	case !addr.Is6() || addr.Is4In6():
		return fmt.Errorf("neighbour %v: address %v is not ipv6", n.ID().TerminalString(), addr)
	case others[linkstate.IDOf(n.ID())]:
		return fmt.Errorf("neighbour %v: it stands twice, or the id of another node begins with the same 8 bytes", n.ID().TerminalString())
	}
	return nil
}

// Start begins to take part. The own group keys must be in Config.Keys.
func (s *Server) Start() error {
	var seed [16]byte
	if _, err := io.ReadFull(s.cfg.Rand, seed[:]); err != nil {
		return fmt.Errorf("no random bytes: %w", err)
	}
	rng := randv2.New(randv2.NewPCG(binary.BigEndian.Uint64(seed[:]), binary.BigEndian.Uint64(seed[8:])))
	budget := s.cfg.Budget
	if budget == 0 {
		budget = linkstate.MaxOrigins
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started || s.stopped {
		return fmt.Errorf("mesh started or stopped before")
	}
	s.started = true
	s.now = time.Now()
	s.adopt()
	expect, expectMore := s.expects()
	s.core = linkstate.New(s.now, linkstate.Config{
		Self:        s.self,
		Incarnation: s.cfg.Incarnation,
		Epoch:       uint64(s.now.Unix()),
		Operator:    s.cfg.Operator,
		Groups:      s.cfg.Groups,
		Budget:      budget,
		Mode:        s.cfg.Mode,
		Alpha:       s.cfg.Alpha,
		Expect:      expect,
		ExpectMore:  expectMore,
		Sign:        func(a linkstate.Advert) (*linkstate.Signed, error) { return linkstate.Sign(a, s.cfg.Key) },
		Verify:      linkstate.Verify,
		Allowed:     func(node [32]byte) bool { return node == s.id || s.neighbours[node] != nil },
		Marks:       s.marks,
		Rand:        rng,
	})
	for _, group := range s.cfg.Groups {
		s.inhabited[group] = s.now
	}
	s.countMembers()
	s.startKeys()
	s.startAdmission()
	s.cfg.Asked.start(s.cfg.Incarnation, s.cfg.Members)
	s.wg.Go(s.serve)
	s.wg.Go(s.resender.run)
	if s.cfg.Connect != nil {
		s.wg.Go(s.choose)
	}
	return nil
}

// serve does all that changes the state, one input after the other.
func (s *Server) serve() {
	defer close(s.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case f := <-s.inputs:
			s.now = time.Now()
			f()
		case h := <-s.cfg.Hellos.queue:
			s.now = time.Now()
			s.heardHello(h)
			s.heardHellos()
		case <-timer.C:
			if !s.tick() {
				timer.Reset(catchUp)
				continue
			}
		case <-s.quit:
			s.endAll()
			return
		}
		s.settle()
		timer.Reset(time.Until(s.core.Deadline()))
	}
}

// do has a function done by the goroutine that owns the state. It returns false when
// that has ended.
func (s *Server) do(f func()) bool {
	select {
	case s.inputs <- f:
		return true
	case <-s.done:
		return false
	}
}

// call is do, and waits until it is done.
func (s *Server) call(f func()) bool {
	done := make(chan struct{})
	return s.do(func() {
		defer close(done)
		f()
	}) && func() bool { <-done; return true }()
}

// tick does what is due. It returns false when the engine should have some time before,
// because the process had none.
func (s *Server) tick() bool {
	now := time.Now()
	if now.Sub(s.core.Deadline()) > linkstate.TreeInterval && !s.waited {
		s.waited = true
		return false
	}
	s.waited = false
	s.now = now
	s.heardHellos()
	for _, n := range s.neighbours {
		s.hear(n)
	}
	s.core.Tick(now)
	s.countMembers()
	s.tickLinks()
	s.tickHellos()
	s.tickBans()
	s.tickTwins()
	s.tickOutlived()
	s.tickKeys()
	s.tickAdmission()
	s.tickReceipts()
	if now.Sub(s.swept) >= sweepInterval {
		s.sweep()
	}
	return true
}

// hear tells the link state when datagrams came from a neighbour, by whatever session: those of one
// that is away come by the session before.
func (s *Server) hear(n *neighbour) {
	heard := n.heard
	for _, index := range n.sessions() {
		if at := s.cfg.Engine.Heard(index); at.After(heard) {
			heard = at
		}
	}
	if heard.After(n.heard) {
		n.heard = heard
		s.core.Heard(heard, n.id)
	}
}

// tickTwins warns of another RP with the same node key, a clone of this machine. The mesh
// can have only one of both.
func (s *Server) tickTwins() {
	if twins := s.core.Stats().Twins; twins != s.twins {
		s.twins = twins
		s.log.Warn("another RP has the node key of this one: give it a key of its own", "adverts", twins)
	}
}

// countMembers tells the mesh for which groups there are members. It takes up to a
// second until all parents know that there is a first one, so that a group counts as one
// that has some for a while after the last one left, and after the start.
func (s *Server) countMembers() {
	counts := s.cfg.Members.Members()
	var members []linkstate.Members
	for _, group := range s.cfg.Groups {
		n := counts[group]
		if n > 0 {
			s.inhabited[group] = s.now
		}
		if s.now.Sub(s.inhabited[group]) < membersLinger {
			members = append(members, linkstate.Members{Group: group, Count: uint32(max(n, 1))})
		}
	}
	s.core.SetMembers(s.now, members)
}

// Protocol returns the devp2p capability.
func (s *Server) Protocol() front.Protocol {
	return front.Protocol{
		Name: mesh.Name, Version: mesh.Version, Length: mesh.Length, MaxMessage: mesh.MaxMessage, Bounded: true, Dialled: true,
		Allowed: func(id enode.ID) bool { return s.neighbour(id) != nil }, Run: s.run,
	}
}

// Connected reports whether there is a connection to a neighbour.
func (s *Server) Connected(id enode.ID) bool {
	n := s.neighbour(id)
	return n != nil && n.connected.Load()
}

// Leave withdraws this RP from the trees, and returns when nobody gets the datagrams of
// other RPs from it any more, after 3 s at most.
func (s *Server) Leave() {
	s.call(func() { s.core.Leave(s.now) })
	deadline := time.NewTimer(leaveTimeout)
	defer deadline.Stop()
	look := time.NewTicker(leaveLook)
	defer look.Stop()
	for {
		served := 0
		if !s.call(func() { served = s.foreignChildren() }) || served == 0 {
			return
		}
		select {
		case <-look.C:
		case <-deadline.C:
			s.cfg.Log.Warn("mesh left while routes of other replication points went by here", "routes", served)
			return
		case <-s.quit:
			return
		}
	}
}

// foreignChildren counts who gets the datagrams of other RPs from here.
func (s *Server) foreignChildren() (n int) {
	for incarnation, in := range s.ingresses {
		if incarnation != s.cfg.Incarnation {
			n += len(in.route.Children)
		}
	}
	return n
}

// Stop ends all links with Bye. It returns when none is left.
func (s *Server) Stop() {
	s.mu.Lock()
	if !s.stopped {
		s.stopped = true
		close(s.quit)
		if !s.started {
			close(s.done)
		}
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// addr is where a neighbour's datagrams come from.
func (n *neighbour) addr() netip.Addr { return n.node.IPAddr() }
