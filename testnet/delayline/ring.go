// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"fmt"
	"net"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sizes in the receive ring of an interface, in bytes. A frame of 1,514 bytes and
// the header of the kernel fit in a slot.
const (
	slotSize      = 2048
	blockSize     = 1 << 17
	slotsPerBlock = blockSize / slotSize
)

// ring is a packet socket on one interface: a TPACKET_V2 receive ring, and the
// way out for the frames of the opposite direction.
//
// The layout of a slot is a tpacket2_hdr, whose status word says who owns the
// slot, and the frame at offset Mac (see packet(7) and the kernel's
// Documentation/networking/packet_mmap.rst).
type ring struct {
	name  string
	fd    int
	slots uint
	mem   []byte
}

func openRing(name string, slots int) (*ring, error) {
	r, err := newRing(name, slots)
	if err != nil {
		return nil, fmt.Errorf("open packet ring on %s: %w", name, err)
	}
	return r, nil
}

func newRing(name string, slots int) (r *ring, err error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	for _, o := range []struct {
		name  string
		level int
		opt   int
		value int
	}{
		{"PACKET_VERSION", unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2},
		{"PACKET_IGNORE_OUTGOING", unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1},
		{"PACKET_QDISC_BYPASS", unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1},
		// The default would hold fewer frames than one burst.
		{"SO_SNDBUFFORCE", unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 16 << 20},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.value); err != nil {
			return nil, fmt.Errorf("set %s: %w", o.name, err)
		}
	}
	req := &unix.TpacketReq{
		Block_size: blockSize,
		Block_nr:   uint32(slots / slotsPerBlock),
		Frame_size: slotSize,
		Frame_nr:   uint32(slots),
	}
	if err := unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, req); err != nil {
		return nil, fmt.Errorf("set PACKET_RX_RING: %w", err)
	}
	mem, err := unix.Mmap(fd, 0, slotSize*slots, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	addr := &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: ifi.Index}
	if err := unix.Bind(fd, addr); err != nil {
		unix.Munmap(mem)
		return nil, fmt.Errorf("bind: %w", err)
	}
	return &ring{name: name, fd: fd, slots: uint(slots), mem: mem}, nil
}

// offset is where a slot begins in the memory of the ring.
func (r *ring) offset(slot uint) uint { return slot % r.slots * slotSize }

// header is the header of a slot.
func (r *ring) header(slot uint) *unix.Tpacket2Hdr {
	return (*unix.Tpacket2Hdr)(unsafe.Pointer(&r.mem[r.offset(slot)]))
}

// filled reports whether the kernel has put a frame into a slot.
func (r *ring) filled(slot uint) bool {
	return atomic.LoadUint32(&r.header(slot).Status)&unix.TP_STATUS_USER != 0
}

// release gives a slot back to the kernel.
func (r *ring) release(slot uint) {
	atomic.StoreUint32(&r.header(slot).Status, unix.TP_STATUS_KERNEL)
}

// frame is the memory of the frame in a slot, and the length that it had when it
// arrived: what does not fit in the slot is cut.
func (r *ring) frame(slot uint) (frame []byte, length int) {
	h := r.header(slot)
	start := r.offset(slot) + uint(h.Mac)
	return r.mem[start : start+uint(h.Snaplen)], int(h.Len)
}

// received is when the kernel got the frame in a slot, in ns of CLOCK_REALTIME.
func (r *ring) received(slot uint) int64 {
	h := r.header(slot)
	return int64(h.Sec)*1e9 + int64(h.Nsec)
}

// overflows is the number of frames that found no free slot since the last call.
func (r *ring) overflows() (uint64, error) {
	stats, err := unix.GetsockoptTpacketStats(r.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, fmt.Errorf("read statistics of %s: %w", r.name, err)
	}
	return uint64(stats.Drops), nil
}

// mmsghdr is struct mmsghdr of sendmmsg(2) on 64-bit machines.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   uint32
}

// batch is a list of frames to send, reused without allocation.
type batch struct {
	n       int
	msgs    [64]mmsghdr
	iovs    [64]unix.Iovec
	refused [64]bool // by the kernel, of the frames sent last
}

func (b *batch) full() bool { return b.n == len(b.msgs) }

func (b *batch) add(frame []byte) {
	b.iovs[b.n].Base = &frame[0]
	b.iovs[b.n].SetLen(len(frame))
	b.msgs[b.n].hdr.Iov = &b.iovs[b.n]
	b.msgs[b.n].hdr.SetIovlen(1)
	b.n++
}

// send empties the batch through a socket and fills refused.
func (b *batch) send(fd int) {
	for sent := 0; sent < b.n; {
		// A raw call: the thread is a real-time one and must not wait for the
		// Go scheduler to get back into Go.
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd),
			uintptr(unsafe.Pointer(&b.msgs[sent])), uintptr(b.n-sent), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			clear(b.refused[sent : sent+int(n)])
			sent += int(n)
		case unix.EINTR:
		default: // the interface is down, or its queue or that of the socket is full
			b.refused[sent] = true
			sent++
		}
	}
	b.n = 0
}

// networkOrder swaps the bytes on a little-endian machine.
func networkOrder(v uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&v))
	return uint16(b[0])<<8 | uint16(b[1])
}
