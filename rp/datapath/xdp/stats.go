// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/objects"
	"github.com/ethmcast/mdcs/rp/hostnet"
)

// Counters are the counters of the programs, see objects.Counters.
type Counters = objects.Counters

// Stats implements datapath.Engine. A send error is a copy to a receiver whose
// ND entry is unknown, one that a device had no room for (it counts as sent, too), or
// one that the programs or the socket gave up.
func (e *Engine) Stats() (st datapath.Stats) {
	_ = e.do(func() { // zero after Close
		c := e.objects.ReadCounters()
		st = datapath.Stats{
			Engine:     "xdp",
			Verdicts:   e.objects.ReadVerdicts(),
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
				{Pool: "slices", Left: e.fanout.Room()},
				{Pool: "sessions", Left: min(MaxSessions-len(e.table.sessions), e.table.sessionStates.Left())},
				{Pool: "streams", Left: min(MaxStreams-len(e.table.streams), e.table.streamStates.Left())},
				{Pool: "routes", Left: MaxStreams - len(e.table.routes)},
			},
			Interrupted: hostnet.Interrupted(),
		}
	})
	return st
}

// Lacks implements datapath.Engine.
func (e *Engine) Lacks() (lacks []datapath.Lack) {
	_ = e.do(func() { lacks = e.lacking() }) // none after Close
	return lacks
}

// lacking returns what the engine runs without now. Nobody is served without the pair, or
// without a device that takes copies.
func (e *Engine) lacking() []datapath.Lack {
	lacks := slices.Concat(e.opt.Lacks, e.lacks, e.pairLack())
	first, ways := len(lacks), 0
	for i, name := range e.opt.Devices {
		d := e.devices[i]
		if d == nil && name != "" {
			lacks = append(lacks, datapath.Lack{What: "device " + name, Why: "it is not there, or takes no program; it is tried again each second"})
		}
		if d == nil {
			continue
		}
		if d.refuses = d.takesFrames(); d.refuses != nil {
			lacks = append(lacks, datapath.Lack{What: "copies by " + d.name, Why: d.refuses.Error()})
			continue
		}
		ways++
	}
	for i := range lacks[first:] {
		lacks[first+i].NoService = ways == 0
	}
	strayed, by := 0, 0
	for _, s := range e.table.sessions {
		e.noteWay(s)
		if link := s.at.Path().Link; link != 0 && e.number(link) < 0 {
			strayed, by = strayed+1, link
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
	_ = e.do(func() { c = e.objects.ReadCounters() })
	return c
}

// stats returns the sessions' counters, ordered by index.
func (t *table) stats() []datapath.SessionStats {
	copies := make(map[*sessionState]uint64, len(t.sessions))
	var chains []*fanout.Chain
	for _, g := range t.groups {
		chains = append(chains, g.peers)
	}
	for _, s := range t.streams {
		chains = append(chains, s.chain)
	}
	t.e.fanout.CountCopies(chains, func(to fanout.Receiver, n uint64) { copies[to.(*session).state] += n })
	all := make([]datapath.SessionStats, 0, len(t.sessions))
	for _, s := range t.sessions {
		state := t.e.objects.Memory.Sessions.At(s.state.element)
		st := datapath.SessionStats{
			Index:    s.Index,
			Role:     s.Role,
			Addr:     s.Addr,
			Received: atomic.LoadUint64(&state.Received),
			Copies:   copies[s.state] + s.state.copies.Load(),
		}
		if st.Received > 0 {
			st.Heard = t.e.boot.Add(time.Duration(atomic.LoadUint64(&state.Heard)))
		}
		all = append(all, st)
	}
	slices.SortFunc(all, func(a, b datapath.SessionStats) int { return cmp.Compare(a.Index, b.Index) })
	return all
}
