// SPDX-License-Identifier: LGPL-3.0-or-later

// Package fanouttest has the BPF maps and devices of package fanout in memory, a walker that reads
// chains as a datagram does, and the property that chains must have, which holds for the maps in
// memory and for the maps of the kernel alike.
package fanouttest

import (
	"errors"
	"fmt"
	"sync"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
)

// anchors is how many chains a Memory has room for.
const anchors = 256

// Memory is BPF maps and devices in memory: fanout.Kernel and fanout.Devices. Devices 0 to 7 have
// the interface indexes 1 to 8.
type Memory struct {
	// Refuse is what writing a slice ends with; nil refuses none.
	Refuse func(*bpf.RpSlice) error

	// RefuseMaps is what making device maps ends with.
	RefuseMaps error

	// RefuseCopies is what giving a slice a copy ends with.
	RefuseCopies error

	// Pair is the interface that frames come back from, 0 for none.
	Pair int

	// Gone are the interfaces that are not there, by index.
	Gone map[int]bool

	nexts  [fanout.FirstAnchor + anchors]uint64
	passes [fanout.MaxSlices]uint64
	slices [fanout.MaxSlices]bpf.RpSlice
	echoes map[ids.Session]bpf.RpEcho

	mu      sync.Mutex // InstallMaps runs beside the thread
	targets map[uint32]*deviceMap
}

var (
	_ fanout.Kernel  = (*Memory)(nil)
	_ fanout.Devices = (*Memory)(nil)
	_ Reader         = (*Memory)(nil)
)

// NewMemory returns empty BPF maps.
func NewMemory() *Memory {
	return &Memory{Pair: 99, Gone: make(map[int]bool), echoes: make(map[ids.Session]bpf.RpEcho), targets: make(map[uint32]*deviceMap)}
}

// Next implements fanout.Kernel.
func (m *Memory) Next(index uint32) *uint64 { return &m.nexts[index] }

// Anchors implements fanout.Kernel.
func (m *Memory) Anchors() uint32 { return uint32(len(m.nexts)) }

// Passes implements fanout.Kernel.
func (m *Memory) Passes(index uint32) uint64 { return m.passes[index] }

// Slice implements fanout.Kernel.
func (m *Memory) Slice(index uint32) (bpf.RpSlice, error) { return m.slices[index], nil }

// PutSlice implements fanout.Kernel.
func (m *Memory) PutSlice(index uint32, s *bpf.RpSlice) error {
	if m.Refuse != nil {
		if err := m.Refuse(s); err != nil {
			return err
		}
	}
	m.slices[index] = *s
	return nil
}

// PutEcho implements fanout.Kernel.
func (m *Memory) PutEcho(session ids.Session, e *bpf.RpEcho) error {
	m.echoes[session] = *e
	return nil
}

// DeleteEcho implements fanout.Kernel.
func (m *Memory) DeleteEcho(session ids.Session) error {
	delete(m.echoes, session)
	return nil
}

// Echoes implements fanout.Kernel.
func (m *Memory) Echoes() (sessions []ids.Session, err error) {
	for session := range m.echoes {
		sessions = append(sessions, session)
	}
	return sessions, nil
}

// InstallMaps implements fanout.Kernel.
func (m *Memory) InstallMaps(slices []uint32) ([]fanout.DeviceMap, error) {
	if m.RefuseMaps != nil {
		return nil, m.RefuseMaps
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]fanout.DeviceMap, len(slices))
	for i, index := range slices {
		m.targets[index] = &deviceMap{m: m, slots: make(map[uint32]int)}
		all[i] = m.targets[index]
	}
	return all, nil
}

// Device implements fanout.Devices.
func (m *Memory) Device(number int) (ifindex int, name string) {
	return number + 1, fmt.Sprintf("eth%d", number)
}

// IsGone implements fanout.Devices.
func (m *Memory) IsGone(ifindex int) bool { return m.Gone[ifindex] }

// Recirculation implements fanout.Devices.
func (m *Memory) Recirculation() int { return m.Pair }

// Slots implements Reader.
func (m *Memory) Slots(slice uint32) (slots int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, used := m.targets[slice].slots[0]; used; _, used = m.targets[slice].slots[uint32(slots)] {
		slots++
	}
	return slots
}

// LeadsTo returns the interface in a slot of the device map of a slice, 0 for none.
func (m *Memory) LeadsTo(slice, slot uint32) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.targets[slice].slots[slot]
}

// Pass is a frame that goes by chains from a reference on: it counts at each slice.
func (m *Memory) Pass(ref uint64) {
	for ref&0xffff != 0 {
		index := uint32(ref & 0xffff)
		if index < fanout.FirstAnchor {
			m.passes[index]++
		}
		ref = m.nexts[index] & 0xffffffff
	}
}

// deviceMap is the interfaces of a slice, by slot.
type deviceMap struct {
	m     *Memory
	slots map[uint32]int
}

func (d *deviceMap) PutCopy(slot uint32, ifindex int) error {
	if d.m.Gone[ifindex] {
		return errors.New("no such device")
	}
	if d.m.RefuseCopies != nil {
		return d.m.RefuseCopies
	}
	d.slots[slot] = ifindex
	return nil
}

func (d *deviceMap) PutChain(slot uint32, ifindex int) error {
	if ifindex != d.m.Pair || ifindex == 0 {
		return errors.New("no such pair")
	}
	d.slots[slot] = ifindex
	return nil
}

func (d *deviceMap) Delete(slot uint32) error {
	delete(d.slots, slot)
	return nil
}

func (d *deviceMap) Close() error { return nil }

// Receiver is a session with an index, and how many copies went to it by slices that are gone.
type Receiver struct {
	Index  ids.Session
	Copies uint64
}

// SessionIndex implements fanout.Receiver.
func (r *Receiver) SessionIndex() ids.Session { return r.Index }

// Replica implements fanout.Receiver.
func (r *Receiver) Replica() bpf.RpReplica { return bpf.RpReplica{Session: uint32(r.Index)} }

// AddCopies implements fanout.Receiver.
func (r *Receiver) AddCopies(n uint64) { r.Copies += n }
