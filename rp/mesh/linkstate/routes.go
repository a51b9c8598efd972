// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"cmp"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
)

// route is this RP's place in the delivery of one ingress RP's datagrams. Trees say
// who should be parent; children are those who asked and may have them, see permit.
//
// A change of parent: Graft to the new one, both are accepted from, GraftAck,
// Overlap, Prune to the old one, which is accepted for 2 x the longest round-trip
// time more. When the parent misses hellos, Graft to the backup, which becomes
// parent when the old one is down, and is pruned when that comes back.
//
// Parents and children are up. What a child asks its neighbours for is its own state
// alone, see asks; children of a parent are a copy of it, kept by Graft and
// Prune. A copy that went wrong is found by RouteSum, which says the sum of what is
// asked for, and repaired after Serving, which says the copy. The messages are in
// order, so that neither takes what is under way for a difference.
type route struct {
	ingress ids.Incarnation
	origin  ID // that has the incarnation
	parent  ID // 0 for none
	asking
	since   time.Time
	old     []previous
	backups []ID
	wanted  ID // by the tree
	failed  ID // did not acknowledge, so that it is not wanted for a while
	root    *root
	gone    time.Time // when the route ends, since the mesh has no tree for it; zero for not

	failedUntil time.Time // zero for nobody

	children map[ID]*child // those that are up, and asked
	expireAt time.Time     // when a child has to go; zero for never

	failing   time.Time // since when the parent of the tree does not do its part; zero for not
	failingOf ID        // that parent

	told  *Route // as the datapath has it
	dirty bool
}

// previous is an upstream besides the parent: a former one, or a backup.
type previous struct {
	id ID
	asking
	pruneAt time.Time // when Prune goes out; zero until the new parent sends
	pruned  time.Time // until when it is accepted after that; zero before
}

// asking is how far an upstream is with what it was asked for.
type asking struct {
	graft uint32 // the newest Graft
	acked bool   // by its GraftAck
}

const (
	graftTimeout = 300 * time.Millisecond // and two round trips
	giveUpDelay  = 5 * time.Second        // for which a parent may refuse or not answer
	goneDelay    = 30 * time.Second
)

func (c *Core) route(ingress ids.Incarnation) *route {
	r := c.routes[ingress]
	if r == nil {
		r = &route{ingress: ingress, children: make(map[ID]*child), gone: c.now.Add(goneDelay)}
		c.routes[ingress] = r
		i, _ := slices.BinarySearchFunc(c.order, r, compareRoute)
		c.order = slices.Insert(c.order, i, r)
		c.touch(r)
	}
	return r
}

// touch has a route handed over at the end of this input, if it differs.
func (c *Core) touch(r *route) {
	if !r.dirty {
		r.dirty = true
		c.touched = append(c.touched, r)
	}
}

// follow has the route of an ingress RP follow its tree.
func (c *Core) follow(t *root) {
	r := c.route(t.incarnation)
	if r.failingOf != t.parent {
		r.failing = time.Time{}
	}
	r.root, r.origin, r.wanted, r.gone = t, c.graph.ID(t.slot), t.parent, time.Time{}
	c.nameChildren(r)
	if r.wanted == r.failed && c.now.Before(r.failedUntil) {
		r.wanted = 0
	}
	c.touch(r)
	r.backups = append(r.backups[:0], t.backups...)
	c.steer(r)
}

// steer turns to the wanted parent, if that is alive.
func (c *Core) steer(r *route) {
	switch {
	case r.root == nil || r.root.slot == c.self:
	case c.answers(r.wanted) && (r.children[r.wanted] == nil || c.alive(r.parent)):
		// A child turns to another parent before the old one here ends.
		c.setParent(r, r.wanted)
	case r.parent == 0:
		c.recover(r)
	}
}

// unfollow has the route of an incarnation without a tree end, some time later. If the RP had
// another one before, the route of that ends now: however often an RP takes a new incarnation,
// it has two routes at most.
func (c *Core) unfollow(origin ID, ingress ids.Incarnation) {
	c.endFormer(origin)
	if r := c.routes[ingress]; r != nil {
		r.root, r.wanted, r.gone, r.failing = nil, 0, c.now.Add(goneDelay), time.Time{}
	}
}

// endFormer ends the routes of incarnations of an RP that have no tree.
func (c *Core) endFormer(origin ID) {
	for _, r := range c.order {
		if r.origin == origin && r.root == nil {
			r.gone = c.now
		}
	}
}

func (c *Core) alive(id ID) bool {
	n := c.neighbour(id)
	return n != nil && n.up
}

// answers reports whether a neighbour can be asked for something.
func (c *Core) answers(id ID) bool { return c.alive(id) && !c.neighbour(id).isAway() }

// setParent makes a neighbour the parent; the one before stays for a while.
func (c *Core) setParent(r *route, id ID) {
	if r.parent == id {
		return
	}
	if r.parent != 0 {
		r.old = append(r.old, previous{id: r.parent, asking: r.asking})
	}
	r.parent, r.since, r.asking = id, c.now, asking{}
	c.touch(r)
	asked := false
	r.old = slices.DeleteFunc(r.old, func(p previous) bool {
		if p.id != id {
			return false
		}
		if asked = p.pruned.IsZero(); asked {
			r.asking = p.asking
		}
		return true
	})
	for i := range r.old {
		r.old[i].pruneAt = time.Time{}
	}
	if !asked {
		c.ask(r, id)
	}
	if r.acked {
		c.overlap(r)
	}
	c.keepFew(r)
}

// asks tells what an upstream was asked for and not pruned from; nil for nothing.
func (r *route) asks(id ID) *asking {
	if r.parent == id {
		return &r.asking
	}
	for i := range r.old {
		if p := &r.old[i]; p.id == id && p.pruned.IsZero() {
			return &p.asking
		}
	}
	return nil
}

func (c *Core) ask(r *route, id ID) {
	n := c.neighbour(id)
	n.graft = append(n.graft, r.ingress)
}

// keepFew ends the oldest upstreams besides the parent, those first that do not send yet.
func (c *Core) keepFew(r *route) {
	for len(r.old) > previousKept {
		i := max(0, slices.IndexFunc(r.old, func(p previous) bool { return !p.acked }))
		c.prune(r, r.old[i].id)
		r.old = slices.Delete(r.old, i, i+1)
	}
}

// doubt asks the backups of a parent that may be down.
func (c *Core) doubt(n *neighbour) {
	for _, r := range c.order {
		if r.parent == n.id {
			c.askBackup(r, n)
		}
	}
}

// askBackup asks the next backup of a route whose parent may be down, if there is no other
// upstream. The backup of a parent that is away goes on until that one is back.
func (c *Core) askBackup(r *route, parent *neighbour) {
	asked := false
	for i := range r.old {
		if p := &r.old[i]; p.pruned.IsZero() && c.answers(p.id) {
			asked = true
			if parent.isAway() {
				p.pruneAt = time.Time{}
			}
		}
	}
	b := c.backup(r)
	if asked || b == 0 {
		return
	}
	r.old = slices.DeleteFunc(r.old, func(p previous) bool { return p.id == b })
	p := previous{id: b}
	if !parent.isAway() {
		p.pruneAt = c.now.Add(Overlap)
	}
	r.old = append(r.old, p)
	c.ask(r, b)
	c.keepFew(r)
	c.touch(r)
}

// backup returns who replaces the parent of a route, 0 for nobody.
func (c *Core) backup(r *route) ID {
	for _, id := range append([]ID{r.wanted}, r.backups...) {
		if id != r.parent && c.answers(id) && !c.neighbour(id).doubted && r.children[id] == nil {
			return id
		}
	}
	return 0
}

// overlap lets the old parents end some time after the new one sends.
func (c *Core) overlap(r *route) {
	for i := range r.old {
		if r.old[i].pruneAt.IsZero() {
			r.old[i].pruneAt = c.now.Add(Overlap)
		}
	}
}

// longest returns the longest round-trip time of the links, as far as times depend on it.
func (c *Core) longest() (rtt time.Duration) {
	for _, n := range c.neighbours {
		rtt = max(rtt, n.trip())
	}
	return max(rtt, minimumOverlap)
}

// prune tells a neighbour at the end of this input that it is not asked any more.
func (c *Core) prune(r *route, id ID) {
	if n := c.neighbour(id); n != nil && n.up {
		n.prune = append(n.prune, r.ingress)
	}
}

func (c *Core) pruneAll(r *route) {
	for _, n := range c.neighbours {
		if r.asks(n.id) != nil {
			c.prune(r, n.id)
		}
	}
}

// recover finds a parent for a route that has none: one that did not stop yet, the
// wanted one, or a backup.
func (c *Core) recover(r *route) {
	for i := len(r.old) - 1; i >= 0; i-- {
		if p := r.old[i]; p.pruned.IsZero() && c.alive(p.id) {
			c.setParent(r, p.id)
			return
		}
	}
	if b := c.backup(r); b != 0 {
		c.setParent(r, b)
	}
}

// lost takes a neighbour that is down out of all routes.
func (c *Core) lost(n *neighbour) {
	for _, r := range c.order {
		c.dismiss(n, r)
		r.old = slices.DeleteFunc(r.old, func(p previous) bool { return p.id == n.id })
		if r.parent == n.id {
			c.stats.Failovers++
			r.parent = 0
			c.touch(r)
			c.recover(r)
		}
	}
	if slot := c.graph.Slot(n.id); slot >= 0 && c.graph.Spans(c.self, slot) {
		c.spanning++
	}
}

func compareRoute(a, b *route) int { return cmp.Compare(a.ingress, b.ingress) }

// graftAcked takes a neighbour's answer. What it refused is asked of somebody else at once.
func (c *Core) graftAcked(n *neighbour, m *GraftAck) {
	answered := func(ingress ids.Incarnation) (*route, *asking) {
		if r := c.routes[ingress]; r != nil {
			if a := r.asks(n.id); a != nil && !a.acked && a.graft == m.ID {
				return r, a
			}
		}
		return nil, nil
	}
	for _, ingress := range m.Granted {
		r, a := answered(ingress)
		if r == nil {
			continue
		}
		a.acked = true
		if r.parent == n.id {
			c.overlap(r)
		}
		if r.root != nil && r.root.parent == n.id {
			r.failing = time.Time{}
		}
	}
	for _, ingress := range m.Refused {
		if r, _ := answered(ingress); r != nil {
			c.stats.Refusals++
			c.refused(r, n)
		}
	}
}

// refused leaves an upstream that does not do what it was asked for. If that is because both
// have other adverts, a digest finds it.
func (c *Core) refused(r *route, n *neighbour) {
	c.compareSoon(n)
	if r.parent == n.id {
		c.turnAway(r)
		return
	}
	r.old = slices.DeleteFunc(r.old, func(p previous) bool { return p.id == n.id })
	r.backups = slices.DeleteFunc(r.backups, func(id ID) bool { return id == n.id })
	c.touch(r)
	if p := c.neighbour(r.parent); p != nil && p.doubted {
		c.askBackup(r, p)
	}
}

// repair asks a neighbour anew for what it acknowledged and does not know any more,
// and prunes it from what it was not asked for.
func (c *Core) repair(n *neighbour, m *Serving) {
	if !n.up || !n.summed { // nobody is asked for it more often than that
		return
	}
	n.summed = false
	c.stats.Repairs++
	for _, r := range c.order {
		a := r.asks(n.id)
		if a == nil || !a.acked || slices.Contains(m.Ingress, r.ingress) {
			continue
		}
		*a = asking{}
		if r.parent == n.id {
			r.since = c.now
		}
		c.ask(r, n.id)
	}
	n.prune = append(n.prune, m.Ingress...) // but for those that are asked for
}

// tickRoutes ends what is over, and gives up parents that do not answer.
func (c *Core) tickRoutes() {
	c.order = slices.DeleteFunc(c.order, func(r *route) bool {
		if !due(r.gone, c.now) {
			return false
		}
		c.pruneAll(r)
		delete(c.routes, r.ingress)
		c.act(RouteGone{r.ingress})
		c.stats.Changed = c.now
		c.treeEdges = true
		return true
	})
	for _, r := range c.order {
		if len(r.old) > 0 {
			c.tickOld(r)
		}
		if due(r.failedUntil, c.now) {
			r.failedUntil = time.Time{}
			c.computeSoon()
		}
		if n := c.neighbour(r.parent); n != nil && !r.acked && c.now.Sub(r.since) > graftTimeout+2*n.trip() {
			c.stats.Timeouts++
			c.turnAway(r)
		} else if r.parent != r.wanted {
			c.steer(r)
		}
		if due(r.expireAt, c.now) {
			c.expireChildren(r)
		}
	}
	c.giveUp()
}

// giveUp has the links end whose far ends are parents in a tree and do not replicate, so that
// all RPs compute trees without them. A parent that replicates another route may have no room
// for this one: its link is of use. The time of one that is away does not count.
func (c *Core) giveUp() {
	for _, r := range c.order {
		if r.failing.IsZero() {
			continue
		}
		n := c.neighbour(r.failingOf)
		switch {
		case n == nil || !n.up || n.isAway():
			r.failing = time.Time{}
		case c.now.Sub(r.failing) < giveUpDelay:
		case c.replicates(n):
			r.failing = time.Time{}
		default:
			r.failing = time.Time{}
			c.stats.GivenUp++
			c.down(n)
		}
	}
}

// replicates reports whether a neighbour granted a route that this RP asks it for.
func (c *Core) replicates(n *neighbour) bool {
	return slices.ContainsFunc(c.order, func(r *route) bool {
		a := r.asks(n.id)
		return a != nil && a.acked
	})
}

func (c *Core) tickOld(r *route) {
	for i := range r.old {
		if p := &r.old[i]; p.pruned.IsZero() && due(p.pruneAt, c.now) {
			c.prune(r, p.id)
			p.pruned = c.now.Add(2 * c.longest())
		}
	}
	before := len(r.old)
	r.old = slices.DeleteFunc(r.old, func(p previous) bool { return due(p.pruned, c.now) })
	if len(r.old) != before {
		c.touch(r)
	}
}

// turnAway leaves a parent that did not acknowledge, for one that still sends or the
// next backup. The tree may want it again after a while.
func (c *Core) turnAway(r *route) {
	failed := r.parent
	r.parent = 0
	c.touch(r)
	if r.wanted == failed {
		r.wanted = 0
	}
	if r.root != nil && r.root.parent == failed && r.failing.IsZero() {
		r.failing, r.failingOf = c.now, failed
	}
	r.backups = slices.DeleteFunc(r.backups, func(id ID) bool { return id == failed })
	c.prune(r, failed)
	r.failed, r.failedUntil = failed, c.now.Add(TreesDelay)
	c.recover(r)
}

// flushRoutes hands over what changed in this input.
func (c *Core) flushRoutes() {
	slices.SortFunc(c.touched, compareRoute)
	for _, r := range c.touched {
		r.dirty = false
		if c.routes[r.ingress] != r {
			continue // it ended
		}
		if now := c.export(r); r.told == nil || !now.equal(r.told) {
			if r.told == nil || (r.told.Parent == 0) != (now.Parent == 0) || r.told.used() != now.used() {
				c.stats.Changed = c.now
			}
			r.told = &now
			c.treeEdges = true
			c.act(now)
		}
	}
	c.actions = append(c.actions, c.serves...)
	c.touched, c.serves = c.touched[:0], nil
	for _, n := range c.neighbours {
		c.flushAsks(n)
	}
}

// flushAsks tells a neighbour what changed in what it is asked for. What is true at
// the end of the input counts, in whatever order it came about.
func (c *Core) flushAsks(n *neighbour) {
	if len(n.graft)+len(n.prune) == 0 && !n.sum {
		return
	}
	asked := func(ingress ids.Incarnation) bool {
		r := c.routes[ingress]
		return r != nil && r.asks(n.id) != nil
	}
	graft := ascending(slices.DeleteFunc(n.graft, func(ingress ids.Incarnation) bool { return !asked(ingress) }))
	for chunk := range slices.Chunk(graft, sendRoutes) {
		c.lastID++
		m := &Graft{ID: c.lastID}
		for _, ingress := range chunk {
			c.routes[ingress].asks(n.id).graft = m.ID
			m.Routes = append(m.Routes, GraftRoute{ingress, c.cfg.Marks(ingress)})
		}
		c.stats.Grafts += uint64(len(chunk))
		c.send(n, m)
	}
	prune := ascending(slices.DeleteFunc(n.prune, asked))
	for chunk := range slices.Chunk(prune, MaxRPs) {
		c.send(n, &Prune{chunk})
	}
	n.graft, n.prune = nil, nil
	if n.sum { // behind what it sums up
		n.sum, n.summed = false, true
		var all []ids.Incarnation
		for _, r := range c.order {
			if r.asks(n.id) != nil {
				all = append(all, r.ingress)
			}
		}
		c.send(n, &RouteSum{SumOf(all)})
	}
}

// ascending sorts numbers and leaves out those that are there already.
func ascending(numbers []ids.Incarnation) []ids.Incarnation {
	slices.Sort(numbers)
	return slices.Compact(numbers)
}

// export is the route for the datapath.
func (c *Core) export(r *route) Route {
	out := Route{Ingress: r.ingress, Parent: r.parent}
	for _, b := range r.backups {
		if b != r.parent && r.children[b] == nil {
			out.Backup = b
			break
		}
	}
	for _, p := range r.old {
		out.Previous = append(out.Previous, p.id)
	}
	for id := range r.children {
		child := Child{ID: id, All: true}
		if r.root != nil {
			if mask, ok := r.root.branches[id]; ok {
				child.All = false
				for i, g := range c.cfg.Groups {
					if mask>>i&1 != 0 {
						child.Groups = append(child.Groups, g)
					}
				}
			}
		}
		out.Children = append(out.Children, child)
	}
	slices.SortFunc(out.Children, func(a, b Child) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// used reports whether datagrams come or go by the route.
func (r *Route) used() bool { return r.Parent != 0 || len(r.Previous) > 0 || len(r.Children) > 0 }

func (r *Route) equal(o *Route) bool {
	return r.Parent == o.Parent && r.Backup == o.Backup && slices.Equal(r.Previous, o.Previous) &&
		slices.EqualFunc(r.Children, o.Children, func(a, b Child) bool {
			return a.ID == b.ID && a.All == b.All && slices.Equal(a.Groups, b.Groups)
		})
}

// markTreeEdges finds out which links are on a tree in use.
func (c *Core) markTreeEdges() {
	if !c.treeEdges {
		return
	}
	c.treeEdges = false
	marked := make(map[ID]bool)
	mark := func(id ID) { marked[id] = true }
	for _, r := range c.order {
		mark(r.parent)
		for id := range r.children {
			mark(id)
		}
	}
	for _, n := range c.neighbours {
		if marked[n.id] && !n.tree {
			n.treeSince = c.now
		}
		n.tree = marked[n.id]
	}
}
