// SPDX-License-Identifier: LGPL-3.0-or-later

package datapath

import (
	"iter"
	"net/netip"
	"time"
)

// SiteKept is how long the bucket of a site is kept when the last session of the site has
// ended (SPEC section 11): a site that comes back meanwhile finds it as it was.
const SiteKept = 2 * time.Second

// shareOfBurst is the part of the burst of all copies that all sites together may take
// beyond what flows back: half of what is left when no site takes more than its share.
const shareOfBurst = 4

// Site is what has a share of the limit of all copies: the /48 of publishers, or an
// RP neighbour (SPEC 6.7).
type Site struct {
	RP   bool
	Addr netip.AddrPort // of the RP; of publishers the first address of their /48, without port
}

// Site returns the site whose share the datagrams of the session use. A session that
// nothing is replicated from has none, and ok is false.
func (s *Session) Site() (site Site, ok bool) {
	switch {
	case s.Role == Mesh:
		return Site{RP: true, Addr: s.Addr}, true
	case s.Role == Peer && s.Publish:
		prefix := netip.PrefixFrom(s.Addr.Addr().WithZone(""), 48).Masked()
		return Site{Addr: netip.AddrPortFrom(prefix.Addr(), 0)}, true
	}
	return Site{}, false
}

// Sites are the sites of an engine's sessions. T is where the engine keeps the bucket of
// one. Times are on the engine's clock. The zero Sites has none.
type Sites[T any] struct {
	places map[Site]*Place[T]
	gone   []*Place[T] // without sessions, by the time of that; some have sessions again
	counts [2]int      // sites with sessions: of publishers, and RP neighbours
}

// Place is what Sites keeps of a site.
type Place[T any] struct {
	Site     Site
	Bucket   T
	sessions int
	left     time.Duration
}

// Enter counts one more session of a site. A bucket for a site that has none is made by
// fresh; when that fails nothing has changed.
func (s *Sites[T]) Enter(site Site, fresh func() (T, error)) (*Place[T], error) {
	p := s.places[site]
	if p == nil {
		bucket, err := fresh()
		if err != nil {
			return nil, err
		}
		p = &Place[T]{Site: site, Bucket: bucket}
		if s.places == nil {
			s.places = make(map[Site]*Place[T])
		}
		s.places[site] = p
	}
	if p.sessions++; p.sessions == 1 {
		s.counts[kind(site)]++
	}
	return p, nil
}

// Leave counts one session less of a site.
func (s *Sites[T]) Leave(p *Place[T], now time.Duration) {
	if p.sessions--; p.sessions == 0 {
		s.counts[kind(p.Site)]--
		p.left = now
		s.gone = append(s.gone, p)
	}
}

// Expire forgets the sites without a session for SiteKept, and returns their buckets.
func (s *Sites[T]) Expire(now time.Duration) (expired []T) {
	for len(s.gone) > 0 && (s.gone[0].sessions > 0 || now-s.gone[0].left >= SiteKept) {
		p := s.gone[0]
		s.gone = s.gone[1:]
		if p.sessions == 0 && s.places[p.Site] == p {
			delete(s.places, p.Site)
			expired = append(expired, p.Bucket)
		}
	}
	return expired
}

// All yields the sites, those too that are about to be forgotten.
func (s *Sites[T]) All() iter.Seq[*Place[T]] {
	return func(yield func(*Place[T]) bool) {
		for _, p := range s.places {
			if !yield(p) {
				return
			}
		}
	}
}

// Counts returns how many sites have sessions.
func (s *Sites[T]) Counts() (publishers, rps int) { return s.counts[0], s.counts[1] }

// Share returns the policer of a site's share when all copies may take rate bytes per
// second and burst bytes at once: an equal part of all, or of half of it where there are
// sites of both kinds. Without a limit there is no share.
func (s *Sites[T]) Share(site Site, rate, burst uint64) Policer {
	if rate == 0 {
		return Policer{}
	}
	parts := uint64(max(1, s.counts[kind(site)]))
	if s.counts[1-kind(site)] > 0 {
		parts *= 2
	}
	return NewPolicer(max(1, rate/parts), burst/(shareOfBurst*parts))
}

func kind(site Site) int {
	if site.RP {
		return 1
	}
	return 0
}
