// SPDX-License-Identifier: LGPL-3.0-or-later

// Package receipts counts how many peers confirmed an object, for a publisher that
// asked (SPEC 7.15). It does no I/O and has no clock.
//
// Each replication point on the tree of the ingress RP counts its own peers and adds
// what its children report. It reports the sum to its parent, or at the ingress RP to
// the publisher, while that grows. Reports are cumulative: the latest of a child
// counts, so that one that is lost is made good by the next one.
package receipts

import (
	"cmp"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
)

// Times and limits of SPEC section 11.
const (
	Interval = 500 * time.Millisecond // between two reports of an object
	Lifetime = 10 * time.Second       // from the request to the end
	MaxOpen  = 1024                   // requests at the same time; later ones are left out
	MaxChild = 64                     // children of one request
)

// Key names an object by the place of the datagram that asks.
type Key struct {
	Ingress  ids.Incarnation
	Group    ids.Group
	Sequence uint64
}

func (k Key) compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Ingress, o.Ingress), cmp.Compare(k.Group, o.Group), cmp.Compare(k.Sequence, o.Sequence))
}

// Count is of peers that this RP, or it and all below it, serve as their active RP.
type Count struct {
	Sent      uint32 // copies were sent to them
	Confirmed uint32 // they delivered the object, or had it already
}

// Report is a count that is to go to the parent, or to the publisher.
type Report struct {
	Key
	Count
}

// Table is the requests that are open. The zero Table is not ready, see New.
type Table struct {
	requests map[Key]*request
	refused  uint64
}

type request struct {
	sent      uint32
	confirmed map[ids.Session]bool // sessions
	children  map[uint64]Count     // by node id
	told      Count
	reportAt  time.Time // zero: nothing is to be reported
	toldAt    time.Time
	end       time.Time
}

// New returns an empty table.
func New() *Table { return &Table{requests: make(map[Key]*request)} }

// Open begins to count for an object that was sent to so many peers of this RP. Asked
// again, it changes nothing.
func (t *Table) Open(now time.Time, key Key, sent uint32) {
	if t.requests[key] != nil {
		return
	}
	if len(t.requests) >= MaxOpen {
		t.refused++
		return
	}
	t.requests[key] = &request{
		sent:      sent,
		confirmed: make(map[ids.Session]bool),
		children:  make(map[uint64]Count),
		reportAt:  now.Add(Interval),
		end:       now.Add(Lifetime),
	}
}

// Confirm takes the confirmation of a peer's session. It counts once, and not at all
// for an object that nobody asked about, or beyond the number of those it was sent to.
func (t *Table) Confirm(now time.Time, session ids.Session, key Key) {
	r := t.requests[key]
	if r == nil || r.confirmed[session] || uint32(len(r.confirmed)) >= r.sent {
		return
	}
	r.confirmed[session] = true
	r.changed(now)
}

// Child takes the report of a child.
func (t *Table) Child(now time.Time, child uint64, report Report) {
	r := t.requests[report.Key]
	if r == nil {
		return
	}
	known, ok := r.children[child]
	if report.Count == known || !ok && len(r.children) >= MaxChild {
		return
	}
	report.Confirmed = min(report.Confirmed, report.Sent)
	r.children[child] = report.Count
	r.changed(now)
}

// changed has the sum reported, not sooner than Interval after the last time.
func (r *request) changed(now time.Time) {
	if r.reportAt.IsZero() {
		r.reportAt = r.toldAt.Add(Interval)
		if r.reportAt.Before(now) {
			r.reportAt = now
		}
	}
}

func (r *request) sum() Count {
	sum := Count{Sent: r.sent, Confirmed: uint32(len(r.confirmed))}
	for _, c := range r.children {
		sum.Sent = add(sum.Sent, c.Sent)
		sum.Confirmed = add(sum.Confirmed, c.Confirmed)
	}
	return sum
}

// add stops at the largest number: a child may lie.
func add(a, b uint32) uint32 {
	if sum := a + b; sum >= a {
		return sum
	}
	return ^uint32(0)
}

// Tick returns the reports that are due, ordered by key, and forgets old requests.
func (t *Table) Tick(now time.Time) []Report {
	var reports []Report
	for key, r := range t.requests {
		over := !now.Before(r.end)
		if over {
			delete(t.requests, key)
		}
		if r.reportAt.IsZero() || now.Before(r.reportAt) && !over {
			continue
		}
		sum := r.sum()
		if sum != r.told {
			reports = append(reports, Report{key, sum})
		}
		r.told, r.toldAt, r.reportAt = sum, now, time.Time{}
	}
	slices.SortFunc(reports, func(a, b Report) int { return a.compare(b.Key) })
	return reports
}

// Deadline returns when Tick is due next, zero for never.
func (t *Table) Deadline() time.Time {
	var next time.Time
	earliest := func(at time.Time) {
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	for _, r := range t.requests {
		earliest(r.reportAt)
		earliest(r.end)
	}
	return next
}

// Refused returns how many requests were left out, because too many were open.
func (t *Table) Refused() uint64 { return t.refused }
