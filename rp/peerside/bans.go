// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/proto"
)

const (
	// A node that broke the protocol is not let in for banFirst, then for twice as long
	// each time, at most banLongest. Its violations are forgotten banMemory after the
	// last one.
	banFirst   = time.Minute
	banLongest = time.Hour
	banMemory  = 2 * time.Hour

	// addrStrikes is how many violations an address may have, by whatever nodes, before
	// it is banned like a node.
	addrStrikes = 3

	// netStrikes is how many nodes of a /64 may break the protocol, each with a key and an
	// address that did not before, until the /64 is banned like a node, and siteStrikes how many
	// of a /48, each in a /64 where none did before. A household or a rack has fewer that are
	// broken, and who makes up keys and addresses gets no further. They are as many as the
	// sessions that a prefix may have by default.
	netStrikes, siteStrikes = 16, 256

	// maxBans bounds the memory. With more, an eighth is forgotten, of the sites (/48) that
	// have most: nodes and addresses that are let in before those that are banned, the oldest
	// first, and no ban of the operator. So a site pushes out others only when it has no more than they.
	maxBans = 1 << 16
)

// BanNode keeps a node out for a time from now on, and ends its sessions; 0 lets it in again. With
// an ErrUnkept it is done, for this process; another error is one of too many bans, and nothing is.
func (s *Server) BanNode(id enode.ID, length time.Duration) error {
	return s.ban(id, length, func(c *conn) bool { return c.id == id })
}

// BanAddr keeps an address out in the way of BanNode.
func (s *Server) BanAddr(addr netip.Addr, length time.Duration) error {
	return s.ban(addr, length, func(c *conn) bool { return c.addr == addr })
}

// BanPrefix keeps all addresses of a prefix out in the way of BanNode. It lets in again who is
// banned by this prefix, not who is banned besides.
func (s *Server) BanPrefix(p netip.Prefix, length time.Duration) error {
	if p.IsSingleIP() {
		return s.BanAddr(p.Addr(), length)
	}
	p = p.Masked()
	return s.ban(p, length, func(c *conn) bool { return p.Contains(c.addr) })
}

// Ban says who is not let in, until when and why.
type Ban struct {
	Node     enode.ID     // zero when it is a prefix
	Prefix   netip.Prefix // of one address, or more
	Until    time.Time
	Operator bool   // an operator set it
	Why      string // what was wrong, of the last violation; "" for an operator's
}

// Bans returns what is banned now, the ban that ends first before the others.
func (s *Server) Bans() []Ban { return s.bans.list(time.Now()) }

// EndSession ends the connections of a node, and with them its session, and returns how many
// these were. The node may come again.
func (s *Server) EndSession(id enode.ID) (ended int) {
	for _, c := range s.connections() {
		if c.id == id {
			ended++
			c.mail.post(func(time.Time) {
				c.end(&proto.Error{Reason: proto.ReasonQuit, Detail: "ended by the operator"}, p2p.DiscRequested)
			})
		}
	}
	return ended
}

// BannedAddr reports whether an address is kept out now.
func (s *Server) BannedAddr(addr netip.Addr) bool {
	return s.bans.check(time.Now(), addr) != nil
}

func (s *Server) ban(key any, length time.Duration, of func(*conn) bool) error {
	changed, err := s.bans.set(time.Now(), key, length)
	if err != nil || !changed {
		return err
	}
	for _, c := range s.connections() {
		if length > 0 && of(c) {
			c.mail.post(func(time.Time) {
				c.end(&proto.Error{Reason: proto.ReasonDenied, Detail: fmt.Sprintf("banned for %v", length)}, p2p.DiscUselessPeer)
			})
		}
	}
	if s.banFile.path != "" {
		return s.banFile.save(length > 0, func() []keptBan { return s.bans.kept(time.Now()) })
	}
	if length > 0 {
		return fmt.Errorf("%w: rpd has no state directory (StateDirectory= of its unit, or $STATE_DIRECTORY)", ErrUnkept)
	}
	return nil
}

// loadBans takes the bans that the operator set before this process began.
func (s *Server) loadBans() {
	all, err := s.banFile.load()
	if err != nil {
		s.cfg.Log.Warn("bans of the operator do not hold: their file cannot be read", "file", s.banFile.path, "err", err,
			"cure", "correct the file and start rpd again, or remove it")
		return
	}
	now, n := time.Now(), 0
	for _, x := range all {
		if !now.Before(x.Until) {
			continue
		}
		n++
		switch p := x.Prefix; {
		case x.Node != nil:
			s.bans.put(now, *x.Node, x.Until)
		case p.IsSingleIP():
			s.bans.put(now, p.Addr(), x.Until)
		default:
			s.bans.put(now, *p, x.Until)
		}
	}
	if n > 0 {
		s.cfg.Log.Info("bans of the operator go on", "bans", n, "file", s.banFile.path)
	}
}

// bans are the nodes and addresses that are not let in, until when. They are safe for
// concurrent use.
type bans struct {
	made atomic.Uint64

	mu       sync.Mutex
	by       map[any]*ban // by enode.ID, netip.Addr and netip.Prefix
	max      int          // of these, as maxBans
	prefixes [129]bool    // by length: whether there was ever such a prefix
	sweep    time.Time
}

type ban struct {
	site    netip.Prefix // /48 that the violation came from
	strikes int
	first   time.Time // violation that counts, of a prefix
	last    time.Time // violation
	until   time.Time
	set     time.Time // until when the operator keeps it out
	why     string    // what was wrong last
}

// banned reports whether the node or address is not let in.
func (x *ban) banned(now time.Time) bool { return now.Before(x.until) }

func newBans() *bans { return &bans{by: make(map[any]*ban), max: maxBans} }

// check returns why a node or an address is not let in: what is banned of the keys.
func (b *bans) check(now time.Time, keys ...any) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, key := range keys {
		x := b.by[key]
		if addr, ok := key.(netip.Addr); ok && (x == nil || !x.banned(now)) {
			x = b.around(now, addr)
		}
		if x != nil && x.banned(now) {
			return &proto.Error{Reason: proto.ReasonDenied, Detail: fmt.Sprintf("banned for %v more", x.until.Sub(now).Round(time.Second))}
		}
	}
	return nil
}

// around returns the ban of a prefix that an address is in, nil for none.
func (b *bans) around(now time.Time, addr netip.Addr) *ban {
	for bits, some := range b.prefixes {
		if p, err := addr.Prefix(bits); some && err == nil {
			if x := b.by[p]; x != nil && x.banned(now) {
				return x
			}
		}
	}
	return nil
}

// maxWhy bounds what is kept of a violation, in bytes.
const maxWhy = 100

// strike notes a violation, and returns for how long the node is banned.
func (b *bans) strike(now time.Time, id enode.ID, addr netip.Addr, why string) time.Duration {
	why = strings.Clone(why[:min(len(why), maxWhy)]) // the rest of a longer text is let go
	b.mu.Lock()
	defer b.mu.Unlock()
	// Loopback and link-local prefixes are no site's: whoever is there shares them.
	fresh := b.by[id] == nil && b.by[addr] == nil && addr.Is6() && addr.IsGlobalUnicast()
	for _, wide := range []struct{ bits, free int }{{64, netStrikes}, {48, siteStrikes}} {
		if p, err := addr.Prefix(wide.bits); err == nil && fresh {
			fresh = b.by[p] == nil
			b.prefixes[wide.bits] = true
			b.add(now, p, addr, wide.free, why)
		}
	}
	b.add(now, addr, addr, addrStrikes, why)
	return b.add(now, id, addr, 1, why)
}

// list returns what is banned now, the ban that ends first before the others.
func (b *bans) list(now time.Time) (all []Ban) {
	b.mu.Lock()
	for key, x := range b.by {
		if !x.banned(now) {
			continue
		}
		ban := Ban{Until: x.until, Operator: !x.set.Before(x.until), Why: x.why}
		switch key := key.(type) {
		case enode.ID:
			ban.Node = key
		case netip.Addr:
			ban.Prefix = netip.PrefixFrom(key, key.BitLen())
		case netip.Prefix:
			ban.Prefix = key
		}
		all = append(all, ban)
	}
	b.mu.Unlock()
	slices.SortFunc(all, func(x, y Ban) int { return x.Until.Compare(y.Until) })
	return all
}

// add notes a violation from an address of a node, address or prefix that is banned from the
// free-th one on, and returns for how long it is. A longer ban stays as it is.
func (b *bans) add(now time.Time, key any, from netip.Addr, free int, why string) time.Duration {
	b.forget(now)
	x := b.by[key]
	if x == nil {
		x = new(ban)
		b.by[key] = x
	}
	x.site, _ = from.Prefix(48) // zero for IPv4: one site
	if _, ok := key.(netip.Prefix); ok && now.Sub(x.first) >= banMemory {
		// In a network that many share, somebody is wrong now and then: that adds up to no ban.
		x.strikes, x.first = 0, now
	}
	x.strikes++
	x.last = now
	if x.strikes < free {
		return 0
	}
	length := banLongest
	if n := x.strikes - free; n < 6 {
		length = min(length, banFirst<<n)
	}
	if until := now.Add(length); until.After(x.until) {
		x.until, x.why = until, why
	}
	b.made.Add(1)
	return x.until.Sub(now)
}

// set bans a node, an address or a prefix for a time, 0 to let it in again, and returns whether
// the bans of the operator changed.
func (b *bans) set(now time.Time, key any, length time.Duration) (changed bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.by[key]
	was := before != nil && now.Before(before.set)
	if length <= 0 {
		delete(b.by, key)
		return was, nil
	}
	n := 0
	for _, x := range b.by {
		if now.Before(x.set) {
			n++
		}
	}
	if n >= maxSet && !was {
		return false, fmt.Errorf("there are %d bans of operators, which is all there may be: ban a prefix in place of its addresses, or unban some", n)
	}
	b.forget(now)
	b.place(now, key, now.Add(length))
	return true, nil
}

// put bans until a time, as set did in another process.
func (b *bans) put(now time.Time, key any, until time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.place(now, key, until)
}

// place enters a ban of the operator. The caller holds mu.
func (b *bans) place(now time.Time, key any, until time.Time) {
	if p, ok := key.(netip.Prefix); ok {
		b.prefixes[p.Bits()] = true
	}
	b.by[key] = &ban{strikes: 1, last: now, until: until, set: until}
	b.made.Add(1)
}

// kept returns the bans of the operator.
func (b *bans) kept(now time.Time) []keptBan {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := []keptBan{}
	for key, x := range b.by {
		if !now.Before(x.set) {
			continue
		}
		kept := keptBan{Until: x.set.UTC().Round(0)}
		switch key := key.(type) {
		case enode.ID:
			kept.Node = &key
		case netip.Addr:
			kept.Prefix = new(netip.PrefixFrom(key, key.BitLen()))
		case netip.Prefix:
			kept.Prefix = &key
		}
		all = append(all, kept)
	}
	slices.SortFunc(all, func(x, y keptBan) int { return x.Until.Compare(y.Until) })
	return all
}

// forget drops what is over, now and then, and more when there is too much.
func (b *bans) forget(now time.Time) {
	if now.Before(b.sweep) && len(b.by) < b.max {
		return
	}
	b.sweep = now.Add(time.Minute)
	maps.DeleteFunc(b.by, func(_ any, x *ban) bool { return !x.banned(now) && now.Sub(x.last) >= banMemory })
	if len(b.by) < b.max {
		return
	}
	type entry struct {
		key any
		*ban
	}
	sites := make(map[netip.Prefix][]entry)
	for key, x := range b.by {
		if !now.Before(x.set) {
			sites[x.site] = append(sites[x.site], entry{key, x})
		}
	}
	share := shareOf(sites, b.max/8)
	for _, all := range sites {
		if len(all) <= share {
			continue
		}
		slices.SortFunc(all, func(x, y entry) int {
			if banned := x.banned(now); banned != y.banned(now) {
				if banned {
					return 1
				}
				return -1
			}
			return x.last.Compare(y.last)
		})
		for _, x := range all[:len(all)-share] {
			delete(b.by, x.key)
		}
	}
}

// shareOf returns how many entries a site may keep, so that over fall away of all, or as many as there are.
func shareOf[E any](sites map[netip.Prefix][]E, over int) (share int) {
	var sizes []int
	for _, all := range sites {
		sizes = append(sizes, len(all))
	}
	slices.Sort(sizes)
	for i := len(sizes) - 1; i >= 0; i-- { // of the n largest sites each keeps the same
		n, next := len(sizes)-i, 0
		if i > 0 {
			next = sizes[i-1]
		}
		if room := n * (sizes[i] - next); room < over {
			over -= room
			continue
		}
		return sizes[i] - (over+n-1)/n
	}
	return 0
}

// len returns how many are banned.
func (b *bans) len() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for _, x := range b.by {
		if x.banned(now) {
			n++
		}
	}
	return n
}
