// SPDX-License-Identifier: LGPL-3.0-or-later

package admin

import (
	"fmt"

	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/meshside"
)

// Mesh is what an RP knows of the other ones.
type Mesh interface {
	// Neighbours, Routes and Database are ordered by RP.
	Neighbours() []Neighbour
	Routes() []Route
	Database() []Advert

	// Tree returns the tree of an ingress RP. It is false when none is known.
	Tree(rp string) (Tree, bool)
}

// Linked is an RP of a full mesh.
type Linked interface {
	About() rp.About
	Mesh() meshside.Stats
}

// FullMesh is the Mesh of an RP whose datagrams cross one link at most: its
// neighbours are all that it knows.
func FullMesh(point Linked) Mesh { return fullMesh{point} }

type fullMesh struct{ Linked }

func (m fullMesh) self() (id, incarnation string) {
	about := m.About()
	return about.Node.ID().TerminalString(), hex32(about.Incarnation)
}

func (m fullMesh) Neighbours() []Neighbour {
	neighbours := []Neighbour{}
	for _, n := range m.Mesh().Neighbours {
		neighbours = append(neighbours, Neighbour{ID: n.ID.TerminalString(), Addr: n.Addr, State: linkState(n), Tree: n.Up()})
	}
	return neighbours
}

// up returns the ids of those who are replicated to.
func (m fullMesh) up() []string {
	up := []string{}
	for _, n := range m.Mesh().Neighbours {
		if n.Up() {
			up = append(up, n.ID.TerminalString())
		}
	}
	return up
}

func (m fullMesh) Routes() []Route {
	self, incarnation := m.self()
	routes := []Route{{Ingress: incarnation, RP: self, Previous: []string{}, Children: m.up()}}
	for _, n := range m.Mesh().Neighbours {
		if n.Session != 0 {
			id := n.ID.TerminalString()
			routes = append(routes, Route{Ingress: hex32(n.Incarnation), RP: id, Parent: id, Previous: []string{}, Children: []string{}})
		}
	}
	return routes
}

func (m fullMesh) Database() []Advert { return []Advert{} }

func (m fullMesh) Tree(root string) (Tree, bool) {
	self, _ := m.self()
	tree := Tree{RP: root, Self: self, Nodes: []TreeNode{{RP: root}}}
	if root == self {
		for _, id := range m.up() {
			tree.Nodes = append(tree.Nodes, TreeNode{RP: id, Parent: self})
		}
		return tree, true
	}
	for _, n := range m.Mesh().Neighbours {
		if n.ID.TerminalString() == root && n.Session != 0 {
			tree.Nodes = append(tree.Nodes, TreeNode{RP: self, Parent: root})
			return tree, true
		}
	}
	return Tree{}, false
}

// linkState names the state of the link to a neighbour.
func linkState(n meshside.Neighbour) string {
	if !n.Connected {
		return "down"
	}
	return n.State.String()
}

func hex32(v uint32) string { return fmt.Sprintf("%08x", v) }
