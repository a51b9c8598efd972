// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/hostnet"
)

// behind is a network that is reached by a gateway. The lab takes it for one of the first host.
var behind = netip.MustParsePrefix("2001:db8:ffff::/48")

// newGatewayCrowd has n sessions, the first at the second host, the others behind the first:
//
//	rp rp0 --- h0 hosts[0], the gateway to 2001:db8:ffff::/48
//	   rp1 --- h0 hosts[1]
func newGatewayCrowd(l *lab, n int) (*crowd, *Engine) {
	l.t.Helper()
	l.routeBehind(0)
	c := &crowd{
		subject:  newSubjectAt(l, datapath.Config{Incarnation: testOwn}, Options{}),
		sessions: crowdSessions(l, n, func(int) int { return 1 }),
	}
	for i, addr := 1, behind.Addr(); i < n; i++ {
		addr = addr.Next()
		c.sessions[i].Addr = netip.AddrPortFrom(addr, c.sessions[i].Addr.Port())
	}
	require.NoError(l.t, c.Apply(c.change()))
	return c, c.Engine.(*Engine)
}

// routeBehind makes a host the gateway.
func (l *lab) routeBehind(host int) {
	l.t.Helper()
	l.in(l.rp, func() {
		require.NoError(l.t, netlink.RouteReplace(&netlink.Route{
			Dst:       &net.IPNet{IP: behind.Addr().AsSlice(), Mask: net.CIDRMask(behind.Bits(), 128)},
			Gw:        l.hostAddr(host).AsSlice(),
			LinkIndex: l.index(host),
		}))
	})
}

// set sets a kernel setting below /proc/sys/net/ipv6.
func (l *lab) set(ns netns.NsHandle, name, value string) {
	l.t.Helper()
	l.in(ns, func() {
		require.NoError(l.t, os.WriteFile("/proc/sys/net/ipv6/"+name, []byte(value), 0o644))
	})
}

// arrive publishes until a datagram reaches all sessions, and returns how long that took. Others
// than the last one may get lost.
func (c *crowd) arrive() time.Duration {
	t := c.lab.t
	t.Helper()
	start := time.Now()
	got := make(map[netip.AddrPort]uint64)
	require.True(t, eventually(func() bool {
		c.publish(100)
		before := c.sent
		pause := time.Now().Add(20 * time.Millisecond)
		for time.Now().Before(pause) {
			for _, r := range c.waiting() {
				h, _, v := wire.Parse(r.Data)
				require.Equal(t, wire.Pass, v)
				got[r.Dst] = max(got[r.Dst], h.Sequence)
			}
			all := true
			for _, s := range c.sessions {
				all = all && got[s.Addr] == before
			}
			if all {
				return true
			}
			time.Sleep(time.Millisecond)
		}
		return false
	}), "datagram %d: %v", c.sent, got)
	return time.Since(start)
}

// next publishes a datagram that reaches all sessions.
func (c *crowd) next() {
	c.lab.t.Helper()
	c.publish(100)
	c.tally().complete(c.sessions, c.sent, c.sent)
}

// The gateway gets another Ethernet address. Copies go there when it says so; else when the
// kernel finds that nobody answers at the old one.
func TestXDPGatewayMoves(t *testing.T) {
	for _, tells := range []bool{true, false} {
		t.Run(fmt.Sprintf("tells=%v", tells), func(t *testing.T) {
			l := newLab(t, 2)
			if tells {
				l.set(l.hosts[0], "conf/h0/ndisc_notify", "1")
			} else { // the kernel's times, shorter
				l.set(l.rp, "neigh/rp0/base_reachable_time_ms", "200")
				l.set(l.rp, "neigh/rp0/retrans_time_ms", "50")
				l.set(l.rp, "neigh/rp0/delay_first_probe_time", "0")
			}
			c, e := newGatewayCrowd(l, 20)
			c.next()
			entry := hostnet.Entry{Link: l.index(0), Addr: l.hostAddr(0)}
			known := func() (addr mac) {
				require.NoError(t, e.do(func() { addr, _ = e.paths.MAC(entry) }))
				return addr
			}
			moved := mac{2, 0, 0, 0, 0xaa, 1}
			require.NotEqual(t, moved, known())
			l.in(l.hosts[0], func() {
				link, err := netlink.LinkByName("h0")
				require.NoError(t, err)
				require.NoError(t, netlink.LinkSetHardwareAddr(link, moved[:]))
			})
			start := time.Now()
			require.True(t, eventually(func() bool {
				if !tells { // as by time
					require.NoError(t, e.do(e.paths.KeepEntries))
					time.Sleep(20 * time.Millisecond)
				}
				return known() == moved
			}))
			t.Logf("followed after %v", time.Since(start))
			require.Eventually(t, func() bool { return e.missing() == 0 }, 10*time.Second, time.Millisecond)
			c.arrive()
			c.next()
		})
	}
}

// A host that comes to its address after its session began is served then, though nobody asks.
func TestXDPAddressComesLate(t *testing.T) {
	l := newLab(t, 1)
	c := &crowd{
		subject:  newSubjectAt(l, datapath.Config{Incarnation: testOwn}, Options{}),
		sessions: crowdSessions(l, 4, func(int) int { return 0 }),
	}
	late := &c.sessions[3]
	late.Addr = netip.AddrPortFrom(l.hostAddr(0).Next().Next(), late.Addr.Port()) // nobody answers
	for _, s := range c.sessions[:3] {
		c.node(s.Addr)
	}
	require.NoError(t, c.Engine.Apply(c.change()))
	e := c.Engine.(*Engine)
	c.publish(100)
	c.tally().complete(c.sessions[:3], 1, 1)
	require.Equal(t, 1, e.missing())
	c.node(late.Addr)
	require.Eventually(t, func() bool { return e.missing() == 0 }, 10*time.Second, time.Millisecond)
	c.next()
}

// Copies follow the route to their receivers to another gateway and device, and wait while
// there is none.
func TestXDPRouteMoves(t *testing.T) {
	l := newLab(t, 2)
	c, e := newGatewayCrowd(l, 20)
	c.next()
	for _, s := range c.sessions[1:] { // the same addresses behind the other host
		c.nodes[s.Addr].conn.Close()
		l.addAddr(l.hosts[1], "h0", s.Addr.Addr(), 128)
		c.nodes[s.Addr] = l.listen(l.hosts[1], s.Addr)
	}
	l.routeBehind(1)
	t.Logf("followed after %v", c.arrive())
	c.next()

	// A route of the first link covers them, too, but this one says that there is no way.
	l.in(l.rp, func() {
		require.NoError(t, netlink.RouteReplace(&netlink.Route{
			Dst:  &net.IPNet{IP: behind.Addr().AsSlice(), Mask: net.CIDRMask(behind.Bits(), 128)},
			Type: unix.RTN_UNREACHABLE,
		}))
	})
	require.Eventually(t, func() bool { return e.missing() == len(c.sessions)-1 }, 10*time.Second, time.Millisecond)
	c.publish(100)
	c.tally().complete(c.sessions[:1], c.sent, c.sent)
	require.Eventually(t, func() bool { return c.Stats().SendErrors == uint64(len(c.sessions)-1) }, 10*time.Second, time.Millisecond)
}

// The RP's own address moves to another interface, and its host's routes stay: copies go on.
func TestXDPOwnAddressMoves(t *testing.T) {
	l := newLab(t, 2)
	l.addAddr(l.rp, "rp0", l.rpAddr(0).Next().Next().Next(), 32)
	c, e := newGatewayCrowd(l, 20)
	c.next()
	address := func(change func(netlink.Link, *netlink.Addr) error, name string, bits int) {
		l.in(l.rp, func() {
			link, err := netlink.LinkByName(name)
			require.NoError(t, err)
			require.NoError(t, change(link, &netlink.Addr{IPNet: &net.IPNet{IP: l.rpAddr(0).AsSlice(), Mask: net.CIDRMask(bits, 128)}}))
		})
	}
	looked := func() {
		t.Helper()
		time.Sleep(2 * settle) // for the event
		require.Eventually(t, func() (all bool) {
			require.NoError(t, e.do(func() { all = e.paths.Resolved() && !e.table.untidy() }))
			return all
		}, 10*time.Second, time.Millisecond)
		require.Zero(t, e.missing())
		c.next()
	}
	address(netlink.AddrDel, "rp0", 32)
	looked()
	address(netlink.AddrAdd, "lo", 128)
	looked()
	require.Zero(t, c.Stats().SendErrors)
}

// An interface that is made anew while the host has tens of thousands of events about others,
// of which the kernel drops most, forwards again.
func TestXDPDeviceDuringBurst(t *testing.T) {
	const events = 20_000
	l := newLab(t, 2)
	c := newCrowdWith(t, l, Options{eventBuffer: 1}, 20, func(i int) int { return i % 2 }) // the kernel takes its least
	e := c.Engine.(*Engine)
	c.next()

	var commands strings.Builder
	commands.WriteString("link add x0 type veth peer name x1\n")
	for i := range events {
		fmt.Fprintf(&commands, "link set x0 txqueuelen %d\n", 1000+i%2)
	}
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stderr = os.Stderr
	cmd.Stdin = strings.NewReader(commands.String())
	before := hostnet.Overruns()
	l.in(l.rp, func() { require.NoError(t, cmd.Start()) })
	require.True(t, eventually(func() bool { return hostnet.Overruns() > before }))

	nl, err := netlink.NewHandleAt(l.rp)
	require.NoError(t, err)
	defer nl.Close()
	link, err := nl.LinkByName(l.device(1))
	require.NoError(t, err)
	require.NoError(t, nl.LinkDel(link))
	for i, s := range c.sessions {
		if i%2 == 1 { // their addresses went with their interface
			c.nodes[s.Addr].conn.Close()
			delete(c.nodes, s.Addr)
		}
	}
	l.connect(1)
	for _, s := range c.sessions {
		c.node(s.Addr)
	}
	start := time.Now()
	t.Logf("forwards after %v", c.arrive())
	require.NoError(t, cmd.Wait(), "ip -batch")
	t.Logf("%d events took until %v later; %d overruns", events, time.Since(start), hostnet.Overruns()-before)
	require.Eventually(t, func() bool { return e.missing() == 0 }, 10*time.Second, time.Millisecond)
	c.next()
}
