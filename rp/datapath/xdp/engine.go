// SPDX-License-Identifier: LGPL-3.0-or-later

// Package xdp is the datapath engine in the kernel (SPEC section 6): XDP programs
// verify, stamp and copy datagrams in the driver's receive path, before they would
// become packets of the kernel's network stack. It needs Linux 6.1 with BTF, native XDP on
// all devices, CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON.
//
// The package is the engine: its thread, the table of sessions, streams and routes, its devices,
// and what it sends itself. Behind it stand rooms that do not know it:
//
//	fanout    slices, chains and ECHOs: what the programs copy by
//	nexthop   routes and ND entries, as the kernel's stack has them
//	objects   the programs and BPF maps, as loaded; values, ring buffers, counters
//	pindir    the directory that the next process finds the datapath in
//
// Apply goes through them in this order: the table takes the change as far as there is room
// (room.go), objects has the sessions and streams, nexthop the paths to them, and fanout the
// chains (receivers.go). What the kernel refuses on the way is undone, element by element.
//
// Everything but the counters belongs to one OS thread, which stays in the network
// namespace that Attach was called in. A second one says that user space lives and has
// heartbeats sent; it waits for nothing that the first one does.
package xdp

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/nexthop"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/objects"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/pindir"
	"github.com/ethmcast/mdcs/rp/hostnet"
)

// Limits of an engine.
const (
	MaxDevices  = fanout.MaxDevices // that datagrams arrive on and leave by
	MaxGroups   = 16                // of one session
	MaxSessions = 16384             // all together
	MaxPeers    = 16000             // which leaves room for RP neighbours and channels
	MaxStreams  = 4096              // ingress RPs times groups
)

// defaultQuiet is Options.Quiet when it is 0: several times what the copies to a few
// hundred receivers take.
const defaultQuiet = time.Millisecond

// Options are those of this engine alone.
type Options struct {
	// Devices are the network interfaces by which datagrams arrive and leave, at
	// least one. They are there when the engine starts; later one may go and
	// come back.
	Devices []string

	// Pin is a directory on a bpf file system, made when it is missing. What is
	// pinned there goes on without the process, for 30 seconds, and the next Attach
	// of the same address and port goes on with it. "" pins nothing.
	Pin string

	// Lacks are what the caller knows that the engine runs without, for Stats.
	Lacks []datapath.Lack

	// Log is told what became of a datapath that was left. Nil: nobody.
	Log *slog.Logger

	// Quiet is how long no datagram may have passed before the next one is
	// copied at once instead of through the queue, which spares it the wake-up of
	// a kernel thread. 0 is 1 ms, negative is never.
	Quiet time.Duration

	validity       time.Duration // for tests; 0 is pindir.Validity
	eventBuffer    int           // for tests, in bytes; 0 is hostnet.WatchBuffer
	refuseCounters error         // for tests: what loading the counters of losses ends with

	// For tests: load loads the programs, which stay when the engine ends. Nil: objects.Load, and
	// they are closed.
	load func(objects.Options) (*objects.Objects, error)
}

// Engine implements datapath.Multicaster.
//
// A channel leaves by the interface of its zone, which is one of the engine's devices
// when the channel is added. While the device is gone the copies to the channel count
// as send errors; should it come back with another index, it is another zone, and the
// channel's members fall back to unicast.
type Engine struct {
	// Set by Attach before the threads serve, and never changed then.
	cfg   datapath.Config
	opt   Options // but for Devices, which adoption orders anew
	addr  netip.AddrPort
	boot  time.Time       // when CLOCK_MONOTONIC was zero
	netns uint32          // inode of the namespace
	cache *objects.Reader // of datagrams, nil for none

	// The threads.
	calls  chan func() // for the engine's thread
	quit   chan struct{}
	done   chan struct{} // closed when the thread has ended
	closed atomic.Bool
	pulse  *pulse

	abandoned atomic.Bool // the datapath outlives Close

	// What the socket sends. It receives nothing. The kernel orders writes to it.
	conn    *net.UDPConn
	batch   *ipv6.PacketConn
	sending sync.Mutex // one Heartbeat at a time

	probes, heartbeats, copies, copyBytes, sendErrors atomic.Uint64 // by the socket

	// The rest belongs to the engine's thread. Others may use objects until table.clear, under
	// the lock table.mu.

	// The life of the datapath.
	pins    *pindir.Dir // nil: nothing is pinned
	left    *legacy     // while another process's datapath is being adopted
	adopted *datapath.State

	// Programs and BPF maps.
	objects *objects.Objects
	watches map[string]link.Link // by pin: count what rings and queues drop
	readers []*objects.Reader
	lacks   []datapath.Lack

	// Devices.
	nl          *netlink.Handle
	devices     [MaxDevices]*device // by number; nil: none, or gone
	attachments uint32              // ever
	recirc      *recirculation
	unchained   bool  // slices may lead to a pair that is gone
	noPair      error // why the pair does not work; nil: it does
	strayed     bool  // sessions are routed by other devices, which was logged

	// Whole frames of user space.
	ways      [MaxDevices]*fanout.Slice // by device
	wholes    int                       // until now
	oldKernel bool                      // which takes none

	// Sessions, and what the programs do for them.
	table  *table // has a lock of its own, table.mu
	paths  *nexthop.Tracker
	kernel *kernel
	fanout *fanout.Fanout
	tidied time.Time // until when all chains did not wait for paths
}

var (
	_ datapath.Multicaster = (*Engine)(nil)
	_ datapath.Adopter     = (*Engine)(nil)
	_ datapath.Survivor    = (*Engine)(nil)
	_ datapath.Stager      = (*Engine)(nil)
)

// Attach starts the engine in the network namespace of the calling thread. When a
// process that died left its datapath in the directory of Options.Pin, the engine goes
// on with it. With an error nothing of the engine is left; the datapath that it was to
// go on with forwards until its time is over.
func Attach(cfg datapath.Config, opt Options) (*Engine, error) {
	addr := cfg.Addr.Addr()
	switch {
	case cfg.Incarnation == 0:
		return nil, errors.New("attach: incarnation 0")
	case !addr.Is6() || addr.Is4In6() || addr.IsUnspecified() || addr.Zone() != "":
		return nil, fmt.Errorf("attach: %v is not one global IPv6 address", addr)
	case len(opt.Devices) == 0 || len(opt.Devices) > MaxDevices:
		return nil, fmt.Errorf("attach: %d devices, want 1 to %d", len(opt.Devices), MaxDevices)
	}
	if opt.Quiet == 0 {
		opt.Quiet = defaultQuiet
	}
	if opt.validity == 0 {
		opt.validity = pindir.Validity
	}
	if opt.eventBuffer == 0 {
		opt.eventBuffer = hostnet.WatchBuffer
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	boot, err := objects.BootTime()
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	// The thread starts in a namespace of its own choice and must be told ours.
	runtime.LockOSThread()
	ns, err := netns.Get()
	runtime.UnlockOSThread()
	if err != nil {
		return nil, fmt.Errorf("attach: network namespace: %w", err)
	}
	e := &Engine{
		cfg:   cfg,
		opt:   opt,
		boot:  boot,
		calls: make(chan func()),
		quit:  make(chan struct{}),
		done:  make(chan struct{}),
	}
	ready := make(chan error)
	go e.run(ns, ready)
	if err := <-ready; err != nil {
		<-e.done
		return nil, err
	}
	return e, nil
}

// run is the engine's thread. It is never unlocked, so that it ends with the
// goroutine: no other goroutine gets its namespace.
func (e *Engine) run(ns netns.NsHandle, ready chan<- error) {
	defer close(e.done)
	runtime.LockOSThread()
	var err error
	if e.netns, err = enter(ns); err == nil {
		err = e.open()
	}
	if err == nil {
		e.pulse, err = startPulse(e)
	}
	defer e.shut()
	ready <- err
	if err != nil {
		return
	}
	e.serve()
}

// serve is the thread's work: calls of others first, and what the kernel's events ask for
// in small parts, within its share of the time.
func (e *Engine) serve() {
	expire := time.NewTicker(fanout.Quarantine / 4)
	defer expire.Stop()
	keep := time.NewTicker(inUse)
	defer keep.Stop()
	list := time.NewTicker(relist)
	defer list.Stop()
	look := time.NewTicker(time.Second)
	defer look.Stop()
	told, later := stopped(), stopped() // events wait; work goes on
	defer told.Stop()
	defer later.Stop()
	wake := e.paths.Wake() // nil while told runs
	for {
		if e.paths.Waiting() || e.table.untidy() {
			later.Reset(e.paths.Pause(time.Now()))
		}
		select {
		case f := <-e.calls:
			f()
		case <-wake:
			wake = nil
			told.Reset(max(settle, e.paths.Pause(time.Now())))
		case <-told.C:
			wake = e.paths.Wake()
			e.takeEvents()
		case <-later.C:
			e.work()
		case g := <-e.fanout.Growing():
			_ = e.fanout.Add(g) // what failed for want of memory is tried again
		case <-look.C:
			e.checkDevices()
			e.checkPair()
			e.paths.AskMissing()
		case <-list.C:
			e.paths.RelistLater()
		case <-expire.C:
			e.fanout.Expire(time.Now())
			e.table.expire(time.Now())
		case <-keep.C:
			e.paths.KeepEntries()
		case <-e.quit:
			return
		}
	}
}

// stopped returns a timer that does not run.
func stopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// enter moves the calling thread to a network namespace and returns its inode.
func enter(ns netns.NsHandle) (uint32, error) {
	defer ns.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(ns), &stat); err != nil {
		return 0, fmt.Errorf("attach: network namespace: %w", err)
	}
	here, err := netns.Get()
	if err != nil {
		return 0, fmt.Errorf("attach: network namespace: %w", err)
	}
	defer here.Close()
	if here.Equal(ns) {
		return uint32(stat.Ino), nil
	}
	if err := netns.Set(ns); err != nil {
		return 0, fmt.Errorf("attach: enter network namespace: %w", err)
	}
	return uint32(stat.Ino), nil
}

// open acquires all that the engine has, in an order that shut can undo from
// anywhere.
func (e *Engine) open() error {
	var err error
	if e.conn, err = listen(e.cfg.Addr); err != nil {
		return err
	}
	e.addr = e.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	e.batch = ipv6.NewPacketConn(e.conn)
	if err := e.batch.SetMulticastHopLimit(int(max(e.cfg.HopLimit, 1))); err != nil {
		return fmt.Errorf("hop limit of channels: %w", err)
	}
	if err := e.batch.SetMulticastLoopback(false); err != nil {
		return fmt.Errorf("loopback of channels: %w", err)
	}
	if e.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	if e.opt.Pin != "" {
		if err := e.openPins(); err != nil {
			return err
		}
	}
	if err := e.load(); err != nil {
		return err
	}
	e.newFanout()
	e.table = newTable(e)
	if err := e.openPaths(); err != nil {
		return err
	}
	if err := e.openReaders(); err != nil {
		return err
	}
	if e.left != nil {
		return e.adopt()
	}
	return e.begin()
}

// load loads the programs, on new BPF maps or on the ones that were left.
func (e *Engine) load() (err error) {
	opt := objects.Options{
		Addr:           e.addr,
		Netns:          e.netns,
		Egress:         e.cfg.Policer(),
		Owner:          e.cfg.Owner,
		Quiet:          e.opt.Quiet,
		Cache:          e.cfg.Cache != nil,
		Hello:          e.cfg.Hello != nil,
		RefuseCounters: e.opt.refuseCounters,
	}
	if e.left != nil {
		opt.Left = e.left.Maps
		e.cfg.Incarnation, e.cfg.HandleKey = ids.Incarnation(e.left.Life.Incarnation), objects.WholeKey(e.left.Life.HandleKey)
	}
	opt.Incarnation, opt.HandleKey = e.cfg.Incarnation, e.cfg.HandleKey
	load := objects.Load
	if e.opt.load != nil {
		load = e.opt.load
	}
	if e.objects, err = load(opt); err != nil {
		return err
	}
	if e.left == nil {
		e.refresh()
	}
	return nil
}

// refresh says that user space lives.
func (e *Engine) refresh() { e.objects.SetValidUntil(time.Since(e.boot) + e.opt.validity) }

// openReaders starts the readers that somebody listens to.
func (e *Engine) openReaders() (err error) {
	keep := func(r *objects.Reader, failed error) *objects.Reader {
		if failed == nil {
			e.readers = append(e.readers, r)
		}
		err = errors.Join(err, failed)
		return r
	}
	if e.cfg.Cache != nil {
		e.cache = keep(objects.ReadPolled(e.objects.Cache, objects.Records(e.cfg.Cache)))
	}
	if e.cfg.Hello != nil {
		keep(objects.ReadWoken(e.objects.Hellos, objects.HelloRest, objects.Hellos(e.boot, e.cfg.Hello)))
	}
	return err
}

// begin makes a datapath where none is, and pins it when it is complete.
func (e *Engine) begin() error {
	err := e.fanout.Grow()
	if err != nil {
		return err
	}
	if e.table.cpus, err = e.objects.StartFanout(); err != nil {
		return err
	}
	e.objects.RaiseFanoutPriority(e.table.cpus)
	if e.pins != nil {
		if err := e.pins.TakeDown(); err != nil {
			return err
		}
	}
	if err := e.makePair(); err != nil {
		return err
	}
	e.watchRings()
	for i, name := range e.opt.Devices {
		if err := e.attach(i, name); err != nil {
			return err
		}
	}
	if e.pins == nil {
		return nil
	}
	return e.pins.Commit(e.pinnedMaps(), e.links())
}

// watchedBy are the programs that count what rings and queues drop, by the name of their link.
var watchedBy = map[string]struct {
	tracepoint string
	counts     string
	program    func(*objects.Objects) (*ebpf.Program, error)
}{
	pindir.LostLink: {"xdp_devmap_xmit", "copies that devices had no room for",
		func(o *objects.Objects) (*ebpf.Program, error) { return o.MdcsRpLost, o.LostErr }},
	pindir.FullLink: {"xdp_cpumap_enqueue", "frames that the queue of a CPU had no room for",
		func(o *objects.Objects) (*ebpf.Program, error) { return o.MdcsRpFull, o.FullErr }},
}

// watchRings attaches them, as far as the kernel lets it.
func (e *Engine) watchRings() {
	e.watches = make(map[string]link.Link)
	for name, w := range watchedBy {
		program, err := w.program(e.objects)
		if err == nil {
			var l link.Link
			l, err = link.AttachRawTracepoint(link.RawTracepointOptions{Name: w.tracepoint, Program: program})
			if err == nil {
				e.watches[name] = l
				continue
			}
		}
		e.lack("counter of "+w.counts, err)
	}
}

// lack notes what the engine runs without.
func (e *Engine) lack(what string, why error) {
	l := datapath.Lack{What: what, Why: why.Error()}
	e.lacks = append(e.lacks, l)
	e.opt.Log.Warn("the engine runs without something", "what", l.What, "reason", l.Why)
}

// shut releases what open acquired. What is left of another process stays while it is
// not adopted wholly, and so does an abandoned datapath that is pinned.
func (e *Engine) shut() {
	if e.pulse != nil {
		e.pulse.stop()
	}
	stays := e.left != nil || e.abandoned.Load() && e.pins != nil
	if e.pins != nil && !stays {
		e.pins.Remove()
	}
	for i, d := range e.devices {
		if d != nil {
			if e.left != nil && e.left.Links[d.index] == nil { // a new one
				e.tellDevice(i, 0)
			}
			d.link.Close()
		}
	}
	for _, watch := range e.watches {
		watch.Close()
	}
	if e.recirc != nil {
		if e.recirc.link != nil {
			e.recirc.link.Close()
		}
		if !stays {
			e.recirc.remove(e.nl)
		}
	}
	if e.left != nil {
		e.left.close()
	}
	for _, r := range e.readers {
		r.Close()
	}
	if e.paths != nil {
		e.paths.Close()
	}
	if e.fanout != nil {
		e.fanout.Close()
	}
	if e.table != nil {
		e.table.clear()
	}
	if e.objects != nil && e.opt.load == nil {
		e.objects.Close()
	}
	if e.nl != nil {
		e.nl.Close()
	}
	if e.conn != nil {
		e.conn.Close()
	}
}

// do runs f on the thread.
func (e *Engine) do(f func()) error {
	ran := make(chan struct{})
	select {
	case e.calls <- func() { defer close(ran); f() }:
		<-ran
		return nil
	case <-e.done:
		return datapath.ErrClosed
	}
}

// Apply implements datapath.Engine. A receiver whose ND entry is not known is asked
// for, and Apply waits for the answer for a short time; see Await.
func (e *Engine) Apply(c datapath.Change) error {
	err := e.Stage(c)
	e.Await(c)
	return err
}

// quarantineTries is how often a change is tried again for which all slices are in
// quarantine.
const quarantineTries = 3

// Stage implements datapath.Stager. A change for which all slices are in quarantine waits,
// outside of the thread, until one is free; so does one while copies still go to a session that
// it removes.
func (e *Engine) Stage(c datapath.Change) error {
	final, routes := new(datapath.Refused), len(c.Routes) > 0
	for try := 0; ; try++ {
		var err error
		var free time.Time
		var stay []ids.Session // sessions that are to go
		if closed := e.do(func() {
			err, free, stay = e.apply(c), e.fanout.Released(), e.table.staying(c.Remove)
		}); closed != nil {
			return closed
		}
		next := datapath.Change{}
		if refused, some := errors.AsType[*datapath.Refused](err); some {
			next = again(c, refused, final, try < quarantineTries)
		}
		if try < quarantineTries {
			next.Remove = stay
		}
		if c = next; len(c.Add)+len(c.Routes)+len(c.Remove) == 0 {
			break
		}
		select {
		case <-time.After(max(time.Until(free), settle)): // at least, when it is memory that is short
		case <-e.done:
			return datapath.ErrClosed
		}
	}
	if routes && e.cache != nil {
		e.cache.Drain()
	}
	return final.Err()
}

// again returns the elements that are worth another try, if there is one, and notes the
// other refusals.
func again(c datapath.Change, refused, final *datapath.Refused, try bool) (next datapath.Change) {
	for i := range c.Add {
		switch why := refused.Sessions[c.Add[i].Index]; {
		case why == nil:
		case try && errors.Is(why, fanout.ErrQuarantine):
			next.Add = append(next.Add, c.Add[i])
		default:
			final.Session(c.Add[i].Index, why)
		}
	}
	for i := range c.Routes {
		switch why := refused.Routes[c.Routes[i].Ingress]; {
		case why == nil:
		case try && errors.Is(why, fanout.ErrQuarantine):
			next.Routes = append(next.Routes, c.Routes[i])
		default:
			final.Route(c.Routes[i].Ingress, why)
		}
	}
	for _, ingress := range c.Retire {
		if why := refused.Routes[ingress]; why != nil {
			final.Route(ingress, why)
		}
	}
	for id, why := range refused.Keys {
		final.Key(id, why)
	}
	return next
}

// Marks implements datapath.Engine.
func (e *Engine) Marks() (marks []proto.Mark) {
	_ = e.do(func() { marks = e.table.marks() }) // none after Close
	return marks
}

// OwnMarks implements datapath.Engine. The thread of the pulse tells them.
func (e *Engine) OwnMarks() (marks []proto.Mark) {
	_ = e.pulse.do(func() { marks = e.table.ownMarks() }) // none after Close
	return marks
}

// Adopted implements datapath.Adopter.
func (e *Engine) Adopted() *datapath.State { return e.adopted }

// Outlives implements datapath.Survivor: what is pinned goes on.
func (e *Engine) Outlives() bool { return e.opt.Pin != "" }

// Addr implements datapath.Engine.
func (e *Engine) Addr() netip.AddrPort { return e.addr }

// Close implements datapath.Engine.
func (e *Engine) Close() error {
	if !e.closed.Swap(true) {
		close(e.quit)
	}
	<-e.done
	return nil
}

// Abandon implements datapath.Adopter. Without pins nothing outlives it.
func (e *Engine) Abandon() {
	e.abandoned.Store(true)
	e.Close()
}
