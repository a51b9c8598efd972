// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/objects"
)

// Offsets in a frame, and where a whole frame keeps its destination address (WHOLE_OFF of
// the programs).
const (
	frameDst   = 14 + 24      // IPv6 destination
	frameUDP   = 14 + 40      // what follows IPv6
	frameBody  = frameUDP + 8 // what follows UDP, or the header of an echo request
	frameWhole = frameBody + 24
	frameMin   = frameBody + wire.HeaderSize // what the programs look at
)

// askAgain is the pause between looks for an ND entry.
const askAgain = 10 * time.Millisecond

var (
	errUnknown   = errors.New("no ND entry: nobody on the link answers for it")
	errOldKernel = errors.New("the kernel takes no frames of user space for its programs (before Linux 5.18): " +
		"PROBEs leave by the socket and do not prove the way of copies")
)

// Probe implements datapath.Engine. The PROBE goes through queue, fan-out, device map and
// device as a copy does.
func (e *Engine) Probe(dst netip.AddrPort, nonce [wire.NonceSize]byte, size int) error {
	b, err := wire.NewProbe(nonce, size)
	if err != nil {
		return err
	}
	udp := be.AppendUint16(be.AppendUint16(nil, e.addr.Port()), dst.Port())
	udp = append(be.AppendUint16(udp, uint16(8+size)), 0, 0)
	err = e.sendWhole(dst.Addr(), awaitEntries, unix.IPPROTO_UDP, 6, append(udp, b...))
	if errors.Is(err, errOldKernel) {
		err = e.probeBySocket(dst, b)
	}
	if err != nil {
		if !errors.Is(err, datapath.ErrClosed) {
			e.sendErrors.Add(1)
		}
		return fmt.Errorf("probe: %w", err)
	}
	return nil
}

func (e *Engine) probeBySocket(dst netip.AddrPort, b []byte) error {
	dst, control := datapath.Destination(dst)
	if _, _, err := e.conn.WriteMsgUDPAddrPort(b, control, dst); err != nil {
		return err
	}
	e.probes.Add(1)
	return nil
}

// sendWhole sends a packet the way of copies: its transport header and payload, with
// zeroes in place of the checksum, which stands at an offset in it, and in bytes 32 to 47.
// A host that is not known gets some time to answer.
func (e *Engine) sendWhole(dst netip.Addr, wait time.Duration, protocol uint8, checksum int, packet []byte) error {
	for end := time.Now().Add(wait); ; time.Sleep(askAgain) {
		var err error
		closed := e.do(func() { err = e.sendOwn(dst, protocol, checksum, packet) })
		if closed != nil {
			return closed
		}
		if !errors.Is(err, errUnknown) || time.Now().After(end) {
			return err
		}
	}
}

// sendOwn is sendWhole on the thread.
func (e *Engine) sendOwn(dst netip.Addr, protocol uint8, checksum int, packet []byte) error {
	p, err := e.paths.Route(dst)
	if err == nil {
		err = e.serves(p.Link)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", datapath.ErrNoWay, err)
	}
	hop, ok := e.hop(p)
	if !ok {
		e.paths.Want(p)
		return fmt.Errorf("%v by %s: %w", p.Addr, e.devices[e.number(p.Link)].name, errUnknown)
	}
	if err := e.devices[hop.Device].takesFrames(); err != nil {
		return fmt.Errorf("%w: %w", datapath.ErrNoWay, err)
	}
	way, err := e.way(hop.Device)
	if err != nil {
		return err
	}
	cpu := e.table.cpus[e.wholes%len(e.table.cpus)]
	e.wholes++
	_, err = e.objects.MdcsRpOwn.Run(&ebpf.RunOptions{
		Data:   wholeFrame(hop, way, cpu, e.addr.Addr(), dst.WithZone(""), protocol, checksum, packet),
		Repeat: 1, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: 1,
	})
	if errors.Is(err, unix.EINVAL) {
		if !e.oldKernel {
			e.oldKernel = true
			e.lack("proof of the way of copies", errOldKernel)
		}
		return errOldKernel
	}
	return err
}

// way returns the slice of whole frames that leave by a device. It stays as long as the
// device.
func (e *Engine) way(device int) (*fanout.Slice, error) {
	if e.ways[device] == nil {
		way, err := e.fanout.Build([]fanout.Member{{Whole: true, Hop: fanout.Hop{Device: device}}}, false)
		if err != nil {
			return nil, err
		}
		e.ways[device] = way
	}
	return e.ways[device], nil
}

// wholeFrame returns a frame with all that it has on the wire, but for the destination
// address: in its place is struct scratch of the programs.
func wholeFrame(hop fanout.Hop, way *fanout.Slice, cpu uint32, src, dst netip.Addr, protocol uint8, checksum int, packet []byte) []byte {
	f := append(append(make([]byte, 0, frameMin+len(packet)), hop.Dst[:]...), hop.Src[:]...)
	f = be.AppendUint16(f, unix.ETH_P_IPV6)
	f = append(f, 6<<4, 0, 0, 0)
	f = be.AppendUint16(f, uint16(len(packet)))
	f = append(f, protocol, hop.HopLimit)
	f = append(append(f, src.AsSlice()...), dst.AsSlice()...)
	f = append(f, packet...)

	// The checksum is over the destination in its place, and zeroes where it is kept.
	pseudo := append(be.AppendUint16(nil, uint16(len(packet))), 0, protocol)
	pseudo = append(append(pseudo, f[frameDst-16:frameUDP]...), packet...)
	if len(pseudo)%2 == 1 {
		pseudo = append(pseudo, 0)
	}
	sum := ^objects.Sum16(pseudo)
	if sum == 0 {
		sum = 0xffff // 0 would mean none (RFC 8200)
	}
	le.PutUint16(f[frameUDP+checksum:], sum)

	copy(f[frameWhole:], f[frameDst:frameUDP])
	scratch := native.AppendUint16(make([]byte, 4, 16), uint16(way.Index()))
	scratch = native.AppendUint16(scratch, way.Generation())
	scratch = append(scratch, 0, 0, 0, 0, 0, 0, byte(cpu), 0) // from no session, no sum, by the queue
	copy(f[frameDst:], scratch)
	return f
}
