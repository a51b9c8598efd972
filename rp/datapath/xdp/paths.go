// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/nexthop"
	"github.com/ethmcast/mdcs/rp/hostnet"
)

// awaitEntries is how long a change waits for the ND entries of those who join.
const awaitEntries = 250 * time.Millisecond

// settle is the pause between an event of the kernel and the look at it, so that one look
// is enough for events that come together.
const settle = 20 * time.Millisecond

// inUse is how often the kernel is told that ND entries are in use: twice in the time for
// which it trusts an answer.
const inUse = 15 * time.Second

// relist is how often everything is looked up again, whatever the kernel told.
const relist = time.Minute

// unicastHopLimit is the hop limit of packets that are not to a channel.
const unicastHopLimit = 64

// slicesInTurn is how many slices of a group are made anew at most in a turn, about two
// milliseconds.
const slicesInTurn = 32

// patience is how long the chains of all sessions wait for paths that are being looked up: while
// the kernel tells of new routes all the time there are always some.
const patience = time.Second

type mac = hostnet.MAC

// openPaths starts to follow the paths of sessions.
func (e *Engine) openPaths() (err error) {
	e.paths, err = nexthop.New(nexthop.Config{
		Own:     e.addr.Addr(),
		Devices: append(slices.Clone(e.opt.Devices), pairNames(e.addr)...),
		Buffer:  e.opt.eventBuffer,
		Serves:  func(ifindex int) bool { return e.number(ifindex) >= 0 },
		Changed: func(p *nexthop.Endpoint) { e.table.touch(p.Session, e.table.sessions[p.Session]) },
	}, e.nl)
	return err
}

// takeEvents looks at what the kernel told, in the share of the time that events have.
func (e *Engine) takeEvents() {
	start := time.Now()
	defer func() { e.paths.Spend(start, time.Now()) }()
	if e.paths.TakeEvents() {
		e.checkDevices()
		e.checkPair()
	}
}

// work does a part of what events of the kernel ask for.
func (e *Engine) work() {
	t, start := e.table, time.Now()
	e.paths.Work()
	// All chains are made anew when all paths are known, or when that takes long.
	if !t.all || e.paths.Resolved() {
		e.tidied = start
	}
	if t.untidy() && (e.tidied == start || start.Sub(e.tidied) > patience) {
		_ = e.follow(t.someTouched(slicesInTurn)) // what failed for want of memory is tried again
		e.paths.TellWaiters()
		e.tidied = start
	}
	e.paths.Spend(start, time.Now())
}

// hop returns the next hop of a path, when there is a device and an ND entry for it.
func (e *Engine) hop(p nexthop.Path) (fanout.Hop, bool) {
	device := e.number(p.Link)
	if device < 0 {
		return fanout.Hop{}, false
	}
	d := e.devices[device]
	if p.Addr.IsMulticast() {
		return fanout.Hop{Device: device, Attachment: d.attachment, Dst: groupMAC(p.Addr), Src: d.mac, HopLimit: max(e.cfg.HopLimit, 1)}, true
	}
	dst, ok := e.paths.MAC(p)
	return fanout.Hop{Device: device, Attachment: d.attachment, Dst: dst, Src: d.mac, HopLimit: unicastHopLimit}, ok
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
		var p nexthop.Path
		if p, err = e.paths.Route(peer); err == nil {
			err = e.serves(p.Link)
		}
		if err == nil {
			zone = strconv.Itoa(p.Link)
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

// noteWay notes for Hello whether copies to an RP can leave.
func (e *Engine) noteWay(s *session) {
	link := s.at.Path().Link
	if s.Role != datapath.Mesh || link == 0 {
		return
	}
	err := e.serves(link)
	if err == nil {
		err = e.devices[e.number(link)].refuses
	}
	if err == nil {
		s.state.noWay.Store(nil)
		return
	}
	s.state.noWay.Store(new(err.Error()))
}

// Await implements datapath.Stager: it waits for the ND entries of those that were added,
// for a short time. Receivers without one are served as soon as they answer, and their
// copies count as send errors until then.
func (e *Engine) Await(c datapath.Change) {
	if len(c.Add) == 0 {
		return
	}
	var w *nexthop.Waiter
	if e.do(func() { w = e.waitFor(c.Add) }) != nil || w == nil {
		return
	}
	timeout := time.NewTimer(awaitEntries)
	defer timeout.Stop()
	select {
	case <-w.Known():
	case <-e.done:
	case <-timeout.C:
		_ = e.do(func() { e.paths.Abandon(w) })
	}
}

// waitFor returns a waiter for the ND entries of added sessions, nil when all are known.
func (e *Engine) waitFor(added []datapath.Session) *nexthop.Waiter {
	var paths []nexthop.Path
	for i := range added {
		if s := e.table.sessions[added[i].Index]; s != nil {
			paths = append(paths, s.at.Path())
		}
	}
	return e.paths.Await(paths)
}

// awaitAll waits on the thread, before it serves, until the ND entries of all sessions are
// known, or for a short time.
func (e *Engine) awaitAll() {
	timeout := time.NewTimer(awaitEntries)
	defer timeout.Stop()
	for e.paths.Missing() {
		select {
		case <-e.paths.Wake():
			e.takeEvents()
			e.paths.RelistIfDue()
		case <-timeout.C:
			return
		}
	}
}
