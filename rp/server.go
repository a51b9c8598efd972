// SPDX-License-Identifier: LGPL-3.0-or-later

package rp

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/p2p/enr"

	"github.com/ethmcast/mdcs/rp/front"
)

// serverConfig is what a server works with.
type serverConfig struct {
	Key       *ecdsa.PrivateKey
	Address   netip.Addr
	Port      uint16 // 0 for any
	Limits    front.Limits
	Trusted   []*enode.Node // the other RPs, at first
	Protocols []front.Protocol
	Banned    func(netip.Addr) bool // addresses that may not come in
	Log       *slog.Logger
}

// server is the control port: the front, the connections that this RP makes itself, and
// the node record.
type server struct {
	*front.Server
	dialer *dialer
	db     *enode.DB
	local  *enode.LocalNode
}

// startServer listens. Its dialer is told which connections to keep.
func startServer(cfg serverConfig) (*server, error) {
	tcp, err := (&net.ListenConfig{KeepAlive: -1}).Listen(context.Background(), "tcp6",
		netip.AddrPortFrom(cfg.Address, cfg.Port).String())
	if err != nil {
		return nil, err
	}
	db, err := enode.OpenDB("") // in memory
	if err != nil {
		tcp.Close()
		return nil, fmt.Errorf("node record: %w", err)
	}
	s := &server{db: db, local: enode.NewLocalNode(db, cfg.Key)}
	s.local.SetStaticIP(cfg.Address.AsSlice())
	s.local.Set(enr.TCP(tcp.Addr().(*net.TCPAddr).Port))

	own := &net.Dialer{LocalAddr: &net.TCPAddr{IP: cfg.Address.AsSlice()}, KeepAlive: -1}
	s.dialer = newDialer(dialerConfig{
		Self: s.local.ID(),
		Dial: func(ctx context.Context, n *enode.Node) (net.Conn, error) {
			return own.DialContext(ctx, "tcp6", netip.AddrPortFrom(n.IPAddr(), uint16(n.TCP())).String())
		},
		Setup: func(conn net.Conn, n *enode.Node) error { return s.Dial(conn, n) },
		Log:   cfg.Log,
	})
	s.Server = front.New(front.Config{
		Key:       cfg.Key,
		Name:      "mdcs-rpd",
		Listener:  tcp,
		Protocols: cfg.Protocols,
		Banned:    cfg.Banned,
		Trusted:   cfg.Trusted,
		Limits:    cfg.Limits,
		Opened:    s.dialer.opened,
		Closed:    s.dialer.closed,
		Log:       cfg.Log,
	})
	s.Start()
	return s, nil
}

// self returns the node record.
func (s *server) self() *enode.Node { return s.local.Node() }

// close makes no more connections, and leaves those alone that stand.
func (s *server) close() {
	s.Close()
	s.dialer.stop()
}

// stop ends all connections, and returns when nothing runs any more. It follows close.
func (s *server) stop() {
	s.Stop()
	s.db.Close()
}
