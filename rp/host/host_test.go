// SPDX-License-Identifier: LGPL-3.0-or-later

package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/rp/hostnet"
	"github.com/ethmcast/mdcs/rp/hostnet/hostnettest"
)

func TestParseVersion(t *testing.T) {
	for release, want := range map[string]Version{
		"6.1.0-13-amd64":  {6, 1},
		"5.15":            {5, 15},
		"6.18.44-fc-v657": {6, 18},
		"5.15-rc1":        {5, 15},
	} {
		v, err := parseVersion(release)
		require.NoError(t, err)
		require.Equal(t, want, v)
	}
	for _, release := range []string{"", "6", "x.y"} {
		_, err := parseVersion(release)
		require.Error(t, err)
	}
	require.True(t, Version{5, 15}.less(MinKernel))
	require.True(t, Version{6, 0}.less(MinKernel))
	require.False(t, Version{6, 1}.less(MinKernel))
	require.False(t, Version{7, 0}.less(MinKernel))
}

func TestReport(t *testing.T) {
	r := Basics(netip.MustParseAddr("2001:db8:dead::1"), nil)
	require.ErrorContains(t, r.Err(), "device: none has 2001:db8:dead::1")
	require.Contains(t, r.String(), "missing  device: none has 2001:db8:dead::1: ip -6 addr add ")
	require.Contains(t, r.String(), "ok       kernel: ")

	changed := fmt.Errorf("list addresses: %w", netlink.ErrDumpInterrupted)
	r = Report{{What: "address", Err: changed}, {What: "kernel", Detail: "6.1"}, {What: "mtu", Err: errors.New("too small")}}
	require.EqualError(t, r.Err(), "address: list addresses: results may be incomplete or inconsistent; mtu: too small")
	require.True(t, hostnet.Passes(r.Err()), "the host was only changed meanwhile")
	require.False(t, hostnet.Passes(r[2].Err))
	require.NoError(t, r[1:2].Err())
}

// An address that is being checked for duplicates is waited for, one that does not come
// only for a while, one that another host has not at all.
func TestAwaitAddress(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	inNamespace(t, func() {
		require.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1"}))
		for _, name := range []string{"v0", "v1", "lo"} { // without lo, IPv4 sockets can have any address
			l, err := netlink.LinkByName(name)
			require.NoError(t, err)
			require.NoError(t, netlink.LinkSetUp(l))
		}
		wait := func(addr string, timeout time.Duration) (said []string, err error) {
			err = AwaitAddress(t.Context(), netip.MustParseAddr(addr), timeout, func(why string) { said = append(said, why) })
			return said, err
		}
		said, err := wait("fd00::9", time.Millisecond)
		require.ErrorContains(t, err, "this host does not have it")
		require.Len(t, said, 1)
		_, err = wait("192.0.2.9", time.Millisecond)
		require.ErrorContains(t, err, "this host does not have it")
		_, err = wait("fe80::9%v9", time.Millisecond)
		require.ErrorContains(t, err, "this host does not have it: ip -6 addr add fe80::9/64 dev v9")
		for _, addr := range []string{"::", "0.0.0.0"} {
			said, err = wait(addr, time.Minute)
			require.NoError(t, err)
			require.Empty(t, said)
		}

		v0, err := netlink.LinkByName("v0")
		require.NoError(t, err)
		a, err := netlink.ParseAddr("fd00::1/64")
		require.NoError(t, err)
		require.NoError(t, netlink.AddrAdd(v0, a))
		found, err := find(netip.MustParseAddr("fd00::1"))
		require.NoError(t, err)
		require.NotZero(t, found.Flags&unix.IFA_F_TENTATIVE, "the test comes too late")
		said, err = wait("fe80::9%v0", time.Millisecond)
		require.ErrorContains(t, err, "this host does not have it")
		require.Len(t, said, 1)
		said, err = wait("fd00::1", time.Minute)
		require.NoError(t, err)
		require.Equal(t, []string{"it is being checked for duplicates"}, said)
		said, err = wait("fd00::1", time.Minute)
		require.NoError(t, err)
		require.Empty(t, said)
	})
}

// The device is that of the address, unless devices are named.
func TestBasicsDevices(t *testing.T) {
	r := Basics(netip.MustParseAddr("::1"), nil)
	require.ErrorContains(t, r.Err(), "lo, which has ::1, is not an Ethernet device: name in [datapath] devices")
	r = Basics(netip.MustParseAddr("::1"), []string{"lo"})
	require.NotContains(t, r.String(), "missing  device", "that it is no Ethernet device the engine says")
	r = Basics(netip.MustParseAddr("::1"), []string{"mdcs-none"})
	require.ErrorContains(t, r.Err(), "mdcs-none of [datapath] devices")
}

// TestMisplaced has the address at a device, above it, beside it and at none that matters.
func TestMisplaced(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	inNamespace(t, func() {
		add := func(l netlink.Link, addr string) {
			if _, err := netlink.LinkByName(l.Attrs().Name); err != nil {
				require.NoError(t, netlink.LinkAdd(l))
			}
			require.NoError(t, netlink.LinkSetUp(l))
			addAddr(t, l, addr)
		}
		add(&netlink.Device{LinkAttrs: named("lo")}, "2001:db8:9::1/128")
		add(&netlink.Veth{LinkAttrs: named("va"), PeerName: "vb"}, "2001:db8:1::1/64")
		add(&netlink.Veth{LinkAttrs: named("vc"), PeerName: "vd"}, "2001:db8:2::1/64")
		for _, name := range []string{"vb", "vd"} {
			require.NoError(t, netlink.LinkSetUp(&netlink.Device{LinkAttrs: named(name)}))
		}
		above := named("above")
		above.ParentIndex = index(t, "va")
		add(&netlink.Macvlan{LinkAttrs: above, Mode: netlink.MACVLAN_MODE_BRIDGE}, "2001:db8:3::1/64")

		misplaced := func(addr string, devices ...string) error { return Misplaced(netip.MustParseAddr(addr), devices) }
		require.ErrorContains(t, misplaced("2001:db8:3::1", "vc", "va"), "is at above (macvlan), a device above va: its datagrams come and go by above; name above in")
		require.NoError(t, misplaced("2001:db8:3::1", "above"))
		require.NoError(t, misplaced("2001:db8:2::1", "va"), "no default route: it may be a router")
		require.NoError(t, misplaced("2001:db8:2::1", "vd"), "the other end of a pair is not above it")
		require.NoError(t, misplaced("2001:db8:dead::1", "va"), "the engine says that nobody has it")
		require.NoError(t, misplaced("2001:db8:2::1", "none"), "the engine says that it is not there")

		require.NoError(t, netlink.RouteAdd(&netlink.Route{LinkIndex: index(t, "vc"), Gw: netip.MustParseAddr("2001:db8:2::2").AsSlice()}))
		require.EqualError(t, misplaced("2001:db8:2::1", "va"),
			`the address 2001:db8:2::1 is at vc, the default route leaves by vc, and [datapath] devices are va alone; `+
				`name vc in [datapath] devices, or, if it takes no XDP program, set engine = "socket"`)
		require.NoError(t, misplaced("2001:db8:2::1", "va", "vc"))
		require.NoError(t, misplaced("2001:db8:1::1", "vc"), "a way out is enough")
		require.NoError(t, misplaced("2001:db8:1::1", "va"), "a link with peers is enough")
		require.NoError(t, misplaced("2001:db8:9::1", "va"), "an address of lo is reached by any device")
	})
}

// TestRouter has default routes with one next hop and with two.
func TestRouter(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	inNamespace(t, func() {
		var hops []*netlink.NexthopInfo
		for _, x := range [][3]string{{"va", "2001:db8:1::1/64", "2001:db8:1::2"}, {"vb", "2001:db8:2::1/64", "fe80::2"}, {"vc", "2001:db8:3::1/64", ""}} {
			l := &netlink.Veth{LinkAttrs: named(x[0]), PeerName: x[0] + "0"}
			require.NoError(t, netlink.LinkAdd(l))
			require.NoError(t, netlink.LinkSetUp(l))
			require.NoError(t, netlink.LinkSetUp(&netlink.Device{LinkAttrs: named(x[0] + "0")}))
			addAddr(t, l, x[1])
			if x[2] != "" {
				hops = append(hops, &netlink.NexthopInfo{LinkIndex: index(t, x[0]), Gw: netip.MustParseAddr(x[2]).AsSlice()})
			}
		}
		_, ok, err := Router([]string{"va"})
		require.NoError(t, err)
		require.False(t, ok)

		route := &netlink.Route{LinkIndex: hops[0].LinkIndex, Gw: hops[0].Gw}
		require.NoError(t, netlink.RouteAdd(route))
		addr, ok, err := Router([]string{"vb", "va"})
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, "2001:db8:1::2", addr.String())
		_, _, err = Router([]string{"vb"})
		require.ErrorContains(t, err, "the default route leaves by va, and copies by vb alone")
		require.NoError(t, netlink.RouteDel(route))

		require.NoError(t, netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, MultiPath: hops}))
		for device, want := range map[string]string{"va": "2001:db8:1::2", "vb": "fe80::2%vb"} {
			addr, ok, err = Router([]string{"vc", device})
			require.NoError(t, err)
			require.True(t, ok)
			require.Equal(t, want, addr.String())
		}
		_, _, err = Router([]string{"vc"})
		require.ErrorContains(t, err, "the default route leaves by va")
	})
}

// One link-local address may be at several devices.
func TestFindInZone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	inNamespace(t, func() {
		for _, name := range []string{"va", "vb"} {
			l := &netlink.Veth{LinkAttrs: named(name), PeerName: name + "0"}
			require.NoError(t, netlink.LinkAdd(l))
			addAddr(t, l, "fe80::1/64")
		}
		for _, zone := range []string{"va", "vb", strconv.Itoa(index(t, "vb"))} {
			a, err := find(netip.MustParseAddr("fe80::1").WithZone(zone))
			require.NoError(t, err)
			require.NotNil(t, a, zone)
			at, err := netlink.LinkByIndex(a.LinkIndex)
			require.NoError(t, err)
			require.Contains(t, []string{at.Attrs().Name, strconv.Itoa(a.LinkIndex)}, zone)
		}
		a, err := find(netip.MustParseAddr("fe80::1%vb0"))
		require.NoError(t, err)
		require.Nil(t, a)
	})
}

// inNamespace runs f in a network namespace of its own.
func inNamespace(t *testing.T, f func()) { hostnettest.NewNamespace(t, f) }

func named(name string) netlink.LinkAttrs { return netlink.LinkAttrs{Name: name} }

func index(t *testing.T, name string) int {
	l, err := netlink.LinkByName(name)
	require.NoError(t, err)
	return l.Attrs().Index
}

func addAddr(t *testing.T, l netlink.Link, addr string) {
	a, err := netlink.ParseAddr(addr)
	require.NoError(t, err)
	a.Flags = unix.IFA_F_NODAD
	require.NoError(t, netlink.AddrAdd(l, a))
}

// A pair of virtual devices tells 10 Gbit/s, the loopback device no speed.
func TestXDPSpeed(t *testing.T) {
	_, ok := Speed("lo")
	require.False(t, ok)
	_, ok = Speed("nosuch")
	require.False(t, ok)
	if os.Geteuid() != 0 {
		t.Skip("a pair of devices needs root")
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "speedtesta"}, PeerName: "speedtestb"}
	require.NoError(t, netlink.LinkAdd(pair))
	defer netlink.LinkDel(pair)
	mbit, ok := Speed("speedtesta")
	require.True(t, ok)
	require.Equal(t, 10_000, mbit)
}
