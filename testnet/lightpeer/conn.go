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

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/front/rlpx"
)

// dialTimeout is that of geth for the TCP handshake.
const dialTimeout = 5 * time.Second

// capabilityMsg is the code of the first message of the capability.
const capabilityMsg = rlpx.BaseLength

// conn is a devp2p connection with mdcs/1 and nothing else.
type conn struct {
	fd   net.Conn
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
	c := &conn{fd: &meter{fd, sent, received}}
	stop := context.AfterFunc(ctx, func() { fd.Close() })
	defer stop()
	if err := c.handshake(key, to.Pubkey()); err != nil {
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

func (c *conn) handshake(key *ecdsa.PrivateKey, to *ecdsa.PublicKey) (err error) {
	if err := c.fd.SetDeadline(time.Now().Add(rlpx.HandshakeTimeout)); err != nil {
		return err
	}
	if c.rlpx, err = rlpx.Dial(c.fd, key, to); err != nil {
		return fmt.Errorf("rlpx: %w", err)
	}
	own := p2p.Cap{Name: proto.Name, Version: proto.Version}
	if err := c.rlpx.WriteHello(c.fd, rlpx.NewHello(key, "light-peer", []p2p.Cap{own})); err != nil {
		return err
	}
	theirs, err := c.rlpx.ReadHello(c.fd)
	if err != nil {
		return err
	}
	if !slices.Contains(theirs.Caps, own) {
		return fmt.Errorf("%s does not speak %v", theirs.Name, own)
	}
	return c.fd.SetDeadline(time.Time{})
}

// read returns the next message.
func (c *conn) read() (code uint64, payload []byte, err error) {
	if err := c.fd.SetReadDeadline(time.Now().Add(rlpx.ReadTimeout)); err != nil {
		return 0, nil, err
	}
	return c.rlpx.Read(c.fd, proto.MaxMessage, nil)
}

// write sends a message.
func (c *conn) write(code uint64, payload []byte) error {
	if err := c.fd.SetWriteDeadline(time.Now().Add(rlpx.WriteTimeout)); err != nil {
		return err
	}
	return c.rlpx.Write(c.fd, code, payload)
}

func (c *conn) close() { c.fd.Close() }

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
