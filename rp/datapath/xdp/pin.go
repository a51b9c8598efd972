// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"reflect"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/rp/datapath/xdp/objects"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/pindir"
	"github.com/ethmcast/mdcs/rp/hostnet"
)

// CheckPin returns an error when nothing can be pinned in a directory, which need not be there.
func CheckPin(dir string) error { return pindir.CheckRoot(dir) }

// Left returns the directory of a datapath that was left for an address and port in the
// network namespace of the calling thread and still forwards, "" for none. With an error it
// is not known.
func Left(root string, addr netip.AddrPort) (dir string, err error) {
	boot, err := objects.BootTime()
	if err != nil {
		return "", fmt.Errorf("look for a datapath: %w", err)
	}
	return pindir.Left(root, addr, boot)
}

// Occupant returns the directory below root of the datapath that a dead rpd at another address
// or port than addr left on a device, "" for none: Attach takes it down. It is an error when
// that rpd runs.
func Occupant(root string, addr netip.AddrPort, device string) (dir string, err error) {
	netns, err := pindir.ThreadNetns()
	if err != nil {
		return "", err
	}
	boot, err := objects.BootTime()
	if err != nil {
		return "", err
	}
	pins, err := pindir.New(pindir.Config{Root: root, Addr: addr, Netns: netns, Boot: boot})
	if err != nil {
		return "", err
	}
	l, err := netlink.LinkByName(device)
	if err != nil {
		return "", fmt.Errorf("device %s: %w", device, err)
	}
	return pins.Occupant(l.Attrs().Index)
}

// Taken returns an error when the programs of a dead rpd take what comes by one of some devices
// for an address and port, and are not pinned below root, or where nothing can be changed: then
// they can be neither adopted nor taken down from here. Their pair of interfaces tells of them: to look at programs takes more
// privileges than rpd has.
func Taken(root string, addr netip.AddrPort, devices []string) error {
	pair := pindir.EndpointName(addr) + "a"
	if _, err := netlink.LinkByName(pair); err != nil {
		return nil
	}
	there, err := pindir.Exists(root, addr)
	if err != nil {
		return err
	}
	cure := "start rpd with the [datapath] pin that it had, or remove that directory"
	if there {
		err := CheckPin(root)
		if err == nil {
			return nil
		}
		cure = fmt.Sprintf("nothing can be changed where it is pinned (%v): cure that", err)
	}
	conn, err := listen(addr)
	if err != nil {
		return nil // the rpd lives, or the engine will say what is wrong
	}
	defer conn.Close()
	for _, name := range devices {
		l, err := netlink.LinkByName(name)
		if err != nil {
			continue
		}
		if x := l.Attrs().Xdp; x != nil && x.Attached {
			return fmt.Errorf("the XDP program of a dead rpd on %s takes the datagrams for %v, as its pair of interfaces %s tells: %s; if the program is of somebody else: ip link del %s",
				name, addr, pair, cure, pair)
		}
	}
	return nil
}

// TakeDown ends the datapath that a dead process left for an address and port in the
// network namespace of the calling thread: another engine is to have them. There need
// be none.
func TakeDown(root string, addr netip.AddrPort, log *slog.Logger) error {
	there, err := pindir.Exists(root, addr)
	if err != nil {
		return fmt.Errorf("take down old datapath: %w", err)
	}
	if !there {
		return nil
	}
	conn, err := listen(addr) // the port is the lock of the directory
	if err != nil {
		return fmt.Errorf("take down old datapath: %w", err)
	}
	defer conn.Close()
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("take down old datapath: netlink: %w", err)
	}
	defer nl.Close()
	if err := pindir.TakeDown(root, addr, log); err != nil {
		return err
	}
	(&recirculation{name: pindir.EndpointName(addr)}).remove(nl)
	return nil
}

// legacy is a datapath that a dead process left.
type legacy struct {
	*pindir.Datapath
	recirc *recirculation // nil: it is gone
}

// close closes the handles. The datapath stays.
func (left *legacy) close() {
	left.Close()
	if left.recirc != nil {
		left.recirc.link.Close()
	}
}

// openPins opens the directory of the engine, and looks for a datapath that was left there.
func (e *Engine) openPins() (err error) {
	e.pins, err = pindir.New(pindir.Config{
		Root:       e.opt.Pin,
		Addr:       e.addr,
		Netns:      e.netns,
		Boot:       e.boot,
		RemovePair: func(endpoint string) { (&recirculation{name: endpoint}).remove(e.nl) },
		Log:        e.opt.Log,
	})
	if err != nil {
		return err
	}
	e.pins.Sweep()
	e.left, err = e.findLegacy()
	if hostnet.Passes(err) { // a datapath that forwards is not given up for that
		return fmt.Errorf("look at the datapath that was left, pinned at %s: %w", e.pins.Path(), err)
	}
	if err != nil {
		e.opt.Log.Warn("datapath that was left cannot be adopted", "pin", e.pins.Path(), "reason", err)
	}
	return nil
}

// findLegacy returns the datapath that was left, nil when there is none. With an error it
// cannot be adopted.
func (e *Engine) findLegacy() (*legacy, error) {
	found, err := e.pins.Find(e.cfg.Owner, e.cfg.MayBe)
	if found == nil {
		return nil, err
	}
	left := &legacy{Datapath: found}
	if left.recirc, err = findRecirculation(e.nl, e.addr, found.Links); err != nil {
		left.close()
		return nil, err
	}
	return left, nil
}

// findRecirculation returns the pair of an endpoint, with its link, which it takes out of those
// that are left. It is nil when the pair is gone, or its program.
func findRecirculation(nl *netlink.Handle, addr netip.AddrPort, links map[int]link.Link) (*recirculation, error) {
	r := &recirculation{name: pindir.EndpointName(addr)}
	for name, index := range map[string]*int{"a": &r.in, "b": &r.out} {
		l, err := nl.LinkByName(r.name + name)
		if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("recirculation pair %s: %w", r.name, err)
		}
		*index = l.Attrs().Index
	}
	if r.link = links[r.out]; r.link == nil {
		return nil, nil
	}
	delete(links, r.out)
	return r, nil
}

// pinDevice pins the link of a device that was attached later than the datapath was pinned. If
// somebody has removed the pins, the datapath works on without.
func (e *Engine) pinDevice(ifindex int, l link.Link) error {
	if e.pins == nil || !e.pins.Owned() {
		return nil
	}
	err := e.pins.PinLink(pindir.LinkName(ifindex), l)
	if errors.Is(err, fs.ErrNotExist) {
		e.lack("pins", fmt.Errorf("%s was removed: the datapath ends with this rpd, a start anew pins it again", e.pins.Path()))
		e.pins = nil
		return nil
	}
	return err
}

// unpinDevice removes the pin of a device that is gone.
func (e *Engine) unpinDevice(ifindex int) {
	if e.pins != nil && e.pins.Owned() {
		e.pins.UnpinLink(pindir.LinkName(ifindex))
	}
}

// evictFrom ends the datapath of a dead rpd on a device, see pindir.Dir.Evict.
func (e *Engine) evictFrom(ifindex int) (evicted bool, err error) {
	if e.pins == nil {
		return false, nil
	}
	return e.pins.Evict(ifindex)
}

// pinnedMaps returns the BPF maps that are pinned, by name.
func (e *Engine) pinnedMaps() map[string]*ebpf.Map {
	all := make(map[string]*ebpf.Map)
	v := reflect.ValueOf(e.objects.RpMaps)
	for i := range v.NumField() {
		name, m := v.Type().Field(i).Tag.Get("ebpf"), v.Field(i).Interface().(*ebpf.Map)
		if pindir.Pinned(name, m.Type()) {
			all[name] = m
		}
	}
	return all
}

// links returns the attachments, by name in the directory.
func (e *Engine) links() map[string]link.Link {
	all := make(map[string]link.Link)
	for name, watch := range e.watches {
		all[name] = watch
	}
	all[pindir.LinkName(e.recirc.out)] = e.recirc.link
	for _, d := range e.devices {
		if d != nil {
			all[pindir.LinkName(d.index)] = d.link
		}
	}
	return all
}
