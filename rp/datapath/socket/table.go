// SPDX-License-Identifier: LGPL-3.0-or-later

package socket

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// table is the state of the engine and its pipeline, without I/O and without a
// clock of its own: now is the time since the engine was made.
//
// Its mutex is held for one datagram or one change at a time. What a datagram is
// replicated to is a slice that is never changed below its length, so copies are
// sent without the mutex while the next change is already made.
type table struct {
	own    ids.Incarnation // incarnation
	handle auth.Key        // secret of the publisher handles

	mu                  sync.Mutex
	egress, egressBurst uint64 // that copies are limited to
	copies              datapath.Policer
	due                 uint64 // of copies, ns on the table's clock
	sites               datapath.Sites[*share]
	beats               uint64 // number of the last heartbeat that was sent
	sessions            map[ids.Session]*session
	streams             map[ids.Stream]*stream
	groups              map[ids.Group][]*session // peers and channels that the group is replicated to
	routes              map[ids.Incarnation]*datapath.Route
	verdicts            wire.Counters
}

// stream is the state of one (ingress RP, group). It exists from the first key
// installed until the ingress RP is retired.
type stream struct {
	keys     []epochKey    // oldest first, at most EpochsKept
	assigned uint64        // newest sequence, for the own
	taken    auth.Stream   // from the mesh; unused for the own
	top      uint64        // highest sequence ever taken from the mesh
	topAt    time.Duration // when it came
	beatDue  time.Duration // when the next heartbeat may pass

	// What the route of the ingress RP makes of the group.
	upstreams []ids.Session // sessions, the parent's first
	branches  []*session    // never changed: copies may be under way
}

type epochKey struct {
	epoch uint8
	key   auth.Key
}

func newTable(cfg datapath.Config) *table {
	return &table{
		own:         cfg.Incarnation,
		handle:      cfg.HandleKey,
		copies:      cfg.Policer(),
		egress:      cfg.Egress,
		egressBurst: cfg.EgressBurst,
		sessions:    make(map[ids.Session]*session),
		streams:     make(map[ids.Stream]*stream),
		groups:      make(map[ids.Group][]*session),
		routes:      make(map[ids.Incarnation]*datapath.Route),
	}
}

// apply makes a change, see datapath.Engine. There is always room.
func (t *table) apply(now time.Duration, c datapath.Change) error {
	refused := c.Refusals(t.own)
	t.mu.Lock()
	defer t.mu.Unlock()
	publishers, rps := t.sites.Counts()
	t.remove(now, c.Remove)
	for _, ingress := range c.Retire {
		if refused.Routes[ingress] != nil {
			continue
		}
		maps.DeleteFunc(t.streams, func(id ids.Stream, _ *stream) bool { return id.Ingress == ingress })
		delete(t.routes, ingress)
	}
	for i := range c.Keys {
		if k := &c.Keys[i]; refused.Keys[k.Stream()] == nil {
			t.install(k)
		}
	}
	mesh := false // an RP neighbour's session comes or goes
	for _, s := range c.Add {
		if refused.Sessions[s.Index] == nil {
			mesh = mesh || s.Role == datapath.Mesh || t.isMesh(s.Index)
			t.add(now, s)
		}
	}
	for i := range c.Routes {
		if r := &c.Routes[i]; refused.Routes[r.Ingress] == nil {
			t.route(r)
		}
	}
	if len(c.Remove)+len(c.Retire)+len(c.Keys)+len(c.Routes) > 0 || mesh {
		t.direct()
	}
	t.sites.Expire(now)
	if p, r := t.sites.Counts(); p != publishers || r != rps {
		t.share()
	}
	return refused.Err()
}

// route makes a route what is wanted, as far as its sessions are there.
func (t *table) route(want *datapath.Route) {
	r := want.Clone()
	r.Keep(t.isMesh)
	if r.Ends() {
		delete(t.routes, r.Ingress)
	} else {
		t.routes[r.Ingress] = &r
	}
}

func (t *table) isMesh(index ids.Session) bool {
	s := t.sessions[index]
	return s != nil && s.Role == datapath.Mesh
}

// direct makes the streams follow the routes.
func (t *table) direct() {
	for _, r := range t.routes {
		r.Keep(t.isMesh) // a session that was removed, or is another's now
	}
	for id, s := range t.streams {
		s.upstreams, s.branches = nil, nil
		r := t.routes[id.Ingress]
		if r == nil {
			continue
		}
		s.upstreams = r.From
		for i := range r.To {
			if b := &r.To[i]; b.Has(id.Group) {
				s.branches = append(s.branches, t.sessions[b.Session])
			}
		}
	}
}

func (t *table) add(now time.Duration, s datapath.Session) {
	old := t.sessions[s.Index]
	if old != nil {
		t.remove(now, []ids.Session{s.Index})
	}
	next := newSession(s, old)
	if site, ok := s.Site(); ok {
		next.site, _ = t.sites.Enter(site, func() (*share, error) {
			return &share{Policer: t.sites.Share(site, t.egress, t.egressBurst)}, nil
		})
	}
	t.sessions[s.Index] = next
	if next.Silent {
		return
	}
	for i, group := range next.Groups {
		if slices.Contains(next.Groups[:i], group) {
			continue
		}
		// Appending writes only beyond the length of the slices in use.
		t.groups[group] = append(t.groups[group], next)
	}
}

// remove takes sessions out of the table and, in one pass, out of their groups.
func (t *table) remove(now time.Duration, indexes []ids.Session) {
	touched := make(map[ids.Group]bool)
	for _, index := range indexes {
		s := t.sessions[index]
		if s == nil {
			continue
		}
		delete(t.sessions, index)
		s.removed = true
		if s.site != nil {
			t.sites.Leave(s.site, now)
		}
		for _, group := range s.Groups {
			touched[group] = true
		}
	}
	for group := range touched {
		if rest := remaining(t.groups[group]); len(rest) > 0 {
			t.groups[group] = rest
		} else {
			delete(t.groups, group)
		}
	}
}

// remaining returns the sessions that are not removed, in a new slice: the old one
// may be in use.
func remaining(all []*session) []*session {
	rest := make([]*session, 0, len(all))
	for _, s := range all {
		if !s.removed {
			rest = append(rest, s)
		}
	}
	return rest
}

func (t *table) install(k *proto.GroupKey) {
	id := k.Stream()
	s := t.streams[id]
	if s == nil {
		s = new(stream)
		t.streams[id] = s
	}
	s.keys = slices.DeleteFunc(s.keys, func(have epochKey) bool { return have.epoch == k.Epoch })
	s.keys = append(s.keys, epochKey{k.Epoch, k.Key})
	if len(s.keys) > datapath.EpochsKept {
		s.keys = s.keys[1:]
	}
}

// key returns the stream's key of an epoch, nil when it is not installed.
func (s *stream) key(epoch uint8) *auth.Key {
	for i := range s.keys {
		if s.keys[i].epoch == epoch {
			return &s.keys[i].key
		}
	}
	return nil
}

// age makes it longer ago that the newest sequences of the streams came, and that their
// last heartbeats passed.
func (t *table) age(newest, heartbeat time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.streams {
		s.taken.Age(newest)
		s.topAt -= newest
		s.beatDue -= heartbeat
	}
}

// marks returns the newest sequence of each stream, ordered by ingress and group.
func (t *table) marks() []proto.Mark {
	t.mu.Lock()
	defer t.mu.Unlock()
	var marks []proto.Mark
	for id, s := range t.streams {
		newest, known := s.taken.Newest()
		if id.Ingress == t.own {
			newest, known = s.assigned, true
		}
		if known {
			marks = append(marks, proto.Mark{Ingress: id.Ingress, Group: id.Group, Sequence: newest})
		}
	}
	slices.SortFunc(marks, func(a, b proto.Mark) int {
		return cmp.Or(cmp.Compare(a.Ingress, b.Ingress), cmp.Compare(a.Group, b.Group))
	})
	return marks
}

// stats returns the verdicts and the sessions' counters, ordered by index. start
// is the time at which the table's clock was zero.
func (t *table) stats(start time.Time) (wire.Counters, []datapath.SessionStats) {
	t.mu.Lock()
	verdicts := t.verdicts
	sessions := make([]datapath.SessionStats, 0, len(t.sessions))
	for _, s := range t.sessions {
		st := datapath.SessionStats{
			Index:    s.Index,
			Role:     s.Role,
			Addr:     s.Addr,
			Received: s.state.received,
			Copies:   s.state.copies.Load(),
		}
		if s.state.received > 0 {
			st.Heard = start.Add(s.state.heard)
		}
		sessions = append(sessions, st)
	}
	t.mu.Unlock()
	slices.SortFunc(sessions, func(a, b datapath.SessionStats) int { return cmp.Compare(a.Index, b.Index) })
	return verdicts, sessions
}

// hello returns a mesh session and the next LINK_HELLO of it.
func (t *table) hello(index ids.Session, hello [wire.HelloSize]byte) (s *session, b [wire.HeaderSize]byte, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.isMesh(index) {
		return nil, b, fmt.Errorf("hello: no mesh session %08x", index)
	}
	s = t.sessions[index]
	s.state.hellos++
	b = wire.NewLinkHello(s.SendSession, s.state.hellos, hello)
	s.seal(&b)
	return s, b, nil
}

// setEgress changes the policer of all copies.
func (t *table) setEgress(rate, burst uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.copies, t.due = datapath.NewPolicer(rate, burst), 0
	t.egress, t.egressBurst = rate, burst
	t.share()
	for p := range t.sites.All() {
		p.Bucket.due = 0
	}
}

// spare accounts for datagrams that are sent once more, if there is room for them.
func (t *table) spare(now time.Duration, datagrams [][]byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.copies.Spares(t.due, uint64(now)) {
		return datapath.ErrOverRate
	}
	for _, b := range datagrams {
		t.due = t.copies.Charge(t.due, uint64(now), uint64(len(b)))
	}
	return nil
}

// resendTo returns the session that gets datagrams once more.
func (t *table) resendTo(index ids.Session, datagrams [][]byte) (*session, error) {
	for _, b := range datagrams {
		if h, _, v := wire.Parse(b); v != wire.Pass || h.Type != wire.Data {
			return nil, fmt.Errorf("resend: %v that is %v, want DATA", h.Type, v)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.sessions[index]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("resend: no session %08x", index)
}

// heard returns when a session was heard last, see datapath.Engine.
func (t *table) heard(session ids.Session, start time.Time) (at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.sessions[session]; s != nil && s.state.received > 0 {
		at = start.Add(s.state.heard)
	}
	return at
}
