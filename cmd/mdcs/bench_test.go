// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet/bench"
)

func TestFanoutHelp(t *testing.T) {
	status, stdout, _ := execute(t.Context(), "bench", "fanout", "--help")
	require.Zero(t, status)
	for _, flag := range []string{"--engines", "--subscribers", "--bursts", "--rounds", "--sustain", "--name", "--results", "--quick", "--json"} {
		require.Contains(t, stdout, flag)
	}
}

func TestFanoutMistakes(t *testing.T) {
	for want, args := range map[string][]string{
		`unknown command "frob"`:      {"bench", "frob"},
		`unexpected argument "now"`:   {"bench", "fanout", "now"},
		`engine "fpga" is none of`:    {"bench", "fanout", "--engines", "xdp,fpga"},
		`--subscribers: "many" is no`: {"bench", "fanout", "--subscribers", "1,many"},
		`--bursts: "" is no number`:   {"bench", "fanout", "--bursts", "1,"},
		"0 rounds are below 1":        {"bench", "fanout", "--rounds", "0"},
		`--name "../x" is no name`:    {"bench", "fanout", "--name", "../x"},
		"negative duration":           {"bench", "fanout", "--sustain", "-1s"},
	} {
		status, _, stderr := execute(t.Context(), args...)
		require.Equal(t, 1, status, want)
		require.Contains(t, stderr, want)
	}
}

func TestFanoutNeedsRoot(t *testing.T) {
	replaceIsRoot(t, false)
	status, _, stderr := execute(t.Context(), "bench", "fanout")
	require.Equal(t, 1, status)
	require.Equal(t, "mdcs: "+bench.ErrNotRoot.Error()+"\n", stderr)
}
