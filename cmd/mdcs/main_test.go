// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet"
)

// execute runs the program and returns its exit status and output.
func execute(ctx context.Context, args ...string) (status int, stdout, stderr string) {
	var out, errs strings.Builder
	status = run(ctx, append([]string{"mdcs"}, args...), &out, &errs)
	return status, out.String(), errs.String()
}

func TestVersion(t *testing.T) {
	status, stdout, _ := execute(t.Context(), "--version")
	require.Zero(t, status)
	require.Equal(t, "mdcs version unknown\n", stdout)
}

func TestHelp(t *testing.T) {
	status, stdout, _ := execute(t.Context(), "testnet", "compare", "--help")
	require.Zero(t, status)
	for _, flag := range []string{
		"--preset", "--name", "--topology", "--nodes", "--degree", "--txs", "--rate", "--burst", "--bumps", "--seed", "--seeds",
		"--rounds", "--half-rate", "--sweep", "--replay", "--save-workload", "--modes", "--links", "--routing",
		"--geth", "--geth-stock", "--geth-direct", "--rpd", "--results", "--output",
	} {
		require.Contains(t, stdout, flag)
	}
	status, stdout, _ = execute(t.Context())
	require.Zero(t, status)
	require.Contains(t, stdout, "testnet")
	require.NotContains(t, stdout, "delayline", "for internal use")
}

func TestMistakes(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "geth")
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755))
	text := filepath.Join(dir, "text")
	require.NoError(t, os.WriteFile(text, nil, 0o644))
	compare := func(args ...string) []string {
		return append([]string{"testnet", "compare", "--results", dir, "--modes", "gossip", "--geth-stock", program}, args...)
	}
	for want, args := range map[string][]string{
		`unknown command "frob"`:                      {"frob"},
		`unknown command "destroy"`:                   {"testnet", "destroy"},
		"flag provided but not defined: -frob":        compare("--frob"),
		`unexpected argument "now"`:                   compare("now"),
		`invalid value "many" for flag -txs`:          compare("--txs", "many"),
		"--txs 0 is below 1":                          compare("--txs", "0"),
		"--seeds 0 is below 1":                        compare("--seeds", "0"),
		"--rounds 0 is below 1":                       compare("--rounds", "0"),
		`--preset "long" is neither`:                  compare("--preset", "long"),
		`--sweep: "nodes" is not KEY=A,B,C`:           compare("--sweep", "nodes"),
		"--replay: open " + dir + "/none":             compare("--replay", filepath.Join(dir, "none")),
		`routing "ospf" is none of`:                   compare("--routing", "ospf"),
		"--rate -1 is not positive":                   compare("--rate=-1"),
		"--rate NaN is not positive":                  compare("--rate", "NaN"),
		`link backend "tc" is neither wire nor netem`: compare("--links", "tc"),
		`mode "flood" is none of`:                     compare("--modes", "gossip,flood"),
		"gossip stands there twice":                   compare("--modes", "gossip,gossip"),
		`--output "xml" is neither`:                   compare("-o", "xml"),
		`--name "../x" is no name`:                    compare("--name", "../x"),
		"--geth-stock: " + dir + "/no does not":       compare("--geth-stock", filepath.Join(dir, "no")),
		"is no program":                               compare("--geth-stock", text),
		"--rpd: " + dir + "/no does not":              compare("--modes", "mdcs", "--geth", program, "--rpd", filepath.Join(dir, "no")),
	} {
		status, _, stderr := execute(t.Context(), args...)
		require.Equal(t, 1, status, want)
		require.Contains(t, stderr, want)
		require.True(t, strings.HasPrefix(stderr, "mdcs: "), "%q", stderr)
	}
}

func TestNeedsRoot(t *testing.T) {
	replaceIsRoot(t, false)
	for _, args := range [][]string{
		{"testnet", "clean"},
		{"testnet", "compare", "--results", t.TempDir(), "--modes", "gossip", "--geth-stock", "/bin/sh"},
	} {
		status, _, stderr := execute(t.Context(), args...)
		require.Equal(t, 1, status)
		require.Equal(t, "mdcs: "+testnet.ErrNotRoot.Error()+"\n", stderr)
	}
}

func replaceIsRoot(t *testing.T, root bool) {
	old := isRoot
	isRoot = func() bool { return root }
	t.Cleanup(func() { isRoot = old })
}

// Without arguments it would take the place of the test process.
func TestDelaylineRefusesArguments(t *testing.T) {
	status, _, stderr := execute(t.Context(), "delayline", "now")
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "takes no arguments")
}

// TestInterrupted has a program that never answers when asked for its version.
func TestInterrupted(t *testing.T) {
	replaceIsRoot(t, true)
	dir := t.TempDir()
	program := filepath.Join(dir, "geth")
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\nexec sleep 60\n"), 0o755))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	status, _, stderr := execute(ctx, "testnet", "compare", "--results", dir, "--modes", "gossip", "--geth-stock", program)
	require.Equal(t, 130, status)
	require.Equal(t, "mdcs: interrupted\n", stderr)
}
