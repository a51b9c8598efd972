// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/config"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp"
	"github.com/ethmcast/mdcs/rp/host"
	"github.com/ethmcast/mdcs/rp/membership"
)

// probeWindow is the time in which each session that a /64 may have can be probed
// once, with all its probes.
const probeWindow = 10 * time.Second

// newRP makes the replication point of a configuration.
func newRP(cfg *config.Config, log *slog.Logger) (*rp.RP, error) {
	c, err := rpConfig(cfg, log)
	if err != nil {
		return nil, err
	}
	return rp.New(*c)
}

// rpConfig is a configuration as the library has it. It makes the node key when that is missing.
func rpConfig(cfg *config.Config, log *slog.Logger) (*rp.Config, error) {
	c, err := recordConfig(cfg)
	if err != nil {
		return nil, err
	}
	copies := egressTotal(cfg, 0)
	settings, err := settingsOf(cfg, copies.total)
	if err != nil {
		return nil, err
	}
	copies.log(log)
	mode, err := cfg.Mesh.TreeMode()
	if err != nil {
		return nil, err
	}
	bootnodes, err := cfg.Bootnodes()
	if err != nil {
		return nil, err
	}
	groupPort := uint16(0)
	if cfg.Delivery.SSM {
		groupPort = cfg.Delivery.GroupPort
	}
	c.Discovery.Trees = cfg.Discovery.DNS
	c.Discovery.Walk = cfg.Discovery.Discv5
	c.Discovery.Bootnodes = bootnodes
	c.Discovery.Allow = cfg.Discovery.Allow
	c.Discovery.Open = cfg.Discovery.Open
	c.Settings = *settings
	c.RekeyInterval = time.Duration(cfg.Mesh.RekeyInterval)
	c.GroupPort = groupPort
	c.HopLimit = cfg.Delivery.HopLimit
	c.BanFile = banFile(os.Getenv("STATE_DIRECTORY"))
	c.Mesh = rp.MeshConfig{
		Mode:   mode,
		Alpha:  cfg.Mesh.Alpha,
		Budget: cfg.Mesh.CopyBudget,
	}
	var choice rp.Choice
	c.Engine = func(c datapath.Config) (e datapath.Engine, err error) {
		e, choice, err = openEngine(&cfg.Datapath, c, log)
		return e, err
	}
	c.Choice = func() rp.Choice { return choice }
	c.Log = log
	return c, nil
}

// recordConfig is the part of a configuration that the node record shows. It makes the node key
// when that is missing.
func recordConfig(cfg *config.Config) (*rp.Config, error) {
	key, err := loadKey(cfg.Node.KeyFile)
	if err != nil {
		return nil, err
	}
	return &rp.Config{
		PrivateKey:  key,
		Address:     cfg.Node.Address,
		ControlPort: cfg.Node.ControlPort,
		DataPort:    cfg.Node.DataPort,
		NetworkID:   cfg.Chain.NetworkID,
		Genesis:     cfg.Chain.Genesis,
		Operator:    cfg.Node.Operator,
		Discovery:   rp.Discovery{Port: cfg.Discovery.Port},
	}, nil
}

// banFile returns where the bans of operators are kept: in the first of the state directories, as
// systemd lists them; "" for none.
func banFile(directories string) string {
	dir, _, _ := strings.Cut(directories, ":")
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, "bans.json")
}

// settingsOf returns what of a configuration may change while the replication point serves. All
// copies may take total bytes per second, see egressTotal.
func settingsOf(cfg *config.Config, total uint64) (*rp.Settings, error) {
	rps, err := cfg.Neighbours()
	if err != nil {
		return nil, err
	}
	joiners, publishers, err := cfg.Admission.Admitted()
	if err != nil {
		return nil, err
	}
	return &rp.Settings{
		Neighbours: rps,
		Limits: membership.Limits{
			Sessions:    maxPeers(cfg),
			Per64:       cfg.Limits.MaxPer64,
			Per48:       cfg.Limits.MaxPer48,
			Probes:      proto.MaxProbes * cfg.Limits.MaxPer64,
			ProbeWindow: probeWindow,
			Joins:       cfg.Limits.JoinRate,
			JoinsPer48:  cfg.Limits.JoinRatePer48,
			JoinsPer64:  cfg.Limits.JoinRatePer64,
			Replays:     total / 4,
		},
		Lease:         time.Duration(cfg.Limits.Lease),
		Rate:          cfg.Limits.PublishRate,
		Burst:         cfg.Limits.PublishBurst,
		EgressPerGeth: cfg.Limits.EgressPerGeth,
		EgressPerRP:   cfg.Limits.EgressPerRP,
		EgressTotal:   total,
		Joiners:       joiners,
		Publishers:    publishers,
	}, nil
}

const (
	// defaultSpeed is assumed of a line that does not tell it, leastSpeed is the least that
	// is believed, in Mbit/s.
	defaultSpeed = 1000
	leastSpeed   = 10
)

// egress is what all copies may take.
type egress struct {
	total   uint64 // bytes per second
	source  string // where it comes from, in words
	guessed bool   // no device tells its speed
}

// egressTotal returns what all copies may take: what is configured, else three quarters of the
// speed of the slowest device. The rest is for headers, which are a fifteenth of full datagrams
// and more of smaller ones, and for whatever else the host sends. A line that is down tells no
// speed: then the limit is the one that was found before, 0 for none.
func egressTotal(cfg *config.Config, before uint64) egress {
	if cfg.Limits.EgressTotal != 0 {
		return egress{total: cfg.Limits.EgressTotal, source: "configured"}
	}
	devices := cfg.Datapath.Devices
	if len(devices) == 0 {
		if name, err := host.Device(cfg.Node.Address); err == nil {
			devices = []string{name}
		}
	}
	speed, slowest := 0, ""
	for _, name := range devices {
		if s, ok := host.Speed(name); ok && s >= leastSpeed && (speed == 0 || s < speed) {
			speed, slowest = s, name
		}
	}
	of := func(mbit int) uint64 { return uint64(mbit) * 1e6 / 8 * 3 / 4 }
	switch {
	case speed != 0:
		return egress{total: of(speed), source: fmt.Sprintf("3/4 of the %d Mbit/s of %s", speed, slowest)}
	case before != 0:
		return egress{total: before, source: "as before: no device tells its speed", guessed: true}
	}
	return egress{total: of(defaultSpeed), source: fmt.Sprintf("3/4 of %d Mbit/s: no device tells its speed", defaultSpeed), guessed: true}
}

// log tells the operator the limit, which decides how many geths can be served.
func (e egress) log(log *slog.Logger) {
	if e.guessed {
		log.Warn("limit of all copies is a guess", "egress_total", e.total, "source", e.source, "cure", "set egress_total in [limits] to what the line can take")
		return
	}
	log.Info("limit of all copies", "egress_total", e.total, "source", e.source)
}

// maxPeers returns the limit of the sessions of peers. With another engine than the socket
// it is one that the BPF maps have room for.
func maxPeers(cfg *config.Config) int {
	most := cfg.Limits.MaxPeers
	if cfg.Datapath.Engine != "socket" && (most == 0 || most > xdp.MaxPeers) {
		return xdp.MaxPeers
	}
	return most
}

// loadKey reads the node key, or makes one that only its owner can read.
func loadKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := crypto.LoadECDSA(path)
	if !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			err = fmt.Errorf("[node] key_file %s: %w", path, err)
		}
		return key, err
	}
	if key, err = crypto.GenerateKey(); err != nil {
		return nil, fmt.Errorf("node key: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("node key: %w", err)
	}
	if err := crypto.SaveECDSA(path, key); err != nil {
		return nil, fmt.Errorf("node key: %w", err)
	}
	return key, nil
}

// record returns the node record that the replication point will have.
func record(cfg *config.Config) (*enode.Node, error) {
	c, err := recordConfig(cfg)
	if err != nil {
		return nil, err
	}
	return rp.Record(*c, time.Now())
}
