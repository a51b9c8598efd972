// SPDX-License-Identifier: LGPL-3.0-or-later

package tree

import (
	"cmp"
	"fmt"
	"slices"
)

// Mode is a kind of tree.
type Mode uint8

// Modes.
const (
	Star  Mode = iota // one hop wherever the root has a link
	Light             // light approximate shortest-path tree
)

func (m Mode) String() string {
	switch m {
	case Star:
		return "star"
	case Light:
		return "light"
	}
	return fmt.Sprintf("mode-%d", uint8(m))
}

// ParseMode returns the Mode with a name.
func ParseMode(name string) (Mode, error) {
	for _, m := range []Mode{Star, Light} {
		if m.String() == name {
			return m, nil
		}
	}
	if name == "last" {
		return 0, fmt.Errorf("mode %q is called %q now", name, Light)
	}
	return 0, fmt.Errorf("%q is neither light nor star", name)
}

// Alpha of Light: how much longer than the shortest path the way to a node may be,
// in percent. Less is faster, more is lighter.
const (
	MinAlpha     = 101
	DefaultAlpha = 115
)

// Tree is the tree of one root.
type Tree struct {
	Root   int
	Parent []int32 // by slot; None for the root and what is not reached

	// What it was built from, to know when it must be built anew.
	built   bool
	shape   int
	anyLink bool // matters, not only those of the forest and the shortest paths

	dist  []uint32 // of the walk, then in the tree
	walk  []step
	count []int32 // children
	order []int32
	path  []int32
}

type step struct {
	node, from int32
	cost       uint32 // of the edge between them
	edge       int    // of the forest, to follow next
}

// Outdated reports whether Build may give another tree than last time, given that
// the graph changed in between and whether the shortest paths did.
func (tr *Tree) Outdated(t *Topology, changed bool) bool {
	return !tr.built || changed || tr.anyLink || tr.shape != t.shape
}

// Build computes the tree of a root in a committed graph, given the root's current
// shortest paths. No node has more children than its budget, the root at least one,
// as long as a neighbour of a child has room.
func (tr *Tree) Build(t *Topology, s *SPT, mode Mode, alpha int) {
	tr.Root = int(s.root)
	tr.built, tr.shape, tr.anyLink = true, t.shape, mode == Star
	n := t.Len()
	tr.Parent = slices.Grow(tr.Parent[:0], n)[:n]
	tr.dist = slices.Grow(tr.dist[:0], n)[:n]
	for v := range n {
		tr.Parent[v], tr.dist[v] = None, unreached
	}
	if mode == Star {
		tr.star(t, s)
	} else {
		tr.light(t, s, uint64(max(alpha, MinAlpha)))
	}
	tr.limit(t)
}

func (tr *Tree) star(t *Topology, s *SPT) {
	copy(tr.Parent, s.parent)
	for _, e := range t.adj[tr.Root] {
		tr.Parent[e.to] = int32(tr.Root)
	}
}

// light is the algorithm of Khuller, Raghavachari and Young (1995): walk around the
// minimum spanning tree; where the way so far is longer than alpha times the
// shortest path, go on from that path. No node is then farther than alpha times its
// shortest distance, and the tree costs at most 1 + 2/(alpha - 1) times the minimum.
func (tr *Tree) light(t *Topology, s *SPT, alpha uint64) {
	tr.dist[tr.Root] = 0
	tr.walk = append(tr.walk[:0], step{node: int32(tr.Root), from: None})
	for len(tr.walk) > 0 {
		at := &tr.walk[len(tr.walk)-1]
		if edges := t.forest[at.node]; at.edge < len(edges) {
			e := edges[at.edge]
			at.edge++
			if e.to == at.from {
				continue
			}
			tr.relax(at.node, e.to, e.cost)
			if 100*uint64(tr.dist[e.to]) > alpha*uint64(s.dist[e.to]) {
				tr.shorten(s, e.to)
			}
			tr.walk = append(tr.walk, step{node: e.to, from: at.node, cost: e.cost})
			continue
		}
		if at.from != None {
			tr.relax(at.node, at.from, at.cost)
		}
		tr.walk = tr.walk[:len(tr.walk)-1]
	}
}

func (tr *Tree) relax(from, to int32, cost uint32) {
	if d := tr.dist[from] + cost; d < tr.dist[to] {
		tr.dist[to], tr.Parent[to] = d, from
	}
}

// shorten puts the shortest path to a node into the tree.
func (tr *Tree) shorten(s *SPT, v int32) {
	for ; tr.dist[v] > s.dist[v]; v = s.parent[v] {
		tr.dist[v], tr.Parent[v] = s.dist[v], s.parent[v]
	}
}

// limit moves children away from nodes that have more than their budget, those that
// lose least by it, from the root down.
func (tr *Tree) limit(t *Topology) {
	n := t.Len()
	tr.count = slices.Grow(tr.count[:0], n)[:n]
	clear(tr.count)
	for _, p := range tr.Parent {
		if p != None {
			tr.count[p]++
		}
	}
	over := false
	for v := range int32(n) {
		over = over || tr.count[v] > tr.room(t, v)
	}
	if !over {
		return
	}
	tr.anyLink = true
	tr.descend(t)
	for _, u := range tr.order {
		for tr.count[u] > tr.room(t, u) && tr.moveChild(t, u) {
		}
	}
}

// moveChild moves one child of a node to a parent that has room. The loss is by the
// distances before any move; ties are broken by the ids of the child and the parent.
func (tr *Tree) moveChild(t *Topology, u int32) bool {
	child, parent, loss := int32(None), int32(None), int64(0)
	for v, p := range tr.Parent {
		if p != u {
			continue
		}
		v := int32(v)
		for _, e := range t.adj[v] {
			if e.to == u || tr.dist[e.to] == unreached || tr.count[e.to] >= tr.room(t, e.to) {
				continue
			}
			l := int64(tr.dist[e.to]) + int64(e.cost) - int64(tr.dist[v])
			if child != None && cmp.Or(cmp.Compare(l, loss), cmp.Compare(t.ids[v], t.ids[child]), cmp.Compare(t.ids[e.to], t.ids[parent])) >= 0 {
				continue
			}
			if !tr.Below(int(e.to), int(v)) {
				child, parent, loss = v, e.to, l
			}
		}
	}
	if child == None {
		return false
	}
	tr.Parent[child] = parent
	tr.count[u]--
	tr.count[parent]++
	return true
}

// room is how many children a node takes.
func (tr *Tree) room(t *Topology, v int32) int32 {
	if int(v) == tr.Root {
		return max(t.budget[v], 1)
	}
	return t.budget[v]
}

// descend fills order with the nodes from the root down, each generation by id, and
// their distances in the tree.
func (tr *Tree) descend(t *Topology) {
	for v := range tr.dist {
		tr.dist[v] = unreached
	}
	tr.dist[tr.Root] = 0
	tr.order = append(tr.order[:0], int32(tr.Root))
	for from := 0; from < len(tr.order); {
		to := len(tr.order)
		for _, u := range tr.order[from:to] {
			for _, e := range t.adj[u] {
				if tr.Parent[e.to] == u {
					tr.order = append(tr.order, e.to)
					tr.dist[e.to] = tr.dist[u] + e.cost
				}
			}
		}
		slices.SortFunc(tr.order[to:], func(a, b int32) int { return cmp.Compare(t.ids[a], t.ids[b]) })
		from = to
	}
}

// Below reports whether a node is another one or stands below it.
func (tr *Tree) Below(slot, above int) bool {
	for v := int32(slot); v != None; v = tr.Parent[v] {
		if int(v) == above {
			return true
		}
	}
	return false
}

// Distances returns the cost of the way from the root to each slot; reached tells
// whether there is one.
func (tr *Tree) Distances(t *Topology) (cost []uint32, reached []bool) {
	tr.descend(t)
	reached = make([]bool, len(tr.dist))
	for _, v := range tr.order {
		reached[v] = true
	}
	return slices.Clone(tr.dist), reached
}

// Backups returns to whom a node turns when its parent fails, the best first, at most
// n: neighbours that do not stand below it, and of these those whose way from the
// root avoids the parent and is short. The link to the neighbour counts twice more,
// as the node is to ask over it, and each node that both ways share counts as a
// quarter more of the length.
func (tr *Tree) Backups(t *Topology, slot, n int) []int {
	type candidate struct {
		slot     int32
		byParent bool
		dist     uint64
	}
	v := int32(slot)
	parent := tr.Parent[v]
	if parent == None {
		return nil
	}
	onWay := func(x int32) bool { return tr.Below(int(parent), int(x)) }
	var all []candidate
next:
	for _, e := range t.adj[v] {
		if e.to == parent || (tr.Parent[e.to] == None && int(e.to) != tr.Root) {
			continue
		}
		c, shared := candidate{slot: e.to, dist: 3 * uint64(e.cost)}, 0
		for x := e.to; x != None; x = tr.Parent[x] {
			switch {
			case x == v:
				continue next
			case x == parent && int(x) != tr.Root:
				c.byParent = true
			}
			if int(x) != tr.Root && onWay(x) {
				shared++
			}
			if p := tr.Parent[x]; p != None {
				c.dist += uint64(t.Cost(int(x), int(p)))
			}
		}
		c.dist = c.dist * uint64(4+shared) / 4
		all = append(all, c)
	}
	slices.SortStableFunc(all, func(a, b candidate) int { // stable: by id
		if a.byParent != b.byParent {
			if a.byParent {
				return 1
			}
			return -1
		}
		return cmp.Compare(a.dist, b.dist)
	})
	var slots []int
	for _, c := range all[:min(n, len(all))] {
		slots = append(slots, int(c.slot))
	}
	return slots
}

// Branches returns, for each child of a node, the union of a bit set of the nodes at
// and below that child.
func (tr *Tree) Branches(slot int, bits func(slot int) uint64) map[int]uint64 {
	branches := make(map[int]uint64)
	for v, p := range tr.Parent {
		if int(p) == slot {
			branches[v] = 0
		}
	}
	if len(branches) == 0 {
		return branches
	}
	// branch of each node: the child it stands below, None for elsewhere, -2 not known.
	const unseen = -2
	branch := slices.Grow(tr.path[:0], len(tr.Parent))[:len(tr.Parent)]
	tr.path = branch
	for v := range branch {
		branch[v] = unseen
	}
	for v := range int32(len(branch)) {
		top := v
		for branch[top] == unseen && tr.Parent[top] != None && int(tr.Parent[top]) != slot {
			top = tr.Parent[top]
		}
		found := branch[top]
		switch {
		case found != unseen:
		case tr.Parent[top] == None:
			found = None
		default:
			found = top
		}
		for x := v; branch[x] == unseen; x = tr.Parent[x] {
			branch[x] = found
			if x == top {
				break
			}
		}
		if found != None {
			branches[int(found)] |= bits(int(v))
		}
	}
	return branches
}
