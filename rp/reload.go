// SPDX-License-Identifier: LGPL-3.0-or-later

package rp

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/front"
	"github.com/ethmcast/mdcs/rp/membership"
	"github.com/ethmcast/mdcs/rp/peerside"
)

// Settings are what may change while an RP serves.
type Settings struct {
	Neighbours []*enode.Node // the other RPs, with IPv6 addresses

	Limits      membership.Limits
	Lease       time.Duration // of a peer's session, whole seconds; holds for new connections
	Rate, Burst uint32        // datagrams per second, and at once, that a peer may publish

	// EgressPerGeth and EgressPerRP limit the copies of what one peer publishes, and
	// of what one neighbour sends: bytes of UDP payload per second, and a quarter of
	// that at once; 0 is no limit.
	EgressPerGeth, EgressPerRP uint64

	// EgressTotal is what all copies together may take, likewise. Nobody is let in when less
	// than a datagram per second would be left for each.
	EgressTotal uint64

	// Joiners and Publishers are the nodes that may join, and of these those that may
	// publish; nil is everybody.
	Joiners, Publishers map[enode.ID]bool
}

func (s *Settings) check() error {
	switch {
	case s.Lease < proto.MinLease || s.Lease > proto.MaxLease || s.Lease%time.Second != 0:
		return fmt.Errorf("lease of %v: want whole seconds from %v to %v", s.Lease, proto.MinLease, proto.MaxLease)
	case s.Rate == 0 || s.Burst == 0:
		return fmt.Errorf("publish rate %d and burst %d: want both above 0", s.Rate, s.Burst)
	}
	return nil
}

// terms are the settings that hold for members.
func (s *Settings) terms() peerside.Terms {
	return peerside.Terms{
		Lease:       s.Lease,
		Rate:        s.Rate,
		Burst:       s.Burst,
		Egress:      s.EgressPerGeth,
		EgressBurst: egressBurst(s.EgressPerGeth),
		Limit:       s.EgressTotal,
		Joiners:     s.Joiners,
		Publishers:  s.Publishers,
	}
}

// errBeyond is what members are told that new limits leave no room for.
var errBeyond = &proto.Error{Reason: proto.ReasonFull, Detail: "beyond limits that were lowered"}

// Settings returns the settings of now.
func (r *RP) Settings() Settings {
	r.settings.Lock()
	defer r.settings.Unlock()
	return r.cfg.Settings
}

// Set changes the settings. They hold for present members and neighbours, too: members that
// may not be members any more, and the newest of those beyond the new limits, leave. What is
// wrong changes nothing. The RP must be started.
func (r *RP) Set(next Settings) error {
	if err := next.check(); err != nil {
		return fmt.Errorf("rp: %w", err)
	}
	r.lifecycle.Lock()
	defer r.lifecycle.Unlock()
	if r.state.Load() != serving {
		return errors.New("rp: not serving")
	}
	r.settings.Lock()
	before := r.cfg.Settings
	r.cfg.Settings = next
	r.settings.Unlock()

	r.members.SetLimits(next.Limits)
	r.server.SetLimits(front.LimitsFor(next.Limits.Sessions, next.Limits.Per64, next.Limits.Per48))
	if next.EgressTotal != before.EgressTotal { // else the burst would come at once again
		r.engine.SetEgress(next.EgressTotal, egressBurst(next.EgressTotal))
	}
	r.peers.SetTerms(next.terms())
	r.peers.End(r.members.Beyond(), errBeyond)
	r.mesh.SetEgress(next.EgressPerRP, egressBurst(next.EgressPerRP))
	r.allow()
	return nil
}

// allow lets the configured neighbours and those that were found be neighbours, and no others.
// Those that nobody trusts count for the limits of the front. One call follows the other, so
// that the settings of now hold in the end.
func (r *RP) allow() {
	r.allowing.Lock()
	defer r.allowing.Unlock()
	r.settings.Lock()
	nodes, trusted := slices.Clone(r.cfg.Neighbours), slices.Clone(r.cfg.Neighbours)
	for _, c := range r.foundRPs {
		if slices.ContainsFunc(nodes, func(n *enode.Node) bool { return n.ID() == c.Node.ID() }) {
			continue
		}
		nodes = append(nodes, c.Node)
		if c.Trusted {
			trusted = append(trusted, c.Node)
		}
	}
	r.settings.Unlock()
	r.server.SetTrusted(trusted)
	r.mesh.SetNeighbours(nodes)
}
