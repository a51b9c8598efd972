// SPDX-License-Identifier: LGPL-3.0-or-later

package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// interrupted counts lists that were asked for again, overruns the times that the kernel
// had more events than the socket's buffer holds, by all users of the process.
var interrupted, overruns atomic.Uint64

// Interrupted returns how often a list was interrupted since the start of the process.
func Interrupted() uint64 { return interrupted.Load() }

// Overruns returns how often events were lost since the start of the process.
func Overruns() uint64 { return overruns.Load() }

// Bounds of what a Watcher keeps for its user. Beyond them it says that events were lost.
const (
	maxEntries  = 1 << 15
	maxPrefixes = 1 << 12
)

// WatchBuffer is the size of a socket's buffer in bytes that holds what a router tells of ten thousand
// ND entries at once.
const WatchBuffer = 4 << 20

// readPause is the pause after an error of the socket that is no overrun.
const readPause = time.Second

// gather is the pause after all events were read, so that those of a stream of events are
// read together: a wake-up costs more than an event.
const gather = 10 * time.Millisecond

// Entry names a host on a link: an ND entry (RFC 4861) without its state.
type Entry struct {
	Link int        // index of the interface
	Addr netip.Addr // IPv6, without zone
}

// MAC is an Ethernet address.
type MAC [6]byte

// EntryState is what the kernel knows of an Entry.
type EntryState struct {
	Deleted bool
	State   int // netlink.NUD_...
	MAC     MAC // zero when there is none
}

// Events is what happened since the last Take: of each thing the newest.
type Events struct {
	Entries  map[Entry]EntryState  // ND entries that changed
	Prefixes map[netip.Prefix]bool // destinations whose IPv6 route changed, in the tables main, local and default
	Devices  bool                  // one of the watched interfaces changed
	Address  bool                  // the watched address came, went or changed
	Rules    bool                  // a rule of IPv6 changed: other tables may count, and other routes
	Lost     bool                  // events are missing: everything may have changed
}

// Watcher joins the kernel's events about IPv6 routes and rules, ND entries, some interfaces and one
// address. Whatever does not concern these costs its user nothing.
type Watcher struct {
	devices []string
	own     netip.Addr
	socket  *nl.NetlinkSocket
	wake    chan struct{}
	done    chan struct{} // closed when the goroutine has ended
	closed  atomic.Bool

	mu     sync.Mutex
	events Events
	tables []uint32 // of routes, besides the usual ones
}

// Watch begins to watch in the network namespace of the calling thread: all IPv6 routes of
// the usual tables, all ND entries, the interfaces of these names, and the address own. The kernel holds
// buffer bytes of events that were not read yet, and loses what is beyond; it takes no less than its least.
func Watch(devices []string, own netip.Addr, buffer int) (*Watcher, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		return nil, fmt.Errorf("watch the kernel's events: %w", err)
	}
	if err := socket.SetReceiveBufferSize(buffer, true); err != nil {
		_ = socket.SetReceiveBufferSize(buffer, false) // without the right to more; overruns are noticed
	}
	w := &Watcher{
		devices: devices,
		own:     own.WithZone(""),
		socket:  socket,
		wake:    make(chan struct{}, 1),
		done:    make(chan struct{}),
	}
	go w.read()
	return w, nil
}

// Wake returns a channel that has an element when there is something to take.
func (w *Watcher) Wake() <-chan struct{} { return w.wake }

// Follow has the watcher tell also of the routes in these tables.
func (w *Watcher) Follow(tables []uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tables = tables
}

// Take returns what happened since the last call.
func (w *Watcher) Take() Events {
	w.mu.Lock()
	defer w.mu.Unlock()
	taken := w.events
	w.events = Events{}
	return taken
}

// Close ends the watch. When it returns no goroutine of it is left.
func (w *Watcher) Close() {
	w.closed.Store(true)
	w.socket.Close()
	<-w.done
}

func (w *Watcher) read() {
	defer close(w.done)
	for {
		messages, _, err := w.socket.Receive()
		switch {
		case w.closed.Load():
			return
		case errors.Is(err, unix.ENOBUFS): // the socket goes on
			overruns.Add(1)
			w.note(func(e *Events) bool { e.lose(); return true })
			continue
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			w.note(func(e *Events) bool { e.lose(); return true })
			time.Sleep(readPause)
			continue
		}
		w.note(func(e *Events) (some bool) {
			for i := range messages {
				some = w.take(e, &messages[i]) || some
			}
			return some
		})
		if !w.more() {
			time.Sleep(gather)
		}
	}
}

// more reports whether events wait in the socket. While it is being closed the answer does
// not matter.
func (w *Watcher) more() bool {
	poll := []unix.PollFd{{Fd: int32(w.socket.GetFd()), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0
}

// note changes the events, and wakes their user if f says so.
func (w *Watcher) note(f func(*Events) bool) {
	w.mu.Lock()
	some := f(&w.events)
	w.mu.Unlock()
	if some {
		select {
		case w.wake <- struct{}{}:
		default: // it is awake
		}
	}
}

// lose forgets events: their user looks at everything.
func (e *Events) lose() { *e = Events{Lost: true} }

// take notes a message, and reports whether it says anything to the user. What cannot be
// read is as if it were lost: a newer kernel may say it otherwise.
func (w *Watcher) take(e *Events, m *syscall.NetlinkMessage) bool {
	if e.Lost {
		return true
	}
	var some bool
	var err error
	switch m.Header.Type {
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		some, err = e.entry(m)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		some, err = w.route(e, m)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		some, err = w.link(e, m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		some, err = w.address(e, m)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		e.Rules, some = true, true
	}
	if err != nil || len(e.Entries) > maxEntries || len(e.Prefixes) > maxPrefixes {
		e.lose()
		return true
	}
	return some
}

func (e *Events) entry(m *syscall.NetlinkMessage) (bool, error) {
	if len(m.Data) == 0 || m.Data[0] != unix.AF_INET6 {
		return false, nil
	}
	n, err := netlink.NeighDeserialize(m.Data)
	if err != nil {
		return false, err
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok || !addr.Is6() || addr.IsMulticast() {
		return false, nil
	}
	if e.Entries == nil {
		e.Entries = make(map[Entry]EntryState)
	}
	e.Entries[Entry{n.LinkIndex, addr}] = stateOf(n, m.Header.Type == unix.RTM_DELNEIGH)
	return true, nil
}

// stateOf returns the state of an entry as the kernel told it.
func stateOf(n *netlink.Neigh, deleted bool) EntryState {
	s := EntryState{Deleted: deleted, State: n.State}
	if len(n.HardwareAddr) == len(s.MAC) {
		s.MAC = MAC(n.HardwareAddr)
	}
	return s
}

func (w *Watcher) route(e *Events, m *syscall.NetlinkMessage) (bool, error) {
	if len(m.Data) < unix.SizeofRtMsg || m.Data[0] != unix.AF_INET6 {
		return false, nil
	}
	msg := nl.DeserializeRtMsg(m.Data)
	attrs, err := nl.ParseRouteAttr(m.Data[msg.Len():])
	if err != nil {
		return false, err
	}
	table, dst := uint32(msg.Table), netip.IPv6Unspecified()
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_TABLE:
			if len(a.Value) >= 4 {
				table = nl.NativeEndian().Uint32(a.Value)
			}
		case unix.RTA_DST:
			if addr, ok := netip.AddrFromSlice(a.Value); ok {
				dst = addr
			}
		}
	}
	if !slices.Contains([]uint32{unix.RT_TABLE_MAIN, unix.RT_TABLE_LOCAL, unix.RT_TABLE_DEFAULT}, table) && !slices.Contains(w.tables, table) || dst.IsMulticast() {
		return false, nil
	}
	prefix, err := dst.Prefix(int(msg.Dst_len))
	if err != nil {
		return false, err
	}
	if e.Prefixes == nil {
		e.Prefixes = make(map[netip.Prefix]bool)
	}
	e.Prefixes[prefix] = true
	return true, nil
}

func (w *Watcher) link(e *Events, m *syscall.NetlinkMessage) (bool, error) {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return false, nil
	}
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return false, err
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFLA_IFNAME {
			ours := slices.Contains(w.devices, string(bytes.TrimRight(a.Value, "\x00")))
			e.Devices = e.Devices || ours
			return ours, nil
		}
	}
	return false, nil
}

func (w *Watcher) address(e *Events, m *syscall.NetlinkMessage) (bool, error) {
	if len(m.Data) < unix.SizeofIfAddrmsg {
		return false, nil
	}
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofIfAddrmsg:])
	if err != nil {
		return false, err
	}
	for _, a := range attrs {
		if addr, ok := netip.AddrFromSlice(a.Value); ok && (a.Attr.Type == unix.IFA_ADDRESS || a.Attr.Type == unix.IFA_LOCAL) && addr == w.own {
			e.Address = true
			return true, nil
		}
	}
	return false, nil
}

// Tables returns the tables that rules for IPv6 lead to.
func Tables(h *netlink.Handle) (tables []uint32, err error) {
	rules, err := Dump(func() ([]netlink.Rule, error) { return h.RuleList(netlink.FAMILY_V6) })
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	for i := range rules {
		tables = append(tables, uint32(rules[i].Table))
	}
	return tables, nil
}

// Entries returns the ND entries of IPv6 that the kernel has.
func Entries(h *netlink.Handle) (map[Entry]EntryState, error) {
	all, err := Dump(func() ([]netlink.Neigh, error) { return h.NeighList(0, netlink.FAMILY_V6) })
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list ND entries: %w", err)
	}
	entries := make(map[Entry]EntryState, len(all))
	for i := range all {
		if addr, ok := netip.AddrFromSlice(all[i].IP); ok && addr.Is6() && !addr.IsMulticast() {
			entries[Entry{all[i].LinkIndex, addr}] = stateOf(&all[i], false)
		}
	}
	return entries, err
}

// Lookup returns what the kernel knows of one ND entry, in the network namespace of the calling
// thread. It is an error when the kernel has none.
func Lookup(entry Entry) (EntryState, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.AddData(&netlink.Ndmsg{Family: netlink.FAMILY_V6, Index: uint32(entry.Link)})
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, entry.Addr.AsSlice()))
	messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if err == nil && len(messages) == 0 {
		err = unix.ENOENT
	}
	if err != nil {
		return EntryState{}, fmt.Errorf("look up ND entry %v: %w", entry.Addr, err)
	}
	n, err := netlink.NeighDeserialize(messages[0])
	if err != nil {
		return EntryState{}, fmt.Errorf("look up ND entry %v: %w", entry.Addr, err)
	}
	return stateOf(n, false), nil
}
