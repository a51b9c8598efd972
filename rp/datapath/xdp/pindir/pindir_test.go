// SPDX-License-Identifier: LGPL-3.0-or-later

package pindir

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/ids"
)

// needRoot skips what mounts a file system and loads BPF maps and programs.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// mountBPF returns a directory on a bpf file system of its own.
func mountBPF(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, unix.Mount("bpf", dir, "bpf", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// bootTime returns when CLOCK_MONOTONIC was zero.
func bootTime(t *testing.T) time.Time {
	t.Helper()
	var now unix.Timespec
	require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	return time.Now().Add(-time.Duration(now.Nano()))
}

// host is a network namespace, whose loopback interface stands for a device, with a
// bpf file system. Processes are killed there by closing what they have open.
type host struct {
	t       *testing.T
	root    string
	boot    time.Time
	netns   uint32
	program *ebpf.Program
	removed []string // pairs
	log     bytes.Buffer
}

// loopback is the index of the loopback interface in each namespace.
const loopback = 1

var (
	ours  = netip.MustParseAddrPort("[::1]:30500")
	other = netip.MustParseAddrPort("[::1]:30501")
	owner = [16]byte{'o'}
)

// newHost moves the test's goroutine to a thread of its own, which ends with it.
func newHost(t *testing.T) *host {
	needRoot(t)
	runtime.LockOSThread()
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
	h := &host{t: t, root: filepath.Join(mountBPF(t), "mdcs"), boot: bootTime(t)}
	var err error
	h.netns, err = ThreadNetns()
	require.NoError(t, err)
	h.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, 2), asm.Return(), // XDP_PASS
	}})
	require.NoError(t, err)
	t.Cleanup(func() { h.program.Close() })
	return h
}

// dir is the directory of an endpoint, as a process that starts opens it.
func (h *host) dir(addr netip.AddrPort) *Dir {
	h.t.Helper()
	d, err := New(Config{Root: h.root, Addr: addr, Netns: h.netns, Boot: h.boot, Log: slog.New(slog.NewTextHandler(&h.log, nil)),
		RemovePair: func(endpoint string) { h.removed = append(h.removed, endpoint) }})
	require.NoError(h.t, err)
	return d
}

// datapath is what a process has open.
type datapath struct {
	maps  map[string]*ebpf.Map
	links map[string]link.Link
}

// load makes a datapath that forwards for a time, attached to the loopback interface.
func (h *host) load(addr netip.AddrPort, validity time.Duration) datapath {
	h.t.Helper()
	spec, err := bpf.LoadRp()
	require.NoError(h.t, err)
	d := datapath{make(map[string]*ebpf.Map), make(map[string]link.Link)}
	for name, m := range spec.Maps {
		if Pinned(m.Name, m.Type) {
			d.maps[name], err = ebpf.NewMap(m)
			require.NoError(h.t, err, name)
		}
	}
	life := bpf.RpLife{ValidUntil: uint64(time.Since(h.boot) + validity), Owner: owner, Incarnation: 7}
	life.Port = binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, addr.Port()))
	for i, b := 0, addr.Addr().As16(); i < len(b); i += 4 {
		life.Addr.Word[i/4] = binary.NativeEndian.Uint32(b[i:])
	}
	require.NoError(h.t, d.maps[bpf.RpMapLives].Put(uint32(0), life))
	l, err := link.AttachXDP(link.XDPOptions{Program: h.program, Interface: loopback, Flags: link.XDPGenericMode})
	require.NoError(h.t, err)
	d.links[LinkName(loopback)] = l
	return d
}

// kill closes all that a process had open.
func (d datapath) kill() {
	for _, m := range d.maps {
		m.Close()
	}
	for _, l := range d.links {
		l.Close()
	}
}

// leave is a process that was killed after its Commit.
func (h *host) leave(addr netip.AddrPort, validity time.Duration) {
	h.t.Helper()
	d := h.load(addr, validity)
	require.NoError(h.t, h.dir(addr).Commit(d.maps, d.links))
	d.kill()
}

// attached reports whether a program is on the loopback interface: a second one is refused.
func (h *host) attached() bool {
	h.t.Helper()
	l, err := link.AttachXDP(link.XDPOptions{Program: h.program, Interface: loopback, Flags: link.XDPGenericMode})
	if err == nil {
		l.Close()
		return false
	}
	require.ErrorIs(h.t, err, unix.EBUSY)
	return true
}

// A process that is killed while it pins leaves nothing that the next one adopts, and its
// programs go with the next start.
func TestXDPPinsKilledWhilePinning(t *testing.T) {
	h := newHost(t)
	d := h.load(ours, time.Hour)
	half := h.dir(ours).Path() + unfinished
	require.NoError(t, os.MkdirAll(half, 0o700))
	require.NoError(t, d.maps[bpf.RpMapLives].Pin(filepath.Join(half, bpf.RpMapLives)))
	require.NoError(t, d.links[LinkName(loopback)].Pin(filepath.Join(half, LinkName(loopback))))
	d.kill()
	require.True(t, h.attached())

	next := h.dir(ours)
	next.Sweep()
	require.False(t, h.attached())
	require.NoDirExists(t, half)
	left, err := next.Find(owner, nil)
	require.NoError(t, err)
	require.Nil(t, left)
}

// What a killed process left is found whole, by whom it belongs to, while it forwards.
func TestXDPPinsFound(t *testing.T) {
	h := newHost(t)
	h.leave(ours, time.Hour)
	next := h.dir(ours)
	next.Sweep()
	left, err := next.Find(owner, func(incarnation ids.Incarnation) bool { return incarnation == 7 })
	require.NoError(t, err)
	require.NotNil(t, left)
	require.Equal(t, uint32(7), left.Life.Incarnation)
	require.Len(t, left.Links, 1)
	require.True(t, Attached(left.Links[loopback], loopback))
	require.NotNil(t, left.Maps[bpf.RpMapSessions])
	left.Close()
	dir, err := Left(h.root, ours, h.boot)
	require.NoError(t, err)
	require.Equal(t, next.Path(), dir)
	require.True(t, h.attached(), "Find changes nothing")

	for what, find := range map[string]func() (*Datapath, error){
		"another node key":        func() (*Datapath, error) { return next.Find([16]byte{'x'}, nil) },
		"none that this node may": func() (*Datapath, error) { return next.Find(owner, func(ids.Incarnation) bool { return false }) },
	} {
		left, err := find()
		require.Nil(t, left, what)
		require.ErrorContains(t, err, what)
	}
	none, err := h.dir(other).Find(owner, nil)
	require.NoError(t, err)
	require.Nil(t, none)

	// Only the process that adopted it removes it.
	next.Remove()
	require.DirExists(t, next.Path())
	next.Own()
	next.Remove()
	require.NoDirExists(t, h.root)
}

// A directory that was removed in part is not adopted, whatever is missing, and TakeDown ends
// its programs.
func TestXDPPinsKilledWhileRemoving(t *testing.T) {
	h := newHost(t)
	for _, name := range []string{bpf.RpMapLives, bpf.RpMapSessions, bpf.RpMapNexts, bpf.RpMapTargets} {
		h.leave(ours, time.Hour)
		next := h.dir(ours)
		require.NoError(t, os.Remove(filepath.Join(next.Path(), name)))
		left, err := next.Find(owner, nil)
		require.Nil(t, left, name)
		require.ErrorContains(t, err, "BPF map "+name+" is missing")
		require.True(t, h.attached())
		require.NoError(t, next.TakeDown())
		require.False(t, h.attached())
	}
	there, err := Exists(h.root, ours)
	require.NoError(t, err)
	require.True(t, there, "the directory of the endpoint is left for the new datapath")
	require.NoError(t, TakeDown(h.root, ours, slog.New(slog.DiscardHandler)))
	require.NoDirExists(t, h.root)
}

// A start of another endpoint removes what forwards no more, and nothing else.
func TestXDPPinsOutOfTime(t *testing.T) {
	h := newHost(t)
	h.leave(ours, time.Hour)
	h.dir(other).Sweep()
	require.True(t, h.attached())
	require.Empty(t, h.removed)

	again := h.dir(ours)
	left, err := again.Find(owner, nil)
	require.NoError(t, err)
	left.Life.ValidUntil = 1
	require.NoError(t, left.Maps[bpf.RpMapLives].Put(uint32(0), left.Life))
	left.Close()
	_, err = again.Find(owner, nil)
	require.ErrorContains(t, err, "its time is over")
	dir, err := Left(h.root, ours, h.boot)
	require.NoError(t, err)
	require.Empty(t, dir)

	frozen, err := net.ListenUDP("udp6", &net.UDPAddr{Port: int(ours.Port())})
	require.NoError(t, err)
	h.dir(other).Sweep()
	require.True(t, h.attached(), "its rpd has the port, and goes on some time")
	require.NoError(t, frozen.Close())
	h.dir(other).Sweep()
	require.False(t, h.attached())
	require.Equal(t, []string{EndpointName(ours)}, h.removed)
	require.NoDirExists(t, again.Path())
}

// A device is taken from a dead rpd, and never from an rpd that runs: the process with the port has the
// datapath.
func TestXDPPinsEvict(t *testing.T) {
	h := newHost(t)
	h.leave(ours, time.Hour)
	port, err := net.ListenUDP("udp6", &net.UDPAddr{Port: int(ours.Port())}) // of all addresses: none is up
	require.NoError(t, err)
	evicted, err := h.dir(other).Evict(loopback)
	require.ErrorContains(t, err, "another rpd runs at "+ours.String())
	require.False(t, evicted)
	require.True(t, h.attached())

	require.NoError(t, port.Close())
	evicted, err = h.dir(ours).Evict(loopback)
	require.NoError(t, err)
	require.False(t, evicted, "its own")
	evicted, err = h.dir(other).Evict(loopback + 1)
	require.NoError(t, err)
	require.False(t, evicted, "another device")
	evicted, err = h.dir(other).Evict(loopback)
	require.NoError(t, err)
	require.True(t, evicted)
	require.False(t, h.attached())
	require.Equal(t, []string{EndpointName(ours)}, h.removed)
}

// Pins come and go later, with devices that are attached or gone.
func TestXDPPinsLater(t *testing.T) {
	h := newHost(t)
	d := h.load(ours, time.Hour)
	l := d.links[LinkName(loopback)]
	dir := h.dir(ours)
	require.False(t, dir.Owned())
	require.NoError(t, dir.Commit(d.maps, nil))
	require.True(t, dir.Owned())
	require.NoError(t, dir.PinLink(LostLink, l))
	require.ErrorContains(t, h.dir(other).PinLink(LostLink, l), "pin link_lost")
	d.kill()
	require.True(t, h.attached())
	dir.EndLink(LostLink)
	require.False(t, h.attached())
	dir.EndLink(LostLink) // there is none
	dir.UnpinLink(FullLink)
	files, err := os.ReadDir(dir.Path())
	require.NoError(t, err)
	require.False(t, slices.ContainsFunc(files, func(f os.DirEntry) bool { return f.Name() == LostLink }))
}

// Nothing is pinned where no bpf file system is.
func TestCheckRoot(t *testing.T) {
	require.ErrorContains(t, CheckRoot("pins"), "is not an absolute path")
	require.ErrorContains(t, CheckRoot(filepath.Join(t.TempDir(), "a", "b")), "mount -t bpf bpf /sys/fs/bpf")
}

// A process that died and whose address nobody has any more is dead, too, and one of
// another build is known by its time.
func TestXDPPinsOwner(t *testing.T) {
	needRoot(t)
	boot, pin := bootTime(t), mountBPF(t)
	now := func(ahead time.Duration) uint64 { return uint64(time.Since(boot) + ahead) }
	for name, c := range map[string]struct {
		value any
		size  uint32
		lives bool
	}{
		"dead":                {bpf.RpLife{ValidUntil: now(Validity), Addr: bpf.RpAddress{Word: [4]uint32{1, 2, 3, 4}}, Port: 1}, uint32(binary.Size(bpf.RpLife{})), false},
		"other build, dead":   {[2]uint64{now(Validity / 2)}, 16, false},
		"other build, living": {[2]uint64{now(Validity)}, 16, true},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: c.size, MaxEntries: 1})
			require.NoError(t, err)
			defer m.Close()
			require.NoError(t, m.Put(uint32(0), c.value))
			path := filepath.Join(pin, "lives")
			require.NoError(t, m.Pin(path))
			defer m.Unpin()
			require.Equal(t, c.lives, findOwner(path, boot) != nil)
		})
	}
}

// BPF maps of another form have another layout; what a successor makes itself does not count.
func TestLayout(t *testing.T) {
	name := func(edit func(*ebpf.CollectionSpec)) string {
		spec, err := bpf.LoadRp()
		require.NoError(t, err)
		edit(spec)
		name, err := layout(spec)
		require.NoError(t, err)
		require.NotContains(t, name, ".", "which bpf file systems refuse")
		return name
	}
	same := name(func(*ebpf.CollectionSpec) {})
	require.Regexp(t, fmt.Sprintf("^v%d_[0-9a-f]{8}$", layoutVersion), same)
	require.Equal(t, same, name(func(s *ebpf.CollectionSpec) { s.Maps[bpf.RpMapCache].MaxEntries = 4096 }))
	for what, edit := range map[string]func(*ebpf.CollectionSpec){
		"size":  func(s *ebpf.CollectionSpec) { s.Maps[bpf.RpMapSessions].MaxEntries++ },
		"flags": func(s *ebpf.CollectionSpec) { s.Maps[bpf.RpMapNexts].Flags = 0 },
		"kind":  func(s *ebpf.CollectionSpec) { s.Maps[bpf.RpMapStamps].Type = ebpf.Array },
		"inner": func(s *ebpf.CollectionSpec) { s.Maps[bpf.RpMapTargets].InnerMap.MaxEntries++ },
		"gone":  func(s *ebpf.CollectionSpec) { delete(s.Maps, bpf.RpMapPace) },
		"field": func(s *ebpf.CollectionSpec) {
			value := s.Maps[bpf.RpMapSessions].Value.(*btf.Struct)
			value.Members[1].Name, value.Members[2].Name = value.Members[2].Name, value.Members[1].Name
		},
	} {
		require.NotEqual(t, same, name(edit), what)
	}
}
