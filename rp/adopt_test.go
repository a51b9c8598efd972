// SPDX-License-Identifier: LGPL-3.0-or-later

package rp_test

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/safchain/ethtool"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/socket"
	"github.com/ethmcast/mdcs/rp/hostnet/hostnettest"
)

// adopter is a socket engine that claims to go on with a state.
type adopter struct {
	*socket.Engine
	state *datapath.State
}

func (a *adopter) Adopted() *datapath.State { return a.state }

func (a *adopter) Abandon() { a.Close() }

// An RP whose engine adopted a datapath is the ingress RP that it was, for its peers
// and for its neighbours.
func TestAdoptedIncarnation(t *testing.T) {
	t.Parallel()
	points, sites := meshOf(t, 2)
	a, gone := newPeer(t, points[0], peerOptions{}), newPeer(t, points[1], peerOptions{})
	members(t, a, gone)
	old := points[1].Incarnation()
	knows(t, a, old)
	gone.leave()
	points[1].Stop()
	awaitLinkDown(t, points[0])

	// Two epochs, of which the newer one is used.
	state := &datapath.State{
		Incarnation: old,
		HandleKey:   auth.Key{1},
		Keys: []proto.GroupKey{
			{Ingress: old, Group: testGroup, Epoch: 6, Key: auth.Key{6}},
			{Ingress: old, Group: testGroup, Epoch: 7, Key: auth.Key{7}},
		},
		Sessions: []datapath.Session{{Index: 5, Role: datapath.Mesh, Addr: points[0].Addr()}},
		Routes: []datapath.Route{
			{Ingress: old, To: []datapath.Branch{{Session: 5, Groups: []ids.Group{testGroup}}}},
			{Ingress: points[0].Incarnation(), From: []ids.Session{5}},
		},
	}
	cfg := sites[1].config(t, sites[0])
	cfg.Engine = func(c datapath.Config) (datapath.Engine, error) {
		require.True(t, c.MayBe(c.Incarnation), "drawn")
		require.True(t, c.MayBe(old), "left")
		require.False(t, c.MayBe(points[0].Incarnation()), "of another RP")
		c.Incarnation, c.HandleKey = state.Incarnation, state.HandleKey
		e, err := socket.Listen(c)
		if err != nil {
			return nil, err
		}
		return &adopter{e, state}, e.Apply(datapath.Change{Keys: state.Keys, Add: state.Sessions, Routes: state.Routes})
	}
	again := start(t, cfg)
	require.Equal(t, old, again.Incarnation())
	awaitReady(t, again)
	awaitReady(t, points[0])
	require.Eventually(t, func() bool {
		sessions := again.Status().Datapath.Sessions
		return len(sessions) == 1 && sessions[0].Index != 5
	}, patience, 5*time.Millisecond, "the new session of the neighbour is in the old one's place")

	b := newPeer(t, again, peerOptions{})
	members(t, a, b)
	b.publish("from where it was")
	a.publish("to where it was")
	require.Eventually(t, func() bool { return len(a.got()) == 1 && len(b.got()) == 1 }, patience, 5*time.Millisecond)
	h := see(a, func(p *lightPeer) []uint8 { return []uint8{p.data[0].Epoch} })
	require.Equal(t, []uint8{7}, h)
	require.Equal(t, old, see(a, func(p *lightPeer) ids.Incarnation { return p.data[0].Ingress }))
	require.Empty(t, see(a, func(p *lightPeer) []ids.Incarnation { return p.retired }), "nobody heard of another incarnation")
	for _, p := range []*lightPeer{a, b} {
		require.Empty(t, p.badDatagrams())
	}
}

// island is two network namespaces and what an rpd in one of them needs:
//
//	+- rp -----------+          +- hosts -----------------+
//	| fd00:7::1  rp0 +---veth---+ h0  fd00:7::2, light peers |
//	+----------------+          +-------------------------+
type island struct {
	t         *testing.T
	rp, hosts netns.NsHandle
	pin       string
	config    string
	binary    string
	peers     *host
}

func newIsland(t *testing.T) *island {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	i := &island{t: t, rp: newNamespace(t), hosts: newNamespace(t)}
	nl, err := netlink.NewHandleAt(i.rp)
	require.NoError(t, err)
	defer nl.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "rp0"
	require.NoError(t, nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "h0", PeerNamespace: netlink.NsFd(i.hosts)}))
	for _, end := range []struct {
		ns         netns.NsHandle
		name, addr string
	}{{i.rp, "rp0", "fd00:7::1/64"}, {i.hosts, "h0", "fd00:7::2/64"}} {
		hostnettest.In(t, end.ns, func() {
			link, err := netlink.LinkByName(end.name)
			require.NoError(t, err)
			addr, err := netlink.ParseAddr(end.addr)
			require.NoError(t, err)
			addr.Flags = unix.IFA_F_NODAD
			require.NoError(t, netlink.AddrAdd(link, addr))
			require.NoError(t, netlink.LinkSetUp(link))
			// A veth takes redirected frames only when its far end polls.
			tool, err := ethtool.NewEthtool()
			require.NoError(t, err)
			defer tool.Close()
			require.NoError(t, tool.Change(end.name, map[string]bool{"rx-gro": true}))
		})
	}

	dir := t.TempDir()
	fs := filepath.Join(dir, "bpf")
	require.NoError(t, os.Mkdir(fs, 0o700))
	require.NoError(t, unix.Mount("bpf", fs, "bpf", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(fs, unix.MNT_DETACH)) })
	i.pin = filepath.Join(fs, "mdcs")

	key, err := crypto.GenerateKey()
	require.NoError(t, err)
	keyFile := filepath.Join(dir, "nodekey")
	require.NoError(t, crypto.SaveECDSA(keyFile, key))
	at := netip.MustParseAddr("fd00:7::1")
	i.peers = &host{
		addr: netip.MustParseAddr("fd00:7::2"),
		rp:   at,
		node: enode.NewV4(&key.PublicKey, at.AsSlice(), 30500, 0),
		in:   func(f func()) { hostnettest.In(t, i.hosts, f) },
	}
	i.config = filepath.Join(dir, "rpd.toml")
	require.NoError(t, os.WriteFile(i.config, fmt.Appendf(nil, `
[node]
key_file = %q
address = "fd00:7::1"
[chain]
network_id = %d
genesis = "0x%x"
[datapath]
engine = "xdp"
pin = %q
[admin]
listen = ""
`, keyFile, testNetwork, testGenesis, i.pin), 0o600))
	i.binary = buildDaemon(t)
	return i
}

// buildDaemon returns the path of an rpd of this source.
func buildDaemon(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "rpd")
	out, err := exec.Command("go", "build", "-o", binary, "github.com/ethmcast/mdcs/cmd/rpd").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return binary
}

func newNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	return hostnettest.NewNamespace(t, func() {
		lo, err := netlink.LinkByName("lo")
		require.NoError(t, err)
		require.NoError(t, netlink.LinkSetUp(lo))
	})
}

// daemon is an rpd process.
type daemon struct {
	t   *testing.T
	cmd *exec.Cmd
	mu  sync.Mutex
	log bytes.Buffer
}

// start starts rpd with the privileges that the unit file gives.
func (i *island) start() *daemon { return i.startAt(i.rp, i.config) }

// startAt is start in a namespace, with a configuration.
func (i *island) startAt(ns netns.NsHandle, config string) *daemon {
	d := &daemon{t: i.t, cmd: exec.Command(i.binary, "--config", config)}
	d.cmd.Stderr = d
	hostnettest.In(i.t, ns, func() {
		for c := range uintptr(unix.CAP_LAST_CAP + 1) { // of this thread, which ends
			if c != unix.CAP_BPF && c != unix.CAP_PERFMON && c != unix.CAP_NET_ADMIN {
				require.NoError(i.t, unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0))
			}
		}
		require.NoError(i.t, d.cmd.Start())
	})
	i.t.Cleanup(func() { d.end(syscall.SIGKILL) })
	return d
}

// Write takes the daemon's log.
func (d *daemon) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.Write(b)
}

func (d *daemon) logged() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

// says waits for a line of the log.
func (d *daemon) says(what string) {
	d.t.Helper()
	for end := time.Now().Add(patience); !bytes.Contains([]byte(d.logged()), []byte(what)); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			d.t.Errorf("rpd never said %q: %s", what, d.logged())
			return
		}
	}
}

// end ends the daemon by a signal, and waits.
func (d *daemon) end(s syscall.Signal) {
	if d.cmd.ProcessState == nil {
		_ = d.cmd.Process.Signal(s)
		_ = d.cmd.Wait()
	}
}

// Who asks for the engine where it cannot run gets one line and an exit code, and
// nothing is left.
func TestXDPDaemonRefuses(t *testing.T) {
	i := newIsland(t)
	hostnettest.In(t, i.rp, func() { // a bridge has no native XDP
		br0 := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		require.NoError(t, netlink.LinkAdd(br0))
		require.NoError(t, netlink.LinkSetUp(br0))
	})
	good, err := os.ReadFile(i.config)
	require.NoError(t, err)
	for _, bad := range []struct {
		name, devices string
		drop          []uintptr // capabilities
		want          string
	}{
		{"missing device", `["rp0", "none"]`, nil, "rpd: rp: data port: xdp engine: device: none of [datapath] devices: Link not found\n"},
		{"no Ethernet device", `["rp0", "lo"]`, nil, "rpd: rp: data port: xdp engine: attach XDP to lo: not an Ethernet device: name in [datapath] devices those by which peers are reached\n"},
		{"no native XDP", `["rp0", "br0"]`, nil, "rpd: rp: data port: xdp engine: attach XDP to br0: failed to attach link: create link: operation not supported: the driver (bridge) has no native XDP"},
		{"no privileges", `[]`, []uintptr{unix.CAP_BPF, unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN},
			"rpd: rp: data port: xdp engine: privileges: no CAP_BPF, no CAP_NET_ADMIN\n"},
	} {
		t.Run(bad.name, func(t *testing.T) {
			text := bytes.Replace(good, []byte("[datapath]\n"), []byte("[datapath]\ndevices = "+bad.devices+"\n"), 1)
			config := filepath.Join(t.TempDir(), "rpd.toml")
			require.NoError(t, os.WriteFile(config, text, 0o600))
			cmd := exec.Command(i.binary, "--config", config)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			hostnettest.In(t, i.rp, func() {
				for _, c := range bad.drop { // of this thread, which ends
					require.NoError(t, unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0))
				}
				require.NoError(t, cmd.Start())
			})
			require.Error(t, cmd.Wait())
			require.Equal(t, 1, cmd.ProcessState.ExitCode())
			starts, says, _ := bytes.Cut(stderr.Bytes(), []byte("\n"))
			require.Contains(t, string(starts), "rpd starts")
			limit, says, _ := bytes.Cut(says, []byte("\n"))
			require.Contains(t, string(limit), "limit of all copies")
			require.Contains(t, string(says), bad.want)
			require.Equal(t, 1, bytes.Count(says, []byte("\n")), "%s", says)
			require.NoDirExists(t, i.pin)
			hostnettest.In(t, i.rp, func() {
				links, err := netlink.LinkList()
				require.NoError(t, err)
				for _, l := range links {
					require.Contains(t, []string{"lo", "rp0", "br0"}, l.Attrs().Name)
					require.True(t, l.Attrs().Xdp == nil || !l.Attrs().Xdp.Attached, "%s has a program", l.Attrs().Name)
				}
			})
		})
	}
}

// What a killed rpd left does not stand in the way of one that takes the socket
// engine, and without a bpf file system the XDP engine runs all the same.
func TestXDPDaemonWithoutPins(t *testing.T) {
	i := newIsland(t)
	first := i.start()
	first.says("replication point serves")
	require.DirExists(t, i.pin)
	first.end(syscall.SIGKILL)
	require.DirExists(t, i.pin)

	edit := func(from, to string) {
		text, err := os.ReadFile(i.config)
		require.NoError(t, err)
		require.Contains(t, string(text), from)
		require.NoError(t, os.WriteFile(i.config, bytes.Replace(text, []byte(from), []byte(to), 1), 0o600))
	}
	edit(`engine = "xdp"`, `engine = "socket"`)
	second := i.start()
	second.says("old datapath taken down")
	second.says("replication point serves")
	require.NoDirExists(t, i.pin)
	peers := []*lightPeer{newPeer(t, nil, peerOptions{host: i.peers}), newPeer(t, nil, peerOptions{host: i.peers})}
	members(t, peers...)
	peers[0].publish("by a socket")
	require.Eventually(t, func() bool { return len(peers[1].got()) == 1 }, patience, 5*time.Millisecond)
	second.end(syscall.SIGTERM)

	edit(`engine = "socket"`, `engine = "xdp"`)
	edit(i.pin, filepath.Join(filepath.Dir(i.config), "mdcs"))
	third := i.start()
	third.says("replication point serves")
	warning := regexp.MustCompile(`(?m)^.*level=WARN.*$`).FindAllString(third.logged(), -1)
	require.Len(t, warning, 1)
	require.Contains(t, warning[0], "datapath not pinned: it ends with rpd")
	require.Contains(t, warning[0], "mount -t bpf bpf /sys/fs/bpf")
	third.end(syscall.SIGTERM)
}

// What is published while rpd is dead, or starts again, arrives at all who were there,
// once. Who joins the new one is served by it alone.
func TestXDPDaemonKilled(t *testing.T) {
	i := newIsland(t)
	first := i.start()
	first.says("replication point serves")
	const receivers = 8
	opt := peerOptions{host: i.peers, stays: true}
	publisher := newPeer(t, nil, opt)
	var all []*lightPeer
	for range receivers {
		all = append(all, newPeer(t, nil, opt))
	}
	members(t, append(all, publisher)...)
	incarnation := see(publisher, func(p *lightPeer) ids.Incarnation { return p.member.RP.Incarnation })

	// publish sends until f returns, one datagram after the other arrived.
	sent := uint64(0)
	stays := all[1:] // and the first one joins again
	arrived := func(p *lightPeer, seq uint64) int {
		return see(p, func(p *lightPeer) int { return p.sequences[sequence{incarnation, seq}] })
	}
	publish := func(f func()) uint64 {
		t.Helper()
		done := make(chan struct{})
		go func() { defer close(done); f() }()
		before := sent
		for more := 0; more < 20; {
			sent++
			publisher.publish(fmt.Sprint("datagram ", sent))
			for end := time.Now().Add(patience); ; time.Sleep(100 * time.Microsecond) {
				missing := 0
				for _, p := range stays {
					if arrived(p, sent) == 0 {
						missing++
					}
				}
				if missing == 0 {
					break
				}
				require.True(t, time.Now().Before(end), "datagram %d did not arrive at %d of %d", sent, missing, len(stays))
			}
			select {
			case <-done:
				more++
			default:
			}
		}
		return sent - before
	}
	running := publish(func() { time.Sleep(200 * time.Millisecond) })
	dead := publish(func() {
		first.end(syscall.SIGKILL)
		time.Sleep(time.Second)
	})
	var second *daemon
	starting := publish(func() {
		second = i.start()
		second.says("replication point serves")
	})
	second.says("datapath adopted")
	old := see(all[0], func(p *lightPeer) *proto.Joined { return p.member })
	joining := publish(func() {
		all[0].connect()
		again := func(p *lightPeer) bool { return p.member != nil && p.member != old } // between both it is no member
		for end := time.Now().Add(patience); !see(all[0], again); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Error("the peer did not join again")
				return
			}
		}
		time.Sleep(200 * time.Millisecond)
	})
	joined := see(all[0], func(p *lightPeer) *proto.Joined { return p.member })
	require.NotEqual(t, old.ReceiveSession, joined.ReceiveSession)
	require.Equal(t, incarnation, joined.RP.Incarnation, "the same ingress RP")
	require.Len(t, joined.Marks, 1)

	lost, twice := 0, 0
	for _, p := range all {
		for seq := uint64(1); seq <= sent; seq++ {
			switch n := arrived(p, seq); {
			case n == 0 && (p != all[0] || seq > joined.Marks[0].Sequence):
				lost++
			case n > 1:
				twice++
			}
		}
	}
	require.Zero(t, lost)
	require.Zero(t, twice)
	require.Eventually(t, func() bool {
		return uint64(len(see(publisher, func(p *lightPeer) []uint64 { return make([]uint64, len(p.echoes)) }))) == sent
	}, patience, 5*time.Millisecond)
	t.Logf("%d datagrams to %d receivers: %d with rpd, %d without, %d while it started, %d while one joined again; lost %d, twice %d",
		sent, receivers, running, dead, starting, joining, lost, twice)

	second.end(syscall.SIGTERM)
	require.Contains(t, second.logged(), "rpd stops")
	require.NoDirExists(t, i.pin)
	hostnettest.In(t, i.rp, func() {
		links, err := net.Interfaces()
		require.NoError(t, err)
		require.Len(t, links, 2, "lo and rp0")
	})
}

// A start that fails after it adopted a datapath, here for a port that is in use, leaves it
// as it was: it forwards, and the next start adopts it.
func TestXDPFailedStartLeavesDatapath(t *testing.T) {
	i := newIsland(t)
	first := i.start()
	first.says("replication point serves")
	opt := peerOptions{host: i.peers, stays: true}
	publisher, receiver := newPeer(t, nil, opt), newPeer(t, nil, opt)
	members(t, publisher, receiver)
	incarnation := see(publisher, func(p *lightPeer) ids.Incarnation { return p.member.RP.Incarnation })
	sent := uint64(0)
	forwards := func() {
		t.Helper()
		sent++
		publisher.publish(fmt.Sprint("datagram ", sent))
		arrived := func() bool {
			return see(receiver, func(p *lightPeer) bool { return p.sequences[sequence{incarnation, sent}] == 1 })
		}
		require.Eventually(t, arrived, patience, time.Millisecond)
	}
	forwards()

	first.end(syscall.SIGKILL)
	forwards()
	var busy net.Listener
	hostnettest.In(t, i.rp, func() {
		var err error
		busy, err = net.Listen("tcp", "[fd00:7::1]:30500")
		require.NoError(t, err)
	})
	for range 2 {
		failed := i.start()
		failed.says("rpd: rp: control port")
		failed.end(syscall.SIGTERM)
		require.Contains(t, failed.logged(), "datapath adopted")
		forwards()
	}
	require.NoError(t, busy.Close())
	last := i.start()
	last.says("replication point serves")
	require.Contains(t, last.logged(), "datapath adopted")
	forwards()
	last.end(syscall.SIGTERM)
	require.NoDirExists(t, i.pin)
}

// Members that find the next rpd before their patience ends go on as they were: nothing
// is asked of their endpoints, and nothing of what is published meanwhile is lost. One
// in standby becomes active there by one message.
func TestXDPMembersResume(t *testing.T) {
	i := newIsland(t)
	first := i.start()
	first.says("replication point serves")
	const receivers = 4
	opt := peerOptions{host: i.peers, resumes: true}
	publisher := newPeer(t, nil, opt)
	var all []*lightPeer
	for range receivers {
		all = append(all, newPeer(t, nil, opt))
	}
	members(t, append(all, publisher)...)
	opt.standby = true
	standby := newPeer(t, nil, opt)
	members(t, standby)
	incarnation := see(publisher, func(p *lightPeer) ids.Incarnation { return p.member.RP.Incarnation })
	probes := func(p *lightPeer) int { return see(p, func(p *lightPeer) int { return p.probes }) }
	before := probes(publisher)

	sent := uint64(0)
	publish := func(during func()) {
		done := make(chan struct{})
		go func() { defer close(done); during() }()
		for {
			sent++
			publisher.publish(fmt.Sprint("datagram ", sent))
			time.Sleep(2 * time.Millisecond)
			select {
			case <-done:
				return
			default:
			}
		}
	}
	state := func(p *lightPeer) proto.JoinerState {
		return see(p, func(p *lightPeer) proto.JoinerState { return p.joiner.State() })
	}
	await := func(p *lightPeer, want proto.JoinerState) {
		for end := time.Now().Add(patience); state(p) != want; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("state %v, want %v", state(p), want)
				return
			}
		}
	}
	var second *daemon
	publish(func() {
		first.end(syscall.SIGKILL)
		for _, p := range append(all, publisher, standby) {
			await(p, proto.JoinerDetached)
		}
		second = i.start()
		second.says("datapath adopted")
		second.says("replication point serves")
		for _, p := range append(all, publisher, standby) {
			p.connect()
		}
		for _, p := range append(all, publisher) {
			await(p, proto.JoinerActive)
		}
		await(standby, proto.JoinerStandby)
		time.Sleep(200 * time.Millisecond)
	})
	got := func(p *lightPeer, seq uint64) int {
		return see(p, func(p *lightPeer) int { return p.sequences[sequence{incarnation, seq}] })
	}
	for _, p := range all {
		require.Eventually(t, func() bool { return got(p, sent) > 0 }, patience, time.Millisecond)
		for seq := uint64(1); seq <= sent; seq++ {
			require.Equal(t, 1, got(p, seq), "datagram %d of %d", seq, sent)
		}
	}
	for _, p := range append(all, publisher, standby) {
		require.Empty(t, see(p, func(p *lightPeer) []error { return p.left }))
		require.Empty(t, p.badDatagrams())
	}
	require.Equal(t, before, probes(publisher), "its endpoint was proven")
	require.Zero(t, len(standby.got()))
	require.Equal(t, receivers+2, bytes.Count([]byte(second.logged()), []byte("peer resumed")))

	standby.mu.Lock()
	standby.joiner.Want(time.Now(), true)
	standby.perform()
	standby.mu.Unlock()
	await(standby, proto.JoinerActive)
	publisher.publish("to all")
	require.Eventually(t, func() bool { return len(standby.got()) == 1 }, patience, time.Millisecond)

	// Who leaves is gone, as from the rpd that admitted it.
	all[0].leave()
	seen := len(all[0].got())
	publisher.publish("to the others")
	require.Eventually(t, func() bool { return len(standby.got()) == 2 }, patience, time.Millisecond)
	require.Len(t, all[0].got(), seen)
	t.Logf("%d datagrams to %d receivers, none lost", sent, receivers)
	second.end(syscall.SIGTERM)
}
