// SPDX-License-Identifier: LGPL-3.0-or-later

package admin

import (
	"fmt"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/meshside"
)

// neighbours are the links of the mesh, ordered by RP.
func neighbours(st meshside.Stats) []Neighbour {
	all := []Neighbour{}
	for _, n := range st.Neighbours {
		all = append(all, Neighbour{
			ID: n.ID.TerminalString(), Addr: n.Addr, State: n.State.String(), Tree: n.Tree, RTT: Seconds(n.RTT), Cost: n.Cost, Members: n.Members,
		})
	}
	return all
}

// routes are the ways of the ingress RPs' datagrams.
func routes(st meshside.Stats) []Route {
	all := []Route{}
	for _, r := range st.Routes {
		x := Route{
			Ingress: hex32(r.Ingress), RP: hexID(r.RP), Parent: hexID(r.Parent), Backup: hexID(r.Backup),
			Previous: []string{}, Children: []string{},
		}
		for _, id := range r.Previous {
			x.Previous = append(x.Previous, hexID(id))
		}
		for _, c := range r.Children {
			x.Children = append(x.Children, hexID(c.RP))
		}
		all = append(all, x)
	}
	return all
}

// database is what the RPs say of themselves, ordered by RP. topic names a group.
func database(st meshside.Stats, topic func(group ids.Group) string) []Advert {
	all := []Advert{}
	for _, a := range st.Database {
		x := Advert{
			RP: hexID(a.Origin), Operator: a.Operator, Incarnation: hex32(a.Incarnation), Epoch: a.Epoch, Sequence: a.Sequence,
			Age: Seconds(a.Age), Publishes: a.Publishes, Links: []AdvertLink{}, Groups: []GroupCount{},
		}
		for _, l := range a.Links {
			x.Links = append(x.Links, AdvertLink{RP: hexID(l.Neighbour), Cost: l.Cost, Tree: l.Tree})
		}
		for _, g := range a.Groups {
			x.Groups = append(x.Groups, GroupCount{Group: hex32(g.Group), Topic: topic(g.Group), Members: int(g.Count)})
		}
		all = append(all, x)
	}
	return all
}

// treeOf is the tree of an ingress RP by its edges. All RPs of the database are nodes.
func treeOf(root, self linkstate.ID, edges []meshside.Edge, st meshside.Stats) Tree {
	byRP := make(map[linkstate.ID]meshside.Edge)
	for _, e := range edges {
		byRP[e.RP] = e
	}
	tree := Tree{RP: hexID(root), Self: hexID(self), Nodes: []TreeNode{}}
	for _, a := range st.Database {
		e := byRP[a.Origin]
		tree.Nodes = append(tree.Nodes, TreeNode{
			RP:       hexID(a.Origin),
			Parent:   hexID(e.Parent),
			RTT:      Seconds(time.Duration(e.Cost) * linkstate.CostUnit),
			Operator: a.Operator,
		})
	}
	return tree
}

func hex32[N ~uint32](v N) string { return fmt.Sprintf("%08x", v) }

// hexID is empty for no RP.
func hexID(id linkstate.ID) string {
	if id == 0 {
		return ""
	}
	return fmt.Sprintf("%016x", id)
}
