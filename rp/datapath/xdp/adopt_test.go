// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"bufio"
	"bytes"
	"encoding/gob"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/auth/authtest"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/ethmcast/wire/wiretest"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/datapathtest"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/nexthop"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/objects"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/pindir"
	"github.com/ethmcast/mdcs/rp/hostnet"
)

// childEnv makes the test binary a process that only owns an engine, and can be killed.
const childEnv = "MDCS_TEST_XDP_CHILD"

// childSpec says what the process does.
type childSpec struct {
	Config   datapath.Config
	Devices  []string
	Pin      string
	Quiet    time.Duration
	Validity time.Duration
	Change   datapath.Change
	Disturb  int // one list of the kernel in so many is interrupted, 0: none
}

func (s *childSpec) options() Options {
	return Options{Devices: s.Devices, Pin: s.Pin, Quiet: s.Quiet, validity: s.Validity}
}

// child owns an engine until its standard input ends.
func child(spec string) int {
	var s childSpec
	err := gob.NewDecoder(hex.NewDecoder(strings.NewReader(spec))).Decode(&s)
	if err == nil {
		var e *Engine
		if s.Disturb > 0 {
			hostnet.Disturb = func() bool { return rand.IntN(s.Disturb) == 0 }
		}
		if e, err = Attach(s.Config, s.options()); err == nil {
			err = e.Apply(s.Change)
			// On a machine under load a host may take longer than Apply waits.
			for end := time.Now().Add(30 * time.Second); !e.reachesAll() && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			fmt.Println("ready", err, e.Adopted() != nil)
			_, _ = io.Copy(io.Discard, os.Stdin)
			e.Close()
		}
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// reachesAll reports whether copies go to all sessions that are behind the engine's devices.
func (e *Engine) reachesAll() (all bool) {
	_ = e.do(func() {
		all = !e.table.untidy()
		for _, s := range e.table.sessions {
			_, known := e.paths.MAC(s.at.Path())
			all = all && (known || e.number(s.at.Path().Link) < 0 || s.at.Path().Addr.IsMulticast())
		}
	})
	return all
}

// startChild starts the process in the RP's namespace, and returns how to kill it
// when its engine runs.
func (l *lab) startChild(s childSpec, adopts bool) (kill func(), err error) {
	var spec strings.Builder
	if err := gob.NewEncoder(hex.NewEncoder(&spec)).Encode(s); err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+spec.String())
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe() // which ends with this process
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	l.in(l.rp, func() { err = cmd.Start() })
	if err != nil {
		return nil, err
	}
	kill = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		stdin.Close()
	}
	l.t.Cleanup(kill)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if want := fmt.Sprintln("ready", nil, adopts); err != nil || line != want {
		kill()
		return nil, fmt.Errorf("child says %q, want %q: %v", line, want, err)
	}
	return kill, nil
}

// mountBPF returns a directory on a bpf file system of its own.
func mountBPF(t testing.TB) string {
	dir := t.TempDir()
	require.NoError(t, unix.Mount("bpf", dir, "bpf", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return filepath.Join(dir, "mdcs")
}

// elsewhere is the engine of another process.
type elsewhere struct {
	datapath.Engine
	addr netip.AddrPort
}

func (e elsewhere) Addr() netip.AddrPort { return e.addr }

// newOrphanCrowd has n subscribers, and what a process needs that serves them.
func newOrphanCrowd(t *testing.T, hosts, n int, host func(i int) int) (*crowd, childSpec) {
	l := newLab(t, hosts)
	spec := childSpec{
		Config: datapath.Config{
			Addr:        netip.AddrPortFrom(l.rpAddr(0), 30500),
			Incarnation: testOwn,
			HandleKey:   auth.Key{'h'},
		},
		Devices:  l.devices(),
		Pin:      mountBPF(t),
		Validity: time.Minute, // however slow the machine is
	}
	c := &crowd{
		subject:  newSubject(l, elsewhere{addr: spec.Config.Addr}, 40000, nil),
		sessions: crowdSessions(l, n, host),
	}
	for _, s := range c.sessions {
		c.node(s.Addr)
	}
	spec.Change = c.change()
	return c, spec
}

// during publishes, a few datagrams in flight at a time, as long as f runs and a
// little longer. What was published has arrived then, once.
func (y *tally) during(sessions []datapath.Session, f func() error) {
	t := y.c.lab.t
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	const more = 50
	first := y.c.sent + 1
	for n := 0; n < more; {
		y.c.publish(100)
		if y.c.sent >= first+3 {
			y.complete(sessions, y.c.sent-3, y.c.sent-3)
		}
		select {
		case err := <-done:
			require.NoError(t, err)
			n = 1
		default:
			if n > 0 {
				n++
			}
		}
	}
	y.complete(sessions, y.c.sent-3, y.c.sent)
}

// exact makes sure that sessions got all sequences from first on, and everybody
// each at most once.
func (y *tally) exact(sessions []datapath.Session, first uint64) {
	t := y.c.lab.t
	t.Helper()
	y.complete(sessions, first, y.c.sent)
	for addr, seen := range y.seen {
		for seq, n := range seen {
			require.Equal(t, 1, n, "%v got sequence %d", addr, seq)
		}
	}
}

// adoptHere attaches in this process.
func (c *crowd) adoptHere(s childSpec, log io.Writer) (e *Engine, err error) {
	opt := s.options()
	opt.Log = slog.New(slog.NewTextHandler(log, nil))
	c.lab.in(c.lab.rp, func() { e, err = Attach(s.Config, opt) })
	return e, err
}

// entries lists what is pinned, without the maps.
func entries(t testing.TB, pin string) (all []string) {
	require.NoError(t, filepath.WalkDir(filepath.Dir(pin), func(path string, d os.DirEntry, err error) error {
		rel, _ := filepath.Rel(filepath.Dir(pin), path)
		if d.IsDir() && rel != "." || strings.HasPrefix(d.Name(), "link_") {
			all = append(all, rel)
		}
		return err
	}))
	return all
}

// nothingLeft makes sure that neither pins nor programs nor the pair are there.
func (c *crowd) nothingLeft(pin string) {
	t := c.lab.t
	t.Helper()
	require.Empty(t, entries(t, pin))
	require.Empty(t, c.programs())
	nl, err := netlink.NewHandleAt(c.lab.rp)
	require.NoError(t, err)
	defer nl.Close()
	_, err = nl.LinkByName(pindir.EndpointName(c.Addr()) + "a")
	require.ErrorAs(t, err, new(netlink.LinkNotFoundError))
}

// programs returns the names of the RP's interfaces with a program.
func (c *crowd) programs() (names []string) {
	nl, err := netlink.NewHandleAt(c.lab.rp)
	require.NoError(c.lab.t, err)
	defer nl.Close()
	all, err := nl.LinkList()
	require.NoError(c.lab.t, err)
	for _, l := range all {
		if x := l.Attrs().Xdp; x != nil && x.Attached {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// adoptions is how often TestXDPAdoptsWhileNetworkChanges kills the process.
var adoptions = flag.Int("adoptions", 8, "processes that are killed while the network changes")

// However often the process is killed, the next one goes on, while interfaces, addresses and
// routes of the host come and go and the kernel interrupts one list in ten: nobody loses
// a datagram or gets one twice.
func TestXDPAdoptsWhileNetworkChanges(t *testing.T) {
	const n = 40
	c, spec := newOrphanCrowd(t, 2, n, func(i int) int { return i % 2 })
	kill, err := c.lab.startChild(spec, false)
	require.NoError(t, err)
	changes := []string{
		"link add c0 type veth peer name c1",
		"addr add 3fff::1/64 dev c0 nodad",
		"link set c0 up",
		"link set c1 up",
		"route add 3fff:1::/48 dev c0",
		"route add 2001:db8:ffff::/48 dev c1", // within what leads to the hosts
		"route replace default dev c0",
		"addr del 3fff::1/64 dev c0",
		"link del c0",
	}
	stop := c.lab.events(t, func(i int) string { return changes[i%len(changes)] })
	defer stop()
	next := spec
	next.Config.Incarnation, next.Config.HandleKey = 1, auth.Key{} // those that were left count
	next.Change, next.Disturb = datapath.Change{}, 10
	y := c.tally()
	for range *adoptions {
		y.during(c.sessions, func() error {
			kill()
			kill, err = c.lab.startChild(next, true)
			return err
		})
	}
	y.exact(c.sessions, 1)
	kill()
	t.Logf("%d adoptions, %d datagrams to %d sessions", *adoptions, c.sent, n)
}

// The kernel forwards when the process is killed, another process goes on where it
// stopped, with programs of another build, and so does the next one: nobody loses a
// datagram or gets one twice. Then everything is as in an engine that was never
// interrupted.
func TestXDPKilledAndAdopted(t *testing.T) {
	const n = 100
	c, spec := newOrphanCrowd(t, 2, n, func(i int) int { return i % 2 })
	kill, err := c.lab.startChild(spec, false)
	require.NoError(t, err)
	y := c.tally()
	y.during(c.sessions, func() error { time.Sleep(100 * time.Millisecond); return nil })

	killed := c.sent
	y.during(c.sessions, func() error { kill(); time.Sleep(300 * time.Millisecond); return nil })
	orphaned := c.sent - killed

	// The second process knows nothing of the first but the directory.
	second := spec
	second.Config.Incarnation, second.Config.HandleKey, second.Quiet = 1, auth.Key{}, -1
	second.Change = datapath.Change{}
	y.during(c.sessions, func() error { kill, err = c.lab.startChild(second, true); return err })
	y.during(c.sessions, func() error { kill(); time.Sleep(100 * time.Millisecond); return nil })

	// The third is this one.
	var e *Engine
	before, began := c.sent, time.Now()
	y.during(c.sessions, func() error {
		third := second
		third.Quiet = 0
		var err error
		e, err = c.adoptHere(third, io.Discard)
		return err
	})
	t.Logf("%d datagrams to %d sessions: %d without a process, %d while one adopted", c.sent, n, orphaned, c.sent-before)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	c.Engine = e
	st := e.Adopted()
	require.NotNil(t, st)
	require.Equal(t, ids.Incarnation(testOwn), st.Incarnation)
	require.Equal(t, auth.Key{'h'}, st.HandleKey)
	require.Equal(t, spec.Change.Keys, st.Keys)
	require.Equal(t, c.sessions, st.Sessions)
	require.Equal(t, []proto.Mark{{Ingress: testOwn, Group: testGroup, Sequence: c.sent}}, e.Marks())
	require.Equal(t, c.sent, e.Stats().Verdicts[wire.Pass], "counters go on")
	dir := e.pins.Path()
	programs := map[string]*ebpf.Program{
		pindir.LinkName(e.devices[0].index): e.objects.MdcsRpIn,
		pindir.LinkName(e.devices[1].index): e.objects.MdcsRpIn,
		pindir.LinkName(e.recirc.out):       e.objects.MdcsRpRecirc,
	}
	for name, w := range watchedBy {
		program, err := w.program(e.objects)
		require.NoError(t, err)
		programs[name] = program
	}
	for name, program := range programs {
		requireProgram(t, filepath.Join(dir, name), program)
	}

	// Who joins now gets everything after its mark, also when indexes of the processes
	// before are used again, and their frames are long gone.
	late := c.sessions[n-1]
	late.Index, late.SendSession, late.Addr = n+1, 0x10000+n, netip.AddrPortFrom(c.lab.hostAddr(0), 20000+n)
	c.sessions = append(c.sessions, late)
	require.NoError(t, c.Apply(datapath.Change{Add: []datapath.Session{late}}))
	mark := e.Marks()[0].Sequence
	e.disjoint(t, began)
	old := e.deviceMaps(t, 2*n/fanout.SliceSize)
	y.during(c.sessions, func() error {
		for end := time.Now().Add(2 * fanout.Quarantine); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if err := e.Apply(datapath.Change{Remove: []ids.Session{9999}}); err != nil {
				return err
			}
			extra := c.sessions[3]
			extra.Index, extra.Addr = 9999, netip.AddrPortFrom(extra.Addr.Addr(), 9) // nobody listens
			if err := e.Apply(datapath.Change{Add: []datapath.Session{extra}}); err != nil {
				return err
			}
		}
		return nil
	})
	y.exact(c.sessions[:n], 1)
	y.exact(c.sessions[n:], mark+1)
	require.NotEqual(t, old, e.deviceMaps(t, 2*n/fanout.SliceSize), "indexes of the dead processes are used again")
	counters := e.Counters()
	require.Zero(t, counters.Stale+counters.NoReplica+counters.NoTrim+counters.RecircLost)

	require.NoError(t, e.Close())
	c.nothingLeft(spec.Pin)
}

// deviceMaps returns the ids of the device maps of the first slices.
func (e *Engine) deviceMaps(t *testing.T, slices int) (ids []ebpf.MapID) {
	for i := 1; i < slices; i++ {
		var targets *ebpf.Map
		require.NoError(t, e.objects.Targets.Lookup(uint32(i), &targets))
		info, err := targets.Info()
		require.NoError(t, err)
		id, _ := info.ID()
		ids = append(ids, id)
		targets.Close()
	}
	return ids
}

// disjoint makes sure that nothing is in use twice, and that no frame of a dead
// process can take a slice for another. The engine adopted after the time began.
func (e *Engine) disjoint(t *testing.T, began time.Time) {
	t.Helper()
	var elements, anchors, retired []uint32
	var generations []uint16
	require.NoError(t, e.do(func() {
		for _, s := range e.table.sessions {
			elements = append(elements, s.state.element)
		}
		for _, g := range e.table.groups {
			anchors = append(anchors, g.peers.Anchor())
		}
		for _, s := range e.table.streams {
			anchors = append(anchors, s.chain.Anchor())
		}
		retired = e.fanout.RetiredAnchors()
		for i := range uint32(fanout.MaxSlices) {
			generations = append(generations, e.fanout.Generation(i))
		}
	}))
	for _, used := range [][]uint32{elements, anchors} {
		slices.Sort(used)
		require.Equal(t, len(used), len(slices.Compact(slices.Clone(used))), "%v", used)
	}
	if time.Since(began) < fanout.Quarantine {
		require.NotEmpty(t, retired)
	}
	for _, anchor := range retired {
		require.NotContains(t, anchors, anchor, "it is of the process before")
	}
	used := 0
	for i := 1; i < fanout.MaxSlices; i++ {
		var s bpf.RpSlice
		require.NoError(t, e.objects.Slices.Lookup(uint32(i), &s))
		require.Equal(t, s.Generation, generations[i], "slice %d", i)
		used += int(min(s.Generation, 1))
	}
	require.Greater(t, used, 3*100/fanout.SliceSize, "slices of three processes")
}

// The new slices need not find room beside the old ones: streams go over one after another,
// and what nobody goes by is free again, however often a datapath is adopted.
func TestXDPAdoptsMoreThanHalfOfTheSlices(t *testing.T) {
	const groups, members = 5, 8000 // 1,000 slices for each group
	e := newBare(t, datapath.Config{Incarnation: testOwn})
	e.opt.Log = slog.New(slog.DiscardHandler)
	e.recirc = &recirculation{in: 1}
	e.devices[0] = &device{name: "lo", index: 1}
	t.Cleanup(func() { e.devices, e.recirc, e.left = [MaxDevices]*device{}, nil, nil }) // before shut
	nextHop := nexthop.Path{Link: 1, Addr: netip.MustParseAddr("2001:db8::1")}
	e.paths.Recall(nextHop, mac{2, 1})
	s := datapath.Session{Role: datapath.Peer, Addr: netip.MustParseAddrPort("[2001:db8::99]:1")}
	var c datapath.Change
	for i := range ids.Group(groups) {
		s.Groups = append(s.Groups, i)
		c.Keys = append(c.Keys, proto.GroupKey{Ingress: testOwn, Group: i})
	}
	require.NoError(t, e.apply(c))
	for i := range members { // past admission, which counts slices that are half empty
		s.Index = ids.Session(1 + i)
		require.NoError(t, e.table.add(&session{Session: s, at: nexthop.NewEndpoint(s.Index, s.Addr.Addr(), nextHop)}))
	}
	e.table.all = true
	require.NoError(t, e.follow(nil))

	w := e.walker(t)
	for range 2 {
		cpus := e.table.cpus
		before := e.fanout
		e.newFanout()
		e.table, e.left = newTable(e), new(legacy)
		before.Close() // the programs have the maps of their own
		e.table.cpus = cpus
		busy, anchors, err := e.adoptTables()
		require.NoError(t, err)
		for _, s := range e.table.sessions {
			s.at = nexthop.NewEndpoint(s.Index, s.Addr.Addr(), nextHop)
		}
		require.GreaterOrEqual(t, e.fanout.Left(), 5000)
		require.NoError(t, e.moveStreams(anchors))
		require.Zero(t, e.fanout.Left())
		e.fanout.RetireAnchors(busy)
		for _, g := range e.table.groups {
			require.Len(t, w.From(uint64(g.peers.Anchor())), members)
		}
		for id := range e.table.streams {
			s := e.table.streams[id]
			require.Equal(t, uint64(s.chain.Anchor()), e.objects.Memory.Streams.At(s.element).Anchor)
		}
		late := time.Now().Add(fanout.Quarantine)
		e.fanout.Expire(late)
		e.table.expire(late)
		require.GreaterOrEqual(t, e.fanout.Room(), fanout.MaxSlices-1-5000-2*groups)
	}
}

// However often a datapath is adopted, there are anchors for the next one, unless they come
// so fast that frames may still be on their way by those of all before.
func TestXDPAdoptionsInARow(t *testing.T) {
	const streams, groups = 1000, 3
	e := newBare(t, datapath.Config{Incarnation: testOwn})
	var c datapath.Change
	for i := range uint32(streams) {
		c.Keys = append(c.Keys, proto.GroupKey{Ingress: ids.Incarnation(1 + i/groups), Group: ids.Group(i % groups)})
	}
	require.NoError(t, e.apply(c))
	adopt := func() error {
		var used []uint32
		for _, s := range e.table.streams {
			used = append(used, s.chain.Anchor())
		}
		for _, g := range e.table.groups {
			used = append(used, g.peers.Anchor())
		}
		cpus := e.table.cpus
		before := e.fanout
		e.newFanout()
		before.Close()
		e.table = newTable(e)
		e.table.cpus = cpus
		busy, err := e.table.adoptAnchors()
		require.NoError(t, err)
		require.Subset(t, busy, used)
		if _, err := e.table.adoptStreams(); err != nil {
			return err
		}
		require.Len(t, e.table.streams, streams)
		for _, s := range e.table.streams {
			require.NotContains(t, busy, s.chain.Anchor())
			e.table.write(s)
		}
		e.fanout.RetireAnchors(busy)
		return nil
	}
	for range 20 {
		require.NoError(t, adopt())
		e.fanout.Expire(time.Now().Add(fanout.Quarantine))
		e.table.expire(time.Now().Add(fanout.Quarantine))
		require.Equal(t, int(e.objects.Nexts.MaxEntries())-fanout.FirstAnchor-streams-groups, e.fanout.AnchorsLeft())
	}
	var err error
	for range 8 {
		if err = adopt(); err != nil {
			break
		}
	}
	require.ErrorContains(t, err, "no element of a BPF map is left")
}

// Who goes on with a datapath shares the limit of all copies among the same sites, with the
// buckets that they have, and has room for as many sites as before.
func TestXDPAdoptsSites(t *testing.T) {
	const group = 9
	e := newBare(t, datapath.Config{Incarnation: testOwn, Egress: 8000, EgressBurst: 2000})
	c := datapath.Change{Keys: []proto.GroupKey{{Ingress: testOwn, Group: group}}}
	for i := range ids.Session(3) {
		c.Add = append(c.Add, datapath.Session{
			Index: 1 + i, Role: datapath.Peer, Groups: []ids.Group{group}, Silent: true, Publish: true, Rate: 1, Burst: 1,
			Addr: netip.MustParseAddrPort(fmt.Sprintf("[2001:db8:%x::1]:1", uint32(i))),
		})
	}
	require.NoError(t, e.apply(c))
	require.NoError(t, e.apply(datapath.Change{Remove: []ids.Session{1}}))
	sites := make(map[ids.Session]uint32) // elements by session
	for index, s := range e.table.sessions {
		sites[index] = s.site.Bucket
		atomic.StoreUint64(&e.objects.Memory.Egresses.At(s.site.Bucket).Due, uint64(index))
	}
	require.Len(t, sites, 2)

	cpus := e.table.cpus
	e.table = newTable(e)
	e.table.cpus = cpus
	require.NoError(t, e.table.adoptSessions())
	publishers, rps := e.table.sites.Counts()
	require.Equal(t, [2]int{2, 0}, [2]int{publishers, rps})
	for index, element := range sites {
		require.Equal(t, element, e.table.sessions[index].site.Bucket)
		share := e.objects.Memory.Egresses.At(element)
		require.Equal(t, uint64(index), share.Due)
		require.Equal(t, objects.Policer(datapath.NewPolicer(4000, 250)), share.Copies)
	}
	e.table.expire(time.Now().Add(fanout.Quarantine))
	require.Equal(t, int(e.objects.Egresses.MaxEntries())-1-len(sites), e.table.shares.Left())
}

// Who goes on with a datapath finds the epochs of a stream in the order in which they were told.
func TestXDPAdoptsEpochs(t *testing.T) {
	e := newBare(t, datapath.Config{Incarnation: testOwn})
	streams := make(map[ids.Stream][]epochKey)
	for i, test := range authtest.Epochs {
		id := ids.Stream{Ingress: testOwn + 1 + ids.Incarnation(i), Group: testGroup}
		keys := make(map[uint8]auth.Key)
		for j, epoch := range test.Told {
			keys[epoch] = auth.Key{epoch, byte(j)}
			require.NoError(t, e.apply(datapath.Change{Keys: []proto.GroupKey{{Ingress: id.Ingress, Group: id.Group, Epoch: epoch, Key: keys[epoch]}}}))
		}
		for _, epoch := range test.Kept {
			streams[id] = append(streams[id], epochKey{epoch, keys[epoch]})
		}
	}
	cpus := e.table.cpus
	e.table = newTable(e)
	e.table.cpus = cpus
	_, err := e.table.adoptStreams()
	require.NoError(t, err)
	require.Len(t, e.table.streams, len(streams))
	for id, want := range streams {
		require.Equal(t, want, e.table.streams[id].keys, authtest.Epochs[id.Ingress-testOwn-1].Name)
	}
}

func requireProgram(t *testing.T, path string, want *ebpf.Program) {
	t.Helper()
	l, err := link.LoadPinnedLink(path, nil)
	require.NoError(t, err)
	defer l.Close()
	linked, err := l.Info()
	require.NoError(t, err)
	info, err := want.Info()
	require.NoError(t, err)
	id, ok := info.ID()
	require.True(t, ok)
	require.Equal(t, id, linked.Program, path)
}

// Devices may be others than before: who is reached by those that stay does not notice.
func TestXDPAdoptsWithOtherDevices(t *testing.T) {
	const n = 40
	c, spec := newOrphanCrowd(t, 3, n, func(i int) int { return i % 3 })
	var by [3][]datapath.Session
	for i, s := range c.sessions {
		by[i%3] = append(by[i%3], s)
	}
	spec.Devices = []string{"rp0", "rp1"}
	kill, err := c.lab.startChild(spec, false)
	require.NoError(t, err)
	y, both := c.tally(), slices.Concat(by[0], by[1])
	y.during(both, func() error { kill(); return nil })

	spec.Devices, spec.Change = []string{"rp2", "rp0"}, datapath.Change{}
	y.during(by[0], func() error { kill, err = c.lab.startChild(spec, true); return err })
	// rp2 has a program at once, but who is behind it may be found late.
	first := c.sent + 1
	require.Eventually(t, func() bool {
		c.publish(100)
		first = c.sent + 1
		time.Sleep(10 * time.Millisecond)
		y.take()
		for _, s := range by[2] {
			if y.seen[s.Addr][c.sent] != 1 {
				return false
			}
		}
		return true
	}, 10*time.Second, time.Millisecond)
	y.during(slices.Concat(by[0], by[2]), func() error { kill(); return nil })
	require.ElementsMatch(t, []string{"rp0", "rp2", pindir.EndpointName(c.Addr()) + "b"}, c.programs())
	require.Len(t, entries(t, spec.Pin), 3+5, "links of two devices, the pair, the rings and the queues")

	spec.Devices = []string{"rp0", "rp2"}
	var e *Engine
	y.during(slices.Concat(by[0], by[2]), func() (err error) { e, err = c.adoptHere(spec, io.Discard); return err })
	c.Engine = e
	y.exact(slices.Concat(by[0], by[2]), first)
	y.exact(by[0], 1)
	require.NoError(t, e.Close())
	c.nothingLeft(spec.Pin)
}

// A device is the one that it was whichever of its names the configuration has.
func TestXDPAdoptsDeviceByAnyName(t *testing.T) {
	c, spec := newOrphanCrowd(t, 1, 20, func(int) int { return 0 })
	nl := c.lab.handle()
	rp0, err := nl.LinkByName("rp0")
	require.NoError(t, err)
	require.NoError(t, nl.LinkAddAltName(rp0, "uplink0"))
	y := c.tally()
	for i, name := range []string{"uplink0", "uplink0", "rp0", "uplink0"} {
		spec.Devices = []string{name}
		var kill func()
		start := func() (err error) { kill, err = c.lab.startChild(spec, i > 0); return err }
		if i == 0 {
			require.NoError(t, start())
		} else {
			y.during(c.sessions, start)
		}
		spec.Change = datapath.Change{}
		y.during(c.sessions, func() error { kill(); return nil })
	}
	y.exact(c.sessions, 1)
	e, err := c.adoptHere(spec, io.Discard)
	require.NoError(t, err)
	require.NoError(t, e.Close())
	c.nothingLeft(spec.Pin)
}

// The kernel may have forgotten hosts, because nothing but the programs sent to
// them. Then the next hops are those of the old copies until the hosts answer.
func TestXDPAdoptsNextHops(t *testing.T) {
	c, spec := newOrphanCrowd(t, 1, 20, func(int) int { return 0 })
	kill, err := c.lab.startChild(spec, false)
	require.NoError(t, err)
	y := c.tally()
	y.during(c.sessions, func() error { kill(); return nil })

	// The host hears no ICMPv6, and so no question for an address.
	deaf, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:    ebpf.XDP,
		License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 4, asm.Word),
			asm.LoadMem(asm.R1, asm.R1, 0, asm.Word),
			asm.Mov.Reg(asm.R3, asm.R1),
			asm.Add.Imm(asm.R3, udpOff),
			asm.Mov.Imm(asm.R0, xdpPass),
			asm.JGT.Reg(asm.R3, asm.R2, "out"),
			asm.LoadMem(asm.R4, asm.R1, ipOff+6, asm.Byte),
			asm.JNE.Imm(asm.R4, unix.IPPROTO_ICMPV6, "out"),
			asm.Mov.Imm(asm.R0, xdpDrop),
			asm.Return().WithSymbol("out"),
		},
	})
	require.NoError(t, err)
	defer deaf.Close()
	c.lab.in(c.lab.hosts[0], func() {
		h0, err := netlink.LinkByName("h0")
		require.NoError(t, err)
		l, err := link.AttachXDP(link.XDPOptions{Program: deaf, Interface: h0.Attrs().Index, Flags: link.XDPDriverMode})
		require.NoError(t, err)
		t.Cleanup(func() { l.Close() })
	})
	nl, err := netlink.NewHandleAt(c.lab.rp)
	require.NoError(t, err)
	defer nl.Close()
	known, err := nl.NeighList(0, netlink.FAMILY_V6)
	require.NoError(t, err)
	for _, n := range known {
		require.NoError(t, nl.NeighDel(&n))
	}

	e, err := c.adoptHere(spec, io.Discard)
	require.NoError(t, err)
	c.Engine = e
	require.Zero(t, e.missing())
	y.during(c.sessions, func() error { return nil })
	y.exact(c.sessions, 1)
	require.NoError(t, e.Close())
}

// A start that fails leaves what it found: nothing, or a datapath that forwards.
func TestXDPFailedStartsLeavePinsAlone(t *testing.T) {
	c, spec := newOrphanCrowd(t, 1, 20, func(int) int { return 0 })
	bad := spec
	bad.Devices = []string{"rp0", "none"}
	_, err := c.adoptHere(bad, io.Discard)
	require.ErrorContains(t, err, "attach XDP to none: Link not found")
	c.nothingLeft(spec.Pin)
	elsewhere := spec
	elsewhere.Pin = t.TempDir()
	_, err = c.adoptHere(elsewhere, io.Discard)
	require.ErrorContains(t, err, "is on no bpf file system; to mount one: mount -t bpf bpf /sys/fs/bpf")
	c.nothingLeft(spec.Pin)

	kill, err := c.lab.startChild(spec, false)
	require.NoError(t, err)
	pinned := entries(t, spec.Pin)
	_, err = c.adoptHere(spec, io.Discard)
	require.ErrorContains(t, err, "address already in use")
	y := c.tally()
	y.during(c.sessions, func() error { kill(); return nil })
	for _, devices := range [][]string{{"rp0", "none"}, {"rp0", "lo"}, {"none"}} {
		bad.Devices = devices
		y.during(c.sessions, func() error {
			_, err := c.adoptHere(bad, io.Discard)
			if err == nil || strings.Contains(err.Error(), "\n") {
				return fmt.Errorf("devices %q: error %w", devices, err)
			}
			return nil
		})
		require.Equal(t, pinned, entries(t, spec.Pin))
	}
	var e *Engine
	y.during(c.sessions, func() (err error) { e, err = c.adoptHere(spec, io.Discard); return err })
	require.NotNil(t, e.Adopted())
	c.Engine = e
	y.exact(c.sessions, 1)
	require.NoError(t, e.Close())
	c.nothingLeft(spec.Pin)
}

// When nobody comes, the programs stop, and a process that comes then begins anew.
func TestXDPOrphanStops(t *testing.T) {
	c, spec := newOrphanCrowd(t, 1, 20, func(int) int { return 0 })
	spec.Validity = 3 * time.Second
	kill, err := c.lab.startChild(spec, false)
	require.NoError(t, err)
	y := c.tally()
	y.during(c.sessions, func() error { kill(); return nil })
	end := time.Now().Add(spec.Validity)

	verdicts, err := filepath.Glob(filepath.Join(spec.Pin, "*", "*", bpf.RpMapVerdicts))
	require.NoError(t, err)
	require.Len(t, verdicts, 1)
	m, err := ebpf.LoadPinnedMap(verdicts[0], nil)
	require.NoError(t, err)
	defer m.Close()
	count := func(v wire.Verdict) (sum uint64) {
		var perCPU []uint64
		require.NoError(t, m.Lookup(uint32(v), &perCPU))
		for _, n := range perCPU {
			sum += n
		}
		return sum
	}
	require.Zero(t, count(wire.Orphaned))
	time.Sleep(time.Until(end))
	passed := count(wire.Pass)
	require.Equal(t, c.sent, passed)
	const dropped = 10
	for range dropped {
		c.publish(100)
	}
	require.Eventually(t, func() bool { return count(wire.Orphaned) == dropped }, 10*time.Second, time.Millisecond)
	require.Equal(t, passed, count(wire.Pass))
	require.Empty(t, c.waiting())

	// Neither does it hold a device against another address and port.
	other := spec
	other.Config.Addr = netip.AddrPortFrom(c.lab.rpAddr(0), 30501)
	e, err := c.adoptHere(other, io.Discard)
	require.NoError(t, err)
	c.nothingLeftOf(spec)
	require.NoError(t, e.Close())

	var log bytes.Buffer
	kill, err = c.lab.startChild(spec, false)
	require.NoError(t, err)
	kill()
	time.Sleep(spec.Validity)
	e, err = c.adoptHere(spec, &log)
	require.NoError(t, err)
	require.Contains(t, log.String(), "its time is over")
	require.Nil(t, e.Adopted())
	require.Empty(t, e.Stats().Sessions)
	require.NoError(t, e.Close())
	c.nothingLeft(spec.Pin)
}

// nothingLeftOf makes sure that an endpoint has no pins.
func (c *crowd) nothingLeftOf(s childSpec) {
	left, err := filepath.Glob(filepath.Join(s.Pin, pindir.EndpointName(s.Config.Addr)+"_*"))
	require.NoError(c.lab.t, err)
	require.Empty(c.lab.t, left)
}

// What cannot be adopted is taken down, with a word, and replaced.
func TestXDPTakesDownWhatItCannotAdopt(t *testing.T) {
	c, spec := newOrphanCrowd(t, 1, 20, func(int) int { return 0 })
	layoutDir := func() string {
		dirs, err := filepath.Glob(filepath.Join(spec.Pin, "*", "v*"))
		require.NoError(t, err)
		require.Len(t, dirs, 1)
		return dirs[0]
	}
	for _, spoil := range []struct {
		what, want string
		do         func(dir string) error
	}{
		{"another layout", "old datapath taken down", func(dir string) error {
			return os.Rename(dir, filepath.Join(filepath.Dir(dir), "v0_12345678"))
		}},
		{"a BPF map is missing", "BPF map sessions is missing", func(dir string) error {
			return os.Remove(filepath.Join(dir, bpf.RpMapSessions))
		}},
		{"half a directory besides", "datapath adopted", func(dir string) error {
			return os.Mkdir(filepath.Join(filepath.Dir(dir), "v9_00000000_new"), 0o700)
		}},
	} {
		t.Run(spoil.what, func(t *testing.T) {
			kill, err := c.lab.startChild(spec, false)
			require.NoError(t, err)
			kill()
			require.NoError(t, spoil.do(layoutDir()))
			var log bytes.Buffer
			e, err := c.adoptHere(spec, &log)
			require.NoError(t, err)
			require.Contains(t, log.String(), spoil.want)
			require.Equal(t, spoil.want == "datapath adopted", e.Adopted() != nil)
			require.Equal(t, e.pins.Path(), layoutDir())
			c.Engine, c.sent = e, 0
			require.NoError(t, c.Apply(spec.Change))
			y := c.tally()
			y.during(c.sessions, func() error { return nil })
			y.exact(c.sessions, 1)
			require.NoError(t, e.Close())
			c.nothingLeft(spec.Pin)
		})
	}

	// And when another engine is to have the port.
	kill, err := c.lab.startChild(spec, false)
	require.NoError(t, err)
	var log bytes.Buffer
	takeDown := func() (err error) {
		c.lab.in(c.lab.rp, func() { err = TakeDown(spec.Pin, spec.Config.Addr, slog.New(slog.NewTextHandler(&log, nil))) })
		return err
	}
	require.ErrorContains(t, takeDown(), "address already in use")
	kill()
	require.Len(t, c.programs(), 2)
	require.NoError(t, takeDown())
	require.Contains(t, log.String(), "old datapath taken down")
	c.nothingLeft(spec.Pin)
	require.NoError(t, takeDown(), "there need be none")
}

// An orphan drops what has the form of a datagram, and changes nothing.
func TestXDPProgramOrphaned(t *testing.T) {
	f, err := wiretest.Load()
	require.NoError(t, err)
	e := newBare(t, datapath.Config{Incarnation: f.Incarnation, HandleKey: auth.Key(f.HandleKey)})
	require.NoError(t, e.apply(datapathtest.GoldenState(f)))
	atomic.StoreUint64(&e.objects.Memory.Lives.At(0).ValidUntil, uint64(time.Since(e.boot)))
	state := e.state(t)
	var want wire.Counters
	for _, v := range f.Vectors {
		_, _, verdict := wire.Parse(v.Datagram)
		if verdict == wire.Pass {
			verdict = wire.Orphaned
		}
		want[verdict]++
		in := frame(v.Source, bareAddr, v.Datagram)
		action, out := e.receive(t, in)
		require.Equal(t, uint32(xdpDrop), action)
		require.Equal(t, in, out)
	}
	require.NotZero(t, want[wire.Orphaned])
	require.Equal(t, want, e.objects.ReadVerdicts())
	require.Equal(t, state, e.state(t))
}
