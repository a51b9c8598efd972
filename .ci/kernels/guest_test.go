// SPDX-License-Identifier: LGPL-3.0-or-later

// Package kernels has the tests that need a machine of their own: they take its network devices and its services. They
// run in the guests that make test-kernels boots with Debian's kernels, and are skipped elsewhere.
package kernels

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/testnet/lightpeer"
	"github.com/ethmcast/mdcs/testnet/netns"
	"github.com/ethmcast/mdcs/testnet/node"
)

// patience is for what must happen: the guest's processors are emulated.
const patience = 2 * time.Minute

// Where the script puts what the tests need.
const (
	rpdBinary = "/host/rpd"
	rpdUnit   = "/host/rpd.service"
)

// The process's first thread must not serve a network namespace: it does not end with its goroutine, and the devices would
// not come back.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == lightpeer.Command {
		if err := lightpeer.Main(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func needGuest(t *testing.T) {
	t.Helper()
	if os.Getenv("MDCS_GUEST") == "" {
		t.Skip("not in a guest of make test-kernels")
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// newRun returns a run of network namespaces, which ends with the test.
func newRun(t *testing.T) *netns.Run {
	t.Helper()
	run, err := netns.NewRun(netns.StateDir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, run.Close()) })
	return run
}

// card returns a network device of the machine. Some time after the end of a namespace its devices come back.
func card(t *testing.T, name string) netlink.Link {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		link, err := netlink.LinkByName(name)
		if err == nil {
			return link
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v\n%s\n%s", name, err, command("ip", "-brief", "link"), command("lsns", "-t", "net"))
		}
	}
}

// take moves a network device of the machine into a namespace.
func take(t *testing.T, name string, ns *netns.Namespace, addr string) {
	t.Helper()
	link := card(t, name)
	f, err := os.Open(ns.Path())
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, netlink.LinkSetNsFd(link, int(f.Fd())))
	require.NoError(t, ns.AddAddress(name, netip.MustParsePrefix(addr)))
	require.NoError(t, ns.SetUp(name, true))
}

// A replication point copies between two network devices that are no virtual pair, by the XDP engine:
//
//	+--- rp -------------------+       +--- peers --------------------------+
//	|  rpd   eth0 fd00:1::1/64 |--hub--| eth1 fd00:1::2/64                  |
//	+--------------------------+       | 16 peers in a /64 of fd00:2::/32   |
//	                                   +------------------------------------+
//
// Every copy arrives, also when netem holds back what the peers send.
func TestPeersBehindDevices(t *testing.T) {
	needGuest(t)
	const peers, rate, seconds, held = 16, 5, 5, 30 * time.Millisecond
	network := netip.MustParsePrefix("fd00:2::/32")
	run := newRun(t)
	rpSpace, err := run.Namespace("rp")
	require.NoError(t, err)
	peerSpace, err := run.Namespace("peers")
	require.NoError(t, err)
	take(t, "eth0", rpSpace, "fd00:1::1/64")
	take(t, "eth1", peerSpace, "fd00:1::2/64")
	require.NoError(t, rpSpace.SetRoute(network, netip.MustParseAddr("fd00:1::2")))
	require.NoError(t, peerSpace.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{
			LinkIndex: lo.Attrs().Index,
			Dst:       &net.IPNet{IP: network.Addr().AsSlice(), Mask: net.CIDRMask(network.Bits(), 128)},
			Type:      unix.RTN_LOCAL,
			Table:     unix.RT_TABLE_LOCAL,
		})
	}))

	asked := modprobes(t)
	key, err := crypto.GenerateKey()
	require.NoError(t, err)
	log := filepath.Join(t.TempDir(), "rpd.log")
	t.Cleanup(func() {
		if text, err := os.ReadFile(log); t.Failed() && err == nil {
			t.Logf("rpd says:\n%s", text)
		}
	})
	rp, err := node.NewRP(run, rpSpace, node.RPConfig{
		Name: "rpd", Binary: rpdBinary, Key: key, Addr: netip.MustParseAddr("fd00:1::1"), NetworkID: 1, Genesis: common.Hash{1},
		Dir: t.TempDir(), Log: log, Engine: "auto",
	})
	require.NoError(t, err)
	ctx := within(t)
	if err := rp.Start(ctx); err != nil {
		t.Log(err) // it may need longer than Start waits
	}
	require.NoError(t, rp.WaitReady(ctx))
	engine, err := rp.Engine(ctx)
	require.NoError(t, err)
	require.Equal(t, "xdp", engine)

	swarm, err := lightpeer.StartProcess(run, peerSpace, lightpeer.Options{
		RP: rp.URL().URLv4(), NetworkID: 1, Genesis: common.Hash{1}, Network: network, FirstPort: 30400, Peers: peers, Connecting: 4,
	}, os.Stderr)
	require.NoError(t, err)
	require.NoError(t, swarm.Await(ctx, peers, patience))

	published := uint64(0)
	load := func(atLeast time.Duration) {
		t.Helper()
		delays, err := swarm.Load(ctx, rate, seconds*time.Second)
		require.NoError(t, err)
		require.Equal(t, rate*seconds, delays.Published)
		for _, d := range delays.Last {
			require.Greater(t, d, atLeast)
		}
		published += uint64(delays.Published)
		var c lightpeer.Counters
		require.Eventually(t, func() bool { // some copies may be late
			c, err = swarm.Counters(ctx)
			return err != nil || c.Echoes == published && c.Received == published*(peers-1)
		}, patience/4, 100*time.Millisecond, "%d published, %v", published, &c)
		require.NoError(t, err)
		require.Equal(t, peers, c.Members)
		require.Zero(t, c.Lost+c.Duplicates+c.Refused, "%+v", c)
	}
	load(0)
	require.NoError(t, peerSpace.Netem("eth1", netns.NetemParams{Delay: held, Limit: 1000}))
	load(held)

	m, err := rp.Metrics(ctx)
	require.NoError(t, err)
	for name, n := range m {
		if strings.HasPrefix(name, "mdcs_rp_overflows_total") {
			require.Zero(t, n, name)
		}
	}
	require.NoError(t, swarm.Stop())
	require.NoError(t, rp.Stop())
	require.LessOrEqual(t, strings.Count(asked(), "family-netdev"), 1, "one question to an old kernel, and none for each PROBE")
	require.NoError(t, rpSpace.Do(func() error { return nothingLeft("eth0") }))
}

// modprobes has the kernel note what modules it looks for, until the test ends.
func modprobes(t *testing.T) (asked func() string) {
	t.Helper()
	const setting = "/proc/sys/kernel/modprobe"
	before, err := os.ReadFile(setting)
	require.NoError(t, err)
	dir := t.TempDir()
	script, notes := filepath.Join(dir, "modprobe"), filepath.Join(dir, "notes")
	text := fmt.Sprintf("#!/bin/sh\necho \"$@\" >>%s\nexec %s \"$@\"\n", notes, strings.TrimSpace(string(before)))
	require.NoError(t, os.WriteFile(script, []byte(text), 0o755))
	require.NoError(t, os.WriteFile(setting, []byte(script), 0o644))
	t.Cleanup(func() { require.NoError(t, os.WriteFile(setting, before, 0o644)) })
	return func() string {
		b, err := os.ReadFile(notes)
		if !errors.Is(err, os.ErrNotExist) {
			require.NoError(t, err)
		}
		return string(b)
	}
}

// nothingLeft returns what rpd left of the XDP engine in the network namespace of the thread.
func nothingLeft(device string) error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		switch a := l.Attrs(); {
		case strings.HasPrefix(a.Name, "mdcs"):
			return fmt.Errorf("%s is left", a.Name)
		case a.Name == device && a.Xdp != nil && a.Xdp.Attached:
			return fmt.Errorf("%s still has an XDP program", device)
		}
	}
	return nil
}

// netem does what the testnet takes it for: frames are held back, and lost.
func TestNetem(t *testing.T) {
	needGuest(t)
	run := newRun(t)
	a, err := run.Namespace("a")
	require.NoError(t, err)
	b, err := run.Namespace("b")
	require.NoError(t, err)
	require.NoError(t, a.Veth("eth0", b, "eth0"))
	at := netip.MustParseAddrPort("[fd00:3::1]:9")
	for ns, addr := range map[*netns.Namespace]string{a: "fd00:3::1/64", b: "fd00:3::2/64"} {
		require.NoError(t, ns.AddAddress("eth0", netip.MustParsePrefix(addr)))
		require.NoError(t, ns.SetUp("eth0", true))
	}
	var from, to *net.UDPConn
	require.NoError(t, a.Do(func() (err error) {
		to, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(at))
		return err
	}))
	defer to.Close()
	require.NoError(t, b.Do(func() (err error) {
		from, err = net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(at))
		return err
	}))
	defer from.Close()
	// arrives sends a frame and returns when it arrives. One of before that comes late is none.
	number := byte(0)
	arrives := func(limit time.Duration) (time.Duration, bool) {
		number++
		began := time.Now()
		_, err := from.Write([]byte{number})
		require.NoError(t, err)
		require.NoError(t, to.SetReadDeadline(began.Add(limit)))
		for b := []byte{0}; ; {
			if _, err := to.Read(b); err != nil || b[0] == number {
				return time.Since(began), err == nil
			}
		}
	}
	require.Eventually(t, func() bool { _, ok := arrives(time.Second); return ok }, patience, time.Millisecond)

	require.NoError(t, b.Netem("eth0", netns.NetemParams{Delay: 50 * time.Millisecond, Limit: 100}))
	took, ok := arrives(patience)
	require.True(t, ok)
	require.GreaterOrEqual(t, took, 50*time.Millisecond)

	require.NoError(t, b.Netem("eth0", netns.NetemParams{Loss: 1, Limit: 100}))
	_, ok = arrives(2 * time.Second)
	require.False(t, ok)
}

// systemd runs the unit as it is shipped, with all that it takes from rpd: the XDP engine starts nevertheless, a reload
// reloads, an rpd that is killed is started again and goes on, and after a stop nothing is left.
func TestUnit(t *testing.T) {
	needGuest(t)
	for from, to := range map[string]string{rpdBinary: "/usr/local/bin/rpd", rpdUnit: "/etc/systemd/system/rpd.service"} {
		b, err := os.ReadFile(from)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(to, b, 0o755))
	}
	require.NoError(t, os.MkdirAll("/etc/rpd", 0o755))
	config := fmt.Sprintf("[node]\naddress = \"fd00:4::1\"\n[chain]\nnetwork_id = 1\ngenesis = %q\n", common.Hash{1})
	require.NoError(t, os.WriteFile("/etc/rpd/rpd.toml", []byte(config), 0o644))

	link := card(t, "eth0")
	addr, err := netlink.ParseAddr("fd00:4::1/64")
	require.NoError(t, err)
	addr.Flags = unix.IFA_F_NODAD
	require.NoError(t, netlink.AddrReplace(link, addr))
	require.NoError(t, netlink.LinkSetUp(link))
	t.Cleanup(func() { require.NoError(t, netlink.AddrDel(link, addr)) })

	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the journal of rpd:\n%s", command("journalctl", "--no-pager", "-u", "rpd"))
		}
		command("systemctl", "stop", "rpd")
	})
	require.Equal(t, "", command("systemctl", "daemon-reload"))
	require.Equal(t, "", command("systemctl", "start", "rpd"))
	ctx := within(t)
	says := func(what string) {
		t.Helper()
		require.NoError(t, node.Wait(ctx, what, func(context.Context) error {
			if !strings.Contains(command("journalctl", "--no-pager", "-u", "rpd"), what) {
				return errors.New("rpd did not say so")
			}
			return nil
		}))
	}
	serves := func(restarts string) {
		t.Helper()
		require.NoError(t, node.Wait(ctx, "service", func(context.Context) error {
			got := command("systemctl", "is-active", "rpd") + " " + command("systemctl", "show", "-P", "NRestarts", "rpd")
			if got != "active "+restarts {
				return errors.New(got)
			}
			return nil
		}))
		metrics, err := get(ctx, "http://[::1]:9300/metrics")
		require.NoError(t, err, "rpd is ready before it serves")
		require.Contains(t, metrics, `mdcs_rp_engine_info{engine="xdp",reason="auto"} 1`)
	}
	pins := func() []string {
		t.Helper()
		pins, err := filepath.Glob("/sys/fs/bpf/mdcs/*")
		require.NoError(t, err)
		return pins
	}
	serves("0")
	says("engine=xdp")
	pinned := pins()
	require.NotEmpty(t, pinned, "the unit lets rpd pin its datapath")

	// Without an address the pair sends nothing of its own that the programs would have to tell from datagrams.
	links, err := netlink.LinkList()
	require.NoError(t, err)
	pair := 0
	for _, l := range links {
		if !strings.HasPrefix(l.Attrs().Name, "mdcs") {
			continue
		}
		pair++
		addrs, err := netlink.AddrList(l, unix.AF_UNSPEC)
		require.NoError(t, err)
		require.Empty(t, addrs, l.Attrs().Name)
	}
	require.Equal(t, 2, pair)

	require.NoError(t, os.WriteFile("/etc/rpd/rpd.toml", []byte(config+"[log]\nlevel = \"debug\"\n"), 0o644))
	require.Equal(t, "", command("systemctl", "reload", "rpd"))
	says("changed=log.level")
	serves("0")

	require.Equal(t, "", command("systemctl", "kill", "--signal=KILL", "rpd"))
	says("datapath adopted")
	serves("1")
	require.Equal(t, pinned, pins())

	require.Equal(t, "", command("systemctl", "stop", "rpd"))
	require.Equal(t, "inactive", command("systemctl", "is-active", "rpd"))
	require.NoError(t, nothingLeft("eth0"))
	require.Empty(t, pins())
}

// command runs a program and returns what it prints.
func command(name string, args ...string) string {
	out, err := exec.Command(name, args...).CombinedOutput()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		return err.Error()
	}
	return strings.TrimSpace(string(out))
}

func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(b), err
}
