// SPDX-License-Identifier: LGPL-3.0-or-later

package testnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/netns"
	"github.com/ethmcast/mdcs/testnet/node"
	"github.com/ethmcast/mdcs/testnet/topology"
)

// LinkBackend is what gives links their delay.
type LinkBackend string

const (
	Auto  LinkBackend = "auto"  // netem where the kernel has it, else wire
	Netem LinkBackend = "netem" // queueing discipline of the kernel
	Wire  LinkBackend = "wire"  // delay line in user space, package delayline
)

// ParseLinkBackend checks the name of a backend.
func ParseLinkBackend(s string) (LinkBackend, error) {
	switch b := LinkBackend(s); b {
	case Auto, Netem, Wire:
		return b, nil
	}
	return "", fmt.Errorf("link backend %q is none of auto, netem, wire", s)
}

const bridgeName = "lan" // in the namespaces of routers

// fabric is the network itself: namespaces, interfaces, addresses, routes and
// delays.
type fabric struct {
	top     *topology.Topology
	backend LinkBackend // Netem or Wire
	hosts   map[string]*netns.Namespace
	routers map[string]*netns.Namespace
	wire    *delayline.Wire // nil with netem
}

// linkEnd is the name of a router's interface on link number i. A link without
// a delay line joins two of them.
func linkEnd(i int) string { return fmt.Sprintf("wan%d", i) }

func buildFabric(run *netns.Run, top *topology.Topology, backend LinkBackend, logDir string) (*fabric, error) {
	f := &fabric{
		top:     top,
		backend: backend,
		hosts:   make(map[string]*netns.Namespace),
		routers: make(map[string]*netns.Namespace),
	}
	if backend == Auto {
		var err error
		if f.backend, err = detectBackend(run); err != nil {
			return nil, err
		}
	}
	for _, r := range top.Routers {
		if err := f.addRouter(run, r); err != nil {
			return nil, err
		}
	}
	for _, h := range top.Hosts {
		if err := f.addHost(run, h); err != nil {
			return nil, err
		}
	}
	if err := f.addLinks(run, logDir); err != nil {
		return nil, err
	}
	for _, r := range top.Routers {
		if err := f.setRoutes(r.Name); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// detectBackend tries netem on an interface made for that.
func detectBackend(run *netns.Run) (LinkBackend, error) {
	scratch, err := run.Namespace("scratch")
	if err != nil {
		return "", err
	}
	if err := scratch.Veth("a", scratch, "b"); err != nil {
		return "", err
	}
	switch err := scratch.Netem("a", time.Millisecond, 1000); {
	case err == nil:
		return Netem, nil
	case errors.Is(err, netns.ErrNoNetem):
		return Wire, nil
	default:
		return "", err
	}
}

func (f *fabric) addRouter(run *netns.Run, r topology.Router) error {
	ns, err := run.Namespace(r.Name)
	if err != nil {
		return err
	}
	f.routers[r.Name] = ns
	if err := ns.Router(); err != nil {
		return err
	}
	if err := ns.Bridge(bridgeName); err != nil {
		return err
	}
	return ns.AddAddress(bridgeName, netip.PrefixFrom(r.Gateway(), r.LAN.Bits()))
}

func (f *fabric) addHost(run *netns.Run, h topology.Host) error {
	ns, err := run.Namespace(h.Name)
	if err != nil {
		return err
	}
	f.hosts[h.Name] = ns
	router, _ := f.top.Router(h.Router)
	port := "p-" + h.Name
	if err := ns.Veth(node.Interface, f.routers[h.Router], port); err != nil {
		return err
	}
	if err := f.routers[h.Router].Attach(bridgeName, port); err != nil {
		return err
	}
	if err := ns.AddAddress(node.Interface, netip.PrefixFrom(h.Addr, router.LAN.Bits())); err != nil {
		return err
	}
	if err := ns.SetUp(node.Interface, true); err != nil {
		return err
	}
	return ns.SetRoute(netip.PrefixFrom(netip.IPv6Unspecified(), 0), router.Gateway())
}

// addLinks joins the routers. With the wire, a link with delay is two veth
// pairs, whose inner ends are served by one delay line for all links.
func (f *fabric) addLinks(run *netns.Run, logDir string) error {
	var (
		middle *netns.Namespace
		lines  []delayline.Link
	)
	for i, l := range f.top.Links {
		a, b, end := f.routers[l.A], f.routers[l.B], linkEnd(i)
		if f.backend == Wire && l.Delay > 0 {
			if middle == nil {
				var err error
				if middle, err = run.Namespace("wire"); err != nil {
					return err
				}
				if err := middle.Layer2(); err != nil {
					return err
				}
			}
			line := delayline.Link{A: end + "a", B: end + "b", Delay: l.Delay}
			if err := joinWire(a, end, middle, line.A); err != nil {
				return err
			}
			if err := joinWire(b, end, middle, line.B); err != nil {
				return err
			}
			lines = append(lines, line)
		} else if err := a.Veth(end, b, end); err != nil {
			return err
		}
		if err := a.AddAddress(end, netip.PrefixFrom(l.AddrA(), l.Net.Bits())); err != nil {
			return err
		}
		if err := b.AddAddress(end, netip.PrefixFrom(l.AddrB(), l.Net.Bits())); err != nil {
			return err
		}
		for _, ns := range []*netns.Namespace{a, b} {
			if err := ns.SetUp(end, true); err != nil {
				return err
			}
			if f.backend == Netem && l.Delay > 0 {
				if err := ns.Netem(end, l.Delay, netemLimit(l.Delay)); err != nil {
					return fmt.Errorf("delay link %s-%s by netem: %w", l.A, l.B, err)
				}
			}
		}
	}
	if len(lines) == 0 {
		return nil
	}
	log, err := os.Create(filepath.Join(logDir, "delayline.log"))
	if err != nil {
		return fmt.Errorf("start delay line: %w", err)
	}
	defer log.Close()
	f.wire, err = delayline.Start(run, middle, lines, log)
	return err
}

// joinWire makes one half of a link.
func joinWire(router *netns.Namespace, end string, middle *netns.Namespace, inner string) error {
	if err := router.Veth(end, middle, inner); err != nil {
		return err
	}
	if err := middle.NoGRO(inner); err != nil {
		return err
	}
	return middle.SetUp(inner, true)
}

// netemLimit is a queue length, in frames of 1,500 bytes, that holds twice what
// 1 Gbit/s has under way. The default of netem, 1,000, loses frames.
func netemLimit(delay time.Duration) uint32 {
	const bytesPerSecond = 1e9 / 8
	return max(1000, uint32(2*delay.Seconds()*bytesPerSecond/1500))
}

func (f *fabric) setRoutes(router string) error {
	for _, r := range f.top.Routes(router) {
		if err := f.routers[router].SetRoute(r.To, r.Via); err != nil {
			return err
		}
	}
	return nil
}

// SetLink takes the link between two routers down, or up again, at both ends.
// Routes do not change: what used the link has no path while it is down.
func (n *Net) SetLink(a, b string, up bool) error {
	f := n.fabric
	for i, l := range f.top.Links {
		if (l.A != a || l.B != b) && (l.A != b || l.B != a) {
			continue
		}
		for _, router := range []string{a, b} {
			if err := f.routers[router].SetUp(linkEnd(i), up); err != nil {
				return err
			}
		}
		if !up {
			return nil
		}
		// The kernel forgets the routes of an interface that goes down.
		return errors.Join(f.setRoutes(a), f.setRoutes(b))
	}
	return fmt.Errorf("set link %s-%s: no such link", a, b)
}

// Links is the backend in use.
func (n *Net) Links() LinkBackend { return n.fabric.backend }

// CongestionControl is the TCP congestion control of the hosts.
func (n *Net) CongestionControl() (string, error) {
	return n.Geths[0].Namespace().CongestionControl()
}

// ClearWire makes the delay line start its counting anew.
func (n *Net) ClearWire() error {
	if n.fabric.wire == nil {
		return nil
	}
	return n.fabric.wire.Clear()
}

// StopWire ends the delay line, and with it all connection over links with
// delay, and returns its summary; nil if there is none.
func (n *Net) StopWire() (*delayline.Summary, error) {
	if n.fabric.wire == nil {
		return nil, nil
	}
	s, err := n.fabric.wire.Stop()
	if err != nil {
		return nil, err
	}
	return &s, nil
}
