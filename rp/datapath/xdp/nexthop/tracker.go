// SPDX-License-Identifier: LGPL-3.0-or-later

// Package nexthop knows how frames get to the endpoints of sessions: by which interface and
// which host on the link, as the kernel's routes say, and with which Ethernet address, as its ND
// entries say. It follows both by the kernel's events, and asks the kernel for ND entries that
// are missing or that the kernel does not see in use, because copies do not pass its stack.
//
// Invariants:
//
//   - Each endpoint that was added is looked up again after each event that may concern its
//     route. Until then it keeps the path of before.
//   - An ND entry is known while the kernel would send by it. One that the kernel only collected
//     stays known until its host fails to answer.
//   - A change of either is told once to Config.Changed, for each endpoint that it concerns.
//   - Work that events cause is at most one part in share of the thread's time (Pause), however
//     many events there are.
//
// A Tracker belongs to the engine's thread, which must be in the network namespace that New was
// called in. Only the channel of a Waiter may be read by others.
package nexthop

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/hostnet"
)

// Turn is how many addresses are looked up at most in one Work, about a millisecond, before the
// thread looks at what else waits.
const Turn = 128

// Work that events of the kernel cause takes at most one part in share of the thread's
// time, but up to backlog of it at once.
const (
	share   = 50
	backlog = 250 * time.Millisecond
)

// Path is how frames get to an endpoint; Link 0: there is no route. It names an ND entry.
type Path = hostnet.Entry

// Endpoint is where a session is. Its path belongs to the Tracker from Add to Remove.
type Endpoint struct {
	Session ids.Session // index
	Addr    netip.Addr
	path    Path
}

// NewEndpoint returns the endpoint of a session with the path that Route found.
func NewEndpoint(session ids.Session, addr netip.Addr, path Path) *Endpoint {
	return &Endpoint{Session: session, Addr: addr, path: path}
}

// Path returns how frames get to the endpoint.
func (e *Endpoint) Path() Path { return e.path }

// isChannel reports whether the endpoint is a channel. Its zone names its interface.
func (e *Endpoint) isChannel() bool { return e.Addr.IsMulticast() }

// Config is what a Tracker needs to know.
type Config struct {
	Own     netip.Addr // source address of copies
	Devices []string   // names of the interfaces that copies leave by
	Buffer  int        // of events, in bytes, see hostnet.Watch

	// Serves reports whether an interface is one of those, now.
	Serves func(ifindex int) bool

	// Changed is told of each endpoint whose path or ND entry has changed.
	Changed func(*Endpoint)
}

// Tracker follows the paths of endpoints.
type Tracker struct {
	cfg   Config
	nl    *netlink.Handle
	watch *hostnet.Watcher

	// What the kernel says.
	entries   map[Path]hostnet.MAC // ND entries that can be sent to
	permanent map[Path]bool        // the entries that the kernel told of: whether it keeps them by itself

	// What is followed.
	sorted    []netip.Addr // of endpoints that are no channels, distinct
	endpoints map[netip.Addr]map[ids.Session]*Endpoint
	users     map[Path]map[ids.Session]*Endpoint // by path, and session
	waiters   []*Waiter

	// Work to be done.
	relist  bool                // the kernel is to be asked for all that it has
	queue   []netip.Addr        // to be looked up, oldest first
	queued  map[netip.Addr]bool // those in queue
	unasked []Path              // ND entries that the kernel is to be told are in use
	due     time.Time           // when the share of the thread's time is whole again
}

// Waiter waits for ND entries.
type Waiter struct {
	missing []Path
	known   chan struct{}
}

// Known returns a channel that is closed when no entry is missing any more.
func (w *Waiter) Known() <-chan struct{} { return w.known }

// New starts to follow routes and ND entries, and takes the entries that the kernel has now. With an
// error nothing of it is left.
func New(cfg Config, nl *netlink.Handle) (*Tracker, error) {
	t := newTracker(cfg)
	t.nl = nl
	// Events first, state then: nothing that happens in between is missed.
	var err error
	if t.watch, err = hostnet.Watch(cfg.Devices, cfg.Own, cfg.Buffer); err != nil {
		return nil, err
	}
	t.Relist()
	return t, nil
}

func newTracker(cfg Config) *Tracker {
	return &Tracker{
		cfg:       cfg,
		entries:   make(map[Path]hostnet.MAC),
		permanent: make(map[Path]bool),
		endpoints: make(map[netip.Addr]map[ids.Session]*Endpoint),
		users:     make(map[Path]map[ids.Session]*Endpoint),
		queued:    make(map[netip.Addr]bool),
	}
}

// Close ends the events.
func (t *Tracker) Close() { t.watch.Close() }

// Wake returns a channel that gets an element when the kernel told something, until TakeEvents.
func (t *Tracker) Wake() <-chan struct{} { return t.watch.Wake() }

// Add follows the path of an endpoint.
func (t *Tracker) Add(e *Endpoint) {
	t.use(e)
	if e.isChannel() {
		return
	}
	if t.endpoints[e.Addr] == nil {
		t.endpoints[e.Addr] = make(map[ids.Session]*Endpoint)
		i, _ := slices.BinarySearchFunc(t.sorted, e.Addr, netip.Addr.Compare)
		t.sorted = slices.Insert(t.sorted, i, e.Addr)
	}
	t.endpoints[e.Addr][e.Session] = e
}

// Remove forgets an endpoint, which keeps its last path.
func (t *Tracker) Remove(e *Endpoint) {
	t.leave(e)
	if e.isChannel() || t.endpoints[e.Addr][e.Session] != e {
		return
	}
	if delete(t.endpoints[e.Addr], e.Session); len(t.endpoints[e.Addr]) > 0 {
		return
	}
	delete(t.endpoints, e.Addr)
	if i, found := slices.BinarySearchFunc(t.sorted, e.Addr, netip.Addr.Compare); found {
		t.sorted = slices.Delete(t.sorted, i, i+1)
	}
}

// move gives an endpoint another path.
func (t *Tracker) move(e *Endpoint, to Path) {
	t.leave(e)
	e.path = to
	t.use(e)
}

// use notes that an endpoint is reached by its path.
func (t *Tracker) use(e *Endpoint) {
	if t.users[e.path] == nil {
		t.users[e.path] = make(map[ids.Session]*Endpoint)
	}
	t.users[e.path][e.Session] = e
}

// leave undoes use.
func (t *Tracker) leave(e *Endpoint) {
	if delete(t.users[e.path], e.Session); len(t.users[e.path]) == 0 {
		delete(t.users, e.path)
	}
}

// lookUpCovered has the addresses looked up that a prefix covers.
func (t *Tracker) lookUpCovered(prefix netip.Prefix) {
	prefix = prefix.Masked()
	i, _ := slices.BinarySearchFunc(t.sorted, prefix.Addr(), netip.Addr.Compare)
	for ; i < len(t.sorted) && prefix.Contains(t.sorted[i].WithZone("")); i++ {
		t.lookUp(t.sorted[i])
	}
}

// LookUpAll has all endpoints looked up.
func (t *Tracker) LookUpAll() {
	for _, addr := range t.sorted {
		t.lookUp(addr)
	}
}

func (t *Tracker) lookUp(addr netip.Addr) {
	if !t.queued[addr] {
		t.queued[addr] = true
		t.queue = append(t.queue, addr)
	}
}

// next returns the address that has waited the longest, if an endpoint still has it.
func (t *Tracker) next() (addr netip.Addr, ok bool) {
	addr, t.queue = t.queue[0], t.queue[1:]
	delete(t.queued, addr)
	return addr, t.endpoints[addr] != nil
}

// Waiting reports whether there is work that events caused.
func (t *Tracker) Waiting() bool { return len(t.queue)+len(t.unasked) > 0 || t.relist }

// Resolved reports whether no endpoint waits to be looked up.
func (t *Tracker) Resolved() bool { return len(t.queue) == 0 }

// Pause is how long the thread must leave work that events cause alone.
func (t *Tracker) Pause(now time.Time) time.Duration {
	return max(0, t.due.Add(-share*backlog).Sub(now))
}

// Spend charges the thread's time for work that events caused.
func (t *Tracker) Spend(start, end time.Time) {
	if t.due.Before(start) {
		t.due = start
	}
	t.due = t.due.Add(share * end.Sub(start))
}

// note notes what the kernel says of an ND entry and reports whether that changes
// anything for an endpoint. An entry that is only collected stays until its host is known not to
// answer: the kernel does not see that it is in use, and is asked to look for it.
func (t *Tracker) note(entry Path, s hostnet.EntryState) (changed bool) {
	old, known := t.entries[entry]
	used := len(t.users[entry]) > 0
	if t.permanent[entry] = s.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0; s.Deleted {
		delete(t.permanent, entry)
	}
	switch {
	case s.Deleted:
		if known && used {
			t.unasked = append(t.unasked, entry)
		} else {
			delete(t.entries, entry)
		}
		return false
	case s.State&usable != 0 && s.MAC != hostnet.MAC{}:
		t.entries[entry] = s.MAC
		return (!known || old != s.MAC) && used
	case s.State&netlink.NUD_FAILED != 0 && known:
		delete(t.entries, entry)
		return used
	}
	return false
}

// Forget forgets the ND entries of an interface that is gone: the next one of its index may be
// another one.
func (t *Tracker) Forget(link int) {
	maps.DeleteFunc(t.entries, func(entry Path, _ hostnet.MAC) bool { return entry.Link == link })
	maps.DeleteFunc(t.permanent, func(entry Path, _ bool) bool { return entry.Link == link })
}

// usable are the states in which the kernel itself would send to a host.
const usable = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE | netlink.NUD_PROBE |
	netlink.NUD_STALE | netlink.NUD_DELAY

// Learn notes what the kernel says of an ND entry, and tells of the endpoints that it changes
// anything for.
func (t *Tracker) Learn(entry Path, s hostnet.EntryState) {
	if !t.note(entry, s) {
		return
	}
	for _, user := range t.users[entry] {
		t.cfg.Changed(user)
	}
}

// Recall takes an Ethernet address for an ND entry that the kernel forgot.
func (t *Tracker) Recall(entry Path, mac hostnet.MAC) { t.entries[entry] = mac }

// MAC returns the Ethernet address of an ND entry that can be sent to.
func (t *Tracker) MAC(entry Path) (mac hostnet.MAC, known bool) {
	mac, known = t.entries[entry]
	return mac, known
}

// TakeEvents looks at what the kernel told, and reports whether that may concern the devices. When
// it had to leave something out, or rules changed, all is to be listed again.
func (t *Tracker) TakeEvents() (devices bool) {
	events := t.watch.Take()
	for entry, s := range events.Entries {
		t.Learn(entry, s)
	}
	for prefix := range events.Prefixes {
		t.lookUpCovered(prefix)
	}
	if events.Address {
		t.LookUpAll()
	}
	t.relist = t.relist || events.Lost || events.Rules
	return events.Devices || events.Lost
}

// RelistLater has all listed again with the next Work.
func (t *Tracker) RelistLater() { t.relist = true }

// RelistIfDue is Relist after RelistLater, or when the kernel left something out.
func (t *Tracker) RelistIfDue() {
	if t.relist {
		t.relist = false
		t.Relist()
	}
}

// Relist takes the ND entries that the kernel has, and has all paths looked up. What the kernel
// does not list is asked for.
func (t *Tracker) Relist() {
	if tables, err := hostnet.Tables(t.nl); err == nil { // else the tables of the last time stay
		t.watch.Follow(tables)
	}
	entries, err := hostnet.Entries(t.nl)
	if err == nil {
		for entry := range t.entries {
			if _, listed := entries[entry]; !listed {
				t.note(entry, hostnet.EntryState{Deleted: true})
			}
		}
	}
	for entry, s := range entries {
		t.Learn(entry, s)
	}
	t.LookUpAll()
}

// Work does a part of what events of the kernel ask for, a few milliseconds of it.
func (t *Tracker) Work() {
	t.RelistIfDue()
	for range Turn {
		if len(t.queue) == 0 {
			break
		}
		if addr, ok := t.next(); ok {
			t.resolve(addr)
		}
	}
	for range Turn {
		if len(t.unasked) == 0 {
			break
		}
		t.ask(t.unasked[0])
		t.unasked = t.unasked[1:]
	}
}

// Resolve looks up the path of one endpoint now. Nobody is told.
func (t *Tracker) Resolve(e *Endpoint) {
	to, _ := t.Route(e.Addr) // without one it waits for a route
	t.move(e, to)
	t.Want(to)
}

// resolve looks up the path to an address, and asks for its ND entry if that is missing.
func (t *Tracker) resolve(addr netip.Addr) {
	to, _ := t.Route(addr) // without one it waits for a route
	for _, e := range t.endpoints[addr] {
		if e.path != to {
			t.move(e, to)
			t.cfg.Changed(e)
		}
	}
	t.Want(to)
}

// ask makes the kernel look for a host, as if it had something to send to it. An entry that
// is permanent would be so no more: it is left alone. One that the kernel has but did not tell
// of may be permanent, or FAILED and then nobody looks for the host: the kernel is asked first.
func (t *Tracker) ask(entry Path) {
	use := netlink.Neigh{
		LinkIndex: entry.Link,
		Family:    netlink.FAMILY_V6,
		Flags:     netlink.NTF_USE,
		IP:        entry.Addr.AsSlice(),
	}
	if _, told := t.permanent[entry]; !told {
		if !errors.Is(t.nl.NeighAdd(&use), unix.EEXIST) {
			return // what is wrong shows by the host not being found
		}
		s, err := hostnet.Lookup(entry)
		if err != nil {
			return // the next time it is tried again
		}
		t.Learn(entry, s)
	}
	if !t.permanent[entry] {
		_ = t.nl.NeighSet(&use) // as above
	}
}

// KeepEntries tells the kernel that the ND entries of endpoints are in use, which it does
// not see, so that it makes sure that they answer.
func (t *Tracker) KeepEntries() {
	if len(t.unasked) > 0 {
		return // the last time is not over
	}
	for entry := range t.users {
		if t.cfg.Serves(entry.Link) && !entry.Addr.IsMulticast() {
			t.unasked = append(t.unasked, entry)
		}
	}
}

// AskMissing asks once more for some of the ND entries that are missing: a host that was
// away is found soon after it is back.
func (t *Tracker) AskMissing() {
	for entry := range t.users {
		if len(t.unasked) >= Turn {
			return // the order of a map is random: others the next time
		}
		if t.isMissing(entry) {
			t.unasked = append(t.unasked, entry)
		}
	}
}

// Route returns the path to an endpoint: by the interface of a channel's zone, else
// as the kernel says.
func (t *Tracker) Route(addr netip.Addr) (Path, error) {
	if index, err := datapath.Interface(addr); err == nil {
		return Path{Link: index, Addr: addr.WithZone("")}, nil
	}
	opt := &netlink.RouteGetOptions{SrcAddr: t.cfg.Own.AsSlice(), Oif: addr.Zone()}
	addr = addr.WithZone("")
	routes, err := t.nl.RouteGetWithOptions(net.IP(addr.AsSlice()), opt)
	if err != nil {
		return Path{}, fmt.Errorf("route to %v: %w", addr, err)
	}
	if len(routes) == 0 || routes[0].LinkIndex == 0 {
		return Path{}, fmt.Errorf("route to %v: no interface", addr)
	}
	via, ok := netip.AddrFromSlice(routes[0].Gw)
	if !ok {
		via = addr
	}
	return Path{Link: routes[0].LinkIndex, Addr: via}, nil
}

// Want asks for the ND entry of a path unless it is known, and reports whether it may become
// known.
func (t *Tracker) Want(p Path) bool {
	if !t.isMissing(p) {
		return false
	}
	t.ask(p)
	return true
}

// isMissing reports whether an ND entry is needed that is not known.
func (t *Tracker) isMissing(p Path) bool {
	_, known := t.entries[p]
	return !known && t.cfg.Serves(p.Link) && !p.Addr.IsMulticast()
}

// Missing reports whether an ND entry of an endpoint is needed that is not known.
func (t *Tracker) Missing() bool {
	for entry := range t.users {
		if t.isMissing(entry) {
			return true
		}
	}
	return false
}

// Await asks for the ND entries of paths, and returns a waiter for the missing ones, nil
// when none is missing.
func (t *Tracker) Await(paths []Path) *Waiter {
	w := &Waiter{known: make(chan struct{})}
	for _, p := range paths {
		if t.Want(p) {
			w.missing = append(w.missing, p)
		}
	}
	if len(w.missing) == 0 {
		return nil
	}
	t.waiters = append(t.waiters, w)
	return w
}

// Abandon forgets a waiter.
func (t *Tracker) Abandon(w *Waiter) {
	t.waiters = slices.DeleteFunc(t.waiters, func(have *Waiter) bool { return have == w })
}

// TellWaiters ends the waiting for entries that are known. The engine calls it when copies go
// there.
func (t *Tracker) TellWaiters() {
	t.waiters = slices.DeleteFunc(t.waiters, func(w *Waiter) bool {
		w.missing = slices.DeleteFunc(w.missing, func(p Path) bool { _, known := t.entries[p]; return known })
		if len(w.missing) == 0 {
			close(w.known)
		}
		return len(w.missing) == 0
	})
}
