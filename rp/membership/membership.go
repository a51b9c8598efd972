// SPDX-License-Identifier: LGPL-3.0-or-later

// Package membership is who may have a session at this replication point and who
// is member of which group (SPEC section 15). It hands out session indexes and
// bounds what one site can take: an RP answers one datagram with many, so it
// must not be easy to aim.
package membership

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// Limits bound the sessions of peers. A limit of 0 is none. Sessions count from
// the first PROBE on, because an unproven endpoint costs as well.
type Limits struct {
	Sessions int // in all
	Per64    int // of one /64: a host or a LAN
	Per48    int // of one /48: a site

	// Probes is the number of PROBE datagrams to one /64 within ProbeWindow.
	Probes      int
	ProbeWindow time.Duration

	// Joins, JoinsPer48 and JoinsPer64 are joins per second, in all, of one /48 and of one
	// /64; as many may come at once. Who asks for more takes nothing from who asks for
	// little, see Shares.
	Joins, JoinsPer48, JoinsPer64 int

	// Replays is what all peers together are sent again from the cache, bytes per second.
	Replays uint64
}

// What may be sent again to the peers of a prefix, in bytes per second of UDP payload. As
// much as in replayOver may be sent at once.
const (
	replayPer48 = 16 << 20
	replayPer64 = 2 << 20
	replayOver  = 10 * time.Second
)

func (l *Limits) replays() Rates {
	return Rates{All: float64(l.Replays), Per48: replayPer48, Per64: replayPer64}
}

func (l *Limits) joins() Rates {
	return Rates{All: float64(l.Joins), Per48: float64(l.JoinsPer48), Per64: float64(l.JoinsPer64)}
}

// switches are more than joins: when another RP dies, all that stand by here are activated
// within a second, and each session, in all and of a prefix, must be able to. Shares leave
// a part of a rate for somebody new: the rates are twice the sessions, so that the last session
// of a prefix still finds room.
func (l *Limits) switches() Rates {
	least := func(joins, sessions int) float64 {
		if joins == 0 || sessions == 0 {
			return 0
		}
		return float64(max(joins, 2*sessions))
	}
	return Rates{All: least(4*l.Joins, l.Sessions), Per48: least(l.JoinsPer48, l.Per48), Per64: least(l.JoinsPer64, l.Per64)}
}

// Table is the set of sessions. It is safe for concurrent use.
//
// A session is reserved for an endpoint that is to be proven, admitted when it is
// a member of groups, suspended when it goes on without them, and released; a link to an RP neighbour and a multicast
// channel only take an index. Refusals are *proto.Error with ReasonFull.
type Table struct {
	rand io.Reader

	mu       sync.Mutex
	limits   Limits
	sessions map[ids.Session]*session
	begun    uint64 // sessions of all times
	peers    int    // sessions of peers
	per64    map[netip.Prefix]int
	per48    map[netip.Prefix]int
	members  map[ids.Group]int // admitted sessions by group
	probes   map[netip.Prefix]*probeCount
	sweep    time.Time // when old probe counts are dropped next
	joins    *Shares
	switches *Shares // into groups and out of them
	replays  *Shares // bytes
}

type session struct {
	addr   netip.Addr  // zero without a peer
	number uint64      // in the order in which sessions began
	groups []ids.Group // nil until admitted
}

// probeCount counts the PROBEs to a prefix since the window began.
type probeCount struct {
	since time.Time
	n     int
}

// New returns an empty table that draws indexes from rand.
func New(limits Limits, rand io.Reader) *Table {
	return &Table{
		limits:   limits,
		rand:     rand,
		sessions: make(map[ids.Session]*session),
		per64:    make(map[netip.Prefix]int),
		per48:    make(map[netip.Prefix]int),
		members:  make(map[ids.Group]int),
		probes:   make(map[netip.Prefix]*probeCount),
		joins:    NewShares(limits.joins(), time.Second),
		switches: NewShares(limits.switches(), time.Second),
		replays:  NewShares(limits.replays(), replayOver),
	}
}

// SetLimits changes the limits from now on. Sessions that are beyond them stay, see Beyond.
func (t *Table) SetLimits(limits Limits) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limits = limits
	t.joins.SetRates(limits.joins())
	t.switches.SetRates(limits.switches())
	t.replays.SetRates(limits.replays())
}

// Join accounts for one join from addr, or refuses it.
func (t *Table) Join(now time.Time, addr netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.joins.Take(now, addr, 1)
}

// Switch accounts for one session of addr that goes into its groups, or
// refuses it.
func (t *Table) Switch(now time.Time, addr netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.switches.Take(now, addr, 1)
}

// Replay accounts for bytes that are sent again to a peer at addr, or refuses them.
func (t *Table) Replay(now time.Time, addr netip.Addr, bytes int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.replays.Take(now, addr, float64(bytes))
}

// Reserve returns the index of a new session for a peer at addr, which is IPv6.
func (t *Table) Reserve(addr netip.Addr) (ids.Session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.room(addr); err != nil {
		return 0, err
	}
	index, err := t.index()
	if err != nil {
		return 0, err
	}
	t.start(index, addr)
	return index, nil
}

// room returns which limit leaves no room for one more session at addr.
func (t *Table) room(addr netip.Addr) error {
	p64, p48 := prefixes(addr)
	switch {
	case over(t.peers, t.limits.Sessions):
		return full("%d sessions", t.peers)
	case over(t.per64[p64], t.limits.Per64):
		return full("%d sessions of %v", t.per64[p64], p64)
	case over(t.per48[p48], t.limits.Per48):
		return full("%d sessions of %v", t.per48[p48], p48)
	}
	return nil
}

// start notes the session of a peer.
func (t *Table) start(index ids.Session, addr netip.Addr) {
	p64, p48 := prefixes(addr)
	t.begun++
	t.sessions[index] = &session{addr: addr, number: t.begun}
	t.peers++
	t.per64[p64]++
	t.per48[p48]++
}

// Beyond returns the sessions of peers that the limits have no room for: after limits were
// lowered, the newest ones.
func (t *Table) Beyond() (beyond []ids.Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []ids.Session
	for index, s := range t.sessions {
		if s.addr.IsValid() {
			all = append(all, index)
		}
	}
	slices.SortFunc(all, func(a, b ids.Session) int { return cmp.Compare(t.sessions[a].number, t.sessions[b].number) })
	per64, per48 := make(map[netip.Prefix]int), make(map[netip.Prefix]int)
	kept := 0
	for _, index := range all {
		p64, p48 := prefixes(t.sessions[index].addr)
		if over(kept, t.limits.Sessions) || over(per64[p64], t.limits.Per64) || over(per48[p48], t.limits.Per48) {
			beyond = append(beyond, index)
			continue
		}
		kept++
		per64[p64]++
		per48[p48]++
	}
	return beyond
}

// Link returns the index of a new session that is not a peer's and counts for no
// limit: with an RP neighbour, or of a channel.
func (t *Table) Link() (ids.Session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	index, err := t.index()
	if err != nil {
		return 0, err
	}
	t.sessions[index] = &session{}
	return index, nil
}

// index draws an index that is not in use. It is random so that nobody off the
// path knows it.
func (t *Table) index() (ids.Session, error) {
	var b [4]byte
	for {
		if _, err := io.ReadFull(t.rand, b[:]); err != nil {
			return 0, fmt.Errorf("no random session index: %w", err)
		}
		index := ids.Session(binary.BigEndian.Uint32(b[:]))
		if index != 0 && t.sessions[index] == nil {
			return index, nil
		}
	}
}

// Admit makes a reserved session a member of groups. It does nothing for a
// session that is unknown or a member already.
func (t *Table) Admit(index ids.Session, groups []ids.Group) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[index]
	if s == nil || s.groups != nil {
		return
	}
	s.groups = slices.Clone(groups)
	for _, g := range s.groups {
		t.members[g]++
	}
}

// Restore takes an index that a session had before this process; addr is zero for
// one that is not a peer's. Limits that were lowered since hold for it, too.
func (t *Table) Restore(index ids.Session, addr netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sessions[index] != nil {
		return full("session %08x is in use", index)
	}
	if !addr.IsValid() {
		t.sessions[index] = &session{}
		return nil
	}
	if err := t.room(addr); err != nil {
		return err
	}
	t.start(index, addr)
	return nil
}

// Suspend takes a session out of its groups. It does nothing for one that is in none.
func (t *Table) Suspend(index ids.Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.sessions[index]; s != nil {
		t.suspend(s)
	}
}

func (t *Table) suspend(s *session) {
	for _, g := range s.groups {
		decrement(t.members, g)
	}
	s.groups = nil
}

// Release ends a session; an unknown index is no error.
func (t *Table) Release(index ids.Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[index]
	if s == nil {
		return
	}
	delete(t.sessions, index)
	t.suspend(s)
	if s.addr.IsValid() {
		t.peers--
		p64, p48 := prefixes(s.addr)
		decrement(t.per64, p64)
		decrement(t.per48, p48)
	}
}

// Probe accounts for one PROBE to addr, or refuses it.
func (t *Table) Probe(now time.Time, addr netip.Addr) error {
	p64, _ := prefixes(addr)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.limits.Probes == 0 {
		return nil
	}
	if !now.Before(t.sweep) {
		for p, c := range t.probes {
			if now.Sub(c.since) >= t.limits.ProbeWindow {
				delete(t.probes, p)
			}
		}
		t.sweep = now.Add(t.limits.ProbeWindow)
	}
	c := t.probes[p64]
	if c == nil || now.Sub(c.since) >= t.limits.ProbeWindow {
		c = &probeCount{since: now}
		t.probes[p64] = c
	}
	if c.n >= t.limits.Probes {
		return full("%d probes to %v within %v", c.n, p64, t.limits.ProbeWindow)
	}
	c.n++
	return nil
}

// Sessions returns the number of peers' sessions, admitted or not.
func (t *Table) Sessions() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.peers
}

// Full returns the number of peers' sessions, and whether there is room for no more.
func (t *Table) Full() (sessions int, full bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.peers, over(t.peers, t.limits.Sessions)
}

// Members returns the number of members of each group that has any.
func (t *Table) Members() map[ids.Group]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	members := make(map[ids.Group]int, len(t.members))
	for g, n := range t.members {
		members[g] = n
	}
	return members
}

func over(n, limit int) bool { return limit != 0 && n >= limit }

func full(format string, args ...any) error {
	return &proto.Error{Reason: proto.ReasonFull, Detail: fmt.Sprintf(format, args...)}
}

func prefixes(addr netip.Addr) (p64, p48 netip.Prefix) {
	addr = addr.WithZone("")
	return netip.PrefixFrom(addr, 64).Masked(), netip.PrefixFrom(addr, 48).Masked()
}

func decrement[K comparable](m map[K]int, k K) {
	if m[k]--; m[k] == 0 {
		delete(m, k)
	}
}
