// SPDX-License-Identifier: LGPL-3.0-or-later

package testnet

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet/topology"
)

// TestNetnsConsole asks a node at geth's console as the README says. The network is
// "two-as".
func TestNetnsConsole(t *testing.T) {
	geth, rpd := programPath(t, "geth"), programPath(t, "rpd")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	top, err := topology.Load("two-as")
	require.NoError(t, err)
	top, err = top.Populate(topology.Population{Count: 2})
	require.NoError(t, err)
	n, err := Start(ctx, Config{Topology: top, Geth: geth, RPD: rpd, Patched: All, Routing: Static, Log: testLog(t)})
	require.NoError(t, err)
	defer n.Close()

	console := func(statement string) string {
		cmd := exec.CommandContext(ctx, geth, "attach", "--preload", filepath.Join("..", "ethmcast", "console.js"),
			"--exec", statement, filepath.Join(n.run.Dir(), n.Geths[0].Name(), "geth.ipc"))
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s: %s", statement, out)
		return strings.TrimSpace(string(out))
	}
	for _, x := range []struct{ statement, want string }{
		{"mdcs.status.state", `"active"`},
		{"mdcs.rps.length", "2"},
		{"mdcs.discovery === undefined", "false"},
		{"mdcs.counters === undefined", "false"},
		{"mdcs.receipts.length", "0"},
		{"mdcs.requestReceipt('0x" + strings.Repeat("1", 64) + "')", "true"},
		{"mdcs.setEnabled(false); mdcs.status.enabled", "false"},
		{"mdcs.setEnabled(true); mdcs.status.enabled", "true"},
	} {
		require.Equal(t, x.want, console(x.statement), x.statement)
	}
}
