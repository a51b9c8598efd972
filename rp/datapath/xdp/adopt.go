// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/nexthop"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/objects"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/pindir"
)

// adopt goes on with the datapath that was left. It is crash-safe: at each step either the old or
// the new programs run on complete BPF maps. Programs are replaced one link at a time, and then
// each stream goes over to a new chain by one store. Old slices are not touched: frames may still
// be in them.
func (e *Engine) adopt() error {
	left := e.left
	if e.recirc = left.recirc; e.recirc == nil {
		if err := e.makePair(); err != nil { // old slices lead nowhere until streams go by new ones
			return fmt.Errorf("adopt: %w", err)
		}
	}
	busy, anchors, err := e.adoptTables()
	if err != nil {
		return fmt.Errorf("adopt: %w", err)
	}
	if err := e.adoptDevices(); err != nil {
		return fmt.Errorf("adopt: %w", err)
	}
	for _, s := range e.table.sessions {
		e.paths.Add(s.at)
	}
	for _, s := range e.table.sessions {
		e.paths.Resolve(s.at)
	}
	if err := e.recall(); err != nil {
		return fmt.Errorf("adopt: %w", err)
	}

	if e.table.cpus, err = e.objects.StartFanout(); err != nil {
		return fmt.Errorf("adopt: %w", err)
	}
	e.objects.RaiseFanoutPriority(e.table.cpus)
	if left.recirc != nil {
		if err := e.recirc.link.Update(e.objects.MdcsRpRecirc); err != nil {
			return fmt.Errorf("adopt: program of recirculation pair %s: %w", e.recirc.name, err)
		}
	}
	for _, d := range e.devices {
		if d != nil && left.Links[d.index] != nil {
			if err := d.link.Update(e.objects.MdcsRpIn); err != nil {
				return fmt.Errorf("adopt: program of %s: %w", d.name, err)
			}
		}
	}

	e.awaitAll()
	if err := e.moveStreams(anchors); err != nil {
		return fmt.Errorf("adopt: %w", err)
	}
	e.fanout.RetireAnchors(busy)
	if err := e.takeOver(); err != nil {
		return fmt.Errorf("adopt: %w", err)
	}
	e.adopted = e.table.state()
	e.opt.Log.Info("datapath adopted", "pin", e.pins.Path(), "incarnation", fmt.Sprintf("%08x", e.cfg.Incarnation),
		"sessions", len(e.adopted.Sessions), "streams", len(e.table.streams))
	return nil
}

// takeOver makes the directory that of this engine: pins for new devices, none for those that are not used any
// more.
func (e *Engine) takeOver() error {
	left := e.left
	if left.recirc == nil {
		if err := e.pins.PinLink(pindir.LinkName(e.recirc.out), e.recirc.link); err != nil {
			return fmt.Errorf("recirculation pair %s: %w", e.recirc.name, err)
		}
	}
	for _, d := range e.devices {
		if d != nil && left.Links[d.index] == nil {
			if err := e.pins.PinLink(pindir.LinkName(d.index), d.link); err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
		}
	}
	for ifindex, l := range left.Links {
		if e.number(ifindex) >= 0 {
			continue
		}
		e.pins.UnpinLink(pindir.LinkName(ifindex)) // without it the link ends here, too
		_ = l.Detach()                             // unless its device is gone
		l.Close()
		if i, ok := e.toldDevice(ifindex); ok {
			e.tellDevice(i, 0)
		}
	}
	// The kernel has no other program take the place of these. Two at once would
	// count what rings drop twice.
	for name := range watchedBy {
		e.pins.EndLink(name)
	}
	e.watchRings()
	for name, watch := range e.watches {
		if err := e.pins.PinLink(name, watch); err != nil {
			return err
		}
	}
	for _, m := range left.Maps {
		m.Close() // the programs have their own
	}
	e.refresh()
	e.pins.Own()
	e.left = nil
	return nil
}

// adoptDevices takes the devices that have programs and attaches to those that have
// none. A device keeps its number, which frames in old slices depend on.
func (e *Engine) adoptDevices() error {
	names := e.opt.Devices
	named := make(map[int]string) // by index: a device may be named by an alternative name, or be renamed
	for _, name := range names {
		if l, err := e.nl.LinkByName(name); err == nil { // else attach says what is wrong
			named[l.Attrs().Index] = name
		}
	}
	e.opt.Devices = make([]string, MaxDevices)
	var used [MaxDevices]bool
	for ifindex, l := range e.left.Links {
		i, ok := e.toldDevice(ifindex)
		if !ok || i == MaxDevices {
			continue // not wholly attached or detached
		}
		used[i] = true
		dev, err := e.nl.LinkByIndex(ifindex)
		name, ok := named[ifindex]
		if err != nil || !ok || !pindir.Attached(l, ifindex) {
			continue
		}
		e.opt.Devices[i] = name
		e.setDevice(i, &device{name: name, index: ifindex, mac: mac(dev.Attrs().HardwareAddr), link: l})
	}
	for _, name := range names {
		if slices.Contains(e.opt.Devices, name) {
			continue
		}
		i := slices.Index(used[:], false)
		if i < 0 {
			return fmt.Errorf("attach XDP to %s: no number is free beside the devices that are left", name)
		}
		used[i] = true
		e.opt.Devices[i] = name
		if err := e.attach(i, name); err != nil {
			return err
		}
	}
	return nil
}

// adoptTables takes over what the BPF maps hold, but for the devices. It returns the anchors
// that frames may still come by, and those of the streams.
func (e *Engine) adoptTables() (busy []uint32, anchors map[ids.Stream]uint32, err error) {
	if busy, err = e.table.adoptAnchors(); err != nil {
		return nil, nil, err
	}
	if err = e.table.adoptSessions(); err != nil {
		return nil, nil, err
	}
	if anchors, err = e.table.adoptStreams(); err != nil {
		return nil, nil, err
	}
	if err = e.table.adoptRoutes(); err != nil {
		return nil, nil, err
	}
	return busy, anchors, e.fanout.AdoptSlices(slices.Collect(maps.Values(anchors)))
}

// moveStreams makes each stream go over to its new chain by one store, from the anchors that
// the streams have. When the new slices do not find room beside the old ones, the streams
// whose chains are complete go first, and the slices that none of the others goes by are free
// a quarantine later.
func (e *Engine) moveStreams(anchors map[ids.Stream]uint32) error {
	for {
		err := e.follow(nil)
		late, some := errors.AsType[*arrears](err)
		if err != nil && !(some && late.forNow()) {
			return err
		}
		for id := range anchors {
			if some && late.stream(id) != nil {
				continue
			}
			e.table.write(e.table.streams[id])
			delete(anchors, id)
		}
		e.fanout.LetGo(slices.Collect(maps.Values(anchors)))
		if err == nil {
			return nil
		}
		free := e.fanout.Released()
		if free.IsZero() {
			return err
		}
		e.opt.Log.Info("adoption waits until old slices are free", "streams left", len(anchors))
		time.Sleep(time.Until(free))
	}
}

// recall takes the next hops of old copies for hosts that the kernel forgot
// meanwhile: while nobody sends by its own means it does not see that they are in use.
func (e *Engine) recall() error { return e.fanout.LeftReplicas(e.recallOne) }

func (e *Engine) recallOne(r *bpf.RpReplica) {
	s := e.table.sessions[ids.Session(r.Session)]
	if s == nil || !e.paths.Want(s.at.Path()) {
		return
	}
	if d := e.devices[e.number(s.at.Path().Link)]; d.mac == r.SrcMac {
		e.paths.Recall(s.at.Path(), r.DstMac)
	}
}

// adoptAnchors returns the anchors that frames may still come by.
func (t *table) adoptAnchors() (busy []uint32, err error) {
	var anchors []uint32
	var key bpf.RpStreamKey
	var value bpf.RpStream
	it := t.e.objects.Streams.Iterate()
	for it.Next(&key, &value) {
		anchors = append(anchors, uint32(t.e.objects.Memory.Streams.At(value.State).Anchor))
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("streams: %w", err)
	}
	return t.e.fanout.AdoptAnchors(anchors), nil
}

func (t *table) adoptSessions() error {
	var index ids.Session
	var next uint32
	var value bpf.RpSession
	used, shares, share := make(map[uint32]bool), make(map[uint32]bool), uint32(0)
	it := t.e.objects.Sessions.Iterate()
	for it.Next(&index, &value) {
		s := &session{Session: objects.ParseSession(index, &value), state: &sessionState{element: value.State}}
		used[value.State], next = true, max(next, value.State+1)
		for _, id := range s.Groups {
			if _, err := t.group(id); err != nil {
				return err
			}
		}
		s.at = nexthop.NewEndpoint(index, s.Addr.Addr(), nexthop.Path{})
		t.hold(index, s)
		if site, ok := s.Site(); ok {
			s.site, _ = t.sites.Enter(site, func() (uint32, error) { return value.Site, nil })
			shares[value.Site], share = true, max(share, value.Site+1)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("sessions: %w", err)
	}
	t.sessionStates.Adopt(next, used, time.Now())
	t.shares.Adopt(share, shares, time.Now())
	t.share()

	return t.e.fanout.AdoptEchoes()
}

// adoptStreams returns the anchors that the streams have until they are put again.
func (t *table) adoptStreams() (anchors map[ids.Stream]uint32, err error) {
	anchors = make(map[ids.Stream]uint32)
	var key bpf.RpStreamKey
	var value bpf.RpStream
	var next uint32
	used := make(map[uint32]bool)
	it := t.e.objects.Streams.Iterate()
	for it.Next(&key, &value) {
		s := &stream{id: ids.Stream{Ingress: ids.Incarnation(key.Ingress), Group: ids.Group(key.Group)}, element: value.State}
		state := t.e.objects.Memory.Streams.At(value.State)
		keys := slices.SortedFunc(slices.Values(state.Keys[:]), func(a, b bpf.RpGroupKey) int { return cmp.Compare(a.Order, b.Order) })
		for _, k := range keys {
			if k.Epoch != 0 {
				s.keys = append(s.keys, epochKey{uint8(k.Epoch - 1), objects.WholeKey(k.Key)})
			}
		}
		t.streams[s.id] = s
		used[value.State], next = true, max(next, value.State+1)
		anchors[s.id] = uint32(state.Anchor)
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("streams: %w", err)
	}
	t.streamStates.Adopt(next, used, time.Now())
	for _, s := range t.streams {
		if s.chain, err = t.streamChain(s.id); err != nil {
			return nil, err
		}
	}
	return anchors, nil
}

// adoptRoutes reads the routes, of which there are those of streams. Branches without
// their session are left out when the routes are written down again.
func (t *table) adoptRoutes() error {
	route := func(ingress ids.Incarnation) *datapath.Route {
		if t.routes[ingress] == nil {
			t.routes[ingress] = &datapath.Route{Ingress: ingress}
		}
		return t.routes[ingress]
	}
	var key bpf.RpBranchKey
	var value bpf.RpBranch
	it := t.e.objects.Branches.Iterate()
	for it.Next(&key, &value) {
		t.branches[key] = value
		groups := objects.GroupsOf(value.Groups[:min(value.GroupsLen, MaxGroups)])
		r := route(ids.Incarnation(key.Ingress))
		r.To = append(r.To, datapath.Branch{Session: ids.Session(key.Session), Groups: groups})
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("branches: %w", err)
	}
	parents := make(map[ids.Incarnation]ids.Session)
	for id, s := range t.streams {
		state := t.e.objects.Memory.Streams.At(s.element)
		if parent := ids.Session(state.Parent); parent != 0 {
			parents[id.Ingress] = parent // the same in all streams of the ingress RP
		}
		for _, word := range state.Upstreams {
			if session := ids.Session(word); session != 0 && !slices.Contains(route(id.Ingress).From, session) {
				r := route(id.Ingress)
				r.From = append(r.From, session)
			}
		}
	}
	for _, r := range t.routes {
		slices.Sort(r.From)
		if i := slices.Index(r.From, parents[r.Ingress]); i > 0 {
			r.From = slices.Insert(slices.Delete(r.From, i, i+1), 0, parents[r.Ingress])
		}
		slices.SortFunc(r.To, func(a, b datapath.Branch) int { return cmp.Compare(a.Session, b.Session) })
	}
	return t.syncBranches()
}

// state returns what the table holds.
func (t *table) state() *datapath.State {
	st := &datapath.State{Incarnation: t.e.cfg.Incarnation, HandleKey: t.e.cfg.HandleKey}
	for id, s := range t.streams {
		for _, k := range s.keys {
			st.Keys = append(st.Keys, proto.GroupKey{Ingress: id.Ingress, Group: id.Group, Epoch: k.epoch, Key: k.key})
		}
	}
	slices.SortStableFunc(st.Keys, func(a, b proto.GroupKey) int {
		return cmp.Or(cmp.Compare(a.Ingress, b.Ingress), cmp.Compare(a.Group, b.Group))
	})
	for _, index := range slices.Sorted(maps.Keys(t.sessions)) {
		st.Sessions = append(st.Sessions, t.sessions[index].Session)
	}
	for _, ingress := range slices.Sorted(maps.Keys(t.routes)) {
		st.Routes = append(st.Routes, t.routes[ingress].Clone())
	}
	return st
}
