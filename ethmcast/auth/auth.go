// SPDX-License-Identifier: LGPL-3.0-or-later

// Package auth is the authentication of mDCS datagrams (SPEC section 5): keys and
// their derivation, the payload tag, the hop tag, and the sequence window.
//
// Tags are SipHash-2-4, stored as the 8 bytes in the order of its reference
// implementation (little-endian). They authenticate against outsiders; members
// and RPs share the keys, so only a verified object is believed.
package auth

import (
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"

	"github.com/dchest/siphash"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// KeySize and ShareSize are in bytes.
const (
	KeySize   = 16
	ShareSize = 32
)

// Key is a SipHash key, of a hop or of a group.
type Key [KeySize]byte

// Share is one side's random contribution to the keys of a hop.
type Share [ShareSize]byte

func (k *Key) halves() (k0, k1 uint64) {
	return binary.LittleEndian.Uint64(k[:8]), binary.LittleEndian.Uint64(k[8:])
}

func (k *Key) tag(b []byte) (tag [8]byte) {
	k0, k1 := k.halves()
	binary.LittleEndian.PutUint64(tag[:], siphash.Hash(k0, k1, b))
	return tag
}

// HopTag returns the tag over the first 56 bytes of an encoded datagram, which
// must hold a whole header.
func (k *Key) HopTag(b []byte) [8]byte { return k.tag(b[:wire.HopTagged]) }

// CheckHopTag reports whether an encoded datagram carries the right hop tag.
func (k *Key) CheckHopTag(b []byte, tag [8]byte) bool { return equal(k.HopTag(b), tag) }

// PayloadTag returns the tag by a group key over what a DATA or HEARTBEAT says
// (SPEC 5.3): the header bytes of wire.TaggedPrefix and the payload of an encoded
// datagram, which must hold a whole header.
func (k *Key) PayloadTag(b []byte) [8]byte {
	var buf [wire.PayloadTagged + wire.MaxPayload]byte
	return k.tag(append(wire.TaggedPrefix(buf[:0], b), b[wire.HeaderSize:]...))
}

// CheckPayloadTag reports whether an encoded datagram carries the right payload tag.
func (k *Key) CheckPayloadTag(b []byte, tag [8]byte) bool { return equal(k.PayloadTag(b), tag) }

func equal(a, b [8]byte) bool { return subtle.ConstantTimeCompare(a[:], b[:]) == 1 }

// HopKeys derives the two keys of a hop between self and remote, both devp2p
// node ids, from both sides' shares (SPEC 5.2):
//
//	secret = HKDF-Extract(SHA-256, ikm = share(low) || share(high), salt = "mdcs/1 hop")
//	key    = HKDF-Expand(secret, "mdcs/1 key" || sender || receiver, 16)
//
// where low is the smaller node id. send is for datagrams from self to remote.
func HopKeys(self, remote [32]byte, own, theirs Share) (send, receive Key) {
	ikm := make([]byte, 0, 2*ShareSize)
	if string(self[:]) < string(remote[:]) {
		ikm = append(append(ikm, own[:]...), theirs[:]...)
	} else {
		ikm = append(append(ikm, theirs[:]...), own[:]...)
	}
	secret, err := hkdf.Extract(sha256.New, ikm, []byte("mdcs/1 hop"))
	if err != nil { // only when FIPS mode refuses the key length, which is constant
		panic(err)
	}
	return expand(secret, self, remote), expand(secret, remote, self)
}

func expand(secret []byte, from, to [32]byte) (k Key) {
	out, err := hkdf.Expand(sha256.New, secret, "mdcs/1 key"+string(from[:])+string(to[:]), KeySize)
	if err != nil {
		panic(err)
	}
	return Key(out)
}

// Handle returns the publisher handle of an object (SPEC 5.4): a PRF of the
// ingress RP's own secret, so that only it can tell which of its sessions published.
func (k *Key) Handle(session ids.Session, objectID uint64) uint32 {
	var b [12]byte
	binary.BigEndian.PutUint32(b[:], uint32(session))
	binary.BigEndian.PutUint64(b[4:], objectID)
	k0, k1 := k.halves()
	return uint32(siphash.Hash(k0, k1, b[:]))
}
