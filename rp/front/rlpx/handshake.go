// SPDX-License-Identifier: LGPL-3.0-or-later

package rlpx

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/crypto/ecies"
	"github.com/ethereum/go-ethereum/rlp"
)

// handshakeVersion is that of auth and ack (EIP-8).
const handshakeVersion = 4

const (
	nonceSize = 32
	keySize   = 64 // of a public key, without the byte that says so
	shareSize = 16 // of half a shared secret: ECIES of devp2p makes keys of two

	// overhead is what ECIES adds: an ephemeral key, an IV, and a MAC.
	overhead = 65 + 16 + 32

	// A packet is padded by so many zeroes, so that its length says nothing and is
	// larger than that of the packets before EIP-8.
	minPadding, padding = 100, 100
)

// auth is the packet of the initiator. More elements may follow (EIP-8).
type auth struct {
	Signature [crypto.SignatureLength]byte
	Key       [keySize]byte
	Nonce     [nonceSize]byte
	Version   uint64
	Rest      []rlp.RawValue `rlp:"tail"`
}

// ack is the answer of the recipient.
type ack struct {
	Key     [keySize]byte // ephemeral
	Nonce   [nonceSize]byte
	Version uint64
	Rest    []rlp.RawValue `rlp:"tail"`
}

// Accept runs the handshake as recipient. Compute runs what costs CPU time, some 0.5 ms,
// as soon as the packet of the other side is there; begun is called when its first bytes
// are. Both may be nil.
func Accept(rw io.ReadWriter, key *ecdsa.PrivateKey, begun func(), compute func(func())) (*Conn, error) {
	packet, err := readPacket(rw, begun)
	if err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	var c *Conn
	var answer []byte
	if compute == nil {
		compute = func(f func()) { f() }
	}
	compute(func() { c, answer, err = accept(packet, key) })
	if err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	if _, err := rw.Write(answer); err != nil {
		return nil, err
	}
	return c, nil
}

// accept computes the connection and the ack from an auth.
func accept(packet []byte, key *ecdsa.PrivateKey) (*Conn, []byte, error) {
	var m auth
	if err := open(packet, key, &m); err != nil {
		return nil, nil, err
	}
	remote, err := parseKey(m.Key[:])
	if err != nil {
		return nil, nil, err
	}
	static, err := shared(key, remote)
	if err != nil {
		return nil, nil, err
	}
	subtle.XORBytes(static, static, m.Nonce[:])
	signer, err := crypto.SigToPub(static, m.Signature[:])
	if err != nil {
		return nil, nil, fmt.Errorf("signature: %w", err)
	}
	own, err := crypto.GenerateKey()
	if err != nil {
		return nil, nil, err
	}
	answer := ack{Key: keyBytes(own), Version: handshakeVersion}
	if _, err := rand.Read(answer.Nonce[:]); err != nil {
		return nil, nil, err
	}
	sealed, err := seal(&answer, remote)
	if err != nil {
		return nil, nil, err
	}
	c, err := agree(own, signer, remote, m.Nonce, answer.Nonce, packet, sealed, false)
	return c, sealed, err
}

// Dial runs the handshake as initiator, with the node that has a key.
func Dial(rw io.ReadWriter, key *ecdsa.PrivateKey, remote *ecdsa.PublicKey) (*Conn, error) {
	own, err := crypto.GenerateKey()
	if err != nil {
		return nil, err
	}
	m := auth{Key: keyBytes(key), Version: handshakeVersion}

	if _, err := rand.Read(m.Nonce[:]); err != nil {
		return nil, err
	}
	static, err := shared(key, remote)
	if err != nil {
		return nil, err
	}
	subtle.XORBytes(static, static, m.Nonce[:])
	signature, err := crypto.Sign(static, own)
	if err != nil {
		return nil, err
	}
	copy(m.Signature[:], signature)
	sealed, err := seal(&m, remote)
	if err != nil {
		return nil, err
	}
	if _, err := rw.Write(sealed); err != nil {
		return nil, err
	}
	packet, err := readPacket(rw, nil)
	if err != nil {
		return nil, fmt.Errorf("ack: %w", err)
	}
	var answer ack
	if err := open(packet, key, &answer); err != nil {
		return nil, fmt.Errorf("ack: %w", err)
	}
	theirs, err := parseKey(answer.Key[:])
	if err != nil {
		return nil, fmt.Errorf("ack: %w", err)
	}
	return agree(own, theirs, remote, m.Nonce, answer.Nonce, sealed, packet, true)
}

// agree derives the secrets from the ephemeral keys, the nonces (of initiator and
// recipient) and the packets auth and ack.
func agree(own *ecdsa.PrivateKey, theirs, remote *ecdsa.PublicKey, initiator, recipient [nonceSize]byte,
	auth, ack []byte, dialled bool) (*Conn, error) {
	ephemeral, err := shared(own, theirs)
	if err != nil {
		return nil, err
	}
	session := crypto.Keccak256(ephemeral, crypto.Keccak256(recipient[:], initiator[:]))
	s := secrets{aes: crypto.Keccak256(ephemeral, session)}
	s.mac = crypto.Keccak256(ephemeral, s.aes)
	running := func(nonce [nonceSize]byte, packet []byte) hash.Hash {
		subtle.XORBytes(nonce[:], nonce[:], s.mac)
		h := crypto.NewKeccakState()
		h.Write(nonce[:])
		h.Write(packet)
		return h
	}
	s.out, s.in = running(initiator, ack), running(recipient, auth)
	if dialled {
		s.out, s.in = s.in, s.out
	}
	return newConn(remote, s)
}

// readPacket returns a packet with its size.
func readPacket(r io.Reader, begun func()) ([]byte, error) {
	var prefix [2]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint16(prefix[:]))
	if size > MaxBase {
		return nil, &SizeError{size, MaxBase}
	}
	if begun != nil {
		begun()
	}
	packet := make([]byte, len(prefix)+size)
	copy(packet, prefix[:])
	_, err := io.ReadFull(r, packet[len(prefix):])
	return packet, unexpected(err)
}

// open decrypts and decodes a packet; bytes after the list are padding.
func open(packet []byte, key *ecdsa.PrivateKey, m any) error {
	plain, err := ecies.ImportECDSA(key).Decrypt(packet[2:], nil, packet[:2])
	if err != nil {
		return err
	}
	_, _, rest, err := rlp.Split(plain)
	if err != nil {
		return err
	}
	return rlp.DecodeBytes(plain[:len(plain)-len(rest)], m)
}

// seal encodes, pads and encrypts a packet.
func seal(m any, to *ecdsa.PublicKey) ([]byte, error) {
	plain, err := rlp.EncodeToBytes(m)
	if err != nil {
		return nil, err
	}
	var random [1]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, err
	}
	plain = append(plain, make([]byte, minPadding+int(random[0])%padding)...)
	prefix := binary.BigEndian.AppendUint16(nil, uint16(len(plain)+overhead))
	sealed, err := ecies.Encrypt(rand.Reader, ecies.ImportECDSAPublic(to), plain, nil, prefix)
	return append(prefix, sealed...), err
}

// shared returns the secret that two key pairs have in common.
func shared(key *ecdsa.PrivateKey, other *ecdsa.PublicKey) ([]byte, error) {
	return ecies.ImportECDSA(key).GenerateShared(ecies.ImportECDSAPublic(other), shareSize, shareSize)
}

// parseKey returns the public key of 64 bytes, if it is one.
func parseKey(b []byte) (*ecdsa.PublicKey, error) {
	key, err := crypto.UnmarshalPubkey(append([]byte{4}, b...))
	if err != nil {
		return nil, errors.New("not a public key")
	}
	return key, nil
}

func keyBytes(key *ecdsa.PrivateKey) (b [keySize]byte) {
	copy(b[:], crypto.FromECDSAPub(&key.PublicKey)[1:])
	return b
}
