// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// marksAge is how old the marks may be by which reports are judged.
const marksAge = time.Second

// reports sums up what the members report, and keeps the marks by which it is judged.
type reports struct {
	received, lost, duplicates atomic.Uint64

	mu    sync.Mutex
	at    time.Time
	marks map[ids.Stream]uint64
}

// newestMarks returns the newest sequence known of each stream, not long ago. The map must
// not be changed.
func (s *Server) newestMarks(now time.Time) map[ids.Stream]uint64 {
	r := &s.reports
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.marks == nil || now.Sub(r.at) >= marksAge {
		marks := make(map[ids.Stream]uint64)
		for _, m := range s.cfg.Engine.Marks() {
			marks[m.Stream()] = m.Sequence
		}
		r.marks, r.at = marks, now
	}
	return r.marks
}

// report is what a member counted until its last Announce, and the marks of then. A member
// can have received, lost and doubled no more of a stream than has gone by since.
type report struct {
	marks map[ids.Stream]uint64 // of all, not to be changed
	last  map[ids.Stream]proto.Counter
}

func newReport(marks map[ids.Stream]uint64) report {
	return report{marks: marks, last: make(map[ids.Stream]proto.Counter)}
}

// credit adds what a member counted since its last Announce, as far as it can be.
func (c *conn) credit(now time.Time, counters []proto.Counter) {
	if len(c.session.Groups) == 0 {
		return // nothing is sent to it
	}
	marks, before := c.srv.newestMarks(now), c.report
	c.report = newReport(marks)
	for _, n := range counters {
		of := n.Stream()
		newest, known := marks[of]
		if _, again := c.report.last[of]; again || !known || !slices.Contains(c.session.Groups, n.Group) {
			continue
		}
		c.report.last[of] = n
		from, known := before.marks[of]
		if !known || newest <= from {
			continue
		}
		last, most := before.last[of], newest-from
		since := func(now, last uint64) uint64 {
			if now < last { // a counter that fell began anew
				last = 0
			}
			return min(now-last, most)
		}
		received := since(n.Received, last.Received)
		c.srv.reports.received.Add(received)
		c.srv.reports.lost.Add(min(since(n.Lost, last.Lost), most-received))
		c.srv.reports.duplicates.Add(since(n.Duplicates, last.Duplicates))
	}
}
