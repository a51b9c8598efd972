// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/rp/mesh/tree"
	"github.com/ethmcast/mdcs/testnet/meshbench"
	"github.com/ethmcast/mdcs/testnet/sim"
)

func TestBenchMesh(t *testing.T) {
	dir := t.TempDir()
	args := []string{"bench", "mesh", "--rps=", "--simulate", "13,20", "--churn", "5s", "--deaths", "1", "--results", dir}
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
	require.FileExists(t, filepath.Join(dir, "mesh", "mesh.json"))

	status, stdout, _ = execute(t.Context(), append(args, "--mode", "light,star")...)
	require.Zero(t, status)
	require.Contains(t, stdout, "stretch p95")
	require.Contains(t, stdout, "star")
}

func TestBenchMeshMistakes(t *testing.T) {
	rpd := filepath.Join(t.TempDir(), "rpd")
	require.NoError(t, os.WriteFile(rpd, []byte("#!/bin/sh\n"), 0o755))
	for want, args := range map[string][]string{
		`unexpected argument "now"`:   {"now"},
		`--simulate: "many" is no`:    {"--rps=", "--simulate", "100,many"},
		"--simulate: 12 rps":          {"--rps=", "--simulate", "12"},
		`--rps: "many" is no`:         {"--rps", "many"},
		"--rps: 65 rps are not 2":     {"--rps", "65", "--rpd", rpd},
		`"ring" is neither light nor`: {"--mode", "light,ring"},
		"--churn or --deaths is nega": {"--churn", "-1s"},
		"does not exist":              {"--rpd", "missing"},
		"is no name of a directory":   {"--name", "a/b"},
		`--engine "fast" is none of`:  {"--engine", "fast", "--rpd", rpd},
	} {
		status, _, stderr := execute(t.Context(), append([]string{"bench", "mesh"}, args...)...)
		require.Equal(t, 1, status, want)
		require.Contains(t, stderr, want)
	}
	replaceIsRoot(t, false)
	status, _, stderr := execute(t.Context(), "bench", "mesh", "--rpd", rpd)
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "--rps= for simulated meshes alone")
}

// What one mesh cannot do costs nothing of the others.
func TestMeshPlanKeepsResults(t *testing.T) {
	good, err := sim.NewPlan(13, tree.Light, 1)
	require.NoError(t, err)
	bad := good
	bad.HelloLoss = 1
	result, err := meshbench.NewReport("mesh")
	require.NoError(t, err)
	plan := meshPlan{simulated: []sim.Plan{good, bad, good}}
	require.ErrorContains(t, plan.run(t.Context(), result), "not converged")
	require.Len(t, result.Simulated, 2)

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	plan = meshPlan{simulated: []sim.Plan{good, good}}
	require.EqualError(t, plan.run(ended, result), "context canceled", "once")
	require.Len(t, result.Simulated, 2)
}
