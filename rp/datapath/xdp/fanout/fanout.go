// SPDX-License-Identifier: LGPL-3.0-or-later

// Package fanout keeps what the programs copy datagrams by. A chain is the receivers of a stream
// or of a group, in slices of eight:
//
//	stream --> anchor --> slice of 8 --> ... --> anchor --> slice of 8 --> ... --> end
//
// The chain of a stream holds the branches of its route, before them the ECHO to the publisher
// if the stream is an own one, and ends in the chain of the peers of its group.
//
// Invariants:
//
//   - The copies of a published slice are never changed. A receiver that joins or leaves gets a new slice in the
//     old one's place, by one store. So a datagram in flight reaches a receiver that stays
//     exactly once, and a receiver that joins or leaves just then at most once.
//   - A reference names a slice by index and generation. A generation is new with each use of the
//     index, so a frame that waited too long finds another one and is dropped.
//   - A slice that nothing leads to any more goes on to lead where it led for Quarantine, and only
//     then its index is used again. The same holds for anchors and other Elements.
//   - After an error all chains are as they were.
//
// The package knows neither sessions nor routes nor the engine. It writes BPF maps through the
// interface Kernel, which package fanouttest has in memory, too. A Fanout belongs to the engine's
// thread; only Kernel.InstallMaps is called by another goroutine, while slices are running out.
package fanout

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/ids"
)

// Limits of the programs.
const (
	MaxDevices  = 8      // that copies leave by
	MaxSlices   = 8192   // less one: index 0 ends a chain
	SliceSize   = 8      // copies
	FirstAnchor = 0xe000 // FIRST_ANCHOR of the programs: indexes from here on name chains
)

// MaxInline is how many slices may follow each other without the queue. More take so
// long that the next datagrams would meet them, however far apart they arrive.
const MaxInline = 32

// longChain is LONG_CHAIN of the programs.
const longChain = 1 << 63

// Quarantine is how long what was taken out of BPF maps is not used for something else:
// frames that know of it may still wait in a queue.
const Quarantine = 2 * time.Second

// ErrQuarantine says that a slice will be free when a quarantine ends, or has yet to begin.
var ErrQuarantine = errors.New("all slices are in quarantine")

// ErrPair says that a slice could not be made to lead to the recirculation pair, which may be gone.
var ErrPair = errors.New("recirculation pair")

// GoneError says that the kernel has no such device any more.
type GoneError struct {
	Device int // number
	Name   string
	Err    error // what the kernel said
}

// Error implements error.
func (e *GoneError) Error() string { return fmt.Sprintf("device %s: %v", e.Name, e.Err) }

// Unwrap returns what the kernel said.
func (e *GoneError) Unwrap() error { return e.Err }

// Kernel is the BPF maps that a Fanout writes.
type Kernel interface {
	// Next returns the word that says what a slice or an anchor leads to, by index. Programs
	// read it at any time: it is read and stored with sync/atomic.
	Next(index uint32) *uint64

	// Anchors returns the end of the indexes of anchors, which begin at FirstAnchor.
	Anchors() (end uint32)

	// Passes returns how many frames ever went through the slices of an index.
	Passes(index uint32) uint64

	// Slice and PutSlice read and write a slice.
	Slice(index uint32) (bpf.RpSlice, error)
	PutSlice(index uint32, s *bpf.RpSlice) error

	// PutEcho and DeleteEcho write the ECHO to a session. It is no error when there is none to
	// delete. Echoes returns the sessions that have one.
	PutEcho(session ids.Session, e *bpf.RpEcho) error
	DeleteEcho(session ids.Session) error
	Echoes() ([]ids.Session, error)

	// InstallMaps makes device maps for slices. Any goroutine may call it. It waits for readers
	// of the kernel, for some milliseconds. With an error none is installed.
	InstallMaps(slices []uint32) ([]DeviceMap, error)
}

// DeviceMap is where the copies of a slice go, by slot.
type DeviceMap interface {
	// PutCopy has a copy leave by an interface, through the egress program.
	PutCopy(slot uint32, ifindex int) error

	// PutChain has the frame itself go to the interface of the recirculation pair. It is an error
	// when there is none.
	PutChain(slot uint32, ifindex int) error

	// Delete empties a slot, which may be empty.
	Delete(slot uint32) error

	// Close closes the handle. The programs keep the device map.
	Close() error
}

// Devices are the interfaces that copies leave by.
type Devices interface {
	// Device returns an interface by its number. The device is there.
	Device(number int) (ifindex int, name string)

	// IsGone reports whether there is no interface with an index any more.
	IsGone(ifindex int) bool

	// Recirculation returns the index of the interface that frames come back from, 0 while there is
	// none.
	Recirculation() int
}

// Receiver is a session that gets copies. It must be comparable, and never changes.
type Receiver interface {
	SessionIndex() ids.Session

	// Replica returns what copies to the session need, but for Ethernet addresses and hop limit.
	Replica() bpf.RpReplica

	// AddCopies counts copies by slices that are gone.
	AddCopies(n uint64)
}

// Hop is what a frame to a receiver needs.
type Hop struct {
	Device     int    // number
	Attachment uint32 // of the device, new when the device comes back
	Dst, Src   [6]byte
	HopLimit   uint8
}

// Member is one copy of a slice.
type Member struct {
	To    Receiver // nil: the ECHO to the publisher, unless it is whole
	Whole bool     // frames of user space that are complete
	Hop   Hop
}

// replica is the member as the egress program needs it.
func (m *Member) replica() (r bpf.RpReplica) {
	if m.To != nil {
		r = m.To.Replica()
	}
	r.DstMac, r.SrcMac, r.HopLimit = m.Hop.Dst, m.Hop.Src, m.Hop.HopLimit
	if m.Whole {
		r.Whole = 1
	}
	return r
}

// Fanout holds the slices, the chains' anchors and the ECHOs of one datapath.
type Fanout struct {
	kernel  Kernel
	devices Devices
	now     func() time.Time

	// Slices, by index; 0 is not used: it ends a chain.
	maps        []DeviceMap       // nil: another process made it
	slots       []int             // in use of each map
	chained     map[uint32]uint32 // slot of the recirculation pair in the maps of slices that have it
	generations []uint16
	free        []uint32
	bare        []uint32          // unused, but without a map
	retired     []retiredSlice    // oldest first
	left        map[uint32]*Slice // of another process, while streams go by them
	growing     <-chan Growth     // gets the device maps that are being installed; nil: none are

	anchors Elements
	echoes  map[ids.Session]Member // of publishers, by session
}

// New returns a Fanout without chains. It uses no index yet.
func New(kernel Kernel, devices Devices, now func() time.Time) *Fanout {
	return &Fanout{
		kernel: kernel, devices: devices, now: now,
		maps: make([]DeviceMap, 1), slots: make([]int, 1), generations: make([]uint16, 1),
		chained: make(map[uint32]uint32),
		anchors: NewElements(FirstAnchor, kernel.Anchors()),
		echoes:  make(map[ids.Session]Member),
	}
}

// Close closes the handles of device maps. The programs keep what they have.
func (f *Fanout) Close() {
	if f.growing != nil {
		_ = f.Add(<-f.growing) // nobody takes from it any more
	}
	for _, m := range f.maps {
		if m != nil {
			m.Close()
		}
	}
}

// Expire ends the quarantine of what had it long enough. The word of an anchor then tells a
// successor that it is free.
func (f *Fanout) Expire(now time.Time) {
	f.expireSlices(now)
	for _, anchor := range f.anchors.Expire(now) {
		atomic.StoreUint64(f.kernel.Next(anchor), 0)
	}
}

// SetEcho makes the ECHO to a session what its member says; nil is none.
func (f *Fanout) SetEcho(session ids.Session, m *Member) error {
	have, echoes := f.echoes[session]
	switch {
	case m != nil:
		if have == *m {
			return nil
		}
		value := bpf.RpEcho{Replica: m.replica(), Device: uint32(m.Hop.Device)}
		if err := f.kernel.PutEcho(session, &value); err != nil {
			return fmt.Errorf("ECHO of session %08x: %w", session, err)
		}
		f.echoes[session] = *m
	case echoes:
		if err := f.kernel.DeleteEcho(session); err != nil {
			return fmt.Errorf("ECHO of session %08x: %w", session, err)
		}
		delete(f.echoes, session)
	}
	return nil
}

// Echoes returns the members of all ECHOs, by session. The caller must not change them.
func (f *Fanout) Echoes() map[ids.Session]Member { return f.echoes }
