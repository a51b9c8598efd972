// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
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
