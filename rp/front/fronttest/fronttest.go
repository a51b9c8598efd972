// SPDX-License-Identifier: LGPL-3.0-or-later

// Package fronttest has connections for the tests of capabilities.
package fronttest

import (
	"bytes"
	"io"
	"net/netip"
	"sync/atomic"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/rp/front"
)

// Conn is a connection over what a test reads and writes at its other end.
type Conn struct {
	Node    enode.ID
	Remote  netip.Addr
	RW      p2p.MsgReadWriter
	Session atomic.Bool // as SetSession has it
}

var _ front.Conn = (*Conn)(nil)

// ID implements front.Conn.
func (c *Conn) ID() enode.ID { return c.Node }

// Addr implements front.Conn.
func (c *Conn) Addr() netip.Addr { return c.Remote }

// ReadMsg implements front.Conn. It has no limit of size.
func (c *Conn) ReadMsg() (code uint64, payload []byte, err error) {
	msg, err := c.RW.ReadMsg()
	if err != nil {
		return 0, nil, err
	}
	payload, err = io.ReadAll(msg.Payload)
	return msg.Code, payload, err
}

// WriteMsg implements front.Conn.
func (c *Conn) WriteMsg(code uint64, payload []byte) error {
	return c.RW.WriteMsg(p2p.Msg{Code: code, Size: uint32(len(payload)), Payload: bytes.NewReader(payload)})
}

// SetSession implements front.Conn.
func (c *Conn) SetSession(on bool) { c.Session.Store(on) }
