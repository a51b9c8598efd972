// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/objects"
)

// poolStep is how many slices the pool grows by: one wait for the kernel's readers
// of the table of device maps, however many are installed at once.
const poolStep = 64

// firstAnchor is FIRST_ANCHOR of the programs: indexes from here on name chains.
const firstAnchor = 0xe000

// slice is a published broadcast. It does not change.
type slice struct {
	index      uint32
	generation uint16
	members    []member // in the order of sending
	chained    bool     // something may follow
	passed     uint64   // frames that had gone through its index when it was published
}

// member is one copy of a slice.
type member struct {
	session *session // nil: the ECHO to whoever published, unless it is whole
	whole   bool     // frames of user space that are complete
	hop     nextHop
}

// reference is what leads to the slice.
func (s *slice) reference() uint64 { return uint64(s.generation)<<16 | uint64(s.index) }

// pool owns the slices' indexes. Each has a device map, installed once, and a
// generation that grows with each use.
type pool struct {
	e           *Engine
	maps        []*ebpf.Map // by index; 0 is not used: it ends a chain; nil: that of another process
	slots       []int       // in use of each map, by index
	generations []uint16
	free        []uint32
	bare        []uint32          // unused, but without a map
	retired     []retiredSlice    // oldest first
	left        map[uint32]*slice // of another process, while streams go by them
	growing     <-chan growth     // gets the device maps that are being installed; nil: none are
}

type retiredSlice struct {
	*slice
	at time.Time
}

func newPool(e *Engine) *pool {
	return &pool{e: e, maps: make([]*ebpf.Map, 1), slots: make([]int, 1), generations: make([]uint16, 1)}
}

// ahead is how many unused slices are left when the pool begins to grow: a change then
// waits only when it takes more than these at once.
const ahead = poolStep / 2

// growth is device maps that were installed for slices.
type growth struct {
	keys []uint32 // of the slices
	maps []*ebpf.Map
	err  error
}

// grow installs poolStep more device maps, unless that is under way already, and waits.
func (p *pool) grow() error {
	if p.growing == nil {
		keys := p.next()
		if len(keys) == 0 {
			return errors.New("no slice is left")
		}
		return p.add(installMaps(p.e.objects.Targets, keys))
	}
	return p.add(<-p.growing)
}

// growAhead begins to install poolStep more device maps, which ends with an element of
// growing, when few slices are left.
func (p *pool) growAhead() {
	if p.growing != nil || len(p.free) >= ahead {
		return
	}
	if keys := p.next(); len(keys) > 0 {
		done := make(chan growth, 1)
		p.growing = done
		go func() { done <- installMaps(p.e.objects.Targets, keys) }()
	}
}

// next returns the slices that get device maps next, at most poolStep.
func (p *pool) next() []uint32 {
	keys := slices.Clone(p.bare[:min(poolStep, len(p.bare))])
	for i := len(p.maps); i < maxSlices && len(keys) < poolStep; i++ {
		keys = append(keys, uint32(i))
	}
	return keys
}

// add takes device maps that were installed.
func (p *pool) add(g growth) error {
	p.growing = nil
	if g.err != nil {
		return fmt.Errorf("grow slices: %w", g.err)
	}
	first := len(p.maps)
	for i, index := range g.keys {
		if int(index) < first {
			p.maps[index] = g.maps[i]
			p.bare = p.bare[1:]
		} else {
			p.maps = append(p.maps, g.maps[i])
			p.slots = append(p.slots, 0)
			p.generations = append(p.generations, 0)
		}
		p.free = append(p.free, index)
	}
	return nil
}

// installMaps makes device maps for slices. It needs not run on the thread.
func installMaps(targets *ebpf.Map, keys []uint32) growth {
	spec, err := bpf.LoadRp()
	if err != nil {
		return growth{err: err}
	}
	inner := spec.Maps[bpf.RpMapTargets].InnerMap
	inner.Name = "target"
	g := growth{keys: keys, maps: make([]*ebpf.Map, len(keys))}
	values := make([]uint32, len(keys))
	for i := range g.maps {
		if g.maps[i], err = ebpf.NewMap(inner); err != nil {
			closeAll(g.maps)
			return growth{err: err}
		}
		values[i] = uint32(g.maps[i].FD())
	}
	if err := install(targets, keys, values); err != nil {
		closeAll(g.maps)
		return growth{err: err}
	}
	return g
}

// installing is how many updates of the map of maps wait at a time.
const installing = 16

// install puts maps into a map of maps. Each update waits until the kernel's readers of the old entry are gone, before
// Linux 6.8 each element of a batch does, and before 5.18 there are no batches. So several wait together for the same
// readers: in turn, 64 of them would take a second.
func install(outer *ebpf.Map, keys, values []uint32) error {
	part := (len(keys) + installing - 1) / installing
	var parts sync.WaitGroup
	var errs [installing]error
	for i := range errs {
		from, to := min(i*part, len(keys)), min((i+1)*part, len(keys))
		parts.Go(func() { errs[i] = installPart(outer, keys[from:to], values[from:to]) })
	}
	parts.Wait()
	return errors.Join(errs[:]...)
}

func installPart(outer *ebpf.Map, keys, values []uint32) error {
	if len(keys) == 0 {
		return nil
	}
	if _, err := outer.BatchUpdate(keys, values, nil); err == nil || !errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	for i := range keys {
		if err := outer.Put(keys[i], values[i]); err != nil {
			return err
		}
	}
	return nil
}

func closeAll(maps []*ebpf.Map) {
	for _, m := range maps {
		if m != nil {
			m.Close()
		}
	}
}

func (p *pool) close() {
	if p.growing != nil {
		_ = p.add(<-p.growing) // nobody takes from it any more
	}
	closeAll(p.maps)
}

// errQuarantine says that a slice will be free when a quarantine ends, or has yet to begin.
var errQuarantine = errors.New("all slices are in quarantine")

// released returns when the next quarantine ends.
func (p *pool) released() time.Time {
	if len(p.retired) == 0 {
		return time.Time{}
	}
	return p.retired[0].at.Add(quarantine)
}

// room is how many slices can be taken now.
func (p *pool) room() int { return len(p.free) + len(p.bare) + maxSlices - len(p.maps) }

// take returns an unused index. When all are in use or in quarantine there is none: the
// thread does not wait for them.
func (p *pool) take() (uint32, error) {
	if len(p.free) == 0 {
		p.expire(time.Now())
	}
	if len(p.free) == 0 {
		if err := p.grow(); err != nil && len(p.retired)+len(p.left) > 0 {
			return 0, errQuarantine
		} else if err != nil {
			return 0, err
		}
	}
	index := p.free[0]
	p.free = p.free[1:]
	p.growAhead()
	return index, nil
}

// build makes a slice that nothing leads to yet.
func (p *pool) build(members []member, chained bool) (*slice, error) {
	index, err := p.take()
	if err != nil {
		return nil, err
	}
	p.generations[index]++
	if p.generations[index] == 0 { // a reference to it would say that the chain ends
		p.generations[index]++
	}
	s := &slice{index: index, generation: p.generations[index], members: members, chained: chained}
	s.passed = atomic.LoadUint64(p.e.objects.Memory.Passes.At(index))
	if err := p.fill(s); err != nil {
		p.free = append(p.free, index)
		return nil, err
	}
	return s, nil
}

// fill writes the slots and the replicas of a slice. Slots that it wrote before an error are
// in use, too: the next slice of the index empties them.
func (p *pool) fill(s *slice) error {
	value := bpf.RpSlice{Generation: s.generation, Len: uint8(len(s.members))}
	targets, used := p.maps[s.index], 0
	defer func() { p.slots[s.index] = max(p.slots[s.index], used) }()
	put := func(ifindex int, program uint32) error {
		err := targets.Put(uint32(used), [2]uint32{uint32(ifindex), program})
		used++
		return err
	}
	out := uint32(p.e.objects.MdcsRpOut.FD())
	for i := range s.members {
		number := s.members[i].hop.device
		d := p.e.devices[number]
		switch err := put(d.index, out); {
		case err == nil:
		case p.e.isGone(d.index):
			return &goneError{number, d.name, err}
		default: // as when memory is short
			return fmt.Errorf("slice %d: device %s: %w", s.index, d.name, err)
		}
	}
	if s.chained {
		value.Chained = 1
		if err := put(p.e.recirc.in, 0); err != nil {
			return fmt.Errorf("slice %d: recirculation pair: %w", s.index, err)
		}
	}
	for ; p.slots[s.index] > used; p.slots[s.index]-- {
		if err := targets.Delete(uint32(p.slots[s.index] - 1)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("slice %d: %w", s.index, err)
		}
	}

	n := uint8(0)
	for number := range MaxDevices {
		value.First[number] = n
		for i := range s.members {
			if s.members[i].hop.device == number {
				value.Replicas[n] = s.members[i].replica()
				n++
			}
		}
	}
	if err := p.e.objects.Slices.Put(s.index, &value); err != nil {
		return fmt.Errorf("slice %d: %w", s.index, err)
	}
	return nil
}

// retire takes back a slice that nothing leads to any more.
func (p *pool) retire(s *slice, now time.Time) { p.retired = append(p.retired, retiredSlice{s, now}) }

// expire ends the quarantine of those who had it long enough. They lead nowhere then.
func (p *pool) expire(now time.Time) {
	for len(p.retired) > 0 && now.Sub(p.retired[0].at) >= quarantine {
		s := p.retired[0].slice
		p.retired = slices.Delete(p.retired, 0, 1)
		p.account(s, func(a *session, n uint64) { a.state.copies.Add(n) })
		atomic.StoreUint64(p.e.objects.Memory.Nexts.At(s.index), 0)
		if p.maps[s.index] == nil {
			p.bare = append(p.bare, s.index)
		} else {
			p.free = append(p.free, s.index)
		}
	}
}

// isGone reports whether there is no interface with an index any more.
func (e *Engine) isGone(ifindex int) bool {
	_, err := e.nl.LinkByIndex(ifindex)
	_, gone := errors.AsType[netlink.LinkNotFoundError](err)
	return gone
}

// goneError says that the kernel has no such device any more.
type goneError struct {
	device int // number
	name   string
	err    error
}

func (e *goneError) Error() string { return fmt.Sprintf("device %s: %v", e.name, e.err) }
func (e *goneError) Unwrap() error { return e.err }

// account calls add with the frames that went through a slice, for each receiver.
func (p *pool) account(s *slice, add func(*session, uint64)) {
	n := atomic.LoadUint64(p.e.objects.Memory.Passes.At(s.index)) - s.passed
	for i := range s.members {
		if m := &s.members[i]; m.session != nil {
			add(m.session, n)
		}
	}
}

// replica is the member as the egress program needs it.
func (m *member) replica() (r bpf.RpReplica) {
	r.DstMac, r.SrcMac, r.HopLimit = m.hop.dst, m.hop.src, m.hop.hopLimit
	if m.whole {
		r.Whole = 1
	}
	if m.session == nil {
		return r
	}
	s := m.session
	r.Key.K0, r.Key.K1 = objects.Halves(s.SendKey)
	addr := s.Addr.Addr().As16()
	r.Addr.Word = objects.Words(addr)
	r.SendSession = objects.Wire32(s.SendSession)
	r.Session = s.Index
	r.Port = objects.Port(s.Addr.Port())

	r.Sum = objects.Sum16(be.AppendUint32(be.AppendUint16(addr[:], s.Addr.Port()), s.SendSession))
	return r
}
