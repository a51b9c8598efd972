// SPDX-License-Identifier: LGPL-3.0-or-later

// Package wire is the mDCS datagram: one UDP payload of a 64-byte header and up
// to 1168 bytes of object data (SPEC section 4). All integers are big-endian.
//
//	 0               1               2               3
//	+-------+-------+---------------+---------------+---------------+
//	|version| type  |     flags     |   hop limit   |   key epoch   |  0
//	+-------+-------+---------------+---------------+---------------+
//	|               session (index of this hop's receiver)          |  4
//	+---------------------------------------------------------------+
//	|                            group                              |  8
//	+---------------------------------------------------------------+
//	|               ingress RP (0 on the publisher's hop)           | 12
//	+---------------------------------------------------------------+
//	|                           sequence                            | 16
//	|                                                               |
//	+---------------------------------------------------------------+
//	|                       publisher handle                        | 24
//	+-------------------------------+-------------------------------+
//	|              ESI              |               K               | 28
//	+-------------------------------+-------------------------------+
//	|               N               |        payload length         | 32
//	+-------------------------------+-------------------------------+
//	|                   object length in bytes                      | 36
//	+---------------------------------------------------------------+
//	|                 object id (keccak256 prefix)                  | 40
//	|                                                               |
//	+---------------------------------------------------------------+
//	|     payload tag (group key; what it covers depends on type)   | 48
//	|                                                               |
//	+---------------------------------------------------------------+
//	|          hop tag (hop key; bytes 0-55)                        | 56
//	|                                                               |
//	+---------------------------------------------------------------+
//	|                           payload ...                         | 64
package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/ethmcast/mdcs/ethmcast/ids"
)

// Sizes in bytes. An IPv6 packet of 1280 bytes, the minimum MTU (RFC 8200
// section 5), carries 1280-40-8 = 1232 bytes of UDP payload.
const (
	Version    = 1
	HeaderSize = 64

	MaxDatagram = 1232
	MaxPayload  = MaxDatagram - HeaderSize

	// NonceSize is the length of the nonce at the start of a PROBE's payload.
	NonceSize = 16

	// HelloSize is the length of the hello in a LINK_HELLO's header.
	HelloSize = 16
)

// SPEC section 11, constants of the datagram.
const (
	// InitialHopLimit is what an ingress RP writes into the hop limit.
	InitialHopLimit = 32

	// MaxSymbols bounds N and with it K: the ESI of a symbol is below it.
	MaxSymbols = 2048
)

// Field offsets that checks and rewriting use.
const (
	offGroup      = 8
	offSession    = 4
	offIngress    = 12
	offSequence   = 16
	offHandle     = 24
	offESI        = 28
	offPayloadTag = 48
	offHopTag     = 56

	// HopTagged is the length of the prefix that the hop tag covers.
	HopTagged = offHopTag
	// PayloadTagged is the number of header bytes that the payload tag covers.
	PayloadTagged = 4 + (offPayloadTag - offESI)

	offObjectID = 40
)

// Type is the datagram's type, the low four bits of its first byte.
type Type uint8

// Types of SPEC section 4.2. Others are reserved and dropped.
const (
	Data      Type = 1 // one symbol of an object
	Echo      Type = 2 // header of the publisher's own datagram, as acknowledgement
	Heartbeat Type = 3 // newest sequence of a stream; keep-alive when sent by a peer
	Probe     Type = 4 // return-routability nonce, padded to MaxDatagram
	LinkHello Type = 5 // between RPs: their link is up
)

func (t Type) String() string {
	switch t {
	case Data:
		return "DATA"
	case Echo:
		return "ECHO"
	case Heartbeat:
		return "HEARTBEAT"
	case Probe:
		return "PROBE"
	case LinkHello:
		return "LINK_HELLO"
	}
	return fmt.Sprintf("type-%d", uint8(t))
}

// Flags of SPEC section 4.3. Undefined bits are zero when sent and a reason to
// drop when received.
const (
	FlagRepublished = 1 << 0 // the publisher sent the object to another RP before
	FlagReceipt     = 1 << 1 // the publisher asks who gets the object; on its last symbol

	flagsDefined = FlagRepublished | FlagReceipt
)

// Header is the decoded 64-byte header.
type Header struct {
	Type       Type
	Flags      uint8
	HopLimit   uint8       // RP-RP hops left
	Epoch      uint8       // epoch of the ingress RP's group key, mod 256
	Session    ids.Session // index that the receiver of this hop handed out
	Group      ids.Group
	Ingress    ids.Incarnation // incarnation of the ingress RP, 0 on the publisher's hop
	Sequence   uint64          // publisher's own count on its hop, then per (ingress RP, group)
	Handle     uint32          // names the publisher to the ingress RP alone
	ESI        uint16          // encoding symbol id, 0 <= ESI < N
	K          uint16          // source symbols of the object
	N          uint16          // source and repair symbols of the object
	PayloadLen uint16          // bytes of this symbol
	ObjectLen  uint32          // bytes of the whole object
	ObjectID   uint64          // first 8 bytes of keccak256(object), a claim until verified
	PayloadTag [8]byte
	HopTag     [8]byte
}

func (h *Header) String() string {
	return fmt.Sprintf("%v session=%08x group=%08x ingress=%08x seq=%d object=%016x esi=%d/%d/%d len=%d/%d",
		h.Type, h.Session, h.Group, h.Ingress, h.Sequence, h.ObjectID, h.ESI, h.K, h.N, h.PayloadLen, h.ObjectLen)
}

// SourceSymbols returns K for an object of n bytes: each source symbol but the
// last is full.
func SourceSymbols(n int) int {
	return (n + MaxPayload - 1) / MaxPayload
}

// Append appends the header's 64 bytes to b.
func (h *Header) Append(b []byte) []byte {
	b = append(b, Version<<4|byte(h.Type), h.Flags, h.HopLimit, h.Epoch)
	b = binary.BigEndian.AppendUint32(b, uint32(h.Session))
	b = binary.BigEndian.AppendUint32(b, uint32(h.Group))
	b = binary.BigEndian.AppendUint32(b, uint32(h.Ingress))
	b = binary.BigEndian.AppendUint64(b, h.Sequence)
	b = binary.BigEndian.AppendUint32(b, h.Handle)
	b = binary.BigEndian.AppendUint16(b, h.ESI)
	b = binary.BigEndian.AppendUint16(b, h.K)
	b = binary.BigEndian.AppendUint16(b, h.N)
	b = binary.BigEndian.AppendUint16(b, h.PayloadLen)
	b = binary.BigEndian.AppendUint32(b, h.ObjectLen)
	b = binary.BigEndian.AppendUint64(b, h.ObjectID)
	b = append(b, h.PayloadTag[:]...)
	return append(b, h.HopTag[:]...)
}

// Parse decodes a datagram and checks its form (SPEC section 4.4). The payload
// is a slice of b. Any verdict but Pass means that h and payload are unusable.
func Parse(b []byte) (h Header, payload []byte, v Verdict) {
	switch {
	case len(b) < HeaderSize:
		return h, nil, Truncated
	case len(b) > MaxDatagram:
		return h, nil, Oversized
	case b[0]>>4 != Version:
		return h, nil, BadVersion
	}
	h = Header{
		Type:       Type(b[0] & 15),
		Flags:      b[1],
		HopLimit:   b[2],
		Epoch:      b[3],
		Session:    ids.Session(binary.BigEndian.Uint32(b[offSession:])),
		Group:      ids.Group(binary.BigEndian.Uint32(b[offGroup:])),
		Ingress:    ids.Incarnation(binary.BigEndian.Uint32(b[offIngress:])),
		Sequence:   binary.BigEndian.Uint64(b[offSequence:]),
		Handle:     binary.BigEndian.Uint32(b[offHandle:]),
		ESI:        binary.BigEndian.Uint16(b[offESI:]),
		K:          binary.BigEndian.Uint16(b[30:]),
		N:          binary.BigEndian.Uint16(b[32:]),
		PayloadLen: binary.BigEndian.Uint16(b[34:]),
		ObjectLen:  binary.BigEndian.Uint32(b[36:]),
		ObjectID:   binary.BigEndian.Uint64(b[offObjectID:]),
		PayloadTag: [8]byte(b[offPayloadTag:]),
		HopTag:     [8]byte(b[offHopTag:]),
	}
	payload = b[HeaderSize:]
	return h, payload, h.check(len(payload))
}

// check is the part of Parse that depends on the type.
func (h *Header) check(payload int) Verdict {
	if h.Flags&^flagsDefined != 0 {
		return Malformed
	}
	switch h.Type {
	case Data:
		if int(h.PayloadLen) != payload || payload == 0 {
			return BadLength
		}
		if h.K == 0 || h.K > h.N || h.N > MaxSymbols || h.ESI >= h.N {
			return Malformed
		}
		if SourceSymbols(int(h.ObjectLen)) != int(h.K) || (h.ESI < h.K && payload != h.symbolLen()) {
			return Malformed
		}
	case Echo, Heartbeat, LinkHello:
		if payload != 0 {
			return BadLength
		}
	case Probe:
		if payload < NonceSize {
			return BadLength
		}
	default:
		return BadType
	}
	return Pass
}

// Stream returns the stream of a datagram that an ingress RP stamped.
func (h *Header) Stream() ids.Stream { return ids.Stream{Ingress: h.Ingress, Group: h.Group} }

// AsksReceipt reports whether a DATA asks who gets its object: only the last symbol can.
func (h *Header) AsksReceipt() bool { return h.Flags&FlagReceipt != 0 && h.ESI == h.N-1 }

// symbolLen returns the length of source symbol ESI: full, or the rest.
func (h *Header) symbolLen() int {
	if h.ESI+1 < h.K {
		return MaxPayload
	}
	return int(h.ObjectLen) - int(h.K-1)*MaxPayload
}

// SetPayloadTag and SetHopTag write a tag into an encoded datagram.
func SetPayloadTag(b []byte, tag [8]byte) { copy(b[offPayloadTag:offHopTag], tag[:]) }

// SetHopTag writes the tag of the hop into an encoded datagram.
func SetHopTag(b []byte, tag [8]byte) { copy(b[offHopTag:HeaderSize], tag[:]) }

// Stamp is what the ingress RP writes into a publisher's datagram (SPEC 5.4).
type Stamp struct {
	Ingress  ids.Incarnation
	Sequence uint64
	Handle   uint32
}

// SetStamp writes s and the initial hop limit into an encoded datagram.
func SetStamp(b []byte, s Stamp) {
	b[2] = InitialHopLimit
	binary.BigEndian.PutUint32(b[offIngress:], uint32(s.Ingress))
	binary.BigEndian.PutUint64(b[offSequence:], s.Sequence)
	binary.BigEndian.PutUint32(b[offHandle:], s.Handle)
}

// SetBeat writes the number of a HEARTBEAT into its header.
func SetBeat(b []byte, beat uint64) { binary.BigEndian.PutUint64(b[offObjectID:], beat) }

// SetHopLimit writes the RP-RP hops that are left into an encoded datagram.
func SetHopLimit(b []byte, hops uint8) { b[2] = hops }

// SetSession writes the next hop's session into an encoded datagram.
func SetSession(b []byte, session ids.Session) {
	binary.BigEndian.PutUint32(b[offSession:], uint32(session))
}

// NewProbe returns a PROBE of so many bytes, HeaderSize and NonceSize at least and MaxDatagram at most.
func NewProbe(nonce [NonceSize]byte, size int) ([]byte, error) {
	if size < HeaderSize+NonceSize || size > MaxDatagram {
		return nil, fmt.Errorf("probe of %d bytes, want %d to %d", size, HeaderSize+NonceSize, MaxDatagram)
	}
	h := Header{Type: Probe}
	return append(h.Append(make([]byte, 0, MaxDatagram)), nonce[:]...)[:size], nil
}

// NewLinkHello returns a LINK_HELLO on a session, without its hop tag: the sequence counts
// those of the session from 1, and the hello is for whoever keeps the link.
func NewLinkHello(session ids.Session, sequence uint64, hello [HelloSize]byte) (b [HeaderSize]byte) {
	SetType(b[:], LinkHello)
	SetSession(b[:], session)
	binary.BigEndian.PutUint64(b[offSequence:], sequence)
	copy(b[offESI:], hello[:])
	return b
}

// HelloOf returns the hello in an encoded LINK_HELLO.
func HelloOf(b []byte) [HelloSize]byte { return [HelloSize]byte(b[offESI:]) }

// MayAskReceipt reports whether an encoded datagram has the flag of those that ask. It
// is for who would parse all of them to find few.
func MayAskReceipt(b []byte) bool { return len(b) > 1 && b[1]&FlagReceipt != 0 }

// SetType rewrites the type of an encoded datagram (DATA to ECHO).
func SetType(b []byte, t Type) { b[0] = Version<<4 | byte(t) }

// TaggedPrefix appends the header bytes that the payload tag covers, at most
// PayloadTagged: of a HEARTBEAT the group, the ingress RP, the sequence and the object
// id, of others the group and everything from the ESI to the object id. The tag of DATA
// covers a payload, too, so that no message is one of both.
func TaggedPrefix(dst, b []byte) []byte {
	if Type(b[0]&15) == Heartbeat {
		dst = append(dst, b[offGroup:offHandle]...)
		return append(dst, b[offObjectID:offPayloadTag]...)
	}
	dst = append(dst, b[offGroup:offIngress]...)
	return append(dst, b[offESI:offPayloadTag]...)
}
