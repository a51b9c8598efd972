// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/hostnet"
)

// Counters are the programs' own, summed over all CPUs. What is on its way between two of
// them is their difference: Queued - Dequeued - QueueLost in the queue of the fan-out,
// Chained - Recirculated - RecircLost in the recirculation pair. Planned - Made are
// copies that the kernel could not allocate.
type Counters = bpf.RpCounters

// Stats implements datapath.Engine. A send error is a copy to a receiver whose
// neighbour is unknown, one that a device had no room for (it counts as sent, too), or
// one that the programs or the socket gave up.
func (e *Engine) Stats() (st datapath.Stats) {
	_ = e.do(func() { // zero after Close
		c := e.counters()
		st = datapath.Stats{
			Engine:     "xdp",
			Verdicts:   e.verdicts(),
			Copies:     c.Copies + e.copies.Load(),
			CopyBytes:  c.CopyBytes + e.copyBytes.Load(),
			Echoes:     c.Echoes,
			Heartbeats: c.Heartbeats + e.heartbeats.Load(),
			Probes:     c.Probes + e.probes.Load(),
			Lacks:      e.lacking(),
			SendErrors: ringLost(&c) + c.QueueLost + c.RecircLost + c.Unresolved + c.NoEcho + c.Stale + c.NoReplica + c.NoTrim + e.sendErrors.Load(),
			Sessions:   e.table.stats(),
			Overflows: []datapath.Overflow{
				{Queue: "fan-out", Lost: c.QueueLost},
				{Queue: "recirculation", Lost: c.RecircLost},
				{Queue: "device", Lost: ringLost(&c)},
				{Queue: "cache", Lost: c.CacheLost},
				{Queue: "hello", Lost: c.HelloLost},
				{Queue: "netlink", Lost: hostnet.Overruns()},
			},
			Rooms: []datapath.Room{
				{Pool: "slices", Left: e.pool.left()},
				{Pool: "sessions", Left: min(MaxSessions-len(e.table.sessions), e.table.sessionStates.left())},
				{Pool: "streams", Left: min(MaxStreams-len(e.table.streams), e.table.streamStates.left())},
				{Pool: "routes", Left: MaxStreams - len(e.table.routes)},
			},
			Interrupted: hostnet.Interrupted(),
		}
	})
	return st
}

// lacking returns what the engine runs without now.
func (e *Engine) lacking() []datapath.Lack {
	lacks := slices.Concat(e.opt.Lacks, e.lacks)
	for i, name := range e.opt.Devices {
		d := e.devices[i]
		if d == nil && name != "" {
			lacks = append(lacks, datapath.Lack{What: "device " + name, Why: "it is not there, or takes no program; it is tried again each second"})
		}
		if d == nil {
			continue
		}
		if err := d.takesFrames(); err != nil {
			lacks = append(lacks, datapath.Lack{What: "copies by " + d.name, Why: err.Error()})
		}
	}
	strayed, by := 0, 0
	for _, s := range e.table.sessions {
		if s.path.Link != 0 && e.number(s.path.Link) < 0 {
			strayed, by = strayed+1, s.path.Link
		}
	}
	if strayed > 0 {
		why := fmt.Sprintf("%d sessions: %v; name it in [datapath] devices", strayed, e.serves(by))
		lacks = append(lacks, datapath.Lack{What: "copies to sessions that are routed by other devices", Why: why})
		if !e.strayed {
			e.opt.Log.Warn("copies to sessions cannot leave: they are routed by other devices", "reason", why)
		}
	}
	e.strayed = strayed > 0
	return lacks
}

// ringLost returns the copies that devices had no room for: those refused, without
// those that the egress program dropped itself.
func ringLost(c *Counters) uint64 {
	dropped := c.Made - c.Copies - c.Echoes - c.Heartbeats - c.Probes
	return c.Refused - min(c.Refused, dropped) // less for a moment, while a batch is under way
}

// Counters returns what Stats has no place for.
func (e *Engine) Counters() (c Counters) {
	_ = e.do(func() { c = e.counters() })
	return c
}

// verdicts reads the counters of datagrams received.
func (e *Engine) verdicts() (all wire.Counters) {
	var perCPU []uint64
	for v := range all {
		if e.objects.Verdicts.Lookup(uint32(v), &perCPU) != nil {
			continue // an index in range: cannot fail
		}
		for _, n := range perCPU {
			all[v] += n
		}
	}
	return all
}

// counters reads the counters of the fan-out.
func (e *Engine) counters() (sum Counters) {
	var perCPU []Counters
	if e.objects.Totals.Lookup(uint32(0), &perCPU) != nil {
		return sum // an index in range: cannot fail
	}
	for i := range perCPU {
		c := &perCPU[i]
		for _, f := range []struct{ to, from *uint64 }{
			{&sum.Copies, &c.Copies},
			{&sum.CopyBytes, &c.CopyBytes},
			{&sum.Echoes, &c.Echoes},
			{&sum.Heartbeats, &c.Heartbeats},
			{&sum.Inlined, &c.Inlined},
			{&sum.Queued, &c.Queued},
			{&sum.Dequeued, &c.Dequeued},
			{&sum.Planned, &c.Planned},
			{&sum.Made, &c.Made},
			{&sum.Chained, &c.Chained},
			{&sum.Recirculated, &c.Recirculated},
			{&sum.Refused, &c.Refused},
			{&sum.QueueLost, &c.QueueLost},
			{&sum.RecircLost, &c.RecircLost},
			{&sum.Skipped, &c.Skipped},
			{&sum.Unresolved, &c.Unresolved},
			{&sum.NoEcho, &c.NoEcho},
			{&sum.Stale, &c.Stale},
			{&sum.NoReplica, &c.NoReplica},
			{&sum.NoTrim, &c.NoTrim},
			{&sum.Contended, &c.Contended},
			{&sum.CacheLost, &c.CacheLost},
			{&sum.HelloLost, &c.HelloLost},
			{&sum.Probes, &c.Probes},
			{&sum.Foreign, &c.Foreign},
		} {
			*f.to += *f.from
		}
	}
	return sum
}

// stats returns the sessions' counters, ordered by index.
func (t *table) stats() []datapath.SessionStats {
	copies := make(map[*sessionState]uint64, len(t.sessions))
	count := func(s *session, n uint64) { copies[s.state] += n }
	for _, g := range t.groups {
		for _, s := range g.peers.slices {
			t.e.pool.account(s, count)
		}
	}
	for _, stream := range t.streams {
		for _, s := range stream.chain.slices {
			t.e.pool.account(s, count)
		}
	}
	for _, s := range t.e.pool.retired {
		t.e.pool.account(s.slice, count)
	}
	all := make([]datapath.SessionStats, 0, len(t.sessions))
	for _, s := range t.sessions {
		state := t.e.memory.sessions.at(s.state.element)
		st := datapath.SessionStats{
			Index:    s.Index,
			Role:     s.Role,
			Addr:     s.Addr,
			Received: load(&state.Received),
			Copies:   copies[s.state] + s.state.copies.Load(),
		}
		if st.Received > 0 {
			st.Heard = t.e.boot.Add(time.Duration(load(&state.Heard)))
		}
		all = append(all, st)
	}
	slices.SortFunc(all, func(a, b datapath.SessionStats) int { return cmp.Compare(a.Index, b.Index) })
	return all
}
