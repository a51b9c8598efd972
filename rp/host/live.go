// SPDX-License-Identifier: LGPL-3.0-or-later

package host

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/rp/hostnet"
)

const (
	liveFrames  = 3                      // echo requests that are sent
	liveTimeout = time.Second            // for one reply
	resolve     = 200 * time.Millisecond // between looks at the neighbour table
)

// Live checks what only a try can show: that the device takes an XDP program in
// native mode, and that frames redirected into it leave, reach peer and come back.
// They are ICMPv6 echo requests to peer, a neighbour on the device; the zero peer
// stands for the default router. Other traffic passes meanwhile. What was attached
// is removed.
func Live(addr, peer netip.Addr) Report {
	var r Report
	dev, err := device(addr)
	if err != nil {
		r.add("device", err, "")
		return r
	}
	id := make([]byte, 2)
	if _, err := rand.Read(id); err != nil {
		r.add("live frames", err, "")
		return r
	}
	replies, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		r.add("bpf maps", err, "")
		return r
	}
	defer replies.Close()
	counter, err := ebpf.NewProgram(countReplies(replies, binary.BigEndian.Uint16(id)))
	if err != nil {
		r.add("bpf programs", err, "")
		return r
	}
	defer counter.Close()
	attached, err := link.AttachXDP(link.XDPOptions{
		Program: counter, Interface: dev.Attrs().Index, Flags: link.XDPDriverMode,
	})
	switch {
	case errors.Is(err, unix.EBUSY):
		err = errors.New("another XDP program is attached")
	case errors.Is(err, unix.EOPNOTSUPP):
		err = fmt.Errorf("the driver (%s) does not know it", dev.Type())
	}
	if !r.add("native xdp", err, "%s takes a program", dev.Attrs().Name) {
		return r
	}
	defer attached.Close()

	mac, peer, err := neighbour(dev, peer)
	if !r.add("neighbour", err, "%v is %v", peer, mac) {
		return r
	}
	start := time.Now()
	err = bounce(dev, replies, echoRequest(dev.Attrs().HardwareAddr, mac, addr, peer, id))
	r.add("live frames", err, "redirected into %s, answered by %v within %v", dev.Attrs().Name, peer,
		time.Since(start).Round(time.Microsecond))
	return r
}

// bounce redirects the frame into the device until a reply is counted.
func bounce(dev netlink.Link, replies *ebpf.Map, frame []byte) error {
	redirect, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:    ebpf.XDP,
		License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, int32(dev.Attrs().Index)),
			asm.Mov.Imm(asm.R2, 0),
			asm.FnRedirect.Call(),
			asm.Return(),
		},
	})
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	defer redirect.Close()
	for range liveFrames {
		_, err := redirect.Run(&ebpf.RunOptions{Data: frame, Repeat: 1, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: 1})
		if errors.Is(err, unix.EINVAL) {
			return errors.New("the kernel sends no test frames (before 5.18)")
		}
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
		for end := time.Now().Add(liveTimeout); time.Now().Before(end); time.Sleep(time.Millisecond) {
			var n uint64
			if err := replies.Lookup(uint32(0), &n); err != nil {
				return fmt.Errorf("count replies: %w", err)
			}
			if n > 0 {
				return nil
			}
		}
	}
	return fmt.Errorf("no reply to %d echo requests: frames redirected into the device are lost", liveFrames)
}

// countReplies is a program that counts ICMPv6 echo replies with an identifier in
// element 0 of a map, and passes everything.
func countReplies(replies *ebpf.Map, id uint16) *ebpf.ProgramSpec {
	const (
		etherType, nextHeader, icmpType, icmpID = 12, 20, 54, 58 // offsets in the frame
		length                                  = 62
	)
	be := func(x uint16) int32 { return int32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, x))) }
	return &ebpf.ProgramSpec{
		Type:    ebpf.XDP,
		License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // xdp_md.data
			asm.LoadMem(asm.R3, asm.R1, 4, asm.Word), // xdp_md.data_end
			asm.Mov.Reg(asm.R4, asm.R2),
			asm.Add.Imm(asm.R4, length),
			asm.JGT.Reg(asm.R4, asm.R3, "pass"),
			asm.LoadMem(asm.R4, asm.R2, etherType, asm.Half),
			asm.JNE.Imm(asm.R4, be(unix.ETH_P_IPV6), "pass"),
			asm.LoadMem(asm.R4, asm.R2, nextHeader, asm.Byte),
			asm.JNE.Imm(asm.R4, unix.IPPROTO_ICMPV6, "pass"),
			asm.LoadMem(asm.R4, asm.R2, icmpType, asm.Byte),
			asm.JNE.Imm(asm.R4, echoReply, "pass"),
			asm.LoadMem(asm.R4, asm.R2, icmpID, asm.Half),
			asm.JNE.Imm(asm.R4, be(id), "pass"),
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, replies.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "pass"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, 2).WithSymbol("pass"), // XDP_PASS
			asm.Return(),
		},
	}
}

// ICMPv6 types (RFC 4443 section 4).
const (
	echoRequestType = 128
	echoReply       = 129
)

// echoRequest returns a frame with an ICMPv6 echo request.
func echoRequest(from, to net.HardwareAddr, src, dst netip.Addr, id []byte) []byte {
	icmp := append([]byte{echoRequestType, 0, 0, 0, id[0], id[1], 0, 1}, "mdcs"...)
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(icmp)))
	pseudo = append(append(pseudo, 0, 0, 0, unix.IPPROTO_ICMPV6), icmp...)
	binary.BigEndian.PutUint16(icmp[2:], ^onesSum(pseudo))

	frame := append(append([]byte{}, to...), from...)
	frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IPV6)
	frame = append(frame, 0x60, 0, 0, 0)
	frame = binary.BigEndian.AppendUint16(frame, uint16(len(icmp)))
	frame = append(frame, unix.IPPROTO_ICMPV6, 64)
	frame = append(append(frame, src.AsSlice()...), dst.AsSlice()...)
	return append(frame, icmp...)
}

// onesSum is the ones' complement sum of RFC 1071; b has an even length.
func onesSum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// neighbour returns the address and MAC address of peer on a device, of the
// default router if peer is not given.
func neighbour(dev netlink.Link, peer netip.Addr) (net.HardwareAddr, netip.Addr, error) {
	index := dev.Attrs().Index
	if !peer.IsValid() {
		routes, err := hostnet.Dump(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{LinkIndex: index}, netlink.RT_FILTER_OIF)
		})
		if err != nil {
			return nil, peer, fmt.Errorf("list routes: %w", err)
		}
		for _, route := range routes {
			if ones, _ := maskOf(route.Dst); ones == 0 && route.Gw != nil {
				peer, _ = netip.AddrFromSlice(route.Gw)
			}
		}
		if !peer.IsValid() {
			return nil, peer, fmt.Errorf("no default router behind %s: name a neighbour", dev.Attrs().Name)
		}
	}
	for end := time.Now().Add(15 * resolve); ; {
		neighs, err := hostnet.Dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, netlink.FAMILY_V6) })
		if err != nil {
			return nil, peer, fmt.Errorf("list neighbours: %w", err)
		}
		for _, n := range neighs {
			ip, _ := netip.AddrFromSlice(n.IP)
			if ip == peer.WithZone("") && len(n.HardwareAddr) == 6 && n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) == 0 {
				return n.HardwareAddr, peer, nil
			}
		}
		if time.Now().After(end) {
			return nil, peer, fmt.Errorf("%v is not reachable on %s", peer, dev.Attrs().Name)
		}
		knock(peer, dev.Attrs().Name)
		time.Sleep(resolve)
	}
}

func maskOf(n *net.IPNet) (ones, bits int) {
	if n == nil {
		return 0, 128
	}
	return n.Mask.Size()
}

// knock makes the kernel look for a neighbour. Nobody needs to answer the datagram.
func knock(peer netip.Addr, device string) {
	if peer.IsLinkLocalUnicast() {
		peer = peer.WithZone(device)
	}
	const discard = 9
	conn, err := net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(peer, discard)))
	if err != nil {
		return // the neighbour table will not have it either
	}
	_, _ = conn.Write([]byte{0})
	_ = conn.Close()
}
