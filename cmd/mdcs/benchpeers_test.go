// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet/bench"
)

func TestBenchPeersMistakes(t *testing.T) {
	for want, args := range map[string][]string{
		`unexpected argument "now"`:      {"now"},
		`engine "tc" is neither xdp nor`: {"--engine", "tc"},
		`--peers: "many" is no number`:   {"--peers", "1,many"},
		"1 peer has nobody to send to":   {"--peers", "1"},
		"10001 is not within 1 and":      {"--peers", "10001"},
		"rate 0 is not above 0":          {"--rate", "0"},
		"rate NaN is not above 0":        {"--rate", "NaN"},
		"steady state of 1ms is below":   {"--steady", "1ms"},
		`--name "../x" is no name`:       {"--name", "../x"},
	} {
		status, _, stderr := execute(t.Context(), append([]string{"bench", "peers"}, args...)...)
		require.Equal(t, 1, status, want)
		require.Contains(t, stderr, want)
	}
	replaceIsRoot(t, true)
	none := filepath.Join(t.TempDir(), "none")
	status, _, stderr := execute(t.Context(), "bench", "peers", "--rpd", none)
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "--rpd: stat "+none)
	replaceIsRoot(t, false)
	status, _, stderr = execute(t.Context(), "bench", "peers")
	require.Equal(t, 1, status)
	require.Equal(t, "mdcs: "+bench.ErrNotRoot.Error()+"\n", stderr)
}

// Without arguments it would wait for the test's own input.
func TestLightpeersRefusesArguments(t *testing.T) {
	status, _, stderr := execute(t.Context(), "lightpeers", "now")
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "takes no arguments")
	_, stdout, _ := execute(t.Context())
	require.NotContains(t, stdout, "lightpeers", "for internal use")
}
