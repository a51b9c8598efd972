// SPDX-License-Identifier: LGPL-3.0-or-later

package objects

import (
	"encoding/binary"
	"math"
	"net/netip"
	"strings"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// Byte orders: tags and checksums are computed over little-endian words, addresses
// and ports stand in BPF maps as they do on the wire.
var (
	le     = binary.LittleEndian
	be     = binary.BigEndian
	native = binary.NativeEndian
)

// Port returns a port as it stands on the wire, in the machine's byte order.
func Port(p uint16) uint16 { return native.Uint16(be.AppendUint16(nil, p)) }

// Wire32 returns an integer as it stands on the wire, in the machine's byte order.
func Wire32(v ids.Session) uint32 {
	return native.Uint32(be.AppendUint32(nil, uint32(v)))
}

// NumbersOf puts groups into an array of the programs, and returns how many it has.
func NumbersOf(groups []ids.Group, numbers []uint32) int {
	n := min(len(groups), len(numbers))
	for i, g := range groups[:n] {
		numbers[i] = uint32(g)
	}
	return n
}

// GroupsOf is the inverse of NumbersOf. It returns nil for no groups.
func GroupsOf(numbers []uint32) (groups []ids.Group) {
	for _, n := range numbers {
		groups = append(groups, ids.Group(n))
	}
	return groups
}

// Words returns an address as BPF maps hold it.
func Words(a [16]byte) (w [4]uint32) {
	for i := range w {
		w[i] = native.Uint32(a[4*i:])
	}
	return w
}

// Halves are a key's two words as SipHash takes them.
func Halves(k auth.Key) (k0, k1 uint64) { return le.Uint64(k[:8]), le.Uint64(k[8:]) }

// WholeKey is the inverse of Halves.
func WholeKey(k bpf.RpKey) (whole auth.Key) {
	le.PutUint64(whole[:8], k.K0)
	le.PutUint64(whole[8:], k.K1)
	return whole
}

// Policer is a Policer as the programs need it.
func Policer(p datapath.Policer) bpf.RpPolicer {
	return bpf.RpPolicer{Rate: p.Rate, Tolerance: p.Tolerance}
}

// Sum16 adds the little-endian 16-bit words of b for a checksum, as the programs do.
func Sum16(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(le.Uint16(b[i:]))
	}
	for sum > math.MaxUint16 {
		sum = sum&math.MaxUint16 + sum>>16
	}
	return uint16(sum)
}

// SessionValue is a session as the programs have it, with the element of its state and that
// of its site's share, 0 for none.
func SessionValue(s *datapath.Session, state, site uint32) bpf.RpSession {
	value := bpf.RpSession{
		State:       state,
		Site:        site,
		Port:        Port(s.Addr.Port()),
		Role:        uint8(s.Role),
		SendSession: Wire32(ids.Session(s.SendSession)),
		Rate:        s.Rate,
		Burst:       s.Burst,
		Egress:      s.Egress,
		EgressBurst: s.EgressBurst,
	}
	datagrams, copies := s.Policers()
	value.Datagrams, value.Copies = Policer(datagrams), Policer(copies)
	value.Key.K0, value.Key.K1 = Halves(s.ReceiveKey)
	value.SendKey.K0, value.SendKey.K1 = Halves(s.SendKey)
	value.Addr.Word = Words(s.Addr.Addr().As16())
	value.Subscribed = uint8(NumbersOf(s.Groups, value.Groups[:]))
	copy(value.Zone[:], s.Addr.Addr().Zone())
	if s.Silent {
		value.Silent = 1
	}
	if s.Publish {
		value.Publish = 1
		value.GroupsLen = value.Subscribed
	}
	return value
}

// ParseSession is the inverse of SessionValue.
func ParseSession(index ids.Session, value *bpf.RpSession) datapath.Session {
	var addr [16]byte
	for i, w := range value.Addr.Word {
		native.PutUint32(addr[4*i:], w)
	}
	zone := strings.TrimRight(string(value.Zone[:]), "\x00")
	return datapath.Session{
		Index:       index,
		Role:        datapath.Role(value.Role),
		Addr:        netip.AddrPortFrom(netip.AddrFrom16(addr).WithZone(zone), Port(value.Port)),
		SendSession: ids.Session(Wire32(ids.Session(value.SendSession))),
		SendKey:     WholeKey(value.SendKey),
		ReceiveKey:  WholeKey(value.Key),
		Groups:      GroupsOf(value.Groups[:min(int(value.Subscribed), len(value.Groups))]),
		Silent:      value.Silent != 0,
		Publish:     value.Publish != 0,
		Rate:        value.Rate,
		Burst:       value.Burst,
		Egress:      value.Egress,
		EgressBurst: value.EgressBurst,
	}
}

// Replica is what copies to a session need, but for Ethernet addresses and hop limit.
func Replica(s *datapath.Session) (r bpf.RpReplica) {
	r.Key.K0, r.Key.K1 = Halves(s.SendKey)
	addr := s.Addr.Addr().As16()
	r.Addr.Word = Words(addr)
	r.SendSession = Wire32(s.SendSession)
	r.Session = uint32(s.Index)
	r.Port = Port(s.Addr.Port())
	r.Sum = Sum16(be.AppendUint32(be.AppendUint16(addr[:], s.Addr.Port()), uint32(s.SendSession)))
	return r
}
