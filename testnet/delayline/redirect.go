// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"fmt"
	"io"
	"net"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/ethmcast/mdcs/testnet/netns"
)

// xdpPass is XDP_PASS of linux/bpf.h.
const xdpPass = 2

// TakeRedirects lets a veth end take frames that XDP redirects into the other
// end, until the result is closed. The kernel delivers them only to a veth end
// that polls with NAPI, which it does with GRO or with a program of XDP; GRO
// would merge frames that a packet socket or a bridge should see as they are. So
// this attaches a program that lets everything pass and switches GRO off.
//
// With NAPI, the kernel counts a frame that was not redirected without its
// Ethernet header, at both ends: 14 bytes less than on the wire.
func TakeRedirects(ns *netns.Namespace, name string) (io.Closer, error) {
	var attached link.Link
	err := ns.Do(func() (err error) {
		attached, err = attachProgram(name, asm.Instructions{
			asm.Mov.Imm(asm.R0, xdpPass),
			asm.Return(),
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("take redirected frames at %s/%s: %w", ns.Name(), name, err)
	}
	// Only now: attaching a program switches GRO on.
	if err := ns.NoGRO(name); err != nil {
		attached.Close()
		return nil, err
	}
	return attached, nil
}

// attachProgram puts a program of XDP at an interface of the namespace of the
// calling thread, in its driver.
func attachProgram(name string, instructions asm.Instructions) (link.Link, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, Instructions: instructions, License: "GPL"})
	if err != nil {
		return nil, err
	}
	defer program.Close() // the link keeps it
	return link.AttachXDP(link.XDPOptions{Program: program, Interface: ifi.Index, Flags: link.XDPDriverMode})
}
