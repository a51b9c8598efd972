// SPDX-License-Identifier: LGPL-3.0-or-later

// Package tree computes the source-rooted trees of the RP mesh. Whoever has the
// same links, costs and budgets gets the same trees, in whatever order it heard of
// them: costs are integers and each tie is broken by node id.
//
// A change costs little: the shortest paths of a root are repaired where the change
// touches them, and the tree follows in one walk over the nodes.
package tree

import (
	"cmp"
	"math"
	"slices"
)

// ID names a node: the first 8 bytes of its devp2p node id, big-endian.
type ID uint64

// None is the slot of no node.
const None = -1

// MaxCost is the highest cost of a link.
const MaxCost = 1 << 22

// unreached is the distance of what no path leads to.
const unreached = math.MaxUint32

// Topology is the undirected graph of the links that both ends agree on. Nodes have
// slots, small integers that stay while the node is known. Changes count after Commit.
type Topology struct {
	slots  map[ID]int32
	ids    []ID
	budget []int32
	free   []int32
	adj    [][]edge // by slot, in the order of the neighbours' ids
	rank   []int32  // by slot: place in the order of ids
	stale  bool     // rank does not fit the nodes

	pending []change // since Commit, in order

	forest  [][]edge // minimum spanning forest by slot, edges in ascending order
	spans   []uint64 // its edges
	shape   int      // counts changes of the forest and of budgets
	keys    []uint64 // of all links, ascending
	sets    []int32
	byRank  []int32
	scratch []uint64
}

type edge struct {
	to   int32
	cost uint32
}

// change of one link's cost, 0 for no link.
type change struct {
	a, b     int32
	old, new uint32
}

// NewTopology returns an empty graph.
func NewTopology() *Topology { return &Topology{slots: make(map[ID]int32)} }

// Add returns the slot of a node, which is new or known.
func (t *Topology) Add(id ID) int {
	if s, ok := t.slots[id]; ok {
		return int(s)
	}
	t.stale = true
	if n := len(t.free); n > 0 {
		s := t.free[n-1]
		t.free = t.free[:n-1]
		t.slots[id], t.ids[s] = s, id
		return int(s)
	}
	s := int32(len(t.ids))
	t.slots[id] = s
	t.ids = append(t.ids, id)
	t.budget = append(t.budget, 0)
	t.adj = append(t.adj, nil)
	t.forest = append(t.forest, nil)
	return int(s)
}

// Remove forgets a node without links. Its slot serves another one later.
func (t *Topology) Remove(id ID) {
	s, ok := t.slots[id]
	if !ok || len(t.adj[s]) > 0 {
		return
	}
	delete(t.slots, id)
	t.budget[s] = 0
	t.free = append(t.free, s)
	t.stale = true
}

// Slot returns the slot of a node, or None.
func (t *Topology) Slot(id ID) int {
	if s, ok := t.slots[id]; ok {
		return int(s)
	}
	return None
}

// ID returns the node in a slot.
func (t *Topology) ID(slot int) ID { return t.ids[slot] }

// Len returns the number of slots, with the free ones.
func (t *Topology) Len() int { return len(t.ids) }

// SetBudget says to how many children a node copies in one tree, at most.
func (t *Topology) SetBudget(slot, children int) {
	if t.budget[slot] != int32(children) {
		t.budget[slot] = int32(children)
		t.shape++
	}
}

// Neighbours calls yield for each link of a node in the order of ids.
func (t *Topology) Neighbours(slot int, yield func(slot int, cost uint32)) {
	for _, e := range t.adj[slot] {
		yield(int(e.to), e.cost)
	}
}

// Cost returns the cost of a link, 0 for none.
func (t *Topology) Cost(a, b int) uint32 {
	if i, ok := t.find(int32(a), int32(b)); ok {
		return t.adj[a][i].cost
	}
	return 0
}

// SetCost sets the cost of the link of two nodes, 0 to remove it.
func (t *Topology) SetCost(a, b int, cost uint32) {
	old := t.Cost(a, b)
	cost = min(cost, MaxCost)
	if a == b || old == cost {
		return
	}
	t.set(int32(a), int32(b), cost)
	t.set(int32(b), int32(a), cost)
	t.pending = append(t.pending, change{int32(a), int32(b), old, cost})
}

func (t *Topology) find(a, b int32) (int, bool) {
	return slices.BinarySearchFunc(t.adj[a], t.ids[b], func(e edge, id ID) int { return cmp.Compare(t.ids[e.to], id) })
}

func (t *Topology) set(a, b int32, cost uint32) {
	switch i, ok := t.find(a, b); {
	case cost == 0:
		t.adj[a] = slices.Delete(t.adj[a], i, i+1)
	case ok:
		t.adj[a][i].cost = cost
	default:
		t.adj[a] = slices.Insert(t.adj[a], i, edge{b, cost})
	}
}

// Changes are the links that one Commit changed, for SPT.Update.
type Changes []change

// Commit finishes a set of changes: it computes the minimum spanning forest anew.
func (t *Topology) Commit() Changes {
	changes := t.pending
	t.pending = nil
	if t.stale {
		t.order()
		t.sort()
	} else {
		for _, c := range changes {
			t.move(c)
		}
	}
	if len(changes) > 0 {
		t.span()
	}
	return changes
}

func (t *Topology) order() {
	t.stale = false
	slots := make([]int32, 0, len(t.slots))
	for _, s := range t.slots {
		slots = append(slots, s)
	}
	slices.SortFunc(slots, func(a, b int32) int { return cmp.Compare(t.ids[a], t.ids[b]) })
	t.rank = slices.Grow(t.rank[:0], len(t.ids))[:len(t.ids)]
	for i, s := range slots {
		t.rank[s] = int32(i)
	}
}

// key is the place of a link in the order of (cost, lower id, higher id).
func (t *Topology) key(a, b int32, cost uint32) uint64 {
	x, y := t.rank[a], t.rank[b]
	return uint64(cost)<<40 | uint64(min(x, y))<<20 | uint64(max(x, y))
}

// sort brings all links in order.
func (t *Topology) sort() {
	t.byRank = slices.Grow(t.byRank[:0], len(t.ids))[:len(t.ids)]
	for _, s := range t.slots {
		t.byRank[t.rank[s]] = s
	}
	t.keys = t.keys[:0]
	for a := range t.adj {
		for _, e := range t.adj[a] {
			if t.ids[a] < t.ids[e.to] {
				t.keys = append(t.keys, t.key(int32(a), e.to, e.cost))
			}
		}
	}
	slices.Sort(t.keys)
}

// move brings one link, which changed, in order.
func (t *Topology) move(c change) {
	if c.old != 0 {
		i, _ := slices.BinarySearch(t.keys, t.key(c.a, c.b, c.old))
		t.keys = slices.Delete(t.keys, i, i+1)
	}
	if c.new != 0 {
		k := t.key(c.a, c.b, c.new)
		i, _ := slices.BinarySearch(t.keys, k)
		t.keys = slices.Insert(t.keys, i, k)
	}
}

// span is Kruskal's algorithm.
func (t *Topology) span() {
	t.sets = slices.Grow(t.sets[:0], len(t.ids))[:len(t.ids)]
	for a := range t.sets {
		t.forest[a] = t.forest[a][:0]
		t.sets[a] = int32(a)
	}
	const mask = 1<<20 - 1
	spans := t.scratch[:0]
	for _, k := range t.keys {
		a, b, cost := t.byRank[k>>20&mask], t.byRank[k&mask], uint32(k>>40)
		if x, y := t.member(a), t.member(b); x != y {
			t.sets[x] = y
			t.forest[a] = append(t.forest[a], edge{b, cost})
			t.forest[b] = append(t.forest[b], edge{a, cost})
			spans = append(spans, uint64(cost)<<40|uint64(a)<<20|uint64(b))
		}
	}
	if !slices.Equal(spans, t.spans) {
		t.shape++
	}
	t.spans, t.scratch = spans, t.spans
}

// member returns who stands for the set of a node, and shortens the way there.
func (t *Topology) member(a int32) int32 {
	for t.sets[a] != a {
		t.sets[a] = t.sets[t.sets[a]]
		a = t.sets[a]
	}
	return a
}

// Spans reports whether a link is in the minimum spanning forest.
func (t *Topology) Spans(a, b int) bool {
	return slices.ContainsFunc(t.forest[a], func(e edge) bool { return int(e.to) == b })
}

// ForestCost returns the sum of the costs of the minimum spanning forest.
func (t *Topology) ForestCost() (sum uint64) {
	for _, edges := range t.forest {
		for _, e := range edges {
			sum += uint64(e.cost)
		}
	}
	return sum / 2
}
