// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/nexthop"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/objects"
)

// table is what the control plane wants, and which elements of BPF maps
// belong to what.
type table struct {
	e        *Engine
	sessions map[ids.Session]*session
	streams  map[ids.Stream]*stream
	groups   map[ids.Group]*group
	routes   map[ids.Incarnation]*datapath.Route
	branches map[bpf.RpBranchKey]bpf.RpBranch // of the routes, as the BPF map has them
	cpus     []uint32                         // that fan out

	// mu is held while the thread changes sessions: others may look one up.
	mu sync.RWMutex

	own atomic.Pointer[[]ownStream] // for heartbeats; what it leads to never changes

	// What the BPF maps do not follow yet.
	touched   map[ids.Session]bool // sessions: what they get, and by which next hop
	meshMoved bool                 // routes, streams, or sessions of RP neighbours
	all       bool                 // everything, as when a device is another one

	// Which site has which element of egresses, and what all copies may take.
	sites               datapath.Sites[uint32]
	egress, egressBurst uint64

	sessionStates fanout.Elements
	shares        fanout.Elements
	streamStates  fanout.Elements
}

// session is a Session. It never changes, but for the path to where it is: a replacement is another
// session that may share the state.
type session struct {
	datapath.Session
	at    *nexthop.Endpoint
	state *sessionState
	site  *datapath.Place[uint32] // whose share it uses, nil for none
}

// sessionState outlives a replacement with the same key.
type sessionState struct {
	element uint32
	copies  atomic.Uint64          // by slices that are gone, and by the socket
	noWay   atomic.Pointer[string] // why copies cannot leave, nil when they can; of RPs
}

// stream is the state of one (ingress RP, group).
type stream struct {
	id      ids.Stream
	keys    []epochKey // oldest first, at most EpochsKept
	element uint32
	chain   *fanout.Chain // of its datagrams: ECHO when they are own, branches, then the group's peers

	branches []ids.Session // sessions of RP neighbours that get it
}

type epochKey struct {
	epoch uint8
	key   auth.Key
}

// ownStream is what a heartbeat of an own stream needs. An own stream and its group stay as
// long as the engine.
type ownStream struct {
	id       ids.Stream
	key      epochKey // the older one: all receivers have it, those too that the newer one has yet to reach
	element  uint32
	cpu      uint32
	all      uint32        // anchor of the chain of all receivers
	local    uint32        // anchor of the chain of peers and channels
	branches []ids.Session // sessions of RP neighbours that get the group
	peers    int           // peers and channels
}

// group is the peers and channels that get a group's datagrams.
type group struct {
	id       ids.Group
	peers    *fanout.Chain
	sessions int                  // that name it, silent ones too
	absent   map[ids.Session]bool // sessions of it without a next hop
}

// receivers is how many get a group's datagrams, with next hop or without.
func (g *group) receivers() int { return g.peers.Len() + len(g.absent) }

func newTable(e *Engine) *table {
	return &table{
		e:             e,
		sessions:      make(map[ids.Session]*session),
		streams:       make(map[ids.Stream]*stream),
		groups:        make(map[ids.Group]*group),
		routes:        make(map[ids.Incarnation]*datapath.Route),
		branches:      make(map[bpf.RpBranchKey]bpf.RpBranch),
		touched:       make(map[ids.Session]bool),
		all:           true,
		sessionStates: fanout.NewElements(0, e.objects.States.MaxEntries()),
		streamStates:  fanout.NewElements(0, e.objects.StreamStates.MaxEntries()),
		shares:        fanout.NewElements(1, e.objects.Egresses.MaxEntries()), // 0 is of all copies
		egress:        e.cfg.Egress,
		egressBurst:   e.cfg.EgressBurst,
	}
}

// expire ends quarantines.
func (t *table) expire(now time.Time) {
	t.sessionStates.Expire(now)
	t.streamStates.Expire(now)
	t.shares.Expire(now)
	t.shares.GiveBack(t.sites.Expire(now.Sub(t.e.boot))...)
}

// lookup returns a session, nil for none. It may be called by anybody.
func (t *table) lookup(index ids.Session) *session {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.sessions[index]
}

// withState calls f with what moves of a session, unless there is none. It may be called by
// anybody; f must not wait.
func (t *table) withState(index ids.Session, f func(*session, *bpf.RpSessionState)) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if s := t.sessions[index]; s != nil {
		f(s, t.e.objects.Memory.Sessions.At(s.state.element))
	}
}

// clear forgets the sessions before the memory of the BPF maps goes.
func (t *table) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.sessions)
}

// check returns the elements of a change that contradict their contract.
func (t *table) check(c datapath.Change) *datapath.Refused {
	refused := c.Refusals(t.e.cfg.Incarnation)
	for i := range c.Add {
		s := &c.Add[i]
		if s.Role == datapath.Channel && refused.Sessions[s.Index] == nil {
			index, _ := datapath.Interface(s.Addr.Addr()) // as checked
			if err := t.e.serves(index); err != nil {
				refused.Session(s.Index, fmt.Errorf("session %08x: channel %v: %w", s.Index, s.Addr, err))
			}
		}
		if len(distinct(s.Groups)) > MaxGroups {
			refused.Session(s.Index, fmt.Errorf("%w: session %08x: more than %d groups", datapath.ErrContract, s.Index, MaxGroups))
		}
	}
	for i := range c.Routes {
		r := &c.Routes[i]
		for _, b := range r.To {
			if len(distinct(b.Groups)) > MaxGroups {
				refused.Route(r.Ingress, fmt.Errorf("%w: route of %08x: more than %d groups to session %08x",
					datapath.ErrContract, r.Ingress, MaxGroups, b.Session))
			}
		}
	}
	return refused
}

func distinct(groups []ids.Group) []ids.Group {
	return slices.Compact(slices.Sorted(slices.Values(groups)))
}

// apply makes a change, see datapath.Engine. After the checks only the kernel can refuse,
// which it does when memory is short.
func (e *Engine) apply(c datapath.Change) error {
	t := e.table
	refused := t.check(c)
	t.admit(c, refused)
	paths := make([]nexthop.Path, len(c.Add))
	for i := range c.Add {
		if refused.Sessions[c.Add[i].Index] == nil {
			paths[i], _ = e.paths.Route(c.Add[i].Addr.Addr()) // without one it waits for a change of routes
		}
	}

	publishers, rps := t.sites.Counts()
	for _, index := range c.Remove {
		t.remove(index)
	}
	for _, ingress := range c.Retire {
		if refused.Routes[ingress] == nil {
			t.retire(ingress)
		}
	}
	for i := range c.Keys {
		k := &c.Keys[i]
		id := k.Stream()
		if refused.Keys[id] != nil {
			continue
		}
		if err := t.install(k); err != nil {
			refused.Key(id, fmt.Errorf("%w: %w", datapath.ErrNoRoom, err))
		}
	}
	type made struct {
		undo   func()
		late   func(*arrears) error // why it is to be undone
		refuse func(error)
	}
	all := make([]made, 0, len(c.Add)+len(c.Routes))
	for i := range c.Add {
		s := &session{Session: c.Add[i], at: nexthop.NewEndpoint(c.Add[i].Index, c.Add[i].Addr.Addr(), paths[i])}
		if refused.Sessions[s.Index] != nil {
			continue
		}
		s.Groups = distinct(s.Groups)
		old := t.sessions[s.Index]
		if err := t.add(s); err != nil {
			refused.Session(s.Index, fmt.Errorf("%w: %w", datapath.ErrNoRoom, err))
			continue
		}
		t.e.noteWay(s)
		all = append(all, made{
			func() { t.readd(s.Index, old) },
			func(b *arrears) error { return b.session(t, s.Index, old, s) },
			func(why error) { refused.Session(s.Index, why) },
		})
	}
	for i := range c.Routes {
		r := &c.Routes[i]
		if refused.Routes[r.Ingress] != nil {
			continue
		}
		old := t.routes[r.Ingress]
		t.route(r)
		all = append(all, made{
			func() { t.reroute(r.Ingress, old) },
			func(b *arrears) error { return b.route(r.Ingress) },
			func(why error) { refused.Route(r.Ingress, why) },
		})
	}
	if p, r := t.sites.Counts(); p != publishers || r != rps {
		t.share()
	}
	err := e.followChange(c)
	if err == nil {
		return refused.Err()
	}
	// What failed may be of others, and then none of these is to blame.
	b, chains := errors.AsType[*arrears](err)
	undone := false
	for _, m := range slices.Backward(all) {
		why := err
		if chains {
			why = m.late(b)
		}
		if why != nil {
			m.refuse(fmt.Errorf("%w: %w", datapath.ErrNoRoom, why))
			m.undo()
			undone = true
		}
	}
	if undone {
		t.share()
		_ = e.followChange(c) // what is left to do is tried again by time
	}
	return refused.Err()
}

// followChange makes the programs do what the table says of the elements of a change.
func (e *Engine) followChange(c datapath.Change) error {
	some := slices.Clone(c.Remove)
	for i := range c.Add {
		some = append(some, c.Add[i].Index)
	}
	return e.follow(some)
}

// follow makes the programs do what the table says of some sessions, and of all routes. What
// fails stays touched: it is to be tried again.
func (e *Engine) follow(some []ids.Session) error {
	t := e.table
	if t.meshMoved {
		if err := t.syncBranches(); err != nil {
			return err
		}
	}
	err := e.reconcile(some)
	if t.meshMoved {
		b, _ := errors.AsType[*arrears](err)
		t.syncUpstreams(b)
		t.meshMoved = err != nil
	}
	return err
}

// touch notes that a session is another one, or has another next hop.
func (t *table) touch(index ids.Session, sessions ...*session) {
	t.touched[index] = true
	for _, s := range sessions {
		t.meshMoved = t.meshMoved || s != nil && s.Role == datapath.Mesh
	}
}

// staying returns those of some sessions that are not there any more and may still get copies.
func (t *table) staying(removed []ids.Session) (stay []ids.Session) {
	for _, index := range removed {
		if t.touched[index] && t.sessions[index] == nil {
			stay = append(stay, index)
		}
	}
	return stay
}

// untidy reports whether the programs do not do yet what the table says.
func (t *table) untidy() bool { return t.all || t.meshMoved || len(t.touched) > 0 }

// someTouched returns touched sessions that get their copies by at most n slices of each
// group: one slice made anew serves all that it holds.
func (t *table) someTouched(n int) []ids.Session {
	some := make(map[ids.Session]bool)
	for index := range t.touched {
		if some[index] {
			continue
		}
		if n--; n < 0 {
			break
		}
		some[index] = true
		for _, g := range t.groups {
			s := g.peers.SliceOf(index)
			if s == nil {
				continue
			}
			for _, m := range s.Members() {
				if beside := m.To.SessionIndex(); t.touched[beside] {
					some[beside] = true
				}
			}
		}
	}
	return slices.Collect(maps.Keys(some))
}

// readd puts a session back that was replaced, with the state that it had, or removes its
// successor when there was none.
func (t *table) readd(index ids.Session, old *session) {
	if old == nil {
		t.remove(index)
		return
	}
	successor := t.sessions[index]
	_ = t.enter(old) // the site that it left is kept
	t.leave(successor)
	value := old.value()
	_ = t.e.objects.Sessions.Put(index, &value) // the BPF map has an element for its index
	if successor.state != old.state {
		t.sessionStates.Recall(old.state.element)
		t.sessionStates.Retire(successor.state.element, time.Now())
	}
	t.e.paths.Remove(successor.at)
	t.e.paths.Add(old.at)
	t.touch(index, old, successor)
	t.hold(index, old)
}

// reroute puts a route back that was replaced, or removes its successor when there was none.
func (t *table) reroute(ingress ids.Incarnation, old *datapath.Route) {
	if old == nil {
		delete(t.routes, ingress)
	} else {
		t.routes[ingress] = old
	}
	t.meshMoved = true
}

// route makes a route what is wanted.
func (t *table) route(want *datapath.Route) {
	r := want.Clone()
	for i := range r.To {
		r.To[i].Groups = distinct(r.To[i].Groups)
	}
	t.routes[r.Ingress] = &r
	t.meshMoved = true
}

func (t *table) isMesh(index ids.Session) bool {
	s := t.sessions[index]
	return s != nil && s.Role == datapath.Mesh
}

// syncBranches takes out of the routes what is no session of an RP neighbour, and writes
// down their branches.
func (t *table) syncBranches() error {
	for ingress, r := range t.routes {
		r.Keep(t.isMesh)
		if r.Ends() {
			delete(t.routes, ingress)
		}
	}
	want := make(map[bpf.RpBranchKey]bpf.RpBranch)
	for _, r := range t.routes {
		for _, b := range r.To {
			var value bpf.RpBranch
			value.GroupsLen = uint32(objects.NumbersOf(b.Groups, value.Groups[:]))
			want[bpf.RpBranchKey{Ingress: uint32(r.Ingress), Session: uint32(b.Session)}] = value
		}
	}
	for key, value := range want {
		if have, ok := t.branches[key]; ok && have == value {
			continue
		}
		if err := t.e.objects.Branches.Put(key, &value); err != nil {
			return fmt.Errorf("branch of %08x to session %08x: %w", key.Ingress, key.Session, err)
		}
		t.branches[key] = value
	}
	for key := range t.branches {
		if _, ok := want[key]; ok {
			continue
		}
		if err := t.e.objects.Branches.Delete(key); err != nil {
			return fmt.Errorf("branch of %08x to session %08x: %w", key.Ingress, key.Session, err)
		}
		delete(t.branches, key)
	}
	return nil
}

// syncUpstreams makes the programs accept each stream from the upstreams of its route, and
// follow the heartbeats of the first. One that stays is accepted all the time. A stream whose
// branches are behind is accepted from no other upstream yet.
func (t *table) syncUpstreams(b *arrears) {
	for id, s := range t.streams {
		var from []ids.Session
		if r := t.routes[id.Ingress]; r != nil {
			from = r.From
		}
		words := &t.e.objects.Memory.Streams.At(s.element).Upstreams
		if b != nil && b.streams[id] != nil {
			from = slices.DeleteFunc(slices.Clone(from), func(session ids.Session) bool { return !slices.Contains(words[:], uint64(session)) })
		}
		stays := func(word uint64) bool { return word != 0 && slices.Contains(from, ids.Session(word)) }
		next := 0
		for _, session := range from {
			if slices.Contains(words[:], uint64(session)) {
				continue
			}
			for stays(words[next]) {
				next++
			}
			atomic.StoreUint64(&words[next], uint64(session))
		}
		for i := range words {
			if words[i] != 0 && !stays(words[i]) {
				atomic.StoreUint64(&words[i], 0)
			}
		}
		parent := uint64(0)
		if len(from) > 0 {
			parent = uint64(from[0])
		}
		atomic.StoreUint64(&t.e.objects.Memory.Streams.At(s.element).Parent, parent)
	}
}

// add starts a session, or puts it in another one's place. With an error nothing changed.
func (t *table) add(s *session) error {
	for _, id := range s.Groups {
		if _, err := t.group(id); err != nil {
			return err
		}
	}
	old := t.sessions[s.Index]
	fresh := old == nil || old.ReceiveKey != s.ReceiveKey
	if fresh {
		element, err := t.sessionStates.Take()
		if err != nil {
			return fmt.Errorf("session %08x: %w", s.Index, err)
		}
		s.state = &sessionState{element: element}
		*t.e.objects.Memory.Sessions.At(element) = bpf.RpSessionState{Session: uint64(s.Index)}
		if s.Role == datapath.Mesh {
			t.unfollow(element)
		}
	} else {
		s.state = old.state
	}
	err := t.enter(s)
	if err == nil {
		value := s.value()
		if err = t.e.objects.Sessions.Put(s.Index, &value); err != nil {
			t.leave(s)
		}
	}
	if err != nil {
		if fresh {
			t.sessionStates.GiveBack(s.state.element)
		}
		return fmt.Errorf("session %08x: %w", s.Index, err)
	}
	if fresh && old != nil {
		t.sessionStates.Retire(old.state.element, time.Now())
	}
	if old != nil {
		t.e.paths.Remove(old.at)
		t.leave(old)
	}
	t.e.paths.Add(s.at)
	t.touch(s.Index, old, s)
	t.hold(s.Index, s)
	return nil
}

// followedElement are the bits of a stream's followed HEARTBEAT that name the state of its
// session, FOLLOWED_STATE_BITS of the programs.
const followedElement = 1<<24 - 1

// unfollow forgets the HEARTBEATs that streams followed of the session that had an element before.
func (t *table) unfollow(element uint32) {
	for _, s := range t.streams {
		if word := &t.e.objects.Memory.Streams.At(s.element).Followed; atomic.LoadUint64(word)&followedElement == uint64(element) {
			atomic.StoreUint64(word, 0)
		}
	}
}

// hold makes a session that of an index, or with nil leaves the index without one. The
// groups of the session are there.
func (t *table) hold(index ids.Session, s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.sessions[index]; old != nil {
		for _, id := range old.Groups {
			t.groups[id].sessions--
		}
	}
	if s == nil {
		delete(t.sessions, index)
		return
	}
	for _, id := range s.Groups {
		t.groups[id].sessions++
	}
	t.sessions[index] = s
}

// enter gives a session its site, whose bucket is full when there was none.
func (t *table) enter(s *session) (err error) {
	site, ok := s.Site()
	if !ok {
		return nil
	}
	s.site, err = t.sites.Enter(site, func() (uint32, error) {
		element, err := t.shares.Take()
		if err == nil {
			t.e.objects.SetEgress(element, t.sites.Share(site, t.egress, t.egressBurst))
			t.e.objects.FillEgress(element)
		}
		return element, err
	})
	return err
}

// leave is the inverse of enter.
func (t *table) leave(s *session) {
	if s.site != nil {
		t.sites.Leave(s.site, time.Since(t.e.boot))
	}
}

// share makes the policers of the sites' shares those of now.
func (t *table) share() {
	for p := range t.sites.All() {
		t.e.objects.SetEgress(p.Bucket, t.sites.Share(p.Site, t.egress, t.egressBurst))
	}
}

// value is the session as the programs have it.
func (s *session) value() bpf.RpSession {
	site := uint32(0)
	if s.site != nil {
		site = s.site.Bucket
	}
	return objects.SessionValue(&s.Session, s.state.element, site)
}

func (t *table) remove(index ids.Session) {
	s := t.sessions[index]
	if s == nil {
		return
	}
	_ = t.e.objects.Sessions.Delete(index) // it is there, and a hash map lets go of what it has
	t.e.paths.Remove(s.at)
	t.leave(s)
	t.touch(index, s)
	t.hold(index, nil)
	t.sessionStates.Retire(s.state.element, time.Now())
}

// group returns a group, which is there as long as the engine: its id comes from the
// control plane's configuration.
func (t *table) group(id ids.Group) (*group, error) {
	if g := t.groups[id]; g != nil {
		return g, nil
	}
	peers, err := t.e.fanout.NewChain(nil)
	if err != nil {
		return nil, fmt.Errorf("group %08x: %w", id, err)
	}
	t.groups[id] = &group{id: id, peers: peers, absent: make(map[ids.Session]bool)}
	return t.groups[id], nil
}

// streamChain returns the chain of a stream, without slices, before that of the group's peers.
func (t *table) streamChain(id ids.Stream) (*fanout.Chain, error) {
	g, err := t.group(id.Group)
	if err != nil {
		return nil, err
	}
	c, err := t.e.fanout.NewChain(g.peers)
	if err != nil {
		return nil, fmt.Errorf("stream %08x/%08x: %w", id.Ingress, id.Group, err)
	}
	return c, nil
}

// install adds a key, and its stream when that is new. With an error nothing changed.
func (t *table) install(k *proto.GroupKey) error {
	id := k.Stream()
	s := t.streams[id]
	if s == nil {
		chain, err := t.streamChain(id)
		if err != nil {
			return err
		}
		element, err := t.streamStates.Take()
		if err != nil {
			chain.GiveBack()
			return fmt.Errorf("stream %08x/%08x: %w", id.Ingress, id.Group, err)
		}
		s = &stream{id: id, element: element, chain: chain}
		*t.e.objects.Memory.Streams.At(element) = bpf.RpStreamState{}
	}
	s.keys = slices.DeleteFunc(slices.Clone(s.keys), func(have epochKey) bool { return have.epoch == k.Epoch })
	s.keys = append(s.keys, epochKey{k.Epoch, k.Key})
	s.keys = s.keys[max(0, len(s.keys)-datapath.EpochsKept):]
	t.write(s)
	if t.streams[id] != nil {
		return nil
	}
	if err := t.e.objects.Streams.Put(streamKey(id), &bpf.RpStream{State: s.element}); err != nil {
		s.chain.GiveBack()
		t.streamStates.GiveBack(s.element)
		return fmt.Errorf("stream %08x/%08x: %w", id.Ingress, id.Group, err)
	}
	t.streams[id] = s
	t.meshMoved = true
	return nil
}

// cpu returns the one that fans out a stream.
func (t *table) cpu(s *stream) uint32 { return t.cpus[int(s.element)%len(t.cpus)] }

// write makes a stream of the programs what it is here, word by word: the programs use it meanwhile. A key that stays
// is there all the time.
func (t *table) write(s *stream) {
	state := t.e.objects.Memory.Streams.At(s.element)
	state.Id = streamKey(s.id) // as it is already, or nobody uses it yet
	keeps := func(slot *bpf.RpGroupKey) bool {
		return slices.ContainsFunc(s.keys, func(k epochKey) bool { return slot.Epoch == uint64(k.epoch)+1 })
	}
	newest, before := max(state.Keys[0].Order, state.Keys[1].Order), uint64(0)
	for _, k := range s.keys {
		slot := &state.Keys[0]
		switch other := &state.Keys[1]; {
		case slot.Epoch == uint64(k.epoch)+1:
		case other.Epoch == uint64(k.epoch)+1 || keeps(slot):
			slot = other
		}
		k0, k1 := objects.Halves(k.key)
		stays := slot.Epoch == uint64(k.epoch)+1
		if !stays || slot.Key != (bpf.RpKey{K0: k0, K1: k1}) {
			atomic.StoreUint64(&slot.Epoch, 0)
		}
		if !stays || slot.Order <= before { // told for the first time, or again
			newest++
			atomic.StoreUint64(&slot.Order, newest)
		}
		before = slot.Order
		if slot.Epoch != 0 {
			continue
		}
		atomic.StoreUint64(&slot.Key.K0, k0)
		atomic.StoreUint64(&slot.Key.K1, k1)
		atomic.StoreUint64(&slot.Epoch, uint64(k.epoch)+1)
	}
	atomic.StoreUint64(&state.Cpu, uint64(t.cpu(s)))
	atomic.StoreUint64(&state.Anchor, uint64(s.chain.Anchor()))
}

func streamKey(s ids.Stream) bpf.RpStreamKey {
	return bpf.RpStreamKey{Ingress: uint32(s.Ingress), Group: uint32(s.Group)}
}

func (t *table) retire(ingress ids.Incarnation) {
	for id, s := range maps.Clone(t.streams) {
		if id.Ingress != ingress {
			continue
		}
		_ = t.e.objects.Streams.Delete(streamKey(id)) // as in remove
		delete(t.streams, id)
		t.streamStates.Retire(s.element, time.Now())
		s.chain.Retire()
	}
	delete(t.routes, ingress)
	t.meshMoved = true
}

// marks returns the newest sequence of each stream, ordered by ingress and group.
func (t *table) marks() []proto.Mark {
	var marks []proto.Mark
	for id, s := range t.streams {
		state := t.e.objects.Memory.Streams.At(s.element)
		if id.Ingress == t.e.cfg.Incarnation || atomic.LoadUint64(&state.Known) != 0 {
			marks = append(marks, proto.Mark{Ingress: id.Ingress, Group: id.Group, Sequence: atomic.LoadUint64(&state.Newest)})
		}
	}
	slices.SortFunc(marks, func(a, b proto.Mark) int {
		return cmp.Or(cmp.Compare(a.Ingress, b.Ingress), cmp.Compare(a.Group, b.Group))
	})
	return marks
}
