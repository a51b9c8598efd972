// SPDX-License-Identifier: LGPL-3.0-or-later

package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/rp/hostnet"
)

// Veth makes a veth pair with one end here and the other one in peer, both down
// and with the offloads of [Namespace.realFrames]. Names have at most 15 bytes.
func (ns *Namespace) Veth(name string, peer *Namespace, peerName string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.Namespace = netlink.NsFd(ns.handle)
	err := ns.nl.LinkAdd(&netlink.Veth{
		LinkAttrs:     attrs,
		PeerName:      peerName,
		PeerNamespace: netlink.NsFd(peer.handle),
	})
	if err != nil {
		return fmt.Errorf("create veth %s/%s - %s/%s: %w", ns.name, name, peer.name, peerName, err)
	}
	if err := ns.realFrames(name); err != nil {
		return err
	}
	return peer.realFrames(peerName)
}

// realFrames makes what crosses a veth look like frames on a wire: checksums are
// complete (a frame that is redirected by XDP or read by AF_PACKET would arrive
// broken otherwise), and no super-frames pass, so that the interface counters
// count what Ethernet would carry. GRO stays on: a veth takes frames redirected
// by XDP only when its peer polls with NAPI.
func (ns *Namespace) realFrames(name string) error {
	return ns.offloads(name, map[string]bool{
		"tx-checksum-ip-generic":       false,
		"tx-checksum-sctp":             false,
		"tx-tcp-segmentation":          false,
		"tx-tcp6-segmentation":         false,
		"tx-tcp-ecn-segmentation":      false,
		"tx-tcp-mangleid-segmentation": false,
		"tx-udp-segmentation":          false,
		"tx-generic-segmentation":      false,
		"rx-gro":                       true,
	})
}

// NoGRO switches GRO off at an interface that a packet socket reads: it would
// see merged frames.
func (ns *Namespace) NoGRO(name string) error {
	return ns.offloads(name, map[string]bool{"rx-gro": false})
}

// Bridge makes a bridge that floods multicast, as a plain switch does.
func (ns *Namespace) Bridge(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	snooping := false
	err := ns.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping})
	if err != nil {
		return fmt.Errorf("create bridge %s/%s: %w", ns.name, name, err)
	}
	return ns.SetUp(name, true)
}

// Attach makes an interface a port of a bridge in the same namespace and sets
// it up.
func (ns *Namespace) Attach(bridge, port string) error {
	br, err := ns.link(bridge)
	if err != nil {
		return err
	}
	link, err := ns.link(port)
	if err != nil {
		return err
	}
	if err := ns.nl.LinkSetMaster(link, br); err != nil {
		return fmt.Errorf("attach %s/%s to %s: %w", ns.name, port, bridge, err)
	}
	return ns.SetUp(port, true)
}

// SetUp sets an interface up or down.
func (ns *Namespace) SetUp(name string, up bool) error {
	link, err := ns.link(name)
	if err != nil {
		return err
	}
	set := ns.nl.LinkSetUp
	if !up {
		set = ns.nl.LinkSetDown
	}
	if err := set(link); err != nil {
		return fmt.Errorf("set %s/%s up=%t: %w", ns.name, name, up, err)
	}
	return nil
}

// AddAddress gives an interface an address with the length of its prefix.
func (ns *Namespace) AddAddress(name string, addr netip.Prefix) error {
	link, err := ns.link(name)
	if err != nil {
		return err
	}
	a := &netlink.Addr{IPNet: ipNet(addr), Flags: unix.IFA_F_NODAD}
	if err := ns.nl.AddrAdd(link, a); err != nil {
		return fmt.Errorf("add address %s to %s/%s: %w", addr, ns.name, name, err)
	}
	return nil
}

// SetRoute adds a route or replaces the one to the same destination.
func (ns *Namespace) SetRoute(dst netip.Prefix, via netip.Addr) error {
	err := ns.nl.RouteReplace(&netlink.Route{Dst: ipNet(dst.Masked()), Gw: via.AsSlice()})
	if err != nil {
		return fmt.Errorf("set route to %s via %s in %s: %w", dst, via, ns.name, err)
	}
	return nil
}

// DelRoute removes the route to a destination.
func (ns *Namespace) DelRoute(dst netip.Prefix) error {
	err := ns.nl.RouteDel(&netlink.Route{Dst: ipNet(dst.Masked())})
	if err != nil {
		return fmt.Errorf("remove route to %s in %s: %w", dst, ns.name, err)
	}
	return nil
}

// Route is a route through a gateway.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
}

// Routes reads the IPv6 routes through gateways from the main table of the
// kernel, sorted by destination.
func (ns *Namespace) Routes() ([]Route, error) {
	list, err := hostnet.Dump(func() ([]netlink.Route, error) { return ns.nl.RouteList(nil, netlink.FAMILY_V6) })
	if err != nil {
		return nil, fmt.Errorf("read routes of %s: %w", ns.name, err)
	}
	var routes []Route
	for _, r := range list {
		via, ok := netip.AddrFromSlice(r.Gw)
		if !ok {
			continue
		}
		dst := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if r.Dst != nil {
			addr, _ := netip.AddrFromSlice(r.Dst.IP)
			ones, _ := r.Dst.Mask.Size()
			dst = netip.PrefixFrom(addr, ones)
		}
		routes = append(routes, Route{dst, via})
	}
	slices.SortFunc(routes, func(a, b Route) int { return strings.Compare(a.Dst.String(), b.Dst.String()) })
	return routes, nil
}

// Counters are the totals of an interface since its creation, including the
// Ethernet header and without preamble, FCS and gap.
type Counters struct {
	RxBytes, TxBytes   uint64
	RxFrames, TxFrames uint64
}

// Bytes is the sum of both directions.
func (c Counters) Bytes() uint64 { return c.RxBytes + c.TxBytes }

// Counters reads the totals by netlink: /sys/class/net shows the interfaces of
// the namespace in which /sys was mounted, not of the caller.
func (ns *Namespace) Counters(name string) (Counters, error) {
	link, err := ns.link(name)
	if err != nil {
		return Counters{}, err
	}
	s := link.Attrs().Statistics
	if s == nil {
		return Counters{}, fmt.Errorf("read counters of %s/%s: none in the answer", ns.name, name)
	}
	return Counters{
		RxBytes: s.RxBytes, TxBytes: s.TxBytes,
		RxFrames: s.RxPackets, TxFrames: s.TxPackets,
	}, nil
}

// ErrNoNetem says that the kernel lacks the netem queueing discipline.
var ErrNoNetem = errors.New("kernel has no netem")

// NetemParams are what netem does to the frames that leave through an interface.
type NetemParams struct {
	Delay, Jitter time.Duration
	Rate          uint64  // bit/s, 0: unlimited
	Loss          float64 // share of frames, 0..1
	Limit         uint32  // length of the queue in frames
}

// Netem puts netem on an interface or changes its parameters. It returns
// [ErrNoNetem] where the kernel cannot do it.
func (ns *Namespace) Netem(name string, p NetemParams) error {
	link, err := ns.link(name)
	if err != nil {
		return err
	}
	attrs := netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index,
		Handle:    netlink.MakeHandle(1, 0),
		Parent:    netlink.HANDLE_ROOT,
	}
	err = ns.nl.QdiscReplace(netlink.NewNetem(attrs, netlink.NetemQdiscAttrs{
		Latency: uint32(p.Delay.Microseconds()),
		Jitter:  uint32(p.Jitter.Microseconds()),
		Rate64:  p.Rate / 8,
		Loss:    float32(100 * p.Loss),
		Limit:   p.Limit,
	}))
	switch {
	case errors.Is(err, unix.ENOENT):
		return ErrNoNetem
	case err != nil:
		return fmt.Errorf("set netem of %s/%s: %w", ns.name, name, err)
	}
	return nil
}

func (ns *Namespace) link(name string) (netlink.Link, error) {
	link, err := ns.nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find interface %s/%s: %w", ns.name, name, err)
	}
	return link, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{
		IP:   p.Addr().AsSlice(),
		Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}
}
