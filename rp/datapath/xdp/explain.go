// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// safeMTU is the largest MTU with an XDP program in one page of 4 KiB, less headroom and what
// the kernel keeps behind the frame. Drivers differ by some bytes; this fits all that are known
// but ixgbe and ice with small buffers, and those of safeMTUs.
const safeMTU = 3498

// safeMTUs are the limits of drivers whose buffers are smaller: gve has 2 KiB, less the header
// of Ethernet and padding (verify_xdp_configuration of its driver in Linux).
var safeMTUs = map[string]int{"gve": 2032}

// refusal is what is known of a device that takes no XDP program.
type refusal struct {
	err      error
	name     string
	kind     string // of rtnetlink, such as veth; "device" of hardware
	driver   string
	mtu      int
	below    bool // it is made from another device of this host
	channels ethtool.Channels
	features map[string]bool
}

// explainAttach says what a refusal to take an XDP program means, and which command cures
// it. The kernel has one number for many reasons, so the device is looked at.
func explainAttach(err error, l netlink.Link) error {
	a := l.Attrs()
	r := refusal{err: err, name: a.Name, kind: l.Type(), driver: l.Type(), mtu: a.MTU}
	r.below = a.ParentIndex != 0 && r.kind != "veth"
	if tool, err := ethtool.NewEthtool(); err == nil { // what it does not tell stays zero
		defer tool.Close()
		r.features, _ = tool.Features(r.name)
		r.channels, _ = tool.GetChannels(r.name)
		if d, err := tool.DriverName(r.name); err == nil {
			r.driver = d
		}
	}
	if cure := r.cure(); cure != "" {
		return fmt.Errorf("%w: %s", err, cure)
	}
	return err
}

// cure is the text that explainAttach adds, "" when the error says enough.
func (r *refusal) cure() string {
	is := func(errs ...error) bool {
		return slices.ContainsFunc(errs, func(e error) bool { return errors.Is(r.err, e) })
	}
	mtu := cmp.Or(safeMTUs[r.driver], safeMTU)
	switch {
	case is(unix.EPERM, unix.EACCES):
		return "run rpd as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
	case r.mtu > mtu && is(unix.ERANGE, unix.EINVAL, unix.EOPNOTSUPP):
		both := ""
		if r.kind == "veth" {
			both = ", at both ends of the veth"
		}
		return fmt.Sprintf("an MTU of %d is too large for XDP, at most %d: ip link set dev %s mtu %d%s", r.mtu, mtu, r.name, mtu, both)
	case is(unix.ERANGE):
		return fmt.Sprintf("the MTU of its other end is too large for XDP: set it to at most %d at both ends: ip link set dev DEV mtu %d", mtu, mtu)
	case r.features["rx-lro"] && is(unix.EINVAL, unix.EOPNOTSUPP):
		return fmt.Sprintf("switch off LRO, which XDP does not go with: ethtool -K %s lro off", r.name)
	case r.driver == "virtio_net" && is(unix.EOPNOTSUPP):
		// virtnet_xdp_set of Linux switches the offloads off where the hypervisor lets it.
		return fmt.Sprintf("its hypervisor joins segments or leaves checksums out, and XDP does not go with either: ethtool -K %s rx-gro-hw off rx off; "+
			"where that changes nothing, start the guest without: guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off in QEMU", r.name)
	case r.features["rx-gro-hw"] && is(unix.EINVAL, unix.EOPNOTSUPP):
		return fmt.Sprintf("switch off GRO in hardware, which XDP does not go with: ethtool -K %s rx-gro-hw off", r.name)
	case is(unix.ENOSPC) && r.kind == "veth":
		return fmt.Sprintf("it has fewer receive queues than its other end has transmit queues: ethtool -L %s rx N", r.name)
	case is(unix.ENOSPC, unix.ENOMEM) || is(unix.EINVAL) && r.hasQueues():
		return fmt.Sprintf("the driver (%s) wants queues of its own for XDP, often half of them: ethtool -L %s %s", r.driver, r.name, r.half())
	case is(unix.EOPNOTSUPP, unix.EINVAL):
		text := fmt.Sprintf("the driver (%s) has no native XDP for it", r.driver)
		if r.below {
			text += "; if frames arrive at the device below it without a tag, move the address and the routes there, and name that device in [datapath] devices"
		}
		return text + `; [datapath] engine = "socket" needs none`
	}
	return ""
}

// hasQueues reports whether the device could leave queues to XDP.
func (r *refusal) hasQueues() bool {
	c := r.channels
	return r.kind != "veth" && (c.CombinedCount > 1 || c.CombinedCount == 0 && c.RxCount > 0 && c.TxCount > 0)
}

// half are the queues that leave as many to XDP, in the words of ethtool -L. A driver that counts
// queues to receive and to transmit apart, as gve, wants as many of one as of the other.
func (r *refusal) half() string {
	c := r.channels
	if c.CombinedCount == 0 && c.RxCount > 0 && c.TxCount > 0 {
		n := max(1, min(max(c.MaxRx, c.RxCount), max(c.MaxTx, c.TxCount)/2))
		return fmt.Sprintf("rx %d tx %d", n, n)
	}
	return fmt.Sprintf("combined %d", max(1, max(c.MaxCombined, c.CombinedCount)/2))
}

// occupied says which program has a device, other than a datapath that is pinned below a
// directory.
func occupied(l netlink.Link, pin string) error {
	name := l.Attrs().Name
	err := fmt.Errorf("another XDP program has it: ip link set dev %s xdp off", name)
	if x := l.Attrs().Xdp; x != nil && x.ProgId != 0 {
		program, loadErr := ebpf.NewProgramFromID(ebpf.ProgramID(x.ProgId))
		if loadErr != nil {
			return err
		}
		defer program.Close()
		info, infoErr := program.Info()
		if infoErr != nil {
			return err
		}
		if info.Name == "mdcs_rp_in" {
			return fmt.Errorf("the datapath of an rpd has it, and is not pinned below %q: stop that rpd; "+
				"if none runs, its pins are those of another [datapath] pin: remove that directory", pin)
		}
		err = fmt.Errorf("another XDP program has it (%s, id %d): ip link set dev %s xdp off", info.Name, x.ProgId, name)
	}
	return err
}
