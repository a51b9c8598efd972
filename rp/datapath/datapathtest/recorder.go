// SPDX-License-Identifier: LGPL-3.0-or-later

package datapathtest

import (
	"net/netip"
	"sync"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// Recorder is an Engine without a network: it keeps what it is told. It is safe
// for concurrent use.
type Recorder struct {
	Local netip.AddrPort // returned by Addr

	// OnApply, when set, is called with each change, before it is kept. Its error
	// refuses the change.
	OnApply func(datapath.Change) error

	mu         sync.Mutex
	changes    []datapath.Change
	heartbeats int
	closed     bool
}

var _ datapath.Engine = (*Recorder)(nil)

// Apply implements datapath.Engine.
func (r *Recorder) Apply(c datapath.Change) error {
	if r.OnApply != nil {
		if err := r.OnApply(c); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return datapath.ErrClosed
	}
	r.changes = append(r.changes, c)
	return nil
}

// Changes returns the changes since the last call.
func (r *Recorder) Changes() []datapath.Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	changes := r.changes
	r.changes = nil
	return changes
}

// Marks implements datapath.Engine.
func (r *Recorder) Marks() []proto.Mark { return nil }

// Probe implements datapath.Engine.
func (r *Recorder) Probe(netip.AddrPort, [wire.NonceSize]byte, int) error { return nil }

// Heartbeat implements datapath.Engine.
func (r *Recorder) Heartbeat() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heartbeats++
	return nil
}

// Heartbeats returns how often Heartbeat was called.
func (r *Recorder) Heartbeats() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.heartbeats
}

// Stats implements datapath.Engine.
func (r *Recorder) Stats() datapath.Stats { return datapath.Stats{} }

// Addr implements datapath.Engine.
func (r *Recorder) Addr() netip.AddrPort { return r.Local }

// Close implements datapath.Engine.
func (r *Recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return nil
}
