// SPDX-License-Identifier: LGPL-3.0-or-later

package netns

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// newRun starts a run that ends with the test.
func newRun(t *testing.T) *Run {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	r, err := NewRun(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

func newNamespace(t *testing.T, r *Run, name string) *Namespace {
	t.Helper()
	ns, err := r.Namespace(name)
	require.NoError(t, err)
	return ns
}

// TestNetnsForwarding sends a datagram through a router with a bridge:
//
//	a (eth0) --- (p0) br0 [router] w0 --- (eth0) b
//
// and looks for it in the counters of both hosts.
func TestNetnsForwarding(t *testing.T) {
	r := newRun(t)
	a, b, router := newNamespace(t, r, "a"), newNamespace(t, r, "b"), newNamespace(t, r, "router")

	require.NoError(t, router.Router())
	require.NoError(t, router.Bridge("br0"))
	require.NoError(t, a.Veth("eth0", router, "p0"))
	require.NoError(t, b.Veth("eth0", router, "w0"))
	require.NoError(t, router.Attach("br0", "p0"))
	for _, x := range []struct {
		ns   *Namespace
		name string
		addr string
	}{
		{router, "br0", "2001:db8:1:1::1/64"},
		{router, "w0", "2001:db8:2:1::1/64"},
		{a, "eth0", "2001:db8:1:1::a/64"},
		{b, "eth0", "2001:db8:2:1::b/64"},
	} {
		require.NoError(t, x.ns.AddAddress(x.name, netip.MustParsePrefix(x.addr)))
		require.NoError(t, x.ns.SetUp(x.name, true))
	}
	all := netip.MustParsePrefix("::/0")
	require.NoError(t, a.SetRoute(all, netip.MustParseAddr("2001:db8:1:1::1")))
	require.NoError(t, b.SetRoute(all, netip.MustParseAddr("2001:db8:2:1::1")))

	var in net.PacketConn
	require.NoError(t, b.Do(func() (err error) {
		in, err = net.ListenPacket("udp6", "[2001:db8:2:1::b]:7000")
		return err
	}))
	defer in.Close()
	out, err := a.Dial(t.Context(), "udp6", "[2001:db8:2:1::b]:7000")
	require.NoError(t, err)
	defer out.Close()

	before, err := b.Counters("eth0")
	require.NoError(t, err)
	payload := make([]byte, 1000)
	_, err = out.Write(payload)
	require.NoError(t, err)
	require.NoError(t, in.SetReadDeadline(time.Now().Add(5*time.Second)))
	n, from, err := in.ReadFrom(make([]byte, 2000))
	require.NoError(t, err)
	require.Equal(t, len(payload), n)
	require.Equal(t, "2001:db8:1:1::a", from.(*net.UDPAddr).IP.String())

	after, err := b.Counters("eth0")
	require.NoError(t, err)
	const frame = 14 + 40 + 8 + 1000 // Ethernet, IPv6, UDP
	require.GreaterOrEqual(t, after.RxBytes-before.RxBytes, uint64(frame))
	require.Less(t, after.RxBytes-before.RxBytes, uint64(2*frame), "counted twice")
}

// TestNetnsProcess starts a child and checks where it runs and that it ends with
// the run.
func TestNetnsProcess(t *testing.T) {
	r := newRun(t)
	ns := newNamespace(t, r, "child")
	p, err := r.Start(ns, "sleep", exec.Command("sleep", "600"))
	require.NoError(t, err)
	require.True(t, p.Running())

	want, err := os.Stat(filepath.Join(namedDir, ns.Name()))
	require.NoError(t, err)
	have, err := os.Stat(filepath.Join("/proc", strconv.Itoa(p.Pid()), "ns/net"))
	require.NoError(t, err)
	require.True(t, os.SameFile(want, have), "child is in another namespace")

	require.NoError(t, r.Close())
	require.False(t, p.Running())
	require.NoFileExists(t, filepath.Join(namedDir, ns.Name()))
	require.NoDirExists(t, r.Dir())
}

// TestNetnsCleanStale pretends that the owner of a run died.
func TestNetnsCleanStale(t *testing.T) {
	r := newRun(t)
	ns := newNamespace(t, r, "left")
	p, err := r.Start(ns, "sleep", exec.Command("sleep", "600"))
	require.NoError(t, err)
	dir := filepath.Dir(r.path)
	limit := pretendLimits(t, 1000)
	require.NoError(t, r.RoomForNDEntries(2000))
	require.Equal(t, 2000, limit())

	cleaned, err := CleanStale(dir)
	require.NoError(t, err)
	require.Empty(t, cleaned, "touched a run whose owner lives")

	dead := r.state
	dead.Owner.Start++ // another process with the same pid
	require.NoError(t, dead.write(r.path))
	cleaned, err = CleanStale(dir)
	require.NoError(t, err)
	require.Equal(t, []string{r.Prefix()}, cleaned)
	require.NoFileExists(t, filepath.Join(namedDir, ns.Name()))
	require.NoDirExists(t, r.Dir())
	require.NoFileExists(t, r.path)
	require.Equal(t, 1000, limit())
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	select {
	case <-p.Done():
	case <-ctx.Done():
		t.Fatal("process still runs")
	}
	require.NoError(t, dead.write(r.path)) // Close expects its state file
}

func TestNetnsRoomForNDEntries(t *testing.T) {
	limit := pretendLimits(t, 1000)
	r := newRun(t)
	require.NoError(t, r.RoomForNDEntries(999))
	require.Equal(t, 1000, limit(), "lowered")
	require.NoError(t, r.RoomForNDEntries(1001))
	require.Equal(t, 1001, limit())
	require.NoError(t, r.RoomForNDEntries(1002))
	require.Equal(t, 1002, limit())
	require.NoError(t, r.Close())
	require.Equal(t, 1000, limit())
}

// A run does not take back what another one, or the operator, set later.
func TestNetnsLimitsOfOthers(t *testing.T) {
	limit := pretendLimits(t, 1000)
	a, b := newRun(t), newRun(t)
	require.NoError(t, a.RoomForNDEntries(2000))
	require.NoError(t, b.RoomForNDEntries(3000))
	require.NoError(t, a.Close())
	require.Equal(t, 3000, limit())
}

func TestNetnsLimitsThatCannotBeSeen(t *testing.T) {
	pretendLimits(t, 1000)
	r := newRun(t)
	require.NoError(t, os.Remove(ndLimits[0]))
	require.ErrorIs(t, r.RoomForNDEntries(2000), os.ErrNotExist)
	require.NoError(t, r.Close())
}

// pretendLimits has files of the test be the machine's limits, and returns what reads one.
func pretendLimits(t *testing.T, n int) (limit func() int) {
	t.Helper()
	real := ndLimits
	t.Cleanup(func() { ndLimits = real })
	ndLimits = []string{filepath.Join(t.TempDir(), "2"), filepath.Join(t.TempDir(), "3")}
	for _, path := range ndLimits {
		require.NoError(t, os.WriteFile(path, []byte(strconv.Itoa(n)+"\n"), 0o644))
	}
	return func() int {
		text, err := readLimit(ndLimits[1])
		require.NoError(t, err)
		n, err := strconv.Atoi(text)
		require.NoError(t, err)
		return n
	}
}

func TestStateFileCannotPointElsewhere(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "mdcs-00ff.json")
	text, err := json.Marshal(State{Prefix: "x", Dir: "/etc"})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, text, 0o600))
	state, err := readState(file)
	require.NoError(t, err)
	require.Equal(t, "mdcs-00ff-", state.Prefix)
	require.Empty(t, state.Dir)
}

func TestDestroyRefusesForeignPrefix(t *testing.T) {
	for _, prefix := range []string{"", "mdcs-", "mdcs-00ff", "cni-", "mdcs-00FF-"} {
		_, err := Destroy(prefix)
		require.Error(t, err, prefix)
	}
}

func TestStartTime(t *testing.T) {
	require.NotZero(t, startTime(os.Getpid()))
	require.Zero(t, startTime(1<<30))
	require.True(t, identify(os.Getpid()).alive())
	require.False(t, ProcessID{Pid: os.Getpid(), Start: 1}.alive())
	require.False(t, ProcessID{Pid: 1 << 30}.alive())
}

// TestNetnsRoutes has routes through a gateway at the other end of a link.
func TestNetnsRoutes(t *testing.T) {
	r := newRun(t)
	a, b := newNamespace(t, r, "a"), newNamespace(t, r, "b")
	require.NoError(t, a.Veth("eth0", b, "eth0"))
	require.NoError(t, a.AddAddress("eth0", netip.MustParsePrefix("2001:db8::1/64")))
	require.NoError(t, a.SetUp("eth0", true))
	require.NoError(t, b.SetUp("eth0", true))
	routes, err := a.Routes()
	require.NoError(t, err)
	require.Empty(t, routes, "what is connected needs no gateway")

	near, far := netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8::3")
	all, one := netip.MustParsePrefix("::/0"), netip.MustParsePrefix("2001:db8:7::/48")
	require.NoError(t, a.SetRoute(one, near))
	require.NoError(t, a.SetRoute(all, near))
	require.NoError(t, a.SetRoute(one, far))
	routes, err = a.Routes()
	require.NoError(t, err)
	require.Equal(t, []Route{{one, far}, {all, near}}, routes)
	require.NoError(t, a.DelRoute(one))
	require.Error(t, a.DelRoute(one))
	routes, err = a.Routes()
	require.NoError(t, err)
	require.Equal(t, []Route{{all, near}}, routes)
}

// TestNetnsManyNamespaces makes them at the same time, as a large net does.
func TestNetnsManyNamespaces(t *testing.T) {
	r := newRun(t)
	var wg sync.WaitGroup
	spaces := make([]*Namespace, 20)
	for i := range spaces {
		wg.Go(func() { spaces[i], _ = r.Namespace(strconv.Itoa(i)) })
	}
	wg.Wait()
	state, err := readState(r.path)
	require.NoError(t, err)
	require.Len(t, state.Namespaces, len(spaces))
	for i, ns := range spaces {
		require.NotNil(t, ns)
		require.Equal(t, r.Prefix()+strconv.Itoa(i), ns.Name())
		require.FileExists(t, ns.Path())
	}
}

// TestNetnsCPU has a process that computes, and one more of the same name after
// its end.
func TestNetnsCPU(t *testing.T) {
	r := newRun(t)
	ns := newNamespace(t, r, "a")
	busy := func() *Process {
		p, err := r.Start(ns, "busy", exec.Command("sh", "-c", "while :; do :; done"))
		require.NoError(t, err)
		return p
	}
	used := func() time.Duration {
		all, err := r.CPU()
		require.NoError(t, err)
		return all["busy"]
	}
	p := busy()
	const enough = 50 * time.Millisecond
	require.Eventually(t, func() bool { return used() >= enough }, 20*time.Second, 10*time.Millisecond)
	require.NoError(t, p.Kill())
	first := used()
	require.GreaterOrEqual(t, first, enough)
	busy()
	require.Eventually(t, func() bool { return used() >= first+enough }, 20*time.Second, 10*time.Millisecond)
}

func TestNetnsEnter(t *testing.T) {
	r := newRun(t)
	ns := newNamespace(t, r, "a")
	require.NoError(t, ns.Bridge("only-here"))
	found := make(chan error)
	go func() { // its thread ends with it
		if err := Enter(ns.Path()); err != nil {
			found <- err
			return
		}
		_, err := net.InterfaceByName("only-here")
		found <- err
	}()
	require.NoError(t, <-found)
	require.Error(t, Enter(filepath.Join(namedDir, "nowhere")))
	_, err := net.InterfaceByName("only-here")
	require.Error(t, err)
}
