// SPDX-License-Identifier: LGPL-3.0-or-later

package datapathtest

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
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

	// OnHello, when set, is called with each hello, before it is kept. Its error is that
	// of Hello.
	OnHello func(session ids.Session, hello [wire.HelloSize]byte) error

	// OnResend, when set, is called with each Resend, before it is kept. Its error is that
	// of Resend.
	OnResend func(session ids.Session, datagrams [][]byte) error

	mu         sync.Mutex
	changes    []datapath.Change
	hellos     []Hello
	resends    []Resend
	egress     [2]uint64
	heartbeats []datapath.HeartbeatScope
	heard      map[ids.Session]time.Time
	closed     bool
}

// Hello is a call of Engine.Hello.
type Hello struct {
	Session ids.Session
	Hello   [wire.HelloSize]byte
}

// Resend is a call of Engine.Resend.
type Resend struct {
	Session   ids.Session
	Datagrams [][]byte
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
func (r *Recorder) Changes() []datapath.Change { return take(r, &r.changes) }

// Marks implements datapath.Engine.
func (r *Recorder) Marks() []proto.Mark { return nil }

// OwnMarks implements datapath.Engine.
func (r *Recorder) OwnMarks() []proto.Mark { return nil }

// Lacks implements datapath.Engine.
func (r *Recorder) Lacks() []datapath.Lack { return nil }

// Probe implements datapath.Engine.
func (r *Recorder) Probe(netip.AddrPort, [wire.NonceSize]byte, int) error { return nil }

// Heartbeat implements datapath.Engine.
func (r *Recorder) Heartbeat(scope datapath.HeartbeatScope) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heartbeats = append(r.heartbeats, scope)
	return nil
}

// Heartbeats returns the scopes of the heartbeats since the last call.
func (r *Recorder) Heartbeats() []datapath.HeartbeatScope { return take(r, &r.heartbeats) }

// Hello implements datapath.Engine.
func (r *Recorder) Hello(session ids.Session, hello [wire.HelloSize]byte) error {
	if r.OnHello != nil {
		if err := r.OnHello(session, hello); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return datapath.ErrClosed
	}
	r.hellos = append(r.hellos, Hello{session, hello})
	return nil
}

// Hellos returns the hellos since the last call.
func (r *Recorder) Hellos() []Hello { return take(r, &r.hellos) }

// Resend implements datapath.Engine.
func (r *Recorder) Resend(session ids.Session, datagrams [][]byte) error {
	if r.OnResend != nil {
		if err := r.OnResend(session, datagrams); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return datapath.ErrClosed
	}
	r.resends = append(r.resends, Resend{session, slices.Clone(datagrams)})
	return nil
}

// SetEgress implements datapath.Engine.
func (r *Recorder) SetEgress(rate, burst uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.egress = [2]uint64{rate, burst}
}

// Egress returns what SetEgress was told last.
func (r *Recorder) Egress() (rate, burst uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.egress[0], r.egress[1]
}

// Resends returns what was sent again since the last call.
func (r *Recorder) Resends() []Resend { return take(r, &r.resends) }

// Heard implements datapath.Engine.
func (r *Recorder) Heard(session ids.Session) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.heard[session]
}

// SetHeard sets what Heard returns.
func (r *Recorder) SetHeard(session ids.Session, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.heard == nil {
		r.heard = make(map[ids.Session]time.Time)
	}
	r.heard[session] = at
}

// take returns what a list of r holds, and empties it.
func take[T any](r *Recorder, list *[]T) []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	taken := *list
	*list = nil
	return taken
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
