// SPDX-License-Identifier: LGPL-3.0-or-later

package rp

import (
	"net/netip"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/events"
	"github.com/ethmcast/mdcs/rp/membership"
	"github.com/ethmcast/mdcs/rp/peerside"
)

// topics are those that are served.
var topics = []string{proto.TopicTxs}

// Group is a topic on the chain that is served.
type Group struct {
	ID    ids.Group
	Topic string
}

// About is what stays the same while an RP serves.
type About struct {
	Node        *enode.Node    // with the control port
	Data        netip.AddrPort // that datagrams go to
	Incarnation ids.Incarnation
	Adopted     bool // the incarnation is that of an RP that died
	Started     time.Time

	NetworkID uint64
	Genesis   [32]byte
	Groups    []Group

	Limits      membership.Limits // of now, as all that follows
	Lease       time.Duration
	Rate, Burst uint32 // datagrams per second, and at once, of a publisher

	// Bytes of copies per second, 0 for no limit.
	EgressPerGeth, EgressPerRP, EgressTotal uint64
}

// About tells who and where this RP is, and what it was told to do. The RP must be
// started.
func (r *RP) About() About {
	cfg, now := &r.cfg, r.Settings()
	about := About{
		Node:          r.Self(),
		Data:          r.Addr(),
		Incarnation:   r.incarnation,
		Adopted:       r.adopted,
		Started:       r.started,
		NetworkID:     cfg.NetworkID,
		Genesis:       cfg.Genesis,
		Limits:        now.Limits,
		Lease:         now.Lease,
		Rate:          now.Rate,
		Burst:         now.Burst,
		EgressPerGeth: now.EgressPerGeth,
		EgressPerRP:   now.EgressPerRP,
		EgressTotal:   now.EgressTotal,
	}
	for i, id := range r.groups {
		about.Groups = append(about.Groups, Group{id, topics[i]})
	}
	return about
}

// Sessions returns the peers that are members, ordered by index. The RP must be
// started.
func (r *RP) Sessions() []peerside.Session { return r.peers.Sessions() }

// BanNode keeps a node out for a time, and ends its sessions; 0 lets it in again. The RP must
// be started. Errors are those of peerside.Server.
func (r *RP) BanNode(id enode.ID, length time.Duration) error {
	r.cfg.Log.Info("operator bans, or with 0 lets in", "node", id, "for", length)
	return r.peers.BanNode(id, length)
}

// BanAddr keeps an address out in the way of BanNode.
func (r *RP) BanAddr(addr netip.Addr, length time.Duration) error {
	return r.peers.BanAddr(addr, length)
}

// BanPrefix keeps all addresses of a prefix out in the way of BanNode.
func (r *RP) BanPrefix(p netip.Prefix, length time.Duration) error {
	r.cfg.Log.Info("operator bans, or with 0 lets in", "prefix", p, "for", length)
	return r.peers.BanPrefix(p, length)
}

// Bans returns what is banned now. A reload keeps bans; the next rpd has those of operators, by the BanFile.
func (r *RP) Bans() []peerside.Ban { return r.peers.Bans() }

// EndSession ends the connections of a node, and returns how many these were. The node may
// come again.
func (r *RP) EndSession(id enode.ID) (ended int) { return r.peers.EndSession(id) }

// Marks returns the newest sequence known of each stream. The RP must be started.
func (r *RP) Marks() []proto.Mark { return r.engine.Marks() }

// Events tells what happens from now on.
func (r *RP) Events() *events.Hub { return r.events }
