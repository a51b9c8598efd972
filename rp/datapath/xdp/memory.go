// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/bpf"
)

// memory is the tables that the programs write, mapped into the process: words are
// read and stored whole, without system calls.
type memory struct {
	sessions  region[bpf.RpSessionState]
	streams   region[bpf.RpStreamState]
	nexts     region[uint64]
	receivers region[uint64]
	passes    region[uint64]
	egresses  region[bpf.RpEgress]
	lives     region[bpf.RpLife]
}

func (m *memory) open(o *bpf.RpObjects) error {
	for _, r := range []struct {
		name string
		open func() error
	}{
		{"session states", func() error { return m.sessions.open(o.States) }},
		{"stream states", func() error { return m.streams.open(o.StreamStates) }},
		{"nexts", func() error { return m.nexts.open(o.Nexts) }},
		{"receivers", func() error { return m.receivers.open(o.Receivers) }},
		{"passes", func() error { return m.passes.open(o.Passes) }},
		{"egresses", func() error { return m.egresses.open(o.Egresses) }},
		{"lives", func() error { return m.lives.open(o.Lives) }},
	} {
		if err := r.open(); err != nil {
			return fmt.Errorf("map %s into memory: %w", r.name, err)
		}
	}
	return nil
}

func (m *memory) close() {
	m.sessions.close()
	m.streams.close()
	m.nexts.close()
	m.receivers.close()
	m.passes.close()
	m.egresses.close()
	m.lives.close()
}

// region is an array map with BPF_F_MMAPABLE. Its elements are multiples of 8 bytes.
type region[T any] struct {
	bytes []byte
	len   uint32
}

func (r *region[T]) open(m *ebpf.Map) error {
	var element T
	if size := uint32(unsafe.Sizeof(element)); size != m.ValueSize() || size%8 != 0 {
		return fmt.Errorf("elements of %d bytes, not %d", m.ValueSize(), size)
	}
	bytes, err := unix.Mmap(m.FD(), 0, int(m.ValueSize()*m.MaxEntries()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	r.bytes, r.len = bytes, m.MaxEntries()
	return nil
}

// at returns element i. Its words change at any time: read them with load.
func (r *region[T]) at(i uint32) *T {
	var element T
	if i >= r.len {
		panic(fmt.Sprintf("element %d of %d", i, r.len))
	}
	return (*T)(unsafe.Pointer(&r.bytes[uintptr(i)*unsafe.Sizeof(element)]))
}

func (r *region[T]) close() {
	if r.bytes != nil {
		_ = unix.Munmap(r.bytes) // of what Mmap returned: cannot fail
		r.bytes, r.len = nil, 0
	}
}

func load(p *uint64) uint64     { return atomic.LoadUint64(p) }
func store(p *uint64, v uint64) { atomic.StoreUint64(p, v) }
