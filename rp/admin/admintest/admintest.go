// SPDX-License-Identifier: LGPL-3.0-or-later

// Package admintest is a replication point to look at, which changes by an operator alone: five RPs,
// one of them down, one that is no neighbour, and as many members as a test wants.
package admintest

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/admin"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/events"
	"github.com/ethmcast/mdcs/rp/membership"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/meshside"
	"github.com/ethmcast/mdcs/rp/peerside"
)

// Now is the time at the Point.
var Now = time.Date(2026, 11, 3, 12, 0, 0, 0, time.UTC)

// Group is the one that it serves.
const Group = 0x1234abcd

const incarnation = 0xa0

// Point is an admin.Point.
type Point struct {
	node   *enode.Node
	hub    *events.Hub
	status rp.Status
	peers  []peerside.Session

	mu   sync.Mutex
	bans []peerside.Ban // those of the operator
}

var _ admin.Point = (*Point)(nil)

// New returns a Point with a number of members. Their sessions are 1, 2, 3 and so on in
// hex, every fourth of them is served by a channel and does not publish.
func New(members int) *Point {
	key, err := crypto.ToECDSA(append(make([]byte, 31), 1))
	if err != nil {
		panic(err) // the number 1 is a key
	}
	home := netip.MustParseAddr("2001:db8::1")
	p := &Point{node: enode.NewV4(&key.PublicKey, home.AsSlice(), 30500, 0), hub: events.NewHub()}
	st := &p.status
	st.Datapath = datapath.Stats{
		Engine: "xdp", Copies: 1000, CopyBytes: 1_232_000, Echoes: 10, Heartbeats: 20, Probes: 5,
		Overflows: []datapath.Overflow{{Queue: "fan-out", Lost: 2}},
	}
	st.Datapath.Verdicts[wire.Pass] = 500
	st.Datapath.Verdicts[wire.Replayed] = 7
	st.Datapath.Verdicts[wire.BadHopTag] = 1
	st.Peers = peerside.Stats{Connections: members + 1, Admitted: uint64(members), Violations: 1, Received: 4000, Lost: 3}
	st.Sessions = members + 1
	st.Members = map[ids.Group]int{Group: members}

	for i := range byte(4) {
		n := meshside.Neighbour{ID: enode.ID{0xb0 + i}, Addr: netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 0xb0 + i})}
		if i < 3 {
			n.State, n.Incarnation, n.Session = meshside.Up, 0xb0+ids.Incarnation(i), 0xffff0000+ids.Session(i)
			n.RTT, n.Cost, n.Tree = links[i].rtt, links[i].cost, links[i].tree
			st.Datapath.Sessions = append(st.Datapath.Sessions, datapath.SessionStats{
				Index: n.Session, Role: datapath.Mesh, Received: 100 + uint64(i), Copies: 200, Heard: Now.Add(-250 * time.Millisecond),
			})
		}
		n.RP = linkstate.IDOf(n.ID)
		n.Members = []uint64{5, 12, 0, 0}[i]
		st.Mesh.Neighbours = append(st.Mesh.Neighbours, n)
	}
	st.Mesh.Routes = []meshside.Route{
		{Ingress: incarnation, RP: p.self(), Children: []meshside.Child{{RP: b0}, {RP: b1}}},
		{Ingress: 0xb0, RP: b0, Parent: b0, Backup: b2, Children: []meshside.Child{{RP: b1}}},
		{Ingress: 0xd0, RP: d0, Parent: b1, Previous: []linkstate.ID{b2}},
	}
	st.Mesh.Database = p.database()
	for i := range members {
		index := ids.Session(i + 1)
		s := peerside.Session{
			Index:   index,
			Addr:    netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 1, 12: byte(i >> 8), 15: byte(i)}), 30400),
			Groups:  []ids.Group{Group},
			Publish: i%4 != 3,
			Lease:   Now.Add(30 * time.Second),
		}
		binary.BigEndian.PutUint32(s.Node[:], uint32(0xc0000000+index))
		if !s.Publish {
			s.Mode = proto.ModeSSM
		}
		p.peers = append(p.peers, s)
		counts := datapath.SessionStats{Index: index, Role: datapath.Peer, Addr: s.Addr, Received: uint64(i), Copies: 10 * uint64(i)}
		if i > 0 {
			counts.Heard = Now.Add(-time.Duration(i) * time.Second)
		}
		st.Datapath.Sessions = append(st.Datapath.Sessions, counts)
	}
	return p
}

// Names of the RPs in the mesh: three neighbours that are up, one that is down, and d0
// behind b1.
const (
	b0 linkstate.ID = 0xb0 << 56
	b1 linkstate.ID = 0xb1 << 56
	b2 linkstate.ID = 0xb2 << 56
	b3 linkstate.ID = 0xb3 << 56
	d0 linkstate.ID = 0xd0 << 56
)

// links are those to the neighbours that are up.
var links = []struct {
	rtt  time.Duration
	cost uint32
	tree bool
}{{12 * time.Millisecond, 120, true}, {1500 * time.Microsecond, 15, true}, {80 * time.Millisecond, 800, false}}

func (p *Point) self() linkstate.ID { return linkstate.IDOf(p.node.ID()) }

// database is ordered by RP.
func (p *Point) database() []meshside.Advert {
	all := []meshside.Advert{
		{Advert: linkstate.Advert{Origin: p.self(), Incarnation: incarnation, Epoch: 1_790_000_100, Sequence: 9, Publishes: true, Links: []linkstate.Link{
			{Neighbour: b0, Cost: 120, Tree: true}, {Neighbour: b1, Cost: 15, Tree: true}, {Neighbour: b2, Cost: 800},
		}}},
		{Advert: linkstate.Advert{Origin: b0, Incarnation: 0xb0, Epoch: 1_790_000_000, Sequence: 2, Publishes: true, Operator: "example.net"}},
		{
			Advert: linkstate.Advert{
				Origin: b1, Operator: "example.org", Incarnation: 0xb1, Epoch: 1_790_000_000, Sequence: 4, Publishes: true,
				Links:  []linkstate.Link{{Neighbour: p.self(), Cost: 15, Tree: true}, {Neighbour: d0, Cost: 40, Tree: true}},
				Groups: []linkstate.Members{{Group: Group, Count: 12}},
			},
			Age: 90 * time.Second,
		},
		{Advert: linkstate.Advert{Origin: b2, Incarnation: 0xb2, Epoch: 1_790_000_300, Sequence: 1, Links: []linkstate.Link{{Neighbour: d0, Cost: 20}}}},
		{Advert: linkstate.Advert{Origin: b3, Incarnation: 0xb3, Epoch: 1_790_000_400, Sequence: 7}},
		{Advert: linkstate.Advert{Origin: d0, Incarnation: 0xd0, Epoch: 1_790_000_500, Sequence: 1, Publishes: true, Links: []linkstate.Link{
			{Neighbour: b1, Cost: 40}, {Neighbour: b2, Cost: 20},
		}}},
	}
	slices.SortFunc(all, func(a, b meshside.Advert) int { return cmp.Compare(a.Origin, b.Origin) })
	return all
}

// Tree implements admin.Point: that of the point, and those of b0 and b1.
func (p *Point) Tree(ingress linkstate.ID) ([]meshside.Edge, bool) {
	switch ingress {
	case p.self():
		return []meshside.Edge{{RP: ingress}, {RP: b0, Parent: ingress, Cost: 120}, {RP: b1, Parent: ingress, Cost: 15}, {RP: b2, Parent: d0, Cost: 20}, {RP: d0, Parent: b1, Cost: 40}}, true
	case b0:
		return []meshside.Edge{{RP: b0}, {RP: p.self(), Parent: b0, Cost: 120}, {RP: b1, Parent: p.self(), Cost: 15}}, true
	case b1:
		return []meshside.Edge{{RP: b1}, {RP: p.self(), Parent: b1, Cost: 15}, {RP: d0, Parent: b1, Cost: 40}}, true
	}
	return nil, false
}

// ID is the name of the RP.
func (p *Point) ID() string { return p.node.ID().TerminalString() }

// About implements admin.Point.
func (p *Point) About() rp.About {
	return rp.About{
		Node:        p.node,
		Data:        netip.MustParseAddrPort("[2001:db8::1]:30501"),
		Incarnation: incarnation,
		Started:     Now.Add(-(26*time.Hour + 3*time.Minute)),
		NetworkID:   1,
		Genesis:     [32]byte{0xd4, 0xe5},
		Groups:      []rp.Group{{ID: Group, Topic: proto.TopicTxs}},
		Limits:      membership.Limits{Sessions: 10_000, Per64: 16},
		Lease:       proto.Lease,
		Rate:        2000,
		Burst:       512,
		EgressPerRP: 600_000_000,
	}
}

// Status implements admin.Point.
func (p *Point) Status() rp.Status { return p.status }

// Health implements admin.Point: an RP neighbour is gone.
func (p *Point) Health() rp.Health {
	return rp.Health{
		Live: true, Ready: true, Dead: []string{}, NotReady: []string{},
		Warnings:  []string{"mesh links down: b300000000000000"},
		LinksDown: []string{"b300000000000000"},
	}
}

// Sessions implements admin.Point.
func (p *Point) Sessions() []peerside.Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.peers
}

// Marks implements admin.Point.
func (p *Point) Marks() []proto.Mark {
	return []proto.Mark{
		{Ingress: 0xe0, Group: Group, Sequence: 5}, // of an RP that nobody names
		{Ingress: incarnation, Group: Group, Sequence: 77},
		{Ingress: 0xb1, Group: Group, Sequence: 1 << 40},
		{Ingress: 0xd0, Group: Group, Sequence: 9},
		{Ingress: 0xb0, Group: Group + 1, Sequence: 3}, // of another group
	}
}

// Events implements admin.Point.
func (p *Point) Events() *events.Hub { return p.hub }

// Bans implements admin.Point: what the operator set, behind a node that broke the protocol.
func (p *Point) Bans() []peerside.Ban {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]peerside.Ban{{Node: enode.ID{0xbb}, Until: Now.Add(time.Minute), Why: "announces more than once a second"}}, p.bans...)
}

// BanNode implements admin.Point.
func (p *Point) BanNode(id enode.ID, length time.Duration) error {
	return p.ban(peerside.Ban{Node: id}, length)
}

// BanPrefix implements admin.Point.
func (p *Point) BanPrefix(prefix netip.Prefix, length time.Duration) error {
	return p.ban(peerside.Ban{Prefix: prefix}, length)
}

// ban keeps bans for the next process, but none of whole prefixes.
func (p *Point) ban(b peerside.Ban, length time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bans = slices.DeleteFunc(p.bans, func(x peerside.Ban) bool { return x.Node == b.Node && x.Prefix == b.Prefix })
	if length > 0 {
		b.Until, b.Operator = Now.Add(length), true
		p.bans = append(p.bans, b)
	}
	if b.Prefix.IsValid() && !b.Prefix.IsSingleIP() {
		return fmt.Errorf("%w: no space left on device", peerside.ErrUnkept)
	}
	return nil
}

// EndSession implements admin.Point: the session ends.
func (p *Point) EndSession(id enode.ID) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := len(p.peers)
	p.peers = slices.DeleteFunc(slices.Clone(p.peers), func(s peerside.Session) bool { return s.Node == id })
	return before - len(p.peers)
}

// Drain implements admin.Point: all but three members go.
func (p *Point) Drain(context.Context) int { return 3 }

// Operator returns an Operator that looks at the point, when its clock shows Now.
func (p *Point) Operator() *admin.Operator {
	return &admin.Operator{Point: p, Version: "v0.9.0", Now: func() time.Time { return Now }}
}
