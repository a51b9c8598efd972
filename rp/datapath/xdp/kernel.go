// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/objects"
)

// kernel is the BPF maps of a Fanout.
type kernel struct {
	*objects.Objects

	refuse func(*bpf.RpSlice) error // for tests: what writing a slice ends with
}

var _ fanout.Kernel = (*kernel)(nil)

func (k *kernel) Next(index uint32) *uint64 { return k.Memory.Nexts.At(index) }

func (k *kernel) Anchors() (end uint32) { return k.Memory.Nexts.Len() }

func (k *kernel) Passes(index uint32) uint64 { return atomic.LoadUint64(k.Memory.Passes.At(index)) }

func (k *kernel) Slice(index uint32) (s bpf.RpSlice, err error) {
	return s, k.Slices.Lookup(index, &s)
}

func (k *kernel) PutSlice(index uint32, s *bpf.RpSlice) error {
	if k.refuse != nil {
		if err := k.refuse(s); err != nil {
			return err
		}
	}
	return k.Slices.Put(index, s)
}

func (k *kernel) PutEcho(session ids.Session, e *bpf.RpEcho) error {
	return k.Objects.Echoes.Put(session, e)
}

func (k *kernel) DeleteEcho(session ids.Session) error {
	return ignoreMissing(k.Objects.Echoes.Delete(session))
}

func (k *kernel) Echoes() (sessions []ids.Session, err error) {
	var session ids.Session
	var value bpf.RpEcho
	it := k.Objects.Echoes.Iterate()
	for it.Next(&session, &value) {
		sessions = append(sessions, session)
	}
	return sessions, it.Err()
}

func (k *kernel) InstallMaps(slices []uint32) ([]fanout.DeviceMap, error) {
	maps, err := k.InstallTargets(slices)
	if err != nil {
		return nil, err
	}
	all := make([]fanout.DeviceMap, len(maps))
	for i, m := range maps {
		all[i] = &deviceMap{m, k}
	}
	return all, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// deviceMap is the device map of a slice. Its values are struct bpf_devmap_val: an interface, and
// the program that frames leave through.
type deviceMap struct {
	*ebpf.Map
	kernel *kernel
}

func (m *deviceMap) PutCopy(slot uint32, ifindex int) error {
	return m.Put(slot, [2]uint32{uint32(ifindex), uint32(m.kernel.MdcsRpOut.FD())})
}

func (m *deviceMap) PutChain(slot uint32, ifindex int) error {
	if ifindex == 0 { // which for the kernel empties the slot
		return errors.New("the pair is gone")
	}
	return m.Put(slot, [2]uint32{uint32(ifindex), 0})
}

func (m *deviceMap) Delete(slot uint32) error { return ignoreMissing(m.Map.Delete(slot)) }

// outlets are the devices that copies leave by.
type outlets struct{ e *Engine }

var _ fanout.Devices = outlets{}

func (o outlets) Device(number int) (ifindex int, name string) {
	return o.e.devices[number].index, o.e.devices[number].name
}

func (o outlets) IsGone(ifindex int) bool {
	_, err := o.e.nl.LinkByIndex(ifindex)
	_, gone := errors.AsType[netlink.LinkNotFoundError](err)
	return gone
}

func (o outlets) Recirculation() int { return o.e.recirc.in }

// newFanout makes the fan-out of the loaded BPF maps.
func (e *Engine) newFanout() {
	e.kernel = &kernel{Objects: e.objects}
	e.fanout = fanout.New(e.kernel, outlets{e}, time.Now)
}

// SessionIndex implements fanout.Receiver.
func (s *session) SessionIndex() ids.Session { return s.Index }

// Replica implements fanout.Receiver.
func (s *session) Replica() bpf.RpReplica { return objects.Replica(&s.Session) }

// AddCopies implements fanout.Receiver.
func (s *session) AddCopies(n uint64) { s.state.copies.Add(n) }
