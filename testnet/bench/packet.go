// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"encoding/binary"
	"net/netip"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/testnet/bench/bpf"
)

// Sizes of the datagrams that are copied, in bytes. FrameSize is without FCS.
const (
	FrameSize   = 1200
	PacketSize  = FrameSize - 14               // IPv6
	UDPPayload  = PacketSize - 40 - 8          //
	PayloadSize = UDPPayload - wire.HeaderSize // of the symbol

	// LineSize is what a copy occupies on an Ethernet line: preamble, FCS and
	// the gap between frames add 24 bytes.
	LineSize = FrameSize + 24
)

// Offsets in a frame.
const (
	sourceOffset = 14 + 8
	destOffset   = sourceOffset + 16
	udpOffset    = 14 + 40
	checkOffset  = udpOffset + 6
	headerOffset = udpOffset + 8
)

// headSize is the part of a frame that the generator writes.
const headSize = 128

// Numbers of traffic.bpf.c.
const (
	slotCount    = 16384
	slotSize     = 24 // bytes
	hostileHeads = 64
	honestMark   = 0x600d0000
	hostileMark  = 0x0bad0000
)

// MaxSubscribers is the largest number that the sink tells apart.
const MaxSubscribers = 16383

// Addresses. The replication point is rp0 and, for the flood, rp1; the subscribers
// are behind the router at the other end of rp0, which is the publisher, too.
var (
	rpAddr         = netip.MustParseAddrPort("[fd00:1::1]:30500")
	publisherAddr  = netip.MustParseAddrPort("[fd00:1::2]:30303")
	floodAddr      = netip.MustParseAddr("fd00:3::1") // of rp1
	hostileAddr    = netip.MustParseAddrPort("[fd00:3::2]:30303")
	subscribersNet = netip.MustParsePrefix("fd00:2::/64")
)

type mac [6]byte

// The same in each lane, and for both interfaces of a replication point, so that all
// get the same frames.
var (
	rpMAC      = mac{2, 0, 0, 0, 0, 1}
	lanMAC     = mac{2, 0, 0, 0, 0, 2}
	hostileMAC = mac{2, 0, 0, 0, 0, 4}
)

const (
	incarnation      = 0x6d646373
	group            = 0x74787320
	publisherSession = 1
)

var (
	handleKey    = auth.Key{'h', 'a', 'n', 'd', 'l', 'e'}
	groupKey     = auth.Key{'g', 'r', 'o', 'u', 'p'}
	publisherKey = auth.Key{'p', 'u', 'b', 'l', 'i', 's', 'h', 'e', 'r'}
)

// subscriberAddr is that of subscriber i, from 1 on.
func subscriberAddr(i int) netip.AddrPort {
	a := subscribersNet.Addr().As16()
	binary.BigEndian.PutUint32(a[12:], uint32(i))
	return netip.AddrPortFrom(netip.AddrFrom16(a), publisherAddr.Port())
}

func subscriberIndex(i int) ids.Session { return publisherSession + ids.Session(i) }

func subscriberSession(i int) datapath.Session {
	s := datapath.Session{
		Index:       subscriberIndex(i),
		Role:        datapath.Peer,
		Addr:        subscriberAddr(i),
		SendSession: ids.Session(i),
		Groups:      []ids.Group{group},
	}
	binary.BigEndian.PutUint32(s.SendKey[:], uint32(i))
	binary.BigEndian.PutUint32(s.ReceiveKey[4:], uint32(i))
	return s
}

// engineConfig and foundation are what each engine begins with: the group's key and
// a publisher of which the rate never ends.
func engineConfig() datapath.Config {
	return datapath.Config{Addr: rpAddr, Incarnation: incarnation, HandleKey: handleKey}
}

func foundation() datapath.Change {
	return datapath.Change{
		Keys: []proto.GroupKey{{Ingress: incarnation, Group: group, Active: true, Key: groupKey}},
		Add: []datapath.Session{{
			Index:       publisherSession,
			Role:        datapath.Peer,
			Addr:        publisherAddr,
			SendSession: publisherSession,
			SendKey:     auth.Key{1},
			ReceiveKey:  publisherKey,
			Groups:      []ids.Group{group},
			Publish:     true,
			Rate:        10_000_000,
			Burst:       1_000_000,
		}},
	}
}

// frame is an Ethernet frame with a datagram.
type frame []byte

// newFrame makes a frame of FrameSize from one endpoint to the replication point.
// Tags and checksum are still zero.
func newFrame(src, dst mac, from netip.AddrPort, h wire.Header) frame {
	f := make(frame, headerOffset, FrameSize)
	copy(f, dst[:])
	copy(f[6:], src[:])
	binary.BigEndian.PutUint16(f[12:], 0x86dd)
	f[14] = 6 << 4
	binary.BigEndian.PutUint16(f[18:], FrameSize-udpOffset)
	f[20], f[21] = 17, 64
	copy(f[sourceOffset:], from.Addr().AsSlice())
	copy(f[destOffset:], rpAddr.Addr().AsSlice())
	binary.BigEndian.PutUint16(f[udpOffset:], from.Port())
	binary.BigEndian.PutUint16(f[udpOffset+2:], rpAddr.Port())
	binary.BigEndian.PutUint16(f[udpOffset+4:], FrameSize-udpOffset)
	f = h.Append(f)
	for i := range PayloadSize {
		f = append(f, byte(i))
	}
	return f
}

func (f frame) datagram() []byte { return f[headerOffset:] }

// sum is that of the UDP packet and its pseudo-header (RFC 8200 section 8.1), in the
// byte order of the machine, not folded.
func (f frame) sum() uint64 {
	pseudo := binary.BigEndian.AppendUint32(nil, FrameSize-udpOffset)
	pseudo = binary.BigEndian.AppendUint32(pseudo, 17)
	return sum(f[sourceOffset:udpOffset]) + sum(pseudo) + sum(f[udpOffset:])
}

// seal completes a frame by its checksum.
func (f frame) seal() {
	binary.NativeEndian.PutUint16(f[checkOffset:], 0)
	check := ^fold(f.sum())
	if check == 0 {
		check = 0xffff
	}
	binary.NativeEndian.PutUint16(f[checkOffset:], check)
}

// sum adds the 16-bit words of an even number of bytes in memory order.
func sum(b []byte) (s uint64) {
	for ; len(b) > 1; b = b[2:] {
		s += uint64(binary.NativeEndian.Uint16(b))
	}
	return s
}

// fold reduces a sum to 16 bits (RFC 1071).
func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// head is a frame as the generator takes it.
func (f frame) head() (h bpf.TrafficHead) {
	for i := range h.Words {
		h.Words[i] = binary.NativeEndian.Uint64(f[8*i:])
	}
	h.Sum = f.sum()
	return h
}

// publisherHeader is that of the publisher's datagrams; sequence, object id and tags
// differ.
func publisherHeader() wire.Header {
	return wire.Header{
		Type: wire.Data, Session: publisherSession, Group: group,
		K: 1, N: 1, PayloadLen: PayloadSize, ObjectLen: PayloadSize,
	}
}

// honestFrame is what the generator completes.
func honestFrame() frame { return newFrame(lanMAC, rpMAC, publisherAddr, publisherHeader()) }

// honestObjects are the ids and payload tags, by slot.
func honestObjects() []bpf.TrafficObject {
	objects := make([]bpf.TrafficObject, slotCount)
	f := honestFrame()
	d := f.datagram()
	for i := range objects {
		binary.BigEndian.PutUint64(d[40:], honestMark<<32|uint64(i))
		tag := groupKey.PayloadTag(d)
		objects[i].Id = binary.NativeEndian.Uint64(d[40:])
		objects[i].PayloadTag = binary.NativeEndian.Uint64(tag[:])
	}
	return objects
}

// hostileFrame returns frame i of a flood, which are in turn of a session that does
// not exist, of the publisher's session from another source, and of the publisher's
// session and source without its key.
func hostileFrame(i int) frame {
	h := publisherHeader()
	h.ObjectID = hostileMark<<32 | uint64(i)
	h.Sequence = 1<<40 + uint64(i)
	from, key := hostileAddr, publisherKey
	switch i % 3 {
	case 0:
		h.Session = 0xdead0000 + ids.Session(i)
	case 2:
		from, key = publisherAddr, auth.Key{'?'}
	}
	f := newFrame(hostileMAC, rpMAC, from, h)
	wire.SetPayloadTag(f.datagram(), groupKey.PayloadTag(f.datagram()))
	wire.SetHopTag(f.datagram(), key.HopTag(f.datagram()))
	f.seal()
	return f
}

// Integers as they stand on the wire, for BPF maps.
func bigEndian16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func native16(b []byte) uint16    { return binary.NativeEndian.Uint16(b) }
func native32(b []byte) uint32    { return binary.NativeEndian.Uint32(b) }

// ownPort is the replication point's.
func ownPort() uint16 { return native16(bigEndian16(rpAddr.Port())) }
