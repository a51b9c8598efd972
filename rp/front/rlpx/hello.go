// SPDX-License-Identifier: LGPL-3.0-or-later

package rlpx

import (
	"bytes"
	"crypto/ecdsa"
	"fmt"
	"io"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/rlp"
)

// Codes of the messages of devp2p itself. Those of the first capability follow.
const (
	HelloMsg      = 0x00
	DisconnectMsg = 0x01
	PingMsg       = 0x02
	PongMsg       = 0x03
	BaseLength    = 0x10
)

// Version is the version of devp2p that Hello names: the first one that compresses.
const Version = 5

// Times of devp2p, as geth has them.
const (
	HandshakeTimeout = 5 * time.Second  // for the handshake and Hello
	ReadTimeout      = 30 * time.Second // without a message
	WriteTimeout     = 5 * time.Second  // geth's is longer: a slow reader holds up others
	PingInterval     = 15 * time.Second // of silence
)

// Hello is the first message of both sides.
type Hello struct {
	Version    uint64
	Name       string
	Caps       []p2p.Cap
	ListenPort uint64
	ID         []byte         // public key, 64 bytes
	Rest       []rlp.RawValue `rlp:"tail"`
}

// NewHello returns the Hello of a node.
func NewHello(key *ecdsa.PrivateKey, name string, caps []p2p.Cap) *Hello {
	id := keyBytes(key)
	return &Hello{Version: Version, Name: name, Caps: caps, ID: id[:]}
}

// ParseHello decodes and checks the Hello of the node that has a key. Errors that
// devp2p has a reason for are *p2p.DiscReason or wrap one.
func ParseHello(payload []byte, key *ecdsa.PublicKey) (*Hello, error) {
	h := new(Hello)
	if err := rlp.DecodeBytes(payload, h); err != nil {
		return nil, fmt.Errorf("hello: %w: %w", p2p.DiscProtocolError, err)
	}
	if !bytes.Equal(h.ID, crypto.FromECDSAPub(key)[1:]) {
		return nil, fmt.Errorf("hello: %w", p2p.DiscUnexpectedIdentity)
	}
	return h, nil
}

// WriteHello sends a Hello.
func (c *Conn) WriteHello(w io.Writer, h *Hello) error {
	payload, err := rlp.EncodeToBytes(h)
	if err != nil {
		return err
	}
	return c.Write(w, HelloMsg, payload)
}

// ReadHello waits for the Hello of the other side, and compresses from then on if it
// can. A Disconnect in its place is returned as p2p.DiscReason.
func (c *Conn) ReadHello(r io.Reader) (*Hello, error) {
	code, payload, err := c.Read(r, MaxBase, nil)
	switch {
	case err != nil:
		return nil, fmt.Errorf("hello: %w", err)
	case code == DisconnectMsg:
		return nil, ParseDisconnect(payload)
	case code != HelloMsg:
		return nil, fmt.Errorf("%w: message 0x%02x where hello was expected", p2p.DiscProtocolError, code)
	}
	h, err := ParseHello(payload, c.remote)
	if err == nil {
		c.SetSnappy(h.Version >= Version)
	}
	return h, err
}

// Disconnect returns the payload of a Disconnect.
func Disconnect(reason p2p.DiscReason) []byte {
	payload, _ := rlp.EncodeToBytes([]p2p.DiscReason{reason}) // a byte always encodes
	return payload
}

// ParseDisconnect returns the reason of a Disconnect, which is a list with the reason or,
// of some clients, the reason alone.
func ParseDisconnect(payload []byte) p2p.DiscReason {
	var reasons []p2p.DiscReason
	if rlp.DecodeBytes(payload, &reasons) == nil && len(reasons) > 0 {
		return reasons[0]
	}
	var reason p2p.DiscReason
	if rlp.DecodeBytes(payload, &reason) == nil {
		return reason
	}
	return p2p.DiscInvalid
}
