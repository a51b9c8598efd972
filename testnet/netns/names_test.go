// SPDX-License-Identifier: LGPL-3.0-or-later

package netns

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	vns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inOwnMounts runs the calling test again in a process with mounts of its own, and with
// an empty /run. There it returns true.
func inOwnMounts(t *testing.T) bool {
	t.Helper()
	const inside = "NETNS_TEST_OWN_MOUNTS"
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes mounts and network namespaces")
	}
	if os.Getenv(inside) != "" {
		require.NoError(t, unix.Mount("none", "/run", "tmpfs", 0, ""))
		return true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: "+t.Name())
	return false
}

// TestNetnsFirstIPNetnsAdd has somebody make a namespace by iproute2 beside a run, where
// none was made before.
func TestNetnsFirstIPNetnsAdd(t *testing.T) {
	ip, err := exec.LookPath("ip")
	if err != nil {
		t.Skip("needs ip, of iproute2")
	}
	if !inOwnMounts(t) {
		return
	}
	r := newRun(t)
	newNamespace(t, r, "a")
	out, err := exec.Command(ip, "netns", "add", "theirs").CombinedOutput()
	require.NoError(t, err, "%s", out)
	newNamespace(t, r, "b")
	require.NoError(t, r.Close())
	requireNames(t, "theirs")
	require.NoFileExists(t, r.path)
	out, err = exec.Command(ip, "netns", "del", "theirs").CombinedOutput()
	require.NoError(t, err, "%s", out)
	requireNames(t)
}

// TestNetnsCoveredNames has mounts come over the directory of names after the names.
func TestNetnsCoveredNames(t *testing.T) {
	if !inOwnMounts(t) {
		return
	}
	cover := func(flags uintptr) {
		require.NoError(t, unix.Mount(namedDir, namedDir, "", unix.MS_BIND|flags, ""))
	}
	for _, propagation := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		require.NoError(t, unix.Mount("", "/run", "", propagation, ""))
		r := newRun(t)
		newNamespace(t, r, "a")
		cover(unix.MS_REC) // with a copy of the mount of a
		cover(0)           // without any
		newNamespace(t, r, "b")
		cover(unix.MS_REC)
		require.NoError(t, r.Close())
		requireNames(t)
	}
}

func requireNames(t *testing.T, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(namedDir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	require.Equal(t, want, names)
}

// TestNetnsCloseFails has a run that cannot remove its scratch directory. Its owner
// lives, and still it is cleaned up later.
func TestNetnsCloseFails(t *testing.T) {
	if !inOwnMounts(t) {
		return
	}
	r := newRun(t)
	newNamespace(t, r, "a")
	busy := filepath.Join(r.Dir(), "busy")
	require.NoError(t, os.Mkdir(busy, 0o700))
	require.NoError(t, unix.Mount("none", busy, "tmpfs", 0, ""))
	require.ErrorIs(t, r.Close(), unix.EBUSY)
	requireNames(t)
	require.FileExists(t, r.path)

	dir := filepath.Dir(r.path)
	cleaned, err := CleanStale(dir)
	require.ErrorIs(t, err, unix.EBUSY)
	require.Empty(t, cleaned)
	require.FileExists(t, r.path)
	require.NoError(t, unix.Unmount(busy, 0))
	cleaned, err = CleanStale(dir)
	require.NoError(t, err)
	require.Equal(t, []string{r.Prefix()}, cleaned)
	require.NoFileExists(t, r.path)
	require.NoDirExists(t, r.Dir())
}

// TestNetnsStrays has namespaces without a state file: only those of the dead are
// removed.
func TestNetnsStrays(t *testing.T) {
	if !inOwnMounts(t) {
		return
	}
	stray := func(name string, owner ProcessID) *Namespace {
		ns, err := create(name, owner)
		require.NoError(t, err)
		t.Cleanup(ns.end)
		return ns
	}
	dead := ProcessID{Pid: os.Getpid(), Start: 1}
	stray("mdcs-0001-a", dead)
	stray("mdcs-0001-b", dead)
	stray("mdcs-0002-a", identify(os.Getpid()))
	stray("other-0001-a", dead)
	unmarked := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread is in the namespace
		_, err := vns.NewNamed("mdcs-0003-a")
		unmarked <- err
	}()
	require.NoError(t, <-unmarked)
	old := time.Now().Add(-2 * halfMadeAge)
	for name, at := range map[string]time.Time{"mdcs-0004-new": time.Now(), "mdcs-0004-old": old} {
		path := filepath.Join(namedDir, name)
		require.NoError(t, os.WriteFile(path, nil, 0o444))
		require.NoError(t, os.Chtimes(path, at, at))
	}
	listed := stray("mdcs-0005-a", dead)
	dir := t.TempDir()
	state := State{Prefix: "mdcs-0005-", Owner: identify(os.Getpid())}
	require.NoError(t, state.write(statePath(dir, state.Prefix)))

	cleaned, err := CleanStale(dir)
	require.NoError(t, err)
	require.Equal(t, []string{"mdcs-0001-", "mdcs-0004-"}, cleaned)
	requireNames(t, "mdcs-0002-a", "mdcs-0003-a", "mdcs-0004-new", listed.name, "other-0001-a")
	cleaned, err = CleanStale(dir)
	require.NoError(t, err)
	require.Empty(t, cleaned)
}
