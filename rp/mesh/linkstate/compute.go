// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/mesh/tree"
)

// trees follow the database: the graph of two-way links, and the tree of each
// ingress RP, of which this RP uses its own place.
type trees struct {
	graph   *tree.Topology
	self    int
	paths   *tree.SPT // from this RP
	roots   map[ID]*root
	dirty   map[ID]bool // adverts that changed since
	treesAt time.Time
	last    time.Time // computed

	// A computation that is under way.
	todo    []ID         // roots whose trees are still to be computed
	partAt  time.Time    // when it goes on; zero for none
	linked  map[ID]bool  // adverts that it follows
	changes tree.Changes // of the graph

	spanning int // neighbours on the spanning tree that were lost since
}

// root is the tree of one ingress RP.
type root struct {
	incarnation ids.Incarnation
	slot        int
	paths       *tree.SPT // nil before the first computation
	tree        tree.Tree

	parent   ID // of this RP, 0 for none
	backups  []ID
	branches map[ID]uint64 // groups with members at and below each child
}

func (t *trees) init(cfg Config) {
	t.graph = tree.NewTopology()
	t.self = t.graph.Add(cfg.Self)
	t.graph.Commit()
	t.paths = tree.NewSPT(t.graph, t.self)
	t.roots = make(map[ID]*root)
	t.dirty, t.linked = make(map[ID]bool), make(map[ID]bool)
}

// changed has the trees follow a changed advert, soon, but not too often: a failed
// parent is replaced by a backup that is known already.
func (c *Core) changed(origin ID) {
	c.dirty[origin] = true
	c.computeSoon()
}

func (c *Core) computeSoon() {
	if c.treesAt.IsZero() {
		c.treesAt = c.now.Add(TreesSoon)
		apart := min(time.Duration(len(c.entries))*TreesEach, TreesDelay)
		if soonest := c.last.Add(apart); c.treesAt.Before(soonest) {
			c.treesAt = soonest
		}
	}
}

// reached reports whether there is a path to an RP.
func (c *Core) reached(origin ID) bool {
	slot := c.graph.Slot(origin)
	return slot != tree.None && c.paths.Reached(slot)
}

// Reached reports whether there is a path to an RP, as of the last computation.
func (c *Core) Reached(origin ID) bool { return origin == c.cfg.Self || c.reached(origin) }

// compute brings the graph up to date, then the trees in parts, and has the routes follow.
func (c *Core) compute() {
	c.treesAt, c.last, c.spanning = time.Time{}, c.now, 0
	if c.leaving {
		return // the routes stay until others took over
	}
	c.stats.Computed++
	c.dirty, c.linked = c.linked, c.dirty
	for origin := range c.linked {
		c.link(origin)
	}
	c.changes = c.graph.Commit()
	c.paths.Update(c.graph, c.changes)
	c.findPaths()
	c.root()
	for _, n := range c.neighbours {
		slot := c.graph.Slot(n.id)
		n.path = slot != tree.None && c.paths.Reached(slot)
		n.spans = n.up && n.path && c.graph.Spans(c.self, slot)
	}
	c.todo = c.rootOrder()
	c.computePart()
}

// partWork is the work that is done of the trees at once, in nodes looked at. It takes some 20 ms, so
// that hellos and messages do not wait for longer, and is counted instead of measured: the Core has no
// clock. A mesh of some 60 RPs needs one part, a mesh of 1,000 that starts some 150.
const partWork = 1 << 17

// movedWork is the work for a node whose distance from the root changed, compared to another node.
const movedWork = 16

// partsApart is the time from one part to the next, of which the half is for other things.
const partsApart = 40 * time.Millisecond

// computePart computes the next trees.
func (c *Core) computePart() {
	c.partAt = time.Time{}
	if c.leaving {
		c.todo = nil
		return
	}
	members := func(slot int) uint64 {
		if e := c.entries[c.graph.ID(slot)]; e != nil {
			return e.mask
		}
		return 0
	}
	for work := 0; len(c.todo) > 0; c.todo = c.todo[1:] {
		if work >= partWork {
			c.partAt = c.now.Add(partsApart)
			return
		}
		r := c.roots[c.todo[0]]
		c.computeTree(r, members)
		c.follow(r)
		work += c.graph.Len() + movedWork*r.paths.Moved()
	}
	c.todo = nil
	for origin := range c.linked {
		if c.entries[origin] == nil {
			c.graph.Remove(origin)
		}
	}
	clear(c.linked)
	c.grantWaiting()
}

// computeTree brings one tree up to date, and the own place in it.
func (c *Core) computeTree(r *root, members func(slot int) uint64) {
	changed := true
	if r.paths == nil {
		r.paths = tree.NewSPT(c.graph, r.slot)
	} else {
		changed = r.paths.Update(c.graph, c.changes)
	}
	if r.tree.Outdated(c.graph, changed) {
		before := slices.Clone(r.tree.Parent)
		r.tree.Build(c.graph, r.paths, c.cfg.Mode, c.cfg.Alpha)
		if r.slot == c.self && !slices.Equal(before, r.tree.Parent) {
			c.hasMoved = true
		}
		r.parent, r.backups = 0, nil
		if p := r.tree.Parent[c.self]; p != tree.None {
			r.parent = c.graph.ID(int(p))
		}
		for _, b := range r.tree.Backups(c.graph, c.self, backupsKept) {
			r.backups = append(r.backups, c.graph.ID(b))
		}
	}
	clear(r.branches)
	for child, mask := range r.tree.Branches(c.self, members) {
		r.branches[c.graph.ID(child)] = mask
	}
}

// link sets the links of one RP: those that both ends advertise.
func (c *Core) link(origin ID) {
	slot := c.graph.Add(origin)
	e := c.entries[origin]
	var links []Link
	if e != nil {
		e.slot, links = slot, e.Advert.Links
		c.graph.SetBudget(slot, int(min(e.Advert.Budget, MaxOrigins)))
	}
	var gone []int
	c.graph.Neighbours(slot, func(other int, _ uint32) {
		if _, still := slices.BinarySearchFunc(links, c.graph.ID(other), compareLink); !still {
			gone = append(gone, other)
		}
	})
	for _, other := range gone {
		c.graph.SetCost(slot, other, 0)
	}
	for _, l := range links {
		cost := uint32(0)
		if other := c.entries[l.Neighbour]; other != nil {
			if i, ok := slices.BinarySearchFunc(other.Advert.Links, origin, compareLink); ok {
				cost = max(l.Cost, other.Advert.Links[i].Cost)
			}
		}
		if other := c.graph.Slot(l.Neighbour); other != tree.None {
			c.graph.SetCost(slot, other, cost)
		} else if cost > 0 {
			c.graph.SetCost(slot, c.graph.Add(l.Neighbour), cost)
		}
	}
}

// root has a root for each ingress RP that can be reached. When two claim one
// incarnation, which is what datagrams carry, the lower id has it.
func (c *Core) root() {
	claimed := make(map[ids.Incarnation]ID)
	for origin, e := range c.publishing {
		if c.reached(origin) {
			if other, ok := claimed[e.Advert.Incarnation]; !ok || origin < other {
				claimed[e.Advert.Incarnation] = origin
			}
		}
	}
	for origin, r := range c.roots {
		if claimed[r.incarnation] != origin {
			delete(c.roots, origin)
			c.unfollow(origin, r.incarnation)
		}
	}
	for incarnation, origin := range claimed {
		if c.roots[origin] == nil {
			slot := c.graph.Slot(origin)
			c.roots[origin] = &root{incarnation: incarnation, slot: slot, branches: make(map[ID]uint64)}
		}
	}
}

func (c *Core) rootOrder() []ID {
	order := make([]ID, 0, len(c.roots))
	for id := range c.roots {
		order = append(order, id)
	}
	slices.Sort(order)
	return order
}

// TreeParent returns whom the computed tree of an ingress RP gives an RP as parent, 0
// for none; ok is false when there is no such tree.
func (c *Core) TreeParent(ingress, of ID) (parent ID, ok bool) {
	r := c.roots[ingress]
	slot := c.graph.Slot(of)
	if r == nil || slot == tree.None || slot >= len(r.tree.Parent) {
		return 0, false
	}
	if p := r.tree.Parent[slot]; p != tree.None {
		parent = c.graph.ID(int(p))
	}
	return parent, true
}
