// SPDX-License-Identifier: LGPL-3.0-or-later

package rp

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// However many peers are refused, the mesh is asked for other RPs once per second.
func TestRedirectsAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d redirects
		looks := 0
		look := func() []string {
			looks++
			return []string{"enode://other"}
		}
		for range 1000 {
			require.Equal(t, []string{"enode://other"}, d.get(look))
		}
		require.Equal(t, 1, looks)
		time.Sleep(redirectsAge)
		d.get(look)
		require.Equal(t, 2, looks)
	})
}
