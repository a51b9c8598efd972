// SPDX-License-Identifier: LGPL-3.0-or-later

// Package pindir keeps the datapath of a process in a directory of a bpf file system, where
// the next process finds it:
//
//	root / endpoint and network namespace / layout of the BPF maps / BPF map or link
//
// There is no lock file. The process that has bound the UDP port of the endpoint has the
// endpoint's directory: it alone calls Sweep, Find, Commit, TakeDown and Remove. The kernel
// gives the port back when the process dies, however it dies. The functions that need no
// port read: CheckRoot, Left.
//
// A process may be killed at any moment, and the next start goes on from there:
//
//   - Before Commit nothing is pinned. The kernel removes the programs with the process.
//   - While Commit fills a directory, the directory has another name, which no start adopts.
//     Sweep detaches what it holds.
//   - One rename ends Commit. From then on the datapath is complete, and Find returns it.
//   - While a process adopts the datapath, the directory stays as it is. Links change their
//     program each at once, so each is the link of the old or of the new program. Pins of
//     devices and counters are then added and removed one by one; Find accepts any of them.
//   - While Remove or TakeDown removes a directory, Find misses a BPF map and refuses the
//     rest, and TakeDown of that start removes it.
//
// A datapath whose process died forwards for Validity. The package touches files, links and
// BPF maps only; what belongs to an endpoint elsewhere, its pair of virtual interfaces, the
// caller removes (Config.RemovePair). A Dir has no lock of its own: it belongs to the
// engine's thread.
package pindir

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/bpf"
)

// Validity is how long the programs accept datagrams without a sign of life of user space
// (SPEC section 11).
const Validity = 30 * time.Second

// layoutVersion is raised when something in the BPF maps changes its meaning, but not its
// form.
const layoutVersion = 2

// Names in the directory, besides the names of BPF maps. A bpf file system takes no dots.
const (
	linkPrefix = "link_" // and the interface index, or what is counted
	unfinished = "_new"  // behind the name of a directory that is being filled

	// LostLink and FullLink are the links of the programs that count what the rings of
	// devices and the queues of CPUs drop. A datapath is complete without them.
	LostLink = linkPrefix + "lost"
	FullLink = linkPrefix + "full"
)

// LinkName returns the name of the link to the interface with an index.
func LinkName(ifindex int) string { return linkPrefix + strconv.Itoa(ifindex) }

// EndpointName names what belongs to an address and port, in the form of an interface or of a
// file on a bpf file system, less one letter.
func EndpointName(addr netip.AddrPort) string {
	return fmt.Sprintf("mdcs%08x", crc32.ChecksumIEEE([]byte(addr.String())))
}

// Config says whose directory a Dir is.
type Config struct {
	Root  string         // directory on a bpf file system, made when it is missing
	Addr  netip.AddrPort // endpoint, whose port the caller has bound
	Netns uint32         // inode of the network namespace: addresses may be alike in several
	Boot  time.Time      // when CLOCK_MONOTONIC was zero

	// RemovePair removes the pair of virtual interfaces of an endpoint of this network
	// namespace, by EndpointName, if it is there.
	RemovePair func(endpoint string)

	Log *slog.Logger
}

// Dir is the directory of the datapath of one endpoint. It appears at once, when the
// datapath is complete.
type Dir struct {
	cfg      Config
	endpoint string
	path     string
	own      bool // this process pinned or adopted what is in path
}

// CheckRoot returns an error when nothing can be pinned in a directory, which need not be there.
func CheckRoot(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("%s is not an absolute path", dir)
	}
	there := filepath.Clean(dir)
	for {
		_, err := os.Stat(there)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		there = filepath.Dir(there)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(there, &st); err != nil {
		return fmt.Errorf("%s: %w", there, err)
	}
	if uint32(st.Type) != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s is on no bpf file system; to mount one: mount -t bpf bpf /sys/fs/bpf", dir)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, there, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return fmt.Errorf("%s: %w", there, err)
	}
	return nil
}

// New returns the directory of an endpoint for BPF maps of the layout of this build. It makes
// nothing. It is an error when nothing can be pinned below the root.
func New(cfg Config) (*Dir, error) {
	if err := CheckRoot(cfg.Root); err != nil {
		return nil, fmt.Errorf("pin: %w", err)
	}
	spec, err := bpf.LoadRp()
	if err != nil {
		return nil, fmt.Errorf("pin: %w", err)
	}
	layout, err := layout(spec)
	if err != nil {
		return nil, fmt.Errorf("pin: %w", err)
	}
	endpoint := endpointDir(cfg.Root, cfg.Addr, cfg.Netns)
	return &Dir{cfg: cfg, endpoint: endpoint, path: filepath.Join(endpoint, layout)}, nil
}

// Path returns the directory that the datapath is pinned in.
func (d *Dir) Path() string { return d.path }

// endpointDir has the network namespace in its name: two namespaces may use one address.
func endpointDir(root string, addr netip.AddrPort, netns uint32) string {
	return filepath.Join(root, fmt.Sprintf("%s_%d", EndpointName(addr), netns))
}

// layout names the form and the meaning of the BPF maps.
func layout(spec *ebpf.CollectionSpec) (string, error) {
	var text strings.Builder
	describe := func(m *ebpf.MapSpec) error {
		fmt.Fprintln(&text, m.Name, m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags)
		for _, t := range []btf.Type{m.Key, m.Value} {
			if t == nil || m.Type == ebpf.ArrayOfMaps {
				continue
			}
			form, err := new(btf.GoFormatter).TypeDeclaration("t", t)
			if err != nil {
				return fmt.Errorf("layout of %s: %w", m.Name, err)
			}
			fmt.Fprintln(&text, form)
		}
		return nil
	}
	var names []string
	for name, m := range spec.Maps {
		if Pinned(m.Name, m.Type) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		m := spec.Maps[name]
		if err := describe(m); err != nil {
			return "", err
		}
		if m.InnerMap != nil {
			if err := describe(m.InnerMap); err != nil {
				return "", err
			}
		}
	}
	return fmt.Sprintf("v%d_%08x", layoutVersion, crc32.ChecksumIEEE([]byte(text.String()))), nil
}

// Pinned tells which BPF maps a successor needs. Options are its own, and so are the records
// that it reads.
func Pinned(name string, t ebpf.MapType) bool {
	return t != ebpf.RingBuf && !strings.HasPrefix(name, ".")
}

// Commit pins a complete datapath: BPF maps by name, links by LinkName, LostLink or FullLink.
// The directory appears with its last step. After an error Remove removes what is there.
func (d *Dir) Commit(maps map[string]*ebpf.Map, links map[string]link.Link) error {
	d.own = true // so that Remove takes what is there
	dir := d.path + unfinished
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	for name, m := range maps {
		if err := m.Pin(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("pin BPF map %s: %w", name, err)
		}
	}
	for name, l := range links {
		if err := l.Pin(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("pin %s: %w", name, err)
		}
	}
	if err := os.Rename(dir, d.path); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	return nil
}

// Own says that this process has adopted what is in the directory: Remove removes it.
func (d *Dir) Own() { d.own = true }

// Owned reports whether this process has pinned or adopted what is in the directory: after Commit
// or Own.
func (d *Dir) Owned() bool { return d.own }

// PinLink pins one more link in a directory that is there.
func (d *Dir) PinLink(name string, l link.Link) error {
	if err := l.Pin(filepath.Join(d.path, name)); err != nil {
		return fmt.Errorf("pin %s: %w", name, err)
	}
	return nil
}

// UnpinLink removes the pin of a link, if it is there. A pin that cannot be removed is removed by
// the next start.
func (d *Dir) UnpinLink(name string) { _ = os.Remove(filepath.Join(d.path, name)) }

// EndLink removes the pin of a link, if it is there, and with it the last reference to the link:
// the kernel has detached its program when EndLink returns.
func (d *Dir) EndLink(name string) {
	l, err := link.LoadPinnedLink(filepath.Join(d.path, name), nil)
	d.UnpinLink(name)
	if err == nil {
		l.Close()
	}
}

// Remove removes the pins of this process, and the directories that are empty then. What
// cannot be removed the next start removes.
func (d *Dir) Remove() {
	if d.own {
		_ = os.RemoveAll(d.path)
		_ = os.RemoveAll(d.path + unfinished)
		d.removeEmpty()
	}
}

// removeEmpty removes the directories above the datapath unless others have something there.
func (d *Dir) removeEmpty() {
	_ = os.Remove(d.endpoint)
	_ = os.Remove(d.cfg.Root)
}
