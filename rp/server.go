// SPDX-License-Identifier: LGPL-3.0-or-later

package rp

import (
	"context"
	"crypto/ecdsa"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"github.com/ethereum/go-ethereum/event"
	"github.com/ethereum/go-ethereum/log"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/p2p/enr"
	"github.com/ethereum/go-ethereum/p2p/nat"
)

// unlimitedPeers stands for no limit of sessions.
const unlimitedPeers = 1 << 20

// Kinds of connections as p2p.Server.SetupConn takes them.
const (
	staticDialed = 1 << 1
	inbound      = 1 << 2
)

// serverConfig is what a server works with.
type serverConfig struct {
	Key       *ecdsa.PrivateKey
	Address   netip.Addr
	Port      uint16 // 0 for any
	Sessions  int    // of peers, 0 for no limit
	Per64     int    // sessions of a /64, 0 for no limit
	Allowed   []*enode.Node
	Protocols []p2p.Protocol
	Log       *slog.Logger
}

// server is devp2p with the capabilities of an RP and nothing else. It listens and
// dials by itself: devp2p would take a connection from one address every 30 seconds,
// and dial a node that is lost after 35.
type server struct {
	*p2p.Server
	listener *listener
	dialer   *dialer

	events event.Subscription
	wg     sync.WaitGroup // the goroutine that follows them
}

// startServer listens. Its dialer is told which connections to keep.
func startServer(cfg serverConfig) (*server, error) {
	tcp, err := (&net.ListenConfig{KeepAlive: -1}).Listen(context.Background(), "tcp6",
		netip.AddrPortFrom(cfg.Address, cfg.Port).String())
	if err != nil {
		return nil, err
	}
	// Refused peers learn the reason by a Leave, so there is room for more
	// connections than sessions.
	peers := cfg.Sessions
	if peers == 0 {
		peers = unlimitedPeers
	}
	peers += peers/8 + 64
	s := &server{Server: &p2p.Server{Config: p2p.Config{
		PrivateKey:   cfg.Key,
		Name:         "mdcs-rpd",
		MaxPeers:     peers,
		DialRatio:    peers, // one slot is for dials, of which devp2p makes none: it knows no node
		NoDiscovery:  true,
		TrustedNodes: cfg.Allowed,
		Protocols:    cfg.Protocols,
		NAT:          nat.ExtIP(cfg.Address.AsSlice()),
		Logger:       log.NewLogger(p2pHandler{cfg.Log.Handler()}),
	}}}
	if err := s.Start(); err != nil {
		tcp.Close()
		return nil, err
	}
	// devp2p puts the IPv4 loopback address into the node record, and prefers it
	// to an IPv6 loopback address.
	s.LocalNode().SetFallbackIP(net.IPv4zero)
	s.LocalNode().Set(enr.TCP(tcp.Addr().(*net.TCPAddr).Port))

	allowed := make(map[netip.Addr]bool)
	for _, n := range cfg.Allowed {
		allowed[n.IPAddr()] = true
	}
	own := &net.Dialer{LocalAddr: &net.TCPAddr{IP: cfg.Address.AsSlice()}}
	s.dialer = newDialer(dialerConfig{
		Self: s.LocalNode().ID(),
		Dial: func(ctx context.Context, n *enode.Node) (net.Conn, error) {
			return own.DialContext(ctx, "tcp6", netip.AddrPortFrom(n.IPAddr(), uint16(n.TCP())).String())
		},
		Setup: func(conn net.Conn, n *enode.Node) error { return s.SetupConn(conn, staticDialed, n) },
		Log:   cfg.Log,
	})
	events := make(chan *p2p.PeerEvent, 64)
	s.events = s.SubscribeEvents(events)
	s.wg.Go(func() { s.follow(events) })
	s.listener = startListener(tcp, listenerConfig{
		Allowed: func(addr netip.Addr) bool { return allowed[addr] },
		Setup:   func(conn net.Conn) error { return s.SetupConn(conn, inbound, nil) },
		Per64:   cfg.Per64,
		Log:     cfg.Log,
	})
	return s, nil
}

// follow tells the dialer which connections stand.
func (s *server) follow(events <-chan *p2p.PeerEvent) {
	for {
		select {
		case e := <-events:
			switch e.Type {
			case p2p.PeerEventTypeAdd:
				s.dialer.opened(e.Peer)
			case p2p.PeerEventTypeDrop:
				s.dialer.closed(e.Peer)
			}
		case <-s.events.Err():
			return
		}
	}
}

// close makes no more connections, and leaves those alone that stand.
func (s *server) close() {
	s.listener.stop()
	s.dialer.stop()
}

// stop ends all connections, and returns when nothing runs any more. It follows close.
func (s *server) stop() {
	s.Server.Stop()
	s.events.Unsubscribe()
	s.wg.Wait()
}

// p2pHandler lets the warnings of devp2p pass, and the rest when debugging: at the
// level of information it speaks of dials that an RP does not make.
type p2pHandler struct{ slog.Handler }

// Enabled implements slog.Handler.
func (h p2pHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.Handler.Enabled(ctx, level) && (level >= slog.LevelWarn || h.Handler.Enabled(ctx, slog.LevelDebug))
}

// WithAttrs implements slog.Handler.
func (h p2pHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return p2pHandler{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h p2pHandler) WithGroup(name string) slog.Handler { return p2pHandler{h.Handler.WithGroup(name)} }
