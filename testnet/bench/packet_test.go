// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"encoding/binary"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/testnet/bench/bpf"
)

func TestSizes(t *testing.T) {
	f := honestFrame()
	require.Len(t, f, FrameSize)
	require.Equal(t, PacketSize, 40+int(binary.BigEndian.Uint16(f[18:])), "IPv6 payload length")
	require.Equal(t, UDPPayload, int(binary.BigEndian.Uint16(f[udpOffset+4:]))-8, "UDP length")
	require.Len(t, f.datagram(), UDPPayload)
}

// The numbers of packet.go are those of the programs.
func TestProgramsAgree(t *testing.T) {
	traffic, err := bpf.LoadTraffic()
	require.NoError(t, err)
	require.EqualValues(t, slotCount, traffic.Maps[bpf.TrafficMapSlots].MaxEntries)
	require.EqualValues(t, slotCount, traffic.Maps[bpf.TrafficMapObjects].MaxEntries)
	require.EqualValues(t, hostileHeads, traffic.Maps[bpf.TrafficMapHostile].MaxEntries)
	require.EqualValues(t, MaxSubscribers+1, traffic.Maps[bpf.TrafficMapSeen].MaxEntries)
	require.EqualValues(t, slotSize, unsafe.Sizeof(bpf.TrafficSlot{}))
	require.EqualValues(t, headSize, unsafe.Sizeof(bpf.TrafficHead{}.Words))

	bare, err := bpf.LoadBare()
	require.NoError(t, err)
	require.EqualValues(t, bareSlice+1, bare.Maps[bpf.BareMapTargets].InnerMap.MaxEntries)
	require.GreaterOrEqual(t, int(bare.Maps[bpf.BareMapTargets].MaxEntries)*bareSlice, MaxSubscribers)
}

// rightChecksum adds up the UDP packet with its pseudo-header, in network order.
func rightChecksum(f frame) bool {
	s := uint64(FrameSize - udpOffset + 17)
	for i := sourceOffset; i < len(f); i += 2 {
		s += uint64(binary.BigEndian.Uint16(f[i:]))
	}
	return fold(s) == 0xffff
}

// What the generator fills in makes a datagram that the publisher could have sent.
func TestHonestFrame(t *testing.T) {
	objects := honestObjects()
	f := honestFrame()
	d := f.datagram()
	binary.NativeEndian.PutUint64(d[40:], objects[7].Id)
	binary.NativeEndian.PutUint64(d[48:], objects[7].PayloadTag)
	f.seal()
	require.True(t, rightChecksum(f))

	h, _, v := wire.Parse(d)
	require.Equal(t, wire.Pass, v)
	require.Equal(t, uint64(honestMark<<32|7), h.ObjectID)
	require.True(t, groupKey.CheckPayloadTag(d, h.PayloadTag))
}

// The sum that the generator begins with is that of what it does not fill in.
func TestHead(t *testing.T) {
	head := honestFrame().head()
	f := honestFrame()
	d := f.datagram()
	binary.BigEndian.PutUint64(d[16:], 0x0102030405060708)
	wire.SetHopTag(d, publisherKey.HopTag(d))
	s := head.Sum + sum(d[16:24]) + sum(d[56:64])
	binary.NativeEndian.PutUint16(f[checkOffset:], ^fold(s))
	require.True(t, rightChecksum(f))
}

func TestHostileFrames(t *testing.T) {
	for i := range hostileHeads {
		f := hostileFrame(i)
		require.Len(t, f, FrameSize)
		require.True(t, rightChecksum(f))
		d := f.datagram()
		h, _, v := wire.Parse(d)
		require.Equal(t, wire.Pass, v)
		require.EqualValues(t, hostileMark, h.ObjectID>>32)
		own := string(f[sourceOffset:destOffset]) == string(publisherAddr.Addr().AsSlice())
		right := publisherKey.CheckHopTag(d, h.HopTag)
		require.False(t, h.Session == publisherSession && own && right, "frame %d would be accepted", i)
	}
}

func TestSubscribers(t *testing.T) {
	keys := make(map[auth.Key]bool)
	for i := 1; i <= MaxSubscribers; i++ {
		s := subscriberSession(i)
		require.NoError(t, s.Check())
		require.False(t, keys[s.SendKey] || keys[s.ReceiveKey])
		keys[s.SendKey], keys[s.ReceiveKey] = true, true
		require.EqualValues(t, i, binary.BigEndian.Uint32(s.Addr.Addr().AsSlice()[12:]))
	}
	c := foundation()
	require.NoError(t, c.Add[0].Check())
}

// A replica's sum is what its endpoint adds to a checksum.
func TestReplica(t *testing.T) {
	r := replica(300)
	f := honestFrame()
	clear(f[destOffset : destOffset+16])
	binary.NativeEndian.PutUint16(f[udpOffset+2:], 0)
	without := f.sum()
	for w, v := range r.Addr.Word {
		binary.NativeEndian.PutUint32(f[destOffset+4*w:], v)
	}
	binary.NativeEndian.PutUint16(f[udpOffset+2:], r.Port)
	require.Equal(t, fold(f.sum()), fold(without+uint64(r.Sum)))
	require.Equal(t, subscriberAddr(300).Addr().AsSlice(), []byte(f[destOffset:destOffset+16]))
	require.Equal(t, subscriberAddr(300).Port(), binary.BigEndian.Uint16(f[udpOffset+2:]))
}
