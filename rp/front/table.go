// SPDX-License-Identifier: LGPL-3.0-or-later

package front

import (
	"container/list"
	"net/netip"
	"time"

	"github.com/ethmcast/mdcs/rp/membership"
)

// Limits bound the connections of strangers. A limit of 0 is none.
type Limits struct {
	Connections  int // in all
	Per64, Per48 int // of one /64: a host or a LAN; of one /48: a site
	Handshakes   int // under way

	// Rates is how many connections may be made, in all and of a prefix, per second. As
	// many as in 5 seconds may come at once.
	Rates membership.Rates

	// Idle is how long a connection may be without a session. IdleFull is the same when
	// more than half of all connections stand.
	Idle, IdleFull time.Duration
}

// rateOver is the time whose connections may come at once.
const rateOver = 5 * time.Second

// LimitsFor returns the limits for a number of sessions, in all and of each /64 and /48;
// 0 is no limit. There are more connections than sessions: who is refused learns the
// reason by a Leave, and who is back after a failure may come before its old connection
// has gone.
func LimitsFor(sessions, per64, per48 int) Limits {
	more := func(n, least int) int {
		if n == 0 {
			return 0
		}
		return n + max(n/8, least)
	}
	rate := func(n int) float64 { return 2 * float64(n) / rateOver.Seconds() }
	return Limits{
		Connections: more(sessions, 64),
		Per64:       more(per64, 8),
		Per48:       more(per48, 32),
		Handshakes:  1024, // a core computes 2,000 per second
		Rates:       membership.Rates{All: 2000, Per48: rate(per48), Per64: rate(per64)},
		Idle:        time.Minute, // longer than the back-off of a peer that was refused
		IdleFull:    10 * time.Second,
	}
}

// Table is who is connected from where, and who may connect. It does not know
// connections, but their places. It is not safe for concurrent use.
//
// A place begins shaking hands, then it is idle, has a session, or is idle again. When
// there is no place for a newcomer, the oldest place without a session of the largest
// prefix makes room, unless the newcomer's prefix would become as large: largest among
// the /32s, then among the /48s within, then the /64s within. So a prefix keeps out but
// those that have as much, whatever it does. A place with a session is never taken away:
// package membership bounds these.
type Table struct {
	limits  Limits
	rates   *membership.Shares
	n       int
	per48   map[netip.Prefix]int
	per64   map[netip.Prefix]int
	shaking crowd
	idle    crowd // without a session, those that shake hands among them
}

// Place is what a connection takes in a Table.
type Place struct {
	prefixes [3]netip.Prefix // /32, /48, /64
	since    time.Time       // when it was taken, or the last session ended
	end      func(Reason)    // of the shell: takes the place away
}

// NewTable returns an empty table.
func NewTable(limits Limits) *Table {
	return &Table{
		limits:  limits,
		rates:   membership.NewShares(limits.Rates, rateOver),
		per48:   make(map[netip.Prefix]int),
		per64:   make(map[netip.Prefix]int),
		shaking: newCrowd(),
		idle:    newCrowd(),
	}
}

// SetLimits changes the limits from now on. Places that are beyond them stay.
func (t *Table) SetLimits(limits Limits) {
	t.limits = limits
	t.rates.SetRates(limits.Rates)
}

// Open returns a place for a connection from addr that is to shake hands, and the place
// that has to make room for it, if there is one: that is no longer in the table. If there
// is no place, reason says why.
func (t *Table) Open(now time.Time, addr netip.Addr) (place, victim *Place, reason Reason) {
	p := &Place{prefixes: within(addr), since: now}
	switch {
	case over(t.per64[p.prefixes[2]], t.limits.Per64):
		return nil, nil, Full64
	case t.rates.Room(now, addr) != nil:
		return nil, nil, TooFast
	case over(t.per48[p.prefixes[1]], t.limits.Per48):
		from, none := &t.idle, Full48
		if over(t.shaking.root.n, t.limits.Handshakes) {
			from, none = &t.shaking, FullHandshakes // else there would be one more of these
		}
		if victim = from.victim(p.prefixes, 2); victim == nil {
			return nil, nil, none
		}
	case over(t.shaking.root.n, t.limits.Handshakes):
		if victim = t.shaking.victim(p.prefixes, 0); victim == nil {
			return nil, nil, FullHandshakes
		}
	case over(t.n, t.limits.Connections):
		if victim = t.idle.victim(p.prefixes, 0); victim == nil {
			return nil, nil, Full
		}
	}
	if err := t.rates.Take(now, addr, 1); err != nil {
		return nil, nil, TooFast // there was room before
	}
	if victim != nil {
		t.Close(victim)
	}
	t.n++
	t.per48[p.prefixes[1]]++
	t.per64[p.prefixes[2]]++
	t.shaking.add(p)
	t.idle.add(p)
	return p, victim, Taken
}

// Shaken says that the handshake of a place is done. A place that was taken away is left
// alone, here as in all methods.
func (t *Table) Shaken(p *Place) { t.shaking.remove(p) }

// SetSession says whether a place has a session.
func (t *Table) SetSession(now time.Time, p *Place, on bool) {
	if !t.has(p) {
		return
	}
	if on {
		t.idle.remove(p)
	} else if !t.idle.has(p) {
		p.since = now
		t.idle.add(p)
	}
}

// Close gives a place back.
func (t *Table) Close(p *Place) {
	if !t.has(p) {
		return
	}
	t.shaking.remove(p)
	t.idle.remove(p)
	t.n--
	decrement(t.per48, p.prefixes[1])
	decrement(t.per64, p.prefixes[2])
	p.prefixes = [3]netip.Prefix{}
}

// Expire returns the places that were without a session for too long, and takes them
// away.
func (t *Table) Expire(now time.Time) (idle []*Place) {
	limit := t.limits.Idle
	if t.limits.IdleFull != 0 && t.limits.Connections != 0 && t.n > t.limits.Connections/2 {
		limit = t.limits.IdleFull
	}
	if limit == 0 {
		return nil
	}
	for p := range t.idle.where {
		if !t.shaking.has(p) && now.Sub(p.since) >= limit {
			idle = append(idle, p)
		}
	}
	for _, p := range idle {
		t.Close(p)
	}
	return idle
}

// has reports whether a place is in the table.
func (t *Table) has(p *Place) bool { return p.prefixes[0].IsValid() }

// crowd is a set of places, by prefix.
type crowd struct {
	root  part
	where map[*Place]*list.Element
}

// part is the places of one prefix. A /64 has a list of them, the oldest first; a longer
// one has the parts of the prefixes within.
type part struct {
	n      int
	within map[netip.Prefix]*part
	places *list.List
}

func newCrowd() crowd {
	return crowd{root: part{within: make(map[netip.Prefix]*part)}, where: make(map[*Place]*list.Element)}
}

func (c *crowd) has(p *Place) bool { return c.where[p] != nil }

func (c *crowd) add(p *Place) {
	at := &c.root
	at.n++
	for i, prefix := range p.prefixes {
		next := at.within[prefix]
		if next == nil {
			if next = new(part); i == len(p.prefixes)-1 {
				next.places = list.New()
			} else {
				next.within = make(map[netip.Prefix]*part)
			}
			at.within[prefix] = next
		}
		at = next
		at.n++
	}
	c.where[p] = at.places.PushBack(p)
}

func (c *crowd) remove(p *Place) {
	e := c.where[p]
	if e == nil {
		return
	}
	delete(c.where, p)
	at := &c.root
	at.n--
	for _, prefix := range p.prefixes {
		next := at.within[prefix]
		if next.n--; next.n == 0 {
			delete(at.within, prefix)
			return
		}
		at = next
	}
	at.places.Remove(e)
}

// victim returns the place that has to make room for a newcomer with some prefixes, nil
// when the newcomer has none to displace. Only places that have the first from prefixes
// in common with it are looked at.
func (c *crowd) victim(newcomer [3]netip.Prefix, from int) *Place {
	at := &c.root
	for _, prefix := range newcomer[:from] {
		if at = at.within[prefix]; at == nil {
			return nil
		}
	}
	inside := true // the newcomer is within at
	for _, prefix := range newcomer[from:] {
		var largest *part
		for _, p := range at.within {
			if largest == nil || p.n > largest.n {
				largest = p
			}
		}
		if largest == nil {
			return nil
		}
		if inside {
			own := at.within[prefix]
			switch {
			case own == nil && largest.n < 2, own != nil && own.n < largest.n && own.n+1 >= largest.n:
				return nil // they would displace each other for ever
			case own != nil && own.n == largest.n:
				largest = own
			default:
				inside = false
			}
		}
		at = largest
	}
	if inside {
		return nil // the newest one of its own /64
	}
	return at.places.Front().Value.(*Place)
}

// within returns the prefixes that count an address.
func within(addr netip.Addr) (prefixes [3]netip.Prefix) {
	addr = addr.WithZone("")
	for i, bits := range [...]int{32, 48, 64} {
		prefixes[i] = netip.PrefixFrom(addr, min(bits, addr.BitLen())).Masked()
	}
	return prefixes
}

func over(n, limit int) bool { return limit != 0 && n >= limit }

func decrement[K comparable](m map[K]int, k K) {
	if m[k]--; m[k] == 0 {
		delete(m, k)
	}
}
