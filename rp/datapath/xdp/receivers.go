// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
)

// arrears is an error: what the programs do not do yet of what the table says, and why.
type arrears struct {
	echoes  map[ids.Session]error // by session
	groups  map[ids.Group]error   // peers, by group
	streams map[ids.Stream]error
}

func newArrears() *arrears {
	return &arrears{make(map[ids.Session]error), make(map[ids.Group]error), make(map[ids.Stream]error)}
}

// Error implements error.
func (b *arrears) Error() string { return errors.Join(b.Unwrap()...).Error() }

// Unwrap returns the reasons.
func (b *arrears) Unwrap() []error {
	all := slices.Collect(maps.Values(b.echoes))
	all = slices.AppendSeq(all, maps.Values(b.groups))
	return slices.AppendSeq(all, maps.Values(b.streams))
}

// err returns b, nil without reasons.
func (b *arrears) err() error {
	if len(b.echoes)+len(b.groups)+len(b.streams) == 0 {
		return nil
	}
	return b
}

// session returns why the copies to a session may not be what the table says: as it was and as
// it is, either of which may be nil.
func (b *arrears) session(t *table, index ids.Session, versions ...*session) error {
	if why := b.echoes[index]; why != nil {
		return why
	}
	for id, why := range b.groups {
		for _, s := range versions {
			if s != nil && slices.Contains(s.Groups, id) {
				return why
			}
		}
		if t.groups[id].peers.SliceOf(index) != nil {
			return why
		}
	}
	for id, why := range b.streams {
		names := func(to datapath.Branch) bool { return to.Session == index }
		if r := t.routes[id.Ingress]; r != nil && slices.ContainsFunc(r.To, names) || t.streams[id].chain.SliceOf(index) != nil {
			return why
		}
	}
	return nil
}

// stream returns why the chain of a stream, or of its group, may not be what the table says.
func (b *arrears) stream(id ids.Stream) error { return cmp.Or(b.streams[id], b.groups[id.Group]) }

// forNow reports whether nothing is behind but for slices in quarantine.
func (b *arrears) forNow() bool {
	return !slices.ContainsFunc(b.Unwrap(), func(why error) bool { return !errors.Is(why, fanout.ErrQuarantine) })
}

// route returns why a route is not followed.
func (b *arrears) route(ingress ids.Incarnation) error {
	for id, why := range b.streams {
		if id.Ingress == ingress {
			return why
		}
	}
	return nil
}

// reconcile makes the chains and the ECHOs of some sessions what the table and the paths say,
// and the chains of streams if routes moved. A device that turns out to be gone is one
// less: its receivers wait for it. A recirculation pair that turns out to be gone is made anew.
func (e *Engine) reconcile(some []ids.Session) error {
	for {
		err := e.tryReconcile(some)
		if e.renewPair(err) {
			e.table.all = true // some chains were not made
			continue
		}
		gone, ok := errors.AsType[*fanout.GoneError](err)
		if !ok || e.devices[gone.Device] == nil {
			return err
		}
		e.detach(gone.Device)
		e.table.all = true
	}
}

// tryReconcile updates each chain by itself: one that the kernel has no memory for holds
// up no other. A device that is gone ends it at once.
func (e *Engine) tryReconcile(some []ids.Session) error {
	t := e.table
	if t.all {
		some = t.everybody()
	}
	failed := newArrears()
	changes := make(map[*group]map[ids.Session]*fanout.Member)
	branches := t.all || t.meshMoved
	for _, index := range some {
		t.touched[index] = true // until all went well
		s := t.sessions[index]
		var m *fanout.Member
		if s != nil {
			branches = branches || s.Role == datapath.Mesh
			if hop, ok := e.hop(s.at.Path()); ok {
				m = &fanout.Member{To: s, Hop: hop}
			}
		}
		echo := m
		if s != nil && !s.Publish {
			echo = nil
		}
		if err := e.fanout.SetEcho(index, echo); err != nil {
			failed.echoes[index] = err
		}
		for _, g := range t.groups {
			gets := s != nil && !s.Silent && slices.Contains(s.Groups, g.id)
			if !gets && g.peers.SliceOf(index) == nil && !g.absent[index] {
				continue
			}
			if changes[g] == nil {
				changes[g] = make(map[ids.Session]*fanout.Member)
			}
			changes[g][index] = nil
			delete(g.absent, index)
			switch {
			case gets && m != nil:
				changes[g][index] = m
			case gets:
				g.absent[index] = true
			}
		}
	}
	for g, members := range changes {
		if err := g.peers.Change(members, len(g.absent)); err != nil {
			failed.groups[g.id] = fmt.Errorf("peers of group %08x: %w", g.id, err)
			if isGone(err) {
				return failed
			}
		}
	}
	if branches {
		for id, s := range t.streams {
			if err := e.updateBranches(s); err != nil {
				failed.streams[id] = fmt.Errorf("branches of stream %v: %w", id, err)
				if isGone(err) {
					return failed
				}
			}
		}
	}
	e.publishCounts()
	if failed.err() == nil {
		t.all = false
	}
	for _, index := range some {
		if failed.session(t, index, t.sessions[index]) == nil {
			delete(t.touched, index)
		}
	}
	return failed.err()
}

func isGone(err error) bool {
	_, gone := errors.AsType[*fanout.GoneError](err)
	return gone
}

// everybody returns the sessions that are there, or that anything is left of.
func (t *table) everybody() []ids.Session {
	all := maps.Clone(t.touched)
	for index := range t.sessions {
		all[index] = true
	}
	for index := range t.e.fanout.Echoes() {
		all[index] = true
	}
	for _, g := range t.groups {
		for index := range g.peers.Sessions() {
			all[index] = true
		}
		for index := range g.absent {
			all[index] = true
		}
	}
	return slices.Collect(maps.Keys(all))
}

// updateBranches makes the chain of a stream what its route says.
func (e *Engine) updateBranches(s *stream) error {
	var members []fanout.Member
	missing := 0
	if s.id.Ingress == e.cfg.Incarnation {
		for number, d := range e.devices {
			if d != nil {
				members = append(members, fanout.Member{Hop: fanout.Hop{Device: number, Attachment: d.attachment}})
			}
		}
	}
	s.branches = nil
	if route := e.table.routes[s.id.Ingress]; route != nil {
		for i := range route.To {
			b := &route.To[i]
			session := e.table.sessions[b.Session]
			if !b.Has(s.id.Group) || session == nil {
				continue
			}
			if hop, ok := e.hop(session.at.Path()); ok {
				members = append(members, fanout.Member{To: session, Hop: hop})
			} else {
				missing++
			}
			s.branches = append(s.branches, b.Session)
		}
	}
	return s.chain.Replace(members, missing)
}

// publishCounts tells the programs how many get each stream, which is what a datagram costs,
// known ND entry or not, and the pulse where heartbeats go.
func (e *Engine) publishCounts() {
	var own []ownStream
	for id, s := range e.table.streams {
		g := e.table.groups[id.Group]
		atomic.StoreUint64(e.objects.Memory.Receivers.At(s.chain.Anchor()-fanout.FirstAnchor), uint64(g.receivers()+len(s.branches)))
		if id.Ingress == e.cfg.Incarnation {
			own = append(own, ownStream{id, s.keys[0], s.element, e.table.cpu(s), s.chain.Anchor(), g.peers.Anchor(), s.branches, g.receivers()})
		}
	}
	slices.SortFunc(own, func(a, b ownStream) int { return cmp.Compare(a.id.Group, b.id.Group) })
	e.table.own.Store(&own)
}
