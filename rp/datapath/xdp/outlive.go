// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import "github.com/ethmcast/mdcs/rp/datapath"

var _ datapath.Survivor = (*Engine)(nil)

// Outlives implements datapath.Survivor: what is pinned goes on.
func (e *Engine) Outlives() bool { return e.pins != nil }
