// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/rp/admin"
	"github.com/ethmcast/mdcs/rp/admin/admintest"
	"github.com/ethmcast/mdcs/testnet/bgp"
	"github.com/ethmcast/mdcs/testnet/control"
	"github.com/ethmcast/mdcs/testnet/netns"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"mdcs": main})
}

// TestScripts has what needs no net. The programs find the socket of a replication
// point that never changes.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			path := filepath.Join(env.WorkDir, "rpd.sock")
			s, err := admin.StartSocket(path, admintest.New(120).Operator().Handler(), slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			env.Defer(s.Stop)
			env.Setenv("MDCS_SOCKET", path)
			return nil
		},
		Condition: func(string) (bool, error) { // [root]
			return isRoot(), nil
		},
	})
}

// TestNetnsUp runs nets as a user would.
func TestNetnsUp(t *testing.T) {
	if !isRoot() {
		t.Skip("needs root: makes network namespaces")
	}
	build, err := filepath.Abs(filepath.Join("..", "..", "build"))
	require.NoError(t, err)
	for _, program := range []string{"geth", "geth-stock", "rpd"} {
		if _, err := os.Stat(filepath.Join(build, program)); err != nil {
			t.Skipf("needs build/%s: run make %s", program, program)
		}
	}
	_, err = bgp.Find()
	require.NoError(t, err)
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "net"),
		Setup: func(env *testscript.Env) error {
			env.Setenv("BUILD", build)
			env.Setenv("PATH", env.Getenv("PATH")+":/usr/sbin:/sbin")
			env.Defer(func() { // after a failure
				if c, err := control.NewClient(netns.StateDir, scriptNet); err == nil {
					c.Down(t.Context())
				}
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"findnet": findNet, "killnet": killNet, "nothingleft": nothingLeft,
		},
	})
}

// scriptNet is the name of the net in the scripts.
const scriptNet = "script"

// findNet notes the prefix of the net for nothingleft.
func findNet(ts *testscript.TestScript, _ bool, _ []string) { find(ts) }

func find(ts *testscript.TestScript) (*control.Client, int) {
	c, err := control.NewClient(netns.StateDir, scriptNet)
	ts.Check(err)
	st, err := c.Status(context.Background())
	ts.Check(err)
	ts.Setenv("PREFIX", st.Net.Prefix)
	return c, st.Pid
}

// killNet kills the process that runs the net.
func killNet(ts *testscript.TestScript, _ bool, _ []string) {
	c, pid := find(ts)
	ts.Check(syscall.Kill(pid, syscall.SIGKILL))
	for { // until its lock is free
		_, err := c.Status(context.Background())
		if errors.Is(err, control.ErrNotUp) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// nothingLeft looks for remains of the net that was killed: files, namespaces, and
// processes, whose command lines name the scratch directory.
func nothingLeft(ts *testscript.TestScript, _ bool, _ []string) {
	prefix := ts.Getenv("PREFIX")
	run := strings.TrimSuffix(prefix, "-")
	for _, pattern := range []string{
		filepath.Join(netns.StateDir, scriptNet+".*"), filepath.Join(netns.StateDir, run+".json"),
		"/run/netns/" + prefix + "*", "/dev/shm/" + run, filepath.Join(os.TempDir(), run),
	} {
		left, err := filepath.Glob(pattern)
		ts.Check(err)
		if len(left) > 0 {
			ts.Fatalf("left: %q", left)
		}
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	ts.Check(err)
	for _, file := range commands {
		if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), "/"+run+"/") {
			ts.Fatalf("runs on: %q", text)
		}
	}
}
