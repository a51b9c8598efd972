// SPDX-License-Identifier: LGPL-3.0-or-later

package rp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/ethereum/go-ethereum/log"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/p2p/nat"

	"github.com/ethmcast/mdcs/rp/meshside"
)

const (
	// dialTimeout bounds the TCP handshake with a neighbour.
	dialTimeout = 15 * time.Second

	// dialCourtesy is how much later the RP with the larger node id dials. Two
	// dials that cross would end each other, and devp2p tries again only after 35
	// seconds.
	dialCourtesy = 500 * time.Millisecond

	// maxHandshakes is the number of connections that may be in their handshake.
	maxHandshakes = 512

	// unlimitedPeers stands for no limit of sessions.
	unlimitedPeers = 1 << 20
)

var errLinked = errors.New("the neighbour has connected already")

// newServer returns the devp2p server with the two capabilities and nothing else:
// no discovery, dials to neighbours only.
func (r *RP) newServer() *p2p.Server {
	cfg := &r.cfg
	// Refused peers learn the reason by a Leave, so there is room for more
	// connections than sessions.
	peers := cfg.Limits.Sessions
	if peers == 0 {
		peers = unlimitedPeers
	}
	peers += peers/8 + 64
	n := len(cfg.Neighbours)
	if cfg.Discovery.finds() {
		n = max(n, maxNeighbours)
	}
	srv := &p2p.Server{Config: p2p.Config{
		PrivateKey:      cfg.PrivateKey,
		Name:            "mdcs-rpd",
		MaxPeers:        peers,
		MaxPendingPeers: maxHandshakes,
		NoDiscovery:     true,
		NoDial:          n == 0,
		StaticNodes:     cfg.Neighbours,
		TrustedNodes:    cfg.Neighbours,
		Protocols:       []p2p.Protocol{r.peers.Protocol(), r.mesh.Protocol()},
		ListenAddr:      netip.AddrPortFrom(cfg.Address, cfg.ControlPort).String(),
		NAT:             nat.ExtIP(cfg.Address.AsSlice()),
		Dialer: &dialer{
			self: r.self,
			mesh: r.mesh,
			net: net.Dialer{
				Timeout:   dialTimeout,
				LocalAddr: &net.TCPAddr{IP: cfg.Address.AsSlice()},
			},
		},
		Logger: log.NewLogger(p2pHandler{cfg.Log.Handler()}),
	}}
	if n > 0 {
		// devp2p gives 1/DialRatio of the slots to dials: exactly n of them here.
		srv.DialRatio = (peers+n-1)/n + 1
		srv.MaxPeers = n * srv.DialRatio
	}
	return srv
}

// startServer starts devp2p.
func (r *RP) startServer() (*p2p.Server, error) {
	srv := r.newServer()
	if err := srv.Start(); err != nil {
		srv.Stop()
		if local := srv.LocalNode(); local != nil {
			local.Database().Close() // which a server that did not start forgets
		}
		return nil, err
	}
	// devp2p puts the IPv4 loopback address into the node record, and prefers it
	// to an IPv6 loopback address.
	srv.LocalNode().SetFallbackIP(net.IPv4zero)
	return srv, nil
}

// dialer dials neighbours from the RP's own address.
type dialer struct {
	self enode.ID
	mesh *meshside.Server
	net  net.Dialer
}

// Dial implements p2p.NodeDialer.
func (d *dialer) Dial(ctx context.Context, n *enode.Node) (net.Conn, error) {
	id := n.ID()
	if bytes.Compare(d.self[:], id[:]) > 0 {
		select {
		case <-time.After(dialCourtesy):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if d.mesh.Connected(id) {
			return nil, errLinked
		}
	}
	addr, ok := n.TCPEndpoint()
	if !ok {
		return nil, fmt.Errorf("neighbour %v without tcp endpoint", id.TerminalString())
	}
	return d.net.DialContext(ctx, "tcp6", addr.String())
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
