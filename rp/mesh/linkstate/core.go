// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/mesh/tree"
)

// Times of the protocol.
const (
	TreeInterval = 100 * time.Millisecond // between hellos on tree edges; also how often Tick does what is not urgent
	Interval     = time.Second            // between other hellos
	Missed       = 3                      // hellos until a neighbour is down; one before, backups are asked

	JoinDelay      = 200 * time.Millisecond // links to RPs without a path are advertised together
	LinkDelay      = 4 * time.Second        // other links that come up, and costs: they can wait
	UrgentDelay    = 100 * time.Millisecond // least time between adverts
	CountsDelay    = 5 * time.Second        // least time between adverts of counts
	Refresh        = 20 * time.Minute
	MaxAge         = 2 * time.Minute        // after which the advert of an RP without a path to it is forgotten
	TreesEach      = 5 * time.Millisecond   // least time between computations of trees, for each RP,
	TreesDelay     = time.Second            // but not longer than this
	TreesSoon      = 20 * time.Millisecond  // from the first change to a computation
	OfferDelay     = 500 * time.Millisecond // and up to twice that, as the next
	OfferLater     = 3 * time.Second
	DigestDelay    = time.Minute
	RouteSumDelay  = 2 * time.Second         // until parents are told again what they are asked for
	RequestDelay   = time.Second             // until another neighbour is asked for an advert
	AckDelay       = 3 * time.Second         // neighbours that acknowledge later do not delay MayPublish
	Overlap        = 2500 * time.Millisecond // the old parent goes on: longer than changes take to reach all trees
	minimumOverlap = 100 * time.Millisecond  // when links are shorter than that
)

// CostUnit is the round-trip time that costs 1.
const CostUnit = 100 * time.Microsecond

// Limits on what a neighbour can cause.
const (
	MaxOrigins    = 4096
	MaxUnlisted   = 64 // RPs that are not on the own list, of which adverts are kept
	unlistedRate  = 4  // adverts per second of all of these
	unlistedBurst = 2 * MaxUnlisted
	maxRoutes     = 4096
	verifyRate    = 400 // signatures per second of one neighbour
	verifyBurst   = 2 * MaxOrigins
	originRate    = 2 // adverts per second of one origin
	originBurst   = 20
	livesRate     = 0.1 // new incarnations per second of one origin: each costs the members of all RPs something
	livesBurst    = 3
	offerRate     = 1000 // adverts per second that one neighbour may say it has
	offerBurst    = 2 * MaxOrigins
	answerRate    = 1000 // adverts per second sent on request to one neighbour
	answerBurst   = 2 * MaxOrigins
	exchangeRate  = 1 // digests, and sums of routes, per second that one neighbour gets answered
	exchangeBurst = 8
	excessMax     = 64 // messages of a kind that may be beyond such a limit before all of it is back
	joinsRate     = 50 // times per second that a neighbour becomes a child, of whatever routes
	joinsBurst    = maxRoutes
	serveRate     = 50 // routes per second that one neighbour is served from the cache
	serveBurst    = maxRoutes
	backupsKept   = 3
	previousKept  = 2
	hellosUntilUp = 3
	ownRate       = 1 // own adverts per second
	ownBurst      = 5
	informed      = 4                // neighbours that are told soon of an advert which they do not get
	holdFirst     = time.Second      // after which a neighbour that was lost twice is up again, and
	holdLast      = 16 * time.Second // after each further time twice as long, up to this
	holdMemory    = time.Minute      // for which it stayed up when that is forgotten
	settleDelay   = 10 * time.Second // until an RP that starts has the database, and paths
	returnDelay   = 5 * time.Second  // until it does not wait for neighbours of its earlier life any more
)

// Action is something that a Core wants done. Actions are done in order.
type Action interface{ action() }

// Send asks for a message to a neighbour on its mdcsmesh connection.
type Send struct {
	To      ID
	Message Message
}

// SendHello asks for a datagram to a neighbour.
type SendHello struct {
	To    ID
	Hello Hello
}

// Route says which datagrams of an ingress RP are accepted and to whom they go. It
// replaces the route before. Actions behind it rely on it being in the datapath.
type Route struct {
	Ingress  ids.Incarnation // incarnation
	Parent   ID              // expected upstream; 0 at the ingress RP, or when there is none
	Backup   ID              // who is asked when Parent fails, 0 for nobody
	Previous []ID            // upstreams accepted besides, for a while
	Children []Child
}

// Child is a neighbour that gets the datagrams of a route, by id.
type Child struct {
	ID     ID
	All    bool        // groups: which have members below is not known
	Groups []ids.Group // else those with members at or below the child
}

// RouteGone says that there are no datagrams of an ingress RP any more.
type RouteGone struct{ Ingress ids.Incarnation }

// Serve asks to give a child the group keys, and to send it from the cache what is newer than
// its marks.
type Serve struct {
	To      ID
	Ingress ids.Incarnation
	Marks   []Mark
}

// AckGraft asks for the GraftAck to a neighbour, when the datapath has the routes. Those of
// Granted that it has no room for are to be told to Refuse, and to be among Refused.
type AckGraft struct {
	To               ID
	ID               uint32 // of the Graft
	Granted, Refused []ids.Incarnation
}

// Message returns the GraftAck.
func (a *AckGraft) Message() *GraftAck { return &GraftAck{a.ID, a.Granted, a.Refused} }

// NeighbourUp and NeighbourDown tell what the hellos say. One that was away is up anew.
type (
	NeighbourUp   struct{ ID ID }
	NeighbourDown struct{ ID ID }
)

// Excess says that a neighbour began to send more of something than has an effect.
type Excess struct {
	ID   ID
	What string
}

// Moved says that a link of the mesh ended, or that the own tree is another one: RPs may get the
// own datagrams by another way, and shall hear what is true of the streams.
type Moved struct{}

// MayPublish says, once, that the neighbours know this incarnation: datagrams may
// carry it as ingress RP.
type MayPublish struct{}

func (Send) action()          {}
func (SendHello) action()     {}
func (Route) action()         {}
func (RouteGone) action()     {}
func (Serve) action()         {}
func (AckGraft) action()      {}
func (NeighbourUp) action()   {}
func (NeighbourDown) action() {}
func (Excess) action()        {}
func (Moved) action()         {}
func (MayPublish) action()    {}

// Config is what a Core works with.
type Config struct {
	Self        ID
	Incarnation ids.Incarnation
	Epoch       uint64 // higher at each start, as the time in seconds
	Operator    string
	Groups      []ids.Group // that RPs replicate
	Budget      int         // children of one tree
	Mode        tree.Mode
	Alpha       int // of tree.Light, 0 for the default

	// Expect names the neighbours of an earlier life of this RP, whose datagrams still
	// go by here. The mesh is told nothing new until they are up, or for some seconds: for
	// these if there are more neighbours, which are not known yet.
	Expect     []ID
	ExpectMore bool

	Sign    func(Advert) (*Signed, error)
	Verify  func(*Signed) (node [32]byte, err error)
	Allowed func(node [32]byte) bool             // is on the list of RPs, and may have a tree
	Marks   func(ingress ids.Incarnation) []Mark // of the own datapath
	Rand    *rand.Rand                           // spreads what need not happen at once
}

// resumes reports whether there are neighbours of an earlier life.
func (c *Config) resumes() bool { return len(c.Expect) > 0 || c.ExpectMore }

// Stats tells what was refused, and what happened.
type Stats struct {
	Stale, Forged, NotAllowed, Limited uint64 // adverts
	Published                          uint64
	Downs                              uint64 // neighbours
	Grafts, Failovers, Timeouts        uint64 // of routes
	Refusals                           uint64 // routes that other RPs refused
	GivenUp                            uint64 // links to parents that did not do their part
	Refused                            uint64 // routes that were refused to other RPs
	Dismissed                          uint64 // children that no tree named for too long
	Outbids, Twins                     uint64 // adverts of others that have the own key, see outbid; Twins of one that lives
	Repairs                            uint64 // answers of neighbours that served something else than they were asked for
	NotServed                          uint64 // routes that were asked for too often
	BadEchoes                          uint64 // hellos with impossible times

	// Beyond the limits of a neighbour, without effect: RPs that were offered, adverts that
	// were asked for, digests and sums of routes.
	OffersDropped, RequestsDropped, DigestsDropped, SumsDropped uint64
	Computed                                                    uint64 // times that trees were computed

	// Changed is when an RP became known or was forgotten, or a route began, ended, came
	// into use or out of it, got a parent or lost it.
	Changed time.Time
}

// Core is the link state of one RP. Its inputs are calls with a time that never goes back,
// its outputs the actions that Actions returns after each input, and Deadline says when
// Tick is due.
//
// Stages. A neighbour is linked (LinkUp), up when hellos say that both ends hear each
// other, away while its process is dead and its datapath goes on (LinkAway), and down. The
// links that are up make the own advert; adverts make the database; the database makes, some
// time later, the graph, the tree of each ingress RP and the minimum spanning tree
// (compute); a tree names the parent and the children of this RP in a route (follow). A route
// asks for its parent: asked, acknowledged, pruned (type route); a neighbour becomes a child
// when it asks: named by the tree, a guest without that, gone (permit).
//
// Invariants, whatever neighbours send:
//   - Parents, former parents and children of a route are neighbours that are up.
//   - A route is of an incarnation that an advert of an RP which publishes has or had, two of
//     an RP at most; its number is never 0.
//   - A neighbour that no tree names is a child for Grace at a time at most. It takes no place
//     beyond the budget; one guest may keep its place for Overlap when a named child comes.
//   - What a neighbour asks for or ends changes no other child, but for a guest that makes room.
//   - Each list that a neighbour can make longer has a bound, each work that it can cause a rate.
//   - Equal databases give equal trees, in whatever order adverts came.
//   - An AckGraft comes behind the routes that it grants.
//
// Errors. Handle returns a *proto.Error when the neighbour broke the protocol, and has
// done nothing, or the first part of a list, then: the connection is to be closed, LinkDown
// follows. What honest RPs can send late, or by another view of the mesh, is no error: it is
// ignored and counted in Stats. No input panics.
type Core struct {
	cfg   Config
	begun time.Time // zero of the stamps in hellos
	now   time.Time
	stats Stats

	actions  []Action
	messages []Action // go behind the actions of the same input

	neighbours []*neighbour         // by id
	conducts   map[ID]formerConduct // of those that were neighbours shortly before
	tickAt     time.Time
	late       time.Duration // how late ticks come, at worst of those of some seconds

	database
	advertising
	trees

	routes    map[ids.Incarnation]*route
	order     []*route // by ingress
	touched   []*route // in this input
	serves    []Action // of this input, behind the routes
	lastID    uint32   // of a Graft
	treeEdges bool     // the neighbours' tree flags are to be found anew
	hasMoved  bool     // in this input, see Moved
}

// New returns the Core of an RP that starts now.
func New(now time.Time, cfg Config) *Core {
	c := &Core{cfg: cfg, begun: now, now: now, routes: make(map[ids.Incarnation]*route), conducts: make(map[ID]formerConduct)}
	c.cfg.Alpha = cmp.Or(cfg.Alpha, tree.DefaultAlpha)
	c.tickAt = now.Add(time.Duration(cfg.Rand.Int64N(int64(TreeInterval))))
	c.database.init(now)
	c.advertising.init(now, cfg)
	c.trees.init(cfg)
	return c
}

// Stats returns the counters.
func (c *Core) Stats() Stats { return c.stats }

// Actions returns what is to be done since the last call.
func (c *Core) Actions() []Action {
	c.flushAdverts()
	c.flushRoutes()
	if c.hasMoved && c.publishes {
		c.act(Moved{})
	}
	c.hasMoved = false
	actions := append(c.actions, c.messages...)
	c.actions, c.messages = nil, nil
	return actions
}

func (c *Core) act(a Action)                 { c.actions = append(c.actions, a) }
func (c *Core) send(n *neighbour, m Message) { c.messages = append(c.messages, Send{n.id, m}) }

func (c *Core) neighbour(id ID) *neighbour {
	if i, ok := c.find(id); ok {
		return c.neighbours[i]
	}
	return nil
}

func (c *Core) find(id ID) (int, bool) {
	return slices.BinarySearchFunc(c.neighbours, id, func(n *neighbour, id ID) int { return cmp.Compare(n.id, id) })
}

// LinkUp says that there is a connection to a neighbour, over which datagrams and
// messages may go.
func (c *Core) LinkUp(now time.Time, id ID) {
	c.now = now
	switch i, ok := c.find(id); {
	case ok:
		c.back(c.neighbours[i])
	case id != c.cfg.Self:
		n := newNeighbour(now, id)
		n.path = c.reached(id)
		if f, known := c.conducts[id]; known {
			n.conduct = f.conduct
			delete(c.conducts, id)
		}
		c.neighbours = slices.Insert(c.neighbours, i, n)
	}
}

// LinkAway says that the connection to a neighbour ended because its process died, while
// its datapath goes on. Until a time the routes stay as they are; LinkUp says that the
// neighbour is back, LinkDown that it is not waited for. One that was away already, because
// it was back and not heard, is waited for no longer than it was. LinkAway returns until
// when, and zero, doing nothing, when the neighbour is not waited for.
func (c *Core) LinkAway(now time.Time, id ID, until time.Time) time.Time {
	c.now = now
	n := c.neighbour(id)
	switch {
	case n == nil || !n.up:
		return time.Time{}
	case !n.isAway():
		n.awayBy = until
	case !now.Before(n.awayBy):
		return time.Time{}
	}
	n.away, n.awaySince, n.doubted, n.exchanged = n.awayBy, now, false, false
	n.sum, n.summed = false, false
	clear(n.untold)
	clear(n.offers)
	return n.away
}

// LinkDown says that the connection to a neighbour ended.
func (c *Core) LinkDown(now time.Time, id ID) {
	c.now = now
	if i, ok := c.find(id); ok {
		n := c.neighbours[i]
		c.down(n)
		c.conducts[id] = formerConduct{n.conduct, now.Add(conductMemory)}
		c.neighbours = slices.Delete(c.neighbours, i, i+1)
	}
}

// Handle takes a message of a neighbour.
func (c *Core) Handle(now time.Time, from ID, m Message) error {
	c.now = now
	n := c.neighbour(from)
	if n == nil {
		return proto.Unexpected("message 0x%02x without a link", m.Code())
	}
	switch m := m.(type) {
	case *Digest:
		return c.compare(n, m)
	case *Summary:
		return c.want(n, m.Versions)
	case *Offer:
		return c.want(n, m.Versions)
	case *Request:
		return c.answer(n, m)
	case *Adverts:
		return c.learn(n, m)
	case *Acked:
		c.acked(n, m)
	case *Graft:
		c.grafted(n, m)
	case *Prune:
		c.pruned(n, m)
	case *GraftAck:
		c.graftAcked(n, m)
	case *RouteSum:
		return c.compareRoutes(n, m)
	case *Serving:
		c.repair(n, m)
	default:
		return proto.Unexpected("message 0x%02x", m.Code())
	}
	return nil
}

// Tick does what is due.
func (c *Core) Tick(now time.Time) {
	c.now = now
	for _, n := range c.neighbours {
		switch {
		case !n.up:
		case !now.Before(n.downAt()):
			c.stats.Downs++
			c.down(n)
		case !n.doubted && !now.Before(n.doubtAt()):
			n.doubted = true
			c.doubt(n)
		}
	}
	if due(c.publishAt, now) {
		c.publish()
	}
	switch {
	case due(c.partAt, now):
		c.computePart()
	case c.partAt.IsZero() && due(c.treesAt, now):
		c.compute()
	}
	if now.Before(c.tickAt) {
		return
	}
	c.late = max(now.Sub(c.tickAt), c.late-c.late/lateMemory)
	c.tickAt = c.tickAt.Add(TreeInterval)
	if c.tickAt.Before(now) { // the process was stopped
		c.tickAt = now.Add(TreeInterval)
	}
	c.tickRoutes()
	c.markTreeEdges()
	for _, n := range c.neighbours {
		c.tickNeighbour(n)
	}
	c.tickAdvertising()
	c.tickRequests()
	if !now.Before(c.sweepAt) {
		c.sweepAt = now.Add(Interval)
		c.sweep()
	}
}

// sweep forgets what is over.
func (c *Core) sweep() {
	maps.DeleteFunc(c.conducts, func(_ ID, f formerConduct) bool { return due(f.until, c.now) })
	for _, n := range c.neighbours {
		c.tickStandings(n)
	}
	c.tickUnlisted()
	c.forgetAdverts()
}

// Deadline returns when Tick is due next.
func (c *Core) Deadline() time.Time {
	next := c.tickAt
	trees := c.treesAt
	if !c.partAt.IsZero() { // first what is under way
		trees = c.partAt
	}
	for _, at := range []time.Time{c.publishAt, trees} {
		if !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	for _, n := range c.neighbours {
		if !n.up || n.quiet(next) {
			continue
		}
		if at := n.downAt(); at.Before(next) {
			next = at
		}
		if at := n.doubtAt(); !n.doubted && at.Before(next) {
			next = at
		}
	}
	return next
}

// lateMemory is the number of ticks in which what is known about late ones fades.
const lateMemory = 64

// due reports whether a time is set and over.
func due(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

// limiter is a token bucket.
type limiter struct {
	since time.Time
	left  float64
}

// fill adds the tokens of the time that went by: rate each second, up to burst. It returns
// how many there are.
func (l *limiter) fill(now time.Time, rate, burst float64) float64 {
	if l.since.IsZero() {
		l.left = burst
	} else {
		l.left = min(burst, l.left+rate*now.Sub(l.since).Seconds())
	}
	l.since = now
	return l.left
}

// allow takes a token if there is one.
func (l *limiter) allow(now time.Time, rate, burst float64) bool {
	if l.fill(now, rate, burst) < 1 {
		return false
	}
	l.left--
	return true
}

// quota is a limit on what a neighbour sends of one kind: what is beyond has no effect.
type quota struct {
	limiter
	beyond int // messages of which something had no effect, since nothing was taken of it
}

// allow takes a token if there is one.
func (q *quota) allow(now time.Time, rate, burst float64) bool {
	if q.fill(now, rate, burst) >= burst {
		q.beyond = 0
	}
	return q.limiter.allow(now, rate, burst)
}

// dropped counts what had no effect of one message. Honest RPs do not come far beyond a limit, so
// that it is a violation in the end.
func (c *Core) dropped(n *neighbour, q *quota, counter *uint64, what string, dropped int) error {
	if dropped == 0 {
		return nil
	}
	*counter += uint64(dropped)
	if q.beyond++; q.beyond == 1 {
		c.act(Excess{n.id, what})
	}
	if q.beyond > excessMax {
		return proto.Unexpected("flood of %s", what)
	}
	return nil
}

// wait is how long it takes until there is a token.
func (l *limiter) wait(now time.Time, rate, burst float64) time.Duration {
	return time.Duration(max(0, 1-l.fill(now, rate, burst)) / rate * float64(time.Second))
}

// Neighbour is the state of a connection to another RP.
type Neighbour struct {
	ID   ID
	Up   bool // and not away
	Tree bool // at one of both ends
	RTT  time.Duration
	Cost uint32 // advertised
}

// Neighbours returns the neighbours by id.
func (c *Core) Neighbours() []Neighbour {
	all := make([]Neighbour, 0, len(c.neighbours))
	for _, n := range c.neighbours {
		all = append(all, Neighbour{n.id, n.up && !n.isAway(), n.tree || n.theirs, n.rtt, n.cost})
	}
	return all
}

// OnTree reports whether hellos to a neighbour go often.
func (c *Core) OnTree(id ID) bool {
	n := c.neighbour(id)
	return n != nil && (n.tree || n.theirs)
}
