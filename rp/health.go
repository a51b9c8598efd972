// SPDX-License-Identifier: LGPL-3.0-or-later

package rp

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/meshside"
)

// Health is how an RP does. Nothing in it is asked of what may hang.
type Health struct {
	Live     bool     `json:"live"`      // all its parts turn; if not, only a new process helps
	Ready    bool     `json:"ready"`     // it serves peers, and lets more in
	Dead     []string `json:"dead"`      // what does not turn
	NotReady []string `json:"not_ready"` // why it does not serve, or lets nobody in
	Warnings []string `json:"warnings"`  // what an operator should look at, and peers do not feel

	// LinksDown are RP neighbours by their names, of all where all are to be linked,
	// and only when none is up in a larger mesh. They are among the warnings: the RP
	// serves its peers, whoever else is gone.
	LinksDown []string `json:"links_down"`
}

// Choice is why the engine in use is the one.
type Choice struct {
	Reason   string // "configured", "auto" or "fallback"
	Fallback string // why the better engine does not run, "" if the engine is no fallback
}

// stall is how long a part may take for a turn that is due every second or sooner. The
// longest work at once is a change of ten thousand sessions, or a wait of two seconds for
// receivers that are still in use.
const stall = 6 * time.Second

// turnInterval is how often the engine and the mesh are asked for a turn.
const turnInterval = time.Second

// pulse is when a part of the RP last did its work.
type pulse struct {
	name  string
	since time.Time    // of which the clock cannot be set
	last  atomic.Int64 // ns after since
}

func newPulse(name string) *pulse { return &pulse{name: name, since: time.Now()} }

func (p *pulse) beat() { p.last.Store(int64(time.Since(p.since))) }

// age is the time since the last beat.
func (p *pulse) age() time.Duration {
	return time.Since(p.since) - time.Duration(p.last.Load())
}

// vitals are the signs of life of an RP that serves.
type vitals struct {
	engine     *pulse // its thread answered
	mesh       *pulse // its goroutine took a turn
	heartbeats *pulse // the engine told its own marks, and sent what was due

	unsent  atomic.Pointer[string]          // why the last heartbeat could not be sent, nil if it was
	lacks   atomic.Pointer[[]datapath.Lack] // what the engine ran without when it was asked last
	drained atomic.Bool                     // nobody is let in any more
}

func newVitals() *vitals {
	return &vitals{
		engine:     newPulse("the thread of the engine"),
		mesh:       newPulse("the goroutine of the mesh"),
		heartbeats: newPulse("the thread of the heartbeats"),
	}
}

// dead names the parts that do not turn.
func (v *vitals) dead() (dead []string) {
	for _, p := range []*pulse{v.engine, v.mesh, v.heartbeats} {
		if age := p.age(); age > stall {
			dead = append(dead, fmt.Sprintf("%s did not answer for %v", p.name, age.Round(time.Second)))
		}
	}
	return dead
}

// sent enters what became of a heartbeat.
func (v *vitals) sent(err error) {
	if err == nil {
		v.unsent.Store(nil)
		return
	}
	v.unsent.Store(new(err.Error()))
}

// askEngine asks the engine for its marks, and for what it runs without.
func (r *RP) askEngine() {
	r.engine.Marks()
	r.vitals.lacks.Store(new(r.engine.Lacks()))
	r.vitals.engine.beat()
}

// feelEngine is askEngine every second until ctx ends.
func (r *RP) feelEngine(ctx context.Context) {
	ticker := time.NewTicker(turnInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			r.askEngine()
		case <-ctx.Done():
			return
		}
	}
}

// feelMesh asks the mesh for a turn every second until ctx ends.
func (r *RP) feelMesh(ctx context.Context) {
	ticker := time.NewTicker(turnInterval)
	defer ticker.Stop()
	for {
		if r.mesh.Turn() {
			r.vitals.mesh.beat()
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// Health returns how the RP does. It answers also when parts of the RP hang.
func (r *RP) Health() Health {
	h := Health{Dead: []string{}, NotReady: []string{}, Warnings: []string{}, LinksDown: []string{}}
	if r.state.Load() != serving {
		h.Live = true // as far as it should
		h.NotReady = append(h.NotReady, "not serving")
		return h
	}
	if dead := r.vitals.dead(); len(dead) > 0 {
		h.Dead, h.NotReady = dead, append(h.NotReady, dead...)
	}
	if r.vitals.drained.Load() {
		h.NotReady = append(h.NotReady, "draining")
	}
	if err := r.vitals.unsent.Load(); err != nil {
		h.NotReady = append(h.NotReady, "heartbeats cannot be sent: "+*err)
	}
	if n, full := r.members.Full(); full {
		h.NotReady = append(h.NotReady, fmt.Sprintf("full: %d sessions", n))
	}
	if err := r.peers.Room(); err != nil {
		h.NotReady = append(h.NotReady, "the limit of all copies lets nobody in: "+err.Error())
	}
	if r.vitals.mesh.age() <= stall {
		if st, ok := r.meshStats(turnInterval); !ok {
			h.Warnings = append(h.Warnings, "the mesh answers slowly")
		} else {
			h.judgeMesh(&st)
		}
	}
	for _, l := range *r.vitals.lacks.Load() {
		text := fmt.Sprintf("the engine runs without %s: %s", l.What, l.Why)
		if l.NoService {
			h.NotReady = append(h.NotReady, text)
		} else {
			h.Warnings = append(h.Warnings, text)
		}
	}
	if c := r.Choice(); c.Fallback != "" {
		h.Warnings = append(h.Warnings, "the engine is a fallback: "+c.Fallback)
	}
	h.Live, h.Ready = len(h.Dead) == 0, len(h.NotReady) == 0
	return h
}

// judgeMesh enters what the mesh tells.
func (h *Health) judgeMesh(st *meshside.Stats) {
	if !st.Settled {
		h.NotReady = append(h.NotReady, "not yet on the trees of all ingress RPs")
	}
	for _, n := range st.Neighbours {
		if !n.Up() {
			h.LinksDown = append(h.LinksDown, n.ID.TerminalString())
		}
	}
	switch down := len(h.LinksDown); {
	case down == 0:
	case down == len(st.Neighbours):
		h.Warnings = append(h.Warnings, "no other RP is reached: "+strings.Join(h.LinksDown, ", "))
	case len(st.Neighbours) >= linkstate.FullMesh: // not all are to be linked
		h.LinksDown = []string{}
	default:
		h.Warnings = append(h.Warnings, "mesh links down: "+strings.Join(h.LinksDown, ", "))
	}
}

// meshStats asks the mesh, but waits no longer than patience.
func (r *RP) meshStats(patience time.Duration) (st meshside.Stats, ok bool) {
	answer := make(chan meshside.Stats, 1)
	go func() { answer <- r.mesh.Stats() }()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case st = <-answer:
		return st, true
	case <-timer.C:
		return st, false
	}
}

// Ready returns nil when the RP serves peers and lets more in, else why not. An
// RP neighbour that is gone is no reason, see [Health].
func (r *RP) Ready() error {
	if h := r.Health(); !h.Ready {
		return errors.New(strings.Join(h.NotReady, "; "))
	}
	return nil
}

// Choice returns why the engine in use is the one; empty if the configuration does not
// tell.
func (r *RP) Choice() Choice {
	if r.cfg.Choice == nil {
		return Choice{}
	}
	return r.cfg.Choice()
}
