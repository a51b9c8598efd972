// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/discovery/nearest"
	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// role is what an RP is to this node.
type role uint8

const (
	unused role = iota
	standingBy
	replicating
)

// maxRedirects is how often in a row this node goes where an RP without room sends it.
const maxRedirects = 3

// choose decides which RP replicates to this node and which stands by (SPEC 9.5), and
// tells them.
func (s *Service) choose(now time.Time) {
	if s.enabled && s.backend.Synced() {
		s.chooseActive(now)
		s.chooseStandby(now)
	} else {
		s.active, s.next, s.standby = nil, nil, nil
	}
	for _, rp := range s.order {
		s.assign(now, rp)
	}
	s.settle(now)
}

// chooseActive keeps the RP that serves. One that was lost is replaced by the one that
// stands by, or else by the first that can be joined. One that drains, or is far,
// goes on until another has taken over.
func (s *Service) chooseActive(now time.Time) {
	if s.next != nil && s.next.state() != proto.JoinerActivating && s.next.state() != proto.JoinerStandby {
		s.next = nil // lost
	}
	joining := s.active != nil && s.active.usable(now)
	ready := s.standby.state() == proto.JoinerStandby && !s.standby.joiner.Draining()
	switch {
	case s.isServed():
		if s.next == nil && ready && (s.active.joiner.Draining() || s.nearer.look(now, s.active.rtt(), s.standby.rtt())) {
			s.next, s.standby = s.standby, nil
		}
	case s.next != nil:
		s.active, s.next = s.next, nil
	case ready && (s.covered || !joining): // at the start the first one may take its time
		s.active, s.standby = s.standby, nil
		movedMeter.Mark(1)
	case joining:
	default:
		if rp := s.firstUsable(now); rp != nil {
			s.active = rp
		}
	}
	if s.standby == s.active {
		s.standby = nil
	}
}

// isServed reports whether an RP replicates to us, or was told to.
func (s *Service) isServed() bool {
	return s.active.serves(proto.ModeUnicast) || s.active.serves(proto.ModeSSM) || s.active.state() == proto.JoinerActivating
}

// firstUsable returns the RP to join: one that an RP without room named, or the first
// of the list that can be joined.
func (s *Service) firstUsable(now time.Time) *rpConn {
	for _, rp := range s.hints {
		if rp.usable(now) {
			return rp
		}
	}
	for _, rp := range s.order {
		if rp.usable(now) {
			return rp
		}
		if now.Before(s.preferUntil) {
			break
		}
	}
	return nil
}

// chooseStandby chooses the RP that stands by: of another operator than the active one
// where that is known, the present one, the first of the list.
func (s *Service) chooseStandby(now time.Time) {
	if s.active == nil || s.next != nil {
		return
	}
	best, least := s.standby, len(s.order)*4
	if best != nil && best.usable(now) {
		least = s.rank(best)
	}
	for _, rp := range slices.Concat(s.hints, s.order) {
		if rp == s.active || !rp.usable(now) {
			continue
		}
		if rank := s.rank(rp); rank < least {
			best, least = rp, rank
		}
	}
	if best != s.standby {
		s.standby, s.nearer = best, preference{at: now}
	}
}

// rank orders the RPs that may stand by, the best first.
func (s *Service) rank(rp *rpConn) int {
	rank := slices.Index(s.order, rp)
	if rp == s.standby {
		rank = -1
	}
	if own := s.active.operator(); own != "" && rp.operator() == own {
		rank += 2 * len(s.order)
	}
	return rank
}

// assign tells an RP what it is to this node, when that changed.
func (s *Service) assign(now time.Time, rp *rpConn) {
	if rp.joiner == nil {
		return
	}
	is := unused
	switch rp {
	case s.active, s.next:
		is = replicating
	case s.standby:
		is = standingBy
	}
	if is == rp.role {
		return
	}
	switch rp.role = is; is {
	case standingBy:
		rp.joiner.WantStandby(now)
	default:
		rp.joiner.Want(now, is == replicating)
	}
	s.drain(now, rp)
}

// settle tells the gossip peers when multicast serves this node no more. The time in
// which an RP that stood by takes over does not count.
func (s *Service) settle(now time.Time) {
	if s.covered && !s.isServed() {
		s.covered = false
		s.usePath(now)
		s.sendHave(now, true)
	}
	state := s.active.state()
	s.outbox.SetPatient(state == proto.JoinerDetached || state == proto.JoinerResuming)
}

// redirected takes the names of other RPs. Only those that may be used anyway count.
func (s *Service) redirected(from *rpConn, r proto.Redirected) {
	redirectMeter.Mark(1)
	s.log.Info("Replication point names others", "rp", from.id, "others", len(r.URLs), "draining", r.Draining)
	if s.redirects >= maxRedirects {
		return
	}
	s.redirects++
	s.hints = nil
	for _, url := range r.URLs {
		node, err := enode.ParseV4(url)
		if err != nil {
			continue
		}
		if rp := s.rps[node.ID()]; rp != nil && rp != from && !slices.Contains(s.hints, rp) {
			s.hints = append(s.hints, rp)
		}
	}
}

// lookInterval is the time between two looks at which RP is nearer (SPEC 9.5).
const lookInterval = 30 * time.Second

// preference notices that another RP is nearer for good: by so much that a change is
// worth it, in nearest.Looks looks one after the other.
type preference struct {
	at    time.Time // of the last look
	looks int
}

// look compares the round-trip times to the active and to the other RP, 0 for one
// that is not known, and reports whether to change. It does so once in lookInterval.
func (p *preference) look(now time.Time, active, other time.Duration) bool {
	if now.Sub(p.at) < lookInterval {
		return false
	}
	p.at = now
	if active == 0 || other == 0 || !nearest.Better(other, active) {
		p.looks = 0
		return false
	}
	if p.looks++; p.looks < nearest.Looks {
		return false
	}
	p.looks = 0
	return true
}
