// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/rp/datapath/xdp/pindir"
)

// device is a network interface with mdcs_rp_in.
type device struct {
	name  string
	index int
	mac   mac
	link  link.Link

	attachment uint32 // number of the attachment
	refuses    error  // what takesFrames said last
}

// What is used of the kernel's netdev family (Documentation/netlink/specs/netdev.yaml).
const (
	netdevGet         = 1 // command
	netdevIfindex     = 1 // attributes
	netdevXDPFeatures = 3
	netdevXmit        = 1 << 2 // of the features: takes what programs redirect to it
)

// genlHeader is struct genlmsghdr. That of the netlink package leaves the reserved bytes to
// chance, which kernels refuse.
type genlHeader [nl.SizeofGenlmsg]byte

func (h genlHeader) Len() int          { return len(h) }
func (h genlHeader) Serialize() []byte { return h[:] }

// netdevFamily is looked up once. A kernel without the family starts modprobe at each look,
// and the family is part of no module.
var netdevFamily = sync.OnceValues(func() (*netlink.GenlFamily, error) { return netlink.GenlFamilyGet("netdev") })

// takesFrames returns an error when the kernel says that a device refuses what programs
// redirect to it, which the programs do not see. It says so from Linux 6.3 on.
func (d *device) takesFrames() error {
	family, err := netdevFamily()
	if err != nil {
		return nil // the kernel does not say
	}
	req := nl.NewNetlinkRequest(int(family.ID), 0)
	req.AddData(genlHeader{netdevGet, uint8(family.Version)})
	req.AddData(nl.NewRtAttr(netdevIfindex, nl.Uint32Attr(uint32(d.index))))
	messages, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return nil
	}

	for _, m := range messages {
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofGenlmsg:])
		if err != nil {
			return nil
		}
		for _, a := range attrs {
			if a.Attr.Type == netdevXDPFeatures && len(a.Value) == 8 && native.Uint64(a.Value)&netdevXmit == 0 {
				return fmt.Errorf("%s takes no frames from programs; if it is a veth, switch on GRO of its other end, where the peers are: ethtool -K DEV gro on", d.name)
			}
		}
	}
	return nil
}

// attach puts the entry program on an interface and makes it device number i.
func (e *Engine) attach(i int, name string) error {
	l, err := e.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("attach XDP to %s: %w", name, err)
	}
	attrs := l.Attrs()
	if len(attrs.HardwareAddr) != len(mac{}) {
		return fmt.Errorf("attach XDP to %s: not an Ethernet device: name in [datapath] devices those by which peers are reached", name)
	}
	xdp, err := attachNative(e.objects.MdcsRpIn, attrs.Index)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		var evicted bool
		if evicted, err = e.evictFrom(attrs.Index); evicted {
			xdp, err = attachNative(e.objects.MdcsRpIn, attrs.Index)
		} else if err == nil {
			err = occupied(l, e.opt.Pin)
		}
	}
	if err != nil {
		return fmt.Errorf("attach XDP to %s: %w", name, explainAttach(err, l))
	}
	e.tellDevice(i, attrs.Index)
	if err := e.pinDevice(attrs.Index, xdp); err != nil {
		xdp.Close()
		return fmt.Errorf("attach XDP to %s: %w", name, err)
	}
	d := &device{name: name, index: attrs.Index, mac: mac(attrs.HardwareAddr), link: xdp}
	if d.refuses = d.takesFrames(); d.refuses != nil {
		e.opt.Log.Warn("copies cannot leave by a device", "reason", d.refuses)
	}
	e.setDevice(i, d)
	return nil
}

// setDevice makes a device number i. It is unlike each device before it, also in its copies:
// the kernel takes a device that goes out of all slices, and its index may come back.
func (e *Engine) setDevice(i int, d *device) {
	e.attachments++
	d.attachment = e.attachments
	e.devices[i] = d
}

// detach forgets a device that is gone.
func (e *Engine) detach(i int) {
	d := e.devices[i]
	e.devices[i] = nil
	if way := e.ways[i]; way != nil {
		e.ways[i] = nil
		e.fanout.Retire(way)
	}
	e.paths.Forget(d.index)
	e.unpinDevice(d.index)
	d.link.Close()
	e.tellDevice(i, 0)
}

// tellDevice has the programs know the interface that is device number i, 0 for none.
func (e *Engine) tellDevice(i, ifindex int) {
	_ = e.objects.Devices.Put(uint32(i), uint32(ifindex)) // there is room for each number: cannot fail
}

// toldDevice returns the number by which the programs know an interface, false if they do not.
func (e *Engine) toldDevice(ifindex int) (number int, ok bool) {
	for i := range MaxDevices + 1 {
		var index uint32
		if e.objects.Devices.Lookup(uint32(i), &index) == nil && int(index) == ifindex {
			return i, true
		}
	}
	return 0, false
}

// checkDevices follows devices that go, come back as another interface, or get another
// address, and tries those again that could not be attached to. Events of the kernel only
// make it come sooner.
func (e *Engine) checkDevices() {
	changed := false
	for i, name := range e.opt.Devices {
		d := e.devices[i]
		l, err := e.nl.LinkByName(name)
		if err != nil {
			if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone && d != nil {
				e.detach(i)
				changed = true
			}
			continue
		}
		attrs := l.Attrs()
		if d != nil && (d.index != attrs.Index || !pindir.Attached(d.link, d.index)) {
			e.detach(i)
			d = nil
			changed = true
		}
		switch {
		case d == nil:
			changed = e.attach(i, name) == nil || changed // else the next time
		case len(attrs.HardwareAddr) == len(mac{}) && d.mac != mac(attrs.HardwareAddr):
			d.mac = mac(attrs.HardwareAddr)
			changed = true
		}
	}
	if changed {
		e.table.all = true
		e.paths.Relist()
	}
}

// number returns the device of an interface, -1 when it is none of ours.
func (e *Engine) number(ifindex int) int {
	for i, d := range e.devices {
		if d != nil && d.index == ifindex {
			return i
		}
	}
	return -1
}

// attachNative attaches in the driver: the generic mode shares memory between the
// copies of a frame.
func attachNative(p *ebpf.Program, ifindex int) (link.Link, error) {
	return link.AttachXDP(link.XDPOptions{Program: p, Interface: ifindex, Flags: link.XDPDriverMode})
}

// noAddress is IN6_ADDR_GEN_MODE_NONE of Linux.
const noAddress = 1

// recirculation is a pair of virtual interfaces: what is redirected to one end comes
// out at the other, in another turn of the softirq.
type recirculation struct {
	name string
	in   int // interface that slices redirect to
	out  int // where they come out
	link link.Link
}

// pairNames returns the names of both ends.
func pairNames(addr netip.AddrPort) []string {
	name := pindir.EndpointName(addr)
	return []string{name + "a", name + "b"}
}

// newRecirculation makes the pair. The name is that of the address and port, which
// the engine has bound: a pair of this name was left by a process that was killed.
func newRecirculation(nl *netlink.Handle, addr netip.AddrPort, p *ebpf.Program) (*recirculation, error) {
	r := &recirculation{name: pindir.EndpointName(addr)}
	names := pairNames(addr)
	a, b := names[0], names[1]
	if old, err := nl.LinkByName(a); err == nil {
		if err := nl.LinkDel(old); err != nil {
			return nil, fmt.Errorf("remove old recirculation pair %s: %w", a, err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a
	if err := nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: b}); err != nil {
		return nil, fmt.Errorf("create recirculation pair %s: %w", a, err)
	}
	if err := r.open(nl, a, b, p); err != nil {
		r.remove(nl)
		return nil, fmt.Errorf("set up recirculation pair %s: %w", a, err)
	}
	return r, nil
}

func (r *recirculation) open(nl *netlink.Handle, a, b string, p *ebpf.Program) error {
	for _, name := range []string{a, b} {
		l, err := nl.LinkByName(name)
		if err != nil {
			return err
		}
		// Without an address of its own it sends nothing of its own. This way also works where /proc/sys is read-only,
		// as under systemd.
		if err := nl.LinkSetIP6AddrGenMode(l, noAddress); err != nil {
			return fmt.Errorf("no IPv6 address for %s: %w", name, err)
		}
		if err := nl.LinkSetUp(l); err != nil {
			return err
		}
		if name == a {
			r.in = l.Attrs().Index
			continue
		}
		r.out = l.Attrs().Index
		if r.link, err = attachNative(p, r.out); err != nil {
			return fmt.Errorf("attach XDP: %w", err)
		}
	}
	return nil
}

// remove removes the pair.
func (r *recirculation) remove(nl *netlink.Handle) {
	if l, err := nl.LinkByName(r.name + "a"); err == nil {
		_ = nl.LinkDel(l) // gone already, or the next start removes it
	}
}
