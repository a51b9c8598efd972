// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/cache"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/datapathtest"
	"github.com/ethmcast/mdcs/rp/front/fronttest"
	"github.com/ethmcast/mdcs/rp/keyring"
	"github.com/ethmcast/mdcs/rp/membership"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/mesh/tree"
)

const group = 5

// install is what an Installer was told.
type install struct {
	keys    []proto.GroupKey
	retired []ids.Incarnation
}

// installer is an Installer whose members take their time.
type installer struct {
	engine datapath.Engine
	takes  atomic.Int64 // nanoseconds

	mu   sync.Mutex
	done []install
}

func (i *installer) Install(keys []proto.GroupKey, retired []ids.Incarnation, timeout time.Duration) (int, error) {
	time.Sleep(min(time.Duration(i.takes.Load()), timeout))
	i.mu.Lock()
	defer i.mu.Unlock()
	i.done = append(i.done, install{keys, retired})
	return 0, i.engine.Apply(datapath.Change{Keys: keys, Retire: retired})
}

// take returns what was installed since the last call.
func (i *installer) take() []install {
	i.mu.Lock()
	defer i.mu.Unlock()
	done := i.done
	i.done = nil
	return done
}

// engine is a Recorder that knows what its changes came to, and newest sequences.
type engine struct {
	*datapathtest.Recorder

	mu       sync.Mutex
	sessions map[ids.Session]datapath.Session
	routes   map[ids.Incarnation]datapath.Route
	keys     map[ids.Incarnation][]proto.GroupKey
	marks    []proto.Mark
	closed   bool // nothing changes any more

	takes atomic.Int64 // ns that a change takes, and to tell the newest sequences
}

func newEngine() *engine {
	e := &engine{
		Recorder: new(datapathtest.Recorder), sessions: make(map[ids.Session]datapath.Session),
		routes: make(map[ids.Incarnation]datapath.Route), keys: make(map[ids.Incarnation][]proto.GroupKey),
	}
	e.OnApply = e.apply
	return e
}

func (e *engine) apply(c datapath.Change) error {
	time.Sleep(time.Duration(e.takes.Load()))
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return datapath.ErrClosed
	}
	if err := c.Refusals(1).Err(); err != nil {
		return err
	}
	for _, index := range c.Remove {
		delete(e.sessions, index)
		for _, r := range e.routes {
			r.Keep(func(session ids.Session) bool { return session != index })
			e.routes[r.Ingress] = r
		}
	}
	for _, ingress := range c.Retire {
		delete(e.routes, ingress)
		delete(e.keys, ingress)
	}
	for _, k := range c.Keys {
		e.keys[k.Ingress] = append(e.keys[k.Ingress], k)
	}
	for _, s := range c.Add {
		e.sessions[s.Index] = s
	}
	for _, r := range c.Routes {
		if e.routes[r.Ingress] = r.Clone(); r.Ends() {
			delete(e.routes, r.Ingress)
		}
	}
	return nil
}

func (e *engine) refuse(closed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = closed
}

// state is what a process that adopts the datapath finds.
func (e *engine) state(incarnation ids.Incarnation) *datapath.State {
	e.mu.Lock()
	defer e.mu.Unlock()
	st := &datapath.State{Incarnation: incarnation}
	for _, index := range slices.Sorted(maps.Keys(e.sessions)) {
		st.Sessions = append(st.Sessions, e.sessions[index])
	}
	for _, ingress := range slices.Sorted(maps.Keys(e.routes)) {
		r := e.routes[ingress]
		st.Routes = append(st.Routes, r.Clone())
		st.Keys = append(st.Keys, e.keys[ingress]...)
	}
	return st
}

func (e *engine) Marks() []proto.Mark {
	time.Sleep(time.Duration(e.takes.Load()))
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.marks)
}

// point is one RP of a net.
type point struct {
	*Server
	net         *network
	name        byte
	incarnation ids.Incarnation
	node        *enode.Node
	engine      *engine
	installer   *installer
	dead        atomic.Bool // silent, as a host that lost its power
	killed      atomic.Bool // no process, but the datapath goes on
}

// network is RPs that are linked by pipes, in one process.
type network struct {
	t      *testing.T
	mu     sync.Mutex
	points map[byte]*point
	delay  map[[2]byte]time.Duration // one way; else a millisecond
}

func newNetwork(t *testing.T) *network {
	n := &network{t: t, points: make(map[byte]*point), delay: make(map[[2]byte]time.Duration)}
	t.Cleanup(n.stop)
	return n
}

const nodes = 5 // RPs on every allow-list

func keyOf(t *testing.T, name byte) *ecdsa.PrivateKey {
	key, err := crypto.ToECDSA(bytes.Repeat([]byte{name}, 32))
	require.NoError(t, err)
	return key
}

// nodeOf returns the node with the key n at 2001:db8::n.
func nodeOf(t *testing.T, name byte) *enode.Node {
	ip := netip.MustParseAddr("2001:db8::").AsSlice()
	ip[15] = name
	return enode.NewV4(&keyOf(t, name).PublicKey, ip, 30500, 0)
}

func idOf(t *testing.T, name byte) linkstate.ID { return linkstate.IDOf(nodeOf(t, name).ID()) }

// incarnationOf is one of those that belong to the RP with a name.
func incarnationOf(name byte, life int) ids.Incarnation {
	key, err := crypto.ToECDSA(bytes.Repeat([]byte{name}, 32))
	if err != nil {
		panic(err)
	}
	id := linkstate.IDOf(enode.PubkeyToIDV4(&key.PublicKey))
	for i := ids.Incarnation(name) << 24; ; i++ {
		if linkstate.Belongs(id, i) {
			if life == 0 {
				return i
			}
			life--
		}
	}
}

func firstKey(incarnation ids.Incarnation) proto.GroupKey {
	return proto.GroupKey{Ingress: incarnation, Group: group, Active: true, Key: auth.Key{byte(incarnation)}}
}

// start starts the RP with a name, whose allow-list has the names 1 to 5.
func (n *network) start(name byte, incarnation ids.Incarnation, edit ...func(*Config)) *point {
	return n.startOn(newEngine(), name, incarnation, edit...)
}

// startOn is start with an engine.
func (n *network) startOn(e *engine, name byte, incarnation ids.Incarnation, edit ...func(*Config)) *point {
	p := &point{net: n, name: name, incarnation: incarnation, node: nodeOf(n.t, name), engine: e}
	p.installer = &installer{engine: p.engine}
	p.engine.OnHello = p.hello
	cfg := Config{
		Key:         keyOf(n.t, name),
		NetworkID:   1,
		Incarnation: incarnation,
		DataPort:    30501,
		Groups:      []ids.Group{group},
		Mode:        tree.Light,
		Operator:    string('a' + rune(name)),
		Egress:      7,
		EgressBurst: 8,
		Engine:      p.engine,
		Hellos:      NewHellos(),
		Cache:       cache.New(cache.DefaultBytes, cache.DefaultAge),
		Asked:       NewReceipts(),
		Keys:        keyring.New(),
		Members:     membership.New(membership.Limits{}, rand.Reader),
		Peers:       p.installer,
		Rand:        rand.Reader,
		Log:         slog.New(slog.DiscardHandler),
	}
	for other := range byte(nodes) {
		if other+1 != name {
			cfg.Neighbours = append(cfg.Neighbours, nodeOf(n.t, other+1))
		}
	}
	cfg.Keys.Install([]proto.GroupKey{firstKey(incarnation)})
	for _, f := range edit {
		f(&cfg)
	}
	var err error
	p.Server, err = New(cfg)
	require.NoError(n.t, err)
	require.NoError(n.t, p.Start())
	n.mu.Lock()
	defer n.mu.Unlock()
	n.points[name] = p
	return p
}

// at returns the RP with a name, nil for none.
func (n *network) at(name byte) *point {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.points[name]
}

// chain starts RPs, each linked to the one before, and waits until the links are up.
func (n *network) chain(length byte) []*point {
	var points []*point
	for i := range length {
		points = append(points, n.start(i+1, incarnationOf(byte(i+1), 0)))
		if i > 0 {
			n.link(points[i-1], points[i])
		}
	}
	n.settle()
	return points
}

// settle lets the time pass that links and trees need.
func (n *network) settle() {
	time.Sleep(5 * time.Second)
	synctest.Wait()
}

func (n *network) stop() {
	for _, p := range n.points {
		p.Stop()
	}
}

func (n *network) way(a, b byte) time.Duration {
	if d := n.delay[[2]byte{min(a, b), max(a, b)}]; d != 0 {
		return d
	}
	return time.Millisecond
}

// wireEnd is one end of a connection, which a dead host does not write to.
type wireEnd struct {
	*p2p.MsgPipeRW
	from *point
}

func (w wireEnd) WriteMsg(m p2p.Msg) error {
	if w.from.dead.Load() {
		return m.Discard()
	}
	return w.MsgPipeRW.WriteMsg(m)
}

// link connects two RPs. Cut ends the connection.
func (n *network) link(a, b *point) (cut func()) {
	x, y := p2p.MsgPipe()
	for _, end := range []struct {
		at, to *point
		rw     *p2p.MsgPipeRW
	}{{a, b, x}, {b, a, y}} {
		go func() {
			_ = end.at.Protocol().Run(&fronttest.Conn{Node: end.to.node.ID(), RW: wireEnd{end.rw, end.at}})
			end.rw.Close()
		}()
	}
	return func() { x.Close(); y.Close() }
}

// hello delivers a hello after some time.
func (p *point) hello(session ids.Session, b [wire.HelloSize]byte) error {
	p.engine.mu.Lock()
	s, ok := p.engine.sessions[session]
	p.engine.mu.Unlock()
	if !ok {
		return datapath.ErrClosed
	}
	to := s.Addr.Addr().As16()[15]
	time.AfterFunc(p.net.way(p.name, to), func() {
		if o := p.net.at(to); o != nil && !o.dead.Load() && !p.dead.Load() && !p.killed.Load() {
			o.engine.SetHeard(s.SendSession, time.Now())
			o.cfg.Hellos.Hello(s.SendSession, b, time.Now())
		}
	})
	return nil
}

// reach follows a datagram of an ingress RP along the routes, as engines replicate it,
// and returns how many copies each RP accepted.
func (n *network) reach(ingress *point) map[byte]int {
	copies := make(map[byte]int)
	n.replicate(ingress, ingress, copies)
	return copies
}

func (n *network) replicate(ingress, at *point, copies map[byte]int) {
	at.engine.mu.Lock()
	route, sessions := at.engine.routes[ingress.incarnation], maps.Clone(at.engine.sessions)
	at.engine.mu.Unlock()
	for _, branch := range route.To {
		s := sessions[branch.Session]
		to := n.at(s.Addr.Addr().As16()[15])
		if to == nil || to.dead.Load() || !branch.Has(group) {
			continue
		}
		to.engine.mu.Lock()
		accepted := slices.Contains(to.engine.routes[ingress.incarnation].From, s.SendSession)
		to.engine.mu.Unlock()
		if !accepted {
			continue
		}
		if copies[to.name]++; copies[to.name] == 1 {
			n.replicate(ingress, to, copies)
		}
	}
}

// has reports whether the datapath of an RP has a key.
func (p *point) has(k proto.GroupKey) bool {
	p.engine.mu.Lock()
	defer p.engine.mu.Unlock()
	k.Active = false
	return slices.Contains(p.engine.keys[k.Ingress], k)
}

// join makes a peer a member.
func (p *point) join() {
	index, err := p.cfg.Members.Reserve(p.node.IPAddr())
	require.NoError(p.net.t, err)
	p.cfg.Members.Admit(index, []ids.Group{group})
}

// within waits until something holds, and returns how long that took.
func within(t *testing.T, limit time.Duration, holds func() bool) time.Duration {
	t.Helper()
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		synctest.Wait()
		took := time.Since(start)
		if holds() {
			return took
		}
		if took > limit {
			t.Fatalf("does not hold after %v", limit)
		}
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
