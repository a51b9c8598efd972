// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBenchMesh(t *testing.T) {
	args := []string{"bench", "mesh", "--simulate", "13,20", "--churn", "5s"}
	status, stdout, stderr := execute(t.Context(), append(args, "--json")...)
	require.Zero(t, status, stderr)
	var result struct {
		Processes []struct{}
		Simulated []map[string]any
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &result))
	require.NotNil(t, result.Processes)
	require.Len(t, result.Simulated, 2)
	for _, field := range []string{"rps", "converge_s", "control_kbps_tree", "control_kbps_other", "false_downs", "heal_s", "lost", "duplicated",
		"stretch_p95", "link_copies_max", "mode"} {
		require.Contains(t, result.Simulated[0], field)
	}
	require.EqualValues(t, 20, result.Simulated[1]["rps"])

	status, stdout, _ = execute(t.Context(), args...)
	require.Zero(t, status)
	require.Contains(t, stdout, "stretch p95")
}

func TestBenchMeshMistakes(t *testing.T) {
	for want, args := range map[string][]string{
		`unexpected argument "now"`:  {"now"},
		`--simulate: "many" is no`:   {"--simulate", "100,many"},
		"--simulate: 12 rps":         {"--simulate", "12"},
		`"ring" is neither star nor`: {"--mode", "ring"},
		"--churn: negative duration": {"--churn", "-1s"},
	} {
		status, _, stderr := execute(t.Context(), append([]string{"bench", "mesh"}, args...)...)
		require.Equal(t, 1, status, want)
		require.Contains(t, stderr, want)
	}
}
