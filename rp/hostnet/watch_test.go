// SPDX-License-Identifier: LGPL-3.0-or-later

package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/rp/hostnet/hostnettest"
)

// A list that was interrupted is asked for again, and one that always is comes as it is.
func TestDump(t *testing.T) {
	interruptions := 3
	list := func() ([]int, error) {
		if interruptions > 0 {
			interruptions--
			return []int{1}, netlink.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	}
	before := Interrupted()
	all, err := Dump(list)
	require.NoError(t, err)
	require.Equal(t, []int{1, 2}, all)
	require.Equal(t, before+3, Interrupted())

	interruptions = 1000
	all, err = Dump(list)
	require.ErrorIs(t, err, netlink.ErrDumpInterrupted)
	require.Equal(t, []int{1}, all)
	require.Equal(t, 1000-dumpTries, interruptions)

	other := errors.New("other")
	calls := 0
	_, err = Dump(func() ([]int, error) { calls++; return nil, other })
	require.ErrorIs(t, err, other)
	require.Equal(t, 1, calls)
}

// inNamespace runs f in a network namespace that ends with it.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	hostnettest.NewNamespace(t, f)
}

// The watcher tells of what its user named, and of nothing else.
func TestNetnsWatch(t *testing.T) {
	inNamespace(t, func() {
		own, other := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:5::1")
		w, err := Watch([]string{"va"}, own, WatchBuffer)
		require.NoError(t, err)
		defer w.Close()
		var seen Events
		until := func(what string, is func() bool) {
			t.Helper()
			deadline := time.After(10 * time.Second)
			for !is() {
				select {
				case <-w.Wake():
					e := w.Take()
					seen.Devices, seen.Address, seen.Lost = seen.Devices || e.Devices, seen.Address || e.Address, seen.Lost || e.Lost
					for entry, s := range e.Entries {
						seen.Entries[entry] = s
					}
					for prefix := range e.Prefixes {
						seen.Prefixes[prefix] = true
					}
				case <-deadline:
					t.Fatalf("not told of %s: %+v", what, seen)
				}
			}
		}
		reset := func() { seen = Events{Entries: map[Entry]EntryState{}, Prefixes: map[netip.Prefix]bool{}} }
		reset()
		for _, name := range []string{"other", "va"} {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = name
			require.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "-peer"}))
			link, err := netlink.LinkByName(name)
			require.NoError(t, err)
			require.NoError(t, netlink.LinkSetUp(link))
			peer, err := netlink.LinkByName(name + "-peer")
			require.NoError(t, err)
			require.NoError(t, netlink.LinkSetUp(peer))
			if name == "other" { // nothing is told of it
				time.Sleep(50 * time.Millisecond)
				require.False(t, w.Take().Devices)
				reset()
			}
		}
		until("the device", func() bool { return seen.Devices })
		link, err := netlink.LinkByName("va")
		require.NoError(t, err)
		addAddress := func(a netip.Addr) {
			t.Helper()
			require.NoError(t, netlink.AddrAdd(link, &netlink.Addr{
				IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD,
			}))
		}
		addAddress(other)
		until("the local route", func() bool { return seen.Prefixes[netip.PrefixFrom(other, 128)] })
		require.False(t, seen.Address)
		addAddress(own)
		until("the own address", func() bool { return seen.Address })

		host := netip.MustParseAddr("2001:db8::2")
		require.NoError(t, netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: netlink.FAMILY_V6, State: netlink.NUD_PERMANENT,
			IP: host.AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9},
		}))
		entry := Entry{link.Attrs().Index, host}
		until("the ND entry", func() bool { return seen.Entries[entry].MAC == MAC{2, 5: 9} })
		h, err := netlink.NewHandle()
		require.NoError(t, err)
		defer h.Close()
		all, err := Entries(h)
		require.NoError(t, err)
		require.Equal(t, EntryState{State: netlink.NUD_PERMANENT, MAC: MAC{2, 5: 9}}, all[entry])

		route := func(table int, to string) {
			t.Helper()
			_, dst, err := net.ParseCIDR(to)
			require.NoError(t, err)
			require.NoError(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Table: table, Dst: dst}))
		}
		reset()
		route(100, "2001:db8:100::/48")
		route(0, "2001:db8:200::/48")
		until("the route", func() bool { return seen.Prefixes[netip.MustParsePrefix("2001:db8:200::/48")] })
		require.NotContains(t, seen.Prefixes, netip.MustParsePrefix("2001:db8:100::/48"), "another table")
		require.False(t, seen.Lost)
	})
}

// Events that the socket has no room for are told as lost, and the watch goes on.
func TestNetnsWatchOverrun(t *testing.T) {
	inNamespace(t, func() {
		w, err := Watch(nil, netip.MustParseAddr("2001:db8::1"), WatchBuffer)
		require.NoError(t, err)
		defer w.Close()
		lo, err := netlink.LinkByName("lo")
		require.NoError(t, err)
		require.NoError(t, netlink.LinkSetUp(lo))
		route := func(i int) *netlink.Route {
			_, dst, err := net.ParseCIDR(fmt.Sprintf("2001:db8:%x::/48", i))
			require.NoError(t, err)
			return &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst}
		}
		overruns := Overruns()
		w.mu.Lock() // the reader waits, and the kernel goes on
		require.NoError(t, w.socket.SetReceiveBufferSize(4096, true))
		for i := range 1000 {
			require.NoError(t, netlink.RouteAdd(route(i+1)))
		}
		w.mu.Unlock()
		lost := func() bool {
			select {
			case <-w.Wake():
				return w.Take().Lost
			default:
				return false
			}
		}
		require.Eventually(t, lost, 10*time.Second, time.Millisecond)
		require.Greater(t, Overruns(), overruns)
		// On this thread, which is in the namespace: what was still in the buffer passes.
		told := false
		for deadline := time.Now().Add(10 * time.Second); !told && time.Now().Before(deadline); {
			w.Take()
			require.NoError(t, netlink.RouteReplace(route(2000)))
			time.Sleep(10 * time.Millisecond)
			told = w.Take().Prefixes[netip.MustParsePrefix("2001:db8:7d0::/48")]
		}
		require.True(t, told, "the watch does not go on")
	})
}

// A rule decides which tables count: its user is told of each, and that nothing was lost.
func TestNetnsWatchRules(t *testing.T) {
	inNamespace(t, func() {
		w, err := Watch(nil, netip.MustParseAddr("2001:db8::1"), WatchBuffer)
		require.NoError(t, err)
		defer w.Close()
		rule := netlink.NewRule()
		rule.Family, rule.Table, rule.Priority = netlink.FAMILY_V6, 100, 1000
		for _, change := range []func(*netlink.Rule) error{netlink.RuleAdd, netlink.RuleDel} {
			require.NoError(t, change(rule))
			select {
			case <-w.Wake():
			case <-time.After(10 * time.Second):
				t.Fatal("not told")
			}
			e := w.Take()
			require.True(t, e.Rules)
			require.False(t, e.Lost)
		}
	})
}
