// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/safchain/ethtool"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/rp/hostnet/hostnettest"
)

// site is a host for rpd and another host on its link, each in a network namespace without a name:
//
//	+- near -------------+          +- far ----------------+
//	| va 2001:db8:1::1 ..+---veth---+ vb 2001:db8:1::a     |
//	+--------------------+          +----------------------+
type site struct {
	t         *testing.T
	near, far netns.NsHandle
	dir       string
	config    string
	edits     []string // of the configuration: from, to, ...

	hide    string    // a file that the programs cannot read
	drop    []uintptr // capabilities that the programs lack
	hostArg []string  // of host check
}

func newSite(t *testing.T) *site {
	s := &site{t: t, dir: t.TempDir()}
	for _, ns := range []*netns.NsHandle{&s.near, &s.far} {
		*ns = hostnettest.NewNamespace(t, nil)
	}
	require.NoError(t, unix.Mount("bpf", s.dir, "bpf", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(s.dir, unix.MNT_DETACH)) })
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "va"
	s.in(s.near, func() {
		require.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "vb", PeerNamespace: netlink.NsFd(s.far)}))
	})
	s.in(s.far, func() {
		s.up("lo")
		s.address("vb", "2001:db8:1::a/64", unix.IFA_F_NODAD)
		s.gro("vb", true)
		s.up("vb")
	})
	s.in(s.near, func() { s.up("lo") })
	s.hostArg = []string{"--peer", "2001:db8:1::a"}
	return s
}

func (s *site) in(ns netns.NsHandle, f func()) { hostnettest.In(s.t, ns, f) }

func (s *site) up(name string) {
	l, err := netlink.LinkByName(name)
	require.NoError(s.t, err)
	require.NoError(s.t, netlink.LinkSetUp(l))
}

func (s *site) address(name, addr string, flags int) {
	l, err := netlink.LinkByName(name)
	require.NoError(s.t, err)
	a, err := netlink.ParseAddr(addr)
	require.NoError(s.t, err)
	a.Flags = flags
	require.NoError(s.t, netlink.AddrAdd(l, a))
}

func (s *site) gro(name string, on bool) {
	tool, err := ethtool.NewEthtool()
	require.NoError(s.t, err)
	defer tool.Close()
	require.NoError(s.t, tool.Change(name, map[string]bool{"rx-gro": on}))
}

// usual is the address on its device, which is up.
func (s *site) usual() {
	s.in(s.near, func() {
		s.address("va", "2001:db8:1::1/64", unix.IFA_F_NODAD)
		s.up("va")
	})
}

func (s *site) edit(from, to string) { s.edits = append(s.edits, from, to) }

// write writes the configuration.
func (s *site) write() {
	text := defaultConfig
	files := s.t.TempDir()
	edits := append([]string{
		"\naddress = \"2001:db8::1\"", "\naddress = \"2001:db8:1::1\"",
		"/var/lib/rpd/nodekey", filepath.Join(files, "nodekey"),
		"/run/rpd/admin.sock", filepath.Join(files, "s"),
		`"/sys/fs/bpf/mdcs"`, fmt.Sprintf("%q", filepath.Join(s.dir, "mdcs")),
	}, s.edits...)
	for i := 0; i < len(edits); i += 2 {
		require.Contains(s.t, text, edits[i])
		text = strings.ReplaceAll(text, edits[i], edits[i+1])
	}
	s.config = filepath.Join(files, "rpd.toml")
	require.NoError(s.t, os.WriteFile(s.config, []byte(text), 0o600))
}

// output is what a program writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// start starts rpd in the near namespace.
func (s *site) start(args ...string) (*exec.Cmd, *output) {
	out := new(output)
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: append([]string{"rpd"}, args...), Stdout: out, Stderr: out}
	s.in(s.near, func() {
		if s.hide != "" {
			require.NoError(s.t, unix.Unshare(unix.CLONE_NEWNS))
			require.NoError(s.t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
			require.NoError(s.t, unix.Mount("/dev/null", s.hide, "", unix.MS_BIND, ""))
		}
		for _, c := range s.drop {
			require.NoError(s.t, unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0))
		}
		require.NoError(s.t, cmd.Start())
	})
	s.t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, out
}

var engineSays = regexp.MustCompile(`engine=(xdp|socket)`)

// run starts rpd until it serves or ends, and returns its engine, "" when it ends.
func (s *site) run() (engine string, out string, cmd *exec.Cmd) {
	cmd, log := s.start("--config", s.config)
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		select {
		case <-ended:
			return "", log.String(), cmd
		default:
		}
		if text := log.String(); strings.Contains(text, "replication point serves") {
			return engineSays.FindStringSubmatch(text)[1], text, cmd
		}
	}
	require.Fail(s.t, "rpd neither serves nor ends", log.String())
	return "", "", nil
}

// killed runs rpd with the XDP engine and kills it: its datapath is left.
func (s *site) killed() {
	s.write()
	engine, out, cmd := s.run()
	require.Equal(s.t, "xdp", engine, out)
	require.NoError(s.t, cmd.Process.Kill())
	require.Eventually(s.t, func() bool { return cmd.ProcessState != nil }, time.Minute, 10*time.Millisecond)
}

// check runs host check and returns whether it finds that the XDP engine runs.
func (s *site) check() (ok bool, out string) {
	cmd, log := s.start(append([]string{"host", "check", "--config", s.config}, s.hostArg...)...)
	err := cmd.Wait()
	if exit := (*exec.ExitError)(nil); err != nil {
		require.True(s.t, errors.As(err, &exit), "%v", err)
	}
	return err == nil, log.String()
}

var caps = []uintptr{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN}

// What host check says of a host is what rpd meets there.
func TestXDPHostCheckAgrees(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	for _, c := range []struct {
		name   string
		set    func(*site)
		ok     bool   // host check
		engine string // of rpd, "" when it ends
		says   string // both
		check  string // host check
	}{
		{name: "nothing wrong", set: (*site).usual, ok: true, engine: "xdp", check: "answered within"},
		{name: "veth without GRO at the far end", set: func(s *site) {
			s.usual()
			s.in(s.far, func() { s.gro("vb", false) })
		}, engine: "socket", says: "ethtool -K DEV gro on"},
		{name: "veth without GRO at the far end, and no router", set: func(s *site) {
			s.usual()
			s.in(s.far, func() { s.gro("vb", false) })
			s.hostArg = nil
			s.edit(`engine = "auto"`, `engine = "xdp"`)
		}, engine: "xdp", says: "ethtool -K DEV gro on"},
		{name: "default route by another device", set: func(s *site) {
			s.usual()
			s.edit("devices = []", `devices = ["va"]`)
			s.other()
			s.in(s.near, func() {
				require.NoError(s.t, netlink.RouteAdd(&netlink.Route{Gw: netip.MustParseAddr("2001:db8:2::2").AsSlice()}))
			})
			s.hostArg = nil
		}, engine: "xdp", check: "name v2 in [datapath] devices"},
		{name: "address and default route at another device", set: func(s *site) {
			s.usual()
			s.other()
			s.in(s.near, func() {
				require.NoError(s.t, netlink.RouteAdd(&netlink.Route{Gw: netip.MustParseAddr("2001:db8:1::a").AsSlice()}))
			})
			s.edit("devices = []", `devices = ["v2"]`)
			s.hostArg = nil
		}, engine: "socket", says: "the address 2001:db8:1::1 is at va, the default route leaves by va, and [datapath] devices are v2 alone; name va"},
		{name: "address and default route at another device, engine xdp", set: func(s *site) {
			s.usual()
			s.other()
			s.in(s.near, func() {
				require.NoError(s.t, netlink.RouteAdd(&netlink.Route{Gw: netip.MustParseAddr("2001:db8:1::a").AsSlice()}))
			})
			s.edit("devices = []", `devices = ["v2"]`)
			s.edit(`engine = "auto"`, `engine = "xdp"`)
		}, says: "the default route leaves by va"},
		{name: "address at a bridge, its port named", set: func(s *site) {
			s.in(s.near, func() {
				require.NoError(s.t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
				va, err := netlink.LinkByName("va")
				require.NoError(s.t, err)
				br0, err := netlink.LinkByName("br0")
				require.NoError(s.t, err)
				require.NoError(s.t, netlink.LinkSetMaster(va, br0))
				s.address("br0", "2001:db8:1::1/64", unix.IFA_F_NODAD)
				s.up("br0")
				s.up("va")
			})
			s.edit("devices = []", `devices = ["va"]`)
			s.hostArg = nil
		}, engine: "socket", says: "is at br0 (bridge), a device above va: its datagrams come and go by br0; name br0"},
		{name: "jumbo MTU", set: func(s *site) {
			s.in(s.near, func() { s.mtu("va", 9000) })
			s.in(s.far, func() { s.mtu("vb", 9000) })
			s.usual()
		}, engine: "socket", says: "ip link set dev va mtu 3498"},
		{name: "address on lo", set: func(s *site) {
			s.usual()
			s.loopback()
		}, engine: "socket", says: "name in [datapath] devices"},
		{name: "address on lo, devices named", set: func(s *site) {
			s.usual()
			s.loopback()
			s.edit("devices = []", `devices = ["va"]`)
		}, ok: true, engine: "xdp", check: "answered within"},
		{name: "no BTF", set: func(s *site) {
			s.usual()
			s.hide = "/sys/kernel/btf/vmlinux"
		}, ok: true, engine: "xdp", says: "counter of copies that devices had no room for"},
		{name: "address that is checked for duplicates", set: func(s *site) {
			s.in(s.near, func() {
				s.up("va")
				s.address("va", "2001:db8:1::1/64", 0)
			})
		}, ok: true, engine: "xdp"},
		{name: "no bpf file system", set: func(s *site) {
			s.usual()
			s.edit(filepath.Join(s.dir, "mdcs"), filepath.Join(os.TempDir(), "mdcs-none"))
		}, ok: true, engine: "xdp", says: "mount -t bpf bpf /sys/fs/bpf"},
		{name: "no privileges", set: func(s *site) {
			s.usual()
			s.drop = caps
		}, engine: "socket", says: "no CAP_BPF, no CAP_PERFMON, no CAP_NET_ADMIN"},
		{name: "no privileges, engine xdp", set: func(s *site) {
			s.usual()
			s.drop = caps
			s.edit(`engine = "auto"`, `engine = "xdp"`)
		}, says: "no CAP_BPF, no CAP_PERFMON, no CAP_NET_ADMIN"},
		{name: "no such device", set: func(s *site) {
			s.usual()
			s.edit("devices = []", `devices = ["none"]`)
		}, engine: "socket", says: "none of [datapath] devices: Link not found"},
		{name: "device down", set: func(s *site) {
			s.usual()
			s.edit("devices = []", `devices = ["v2"]`)
			s.in(s.near, func() {
				require.NoError(s.t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v2"}, PeerName: "v3"}))
			})
		}, engine: "socket", says: "ip link set dev v2 up"},
		{name: "kind of device without XDP", set: func(s *site) {
			s.in(s.near, func() {
				require.NoError(s.t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
				s.address("br0", "2001:db8:1::1/64", unix.IFA_F_NODAD)
				s.up("br0")
			})
		}, engine: "socket", says: "the driver (bridge) has no native XDP"},
		{name: "no default router", set: func(s *site) {
			s.usual()
			s.hostArg = nil
		}, ok: true, engine: "xdp", check: "--peer ADDRESS"},
		{name: "nobody answers for the router", set: func(s *site) {
			s.usual()
			s.hostArg = []string{"--peer", "2001:db8:1::dead"}
		}, engine: "xdp", check: "no ND entry"},
		{name: "another program on the device", set: func(s *site) {
			s.usual()
			s.in(s.near, func() { s.foreign("va") })
		}, engine: "socket", says: "another XDP program has it (foreign"},
		{name: "the datapath of a dead rpd at another port", set: func(s *site) {
			s.usual()
			s.edit("data_port = 30501", "data_port = 30601")
			s.killed()
			s.edits = nil
			s.write()
		}, ok: true, engine: "xdp", check: "has the datapath of a dead rpd at another address or port, pinned at"},
		{name: "the datapath of a dead rpd, pinned elsewhere", set: func(s *site) {
			s.usual()
			s.killed()
			s.edit(filepath.Join(s.dir, "mdcs"), filepath.Join(s.dir, "other"))
			s.write()
		}, says: "start rpd with the [datapath] pin that it had, or remove that directory"},
		{name: "the datapath of a dead rpd, pinned elsewhere, engine socket", set: func(s *site) {
			s.usual()
			s.killed()
			s.edit(filepath.Join(s.dir, "mdcs"), filepath.Join(s.dir, "other"))
			s.edit(`engine = "auto"`, `engine = "socket"`)
			s.write()
		}, says: "start rpd with the [datapath] pin that it had, or remove that directory"},
		{name: "the datapath of a dead rpd, pins read-only", set: func(s *site) {
			s.usual()
			s.killed()
			require.NoError(s.t, unix.Mount("", s.dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
		}, says: "nothing can be changed where it is pinned"},
		{name: "the datapath of a dead rpd, pins read-only, engine socket", set: func(s *site) {
			s.usual()
			s.edit(`engine = "auto"`, `engine = "socket"`)
			s.write()
			socket := s.config
			s.edits = nil
			s.killed()
			s.config = socket
			require.NoError(s.t, unix.Mount("", s.dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
		}, says: "nothing can be changed where it is pinned"},
		{name: "another rpd", set: func(s *site) {
			s.usual()
			s.write()
			engine, out, _ := s.run()
			require.Equal(s.t, "xdp", engine, out)
		}, ok: true, check: "a datapath forwards here, pinned at"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			c.set(s)
			if s.config == "" {
				s.write()
			}
			ok, found := s.check()
			require.Equal(t, c.ok, ok, found)
			engine, says, cmd := s.run()
			require.Equal(t, c.engine, engine, "rpd says:\n%shost check says:\n%s", says, found)
			require.Contains(t, found, c.says)
			require.Contains(t, strings.ReplaceAll(says, `\"`, `"`), c.says)
			require.Contains(t, found, c.check)
			if engine != "" {
				require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
			}
		})
	}
}

// other makes one more device, v2, which leads nowhere.
func (s *site) other() {
	s.in(s.near, func() {
		require.NoError(s.t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v2"}, PeerName: "v3"}))
		s.address("v2", "2001:db8:2::1/64", unix.IFA_F_NODAD)
		s.gro("v3", true)
		s.up("v2")
		s.up("v3")
	})
}

func (s *site) mtu(name string, mtu int) {
	l, err := netlink.LinkByName(name)
	require.NoError(s.t, err)
	require.NoError(s.t, netlink.LinkSetMTU(l, mtu))
}

// loopback moves the RP to an address of lo that the other host has a route to.
func (s *site) loopback() {
	s.in(s.near, func() { s.address("lo", "2001:db8:9::1/128", unix.IFA_F_NODAD) })
	s.in(s.far, func() {
		dst, err := netlink.ParseIPNet("2001:db8:9::1/128")
		require.NoError(s.t, err)
		require.NoError(s.t, netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: netip.MustParseAddr("2001:db8:1::1").AsSlice()}))
	})
	s.edit("2001:db8:1::1\"", "2001:db8:9::1\"")
}

// foreign attaches a program of somebody else.
func (s *site) foreign(name string) {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign", Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	require.NoError(s.t, err)
	defer program.Close()
	l, err := netlink.LinkByName(name)
	require.NoError(s.t, err)
	attached, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: l.Attrs().Index, Flags: link.XDPDriverMode})
	require.NoError(s.t, err)
	s.t.Cleanup(func() { attached.Close() })
}

// What stops the XDP engine for a moment does not cost a datapath that forwards: rpd ends,
// and the next start goes on with it. Where there is none, rpd falls back, and says so.
func TestXDPAutoKeepsDatapath(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	s := newSite(t)
	s.usual()
	s.write()
	self, err := os.Executable()
	require.NoError(t, err)
	rpd := filepath.Join(t.TempDir(), "rpd")
	require.NoError(t, os.Symlink(self, rpd))
	starved := func() (*exec.Cmd, *output) { // too few file descriptors
		out := new(output)
		cmd := exec.Command("/bin/sh", "-c", `ulimit -n 60; exec "$0" --config "$1"`, rpd, s.config)
		cmd.Stdout, cmd.Stderr = out, out
		s.in(s.near, func() { require.NoError(t, cmd.Start()) })
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		return cmd, out
	}
	pins := func() []string {
		dirs, err := filepath.Glob(filepath.Join(s.dir, "mdcs", "*", "*"))
		require.NoError(t, err)
		return dirs
	}
	incarnation := func(log string) string {
		return regexp.MustCompile(`incarnation=[0-9a-f]+`).FindString(log)
	}

	engine, first, cmd := s.run()
	require.Equal(t, "xdp", engine, first)
	require.Len(t, pins(), 1)
	there := pins()[0]
	require.NoError(t, cmd.Process.Kill())
	require.Eventually(t, func() bool { return cmd.ProcessState != nil }, time.Minute, 10*time.Millisecond)

	again, out := starved()
	require.Error(t, again.Wait(), out)
	require.Contains(t, out.String(), "too many open files")
	require.Contains(t, out.String(), "LimitNOFILE=")
	require.Contains(t, out.String(), there)
	require.NotContains(t, out.String(), "taken down")
	require.Equal(t, []string{there}, pins())

	engine, third, cmd := s.run()
	require.Equal(t, "xdp", engine, third)
	require.Contains(t, third, "datapath adopted")
	require.Equal(t, incarnation(first), incarnation(third))
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.Eventually(t, func() bool { return cmd.ProcessState != nil }, time.Minute, 10*time.Millisecond)
	require.Empty(t, pins())

	fallen, out := starved()
	require.Eventually(t, func() bool { return strings.Contains(out.String(), "replication point serves") }, time.Minute, 10*time.Millisecond, "%v", out)
	require.Contains(t, out.String(), `level=WARN msg="the xdp engine does not run here: fell back to the slower socket engine"`)
	require.NoError(t, fallen.Process.Signal(syscall.SIGTERM))
	require.NoError(t, fallen.Wait())
}
