// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/hostnet"
)

// awaitNeighbours is how long a change waits for the ND entries of those who join.
const awaitNeighbours = 250 * time.Millisecond

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

// turn is how many addresses are looked up at most, about a millisecond, before the thread
// looks at what else waits.
const turn = 128

// slicesInTurn is how many slices of a group are made anew at most in a turn, about two
// milliseconds.
const slicesInTurn = 32

// Work that events of the kernel cause takes at most one part in share of the thread's
// time, but up to backlog of it at once.
const (
	share   = 50
	backlog = 250 * time.Millisecond
)

// patience is how long the chains of all sessions wait for paths that are being looked up: while
// the kernel tells of new routes all the time there are always some.
const patience = time.Second

type mac = hostnet.MAC

// path is how frames get to an endpoint; link 0: there is no route. It names an ND entry.
type path = hostnet.Entry

// nextHop is what a frame to an endpoint needs.
type nextHop struct {
	device     int    // number
	attachment uint32 // of the device: one that came back is another
	dst, src   mac
	hopLimit   uint8
}

// pathIndex is what the thread knows of the ways to the sessions.
type pathIndex struct {
	neighbours map[hostnet.Entry]mac  // ND entries that can be sent to
	permanent  map[hostnet.Entry]bool // whether the kernel keeps an entry by itself, of those that it told of
	sorted     []netip.Addr           // of sessions that are no channels, distinct
	sessions   map[netip.Addr]map[uint32]*session
	users      map[hostnet.Entry]map[uint32]*session // by path, and index

	relist  bool                // the kernel is to be asked for all that it has
	queue   []netip.Addr        // to be looked up, oldest first
	queued  map[netip.Addr]bool // those in queue
	unasked []hostnet.Entry     // ND entries that the kernel is to be told are in use
	due     time.Time           // when the share of the thread's time is whole again

	tidied  time.Time // until when all chains did not wait for paths
	waiters []*waiter
}

// waiter is a change that waits for ND entries.
type waiter struct {
	missing []hostnet.Entry
	known   chan struct{} // closed when none is missing
}

func newPathIndex() *pathIndex {
	return &pathIndex{
		neighbours: make(map[hostnet.Entry]mac),
		permanent:  make(map[hostnet.Entry]bool),
		sessions:   make(map[netip.Addr]map[uint32]*session),
		users:      make(map[hostnet.Entry]map[uint32]*session),
		queued:     make(map[netip.Addr]bool),
	}
}

// addressOf returns the address that a session is looked up by; ok is false for a channel,
// whose interface is that of its zone.
func addressOf(s *session) (addr netip.Addr, ok bool) {
	return s.Addr.Addr(), !s.Addr.Addr().IsMulticast()
}

// add notes the path of a session.
func (p *pathIndex) add(s *session) {
	p.use(s)
	addr, ok := addressOf(s)
	if !ok {
		return
	}
	if p.sessions[addr] == nil {
		p.sessions[addr] = make(map[uint32]*session)
		i, _ := slices.BinarySearchFunc(p.sorted, addr, netip.Addr.Compare)
		p.sorted = slices.Insert(p.sorted, i, addr)
	}
	p.sessions[addr][s.Index] = s
}

// remove forgets the path of a session.
func (p *pathIndex) remove(s *session) {
	p.leave(s)
	addr, ok := addressOf(s)
	if !ok || p.sessions[addr][s.Index] != s {
		return
	}
	if delete(p.sessions[addr], s.Index); len(p.sessions[addr]) > 0 {
		return
	}
	delete(p.sessions, addr)
	if i, found := slices.BinarySearchFunc(p.sorted, addr, netip.Addr.Compare); found {
		p.sorted = slices.Delete(p.sorted, i, i+1)
	}
}

// move gives a session another path.
func (p *pathIndex) move(s *session, to path) {
	p.leave(s)
	s.path = to
	p.use(s)
}

// use notes that a session goes by its path.
func (p *pathIndex) use(s *session) {
	if p.users[s.path] == nil {
		p.users[s.path] = make(map[uint32]*session)
	}
	p.users[s.path][s.Index] = s
}

// leave undoes use.
func (p *pathIndex) leave(s *session) {
	if delete(p.users[s.path], s.Index); len(p.users[s.path]) == 0 {
		delete(p.users, s.path)
	}
}

// covered has the addresses looked up that a prefix covers.
func (p *pathIndex) covered(prefix netip.Prefix) {
	prefix = prefix.Masked()
	i, _ := slices.BinarySearchFunc(p.sorted, prefix.Addr(), netip.Addr.Compare)
	for ; i < len(p.sorted) && prefix.Contains(p.sorted[i].WithZone("")); i++ {
		p.lookUp(p.sorted[i])
	}
}

// all has all addresses looked up.
func (p *pathIndex) all() {
	for _, addr := range p.sorted {
		p.lookUp(addr)
	}
}

func (p *pathIndex) lookUp(addr netip.Addr) {
	if !p.queued[addr] {
		p.queued[addr] = true
		p.queue = append(p.queue, addr)
	}
}

// next returns the address that has waited the longest, if it is still that of a session.
func (p *pathIndex) next() (addr netip.Addr, ok bool) {
	addr, p.queue = p.queue[0], p.queue[1:]
	delete(p.queued, addr)
	return addr, p.sessions[addr] != nil
}

// waits returns how long the thread must leave its other work alone before it goes on with
// that of events, and whether there is any; untidy says that the chains do not follow the
// paths yet.
func (p *pathIndex) waits(now time.Time, untidy bool) (pause time.Duration, some bool) {
	if len(p.queue)+len(p.unasked) == 0 && !untidy && !p.relist {
		return 0, false
	}
	return p.pause(now), true
}

// pause is how long the thread must leave work that events cause alone.
func (p *pathIndex) pause(now time.Time) time.Duration {
	return max(0, p.due.Add(-share*backlog).Sub(now))
}

// spent charges work.
func (p *pathIndex) spent(start, end time.Time) {
	if p.due.Before(start) {
		p.due = start
	}
	p.due = p.due.Add(share * end.Sub(start))
}

// learn notes what the kernel says of an ND entry and reports whether that changes
// anything for a session. An entry that is only collected stays until its host is known not to
// answer: the kernel does not see that it is in use, and is asked to look for it.
func (p *pathIndex) learn(entry hostnet.Entry, s hostnet.EntryState) (changed bool) {
	old, known := p.neighbours[entry]
	used := len(p.users[entry]) > 0
	if p.permanent[entry] = s.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0; s.Deleted {
		delete(p.permanent, entry)
	}
	switch {
	case s.Deleted:
		if known && used {
			p.unasked = append(p.unasked, entry)
		} else {
			delete(p.neighbours, entry)
		}
		return false
	case s.State&usable != 0 && s.MAC != mac{}:
		p.neighbours[entry] = s.MAC
		return (!known || old != s.MAC) && used
	case s.State&netlink.NUD_FAILED != 0 && known:
		delete(p.neighbours, entry)
		return used
	}
	return false
}

// forget forgets the ND entries of an interface that is gone: the next one of its index may be
// another one.
func (p *pathIndex) forget(link int) {
	maps.DeleteFunc(p.neighbours, func(entry hostnet.Entry, _ mac) bool { return entry.Link == link })
	maps.DeleteFunc(p.permanent, func(entry hostnet.Entry, _ bool) bool { return entry.Link == link })
}

// usable are the states in which the kernel itself would send to a host.
const usable = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE | netlink.NUD_PROBE |
	netlink.NUD_STALE | netlink.NUD_DELAY

// learn notes what the kernel says of an ND entry, and touches the sessions that it changes
// anything for.
func (e *Engine) learn(entry hostnet.Entry, s hostnet.EntryState) {
	if !e.paths.learn(entry, s) {
		return
	}
	for index, user := range e.paths.users[entry] {
		e.table.touch(index, user)
	}
}

// takeEvents looks at what the kernel told. When it had to leave something out, or rules changed, all is listed
// again, in the share of the time that events have.
func (e *Engine) takeEvents() {
	start := time.Now()
	defer func() { e.paths.spent(start, time.Now()) }()
	events := e.watch.Take()
	for entry, s := range events.Entries {
		e.learn(entry, s)
	}
	for prefix := range events.Prefixes {
		e.paths.covered(prefix)
	}
	if events.Devices || events.Lost {
		e.checkDevices()
	}
	if events.Address {
		e.paths.all()
	}
	e.paths.relist = e.paths.relist || events.Lost || events.Rules
}

// relist takes the ND entries that the kernel has, and has all paths looked up. What the
// kernel does not list is asked for.
func (e *Engine) relist() {
	if tables, err := hostnet.Tables(e.nl); err == nil { // else those of the last time
		e.watch.Follow(tables)
	}
	entries, err := hostnet.Entries(e.nl)
	if err == nil {
		for entry := range e.paths.neighbours {
			if _, listed := entries[entry]; !listed {
				e.paths.learn(entry, hostnet.EntryState{Deleted: true})
			}
		}
	}
	for entry, s := range entries {
		e.learn(entry, s)
	}
	e.paths.all()
}

// listAgain is relist if that is due.
func (e *Engine) listAgain() {
	if e.paths.relist {
		e.paths.relist = false
		e.relist()
	}
}

// work does a part of what events of the kernel ask for.
func (e *Engine) work() {
	p, start := e.paths, time.Now()
	e.listAgain()
	for range turn {
		if len(p.queue) == 0 {
			break
		}
		if addr, ok := p.next(); ok {
			e.resolve(addr)
		}
	}
	for range turn {
		if len(p.unasked) == 0 {
			break
		}
		e.ask(p.unasked[0])
		p.unasked = p.unasked[1:]
	}
	// All chains are made anew when all paths are known, or when that takes long.
	t := e.table
	if !t.all || len(p.queue) == 0 {
		p.tidied = start
	}
	if t.untidy() && (p.tidied == start || start.Sub(p.tidied) > patience) {
		_ = e.follow(t.someTouched(slicesInTurn)) // what failed for want of memory is tried again
		e.tellWaiters()
		p.tidied = start
	}
	p.spent(start, time.Now())
}

// resolveNow looks up the path of one session.
func (e *Engine) resolveNow(s *session) {
	to, _ := e.route(s.Addr.Addr()) // without one it waits for a route
	e.paths.move(s, to)
	e.want(to)
}

// resolve looks up the path to an address, and asks for its ND entry if that is missing.
func (e *Engine) resolve(addr netip.Addr) {
	to, _ := e.route(addr) // without one it waits for a route
	for _, s := range e.paths.sessions[addr] {
		if s.path != to {
			e.paths.move(s, to)
			e.table.touch(s.Index, s)
		}
	}
	e.want(to)
}

// ask makes the kernel look for a host, as if it had something to send to it. An entry that
// is permanent would be so no more: it is left alone. One that the kernel has but did not tell
// of may be permanent, or FAILED and then nobody looks for the host: the kernel is asked first.
func (e *Engine) ask(entry hostnet.Entry) {
	use := netlink.Neigh{
		LinkIndex: entry.Link,
		Family:    netlink.FAMILY_V6,
		Flags:     netlink.NTF_USE,
		IP:        entry.Addr.AsSlice(),
	}
	if _, told := e.paths.permanent[entry]; !told {
		if !errors.Is(e.nl.NeighAdd(&use), unix.EEXIST) {
			return // what is wrong shows by the host not being found
		}
		s, err := hostnet.Lookup(entry)
		if err != nil {
			return // the next time it is tried again
		}
		e.learn(entry, s)
	}
	if !e.paths.permanent[entry] {
		_ = e.nl.NeighSet(&use) // as above
	}
}

// keepNeighbours tells the kernel that the ND entries of sessions are in use, which it does
// not see, so that it makes sure that they answer.
func (e *Engine) keepNeighbours() {
	if len(e.paths.unasked) > 0 {
		return // the last time is not over
	}
	for entry := range e.paths.users {
		if e.number(entry.Link) >= 0 && !entry.Addr.IsMulticast() {
			e.paths.unasked = append(e.paths.unasked, entry)
		}
	}
}

// askMissing asks once more for some of the ND entries that are missing: a host that was
// away is found soon after it is back.
func (e *Engine) askMissing() {
	for entry := range e.paths.users {
		if len(e.paths.unasked) >= turn {
			return // the order of a map is random: others the next time
		}
		if _, known := e.paths.neighbours[entry]; !known && e.number(entry.Link) >= 0 && !entry.Addr.IsMulticast() {
			e.paths.unasked = append(e.paths.unasked, entry)
		}
	}
}

// route returns the path to an endpoint: by the interface of a channel's zone, else
// as the kernel says.
func (e *Engine) route(addr netip.Addr) (path, error) {
	if index, err := datapath.Interface(addr); err == nil {
		return path{Link: index, Addr: addr.WithZone("")}, nil
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
	return path{Link: routes[0].LinkIndex, Addr: via}, nil
}

// hop returns the next hop of a path, when there is a device and an ND entry for it.
func (e *Engine) hop(p path) (nextHop, bool) {
	device := e.number(p.Link)
	if device < 0 {
		return nextHop{}, false
	}
	d := e.devices[device]
	if p.Addr.IsMulticast() {
		return nextHop{device, d.attachment, groupMAC(p.Addr), d.mac, max(e.cfg.HopLimit, 1)}, true
	}
	dst, ok := e.paths.neighbours[p]
	return nextHop{device, d.attachment, dst, d.mac, unicastHopLimit}, ok
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

// want asks for the ND entry of a path unless it is known, and reports whether it
// may become known.
func (e *Engine) want(p path) bool {
	if e.number(p.Link) < 0 || p.Addr.IsMulticast() {
		return false
	}
	if _, ok := e.paths.neighbours[p]; ok {
		return false
	}
	e.ask(p)
	return true
}

// waitFor returns a waiter for the ND entries of added sessions, nil when all are known.
func (e *Engine) waitFor(added []datapath.Session) *waiter {
	w := &waiter{known: make(chan struct{})}
	for i := range added {
		if s := e.table.sessions[added[i].Index]; s != nil && e.want(s.path) {
			w.missing = append(w.missing, s.path)
		}
	}
	if len(w.missing) == 0 {
		return nil
	}
	e.paths.waiters = append(e.paths.waiters, w)
	return w
}

// tellWaiters ends the wait of the changes whose ND entries are known, when copies go there.
func (e *Engine) tellWaiters() {
	e.paths.waiters = slices.DeleteFunc(e.paths.waiters, func(w *waiter) bool {
		w.missing = slices.DeleteFunc(w.missing, func(p path) bool { _, known := e.paths.neighbours[p]; return known })
		if len(w.missing) == 0 {
			close(w.known)
		}
		return len(w.missing) == 0
	})
}

// Await implements datapath.Stager: it waits for the ND entries of those that were added,
// for a short time. Receivers without one are served as soon as they answer, and their
// copies count as send errors until then.
func (e *Engine) Await(c datapath.Change) {
	if len(c.Add) == 0 {
		return
	}
	var w *waiter
	if e.do(func() { w = e.waitFor(c.Add) }) != nil || w == nil {
		return
	}
	timeout := time.NewTimer(awaitNeighbours)
	defer timeout.Stop()
	select {
	case <-w.known:
	case <-e.done:
	case <-timeout.C:
		_ = e.do(func() {
			e.paths.waiters = slices.DeleteFunc(e.paths.waiters, func(have *waiter) bool { return have == w })
		})
	}
}

// awaitAll waits on the thread, before it serves, until the ND entries of all sessions are
// known, or for a short time.
func (e *Engine) awaitAll() {
	timeout := time.NewTimer(awaitNeighbours)
	defer timeout.Stop()
	for {
		missing := false
		for entry := range e.paths.users {
			_, known := e.paths.neighbours[entry]
			missing = missing || !known && e.number(entry.Link) >= 0 && !entry.Addr.IsMulticast()
		}
		if !missing {
			return
		}
		select {
		case <-e.watch.Wake():
			e.takeEvents()
			e.listAgain()
		case <-timeout.C:
			return
		}
	}
}
