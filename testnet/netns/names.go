// SPDX-License-Identifier: LGPL-3.0-or-later

package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	vns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namedDir is where iproute2 looks for named namespaces.
const namedDir = "/run/netns"

// namePattern matches the names of the namespaces of all runs. The group is the prefix
// of the run.
var namePattern = regexp.MustCompile(`^(mdcs-[0-9a-f]{4}-)`)

// shareNames makes namedDir a shared mount of its own, as the first `ip netns add` on a
// machine does. If that came later, it would put a copy of each namespace's mount over
// the first one, and neither could be removed by its path.
func shareNames() error {
	if err := os.MkdirAll(namedDir, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(namedDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	// iproute2 takes this lock, too: of two that find no mount, both would make one.
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", namedDir, err)
	}
	share := func() error { return unix.Mount("", namedDir, "", unix.MS_SHARED|unix.MS_REC, "") }
	err = share()
	if errors.Is(err, unix.EINVAL) { // no mount point
		if err := unix.Mount(namedDir, namedDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", namedDir, err)
		}
		err = share()
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", namedDir, err)
	}
	return nil
}

// removeNames removes the names of namespaces, whatever is mounted on them or over
// them. It goes on after an error, and returns how many names are gone.
//
// Where a mount lies below another one, no path leads to it, and its name is busy. So
// the names are removed in a copy of the machine's mounts, from which all that is in
// the way is taken off: with a name the kernel removes all that is mounted on it,
// everywhere.
func removeNames(names []string) (n int, err error) {
	if len(names) == 0 {
		return 0, nil
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with its copy of the mounts
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			done <- fmt.Errorf("copy the mounts: %w", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			done <- fmt.Errorf("part from the mounts: %w", err)
			return
		}
		var errs []error
		for _, name := range names {
			if err := removeName(filepath.Join(namedDir, name)); err != nil {
				errs = append(errs, fmt.Errorf("destroy namespace %s: %w", name, err))
				continue
			}
			n++
		}
		done <- errors.Join(errs...)
	}()
	err = <-done
	return n, err
}

// removeName is for a thread with a copy of the mounts.
func removeName(path string) error {
	for {
		for unix.Unmount(path, unix.MNT_DETACH) == nil {
		}
		err := os.Remove(path)
		if !errors.Is(err, unix.EBUSY) {
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			return err
		}
		if unix.Unmount(namedDir, unix.MNT_DETACH) != nil {
			return err
		}
	}
}

// Destroy deletes the names of all namespaces that start with prefix and returns
// how many there were. It is idempotent, and goes on after an error. The prefix must be
// one that a [Run] could have made, so that a mistake cannot reach foreign namespaces.
func Destroy(prefix string) (int, error) {
	if !validPrefix(prefix) {
		return 0, fmt.Errorf("destroy namespaces: %q is no run prefix", prefix)
	}
	names, err := namesOfRuns()
	if err != nil {
		return 0, fmt.Errorf("destroy namespaces: %w", err)
	}
	return removeNames(names[prefix])
}

// namesOfRuns are the names of all namespaces of runs, by the prefix of the run.
func namesOfRuns() (map[string][]string, error) {
	entries, err := os.ReadDir(namedDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	names := make(map[string][]string)
	for _, e := range entries {
		if m := namePattern.FindStringSubmatch(e.Name()); m != nil {
			names[m[1]] = append(names[m[1]], e.Name())
		}
	}
	return names, nil
}

// The mark of a namespace of ours is the alias of its loopback interface. It names the
// process that owns the namespace.
const markFormat = "mdcs testnet of process %d, started at tick %d"

func mark(ns *Namespace, owner ProcessID) error {
	lo, err := ns.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := ns.nl.LinkSetAlias(lo, fmt.Sprintf(markFormat, owner.Pid, owner.Start)); err != nil {
		return fmt.Errorf("mark lo: %w", err)
	}
	return nil
}

// ownerOf reads the mark of the namespace at a path. ok is false if it has none.
func ownerOf(path string) (owner ProcessID, ok bool) {
	handle, err := vns.GetFromPath(path)
	if err != nil {
		return owner, false
	}
	defer handle.Close()
	nl, err := netlink.NewHandleAt(handle)
	if err != nil {
		return owner, false
	}
	defer nl.Close()
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return owner, false
	}
	n, err := fmt.Sscanf(lo.Attrs().Alias, markFormat, &owner.Pid, &owner.Start)
	return owner, err == nil && n == 2
}

// halfMadeAge is the age from which on a file without a namespace was left by a run
// that ended between the two steps.
const halfMadeAge = time.Minute

// abandoned reports whether the namespace of a name is ours, and its owner is dead.
func abandoned(name string) bool {
	path := filepath.Join(namedDir, name)
	if owner, ok := ownerOf(path); ok {
		return !owner.alive()
	}
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular() && info.Size() == 0 && !isNamespace(path) && time.Since(info.ModTime()) > halfMadeAge
}

func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}
