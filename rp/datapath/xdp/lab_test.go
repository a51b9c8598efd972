// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/safchain/ethtool"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/rp/hostnet/hostnettest"
)

// lab is a replication point and its hosts, each in a network namespace without a
// name, which ends with its last user:
//
//	+- rp ------------+          +- hosts[0] -----------+
//	| 2001:db8::1 rp0 +---veth---+ h0 2001:db8::2 ...   |
//	|                 |          +----------------------+
//	|                 |          +- hosts[1] -----------+
//	| 2001:db9::1 rp1 +---veth---+ h0 2001:db9::2 ...   |
//	+-----------------+          +----------------------+
type lab struct {
	t     testing.TB
	rp    netns.NsHandle
	hosts []netns.NsHandle
	links int // made until now, times 10
}

// needKernel skips what needs root and XDP.
func needKernel(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if kernelBefore(t, 6, 1) {
		t.Skip("needs Linux 6.1")
	}
}

// kernelBefore reports whether the kernel is older than a version.
func kernelBefore(t testing.TB, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	require.NoError(t, unix.Uname(&u))
	var is [2]int
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &is[0], &is[1])
	require.NoError(t, err)
	return is[0] < major || is[0] == major && is[1] < minor
}

func newLab(t testing.TB, hosts int) *lab {
	needKernel(t)
	l := &lab{t: t, rp: newNamespace(t)}
	for i := range hosts {
		l.hosts = append(l.hosts, newNamespace(t))
		l.connect(i)
	}
	return l
}

// connect makes the link to a host, with their first addresses.
func (l *lab) connect(i int) {
	l.t.Helper()
	nl, err := netlink.NewHandleAt(l.rp)
	require.NoError(l.t, err)
	defer nl.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = l.device(i)
	attrs.Index = 100 + 100_000*i + l.links // unlike its peer's: links of the same index come up only after a second
	l.links += 10
	peer := netlink.NsFd(l.hosts[i])
	require.NoError(l.t, nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "h0", PeerNamespace: peer}))
	l.setUp(l.rp, l.device(i), l.rpAddr(i))
	l.setUp(l.hosts[i], "h0", l.hostAddr(i))
	l.in(l.hosts[i], func() { gro(l.t, "h0") })
	l.isUp(l.rp, l.device(i))
	l.isUp(l.hosts[i], "h0")
	// Hosts of the other links answer to the RP's one address.
	if i > 0 {
		l.in(l.hosts[i], func() {
			require.NoError(l.t, netlink.RouteReplace(&netlink.Route{
				Dst: &net.IPNet{IP: l.rpAddr(0).AsSlice(), Mask: net.CIDRMask(128, 128)},
				Gw:  l.rpAddr(i).AsSlice(),
			}))
		})
	}
}

func (l *lab) device(i int) string     { return fmt.Sprintf("rp%d", i) }
func (l *lab) rpAddr(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db%x::1", 8+i)) }
func (l *lab) hostAddr(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("2001:db%x::2", 8+i))
}
func (l *lab) devices() (names []string) {
	for i := range l.hosts {
		names = append(names, l.device(i))
	}
	return names
}

// host returns the host that an address belongs to, -1 for others.
func (l *lab) host(addr netip.Addr) int {
	for i := range l.hosts {
		if netip.PrefixFrom(l.rpAddr(i), 32).Contains(addr) {
			return i
		}
	}
	return -1
}

func newNamespace(t testing.TB) netns.NsHandle {
	t.Helper()
	return hostnettest.NewNamespace(t, func() {
		// A link-local address that is being checked for duplicates delays the
		// search for ND entries.
		require.NoError(t, os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o644))
	})
}

// in runs f in a namespace.
func (l *lab) in(ns netns.NsHandle, f func()) {
	l.t.Helper()
	hostnettest.In(l.t, ns, f)
}

func (l *lab) setUp(ns netns.NsHandle, name string, addr netip.Addr) {
	l.t.Helper()
	l.in(ns, func() {
		for _, up := range []string{"lo", name} {
			link, err := netlink.LinkByName(up)
			require.NoError(l.t, err)
			require.NoError(l.t, netlink.LinkSetUp(link))
		}
	})
	l.addAddr(ns, name, addr, 32)
}

// isUp waits until an interface sends.
func (l *lab) isUp(ns netns.NsHandle, name string) {
	l.t.Helper()
	nl, err := netlink.NewHandleAt(ns)
	require.NoError(l.t, err)
	defer nl.Close()
	require.Eventually(l.t, func() bool {
		link, err := nl.LinkByName(name)
		return err == nil && link.Attrs().OperState == netlink.OperUp
	}, 10*time.Second, time.Millisecond)
}

// addAddr gives an interface an address, unless it has it, and waits until the host takes
// packets for it: the kernel answers who has an address before.
func (l *lab) addAddr(ns netns.NsHandle, name string, addr netip.Addr, bits int) {
	l.t.Helper()
	l.in(ns, func() {
		link, err := netlink.LinkByName(name)
		require.NoError(l.t, err)
		require.NoError(l.t, netlink.AddrReplace(link, &netlink.Addr{
			IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, 128)},
			Flags: unix.IFA_F_NODAD,
		}))
		require.True(l.t, eventually(func() bool { // on this thread
			routes, err := netlink.RouteGet(addr.AsSlice())
			return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
		}))
	})
}

// attach starts an engine at the RP's first address.
func (l *lab) attach(e func() (*Engine, error)) *Engine {
	l.t.Helper()
	var engine *Engine
	l.in(l.rp, func() {
		var err error
		engine, err = e()
		require.NoError(l.t, err)
	})
	l.t.Cleanup(func() { require.NoError(l.t, engine.Close()) })
	return engine
}

// drops returns what the links and the hosts lost.
func (l *lab) drops() string {
	var b strings.Builder
	show := func(ns netns.NsHandle, name string) {
		l.in(ns, func() {
			tool, err := ethtool.NewEthtool()
			require.NoError(l.t, err)
			defer tool.Close()
			stats, err := tool.Stats(name)
			require.NoError(l.t, err)
			for _, key := range slices.Sorted(maps.Keys(stats)) {
				if stats[key] != 0 && (strings.Contains(key, "drop") || strings.Contains(key, "err")) {
					fmt.Fprintf(&b, "%s %s %d\n", name, key, stats[key])
				}
			}
			udp, err := os.ReadFile("/proc/thread-self/net/snmp6")
			require.NoError(l.t, err)
			for line := range strings.Lines(string(udp)) {
				if f := strings.Fields(line); strings.HasPrefix(line, "Udp6") && strings.Contains(f[0], "Err") && f[1] != "0" {
					fmt.Fprintf(&b, "%s: %s", name, line)
				}
			}
		})
	}
	for i, host := range l.hosts {
		show(l.rp, l.device(i))
		show(host, "h0")
	}
	return b.String()
}
