// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/rp/datapath"
)

// resolveWait is how long a change waits for the neighbours of those who join.
const resolveWait = 250 * time.Millisecond

// neighborKey names a node on a link.
type neighborKey struct {
	ifindex int
	addr    netip.Addr
}

// path is how frames get to an endpoint; ifindex 0: there is no route.
type path struct {
	ifindex int
	via     netip.Addr // gateway, or the endpoint itself
}

// inUse is how often the kernel is told that neighbours are in use: twice in the time for
// which it trusts an answer.
const inUse = 15 * time.Second

// nextHop is what a frame to an endpoint needs.
type nextHop struct {
	device   int // number
	dst, src mac
	hopLimit uint8
}

// unicastHopLimit is the hop limit of packets that are not to a channel.
const unicastHopLimit = 64

// events are the kernel's messages about what paths depend on.
type events struct {
	neighbors  chan netlink.NeighUpdate
	links      chan netlink.LinkUpdate
	routes     chan netlink.RouteUpdate
	addresses  chan netlink.AddrUpdate
	done       chan struct{}
	subscribed []func()
}

// subscribe opens the streams of events in the namespace of the calling thread.
func subscribe() (*events, error) {
	const size = 4 << 20 // bytes of socket buffer: a router may tell of ten thousand neighbours at once
	ev := &events{
		neighbors: make(chan netlink.NeighUpdate, 64),
		links:     make(chan netlink.LinkUpdate, 64),
		routes:    make(chan netlink.RouteUpdate, 64),
		addresses: make(chan netlink.AddrUpdate, 64),
		done:      make(chan struct{}),
	}
	ignore := func(error) {} // the stream ends then, which is seen by its channel
	for _, s := range []struct {
		what  string
		open  func() error
		drain func()
	}{
		{"neighbours", func() error {
			return netlink.NeighSubscribeWithOptions(ev.neighbors, ev.done,
				netlink.NeighSubscribeOptions{ErrorCallback: ignore, ReceiveBufferSize: size, ReceiveBufferForceSize: true})
		}, func() { drain(ev.neighbors) }},
		{"links", func() error {
			return netlink.LinkSubscribeWithOptions(ev.links, ev.done,
				netlink.LinkSubscribeOptions{ErrorCallback: ignore, ReceiveBufferSize: size, ReceiveBufferForceSize: true})
		}, func() { drain(ev.links) }},
		{"routes", func() error {
			return netlink.RouteSubscribeWithOptions(ev.routes, ev.done,
				netlink.RouteSubscribeOptions{ErrorCallback: ignore, ReceiveBufferSize: size, ReceiveBufferForceSize: true})
		}, func() { drain(ev.routes) }},
		{"addresses", func() error {
			return netlink.AddrSubscribeWithOptions(ev.addresses, ev.done,
				netlink.AddrSubscribeOptions{ErrorCallback: ignore, ReceiveBufferSize: size, ReceiveBufferForceSize: true})
		}, func() { drain(ev.addresses) }},
	} {
		if err := s.open(); err != nil {
			ev.close()
			return nil, fmt.Errorf("watch %s: %w", s.what, err)
		}
		ev.subscribed = append(ev.subscribed, s.drain)
	}
	return ev, nil
}

// close ends the streams and waits for those who fill them.
func (ev *events) close() {
	close(ev.done)
	for _, drain := range ev.subscribed {
		drain()
	}
}

// resubscribe starts over after a stream of events ended: the kernel had more to tell
// than its buffer holds.
func (e *Engine) resubscribe() {
	e.events.close()
	for e.events = nil; e.events == nil; {
		var err error
		if e.events, err = subscribe(); err == nil {
			break
		}
		select {
		case <-time.After(time.Second):
		case <-e.quit:
			return
		}
	}
	clear(e.neighbors)
	_ = e.learnAll() // what is missing is asked for
	e.resolveSoon()
}

// resolveSoon has all paths looked up again after settle, however many events follow.
func (e *Engine) resolveSoon() {
	if !e.unsettled {
		e.unsettled = true
		e.late.Reset(settle)
	}
}

func drain[T any](c <-chan T) {
	for range c {
	}
}

// learnAll takes the neighbours that the kernel knows.
func (e *Engine) learnAll() error {
	all, err := e.nl.NeighList(0, netlink.FAMILY_V6)
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range all {
		e.learn(netlink.NeighUpdate{Type: unix.RTM_NEWNEIGH, Neigh: n})
	}
	return nil
}

// usable are the states in which the kernel itself would send to a neighbour.
const usable = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE | netlink.NUD_PROBE |
	netlink.NUD_STALE | netlink.NUD_DELAY

// learn notes what the kernel says of a neighbour and reports whether that changes
// anything for a session. An entry that is only collected stays until its node is known not to
// answer: the kernel does not see that it is in use.
func (e *Engine) learn(u netlink.NeighUpdate) bool {
	addr, ok := netip.AddrFromSlice(u.IP)
	if !ok || !addr.Is6() || addr.IsMulticast() {
		return false
	}
	key := neighborKey{u.LinkIndex, addr}
	old, known := e.neighbors[key]
	switch {
	case u.Type == unix.RTM_DELNEIGH:
		if known && e.table.uses(key) {
			e.ask(key)
		} else {
			delete(e.neighbors, key)
		}
		return false
	case u.State&usable != 0 && len(u.HardwareAddr) == len(mac{}):
		e.neighbors[key] = mac(u.HardwareAddr)
		return (!known || old != mac(u.HardwareAddr)) && e.table.uses(key)
	case u.State&netlink.NUD_FAILED != 0 && known:
		delete(e.neighbors, key)
		return e.table.uses(key)
	}
	return false
}

// ask makes the kernel look for a neighbour, as if it had something to send to it.
func (e *Engine) ask(key neighborKey) {
	_ = e.nl.NeighSet(&netlink.Neigh{ // what is wrong shows by the neighbour not being found
		LinkIndex: key.ifindex,
		Family:    netlink.FAMILY_V6,
		Flags:     netlink.NTF_USE,
		IP:        key.addr.AsSlice(),
	})
}

// keepNeighbors tells the kernel that the neighbours of sessions are in use, which it does
// not see, so that it makes sure that they answer.
func (e *Engine) keepNeighbors() {
	told := make(map[neighborKey]bool)
	for _, s := range e.table.sessions {
		key := neighborKey{s.path.ifindex, s.path.via}
		if e.number(key.ifindex) >= 0 && !key.addr.IsMulticast() && !told[key] {
			told[key] = true
			e.ask(key)
		}
	}
}

// route returns the path to an endpoint: by the interface of a channel's zone, else
// as the kernel says.
func (e *Engine) route(addr netip.Addr) (path, error) {
	if index, err := datapath.Interface(addr); err == nil {
		return path{index, addr.WithZone("")}, nil
	}
	opt := &netlink.RouteGetOptions{SrcAddr: e.addr.Addr().AsSlice(), Oif: addr.Zone()}
	addr = addr.WithZone("")
	routes, err := e.nl.RouteGetWithOptions(net.IP(addr.AsSlice()), opt)
	if err != nil {
		return path{}, fmt.Errorf("route to %v: %w", addr, err)
	}
	if len(routes) == 0 || routes[0].LinkIndex == 0 {
		return path{}, fmt.Errorf("route to %v: no interface", addr)
	}
	via, ok := netip.AddrFromSlice(routes[0].Gw)
	if !ok {
		via = addr
	}
	return path{routes[0].LinkIndex, via}, nil
}

// hop returns the next hop of a path, when there is a device and a neighbour for it.
func (e *Engine) hop(p path) (nextHop, bool) {
	device := e.number(p.ifindex)
	if device < 0 {
		return nextHop{}, false
	}
	src := e.devices[device].mac
	if p.via.IsMulticast() {
		return nextHop{device, groupMAC(p.via), src, max(e.cfg.HopLimit, 1)}, true
	}
	dst, ok := e.neighbors[neighborKey{p.ifindex, p.via}]
	return nextHop{device, dst, src, unicastHopLimit}, ok
}

// groupMAC is the Ethernet address of a multicast group (RFC 2464, section 7).
func groupMAC(group netip.Addr) mac {
	a := group.As16()
	return mac{0x33, 0x33, a[12], a[13], a[14], a[15]}
}

// Link implements datapath.Multicaster. It is an error when the interface is none of
// the engine's devices: what leaves there is not copied by this engine.
func (e *Engine) Link(peer netip.Addr) (zone string, err error) {
	closed := e.do(func() {
		var p path
		if p, err = e.route(peer); err == nil {
			err = e.serves(p.ifindex)
		}
		if err == nil {
			zone = strconv.Itoa(p.ifindex)
		}
	})
	return zone, cmp.Or(closed, err)
}

// serves returns an error when an interface is none of the engine's devices.
func (e *Engine) serves(ifindex int) error {
	if e.number(ifindex) < 0 {
		name := fmt.Sprintf("interface %d", ifindex)
		if l, err := e.nl.LinkByIndex(ifindex); err == nil {
			name = l.Attrs().Name
		}
		return fmt.Errorf("%s is none of the devices %s", name, strings.Join(slices.DeleteFunc(slices.Clone(e.opt.Devices),
			func(s string) bool { return s == "" }), ", "))
	}
	return nil
}

// resolveAll looks up all paths again and asks for neighbours that are missing.
func (e *Engine) resolveAll() {
	for _, s := range e.table.sessions {
		s.path, _ = e.route(s.Addr.Addr()) // without one it waits for the next change of routes
		e.want(s.path)
	}
}

// want asks for the neighbour of a path unless it is known, and reports whether it
// may become known.
func (e *Engine) want(p path) bool {
	if e.number(p.ifindex) < 0 || p.via.IsMulticast() {
		return false
	}
	key := neighborKey{p.ifindex, p.via}
	if _, ok := e.neighbors[key]; ok {
		return false
	}
	e.ask(key)
	return true
}

// await waits until the neighbours of paths are known, or for resolveWait.
func (e *Engine) await(paths []path) {
	missing := make(map[neighborKey]bool)
	for _, p := range paths {
		if e.want(p) {
			missing[neighborKey{p.ifindex, p.via}] = true
		}
	}
	timeout := time.NewTimer(resolveWait)
	defer timeout.Stop()
	for len(missing) > 0 {
		select {
		case u, ok := <-e.events.neighbors:
			if !ok {
				return // the thread subscribes again, and resolves all
			}
			e.learn(u)
			for key := range missing {
				if _, ok := e.neighbors[key]; ok {
					delete(missing, key)
				}
			}
		case <-timeout.C:
			return
		}
	}
}
