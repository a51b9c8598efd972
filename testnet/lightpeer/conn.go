// SPDX-License-Identifier: LGPL-3.0-or-later

package lightpeer

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/p2p/rlpx"
	"github.com/ethereum/go-ethereum/rlp"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// Times of devp2p, as geth has them.
const (
	dialTimeout      = 5 * time.Second
	handshakeTimeout = 5 * time.Second
	readTimeout      = 30 * time.Second
	writeTimeout     = 5 * time.Second // shorter: a peer that waits holds up others
	pingInterval     = 15 * time.Second
)

// Messages of devp2p itself. Those of the first capability follow.
const (
	helloMsg      = 0x00
	disconnectMsg = 0x01
	pingMsg       = 0x02
	pongMsg       = 0x03
	capabilityMsg = 0x10
)

// devp2pVersion is the first one that compresses messages.
const devp2pVersion = 5

// hello is devp2p's first message.
type hello struct {
	Version    uint64
	Name       string
	Caps       []p2p.Cap
	ListenPort uint64
	ID         []byte         // public key without its first byte
	Rest       []rlp.RawValue `rlp:"tail"`
}

// conn is a devp2p connection with mdcs/1 and nothing else.
type conn struct {
	rlpx *rlpx.Conn
}

// connect dials a node from an address and shakes hands. in opens the socket.
func connect(ctx context.Context, in func(func() error) error, key *ecdsa.PrivateKey, from netip.Addr, to *enode.Node, sent, received *atomic.Uint64) (*conn, error) {
	dialer := net.Dialer{
		Timeout:   dialTimeout,
		KeepAlive: -1,
		LocalAddr: &net.TCPAddr{IP: from.AsSlice()},
		Control:   foreignAddress,
	}
	addr := netip.AddrPortFrom(to.IPAddr(), uint16(to.TCP()))
	var fd net.Conn
	err := in(func() (err error) {
		fd, err = dialer.DialContext(ctx, "tcp6", addr.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	c := &conn{rlpx: rlpx.NewConn(&meter{fd, sent, received}, to.Pubkey())}
	stop := context.AfterFunc(ctx, func() { fd.Close() })
	defer stop()
	if err := c.handshake(fd, key); err != nil {
		fd.Close()
		return nil, err
	}
	return c, nil
}

// foreignAddress lets a socket have an address that is no interface's.
func foreignAddress(_, _ string, raw syscall.RawConn) error {
	var err error
	control := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
	})
	return errors.Join(control, err)
}

func (c *conn) handshake(fd net.Conn, key *ecdsa.PrivateKey) error {
	if err := fd.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	if _, err := c.rlpx.Handshake(key); err != nil {
		return fmt.Errorf("rlpx: %w", err)
	}
	own, err := rlp.EncodeToBytes(&hello{
		Version: devp2pVersion,
		Name:    "light-peer",
		Caps:    []p2p.Cap{{Name: proto.Name, Version: proto.Version}},
		ID:      crypto.FromECDSAPub(&key.PublicKey)[1:],
	})
	if err != nil {
		return err
	}
	if _, err := c.rlpx.Write(helloMsg, own); err != nil {
		return err
	}
	code, payload, _, err := c.rlpx.Read()
	switch {
	case err != nil:
		return fmt.Errorf("hello: %w", err)
	case code == disconnectMsg:
		return disconnected(payload)
	case code != helloMsg:
		return fmt.Errorf("message 0x%02x where hello was expected", code)
	}
	var theirs hello
	if err := rlp.DecodeBytes(payload, &theirs); err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	if !slices.Contains(theirs.Caps, p2p.Cap{Name: proto.Name, Version: proto.Version}) {
		return fmt.Errorf("%s does not speak %s/%d", theirs.Name, proto.Name, proto.Version)
	}
	c.rlpx.SetSnappy(theirs.Version >= devp2pVersion)
	return fd.SetDeadline(time.Time{})
}

// disconnected is the error that stands for a Disconnect.
func disconnected(payload []byte) error {
	var reason []p2p.DiscReason
	if rlp.DecodeBytes(payload, &reason) != nil || len(reason) == 0 {
		return errors.New("disconnected")
	}
	return fmt.Errorf("disconnected: %w", reason[0])
}

// read returns the next message. Its payload is valid until the next call.
func (c *conn) read() (code uint64, payload []byte, err error) {
	if err := c.rlpx.SetReadDeadline(time.Now().Add(readTimeout)); err != nil {
		return 0, nil, err
	}
	code, payload, _, err = c.rlpx.Read()
	return code, payload, err
}

// write sends a message.
func (c *conn) write(code uint64, payload []byte) error {
	if err := c.rlpx.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := c.rlpx.Write(code, payload)
	return err
}

func (c *conn) close() { c.rlpx.Close() }

// meter counts the bytes of a connection.
type meter struct {
	net.Conn
	sent, received *atomic.Uint64
}

func (m *meter) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	m.received.Add(uint64(n))
	return n, err
}

func (m *meter) Write(b []byte) (int, error) {
	n, err := m.Conn.Write(b)
	m.sent.Add(uint64(n))
	return n, err
}
