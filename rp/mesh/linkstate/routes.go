// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// route is this RP's place in the delivery of one ingress RP's datagrams. Trees say
// who should be parent; children are those who asked. Both are accepted from and
// replicated to until the other side says otherwise.
//
// A change of parent: Activate to the new one, both are accepted from, RouteAck,
// Overlap, Release to the old one, which is accepted for 2 x the longest round-trip
// time more. When the parent misses hellos, Activate to the backup, which becomes
// parent when the old one is down, and is released when that comes back.
type route struct {
	ingress uint32
	parent  ID // 0 for none
	since   time.Time
	acked   bool
	old     []previous
	backups []ID
	wanted  ID // by the tree
	root    *root
	gone    time.Time // when the route ends, since the mesh has no tree for it; zero for not

	children map[ID]bool

	told  *Route // as the datapath has it
	dirty bool
}

// previous is an upstream besides the parent: a former one, or a backup.
type previous struct {
	id       ID
	asked    bool      // to send, by an Activate without RouteAck
	release  time.Time // when Release goes out; zero until the new parent sends
	released time.Time // until when it is accepted after that; zero before
}

type pendingRelease struct {
	ingress []uint32
	due     time.Time
	tries   int
}

const (
	activateTimeout = 300 * time.Millisecond // and two round trips
	releaseTries    = 3
	goneDelay       = 30 * time.Second
)

func (c *Core) route(ingress uint32) *route {
	r := c.routes[ingress]
	if r == nil {
		r = &route{ingress: ingress, children: make(map[ID]bool), gone: c.now.Add(goneDelay)}
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
	r.root, r.wanted, r.gone = t, t.parent, time.Time{}
	c.touch(r)
	r.backups = append(r.backups[:0], t.backups...)
	c.steer(r)
}

// steer turns to the wanted parent, if that is alive.
func (c *Core) steer(r *route) {
	switch {
	case r.root == nil || r.root.slot == c.self:
	case c.alive(r.wanted) && (!r.children[r.wanted] || c.alive(r.parent)):
		// A child turns to another parent before the old one here ends.
		c.setParent(r, r.wanted)
	case r.parent == 0:
		c.recover(r)
	}
}

// unfollow has the route of an ingress RP without a tree end, some time later.
func (c *Core) unfollow(ingress uint32) {
	if r := c.routes[ingress]; r != nil {
		r.root, r.wanted, r.gone = nil, 0, c.now.Add(goneDelay)
	}
}

func (c *Core) alive(id ID) bool {
	n := c.neighbour(id)
	return n != nil && n.up
}

// setParent makes a neighbour the parent; the one before stays for a while.
func (c *Core) setParent(r *route, id ID) {
	if r.parent == id {
		return
	}
	if r.parent != 0 {
		r.old = append(r.old, previous{id: r.parent})
	}
	r.parent, r.since, r.acked = id, c.now, false
	c.touch(r)
	asked := false
	r.old = slices.DeleteFunc(r.old, func(p previous) bool {
		if p.id != id {
			return false
		}
		asked = p.released.IsZero()
		r.acked = asked && !p.asked // it sends already
		return true
	})
	for i := range r.old {
		r.old[i].release = time.Time{}
	}
	if !asked {
		c.ask(r, id)
	}
	if r.acked {
		c.overlap(r)
	}
	c.keepFew(r)
}

func (c *Core) ask(r *route, id ID) {
	n := c.neighbour(id)
	n.activate = append(n.activate, r.ingress)
}

func (c *Core) keepFew(r *route) {
	for len(r.old) > previousKept {
		c.releaseOld(r, 0)
		r.old = slices.Delete(r.old, 0, 1)
	}
}

// doubt asks the backups of a parent that may be down.
func (c *Core) doubt(n *neighbour) {
	for _, r := range c.order {
		if r.parent != n.id || slices.ContainsFunc(r.old, func(p previous) bool { return p.released.IsZero() && c.alive(p.id) }) {
			continue
		}
		if b := c.backup(r); b != 0 {
			r.old = slices.DeleteFunc(r.old, func(p previous) bool { return p.id == b })
			r.old = append(r.old, previous{id: b, asked: true, release: c.now.Add(Overlap)})
			c.ask(r, b)
			c.keepFew(r)
			c.touch(r)
		}
	}
}

// backup returns who replaces the parent of a route, 0 for nobody.
func (c *Core) backup(r *route) ID {
	for _, id := range append([]ID{r.wanted}, r.backups...) {
		if id != r.parent && c.alive(id) && !c.neighbour(id).doubted && !r.children[id] {
			return id
		}
	}
	return 0
}

// overlap lets the old parents end some time after the new one sends.
func (c *Core) overlap(r *route) {
	for i := range r.old {
		if r.old[i].release.IsZero() {
			r.old[i].release = c.now.Add(max(Overlap, 2*c.longest()))
		}
	}
}

// longest returns the longest round-trip time of the links.
func (c *Core) longest() (rtt time.Duration) {
	for _, n := range c.neighbours {
		rtt = max(rtt, n.rtt)
	}
	return max(rtt, minimumOverlap)
}

func (c *Core) releaseOld(r *route, i int) {
	if n := c.neighbour(r.old[i].id); n != nil && n.up && r.old[i].released.IsZero() {
		n.release = append(n.release, r.ingress)
	}
}

// recover finds a parent for a route that has none: one that did not stop yet, the
// wanted one, or a backup.
func (c *Core) recover(r *route) {
	for i := len(r.old) - 1; i >= 0; i-- {
		if p := r.old[i]; p.released.IsZero() && c.alive(p.id) {
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
		if r.children[n.id] {
			delete(r.children, n.id)
			c.touch(r)
		}
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

// activated makes a neighbour a child. One that asks too often is not served from the
// cache, and one that asks for too many ingress RPs that nobody knows gets no answer.
func (c *Core) activated(n *neighbour, m *Activate) {
	for _, a := range m.Routes {
		if c.routes[a.Ingress] == nil && len(c.routes) >= maxRoutes {
			c.stats.NotServed++
			return
		}
		r := c.route(a.Ingress)
		if !r.children[n.id] {
			r.children[n.id] = true
			c.touch(r)
		}
		if !n.served.allow(c.now, serveRate, serveBurst) {
			c.stats.NotServed++
			continue
		}
		c.serves = append(c.serves, Serve{n.id, a.Ingress, a.Marks})
	}
	c.send(n, &RouteAck{m.ID})
}

func (c *Core) released(n *neighbour, m *Release) {
	for _, ingress := range m.Ingress {
		if r := c.routes[ingress]; r != nil && r.children[n.id] {
			delete(r.children, n.id)
			c.touch(r)
		}
	}
	c.send(n, &RouteAck{m.ID})
}

func (c *Core) routeAcked(n *neighbour, m *RouteAck) {
	for _, ingress := range n.activates[m.ID] {
		r := c.routes[ingress]
		if r == nil {
			continue
		}
		if r.parent == n.id && !r.acked {
			r.acked = true
			c.overlap(r)
		}
		for i := range r.old {
			r.old[i].asked = r.old[i].asked && r.old[i].id != n.id
		}
	}
	delete(n.activates, m.ID)
	delete(n.releases, m.ID)
}

// tickRoutes ends what is over, and gives up parents that do not answer.
func (c *Core) tickRoutes() {
	c.order = slices.DeleteFunc(c.order, func(r *route) bool {
		if !due(r.gone, c.now) {
			return false
		}
		delete(c.routes, r.ingress)
		c.act(RouteGone{r.ingress})
		c.treeEdges = true
		return true
	})
	for _, r := range c.order {
		if len(r.old) > 0 {
			c.tickOld(r)
		}
		if n := c.neighbour(r.parent); n != nil && !r.acked && c.now.Sub(r.since) > activateTimeout+2*n.rtt {
			c.stats.Timeouts++
			c.turnAway(r)
		} else if r.parent != r.wanted {
			c.steer(r)
		}
	}
	for _, n := range c.neighbours {
		for _, id := range slices.Sorted(maps.Keys(n.releases)) {
			p := n.releases[id]
			if c.now.Before(p.due) {
				continue
			}
			delete(n.releases, id)
			if p.tries < releaseTries {
				c.sendRelease(n, p.ingress, p.tries+1)
			}
		}
	}
}

func (c *Core) tickOld(r *route) {
	for i := range r.old {
		if p := &r.old[i]; p.released.IsZero() && due(p.release, c.now) {
			c.releaseOld(r, i)
			p.released = c.now.Add(2 * c.longest())
		}
	}
	before := len(r.old)
	r.old = slices.DeleteFunc(r.old, func(p previous) bool { return due(p.released, c.now) })
	if len(r.old) != before {
		c.touch(r)
	}
}

// turnAway leaves a parent that did not acknowledge, for one that still sends or the
// next backup. The tree may want it again at its next change.
func (c *Core) turnAway(r *route) {
	failed := r.parent
	r.parent = 0
	c.touch(r)
	if r.wanted == failed {
		r.wanted = 0
	}
	r.backups = slices.DeleteFunc(r.backups, func(id ID) bool { return id == failed })
	if n := c.neighbour(failed); n != nil && n.up {
		n.release = append(n.release, r.ingress)
	}
	c.recover(r)
	c.computeSoon()
}

// flushRoutes hands over what changed in this input.
func (c *Core) flushRoutes() {
	slices.SortFunc(c.touched, compareRoute)
	for _, r := range c.touched {
		r.dirty = false
		if now := c.export(r); r.told == nil || !now.equal(r.told) {
			r.told = &now
			c.treeEdges = true
			c.act(now)
		}
	}
	c.actions = append(c.actions, c.serves...)
	c.touched, c.serves = c.touched[:0], nil
	for _, n := range c.neighbours {
		for chunk := range slices.Chunk(n.activate, sendRoutes) {
			c.sendActivate(n, chunk)
		}
		for chunk := range slices.Chunk(n.release, MaxVersions) {
			c.sendRelease(n, chunk, 1)
		}
		n.activate, n.release = nil, nil
	}
}

func (c *Core) sendActivate(n *neighbour, ingress []uint32) {
	c.lastID++
	c.stats.Activations += uint64(len(ingress))
	m := &Activate{ID: c.lastID}
	for _, i := range ingress {
		m.Routes = append(m.Routes, Activation{i, c.cfg.Marks(i)})
	}
	n.activates[c.lastID] = slices.Clone(ingress)
	c.send(n, m)
}

func (c *Core) sendRelease(n *neighbour, ingress []uint32, try int) {
	c.lastID++
	n.releases[c.lastID] = &pendingRelease{slices.Clone(ingress), c.now.Add(Interval + 2*n.rtt), try}
	c.send(n, &Release{c.lastID, slices.Clone(ingress)})
}

// export is the route for the datapath.
func (c *Core) export(r *route) Route {
	out := Route{Ingress: r.ingress, Parent: r.parent}
	for _, b := range r.backups {
		if b != r.parent && !r.children[b] {
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
	for _, n := range c.neighbours {
		n.tree = false
	}
	mark := func(id ID) {
		if n := c.neighbour(id); n != nil {
			n.tree = true
		}
	}
	for _, r := range c.order {
		mark(r.parent)
		for id := range r.children {
			mark(id)
		}
	}
}
