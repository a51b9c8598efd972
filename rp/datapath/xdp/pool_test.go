// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/rp/datapath"
)

// Device maps are installed before all slices are in use, off the thread; a change that
// needs them at once waits for those that are under way.
func TestXDPPoolGrowsAhead(t *testing.T) {
	p := newBare(t, datapath.Config{Incarnation: testOwn}).pool
	taken := make(map[uint32]bool)
	take := func() {
		t.Helper()
		index, err := p.take()
		require.NoError(t, err)
		require.False(t, taken[index], "slice %d", index)
		taken[index] = true
		require.NotNil(t, p.maps[index])
	}
	for len(p.free) > ahead {
		require.Nil(t, p.growing)
		take()
	}
	take()
	require.NotNil(t, p.growing)
	left := p.room()
	require.NoError(t, p.add(<-p.growing)) // as the thread does
	require.Nil(t, p.growing)
	require.Len(t, p.free, ahead-1+poolStep)
	require.Equal(t, left, p.room())
	for range 3 * poolStep { // as one change does
		take()
	}
	require.Len(t, taken, poolStep-ahead+1+3*poolStep)
}
