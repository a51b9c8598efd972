// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"math"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
)

// neighbour is an RP to which there is a connection.
type neighbour struct {
	id ID

	// What each Deadline looks at.
	up       bool
	doubted  bool          // missed since it was heard, so that backups were asked
	heard    time.Time     // of anything
	interval time.Duration // that it announced
	slack    time.Duration // likewise: a process without enough of a CPU sends late
	polled   time.Time     // asked whether it lives, since another RP lost it; zero for not
	away     time.Time     // until when it is up without a process that hears and is heard; zero for not

	// Hellos.
	since     time.Time // of the connection, or of the last change of up
	awayBy    time.Time // until when it had to be back
	awaySince time.Time
	hellos    int    // heard since the link came or went down
	stamp     uint32 // its newest, which came at stampAt
	stampAt   time.Time
	sendAt    time.Time // of the next hello
	tree      bool      // the link is on a tree in use here
	treeSince time.Time
	theirs    bool // there
	slowing   int  // hellos that still go often, although a longer interval is announced

	// Cost.
	rtt      time.Duration           // the lower quartile of rtts, 0 before the first
	rtts     [rttsKept]time.Duration // the newest, as a ring
	measured int                     // ever
	cost     uint32                  // advertised

	// Adverts.
	path       bool           // the trees reach it, as of the last computation
	spans      bool           // adverts go to it at once
	untold     map[ID]bool    // to be told
	tellAt     time.Time      // when
	adverts    []Aged         // to be sent after this input
	ack        bool           // with an acknowledgement
	offers     map[ID]Version // of it, newer than what is here, for which it was not asked
	requests   []ID           // after this input
	exchanged  bool           // a digest went to it since both ends are up
	digestAt   time.Time
	comparedAt time.Time // when the last digest went to it

	// Routes.
	graft   []ids.Incarnation // ingress RPs to ask for after this input
	prune   []ids.Incarnation
	sum     bool // after this input, what it is asked for
	sumAt   time.Time
	summed  bool                        // it may answer that it does something else
	waiting map[ids.Incarnation]waiting // by ingress RP

	conduct
}

// conduct is what a neighbour did, and what it may still cause. It outlasts the connection for
// a time, see Core.conducts: to connect anew is no way around a limit.
type conduct struct {
	lost      int // times that it was found dead while it was up for less than holdMemory
	polls     limiter
	verify    limiter
	served    limiter
	joins     limiter
	offered   quota
	answers   quota
	digests   quota
	sums      quota
	standings map[ids.Incarnation]*standing // by ingress RP
}

// formerConduct is the conduct of an RP without a connection.
type formerConduct struct {
	conduct
	until time.Time // when it is forgotten
}

// conductMemory is for how long the conduct of an RP without a connection is known: longer than
// each of its limits takes to be what it was.
const conductMemory = time.Minute + 5*time.Second

func newNeighbour(now time.Time, id ID) *neighbour {
	return &neighbour{
		id: id, since: now, interval: Interval,
		untold: make(map[ID]bool), offers: make(map[ID]Version),
		waiting: make(map[ids.Incarnation]waiting), conduct: conduct{standings: make(map[ids.Incarnation]*standing)},
	}
}

// trial is how long hellos go often to a neighbour that does not answer.
const trial = 10 * time.Second

// answerTime is how long the answer to a digest, and what is asked for then, take besides
// two round trips.
const answerTime = 300 * time.Millisecond

// lostMax bounds what is counted of the times that a neighbour was lost.
const lostMax = 16

// awayDoubt is how long nothing may come from a neighbour that is away, until backups are asked
// as well: that its datapath goes on is only what it said itself.
const awayDoubt = time.Second

// A neighbour that says that it sends seldom, or late, is found dead late. The first is not
// believed when it knows since some time that the link is on a tree, the second only so far
// that backups are asked in time.
const (
	treeKnown    = 2 * Interval
	slackTrusted = time.Second
)

// pollRate and pollBurst bound how often a neighbour is asked for a sign of life because of what
// other RPs say.
const (
	pollRate  = 0.2
	pollBurst = 3
)

// lateness is how late a hello may come, as share of the interval.
const lateness = 5

// rttTrusted bounds the round-trip time that times are made of. A neighbour can claim a longer one by
// its LINK_HELLOs: then its link costs more, but nobody waits longer.
const rttTrusted = 500 * time.Millisecond

// trip returns the round-trip time of a link as far as times depend on it.
func (n *neighbour) trip() time.Duration { return min(n.rtt, rttTrusted) }

func (n *neighbour) isAway() bool { return !n.away.IsZero() }

func (n *neighbour) downAt() time.Time {
	if n.isAway() {
		return n.away
	}
	at := n.heard.Add(Missed*n.interval + n.interval/lateness + n.slack)
	if !n.polled.IsZero() {
		if p := n.polled.Add(Missed*TreeInterval + TreeInterval/lateness + n.trip() + n.slack); p.Before(at) {
			return p
		}
	}
	return at
}

func (n *neighbour) doubtAt() time.Time {
	if n.isAway() { // its datapath goes on, or nothing at all comes
		if n.heard.After(n.awaySince) {
			return n.heard.Add(awayDoubt)
		}
		return n.awaySince.Add(awayDoubt)
	}
	return n.heard.Add((Missed-1)*n.interval + n.interval/lateness + min(n.slack, slackTrusted))
}

// quiet reports, at little cost, that nothing is due of a neighbour before a time: it was
// heard a short time before, and nothing but that it falls silent can happen to it.
func (n *neighbour) quiet(until time.Time) bool {
	return n.away.IsZero() && n.polled.IsZero() && until.Sub(n.heard) <= (Missed-1)*n.interval
}

// alive notes a sign of life. One from before the neighbour was asked for one is no answer.
func (n *neighbour) alive(at time.Time) {
	n.heard, n.doubted = at, false
	if !at.Before(n.polled) {
		n.polled = time.Time{}
	}
}

// Heard says that data came from a neighbour.
func (c *Core) Heard(now time.Time, from ID) {
	if n := c.neighbour(from); n != nil {
		n.alive(now)
	}
}

// HeardHello takes a neighbour's hello, which may have come some time before it is handled.
func (c *Core) HeardHello(now time.Time, from ID, h Hello) {
	if now.After(c.now) {
		c.now = now
	}
	n := c.neighbour(from)
	if n == nil {
		return
	}
	n.alive(now)
	n.interval, n.slack = h.interval(), h.slack()
	if n.tree && now.Sub(n.treeSince) > treeKnown {
		n.interval = TreeInterval
	}
	n.stamp, n.stampAt = h.Stamp, now
	n.theirs = h.Tree
	if h.Echoes {
		c.measure(n, time.Duration(c.micros(now)-h.Echo-h.Hold)*time.Microsecond)
	}
	if h.Poll {
		c.hello(n)
	}
	switch {
	case n.up && n.isAway():
		if h.Up {
			c.renew(n)
		}
	case n.up && !h.Up && now.Sub(n.since) > 2*Interval:
		c.down(n) // it does not hear this RP, or came back meanwhile
	case !n.up:
		n.hellos++
		if n.hellos >= hellosUntilUp && n.rtt > 0 && now.Sub(n.since) >= n.hold() {
			c.comeUp(n)
		}
	}
	switch {
	case !h.Up:
		n.exchanged = false
	case n.up && !n.exchanged:
		// From now on, each end tells the other what is new: what was before is in
		// what it answers a digest with.
		n.exchanged = true
		c.exchangeDatabase(n)
	}
}

// back gives a neighbour whose next process was met time to hear, and to be heard.
func (c *Core) back(n *neighbour) {
	if n.isAway() {
		n.away = c.now.Add(Missed * Interval)
	}
}

// renew asks the next process of a neighbour, which knows nothing, for what the one
// before was asked for. What that one asked for goes on until it says otherwise.
func (c *Core) renew(n *neighbour) {
	n.away, n.since = time.Time{}, c.now
	n.sumAt = c.now.Add(2 * RouteSumDelay)
	for _, r := range c.order {
		if r.asks(n.id) != nil {
			c.ask(r, n.id)
		}
		if r.parent == n.id {
			c.overlap(r) // the backups that were asked meanwhile
		}
	}
	c.act(NeighbourUp{n.id})
}

// exchangeDatabase sends a digest soon. The first neighbour of an RP that starts
// brings the database, the others what that one lacked.
func (c *Core) exchangeDatabase(n *neighbour) {
	n.digestAt = c.now
	if len(c.entries) > 1 || len(c.requested) > 0 {
		return
	}
	for _, other := range c.neighbours {
		if other != n && other.exchanged {
			n.digestAt = c.now.Add(Interval)
		}
	}
}

// micros is the clock of stamps. It does not follow the date.
func (c *Core) micros(now time.Time) uint32 { return uint32(now.Sub(c.begun).Microseconds()) }

// measure takes a round-trip time. A neighbour can make its own link look shorter by
// its Hold, never below 1, and never those of others: cost is the worse of two ends.
func (c *Core) measure(n *neighbour, rtt time.Duration) {
	switch {
	case rtt > trial: // also what became negative
		c.stats.BadEchoes++
	default:
		n.rtts[n.measured%rttsKept] = max(rtt, 1)
		n.measured++
		sorted := n.rtts
		newest := sorted[:min(n.measured, rttsKept)]
		slices.Sort(newest)
		n.rtt = newest[len(newest)/4]
	}
}

// rttsKept is the number of round-trip times of which the lower quartile counts: neither
// jitter nor a busy CPU shall look like another cost, which the whole mesh is told.
const rttsKept = 32

func costOf(rtt time.Duration) uint32 { return uint32(max(rtt/CostUnit, 1)) }

// hold is how long a neighbour that is lost again and again is not up.
func (n *neighbour) hold() time.Duration {
	if n.lost < 2 {
		return 0
	}
	return min(holdFirst<<(n.lost-2), holdLast)
}

func (c *Core) comeUp(n *neighbour) {
	n.up, n.since, n.cost = true, c.now, costOf(n.rtt)
	n.digestAt = c.now.Add(DigestDelay)
	if c.awaited == nil {
		c.ackBy = c.now.Add(JoinDelay + AckDelay) // there is somebody to tell
	}
	c.act(NeighbourUp{n.id})
	delay := LinkDelay
	if !n.path {
		delay = JoinDelay
	}
	if c.expected[n.id] {
		if delete(c.expected, n.id); len(c.expected) == 0 {
			delay = 0
		}
	}
	if c.cfg.resumes() {
		n.sumAt = c.settledAt // who asks for little yet must not prune the rest
	}
	c.publishWithin(delay)
}

// down ends what depends on a neighbour that is up.
func (c *Core) down(n *neighbour) {
	n.hellos = 0
	if !n.up {
		return
	}
	if c.now.Sub(n.since) > holdMemory {
		n.lost = 0
	}
	n.lost = min(n.lost+1, lostMax)
	n.up, n.since, n.polled, n.away = false, c.now, time.Time{}, time.Time{}
	n.spans, n.theirs, n.exchanged = false, false, false
	n.graft, n.prune, n.adverts = nil, nil, nil
	n.sum, n.summed = false, false
	clear(n.untold)
	clear(n.offers)
	clear(n.waiting)
	delete(c.awaited, n.id)
	c.hasMoved = true
	c.act(NeighbourDown{n.id})
	c.lost(n)
	c.publishWithin(0)
}

// suspect asks a neighbour that another RP lost for a sign of life.
func (c *Core) suspect(id ID) {
	n := c.neighbour(id)
	if n == nil || !n.up || !n.polled.IsZero() || c.now.Sub(n.heard) < TreeInterval ||
		!n.polls.allow(c.now, pollRate, pollBurst) {
		return
	}
	n.polled = c.now
	c.hello(n)
}

// compareSoon has a neighbour and this RP compare their adverts, since they seem to have
// different trees.
func (c *Core) compareSoon(n *neighbour) {
	if n.exchanged && c.now.Sub(n.comparedAt) >= Interval {
		n.digestAt = c.now
	}
}

func (c *Core) tickNeighbour(n *neighbour) {
	if n.up && !c.now.Before(n.since.Add(Interval)) {
		if cost := costOf(n.rtt); differs(cost, n.cost) {
			n.cost = cost
			c.publishWithin(LinkDelay)
		}
	}
	if n.often(c.now) || !c.now.Before(n.sendAt) || !n.polled.IsZero() {
		c.hello(n)
	}
	if n.up && !c.now.Before(n.digestAt) && (len(c.requested) == 0 || c.now.Sub(n.digestAt) > 2*RequestDelay) {
		salt := c.cfg.Rand.Uint64()
		sums := c.Sums(salt)
		c.send(n, &Digest{salt, sums[:]})
		n.comparedAt = c.now
		if c.toldAt.IsZero() {
			c.toldAt = c.now.Add(answerTime + 2*n.trip())
		}
		n.digestAt = c.now.Add(DigestDelay + time.Duration(c.cfg.Rand.Int64N(int64(DigestDelay/4)))) // each neighbour at another time
	}
	if n.up && !n.isAway() && (n.tree || n.theirs) && !c.now.Before(n.sumAt) {
		n.sum = true
		n.sumAt = c.now.Add(RouteSumDelay + time.Duration(c.cfg.Rand.Int64N(int64(RouteSumDelay/4))))
	}
	if len(n.untold) > 0 && !c.now.Before(n.tellAt) {
		c.tell(n)
	}
}

// differs tells whether a cost is so far from the one that is advertised, that trees
// shall follow: by a tenth and by half a millisecond.
func differs(cost, advertised uint32) bool {
	d := max(cost, advertised) - min(cost, advertised)
	return 10*d > advertised && d > 5
}

func (n *neighbour) wantsOften(now time.Time) bool {
	return n.tree || n.theirs || n.isAway() || !n.up && now.Sub(n.since) < trial
}

// slowHellos is how many hellos that announce a longer interval still go in the shorter one.
const slowHellos = 5

// often reports whether hellos go often. When that ends, a few more go that announce
// it: the loss of one must not look like the loss of many.
func (n *neighbour) often(now time.Time) bool {
	if n.wantsOften(now) {
		n.slowing = slowHellos
		return true
	}
	if n.slowing == 0 {
		return false
	}
	n.slowing--
	return true
}

// Hellos returns a hello to each neighbour, also to those that are not due, and does nothing else. It is
// for an RP that cannot call Tick for now. It may be called by Config.Marks.
func (c *Core) Hellos(now time.Time) []SendHello {
	c.now = now
	c.tickAt = now.Add(TreeInterval) // the next ones are not late
	hellos := make([]SendHello, 0, len(c.neighbours))
	for _, n := range c.neighbours {
		hellos = append(hellos, c.helloTo(n))
	}
	return hellos
}

func (c *Core) hello(n *neighbour) { c.messages = append(c.messages, c.helloTo(n)) }

func (c *Core) helloTo(n *neighbour) SendHello {
	interval := Interval
	if n.wantsOften(c.now) {
		interval = TreeInterval
	}
	h := Hello{Stamp: c.micros(c.now), Interval: uint16(interval.Milliseconds()), Tree: n.tree, Up: n.up, Poll: !n.polled.IsZero()}
	h.Slack = uint8(min(c.late/slackUnit, math.MaxUint8))
	if !n.stampAt.IsZero() && c.now.Sub(n.stampAt) < trial {
		h.Echoes, h.Echo, h.Hold = true, n.stamp, uint32(c.now.Sub(n.stampAt).Microseconds())
	}
	n.sendAt = c.now.Add(Interval)
	return SendHello{n.id, h}
}
