// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Largest MTUs with an XDP program in one page of 4 KiB, less headroom and what the kernel
// keeps behind the frame. Drivers differ by some bytes; this fits all that are known but
// ixgbe and ice with small buffers.
const safeMTU = 3498

// explainAttach says what a refusal to take an XDP program means, and which command cures
// it. The kernel has one number for many reasons, so the device is looked at.
func explainAttach(err error, l netlink.Link) error {
	a := l.Attrs()
	name := a.Name
	tool, toolErr := ethtool.NewEthtool()
	feature := func(of string) bool { return false }
	var channels ethtool.Channels
	driver := l.Type()
	if toolErr == nil {
		defer tool.Close()
		if all, err := tool.Features(name); err == nil {
			feature = func(of string) bool { return all[of] }
		}
		channels, _ = tool.GetChannels(name)
		if d, err := tool.DriverName(name); err == nil {
			driver = d
		}
	}
	cure := ""
	switch {
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		cure = "run rpd as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
	case a.MTU > safeMTU && (errors.Is(err, unix.ERANGE) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)):
		cure = fmt.Sprintf("an MTU of %d is too large for XDP, at most %d: ip link set dev %s mtu %d%s", a.MTU, safeMTU, name, safeMTU, atBothEnds(l))
	case errors.Is(err, unix.ERANGE):
		cure = fmt.Sprintf("the MTU of its other end is too large for XDP: set it to at most %d at both ends: ip link set dev DEV mtu %d", safeMTU, safeMTU)
	case feature("rx-lro") && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)):
		cure = fmt.Sprintf("switch off LRO, which XDP does not go with: ethtool -K %s lro off", name)
	case errors.Is(err, unix.ENOSPC) && l.Type() == "veth":
		cure = fmt.Sprintf("it has fewer receive queues than its other end has transmit queues: ethtool -L %s rx N", name)
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EINVAL) && channels.CombinedCount > 1:
		cure = fmt.Sprintf("the driver (%s) wants queues of its own for XDP, often half of them: ethtool -L %s combined %d",
			driver, name, max(1, max(channels.MaxCombined, channels.CombinedCount)/2))
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL):
		cure = fmt.Sprintf("the driver (%s) has no native XDP for it", driver)
		if a.ParentIndex != 0 && l.Type() != "veth" {
			cure += "; name the device below it in [datapath] devices only if frames arrive there without a tag"
		}
		cure += `; [datapath] engine = "socket" needs none`
	default:
		return err
	}
	return fmt.Errorf("%w: %s", err, cure)
}

func atBothEnds(l netlink.Link) string {
	if l.Type() == "veth" {
		return ", at both ends of the veth"
	}
	return ""
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
