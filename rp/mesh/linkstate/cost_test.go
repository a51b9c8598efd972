// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestHelloCost: most of what a large mesh does is to hear hellos. One that tells nothing new
// allocates nothing.
func TestHelloCost(t *testing.T) {
	w := square(t)
	c := w.cores[4]
	now, from := w.now, rp(2)
	hello := Hello{Stamp: 1, Echo: c.micros(now) - 20_000, Echoes: true, Interval: 100, Tree: true, Up: true}
	c.HeardHello(now, from, hello)
	c.Actions()
	require.Zero(t, testing.AllocsPerRun(100, func() {
		c.HeardHello(now, from, hello)
		c.Actions()
		c.Deadline()
	}))
}
