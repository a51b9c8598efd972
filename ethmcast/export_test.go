// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import "github.com/ethmcast/mdcs/ethmcast/discovery"

// FindConfig is findConfig for tests.
var FindConfig = findConfig

// Found is found for tests.
func (s *Service) Found(candidates []discovery.Candidate) { s.found(candidates) }
