// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import "github.com/ethereum/go-ethereum/p2p/enode"

// SetNeighbours changes the allow-list. It returns whom to disconnect from and then
// whom to connect to; a node whose address changed is both. Nodes without an IPv6
// address and this node itself are left out.
func (s *Server) SetNeighbours(nodes []*enode.Node) (removed, added []*enode.Node) {
	wanted := make(map[enode.ID]*enode.Node)
	for _, n := range nodes {
		if addr := n.IPAddr(); addr.Is6() && !addr.Is4In6() && n.ID() != s.cfg.Self {
			wanted[n.ID()] = n
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, n := range s.neighbours {
		w := wanted[id]
		if n.allowed && (w == nil || w.IPAddr() != n.Addr || w.TCP() != n.node.TCP()) {
			removed = append(removed, n.node)
			n.allowed = false // until it is retired its incarnation is known
		}
	}
	for id, w := range wanted {
		n := s.neighbours[id]
		if n == nil {
			n = newNeighbour(w)
			s.neighbours[id] = n
		} else if n.allowed {
			continue
		}
		added = append(added, w)
		n.node, n.Addr, n.allowed = w, w.IPAddr(), true
	}
	return removed, added
}
