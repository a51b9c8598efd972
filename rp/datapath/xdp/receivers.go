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

// reconcileAll makes the chains and the ECHOs what the table and the paths say. A
// device that turns out to be gone is one less: its receivers wait for it.
func (e *Engine) reconcileAll() error {
	for {
		err := e.tryReconcile()
		gone, ok := errors.AsType[*goneError](err)
		if !ok || e.devices[gone.device] == nil {
			return err
		}
		e.detach(gone.device)
	}
}

// tryReconcile updates each chain by itself: one that the kernel has no memory for holds
// up no other. A device that is gone ends it at once.
func (e *Engine) tryReconcile() error {
	var failed []error
	note := func(format string, args ...any) (stop bool) {
		err := fmt.Errorf(format, args...)
		failed = append(failed, err)
		_, gone := errors.AsType[*goneError](err)
		return gone
	}
	all := make(map[uint32]*receivers, len(e.table.groups))
	for id := range e.table.groups {
		all[id] = new(receivers)
	}
	echoes, neighbours := make(map[uint32]member), make(map[uint32]member)
	for _, index := range slices.Sorted(maps.Keys(e.table.sessions)) {
		s := e.table.sessions[index]
		hop, ok := e.hop(s.path)
		m := member{session: s, hop: hop}
		if ok && s.Publish {
			echoes[index] = m
		}
		if ok && s.Role == datapath.Mesh {
			neighbours[index] = m
		}
		if s.Silent {
			continue
		}
		for _, id := range s.Groups {
			all[id].add(m, ok)
		}
	}
	if err := e.table.updateEchoes(echoes); err != nil {
		failed = append(failed, err)
	}
	for id, r := range all {
		g := e.table.groups[id]
		if err := g.peers.update(r.members, r.missing); err != nil && note("peers of group %08x: %w", id, err) {
			return errors.Join(failed...)
		}
	}
	var own []ownStream
	for id, s := range e.table.streams {
		var r receivers
		if id.Ingress == e.cfg.Incarnation {
			for number, d := range e.devices {
				if d != nil {
					r.members = append(r.members, member{hop: nextHop{device: number, ifindex: d.index}})
				}
			}
		}
		var branches []uint32
		if route := e.table.routes[id.Ingress]; route != nil {
			for i := range route.To {
				if b := &route.To[i]; b.Has(id.Group) {
					m, ok := neighbours[b.Session]
					r.add(m, ok)
					branches = append(branches, b.Session)
				}
			}
		}
		if err := s.chain.replaceIfChanged(r.members, r.missing); err != nil && note("branches of stream %v: %w", id, err) {
			return errors.Join(failed...)
		}
		// What a datagram costs follows its receivers, known neighbour or not.
		peers := len(all[id.Group].members) + all[id.Group].missing
		store(e.memory.receivers.at(s.chain.anchor-firstAnchor), uint64(peers+len(branches)))
		if id.Ingress == e.cfg.Incarnation {
			own = append(own, ownStream{id, s.keys[0], s.element, e.table.cpu(s), s.chain.anchor, e.table.groups[id.Group].peers.anchor, branches, peers})
		}
	}
	slices.SortFunc(own, func(a, b ownStream) int { return cmp.Compare(a.id.Group, b.id.Group) })
	e.table.own.Store(&own)
	return errors.Join(failed...)
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

// updateEchoes makes the table of ECHOs that of the given publishers.
func (t *table) updateEchoes(want map[uint32]member) error {
	for index, m := range want {
		if t.echoes[index] == m {
			continue
		}
		value := bpf.RpEcho{Replica: m.replica(), Device: uint32(m.hop.device)}
		if err := t.e.objects.Echoes.Put(index, &value); err != nil {
			return fmt.Errorf("ECHO of session %08x: %w", index, err)
		}
		t.echoes[index] = m
	}
	for index := range t.echoes {
		if _, ok := want[index]; ok {
			continue
		}
		if err := t.e.objects.Echoes.Delete(index); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("ECHO of session %08x: %w", index, err)
		}
		delete(t.echoes, index)
	}
	return nil
}
