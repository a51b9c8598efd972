// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"cmp"
	"encoding/binary"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/mesh/tree"
)

// database holds the newest advert of each RP, and what is under way to have the
// same at the neighbours.
//
// Only a newer advert costs a signature check, each neighbour and each origin has a
// rate of its own, and what is refused is neither kept nor passed on. An RP that is not on the own
// list may be on the lists of others: as long as it is between RPs on the own list, it is a place in
// the graph, so that all compute the same trees. It has no tree itself, and all such RPs share a rate.
type database struct {
	entries    map[ID]*entry
	publishing map[ID]*entry           // of RPs that are to have a tree
	ingress    map[ids.Incarnation]int // their incarnations, and how many adverts have each
	requested  map[ID]time.Time        // asked for, until when nobody else is
	loose      map[ID]*entry           // without a path to the RP, or muted
	unlisted   map[ID]*entry           // of RPs that are not on the own list
	strange    limiter                 // of adverts of these
	sweepAt    time.Time
	settledAt  time.Time // from when on what is not reached is forgotten
	toldAt     time.Time // when the first neighbour that got a digest has answered; zero before
}

type entry struct {
	*Signed
	version Version
	node    [32]byte  // devp2p node id of the signer
	listed  bool      // the RP is on the own list: else it is but a place on the ways to others
	signed  time.Time // as far as is known
	slot    int       // in the graph, None before the first computation with the advert
	path    bool      // to the RP, as of the last computation
	seen    time.Time // when there was a path last, if there is none
	mask    uint64    // groups with members, by index in Config.Groups
	rate    limiter
	lives   limiter
	muted   bool // it has a new incarnation too soon after others: that has no tree for a while
}

// publishes reports whether the RP of an advert is to have a tree.
func (e *entry) publishes() bool { return e.Advert.Publishes && e.listed && !e.muted }

func (d *database) init(now time.Time) {
	d.settledAt = now.Add(settleDelay)
	d.entries = make(map[ID]*entry)
	d.publishing = make(map[ID]*entry)
	d.ingress = make(map[ids.Incarnation]int)
	d.requested = make(map[ID]time.Time)
	d.loose = make(map[ID]*entry)
	d.unlisted = make(map[ID]*entry)
}

// Adverts calls yield for each RP that is known, in no order, with its newest advert, the version of
// that, and whether the RP is on the own list.
func (c *Core) Adverts(yield func(a *Advert, v Version, listed bool)) {
	for _, e := range c.entries {
		yield(&e.Advert, e.version, e.listed)
	}
}

// Learning reports whether adverts of others may be missing: those of neighbours, those
// that neighbours were asked for, and all until the first neighbour had time to tell what it
// has.
func (c *Core) Learning() bool {
	if c.toldAt.IsZero() || c.now.Before(c.toldAt) {
		return true
	}
	for _, n := range c.neighbours {
		if c.answers(n.id) && c.entries[n.id] == nil {
			return true
		}
	}
	return len(c.requested) > 0
}

// Sums returns the sums of a Digest of the adverts with a salt: equal databases have equal sums.
func (c *Core) Sums(salt uint64) (sums [Buckets]uint32) {
	for origin, e := range c.entries {
		sums[origin%Buckets] ^= e.version.Sum(salt)
	}
	return sums
}

// mix is the finalizer of SplitMix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Sum is what a version adds, by XOR, to sum Origin modulo Buckets of a Digest with a salt. Two
// adverts with the same sum are soon found, but for one salt only.
func (v Version) Sum(salt uint64) uint32 {
	high, low := binary.BigEndian.Uint64(v.Hash[:]), binary.BigEndian.Uint64(v.Hash[8:])
	return uint32(mix(mix(salt^high) ^ low))
}

// store keeps an advert of a node in place of the older one and has trees follow.
func (c *Core) store(s *Signed, v Version, node [32]byte, signed time.Time) {
	origin := s.Advert.Origin
	e := c.entries[origin]
	if e == nil {
		e = &entry{slot: tree.None}
		c.entries[origin], c.loose[origin] = e, e
		c.stats.Changed = c.now
	} else {
		c.unlist(e)
		if e.Advert.Incarnation != s.Advert.Incarnation {
			c.endFormer(origin)
			if e.muted = !e.lives.allow(c.now, livesRate, livesBurst); e.muted {
				c.stats.Limited++
				c.loose[origin] = e
			}
		}
	}
	e.Signed, e.version, e.node, e.signed, e.mask = s, v, node, signed, 0
	if e.listed = origin == c.cfg.Self || c.cfg.Allowed(node); e.listed {
		delete(c.unlisted, origin)
	} else {
		c.unlisted[origin] = e
	}
	c.list(e)
	for _, m := range s.Advert.Groups {
		if i := slices.Index(c.cfg.Groups, m.Group); i >= 0 && m.Count > 0 {
			e.mask |= 1 << i
		}
	}
	c.changed(origin)
}

// list notes the incarnation of an advert, if that is to have a tree.
func (d *database) list(e *entry) {
	if e.publishes() {
		d.publishing[e.Advert.Origin] = e
		d.ingress[e.Advert.Incarnation]++
	}
}

// unlist notes that an advert does not count any more.
func (d *database) unlist(e *entry) {
	i := e.Advert.Incarnation
	if !e.publishes() {
		return
	}
	delete(d.publishing, e.Advert.Origin)
	if d.ingress[i]--; d.ingress[i] == 0 {
		delete(d.ingress, i)
	}
}

// unmute has an incarnation that came too soon have a tree, when it is time.
func (c *Core) unmute(origin ID, e *entry) {
	if e.muted && e.lives.allow(c.now, livesRate, livesBurst) {
		e.muted = false
		c.list(e)
		c.changed(origin)
	}
}

// learn takes adverts from a neighbour.
func (c *Core) learn(n *neighbour, m *Adverts) error {
	for _, a := range m.Adverts {
		if err := c.learnOne(n, a, m.Ack); err != nil {
			return err
		}
	}
	return nil
}

func (c *Core) learnOne(n *neighbour, a Aged, ack bool) error {
	v := a.Advert.Version()
	e := c.entries[v.Origin]
	delete(n.untold, v.Origin)
	if e != nil && !v.newer(e.version) {
		c.stats.Stale++
		switch {
		case e.version.newer(v):
			if !n.answers.allow(c.now, answerRate, answerBurst) {
				return c.dropped(n, &n.answers, &c.stats.RequestsDropped, "old adverts", 1)
			}
			c.owe(n, v.Origin)
		case ack && v.Origin == n.id:
			c.send(n, &Acked{v.Hash})
		}
		return nil
	}
	if c.tooFast(n, e) {
		c.stats.Limited++
		return nil
	}
	node, err := c.cfg.Verify(a.Signed)
	if err != nil {
		c.stats.Forged++
		return proto.Unexpected("%v", err)
	}
	delete(c.requested, v.Origin)
	listed := c.cfg.Allowed(node)
	switch {
	case e == nil && len(c.entries) >= MaxOrigins, !listed && !c.between(&a.Advert):
		c.stats.NotAllowed++
		return nil
	case !listed && !c.strange.allow(c.now, unlistedRate, unlistedBurst):
		c.stats.Limited++
		return nil
	}
	if v.Origin == c.cfg.Self {
		c.outbid(v)
		return nil
	}
	var before []Link
	if e != nil {
		before = e.Advert.Links
	}
	c.store(a.Signed, v, node, c.now.Add(-time.Duration(a.Age)*time.Second))
	c.forward(v, n)
	if ack && v.Origin == n.id {
		c.send(n, &Acked{v.Hash})
	}
	c.linksLost(before, a.Advert.Links)
	if listed {
		c.linksGained(n, before, a.Advert.Links)
	}
	return nil
}

// between reports whether the advert of an RP that is not on the own list is kept, so that this RP
// computes the trees that RPs with another list compute: there is a link between that RP and an RP
// on the list, which both advertise.
func (c *Core) between(a *Advert) bool {
	if _, known := c.unlisted[a.Origin]; !known && len(c.unlisted) >= MaxUnlisted {
		return false
	}
	return slices.ContainsFunc(a.Links, func(l Link) bool {
		other := c.entries[l.Neighbour]
		if other == nil || !other.listed {
			return false
		}
		_, linked := slices.BinarySearchFunc(other.Advert.Links, a.Origin, compareLink)
		return linked
	})
}

// linksGained asks a neighbour for the adverts of RPs that are not known, and to which an RP on the
// list has a link since its last advert. Such an advert may have come before, and was refused then.
func (c *Core) linksGained(n *neighbour, before, after []Link) {
	for _, l := range after {
		if _, had := slices.BinarySearchFunc(before, l.Neighbour, compareLink); !had && c.entries[l.Neighbour] == nil {
			c.request(n, l.Neighbour)
		}
	}
	c.flushRequests(n)
}

// tickUnlisted has adverts of RPs follow the own list, which may have grown, and drops the adverts of
// RPs that no RP on the list has a link to.
func (c *Core) tickUnlisted() {
	for origin, e := range c.unlisted {
		switch {
		case c.cfg.Allowed(e.node):
			e.listed = true
			delete(c.unlisted, origin)
			c.list(e)
			c.changed(origin)
		case !c.between(&e.Advert):
			c.forget(e)
		}
	}
}

// tooFast bounds what a neighbour and an origin can cause. The rates of an origin
// that is not known yet are those of the neighbour.
func (c *Core) tooFast(n *neighbour, e *entry) bool {
	if !n.verify.allow(c.now, verifyRate, verifyBurst) {
		return true
	}
	return e != nil && !e.rate.allow(c.now, originRate, originBurst)
}

// linksLost asks the neighbours that another RP lost for a sign of life. An RP that lost all
// leaves.
func (c *Core) linksLost(before, after []Link) {
	for _, l := range before {
		if _, still := slices.BinarySearchFunc(after, l.Neighbour, compareLink); still {
			continue
		}
		c.hasMoved = true
		if l.Neighbour != c.cfg.Self && len(after) > 0 {
			c.suspect(l.Neighbour)
		}
	}
}

func compareLink(l Link, id ID) int { return cmp.Compare(l.Neighbour, id) }

// forward passes a new advert on: at once on the spanning tree, or to everybody when
// that may be torn, and to those that the trees do not reach yet; some of the others are told
// of it soon, the rest later with more.
func (c *Core) forward(v Version, from *neighbour) {
	torn := c.torn()
	var others []*neighbour
	for _, n := range c.neighbours {
		switch {
		case n == from || !n.up:
		case n.spans || torn || !n.path || v.Origin == c.cfg.Self && c.awaited[n.id]:
			c.owe(n, v.Origin)
		default:
			others = append(others, n)
		}
	}
	for i, k := range c.cfg.Rand.Perm(len(others)) {
		n, delay := others[k], OfferLater
		if i < informed {
			delay = OfferDelay
		}
		at := c.now.Add(delay + time.Duration(c.cfg.Rand.Int64N(int64(delay))))
		if len(n.untold) == 0 || at.Before(n.tellAt) {
			n.tellAt = at
		}
		n.untold[v.Origin] = true
	}
}

// torn reports whether an edge of the spanning tree ended since it was computed, or
// none was computed yet.
func (c *Core) torn() bool {
	for _, n := range c.neighbours {
		if n.spans {
			return c.spanning > 0
		}
	}
	return true
}

// owe sends an advert at the end of this input.
func (c *Core) owe(n *neighbour, origin ID) {
	e := c.entries[origin]
	delete(n.untold, origin)
	if k := len(n.adverts); k > 0 && n.adverts[k-1].Signed == e.Signed {
		return // it was asked for twice
	}
	n.adverts = append(n.adverts, Aged{uint32(max(c.now.Sub(e.signed), 0) / time.Second), e.Signed})
	if origin == c.cfg.Self && c.awaited[n.id] {
		n.ack = true
	}
}

func (c *Core) flushAdverts() {
	for _, n := range c.neighbours {
		for chunk := range slices.Chunk(n.adverts, sendAdverts) {
			c.send(n, &Adverts{Ack: n.ack, Adverts: chunk})
		}
		n.adverts, n.ack = nil, false
	}
}

// tell sends what a neighbour could ask for.
func (c *Core) tell(n *neighbour) {
	var versions []Version
	for origin := range n.untold {
		if e := c.entries[origin]; e != nil {
			versions = append(versions, e.version)
		}
	}
	clear(n.untold)
	slices.SortFunc(versions, compareVersion)
	for chunk := range slices.Chunk(versions, MaxVersions) {
		c.send(n, &Offer{chunk})
	}
}

func compareVersion(a, b Version) int { return cmp.Compare(a.Origin, b.Origin) }

// compare answers a neighbour's digest with a summary of what differs.
func (c *Core) compare(n *neighbour, m *Digest) error {
	if !n.digests.allow(c.now, exchangeRate, exchangeBurst) {
		return c.dropped(n, &n.digests, &c.stats.DigestsDropped, "digests", 1)
	}
	var versions []Version
	sums := c.Sums(m.Salt)
	for origin, e := range c.entries {
		if i := origin % Buckets; m.Sums[i] != sums[i] {
			versions = append(versions, e.version)
		}
	}
	slices.SortFunc(versions, compareVersion)
	for chunk := range slices.Chunk(versions, MaxVersions) {
		c.send(n, &Summary{chunk})
	}
	return nil
}

// want notes what a neighbour has and this RP lacks, as far as it may offer so much, and
// asks it for what nobody else is asked for.
func (c *Core) want(n *neighbour, versions []Version) error {
	dropped := 0
	for _, v := range versions {
		if e := c.entries[v.Origin]; e != nil && !v.newer(e.version) {
			if v == e.version {
				delete(n.untold, v.Origin)
			}
			continue
		}
		if (n.offers[v.Origin] == Version{}) && len(n.offers) >= MaxOrigins || !n.offered.allow(c.now, offerRate, offerBurst) {
			dropped++
			continue
		}
		n.offers[v.Origin] = v
		c.request(n, v.Origin)
	}
	c.flushRequests(n)
	return c.dropped(n, &n.offered, &c.stats.OffersDropped, "offers", dropped)
}

// request asks a neighbour at the end of this input for what it offered, once for each
// offer, if it is still new and nobody is asked for it. What a neighbour does not send,
// another one is asked for: nobody can hide an advert by offering it.
func (c *Core) request(n *neighbour, origin ID) {
	e := c.entries[origin]
	known := e != nil && !n.offers[origin].newer(e.version)
	_, asked := c.requested[origin]
	if !known && asked {
		return
	}
	delete(n.offers, origin)
	if !known {
		c.requested[origin] = c.now.Add(RequestDelay)
		n.requests = append(n.requests, origin)
	}
}

func (c *Core) flushRequests(n *neighbour) {
	slices.Sort(n.requests)
	for chunk := range slices.Chunk(n.requests, MaxRPs) {
		c.send(n, &Request{chunk})
	}
	n.requests = nil
}

// tickRequests asks for what was asked for in vain those who offered it since, in turn.
func (c *Core) tickRequests() {
	for origin, until := range c.requested {
		if !c.now.Before(until) {
			delete(c.requested, origin)
		}
	}
	for i, first := 0, c.cfg.Rand.IntN(max(len(c.neighbours), 1)); i < len(c.neighbours); i++ {
		n := c.neighbours[(first+i)%len(c.neighbours)]
		for origin := range n.offers {
			c.request(n, origin)
		}
		c.flushRequests(n)
	}
}

// answer sends the adverts that a neighbour asks for.
func (c *Core) answer(n *neighbour, m *Request) error {
	for i, origin := range m.Origins {
		if c.entries[origin] == nil {
			continue
		}
		if !n.answers.allow(c.now, answerRate, answerBurst) {
			return c.dropped(n, &n.answers, &c.stats.RequestsDropped, "requests", len(m.Origins)-i)
		}
		c.owe(n, origin)
	}
	return nil
}

// findPaths notes to which RPs there is a path now.
func (c *Core) findPaths() {
	for origin, e := range c.entries {
		path := c.paths.Reached(e.slot)
		if e.path && !path {
			e.seen, c.loose[origin] = c.now, e
		}
		e.path = path
	}
}

// forgetAdverts drops the adverts of RPs without a path. Age only collects garbage: the
// advert of an RP that can be reached counts, whatever age a neighbour gives it.
func (c *Core) forgetAdverts() {
	for origin, e := range c.loose {
		c.unmute(origin, e)
		switch {
		case origin == c.cfg.Self, e.path:
			if !e.muted {
				delete(c.loose, origin)
			}
		case c.dirty[origin]: // it is not in the trees yet
		case !c.now.Before(c.settledAt) && c.now.Sub(e.seen) > MaxAge && c.now.Sub(e.signed) > MaxAge:
			c.forget(e)
		}
	}
}

// forget drops an advert.
func (c *Core) forget(e *entry) {
	origin := e.Advert.Origin
	c.unlist(e)
	delete(c.entries, origin)
	delete(c.loose, origin)
	delete(c.unlisted, origin)
	c.stats.Changed = c.now
	c.changed(origin)
}
