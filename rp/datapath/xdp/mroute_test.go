// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"net"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// Socket options of multicast routing, linux/mroute6.h.
const (
	mrt6Init   = 200
	mrt6AddMIF = 202
	mrt6AddMFC = 204
)

// mif6ctl is struct mif6ctl: an interface of the router.
type mif6ctl struct {
	number    uint16
	_         uint8 // flags
	threshold uint8
	ifindex   uint16
	_         uint32 // rate
}

// mf6cctl is struct mf6cctl: a multicast route from the first interface.
type mf6cctl struct {
	origin, group unix.RawSockaddrInet6
	_             uint16    // number of the interface that it comes by
	to            [8]uint32 // interfaces that it goes by, a bit each
}

// mrouter is a namespace that routes multicast between two interfaces.
type mrouter struct {
	t  testing.TB
	fd int
}

func newMrouter(l *lab, ns netns.NsHandle, from, to string) *mrouter {
	l.t.Helper()
	r := &mrouter{t: l.t}
	l.in(ns, func() {
		var err error
		r.fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		require.NoError(l.t, err)
		require.NoError(l.t, unix.SetsockoptInt(r.fd, unix.IPPROTO_IPV6, mrt6Init, 1))
		for i, name := range []string{from, to} {
			intf, err := net.InterfaceByName(name)
			require.NoError(l.t, err)
			set(r, mrt6AddMIF, &mif6ctl{number: uint16(i), threshold: 1, ifindex: uint16(intf.Index)})
		}
	})
	l.t.Cleanup(func() { unix.Close(r.fd) })
	return r
}

// route lets datagrams of a channel pass.
func (r *mrouter) route(source, group netip.Addr) {
	r.t.Helper()
	set(r, mrt6AddMFC, &mf6cctl{
		origin: unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: source.As16()},
		group:  unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: group.As16()},
		to:     [8]uint32{1 << 1},
	})
}

func set[T any](r *mrouter, option int, value *T) {
	r.t.Helper()
	b := unsafe.Slice((*byte)(unsafe.Pointer(value)), unsafe.Sizeof(*value))
	require.NoError(r.t, unix.SetsockoptString(r.fd, unix.IPPROTO_IPV6, option, string(b)))
}

// A channel with hop limit 2 crosses a router with a route for it; one with 1 does not:
//
//	rp rp0 --- h0 hosts[0], the router h1 --- f0 far
func TestXDPChannelCrossesRouter(t *testing.T) {
	const datagrams = 10
	l := newLab(t, 1)
	far := newNamespace(t)
	nl, err := netlink.NewHandleAt(l.hosts[0])
	require.NoError(t, err)
	defer nl.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "h1"
	attrs.Index = 200
	require.NoError(t, nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "f0", PeerNamespace: netlink.NsFd(far)}))
	l.setUp(l.hosts[0], "h1", l.rpAddr(1))
	l.setUp(far, "f0", l.hostAddr(1))
	l.isUp(l.hosts[0], "h1")
	l.isUp(far, "f0")
	router := newMrouter(l, l.hosts[0], "h0", "h1")

	for name, open := range map[string]func(datapath.Config) *subject{
		"xdp":    func(cfg datapath.Config) *subject { return newSubjectAt(l, cfg, Options{}) },
		"socket": func(cfg datapath.Config) *subject { return newSocketSubject(l, cfg) },
	} {
		t.Run(name, func(t *testing.T) {
			channel := l.channel(0, 40100)
			source := open(datapath.Config{Incarnation: testOwn, HopLimit: 1})
			router.route(source.Addr().Addr(), channel.Addr().WithZone(""))
			member := l.join(far, "f0", source.Addr().Addr(), channel)
			defer member.conn.Close()
			send := func(s *subject) *crowd {
				near := l.tap(l.hosts[0], "h0", s.Addr())
				c := newChannelCrowd(s, channel)
				for range datagrams {
					c.publish(100)
				}
				seen := 0
				require.True(t, eventually(func() bool {
					seen += near.of(wire.Data)
					return seen == datagrams
				}))
				return c
			}
			send(source).leave()
			// What had crossed would come first, and from another port.
			c := send(open(datapath.Config{Incarnation: testOwn, HopLimit: 2}))
			c.arrives(member, 1, datagrams)
			c.leave()
		})
	}
}

// leave closes the engine and the nodes around it.
func (c *crowd) leave() {
	require.NoError(c.lab.t, c.Close())
	for _, n := range c.nodes {
		n.conn.Close()
	}
}
