// SPDX-License-Identifier: LGPL-3.0-or-later

package rp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/ethereum/go-ethereum/log"
	"github.com/ethereum/go-ethereum/p2p/discover"
	"github.com/ethereum/go-ethereum/p2p/dnsdisc"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/p2p/enr"

	"github.com/ethmcast/mdcs/ethmcast/discovery"
)

// Discovery says how an RP is found and measured, and how it finds others (SPEC
// section 13).
type Discovery struct {
	Port      uint16        // UDP port of discv5, 0 for the number of the control port
	Trees     []string      // enrtree:// URLs of RPs that are neighbours
	Walk      bool          // take part in the DHT, and look there for RPs
	Bootnodes []*enode.Node // by which Walk begins
	Allow     []enode.ID    // that are neighbours when the walk finds them
	Open      bool          // so are all others

	Resolver dnsdisc.Resolver // nil for that of the system
}

// finds reports whether neighbours are looked for.
func (d *Discovery) finds() bool { return d.Walk || len(d.Trees) > 0 }

func (c *Config) discoveryPort() uint16 {
	if c.Discovery.Port != 0 {
		return c.Discovery.Port
	}
	return c.ControlPort
}

// entry is what the record says of an RP.
func (c *Config) entry(dataPort uint16) discovery.Entry {
	return discovery.Entry{
		NetworkID: c.NetworkID,
		Genesis:   [4]byte(c.Genesis[:]),
		DataPort:  dataPort,
		Operator:  c.Operator,
	}
}

// Record signs the node record that an RP of this configuration has when it runs, for
// a tree in DNS. Of the configuration it needs key, address, ports (not 0), chain and
// operator. Its sequence number is the time in milliseconds.
func Record(cfg Config, now time.Time) (*enode.Node, error) {
	var record enr.Record
	record.Set(enr.IPv6(cfg.Address.AsSlice()))
	record.Set(enr.TCP(cfg.ControlPort))
	record.Set(enr.UDP(cfg.discoveryPort()))
	record.Set(cfg.entry(cfg.DataPort))
	record.SetSeq(uint64(now.UnixMilli()))
	if err := enode.SignV4(&record, cfg.PrivateKey); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	return enode.New(enode.ValidSchemes, &record)
}

// listenDiscovery answers those who measure.
func (r *RP) listenDiscovery() error {
	cfg := &r.cfg
	conn, err := net.ListenUDP("udp6", &net.UDPAddr{IP: cfg.Address.AsSlice(), Port: int(cfg.discoveryPort())})
	if err != nil {
		return err
	}
	local := r.server.local
	local.SetFallbackUDP(conn.LocalAddr().(*net.UDPAddr).Port)
	local.Set(cfg.entry(r.engine.Addr().Port()))
	disc := discover.Config{PrivateKey: cfg.PrivateKey, Log: r.discoveryLog()}
	if cfg.Discovery.Walk {
		disc.Bootnodes = cfg.Discovery.Bootnodes
	}
	if r.disc, err = discover.ListenV5(conn, local, disc); err != nil {
		conn.Close()
		return err
	}
	r.disc.RegisterTalkHandler(discovery.Protocol, discovery.Handler(r.room))
	return nil
}

func (r *RP) discoveryLog() log.Logger { return log.NewLogger(quietHandler{r.cfg.Log.Handler()}) }

// quietHandler lets the warnings of discv5 pass, and the rest when debugging.
type quietHandler struct{ slog.Handler }

// Enabled implements slog.Handler.
func (h quietHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.Handler.Enabled(ctx, level) && (level >= slog.LevelWarn || h.Handler.Enabled(ctx, slog.LevelDebug))
}

// WithAttrs implements slog.Handler.
func (h quietHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quietHandler{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h quietHandler) WithGroup(name string) slog.Handler {
	return quietHandler{h.Handler.WithGroup(name)}
}

// find looks for neighbours if it is to.
func (r *RP) find() error {
	cfg := &r.cfg
	if !cfg.Discovery.finds() {
		return nil
	}
	find := discovery.Config{
		Self:      r.self,
		NetworkID: cfg.NetworkID,
		Genesis:   cfg.Genesis,
		Trees:     cfg.Discovery.Trees,
		Allow:     cfg.Discovery.Allow,
		Open:      cfg.Discovery.Open,
		Talk:      r.disc,
		Resolver:  cfg.Discovery.Resolver,
		Found:     r.found,
		Log:       r.discoveryLog(),
	}
	if cfg.Discovery.Walk {
		find.Walk = r.disc.RandomNodes()
	}
	finder, err := discovery.New(find)
	if err != nil {
		return err
	}
	if err := finder.Start(); err != nil {
		return err
	}
	r.finder = finder
	return nil
}

// room is what a peer is told that asks whether to join here.
func (r *RP) room() byte {
	if r.state.Load() != serving || r.peers.Draining() || r.peers.Room() != nil {
		return 0
	}
	return discovery.Room(r.members.Sessions(), r.Settings().Limits.Sessions)
}

// found allows the configured neighbours and those that were found, and no others. Those
// that nobody trusts may link, but count for the limits of the front.
func (r *RP) found(candidates []discovery.Candidate, _ func(enode.ID) bool) {
	r.settings.Lock()
	r.foundRPs = candidates
	r.settings.Unlock()
	r.allow()
}

// stopDiscovery undoes what listenDiscovery and find did, as far as they came.
func (r *RP) stopDiscovery() {
	if r.finder != nil {
		r.finder.Stop()
	}
	if r.disc != nil {
		r.disc.Close()
	}
}
