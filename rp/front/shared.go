// SPDX-License-Identifier: LGPL-3.0-or-later

package front

import (
	"net/netip"
	"sync"
)

// shared is places that strangers use for a short time. Prefixes that ask for more than there is
// get equal parts, and each leaves such a part free for a prefix that is new, as
// membership.Shares has it for rates: the room of a /32 is four times what is free, less what
// it has, the room of a /48 its limit or the room of its /32, less what it has, and a /64 may
// have less than the room of its /48. It is safe for concurrent use.
type shared struct {
	limit, per48 int

	mu     sync.Mutex
	taken  int
	within map[netip.Prefix]int // those taken, of each /32, /48 and /64
}

func newShared(limit, per48 int) *shared {
	return &shared{limit: limit, per48: per48, within: make(map[netip.Prefix]int)}
}

// take reports whether there was a place for an address, which has it then until give.
func (s *shared) take(addr netip.Addr) bool {
	prefixes := within(addr)
	s.mu.Lock()
	defer s.mu.Unlock()
	free := s.limit - s.taken
	room := 4*free - s.within[prefixes[0]]
	room = min(room, s.per48) - s.within[prefixes[1]]
	if free == 0 || s.within[prefixes[2]] >= room {
		return false
	}
	s.taken++
	for _, p := range prefixes {
		s.within[p]++
	}
	return true
}

// give gives the place of an address back.
func (s *shared) give(addr netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	for _, p := range within(addr) {
		decrement(s.within, p)
	}
}

// inUse returns how many places are taken.
func (s *shared) inUse() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}
