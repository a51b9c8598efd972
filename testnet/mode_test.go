// SPDX-License-Identifier: LGPL-3.0-or-later

package testnet

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet/topology"
)

// TestRelays has relays that are everyone's peers, and nobody who dials more than
// geth does.
func TestRelays(t *testing.T) {
	top := load(t, "ten-as")
	relayed := withRelays(top)
	require.Empty(t, relayed.HostsOf(topology.RP))
	require.Len(t, top.HostsOf(topology.RP), 10, "the network itself stays")
	all := relayed.HostsOf(topology.Geth)
	require.Len(t, all, 30)
	for _, h := range top.HostsOf(topology.RP) {
		require.Len(t, relayed.Peers(h.Name), len(all)-1)
	}
	const maxDialed = 50 / 3 // geth's p2p/server.go, with --maxpeers 50
	dials := make(map[string]int)
	for _, p := range relayed.Peerings {
		dials[p[0]]++
		require.LessOrEqual(t, dials[p[0]], maxDialed, p[0])
	}
	require.NoError(t, relayed.Validate())
}
