// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// layoutVersion is raised when something in the tables changes its meaning, but not
// its form.
const layoutVersion = 2

// Names in the directory, besides those of tables. A bpf file system takes no dots.
const (
	linkPrefix = "link_" // and the interface index, or what is watched
	unfinished = "_new"  // behind the name of a directory that is being filled
)

// pins is the directory of a datapath:
//
//	root / endpoint and network namespace / layout of the tables / table or link
//
// It appears at once, when the datapath is complete.
type pins struct {
	root     string
	endpoint string
	dir      string
	live     bool // dir is that of this engine
}

// CheckPin returns an error when nothing can be pinned in a directory, which need not be there.
func CheckPin(dir string) error {
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

func newPins(root string, addr netip.AddrPort, netns uint32) (*pins, error) {
	if err := CheckPin(root); err != nil {
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
	endpoint := endpointDir(root, addr, netns)
	return &pins{root: root, endpoint: endpoint, dir: filepath.Join(endpoint, layout)}, nil
}

// endpointDir has the network namespace in its name: addresses may be the same in several.
func endpointDir(root string, addr netip.AddrPort, netns uint32) string {
	return filepath.Join(root, fmt.Sprintf("%s_%d", endpointName(addr), netns))
}

// layout names the form and the meaning of the tables.
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
		if pinned(m.Name, m.Type) {
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

// pinned tells which tables a successor needs. Options are its own, and so are the
// records that it reads.
func pinned(name string, t ebpf.MapType) bool {
	return t != ebpf.RingBuf && !strings.HasPrefix(name, ".")
}

// tables returns the tables that are pinned, by name.
func (e *Engine) tables() map[string]*ebpf.Map {
	all := make(map[string]*ebpf.Map)
	v := reflect.ValueOf(e.objects.RpMaps)
	for i := range v.NumField() {
		name, m := v.Type().Field(i).Tag.Get("ebpf"), v.Field(i).Interface().(*ebpf.Map)
		if pinned(name, m.Type()) {
			all[name] = m
		}
	}
	return all
}

// links returns the attachments, by name in the directory.
func (e *Engine) links() map[string]link.Link {
	all := maps.Clone(e.watches)
	all[linkName(e.recirc.out)] = e.recirc.link
	for _, d := range e.devices {
		if d != nil {
			all[linkName(d.index)] = d.link
		}
	}
	return all
}

func linkName(ifindex int) string { return linkPrefix + strconv.Itoa(ifindex) }

// commit pins a complete datapath.
func (p *pins) commit(tables map[string]*ebpf.Map, links map[string]link.Link) error {
	p.live = true // so that remove takes what is there
	dir := p.dir + unfinished
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	for name, m := range tables {
		if err := m.Pin(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("pin table %s: %w", name, err)
		}
	}
	for name, l := range links {
		if err := l.Pin(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("pin %s: %w", name, err)
		}
	}
	if err := os.Rename(dir, p.dir); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	return nil
}

// add pins the attachment to one more device.
func (p *pins) add(ifindex int, l link.Link) error {
	if p == nil || !p.live {
		return nil
	}
	return l.Pin(filepath.Join(p.dir, linkName(ifindex)))
}

// drop removes the pin of a device.
func (p *pins) drop(ifindex int) {
	if p != nil && p.live {
		_ = os.Remove(filepath.Join(p.dir, linkName(ifindex))) // gone already, or the next start removes it
	}
}

// remove removes the pins of this engine, and the directories that are empty then.
func (p *pins) remove() {
	if p.live {
		_ = os.RemoveAll(p.dir) // what cannot be removed the next start removes
		_ = os.RemoveAll(p.dir + unfinished)
		p.prune()
	}
}

func (p *pins) prune() {
	_ = os.Remove(p.endpoint) // not when others have something there
	_ = os.Remove(p.root)
}

// takeDown ends the datapaths of this endpoint that cannot be adopted: of another
// layout, incomplete, or out of time.
func (p *pins) takeDown(log *slog.Logger) error {
	dirs, err := os.ReadDir(p.endpoint)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take down old datapath: %w", err)
	}
	for _, d := range dirs {
		if err := detachAll(filepath.Join(p.endpoint, d.Name())); err != nil {
			return fmt.Errorf("take down old datapath: %w", err)
		}
		log.Warn("old datapath taken down: nothing is forwarded until the new one runs", "pin", p.endpoint, "layout", d.Name())
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

// sweep removes what nobody goes on with: half-filled directories of this endpoint, and
// the datapaths of other endpoints whose time is over.
func (p *pins) sweep(nl *netlink.Handle, boot time.Time, log *slog.Logger) {
	halves, _ := filepath.Glob(filepath.Join(p.endpoint, "*"+unfinished)) // a good pattern
	for _, dir := range halves {
		if err := detachAll(dir); err != nil {
			log.Warn("half-filled directory not removed", "pin", dir, "err", err)
		}
	}
	lives, _ := filepath.Glob(filepath.Join(p.root, "mdcs*", "v*", bpf.RpMapLives))
	for _, path := range lives {
		dir := filepath.Dir(path)
		endpoint := filepath.Dir(dir)
		if endpoint == p.endpoint {
			continue
		}
		if life, err := loadLife(path); err != nil || !over(life, boot) {
			continue
		}
		if err := detachAll(dir); err != nil {
			log.Warn("datapath of a dead process not removed", "pin", dir, "err", err)
			continue
		}
		_ = os.Remove(endpoint) // not when it has another layout
		name, netns, _ := strings.Cut(filepath.Base(endpoint), "_")
		if strings.HasSuffix(p.endpoint, "_"+netns) { // else it is none of ours, or gone with its namespace
			(&recirculation{name: name}).remove(nl)
		}
		log.Info("datapath of a dead process removed", "pin", dir)
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

// legacy is a datapath that a dead process left.
type legacy struct {
	maps   map[string]*ebpf.Map
	links  map[int]link.Link // of devices, by interface index
	recirc *recirculation
	life   bpf.RpLife
}

func (left *legacy) close() {
	for _, m := range left.maps {
		m.Close()
	}
	for _, l := range left.links {
		l.Close()
	}
	if left.recirc != nil && left.recirc.link != nil {
		left.recirc.link.Close()
	}
}

// find returns the datapath that was left, nil when there is none. With an error it
// cannot be adopted.
func (p *pins) find(nl *netlink.Handle, addr netip.AddrPort, cfg *datapath.Config, boot time.Time) (*legacy, error) {
	files, err := os.ReadDir(p.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	left := &legacy{maps: make(map[string]*ebpf.Map), links: make(map[int]link.Link)}
	if err := left.open(p.dir, files, nl, addr); err != nil {
		left.close()
		return nil, err
	}
	if left.life.Owner != cfg.Owner {
		left.close()
		return nil, errors.New("it is of another node key or chain")
	}
	if i := left.life.Incarnation; cfg.MayBe != nil && !cfg.MayBe(i) {
		left.close()
		return nil, fmt.Errorf("its incarnation %08x is none that this node may have: an older rpd drew it; members join anew", i)
	}
	if over(left.life, boot) {
		left.close()
		return nil, errors.New("its time is over")
	}
	return left, nil
}

func (left *legacy) open(dir string, files []fs.DirEntry, nl *netlink.Handle, addr netip.AddrPort) error {
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		suffix, isLink := strings.CutPrefix(f.Name(), linkPrefix)
		_, watches := watchedBy[f.Name()]
		switch ifindex, err := strconv.Atoi(suffix); {
		case watches:
		case isLink && err == nil:
			l, err := link.LoadPinnedLink(path, nil)
			if err != nil {
				return fmt.Errorf("%s: %w", f.Name(), err)
			}
			if !attached(l, ifindex) { // its device is gone, or it is another's: only the pin is left
				l.Close()
				if err := os.Remove(path); err != nil {
					return err
				}
				continue
			}
			left.links[ifindex] = l
		default:
			m, err := ebpf.LoadPinnedMap(path, nil)
			if err != nil {
				return fmt.Errorf("%s: %w", f.Name(), err)
			}
			left.maps[f.Name()] = m
		}
	}
	spec, err := bpf.LoadRp()
	if err != nil {
		return err
	}
	for name, m := range spec.Maps {
		if !pinned(m.Name, m.Type) {
			continue
		}
		if left.maps[name] == nil {
			return fmt.Errorf("table %s is missing", name)
		}
		if err := m.Compatible(left.maps[name]); err != nil {
			return fmt.Errorf("table %s: %w", name, err)
		}
	}
	if err := left.maps[bpf.RpMapLives].Lookup(uint32(0), &left.life); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	left.recirc = &recirculation{name: endpointName(addr)}
	for name, index := range map[string]*int{"a": &left.recirc.in, "b": &left.recirc.out} {
		l, err := nl.LinkByName(left.recirc.name + name)
		if err != nil {
			return fmt.Errorf("recirculation pair %s: %w", left.recirc.name, err)
		}
		*index = l.Attrs().Index
	}
	left.recirc.link = left.links[left.recirc.out]
	delete(left.links, left.recirc.out)
	if left.recirc.link == nil || !attached(left.recirc.link, left.recirc.out) {
		return fmt.Errorf("recirculation pair %s has no program", left.recirc.name)
	}
	return nil
}

// attached reports whether a link still is that of an interface.
func attached(l link.Link, ifindex int) bool {
	info, err := l.Info()
	return err == nil && info.XDP() != nil && info.XDP().Ifindex == uint32(ifindex)
}

// evict ends the datapath that a dead rpd at another address or port left on a device,
// and reports whether there was one. It is an error when that rpd lives.
func (p *pins) evict(ifindex int, boot time.Time, nl *netlink.Handle, log *slog.Logger) (bool, error) {
	if p == nil {
		return false, nil
	}
	_, netns, _ := strings.Cut(filepath.Base(p.endpoint), "_")
	there, _ := filepath.Glob(filepath.Join(p.root, "mdcs*_"+netns, "*", linkName(ifindex))) // a good pattern
	for _, path := range there {
		dir := filepath.Dir(path)
		endpoint := filepath.Dir(dir)
		if endpoint == p.endpoint {
			continue
		}
		if l, err := link.LoadPinnedLink(path, nil); err != nil {
			continue
		} else {
			has := attached(l, ifindex)
			l.Close()
			if !has {
				continue
			}
		}
		if err := alive(filepath.Join(dir, bpf.RpMapLives), boot); err != nil {
			return false, fmt.Errorf("%w, whose pins are %s: two cannot have one device; stop it, or give one of them other devices ([datapath] devices)", err, dir)
		}
		if err := detachAll(dir); err != nil {
			return false, fmt.Errorf("remove the datapath of a dead rpd, pinned at %s: %w", dir, err)
		}
		_ = os.Remove(endpoint) // not when it has another layout
		name, _, _ := strings.Cut(filepath.Base(endpoint), "_")
		(&recirculation{name: name}).remove(nl)
		log.Warn("datapath of a dead rpd at another address or port taken down", "pin", dir)
		return true, nil
	}
	return false, nil
}

// alive returns an error that names the rpd whose lives are pinned at a path, when it
// runs: it has its port then, and moves its time on.
func alive(path string, boot time.Time) error {
	life, err := loadLife(path)
	if err != nil { // a form of another build, or nothing
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return nil
		}
		defer m.Close()
		value := make([]byte, m.ValueSize())
		if m.Lookup(uint32(0), &value) != nil || len(value) < 8 {
			return nil
		}
		if native.Uint64(value) > uint64(time.Since(boot)+validity-validity/10) {
			return errors.New("another rpd runs")
		}
		return nil
	}
	var addr [16]byte
	for i, w := range life.Addr.Word {
		native.PutUint32(addr[4*i:], w)
	}
	at := netip.AddrPortFrom(netip.AddrFrom16(addr), port(life.Port))
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1) // its address may be gone
	if err := unix.Bind(fd, &unix.SockaddrInet6{Addr: addr, Port: int(at.Port())}); errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("another rpd runs at %v", at)
	}
	return nil
}

// endpointOf returns the pins of an address and port in the network namespace of the
// calling thread, without looking at them.
func endpointOf(root string, addr netip.AddrPort) (*pins, error) {
	var stat unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &stat); err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	return &pins{root: root, endpoint: endpointDir(root, addr, uint32(stat.Ino))}, nil
}

// Left returns the directory of a datapath that was left for an address and port in the
// network namespace of the calling thread and still forwards, "" for none. With an error it
// is not known.
func Left(root string, addr netip.AddrPort) (dir string, err error) {
	p, err := endpointOf(root, addr)
	if err != nil {
		return "", fmt.Errorf("look for a datapath: %w", err)
	}
	boot, err := bootTime()
	if err != nil {
		return "", fmt.Errorf("look for a datapath: %w", err)
	}
	all, _ := filepath.Glob(filepath.Join(p.endpoint, "*", bpf.RpMapLives)) // a good pattern
	for _, path := range all {
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.EPERM) {
			return "", fmt.Errorf("look for a datapath: %s: %w", path, err)
		}
		if err != nil {
			continue // nothing that forwards
		}
		value := make([]byte, m.ValueSize())
		err = m.Lookup(uint32(0), &value)
		m.Close()
		if err == nil && len(value) >= 8 && native.Uint64(value) >= uint64(time.Since(boot)) { // valid_until is first in all layouts
			return filepath.Dir(path), nil
		}
	}
	return "", nil
}

// TakeDown ends the datapath that a dead process left for an address and port in the
// network namespace of the calling thread: another engine is to have them. There need
// be none.
func TakeDown(root string, addr netip.AddrPort, log *slog.Logger) error {
	p, err := endpointOf(root, addr)
	if err != nil {
		return fmt.Errorf("take down old datapath: %w", err)
	}
	if _, err := os.Stat(p.endpoint); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	conn, err := listen(addr) // who has the port has the datapath
	if err != nil {
		return fmt.Errorf("take down old datapath: %w", err)
	}
	defer conn.Close()
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("take down old datapath: netlink: %w", err)
	}
	defer nl.Close()
	if err := p.takeDown(log); err != nil {
		return err
	}
	(&recirculation{name: endpointName(addr)}).remove(nl)
	p.prune()
	return nil
}
