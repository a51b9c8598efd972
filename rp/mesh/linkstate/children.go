// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
)

// The tree says who may be a child. Views of the tree differ for some seconds while adverts
// travel, and a child turns to a backup before any tree knows why; so a neighbour that the
// tree does not name may be a child for a while, as a guest. Guests fill no place that is
// beyond the copy budget, they make room for those that the tree names, and a neighbour has
// only so much time as a guest of one route.
const (
	Grace      = 15 * time.Second // for a child that the tree does not name any more, and for a guest at most
	guestRate  = 0.25             // seconds as a guest that come back each second
	guestBurst = float64(Grace / time.Second)
	reserve    = 2   // times that one route is served from the cache at once,
	reserveIn  = 5.0 // and seconds until once more
	waitingMax = MaxRoutes
	joinRate   = 0.5 // times per second that a neighbour becomes a child of one route,
	joinBurst  = 8   // and at once: each is a change of the datapath
)

// child is a neighbour that gets the datagrams of a route.
type child struct {
	named bool      // by the tree, now or before
	until time.Time // when it has to go; zero while the tree names it
	guest time.Time // since when it is there without a tree that names it; zero for not
}

// standing is what is left to a neighbour of one route: time as a guest, in seconds, times
// that it is served from the cache, and times that it becomes a child.
type standing struct{ guest, served, joins limiter }

// waiting is a route that a neighbour asked for before this RP had an advert with it.
type waiting struct {
	graft uint32
	marks []Mark
	until time.Time
}

// names reports whether the tree of a route names a neighbour as child of this RP.
func (r *route) names(id ID) bool {
	if r.root == nil {
		return false
	}
	_, ok := r.root.branches[id]
	return ok
}

// Counts reports whether a neighbour is a child of this RP in the tree of an ingress RP, or
// was one some seconds ago: only then its reports of receipts count.
func (c *Core) Counts(ingress ids.Incarnation, id ID) bool {
	r := c.routes[ingress]
	return r != nil && r.children[id] != nil && r.children[id].named
}

// grafted makes a neighbour a child, as far as it may be one. There is no answer to one that
// is not heard: it turns to others.
func (c *Core) grafted(n *neighbour, m *Graft) {
	if !n.up {
		return
	}
	a := AckGraft{To: n.id, ID: m.ID}
	served := len(c.serving(n))
	for _, g := range m.Routes {
		r := c.routes[g.Ingress]
		if r == nil && c.ingress[g.Ingress] > 0 { // the trees follow soon
			r = c.route(g.Ingress)
			r.origin = c.claims(g.Ingress)
		}
		_, waits := n.waiting[g.Ingress]
		known := waits || r != nil && r.children[n.id] != nil
		switch {
		case r == nil && (waits || len(n.waiting) < waitingMax && served < MaxServing):
			n.waiting[g.Ingress] = waiting{m.ID, g.Marks, c.now.Add(Grace)}
		case r == nil, !known && served >= MaxServing, !c.permit(n, r):
			c.stats.Refused++
			a.Refused = append(a.Refused, g.Ingress)
			continue
		}
		if !known {
			served++
		}
		if r == nil {
			continue // there is an answer later
		}
		delete(n.waiting, g.Ingress)
		a.Granted = append(a.Granted, g.Ingress)
		c.serve(n, r, g.Marks)
	}
	c.answerGraft(a)
}

// claims returns the RP whose advert has an incarnation, the lowest if there are several.
func (c *Core) claims(incarnation ids.Incarnation) (origin ID) {
	for id, e := range c.publishing {
		if e.Advert.Incarnation == incarnation && (origin == 0 || id < origin) {
			origin = id
		}
	}
	return origin
}

func (c *Core) answerGraft(a AckGraft) {
	if len(a.Granted)+len(a.Refused) > 0 {
		c.messages = append(c.messages, a)
	}
}

// grantWaiting answers those who asked for a route that is known now.
func (c *Core) grantWaiting() {
	for _, n := range c.neighbours {
		if len(n.waiting) == 0 {
			continue
		}
		answers := make(map[uint32]*AckGraft)
		for ingress, w := range n.waiting {
			r := c.routes[ingress]
			if r == nil {
				continue
			}
			delete(n.waiting, ingress)
			a := answers[w.graft]
			if a == nil {
				a = &AckGraft{To: n.id, ID: w.graft}
				answers[w.graft] = a
			}
			if c.permit(n, r) {
				a.Granted = append(a.Granted, ingress)
				c.serve(n, r, w.marks)
			} else {
				c.stats.Refused++
				a.Refused = append(a.Refused, ingress)
			}
		}
		for _, id := range sortedKeys(answers) {
			a := answers[id]
			a.Granted, a.Refused = ascending(a.Granted), ascending(a.Refused)
			c.answerGraft(*a)
		}
	}
}

// permit makes a neighbour a child of a route, if it may be one.
func (c *Core) permit(n *neighbour, r *route) bool {
	ch := r.children[n.id]
	if ch != nil {
		return true
	}
	st := c.standing(n, r)
	switch {
	case r.names(n.id):
		if !c.join(n, st) {
			return false
		}
		ch = &child{named: true}
		c.makeRoom(r)
	default:
		left := st.guest.fill(c.now, guestRate, guestBurst)
		if len(r.children) >= c.room(r) || left < 1 || !c.join(n, st) {
			c.compareSoon(n)
			return false
		}
		ch = &child{guest: c.now}
		c.endChild(r, ch, time.Duration(left*float64(time.Second)))
	}
	r.children[n.id] = ch
	c.touch(r)
	return true
}

// room is how many children a route has at most: the ingress RP has one, whatever its budget.
func (c *Core) room(r *route) int {
	if r.root != nil && r.root.slot == c.self {
		return max(c.cfg.Budget, 1)
	}
	return c.cfg.Budget
}

// makeRoom dismisses the guest that would be the first to go, when a child that the tree names
// has no place. Nobody tells the guest: so there is one child beyond the budget while that guest
// is so new that the trees may not know why it asked.
func (c *Core) makeRoom(r *route) {
	if len(r.children) < c.room(r) {
		return
	}
	first := ID(0)
	for id, ch := range r.children {
		if !ch.guest.IsZero() && (first == 0 || ch.until.Before(r.children[first].until)) {
			first = id
		}
	}
	n, ch := c.neighbour(first), r.children[first]
	switch {
	case n == nil:
	case len(r.children) == c.room(r) && c.now.Before(ch.guest.Add(Overlap)):
		c.endChild(r, ch, min(ch.guest.Add(Overlap).Sub(c.now), ch.until.Sub(c.now)))
	default:
		c.dismiss(n, r)
	}
}

// endChild has a child go after a time.
func (c *Core) endChild(r *route, ch *child, after time.Duration) {
	ch.until = c.now.Add(after)
	if r.expireAt.IsZero() || ch.until.Before(r.expireAt) {
		r.expireAt = ch.until
	}
}

// nameChildren has the children of a route follow its tree.
func (c *Core) nameChildren(r *route) {
	for id, ch := range r.children {
		switch {
		case r.names(id):
			c.chargeGuest(c.neighbour(id), r, ch)
			ch.named, ch.until = true, time.Time{}
		case ch.until.IsZero():
			c.endChild(r, ch, Grace)
		}
	}
}

// expireChildren dismisses the children whose time is over. They look at their trees again:
// this RP and they do not have the same one.
func (c *Core) expireChildren(r *route) {
	r.expireAt = time.Time{}
	for id, ch := range r.children {
		n := c.neighbour(id)
		switch {
		case ch.until.IsZero():
		case due(ch.until, c.now):
			c.stats.Dismissed++
			c.dismiss(n, r)
			c.compareSoon(n)
		case r.expireAt.IsZero() || ch.until.Before(r.expireAt):
			r.expireAt = ch.until
		}
	}
}

// dismiss takes a neighbour out of the children of a route, if it is one.
func (c *Core) dismiss(n *neighbour, r *route) {
	if ch := r.children[n.id]; ch != nil {
		c.chargeGuest(n, r, ch)
		delete(r.children, n.id)
		c.touch(r)
	}
}

// chargeGuest takes the time that a neighbour was a guest from what it has left.
func (c *Core) chargeGuest(n *neighbour, r *route, ch *child) {
	if !ch.guest.IsZero() {
		g := &c.standing(n, r).guest
		g.left = g.fill(c.now, guestRate, guestBurst) - c.now.Sub(ch.guest).Seconds()
		ch.guest = time.Time{}
	}
}

// join takes one of the times that a neighbour becomes a child of a route, and of any, if there is
// one of both.
func (c *Core) join(n *neighbour, st *standing) bool {
	return st.joins.fill(c.now, joinRate, joinBurst) >= 1 && n.joins.allow(c.now, joinsRate, joinsBurst) &&
		st.joins.allow(c.now, joinRate, joinBurst)
}

func (c *Core) standing(n *neighbour, r *route) *standing {
	st := n.standings[r.ingress]
	if st == nil {
		st = new(standing)
		st.guest.fill(c.now, guestRate, guestBurst)
		n.standings[r.ingress] = st
	}
	return st
}

// serve has a child served from the cache, not again and again.
func (c *Core) serve(n *neighbour, r *route, marks []Mark) {
	if !c.standing(n, r).served.allow(c.now, 1/reserveIn, reserve) || !n.served.allow(c.now, serveRate, serveBurst) {
		c.stats.NotServed++
		marks = nil
	}
	c.serves = append(c.serves, Serve{n.id, r.ingress, marks})
}

// tickStandings forgets what is over.
func (c *Core) tickStandings(n *neighbour) {
	for ingress, w := range n.waiting {
		if due(w.until, c.now) {
			delete(n.waiting, ingress)
		}
	}
	for ingress, st := range n.standings {
		r := c.routes[ingress]
		guest := r != nil && r.children[n.id] != nil && !r.children[n.id].guest.IsZero()
		if !guest && st.guest.fill(c.now, guestRate, guestBurst) >= guestBurst && st.served.fill(c.now, 1/reserveIn, reserve) >= reserve &&
			st.joins.fill(c.now, joinRate, joinBurst) >= joinBurst {
			delete(n.standings, ingress)
		}
	}
}

// Refuse says that the datapath has no room for a neighbour as child of an ingress RP.
func (c *Core) Refuse(now time.Time, id ID, ingress ids.Incarnation) {
	c.now = now
	n, r := c.neighbour(id), c.routes[ingress]
	if n != nil && r != nil {
		c.stats.Refused++
		c.dismiss(n, r)
	}
}

func (c *Core) pruned(n *neighbour, m *Prune) {
	for _, ingress := range m.Ingress {
		delete(n.waiting, ingress)
		if r := c.routes[ingress]; r != nil {
			c.dismiss(n, r)
		}
	}
}

// serving lists the routes in which a neighbour is a child, or for which it has no answer
// yet, ascending.
func (c *Core) serving(n *neighbour) (ingress []ids.Incarnation) {
	for _, r := range c.order {
		if r.children[n.id] != nil {
			ingress = append(ingress, r.ingress)
		}
	}
	for i := range n.waiting {
		ingress = append(ingress, i)
	}
	return ascending(ingress)
}

// SumOf is the sum of a RouteSum over some ingress RPs, 0 for none. As that of adverts it
// finds differences between honest RPs.
func SumOf(ingress []ids.Incarnation) (sum uint32) {
	for _, i := range ingress {
		sum ^= uint32(mix(uint64(i)))
	}
	return sum
}

// compareRoutes answers when a neighbour is served with something else than it asks for.
func (c *Core) compareRoutes(n *neighbour, m *RouteSum) error {
	serving := c.serving(n)
	switch {
	case SumOf(serving) == m.Sum:
	case n.sums.allow(c.now, exchangeRate, exchangeBurst):
		c.send(n, &Serving{serving})
	default:
		return c.dropped(n, &n.sums, &c.stats.SumsDropped, "sums of routes", 1)
	}
	return nil
}

func sortedKeys[V any](m map[uint32]V) []uint32 {
	keys := make([]uint32, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
