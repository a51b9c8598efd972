// SPDX-License-Identifier: LGPL-3.0-or-later

package pindir

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/ids"
)

// Datapath is a datapath that a dead process left.
type Datapath struct {
	Maps  map[string]*ebpf.Map // by name
	Links map[int]link.Link    // by interface index, each attached there
	Life  bpf.RpLife           // whose datapath it is, and until when it forwards
}

// Close closes the handles. The datapath stays.
func (left *Datapath) Close() {
	for _, m := range left.Maps {
		m.Close()
	}
	for _, l := range left.Links {
		l.Close()
	}
}

// Find returns the datapath that was left by the process with an owner, nil when there is
// none. mayBe tells which incarnations it may have; nil is any. With an error the datapath
// cannot be adopted, and is unchanged.
func (d *Dir) Find(owner [16]byte, mayBe func(incarnation ids.Incarnation) bool) (*Datapath, error) {
	files, err := os.ReadDir(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	left := &Datapath{Maps: make(map[string]*ebpf.Map), Links: make(map[int]link.Link)}
	if err := left.open(d.path, files); err != nil {
		left.Close()
		return nil, err
	}
	if left.Life.Owner != owner {
		left.Close()
		return nil, errors.New("it is of another node key or chain")
	}
	if i := ids.Incarnation(left.Life.Incarnation); mayBe != nil && !mayBe(i) {
		left.Close()
		return nil, fmt.Errorf("its incarnation %08x is none that this node may have: an older rpd drew it; members join anew", i)
	}
	if over(left.Life, d.cfg.Boot) {
		left.Close()
		return nil, errors.New("its time is over")
	}
	return left, nil
}

func (left *Datapath) open(dir string, files []fs.DirEntry) error {
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		suffix, isLink := strings.CutPrefix(f.Name(), linkPrefix)
		switch ifindex, err := strconv.Atoi(suffix); {
		case f.Name() == LostLink || f.Name() == FullLink:
		case isLink && err == nil:
			l, err := link.LoadPinnedLink(path, nil)
			if err != nil {
				return fmt.Errorf("%s: %w", f.Name(), err)
			}
			if !Attached(l, ifindex) { // its device is gone, or it is another's: only the pin is left
				l.Close()
				if err := os.Remove(path); err != nil {
					return err
				}
				continue
			}
			left.Links[ifindex] = l
		default:
			m, err := ebpf.LoadPinnedMap(path, nil)
			if err != nil {
				return fmt.Errorf("%s: %w", f.Name(), err)
			}
			left.Maps[f.Name()] = m
		}
	}
	spec, err := bpf.LoadRp()
	if err != nil {
		return err
	}
	for name, m := range spec.Maps {
		if !Pinned(m.Name, m.Type) {
			continue
		}
		if left.Maps[name] == nil {
			return fmt.Errorf("BPF map %s is missing", name)
		}
		if err := m.Compatible(left.Maps[name]); err != nil {
			return fmt.Errorf("BPF map %s: %w", name, err)
		}
	}
	if err := left.Maps[bpf.RpMapLives].Lookup(uint32(0), &left.Life); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	return nil
}

// Attached reports whether a link is attached to the interface with an index. One that the
// kernel does not tell of now is taken for attached: nothing is given up for that.
func Attached(l link.Link, ifindex int) bool {
	info, err := l.Info()
	return err != nil || info.XDP() != nil && info.XDP().Ifindex == uint32(ifindex)
}

// TakeDown ends the datapaths of this endpoint that cannot be adopted: of another layout,
// incomplete, or out of time.
func (d *Dir) TakeDown() error {
	dirs, err := os.ReadDir(d.endpoint)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take down old datapath: %w", err)
	}
	for _, dir := range dirs {
		if err := detachAll(filepath.Join(d.endpoint, dir.Name())); err != nil {
			return fmt.Errorf("take down old datapath: %w", err)
		}
		d.cfg.Log.Warn("old datapath taken down: nothing is forwarded until the new one runs", "pin", d.endpoint, "layout", dir.Name())
	}
	return nil
}

// detachAll detaches the links in a directory and removes it, whatever else is pinned
// there.
func detachAll(dir string) error {
	files, err := os.ReadDir(dir)
	if errors.Is(err, unix.ENOTDIR) {
		return os.Remove(dir)
	}
	if err != nil {
		return err
	}
	for _, f := range files {
		if !strings.HasPrefix(f.Name(), linkPrefix) {
			continue
		}
		l, err := link.LoadPinnedLink(filepath.Join(dir, f.Name()), nil)
		if err != nil {
			continue // it is no link, and nothing but its pin is to be removed
		}
		// A link that cannot be detached, or is detached already, ends with its pin.
		_ = l.Detach()
		l.Close()
	}
	return os.RemoveAll(dir)
}

// Sweep removes what no process goes on with: half-filled directories of this endpoint, and
// the datapaths of other endpoints whose time is over. An rpd that was frozen for so long, and
// goes on, has its port: its datapath stays. In another network namespace that cannot be seen.
func (d *Dir) Sweep() {
	halves, _ := filepath.Glob(filepath.Join(d.endpoint, "*"+unfinished)) // a good pattern
	for _, dir := range halves {
		if err := detachAll(dir); err != nil {
			d.cfg.Log.Warn("half-filled directory not removed", "pin", dir, "err", err)
		}
	}
	lives, _ := filepath.Glob(filepath.Join(d.cfg.Root, "mdcs*", "v*", bpf.RpMapLives))
	for _, path := range lives {
		dir := filepath.Dir(path)
		endpoint := filepath.Dir(dir)
		if endpoint == d.endpoint {
			continue
		}
		if life, err := loadLife(path); err != nil || !over(life, d.cfg.Boot) {
			continue
		}
		name, netns, _ := strings.Cut(filepath.Base(endpoint), "_")
		here := netns == strconv.Itoa(int(d.cfg.Netns)) // else it is none of ours, or gone with its namespace
		if here && findOwner(path, d.cfg.Boot) != nil {
			continue
		}
		if err := detachAll(dir); err != nil {
			d.cfg.Log.Warn("datapath of a dead process not removed", "pin", dir, "err", err)
			continue
		}
		_ = os.Remove(endpoint) // not when it has another layout
		if here {
			d.cfg.RemovePair(name)
		}
		d.cfg.Log.Info("datapath of a dead process removed", "pin", dir)
	}
}

func loadLife(path string) (life bpf.RpLife, err error) {
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return life, err
	}
	defer m.Close()
	return life, m.Lookup(uint32(0), &life)
}

// over reports whether a datapath drops everything.
func over(life bpf.RpLife, boot time.Time) bool { return life.ValidUntil < uint64(time.Since(boot)) }

// Occupant returns the directory of the datapath that a dead rpd at another address or port
// left on a device, "" for none. It is an error when that rpd runs.
func (d *Dir) Occupant(ifindex int) (dir string, err error) {
	there, _ := filepath.Glob(filepath.Join(d.cfg.Root, fmt.Sprintf("mdcs*_%d", d.cfg.Netns), "*", LinkName(ifindex))) // a good pattern
	for _, path := range there {
		dir := filepath.Dir(path)
		endpoint := filepath.Dir(dir)
		if endpoint == d.endpoint {
			continue
		}
		if l, err := link.LoadPinnedLink(path, nil); err != nil {
			continue
		} else {
			has := Attached(l, ifindex)
			l.Close()
			if !has {
				continue
			}
		}
		if err := findOwner(filepath.Join(dir, bpf.RpMapLives), d.cfg.Boot); err != nil {
			return "", fmt.Errorf("%w, whose pins are %s: two cannot have one device; stop it, or give one of them other devices ([datapath] devices)", err, dir)
		}
		return dir, nil
	}
	return "", nil
}

// Evict ends the datapath of Occupant, and reports whether there was one.
func (d *Dir) Evict(ifindex int) (evicted bool, err error) {
	dir, err := d.Occupant(ifindex)
	if dir == "" {
		return false, err
	}
	if err := detachAll(dir); err != nil {
		return false, fmt.Errorf("remove the datapath of a dead rpd, pinned at %s: %w", dir, err)
	}
	endpoint := filepath.Dir(dir)
	_ = os.Remove(endpoint) // not when it has another layout
	name, _, _ := strings.Cut(filepath.Base(endpoint), "_")
	d.cfg.RemovePair(name)
	d.cfg.Log.Warn("datapath of a dead rpd at another address or port taken down", "pin", dir)
	return true, nil
}

// findOwner returns an error that names the rpd whose lives are pinned at a path, when it
// runs: it has its port then, and moves its time on.
func findOwner(path string, boot time.Time) error {
	life, err := loadLife(path)
	if err != nil { // a form of another build, or nothing
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return nil
		}
		defer m.Close()
		until, err := validUntil(m)
		if err == nil && until > uint64(time.Since(boot)+Validity-Validity/10) {
			return errors.New("another rpd runs")
		}
		return nil
	}
	var addr [16]byte
	for i, w := range life.Addr.Word {
		binary.NativeEndian.PutUint32(addr[4*i:], w)
	}
	port := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, life.Port))
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1) // its address may be gone
	if err := unix.Bind(fd, &unix.SockaddrInet6{Addr: addr, Port: int(port)}); errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("another rpd runs at %v", netip.AddrPortFrom(netip.AddrFrom16(addr), port))
	}
	return nil
}

// validUntil reads the end of a datapath from its lives, which stand first in all layouts. It
// is in nanoseconds of CLOCK_MONOTONIC.
func validUntil(lives *ebpf.Map) (uint64, error) {
	value := make([]byte, lives.ValueSize())
	if err := lives.Lookup(uint32(0), &value); err != nil {
		return 0, err
	}
	if len(value) < 8 {
		return 0, fmt.Errorf("lives of %d bytes", len(value))
	}
	return binary.NativeEndian.Uint64(value), nil
}

// ThreadNetns returns the inode of the network namespace of the calling thread.
func ThreadNetns() (uint32, error) {
	var stat unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &stat); err != nil {
		return 0, fmt.Errorf("network namespace: %w", err)
	}
	return uint32(stat.Ino), nil
}

// Left returns the directory of a datapath that was left for an address and port in the
// network namespace of the calling thread and still forwards, "" for none. boot is when
// CLOCK_MONOTONIC was zero. With an error it is not known.
func Left(root string, addr netip.AddrPort, boot time.Time) (dir string, err error) {
	netns, err := ThreadNetns()
	if err != nil {
		return "", fmt.Errorf("look for a datapath: %w", err)
	}
	all, _ := filepath.Glob(filepath.Join(endpointDir(root, addr, netns), "*", bpf.RpMapLives)) // a good pattern
	for _, path := range all {
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.EPERM) {
			return "", fmt.Errorf("look for a datapath: %s: %w", path, err)
		}
		if err != nil {
			continue // nothing that forwards
		}
		until, err := validUntil(m)
		m.Close()
		if err == nil && until >= uint64(time.Since(boot)) {
			return filepath.Dir(path), nil
		}
	}
	return "", nil
}

// Exists reports whether anything is pinned for an address and port in the network namespace of
// the calling thread.
func Exists(root string, addr netip.AddrPort) (bool, error) {
	netns, err := ThreadNetns()
	if err != nil {
		return false, err
	}
	if _, err := os.Stat(endpointDir(root, addr, netns)); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return true, nil
}

// TakeDown ends the datapaths of whatever layout that were left for an address and port in the
// network namespace of the calling thread. The caller has bound the port.
func TakeDown(root string, addr netip.AddrPort, log *slog.Logger) error {
	netns, err := ThreadNetns()
	if err != nil {
		return fmt.Errorf("take down old datapath: %w", err)
	}
	d := &Dir{cfg: Config{Root: root, Log: log}, endpoint: endpointDir(root, addr, netns)}
	if err := d.TakeDown(); err != nil {
		return err
	}
	d.removeEmpty()
	return nil
}
