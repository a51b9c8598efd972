// SPDX-License-Identifier: LGPL-3.0-or-later

package testnet

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/netns"
	"github.com/ethmcast/mdcs/testnet/node"
	"github.com/ethmcast/mdcs/testnet/topology"
)

// LinkBackend is what gives lines their delay, rate and loss.
type LinkBackend string

const (
	Wire  LinkBackend = "wire"  // delay line in user space, package delayline: it counts, and says how late it is
	Netem LinkBackend = "netem" // queueing discipline of the kernel, which not each has; it delays nothing that XDP sends
)

// ParseLinkBackend checks the name of a backend.
func ParseLinkBackend(s string) (LinkBackend, error) {
	switch b := LinkBackend(s); b {
	case Wire, Netem:
		return b, nil
	}
	return "", fmt.Errorf("link backend %q is neither wire nor netem", s)
}

// Names of what a namespace holds besides the [node.Interface] of hosts. Ports
// of bridges are called "p" and the name of the host or AS behind them.
const (
	bridgeName = "lan"  // in routers
	ixpBridge  = "ixp"  // in IXPs
	wireSpace  = "wire" // namespace of the delay line
)

// fabric is the network itself: namespaces, interfaces, addresses and lines, and
// the default routes of hosts.
type fabric struct {
	run     *netns.Run
	top     *topology.Topology
	backend LinkBackend                 // Netem or Wire
	spaces  map[string]*netns.Namespace // by name of host, AS, IXP, or wireSpace
	routers map[string]*netns.Namespace // by name of AS or IXP
	lines   []*line
	wire    *delayline.Wire // nil without a line for it
	ports   []io.Closer     // of takeRedirects
}

// line is what joins two interfaces, as it was built. A plain cable joins them
// by a veth pair; otherwise each end has a veth pair of its own to the namespace
// of the delay line:
//
//	ends[0] --- inner[0] (delay line) inner[1] --- ends[1]
type line struct {
	name  string
	ends  [2]port
	inner [2]string // empty: a plain cable, or delayed by netem
	shape topology.Line
	state LinkState
	cut   bool // by a partition
}

type port struct {
	ns   *netns.Namespace
	intf string
	addr netip.Prefix // not valid at a port of a bridge
	// bridge is what the port belongs to; empty: it has an address.
	bridge string
}

// plain reports whether a line does nothing to frames.
func plain(l topology.Line) bool { return l.Delay == 0 && l.Jitter == 0 && l.Rate == 0 && l.Loss == 0 }

// buildFabric makes everything but the routes between ASes. seed is that of loss
// and jitter.
func buildFabric(run *netns.Run, top *topology.Topology, backend LinkBackend, seed uint64, logDir string) (*fabric, error) {
	f := &fabric{
		run:     run,
		top:     top,
		backend: backend,
		spaces:  make(map[string]*netns.Namespace),
		routers: make(map[string]*netns.Namespace),
	}
	if err := f.addSpaces(); err != nil {
		return nil, err
	}
	f.planLines()
	if err := each(f.lines, f.build); err != nil {
		return nil, err
	}
	if err := f.takeRedirects(); err != nil {
		return nil, err
	}
	if err := f.startWire(seed, logDir); err != nil {
		return nil, err
	}
	return f, each(top.Hosts, func(h topology.Host) error {
		as, _ := top.AS(h.AS)
		return f.spaces[h.Name].SetRoute(netip.PrefixFrom(netip.IPv6Unspecified(), 0), as.Gateway())
	})
}

// addSpaces makes all namespaces with their bridges.
func (f *fabric) addSpaces() error {
	type space struct {
		name string
		ns   *netns.Namespace
		prep func(*netns.Namespace) error
	}
	var list []*space
	for _, as := range f.top.ASes {
		list = append(list, &space{name: as.Name, prep: func(ns *netns.Namespace) error {
			if err := ns.Router(); err != nil {
				return err
			}
			if err := ns.Bridge(bridgeName); err != nil {
				return err
			}
			return ns.AddAddress(bridgeName, netip.PrefixFrom(as.Gateway(), as.LAN().Bits()))
		}})
	}
	for _, x := range f.top.IXPs {
		list = append(list, &space{name: x.Name, prep: func(ns *netns.Namespace) error {
			if err := ns.Bridge(ixpBridge); err != nil {
				return err
			}
			return ns.AddAddress(ixpBridge, netip.PrefixFrom(x.RouteServer(), x.Net.Bits()))
		}})
	}
	routers := len(list)
	for _, h := range f.top.Hosts {
		list = append(list, &space{name: h.Name, prep: func(*netns.Namespace) error { return nil }})
	}
	list = append(list, &space{name: wireSpace, prep: (*netns.Namespace).Layer2})
	err := each(list, func(s *space) (err error) {
		if s.ns, err = f.run.Namespace(s.name); err != nil {
			return err
		}
		return s.prep(s.ns)
	})
	for i, s := range list {
		f.spaces[s.name] = s.ns
		if i < routers {
			f.routers[s.name] = s.ns
		}
	}
	return err
}

// planLines lists all lines of the topology: those of hosts, links, and ports of
// IXPs.
func (f *fabric) planLines() {
	add := func(name string, shape topology.Line, a, b port) {
		l := &line{name: name, ends: [2]port{a, b}, shape: shape, state: Up}
		if f.backend == Wire && !plain(shape) {
			n := len(f.lines)
			l.inner = [2]string{fmt.Sprintf("%da", n), fmt.Sprintf("%db", n)}
		}
		f.lines = append(f.lines, l)
	}
	for _, h := range f.top.Hosts {
		as, _ := f.top.AS(h.AS)
		add(h.Name, h.Line,
			port{ns: f.spaces[h.Name], intf: node.Interface, addr: netip.PrefixFrom(h.Addr, as.LAN().Bits())},
			port{ns: f.spaces[h.AS], intf: "p" + h.Name, bridge: bridgeName})
	}
	for i, l := range f.top.Links {
		intf := fmt.Sprintf("wan%d", i)
		add(l.Name(), l.Line,
			port{ns: f.spaces[l.A], intf: intf, addr: netip.PrefixFrom(l.AddrA(), l.Net.Bits())},
			port{ns: f.spaces[l.B], intf: intf, addr: netip.PrefixFrom(l.AddrB(), l.Net.Bits())})
	}
	for i, x := range f.top.IXPs {
		for _, m := range x.Members {
			add(x.PortName(m.AS), m.Line,
				port{ns: f.spaces[m.AS], intf: fmt.Sprintf("ix%d", i), addr: netip.PrefixFrom(m.Addr, x.Net.Bits())},
				port{ns: f.spaces[x.Name], intf: "p" + m.AS, bridge: ixpBridge})
		}
	}
}

// build makes the interfaces of a line.
func (f *fabric) build(l *line) error {
	a, b := l.ends[0], l.ends[1]
	if l.inner[0] == "" {
		if err := a.ns.Veth(a.intf, b.ns, b.intf); err != nil {
			return err
		}
	} else {
		wire := f.spaces[wireSpace]
		for i, end := range l.ends {
			if err := end.ns.Veth(end.intf, wire, l.inner[i]); err != nil {
				return err
			}
			if err := wire.NoGRO(l.inner[i]); err != nil {
				return err
			}
			if err := wire.SetUp(l.inner[i], true); err != nil {
				return err
			}
		}
	}
	for _, end := range l.ends {
		if end.bridge != "" {
			if err := end.ns.Attach(end.bridge, end.intf); err != nil {
				return err
			}
			continue
		}
		if err := end.ns.AddAddress(end.intf, end.addr); err != nil {
			return err
		}
		if err := end.ns.SetUp(end.intf, true); err != nil {
			return err
		}
	}
	if f.backend == Netem && !plain(l.shape) {
		return l.setNetem()
	}
	return nil
}

// takeRedirects prepares the interfaces that face a replication point, whose XDP
// engine sends frames past the network stack: the inner end of its line, or the port
// of the bridge.
func (f *fabric) takeRedirects() error {
	for _, l := range f.lines {
		host, ok := f.top.Host(l.name)
		if !ok || host.Role != topology.RP {
			continue
		}
		ns, intf := l.ends[1].ns, l.ends[1].intf
		if l.inner[0] != "" {
			ns, intf = f.spaces[wireSpace], l.inner[0]
		}
		port, err := delayline.TakeRedirects(ns, intf)
		if err != nil {
			return err
		}
		f.ports = append(f.ports, port)
	}
	return nil
}

func (f *fabric) close() {
	for _, port := range f.ports {
		port.Close()
	}
}

// startWire starts one delay line for all lines that need it.
func (f *fabric) startWire(seed uint64, logDir string) error {
	options := delayline.Options{Seed: seed, Ports: delayline.Ports{
		Eth: node.GethPort, PeerData: node.GethDataPort, RPControl: node.RPControlPort, RPData: node.RPDataPort,
	}}
	for _, l := range f.lines {
		if l.inner[0] != "" {
			host, _ := f.top.Host(l.name)
			options.Links = append(options.Links, delayline.Link{
				Name: l.name, A: l.inner[0], B: l.inner[1], Params: l.params(), Pairs: host.Role == topology.RP,
			})
		}
	}
	if len(options.Links) == 0 {
		return nil
	}
	log, err := os.Create(filepath.Join(logDir, "delayline.log"))
	if err != nil {
		return fmt.Errorf("start delay line: %w", err)
	}
	defer log.Close()
	f.wire, err = delayline.Start(f.run, f.spaces[wireSpace], options, log)
	return err
}

// params are the parameters of a line for the wire.
func (l *line) params() delayline.Params {
	return delayline.Params{
		Delay: l.shape.Delay, Jitter: l.shape.Jitter, Rate: l.shape.Rate, Loss: l.shape.Loss, Queue: l.shape.Queue,
		Blackhole: l.state == Blackhole,
	}
}

// setNetem gives both ends the parameters of the line.
func (l *line) setNetem() error {
	p := netns.NetemParams{Delay: l.shape.Delay, Jitter: l.shape.Jitter, Rate: l.shape.Rate, Loss: l.shape.Loss}
	rate, wait := uint64(1e9), l.shape.Delay
	if p.Rate > 0 {
		rate = p.Rate
		if wait += l.shape.Queue; l.shape.Queue == 0 {
			wait += delayline.DefaultQueue
		}
	}
	if l.state == Blackhole {
		p.Loss = 1
	}
	p.Limit = netemLimit(wait, rate)
	for _, end := range l.ends {
		if err := end.ns.Netem(end.intf, p); err != nil {
			return fmt.Errorf("shape line %s by netem: %w", l.name, err)
		}
	}
	return nil
}

// netemLimit is a queue length, in frames of 1,500 bytes, that holds twice what
// is under way at a rate in bit/s. The default of netem, 1,000, loses frames.
func netemLimit(wait time.Duration, rate uint64) uint32 {
	return max(1000, uint32(2*wait.Seconds()*float64(rate)/8/1500))
}

// setCarrier plugs the cable of a line in or out. A host or router at the end of
// a delay line keeps its interface, which only loses its carrier.
func (f *fabric) setCarrier(l *line, up bool) error {
	if l.inner[0] != "" {
		wire := f.spaces[wireSpace]
		return errors.Join(wire.SetUp(l.inner[0], up), wire.SetUp(l.inner[1], up))
	}
	// The other end loses its carrier, too; that of a host would also lose its
	// default route if it were the one to be set down.
	last := l.ends[1]
	return last.ns.SetUp(last.intf, up)
}

// LinkState says whether frames pass.
type LinkState string

const (
	Up        LinkState = "up"
	Down      LinkState = "down"      // no carrier at either end
	Blackhole LinkState = "blackhole" // carrier, but all frames are lost
)

// LinkChange is a change of a line at run time; fields that are nil stay as they
// are.
type LinkChange struct {
	Delay  *time.Duration `json:"delay,omitempty"` // one way, ns in JSON
	Jitter *time.Duration `json:"jitter,omitempty"`
	Rate   *uint64        `json:"rate,omitempty"` // bit/s, 0: unlimited
	Loss   *float64       `json:"loss,omitempty"` // share of the frames, 0 to 1
	Queue  *time.Duration `json:"queue,omitempty"`
	State  *LinkState     `json:"state,omitempty"`
}

// LinkStatus is a line and its present state.
type LinkStatus struct {
	Name   string        `json:"name"`
	Delay  time.Duration `json:"delay"` // one way, ns in JSON
	Jitter time.Duration `json:"jitter"`
	Rate   uint64        `json:"rate"` // bit/s, 0: unlimited
	Loss   float64       `json:"loss"` // share of the frames, 0 to 1
	Queue  time.Duration `json:"queue"`
	State  LinkState     `json:"state"`
	Fixed  bool          `json:"fixed"` // a plain cable: it can only go down
}

// ErrNoLink says that a line is not in the topology.
var ErrNoLink = errors.New("no such link")

// find looks for a line by its name; the ASes of a link may stand in any order.
func (f *fabric) find(name string) (*line, error) {
	reversed := ""
	for _, l := range f.top.Links {
		if name == l.B+"-"+l.A {
			reversed = l.Name()
		}
	}
	for _, l := range f.lines {
		if l.name == name {
			return l, nil
		}
	}
	for _, l := range f.lines {
		if l.name == reversed {
			return l, nil
		}
	}
	return nil, fmt.Errorf("link %s: %w", name, ErrNoLink)
}

// fixed reports whether nothing can shape the frames of a line.
func (f *fabric) fixed(l *line) bool {
	return l.inner[0] == "" && (f.backend == Wire || plain(l.shape))
}

// change applies a change to a line.
func (f *fabric) change(l *line, c LinkChange) error {
	next := *l
	shape := &next.shape
	set(&shape.Delay, c.Delay)
	set(&shape.Jitter, c.Jitter)
	set(&shape.Rate, c.Rate)
	set(&shape.Loss, c.Loss)
	set(&shape.Queue, c.Queue)
	set(&next.state, c.State)
	switch {
	case shape.Delay < 0 || shape.Jitter < 0 || shape.Queue < 0:
		return fmt.Errorf("link %s: a time is negative", l.name)
	case !(shape.Loss >= 0 && shape.Loss <= 1):
		return fmt.Errorf("link %s: loss %g is not between 0 and 1", l.name, shape.Loss)
	case next.state != Up && next.state != Down && next.state != Blackhole:
		return fmt.Errorf("link %s: state %q is none of up, down, blackhole", l.name, next.state)
	case f.fixed(l) && (*shape != l.shape || next.state == Blackhole):
		return fmt.Errorf("link %s is a plain cable, which can only go down and up: give it a delay in the topology", l.name)
	}
	if next.params() != l.params() {
		var err error
		if l.inner[0] != "" {
			err = f.wire.Set(l.name, next.params())
		} else {
			err = next.setNetem()
		}
		if err != nil {
			return err
		}
	}
	if next.isDown() != l.isDown() {
		if err := f.setCarrier(l, !next.isDown()); err != nil {
			return err
		}
	}
	*l = next
	return nil
}

func set[T any](field *T, value *T) {
	if value != nil {
		*field = *value
	}
}

func (l *line) isDown() bool { return l.state == Down || l.cut }

// partition cuts the lines between groups of ASes and restores all others. An
// AS that no group names is in one more group with the others of that kind. The
// switch of an IXP stays with the first group that has a member there.
func (f *fabric) partition(groups [][]string) error {
	group := make(map[string]int)
	for i, names := range groups {
		for _, name := range names {
			if _, ok := f.top.AS(name); !ok {
				return fmt.Errorf("partition: no AS %q", name)
			}
			if _, ok := group[name]; ok {
				return fmt.Errorf("partition: AS %s is in two groups", name)
			}
			group[name] = i + 1
		}
	}
	cut := make(map[string]bool)
	for _, l := range f.top.Links {
		cut[l.Name()] = group[l.A] != group[l.B]
	}
	for _, x := range f.top.IXPs {
		home := 0
		for _, m := range x.Members {
			if g := group[m.AS]; home == 0 || g > 0 && g < home {
				home = g
			}
		}
		for _, m := range x.Members {
			cut[x.PortName(m.AS)] = group[m.AS] != home
		}
	}
	var errs []error
	for _, l := range f.lines {
		was := l.isDown()
		l.cut = cut[l.name]
		if l.isDown() != was {
			errs = append(errs, f.setCarrier(l, !l.isDown()))
		}
	}
	return errors.Join(errs...)
}

// down are the names of the lines without carrier.
func (f *fabric) down() map[string]bool {
	down := make(map[string]bool)
	for _, l := range f.lines {
		if l.isDown() {
			down[l.name] = true
		}
	}
	return down
}

func (f *fabric) links() []LinkStatus {
	var list []LinkStatus
	for _, l := range f.lines {
		s := LinkStatus{
			Name: l.name, Delay: l.shape.Delay, Jitter: l.shape.Jitter, Rate: l.shape.Rate, Loss: l.shape.Loss,
			Queue: l.shape.Queue, State: l.state, Fixed: f.fixed(l),
		}
		if l.cut {
			s.State = Down
		}
		list = append(list, s)
	}
	return list
}

// space finds a namespace by the name of a host, an AS or an IXP.
func (f *fabric) space(name string) (*netns.Namespace, error) {
	if ns, ok := f.spaces[name]; ok {
		return ns, nil
	}
	var names []string
	for _, as := range f.top.ASes {
		names = append(names, as.Name)
	}
	return nil, fmt.Errorf("no host, AS or IXP is called %q; the ASes are %s", name, strings.Join(names, ", "))
}
