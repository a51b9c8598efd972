// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"fmt"
	"net"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Size of the receive ring of one interface. A frame stays in its slot until it
// is due, so the ring holds what is under way on the link: 4,096 frames of 1,514
// bytes are 20 ms at 2.4 Gbit/s.
const (
	slotSize  = 2048
	slotCount = 4096
	blockSize = 1 << 17
)

// ring is a packet socket on one interface: a TPACKET_V2 receive ring, and the
// way out for the frames of the opposite direction.
//
// The layout of a slot is a tpacket2_hdr, whose status word says who owns the
// slot, and the frame at offset Mac (see packet(7) and the kernel's
// Documentation/networking/packet_mmap.rst).
type ring struct {
	name string
	fd   int
	mem  []byte
}

func openRing(name string) (*ring, error) {
	r, err := newRing(name)
	if err != nil {
		return nil, fmt.Errorf("open packet ring on %s: %w", name, err)
	}
	return r, nil
}

func newRing(name string) (r *ring, err error) {
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
		Block_nr:   slotSize * slotCount / blockSize,
		Frame_size: slotSize,
		Frame_nr:   slotCount,
	}
	if err := unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, req); err != nil {
		return nil, fmt.Errorf("set PACKET_RX_RING: %w", err)
	}
	mem, err := unix.Mmap(fd, 0, slotSize*slotCount, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	addr := &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: ifi.Index}
	if err := unix.Bind(fd, addr); err != nil {
		unix.Munmap(mem)
		return nil, fmt.Errorf("bind: %w", err)
	}
	return &ring{name: name, fd: fd, mem: mem}, nil
}

// header is the header of slot i.
func (r *ring) header(i int) *unix.Tpacket2Hdr {
	return (*unix.Tpacket2Hdr)(unsafe.Pointer(&r.mem[i*slotSize]))
}

// filled reports whether the kernel has put a frame into slot i.
func (r *ring) filled(i int) bool {
	return atomic.LoadUint32(&r.header(i).Status)&unix.TP_STATUS_USER != 0
}

// release gives slot i back to the kernel.
func (r *ring) release(i int) {
	atomic.StoreUint32(&r.header(i).Status, unix.TP_STATUS_KERNEL)
}

// frame is the memory of the frame in slot i; ok is false if it was cut.
func (r *ring) frame(i int) (frame []byte, ok bool) {
	h := r.header(i)
	start := i*slotSize + int(h.Mac)
	return r.mem[start : start+int(h.Snaplen)], h.Snaplen == h.Len
}

// received is when the kernel got the frame in slot i, in ns of CLOCK_REALTIME.
func (r *ring) received(i int) int64 {
	h := r.header(i)
	return int64(h.Sec)*1e9 + int64(h.Nsec)
}

// overflows is the number of frames that found no free slot since the last call.
func (r *ring) overflows() uint64 {
	stats, err := unix.GetsockoptTpacketStats(r.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0
	}
	return uint64(stats.Drops)
}

// mmsghdr is struct mmsghdr of sendmmsg(2) on 64-bit machines.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   uint32
}

// batch is a list of frames to send, reused without allocation.
type batch struct {
	n    int
	msgs [64]mmsghdr
	iovs [64]unix.Iovec
}

func (b *batch) full() bool { return b.n == len(b.msgs) }

func (b *batch) add(frame []byte) {
	b.iovs[b.n].Base = &frame[0]
	b.iovs[b.n].SetLen(len(frame))
	b.msgs[b.n].hdr.Iov = &b.iovs[b.n]
	b.msgs[b.n].hdr.SetIovlen(1)
	b.n++
}

// send empties the batch through the socket and returns how many frames the
// kernel refused.
func (b *batch) send(fd int) (refused uint64) {
	for sent := 0; sent < b.n; {
		// A raw call: the thread is a real-time one and must not wait for the
		// Go scheduler to get back into Go.
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd),
			uintptr(unsafe.Pointer(&b.msgs[sent])), uintptr(b.n-sent), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			sent += int(n)
		case unix.EINTR:
		default: // the queue of the device or of the socket is full
			refused++
			sent++
		}
	}
	b.n = 0
	return refused
}

// networkOrder swaps the bytes on a little-endian machine.
func networkOrder(v uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&v))
	return uint16(b[0])<<8 | uint16(b[1])
}
