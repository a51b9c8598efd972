// SPDX-License-Identifier: LGPL-3.0-or-later

package fanout

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ethmcast/mdcs/bpf"
)

// poolStep is how many device maps are installed at a time: one wait for the kernel's readers
// of the map of device maps, however many there are.
const poolStep = 64

// Slice is a published broadcast of copies. It does not change.
type Slice struct {
	index      uint32
	generation uint16
	members    []Member // in the order of sending
	chained    bool     // something may follow
	passed     uint64   // frames that had gone through its index when it was published
}

// Index and Generation name the slice.
func (s *Slice) Index() uint32      { return s.index }
func (s *Slice) Generation() uint16 { return s.generation }

// Members returns the copies in the order of sending. The caller must not change them.
func (s *Slice) Members() []Member { return s.members }

// reference is what leads to the slice.
func (s *Slice) reference() uint64 { return uint64(s.generation)<<16 | uint64(s.index) }

type retiredSlice struct {
	*Slice
	at time.Time
}

// ahead is how many unused slices are left when more device maps are installed: a change then
// waits only when it takes more than these at once.
const ahead = poolStep / 2

// Growth is device maps that were installed for slices.
type Growth struct {
	keys []uint32 // of the slices
	maps []DeviceMap
	err  error
}

// Growing returns a channel that gets the device maps that are being installed, for Add; nil
// while none are.
func (f *Fanout) Growing() <-chan Growth { return f.growing }

func (f *Fanout) install(keys []uint32) Growth {
	maps, err := f.kernel.InstallMaps(keys)
	return Growth{keys, maps, err}
}

// Grow installs poolStep more device maps, unless that is under way already, and waits.
func (f *Fanout) Grow() error {
	if f.growing == nil {
		keys := f.next()
		if len(keys) == 0 {
			return errors.New("no slice is left")
		}
		return f.Add(f.install(keys))
	}
	return f.Add(<-f.growing)
}

// growAhead begins to install poolStep more device maps, which ends with an element of
// growing, when few slices are left.
func (f *Fanout) growAhead() {
	if f.growing != nil || len(f.free) >= ahead {
		return
	}
	if keys := f.next(); len(keys) > 0 {
		done := make(chan Growth, 1)
		f.growing = done
		go func() { done <- f.install(keys) }()
	}
}

// next returns the slices that get device maps next, at most poolStep.
func (f *Fanout) next() []uint32 {
	keys := slices.Clone(f.bare[:min(poolStep, len(f.bare))])
	for i := len(f.maps); i < MaxSlices && len(keys) < poolStep; i++ {
		keys = append(keys, uint32(i))
	}
	return keys
}

// Add takes device maps that were installed.
func (f *Fanout) Add(g Growth) error {
	f.growing = nil
	if g.err != nil {
		return fmt.Errorf("grow slices: %w", g.err)
	}
	first := len(f.maps)
	for i, index := range g.keys {
		if int(index) < first {
			f.maps[index] = g.maps[i]
			f.bare = f.bare[1:]
		} else {
			f.maps = append(f.maps, g.maps[i])
			f.slots = append(f.slots, 0)
			f.generations = append(f.generations, 0)
		}
		f.free = append(f.free, index)
	}
	return nil
}

// Released returns when the next quarantine ends, the zero time when none runs.
func (f *Fanout) Released() time.Time {
	if len(f.retired) == 0 {
		return time.Time{}
	}
	return f.retired[0].at.Add(Quarantine)
}

// Room is how many slices can be taken now.
func (f *Fanout) Room() int { return len(f.free) + len(f.bare) + MaxSlices - len(f.maps) }

// Generation returns the generation of the last slice of an index, 0 for none.
func (f *Fanout) Generation(index uint32) uint16 {
	if int(index) >= len(f.generations) {
		return 0
	}
	return f.generations[index]
}

// take returns an unused index. When all are in use or in quarantine there is none: the
// thread does not wait for them.
func (f *Fanout) take() (uint32, error) {
	if len(f.free) == 0 {
		f.expireSlices(f.now())
	}
	if len(f.free) == 0 {
		if err := f.Grow(); err != nil && len(f.retired)+len(f.left) > 0 {
			return 0, ErrQuarantine
		} else if err != nil {
			return 0, err
		}
	}
	index := f.free[0]
	f.free = f.free[1:]
	f.growAhead()
	return index, nil
}

// Build makes a slice that nothing leads to yet.
func (f *Fanout) Build(members []Member, chained bool) (*Slice, error) {
	index, err := f.take()
	if err != nil {
		return nil, err
	}
	f.generations[index]++
	if f.generations[index] == 0 { // a reference to it would say that the chain ends
		f.generations[index]++
	}
	s := &Slice{index: index, generation: f.generations[index], members: members, chained: chained}
	s.passed = f.kernel.Passes(index)
	if err := f.fill(s); err != nil {
		f.free = append(f.free, index)
		return nil, err
	}
	return s, nil
}

// fill writes the slots and the replicas of a slice. Slots that it wrote before an error are
// in use, too: the next slice of the index empties them.
func (f *Fanout) fill(s *Slice) error {
	value := bpf.RpSlice{Generation: s.generation, Len: uint8(len(s.members))}
	targets, used := f.maps[s.index], 0
	delete(f.chained, s.index)
	defer func() { f.slots[s.index] = max(f.slots[s.index], used) }()
	for i := range s.members {
		number := s.members[i].Hop.Device
		ifindex, name := f.devices.Device(number)
		err := targets.PutCopy(uint32(used), ifindex)
		used++
		switch {
		case err == nil:
		case f.devices.IsGone(ifindex):
			return &GoneError{number, name, err}
		default: // as when memory is short
			return fmt.Errorf("slice %d: device %s: %w", s.index, name, err)
		}
	}
	if s.chained {
		value.Chained = 1
		err := targets.PutChain(uint32(used), f.devices.Recirculation())
		used++
		if err != nil {
			return fmt.Errorf("slice %d: %w: %w", s.index, ErrPair, err)
		}
		f.chained[s.index] = uint32(used - 1)
	}
	for ; f.slots[s.index] > used; f.slots[s.index]-- {
		if err := targets.Delete(uint32(f.slots[s.index] - 1)); err != nil {
			return fmt.Errorf("slice %d: %w", s.index, err)
		}
	}

	n := uint8(0)
	for number := range MaxDevices {
		value.First[number] = n
		for i := range s.members {
			if s.members[i].Hop.Device == number {
				value.Replicas[n] = s.members[i].replica()
				n++
			}
		}
	}
	if err := f.kernel.PutSlice(s.index, &value); err != nil {
		return fmt.Errorf("slice %d: %w", s.index, err)
	}
	return nil
}

// Rechain makes all slices that something may follow lead to the recirculation pair of now. The
// kernel has taken one that is gone out of all device maps. After an error some do not, and it is to
// be called again.
func (f *Fanout) Rechain() error {
	for index, slot := range f.chained {
		if err := f.maps[index].PutChain(slot, f.devices.Recirculation()); err != nil {
			return fmt.Errorf("slice %d: %w: %w", index, ErrPair, err)
		}
	}
	return nil
}

// Retire takes back a slice that nothing leads to any more.
func (f *Fanout) Retire(s *Slice) { f.retired = append(f.retired, retiredSlice{s, f.now()}) }

// expireSlices ends the quarantine of slices that had it long enough. They lead nowhere then.
func (f *Fanout) expireSlices(now time.Time) {
	for len(f.retired) > 0 && now.Sub(f.retired[0].at) >= Quarantine {
		s := f.retired[0].Slice
		f.retired = slices.Delete(f.retired, 0, 1)
		f.account(s, func(to Receiver, n uint64) { to.AddCopies(n) })
		atomic.StoreUint64(f.kernel.Next(s.index), 0)
		if f.maps[s.index] == nil {
			f.bare = append(f.bare, s.index)
		} else {
			f.free = append(f.free, s.index)
		}
	}
}

// account calls add with the frames that went through a slice, for each receiver.
func (f *Fanout) account(s *Slice, add func(Receiver, uint64)) {
	n := f.kernel.Passes(s.index) - s.passed
	for i := range s.members {
		if m := &s.members[i]; m.To != nil {
			add(m.To, n)
		}
	}
}

// CountCopies calls add with the frames that went through the slices of chains and through
// those in quarantine, for each receiver. Receivers were told of slices that are gone.
func (f *Fanout) CountCopies(chains []*Chain, add func(Receiver, uint64)) {
	for _, c := range chains {
		for _, s := range c.slices {
			f.account(s, add)
		}
	}
	for _, s := range f.retired {
		f.account(s.Slice, add)
	}
}
