// SPDX-License-Identifier: LGPL-3.0-or-later

package objects

import (
	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// Counters are the programs' own, summed over all CPUs. What is on its way between two of
// them is their difference: Queued - Dequeued - QueueLost in the queue of the fan-out,
// Chained - Recirculated - RecircLost in the recirculation pair. Planned - Made are
// copies that the kernel could not allocate.
type Counters = bpf.RpCounters

// ReadVerdicts reads the counters of datagrams received.
func (o *Objects) ReadVerdicts() (all wire.Counters) {
	var perCPU []uint64
	for v := range all {
		if o.Verdicts.Lookup(uint32(v), &perCPU) != nil {
			continue // an index in range: cannot fail
		}
		for _, n := range perCPU {
			all[v] += n
		}
	}
	return all
}

// ReadCounters reads the counters of the fan-out.
func (o *Objects) ReadCounters() (sum Counters) {
	var perCPU []Counters
	if o.Totals.Lookup(uint32(0), &perCPU) != nil {
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
