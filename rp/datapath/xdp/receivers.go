// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// reconcile makes the chains and the ECHOs of some sessions what the table and the paths say,
// and the chains of streams if routes moved. A device that turns out to be gone is one
// less: its receivers wait for it.
func (e *Engine) reconcile(some []uint32) error {
	for {
		err := e.tryReconcile(some)
		gone, ok := errors.AsType[*goneError](err)
		if !ok || e.devices[gone.device] == nil {
			return err
		}
		e.detach(gone.device)
		e.table.all = true
	}
}

// tryReconcile updates each chain by itself: one that the kernel has no memory for holds
// up no other. A device that is gone ends it at once.
func (e *Engine) tryReconcile(some []uint32) error {
	t := e.table
	if t.all {
		some = t.everybody()
	}
	var failed []error
	note := func(format string, args ...any) (stop bool) {
		err := fmt.Errorf(format, args...)
		failed = append(failed, err)
		_, gone := errors.AsType[*goneError](err)
		return gone
	}
	changes := make(map[*group]map[uint32]*member)
	branches := t.all || t.meshMoved
	for _, index := range some {
		t.touched[index] = true // until all went well
		s := t.sessions[index]
		var m *member
		if s != nil {
			branches = branches || s.Role == datapath.Mesh
			if hop, ok := e.hop(s.path); ok {
				m = &member{session: s, hop: hop}
			}
		}
		if err := t.updateEcho(index, m); err != nil {
			failed = append(failed, err)
		}
		for _, g := range t.groups {
			gets := s != nil && !s.Silent && slices.Contains(s.Groups, g.id)
			if !gets && g.peers.at[index] == nil && !g.absent[index] {
				continue
			}
			if changes[g] == nil {
				changes[g] = make(map[uint32]*member)
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
		if err := g.peers.change(members, len(g.absent)); err != nil && note("peers of group %08x: %w", g.id, err) {
			return errors.Join(failed...)
		}
	}
	if branches {
		for id, s := range t.streams {
			if err := e.updateBranches(s); err != nil && note("branches of stream %v: %w", id, err) {
				return errors.Join(failed...)
			}
		}
	}
	e.publishCounts()
	if len(failed) == 0 {
		t.all = false
		for _, index := range some {
			delete(t.touched, index)
		}
	}
	return errors.Join(failed...)
}

// everybody returns the sessions that are there, or that anything is left of.
func (t *table) everybody() []uint32 {
	all := maps.Clone(t.touched)
	for index := range t.sessions {
		all[index] = true
	}
	for index := range t.echoes {
		all[index] = true
	}
	for _, g := range t.groups {
		for index := range g.peers.at {
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
	var r receivers
	if s.id.Ingress == e.cfg.Incarnation {
		for number, d := range e.devices {
			if d != nil {
				r.members = append(r.members, member{hop: nextHop{device: number, attachment: d.attachment}})
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
			hop, ok := e.hop(session.path)
			r.add(member{session: session, hop: hop}, ok)
			s.branches = append(s.branches, b.Session)
		}
	}
	return s.chain.replaceIfChanged(r.members, r.missing)
}

// publishCounts tells the programs how many get each stream, which is what a datagram costs,
// known neighbour or not, and the pulse where heartbeats go.
func (e *Engine) publishCounts() {
	var own []ownStream
	for id, s := range e.table.streams {
		g := e.table.groups[id.Group]
		store(e.memory.receivers.at(s.chain.anchor-firstAnchor), uint64(g.receivers()+len(s.branches)))
		if id.Ingress == e.cfg.Incarnation {
			own = append(own, ownStream{id, s.keys[0], s.element, e.table.cpu(s), s.chain.anchor, g.peers.anchor, s.branches, g.receivers()})
		}
	}
	slices.SortFunc(own, func(a, b ownStream) int { return cmp.Compare(a.id.Group, b.id.Group) })
	e.table.own.Store(&own)
}

// receivers are those of one chain.
type receivers struct {
	members []member
	missing int
}

func (r *receivers) add(m member, found bool) {
	if found {
		r.members = append(r.members, m)
	} else {
		r.missing++
	}
}

// replaceIfChanged is replace, unless all is as it should be.
func (c *chain) replaceIfChanged(members []member, missing int) error {
	var have []member
	for _, s := range c.slices {
		have = append(have, s.members...)
	}
	if c.missing == missing && slices.Equal(have, members) {
		return nil
	}
	return c.replace(members, missing)
}

// updateEcho makes the ECHO of a session what its member says, which is nil without next hop.
func (t *table) updateEcho(index uint32, m *member) error {
	have, echoes := t.echoes[index]
	switch {
	case m != nil && m.session.Publish:
		if have == *m {
			return nil
		}
		value := bpf.RpEcho{Replica: m.replica(), Device: uint32(m.hop.device)}
		if err := t.e.objects.Echoes.Put(index, &value); err != nil {
			return fmt.Errorf("ECHO of session %08x: %w", index, err)
		}
		t.echoes[index] = *m
	case echoes:
		if err := t.e.objects.Echoes.Delete(index); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("ECHO of session %08x: %w", index, err)
		}
		delete(t.echoes, index)
	}
	return nil
}
