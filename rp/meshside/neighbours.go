// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"slices"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
)

var errRemoved = &proto.Error{Reason: proto.ReasonDenied, Detail: "not on the allow-list any more"}

// SetNeighbours replaces the allow-list. Links to nodes that are not on it any more, or
// have another address there, end. Nodes that New refuses are left out. The Server must
// be started.
//
// The routes of a node that was removed end when the link state has no path to it, and
// its keys some time later: if it comes back before, it goes on as itself.
func (s *Server) SetNeighbours(nodes []*enode.Node) {
	s.call(func() { s.setNeighbours(nodes) })
}

func (s *Server) setNeighbours(nodes []*enode.Node) {
	neighbours, list := make(map[enode.ID]*neighbour), []*enode.Node(nil)
	rps := make(map[linkstate.ID]*neighbour)
	ids := map[linkstate.ID]bool{s.self: true}
	for _, node := range nodes {
		if node.ID() == s.id {
			continue
		}
		if err := s.check(node, ids); err != nil {
			s.cfg.Log.Debug("neighbour left out", "err", err)
			continue
		}
		old := s.neighbours[node.ID()]
		n := s.newNeighbour(node)
		switch {
		case old != nil && sameEndpoint(old.node, node):
			n = old
		case old != nil:
			n.incarnation, n.ban = old.incarnation, old.ban
			s.claimFound(n)
		default:
			s.claimFound(n)
			s.cfg.Log.Info("neighbour added", "rp", node.ID().TerminalString(), "addr", node.IPAddr())
		}
		ids[n.id] = true
		neighbours[node.ID()], rps[n.id] = n, n
		list = append(list, n.node)
	}
	var removed []*neighbour
	for id, n := range s.neighbours {
		if neighbours[id] == n {
			continue
		}
		removed = append(removed, n)
		if neighbours[id] == nil {
			s.cfg.Log.Info("neighbour removed", "rp", id.TerminalString(), "addr", n.addr())
		}
	}
	changed := !slices.Equal(s.list, list)
	s.mu.Lock()
	s.neighbours, s.list, s.rps = neighbours, list, rps
	s.mu.Unlock()
	if changed {
		s.relist()
	}
	for _, n := range removed {
		if n.link != nil {
			s.fail(n.link, errRemoved)
		}
		if len(n.outlived) > 0 {
			s.endOutlived(n, func(outlived) bool { return true })
			s.core.LinkDown(s.now, n.id)
		}
	}
}

func sameEndpoint(a, b *enode.Node) bool { return a.IPAddr() == b.IPAddr() && a.TCP() == b.TCP() }

// Neighbours returns the allow-list.
func (s *Server) Neighbours() []*enode.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.list)
}

// dialable returns the nodes of the allow-list to which connections may be made, how many there
// are on the list, and a channel that is closed when one of both changes.
func (s *Server) dialable() (nodes []*enode.Node, all int, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.list {
		if !s.shunned[n.ID()] {
			nodes = append(nodes, n)
		}
	}
	return nodes, len(s.list), s.listed
}

// neighbour returns a node of the allow-list, nil when it is not on it. It is for other
// goroutines than that of serve.
func (s *Server) neighbour(id enode.ID) *neighbour {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.neighbours[id]
}
