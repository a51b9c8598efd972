// SPDX-License-Identifier: LGPL-3.0-or-later

package objects

import (
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/bpf"
)

// Memory is the BPF maps that the programs write, mapped into the process: words are read
// and stored whole, with sync/atomic and without system calls. Any thread may do so until Close.
type Memory struct {
	Sessions  Region[bpf.RpSessionState] // by RpSession.State
	Streams   Region[bpf.RpStreamState]  // by RpStream.State
	Nexts     Region[uint64]             // what a slice or an anchor leads to, see package fanout
	Receivers Region[uint64]             // of each stream, by anchor less the first anchor
	Passes    Region[uint64]             // frames that went through a slice
	Egresses  Region[bpf.RpEgress]       // the limit of all copies, then the shares of sites by RpSession.Site
	Lives     Region[bpf.RpLife]         // one: whose datapath it is, and until when it forwards
}

func (m *Memory) open(o *bpf.RpObjects) error {
	for _, r := range []struct {
		name string
		open func() error
	}{
		{"session states", func() error { return m.Sessions.open(o.States) }},
		{"stream states", func() error { return m.Streams.open(o.StreamStates) }},
		{"nexts", func() error { return m.Nexts.open(o.Nexts) }},
		{"receivers", func() error { return m.Receivers.open(o.Receivers) }},
		{"passes", func() error { return m.Passes.open(o.Passes) }},
		{"egresses", func() error { return m.Egresses.open(o.Egresses) }},
		{"lives", func() error { return m.Lives.open(o.Lives) }},
	} {
		if err := r.open(); err != nil {
			return fmt.Errorf("map %s into memory: %w", r.name, err)
		}
	}
	return nil
}

func (m *Memory) close() {
	m.Sessions.close()
	m.Streams.close()
	m.Nexts.close()
	m.Receivers.close()
	m.Passes.close()
	m.Egresses.close()
	m.Lives.close()
}

// Region is an array map with BPF_F_MMAPABLE. Its elements are multiples of 8 bytes.
type Region[T any] struct {
	bytes []byte
	len   uint32
}

func (r *Region[T]) open(m *ebpf.Map) error {
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

// Len returns how many elements there are.
func (r *Region[T]) Len() uint32 { return r.len }

// Bytes returns all elements, which the programs may be changing.
func (r *Region[T]) Bytes() []byte { return r.bytes }

// At returns element i, which must be below Len. Its words change at any time: read them with
// sync/atomic.
func (r *Region[T]) At(i uint32) *T {
	var element T
	if i >= r.len {
		panic(fmt.Sprintf("element %d of %d", i, r.len))
	}
	return (*T)(unsafe.Pointer(&r.bytes[uintptr(i)*unsafe.Sizeof(element)]))
}

func (r *Region[T]) close() {
	if r.bytes != nil {
		_ = unix.Munmap(r.bytes) // of what Mmap returned: cannot fail
		r.bytes, r.len = nil, 0
	}
}
