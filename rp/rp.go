// SPDX-License-Identifier: LGPL-3.0-or-later

// Package rp is a replication point: it admits peers, copies each datagram that
// one of them publishes to all the others, and exchanges datagrams with the other
// replication points. It knows groups and neighbours, not transactions.
package rp

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/p2p/discover"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"golang.org/x/sync/singleflight"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/discovery"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/cache"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/events"
	"github.com/ethmcast/mdcs/rp/front"
	"github.com/ethmcast/mdcs/rp/keyring"
	"github.com/ethmcast/mdcs/rp/membership"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/mesh/tree"
	"github.com/ethmcast/mdcs/rp/meshside"
	"github.com/ethmcast/mdcs/rp/peerside"
)

// Config is what a replication point is made from.
type Config struct {
	PrivateKey  *ecdsa.PrivateKey // node key
	Address     netip.Addr        // IPv6, own and reachable
	ControlPort uint16            // TCP, 0 for any
	DataPort    uint16            // UDP, 0 for any

	NetworkID uint64
	Genesis   [32]byte
	Operator  string // who runs the RP, "" to tell nobody
	Discovery Discovery

	RekeyInterval time.Duration // between the epochs of the own group keys

	Settings // at first, see Set

	// GroupPort is the UDP port of the multicast channels. With 0 delivery mode ssm
	// is not offered; else the engine must be a datapath.Multicaster.
	GroupPort uint16
	HopLimit  uint8 // of the packets to channels, 0 for 1

	Mesh MeshConfig

	// BanFile keeps the bans of operators for the next RP, "" for no longer than this one.
	BanFile string

	// Engine opens the datapath.
	Engine func(datapath.Config) (datapath.Engine, error)

	// Choice tells, after Engine returned, why that engine is in use. Optional.
	Choice func() Choice

	Log *slog.Logger

	// Rand is the source of keys and indexes, safe for concurrent use; crypto/rand
	// when nil.
	Rand io.Reader
}

// MeshConfig is how an RP takes part in the mesh. Mode and Alpha must be the same at all
// RPs: each computes the trees for itself.
type MeshConfig struct {
	Mode   tree.Mode
	Alpha  int // of tree.Light, in percent; 0 for the default
	Budget int // RPs that get copies of one datagram from here, 0 for no bound
}

// orphanGrace is how long sessions and streams of an adopted datapath wait for those
// whom they belong to (SPEC section 11).
const orphanGrace = 30 * time.Second

// orphanAgain is how long to wait before the engine is asked again for what it did not end.
const orphanAgain = 5 * time.Second

// RP is a replication point. New makes it, Start lets it serve, Stop ends it for
// good.
type RP struct {
	cfg    Config
	self   enode.ID
	groups []ids.Group

	// Drawn by New, replaced by Start when the engine adopted a datapath.
	incarnation ids.Incarnation
	handleKey   auth.Key

	keys    *keyring.Ring
	members *membership.Table
	events  *events.Hub

	// Set by Start.
	started time.Time
	adopted bool   // the datapath of an RP that died
	abandon func() // closes its engine and leaves it to the next start, nil if not adopted
	engine  datapath.Engine
	peers   *peerside.Server
	mesh    *meshside.Server
	server  *server
	disc    *discover.UDPv5
	finder  *discovery.Finder // nil when neighbours are not looked for

	counting singleflight.Group // calls of count

	cancel context.CancelFunc
	wg     sync.WaitGroup // heartbeat and rekeying

	redirects redirects
	vitals    *vitals

	allowing sync.Mutex            // held by allow, before settings
	settings sync.Mutex            // of cfg.Settings and foundRPs
	foundRPs []discovery.Candidate // in the order in which they are preferred

	lifecycle sync.Mutex // held by Start and Stop
	state     atomic.Uint32
}

// States of an RP, in order.
const (
	created = iota
	serving
	stopped
)

// New checks the configuration and draws what is random about this incarnation.
func New(cfg Config) (*RP, error) {
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("rp: %w", err)
	}
	r := &RP{
		cfg:     cfg,
		self:    enode.PubkeyToIDV4(&cfg.PrivateKey.PublicKey),
		keys:    keyring.New(),
		members: membership.New(cfg.Limits, cfg.Rand),
		events:  events.NewHub(),
		vitals:  newVitals(),
	}
	for _, topic := range topics {
		r.groups = append(r.groups, proto.GroupID(cfg.NetworkID, cfg.Genesis, topic))
	}
	var err error
	if r.incarnation, err = linkstate.DrawIncarnation(linkstate.IDOf(r.self), cfg.Rand); err != nil {
		return nil, fmt.Errorf("rp: %w", err)
	}
	if _, err := io.ReadFull(cfg.Rand, r.handleKey[:]); err != nil {
		return nil, fmt.Errorf("rp: no random handle key: %w", err)
	}
	return r, nil
}

func (c *Config) check() error {
	switch {
	case c.PrivateKey == nil:
		return errors.New("no private key")
	case !c.Address.Is6() || c.Address.Is4In6() || c.Address.IsUnspecified() || c.Address.IsMulticast():
		return fmt.Errorf("address %v is not one IPv6 address", c.Address)
	case c.Settings.check() != nil:
		return c.Settings.check()
	case c.RekeyInterval <= 0:
		return fmt.Errorf("rekey interval of %v", c.RekeyInterval)
	case c.Mesh.Alpha != 0 && c.Mesh.Alpha < tree.MinAlpha || c.Mesh.Budget < 0:
		return fmt.Errorf("alpha of %d percent, budget of %d copies", c.Mesh.Alpha, c.Mesh.Budget)
	case discovery.CheckOperator(c.Operator) != nil:
		return discovery.CheckOperator(c.Operator)
	case c.Engine == nil || c.Log == nil:
		return errors.New("no engine or no log")
	}
	return nil
}

// Start opens the ports and serves. An RP that failed to start is stopped; a datapath that
// it had adopted by then goes on, as if this process had not been.
func (r *RP) Start() error {
	r.lifecycle.Lock()
	defer r.lifecycle.Unlock()
	if r.state.Load() != created {
		return errors.New("rp: started before")
	}
	if err := r.start(); err != nil {
		r.state.Store(stopped)
		r.stop(r.abandon)
		return fmt.Errorf("rp: %w", err)
	}
	r.state.Store(serving)
	r.cfg.Log.Info("replication point serves", "enode", r.Self().URLv4(), "data", r.engine.Addr(),
		"incarnation", fmt.Sprintf("%08x", r.incarnation), "group", fmt.Sprintf("%08x", r.groups[0]),
		"neighbours", len(r.cfg.Neighbours))
	return nil
}

func (r *RP) start() error {
	cfg := &r.cfg
	hellos, repairs := meshside.NewHellos(), cache.New(cache.DefaultBytes, cache.DefaultAge)
	asked := meshside.NewReceipts()
	engine, err := cfg.Engine(datapath.Config{
		Addr:        netip.AddrPortFrom(cfg.Address, cfg.DataPort),
		Incarnation: r.incarnation,
		HandleKey:   r.handleKey,
		Owner:       r.owner(),
		MayBe:       func(incarnation ids.Incarnation) bool { return linkstate.Belongs(linkstate.IDOf(r.self), incarnation) },
		HopLimit:    cfg.HopLimit,
		Egress:      cfg.EgressTotal,
		EgressBurst: egressBurst(cfg.EgressTotal),
		Hello:       hellos.Hello,
		Cache: func(rec datapath.Record) {
			now := time.Now()
			repairs.Add(now, rec.Datagram)
			asked.Replicated(now, rec)
		},
	})
	if err != nil {
		return fmt.Errorf("data port: %w", err)
	}
	shown := engine
	var adopted *datapath.State
	var orphans *datapath.Orphans
	var routes []datapath.Route
	if a, ok := engine.(datapath.Adopter); ok {
		adopted = a.Adopted()
	}
	if adopted != nil {
		r.abandon = engine.(datapath.Adopter).Abandon
		r.incarnation, r.handleKey, r.adopted = adopted.Incarnation, adopted.HandleKey, true
		orphans, routes = datapath.NewOrphans(engine, adopted), adopted.Routes
		shown = orphans
	}
	r.engine = datapath.NewBatcher(shown)
	var link func(netip.Addr) (string, error)
	if cfg.GroupPort != 0 {
		m, ok := engine.(datapath.Multicaster)
		if !ok {
			return errors.New("delivery mode ssm: this engine does not replicate to multicast channels")
		}
		link = m.Link
	}

	resumeKey, err := r.resumeKey(engine)
	if err != nil {
		return err
	}
	r.peers = peerside.New(peerside.Config{
		Self: r.self,
		Status: proto.Status{
			Role:        proto.RoleRP,
			NetworkID:   cfg.NetworkID,
			Genesis:     cfg.Genesis,
			Incarnation: r.incarnation,
			DataPort:    r.engine.Addr().Port(),
			GroupPort:   cfg.GroupPort,
			Operator:    cfg.Operator,
		},
		Groups:    r.groups,
		Terms:     cfg.terms(),
		Others:    r.others,
		Replay:    func(session ids.Session, peer netip.Addr, marks []proto.Mark) { r.mesh.Replay(session, peer, marks) },
		Confirmed: func(session ids.Session, places []proto.Place) { asked.Confirm(time.Now(), session, places) },
		ResumeKey: resumeKey,
		Adopted:   orphans,
		BanFile:   cfg.BanFile,

		Admit:   func(publish bool) (<-chan struct{}, func()) { return r.mesh.Admit(publish) },
		Link:    link,
		Engine:  r.engine,
		Keys:    r.keys,
		Members: r.members,
		Rand:    cfg.Rand,
		Log:     cfg.Log,
		Events:  r.events,
	})
	r.mesh, err = meshside.New(meshside.Config{
		Key:         cfg.PrivateKey,
		NetworkID:   cfg.NetworkID,
		Genesis:     cfg.Genesis,
		Incarnation: r.incarnation,
		DataPort:    r.engine.Addr().Port(),
		Groups:      r.groups,
		Neighbours:  cfg.Neighbours,
		Finds:       cfg.Discovery.finds(),
		Operator:    cfg.Operator,
		Mode:        cfg.Mesh.Mode,
		Alpha:       cfg.Mesh.Alpha,
		Budget:      cfg.Mesh.Budget,
		Publishes:   adopted != nil,
		Outlives:    resumeKey != nil,
		Adopted:     orphans,
		Routes:      routes,
		Egress:      cfg.EgressPerRP,
		EgressBurst: egressBurst(cfg.EgressPerRP),
		Measure: func(ctx context.Context, nodes []*enode.Node) map[enode.ID]time.Duration {
			return discovery.Measure(ctx, r.disc, nodes)
		},
		Connect:   func(nodes []*enode.Node, mutual bool) { r.server.dialer.setNeighbours(nodes, mutual) },
		Receipted: r.peers.Receipts,
		Counted:   r.peers.SetCounters,
		Engine:    r.engine,
		Hellos:    hellos,
		Cache:     repairs,
		Asked:     asked,
		Keys:      r.keys,
		Members:   r.members,
		Peers:     r.peers,
		Rand:      cfg.Rand,
		Log:       cfg.Log,
		Events:    r.events,
	})
	if err != nil {
		return err
	}
	if err := r.firstKeys(adopted); err != nil {
		return err
	}
	r.server, err = startServer(serverConfig{
		Key:       cfg.PrivateKey,
		Address:   cfg.Address,
		Port:      cfg.ControlPort,
		Limits:    front.LimitsFor(cfg.Limits.Sessions, cfg.Limits.Per64, cfg.Limits.Per48),
		Trusted:   cfg.Neighbours,
		Protocols: []front.Protocol{r.mesh.Protocol(), r.peers.Protocol()}, // between RPs the mesh has the word
		Banned:    r.peers.BannedAddr,
		Log:       cfg.Log,
	})
	if err != nil {
		return fmt.Errorf("control port: %w", err)
	}
	if err := r.listenDiscovery(); err != nil {
		return fmt.Errorf("discovery port: %w", err)
	}
	if err := r.mesh.Start(); err != nil {
		return err
	}
	if err := r.find(); err != nil {
		return fmt.Errorf("discovery: %w", err)
	}

	r.started = time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.askEngine()
	r.vitals.mesh.beat()
	r.vitals.heartbeats.beat()
	r.wg.Go(func() { r.heartbeat(ctx) })
	r.wg.Go(func() { r.feelEngine(ctx) })
	r.wg.Go(func() { r.feelMesh(ctx) })
	r.wg.Go(func() { r.rekey(ctx) })
	if orphans != nil {
		r.wg.Go(func() { r.expire(ctx, orphans) })
	}
	return nil
}

// owner tells this RP from others at the same address: by node key and chain.
func (r *RP) owner() (owner [16]byte) {
	b := binary.BigEndian.AppendUint64(slices.Clone(r.self[:]), r.cfg.NetworkID)
	hash := sha256.Sum256(append(b, r.cfg.Genesis[:]...))
	copy(owner[:], hash[:])
	return owner
}

// egressBurst returns how many bytes of copies may leave at once: those of a quarter
// of a second, as default rate and burst have it for datagrams.
func egressBurst(egress uint64) uint64 { return max(1, egress/4) }

// expire ends what is left of an adopted datapath, unless ctx ends before. What the engine does
// not end at once it is asked for again.
func (r *RP) expire(ctx context.Context, orphans *datapath.Orphans) {
	for wait := orphanGrace; ; wait = orphanAgain {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		err := orphans.Expire()
		if err == nil || errors.Is(err, datapath.ErrClosed) {
			return
		}
		r.cfg.Log.Error("adopted sessions not ended, it is tried again", "in", orphanAgain, "err", err)
	}
}

// Stop leaves the mesh, which takes up to 3 s if other RPs have to find another way,
// tells the peers and the neighbours, closes the ports, and returns when nothing of the
// RP runs any more.
func (r *RP) Stop() {
	r.lifecycle.Lock()
	defer r.lifecycle.Unlock()
	if r.state.Swap(stopped) != serving {
		return
	}
	r.mesh.Leave()
	r.stop(nil)
	r.cfg.Log.Info("replication point stopped")
}

// stop undoes what start did, as far as it came. abandon, unless nil, ends the engine and
// leaves its datapath to the next start.
func (r *RP) stop(abandon func()) {
	if r.cancel != nil {
		r.cancel()
	}
	r.stopDiscovery()
	if r.server != nil {
		r.server.close()
	}
	if r.peers != nil {
		r.peers.Stop()
	}
	if r.mesh != nil {
		r.mesh.Stop()
	}
	r.wg.Wait()
	if r.server != nil {
		r.server.stop()
	}
	if abandon != nil {
		abandon()
	}
	if r.engine != nil {
		if err := r.engine.Close(); err != nil {
			r.cfg.Log.Error("datapath not closed", "err", err)
		}
	}
}

// Self returns the node record: address and control port. The RP must be started.
func (r *RP) Self() *enode.Node { return r.server.self() }

// SetNeighbours says which RPs of the allow-list, configured or found, to keep a
// connection with until that changes, at first all of them. A connection that stands with another one is left alone, and one that
// another one makes is taken. The RP must be started.
func (r *RP) SetNeighbours(nodes []*enode.Node) error {
	r.lifecycle.Lock()
	defer r.lifecycle.Unlock()
	if r.state.Load() != serving {
		return errors.New("rp: not serving")
	}
	allowed := r.mesh.Neighbours()
	for _, n := range nodes {
		if !slices.ContainsFunc(allowed, func(a *enode.Node) bool { return a.ID() == n.ID() }) {
			return fmt.Errorf("rp: neighbour %v is not on the allow-list", n.ID().TerminalString())
		}
	}
	r.server.dialer.setNeighbours(nodes, true)
	return nil
}

// Incarnation returns the number that this RP stamps as ingress RP. The RP must be
// started.
func (r *RP) Incarnation() ids.Incarnation { return r.incarnation }

// Addr returns the data endpoint. The RP must be started.
func (r *RP) Addr() netip.AddrPort { return r.engine.Addr() }

// Tree returns the tree of an ingress RP, named by the first 8 bytes of its node id, as
// it was computed here; false when there is none. The RP must be started.
func (r *RP) Tree(ingress linkstate.ID) ([]meshside.Edge, bool) { return r.mesh.Tree(ingress) }

// Status is a view of everything that the RP counts.
type Status struct {
	Incarnation ids.Incarnation // that this RP stamps as ingress RP
	Datapath    datapath.Stats
	Peers       peerside.Stats
	Mesh        meshside.Stats
	Sessions    int               // of peers, admitted or not
	Members     map[ids.Group]int // by group
	Health      Health
	Choice      Choice
	Front       front.Stats

	Discovery discovery.Status // zero when neighbours are not looked for

	// Hangs says that a part of the RP did not answer in time. Then Health tells which,
	// and the counters are missing: all but Incarnation, Health and Choice is zero.
	Hangs bool
}

// statusPatience is how long a view waits for the parts of the RP. mdcs and Prometheus wait
// for 10 s.
const statusPatience = 5 * time.Second

// Status returns the counters. It answers also when parts of the RP hang. The RP must be
// started.
func (r *RP) Status() Status {
	var st Status
	timer := time.NewTimer(statusPatience)
	defer timer.Stop()
	select {
	case counted := <-r.counting.DoChan("", func() (any, error) { return r.count(), nil }):
		st = counted.Val.(Status)
	case <-timer.C:
		st.Incarnation, st.Hangs = r.incarnation, true
	}
	st.Health, st.Choice = r.Health(), r.Choice()
	return st
}

// count asks all parts of the RP what they counted.
func (r *RP) count() Status {
	st := Status{
		Incarnation: r.incarnation,
		Datapath:    r.engine.Stats(),
		Peers:       r.peers.Stats(),
		Mesh:        r.mesh.Stats(),
		Sessions:    r.members.Sessions(),
		Members:     r.members.Members(),
		Front:       r.server.Stats(),
	}
	if r.finder != nil {
		st.Discovery = r.finder.Status()
	}
	return st
}
