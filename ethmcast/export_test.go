// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"net/netip"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/discovery"
)

// FindConfig is findConfig for tests.
var FindConfig = findConfig

// RPConfig is rpConfig for tests.
var RPConfig = rpConfig

// Found is found for tests.
func (s *Service) Found(candidates []discovery.Candidate, known func(enode.ID) bool) {
	s.found(candidates, known)
}

// OneStranger is oneStranger for tests.
var OneStranger = oneStranger

// Mute has all datagrams to RPs leave from an address that this host does not have.
func (s *Service) Mute() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rp := range s.rps {
		rp.source = source(netip.MustParseAddr("2001:db8::dead"))
	}
}
