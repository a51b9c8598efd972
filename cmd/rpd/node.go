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
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/config"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp"
	"github.com/ethmcast/mdcs/rp/membership"
)

// probeWindow is the time in which each session that a /64 may have can be probed
// once, with all its probes.
const probeWindow = 10 * time.Second

// newRP makes the replication point of a configuration.
func newRP(cfg *config.Config, log *slog.Logger) (*rp.RP, error) {
	key, err := loadKey(cfg.Node.KeyFile)
	if err != nil {
		return nil, err
	}
	neighbours, err := cfg.Neighbours()
	if err != nil {
		return nil, err
	}
	mode, err := cfg.Mesh.TreeMode()
	if err != nil {
		return nil, err
	}
	bootnodes, err := cfg.Bootnodes()
	if err != nil {
		return nil, err
	}
	joiners, publishers, err := cfg.Admission.Admitted()
	if err != nil {
		return nil, err
	}
	groupPort := uint16(0)
	if cfg.Delivery.SSM {
		groupPort = cfg.Delivery.GroupPort
	}
	var choice rp.Choice
	return rp.New(rp.Config{
		PrivateKey:  key,
		Address:     cfg.Node.Address,
		ControlPort: cfg.Node.ControlPort,
		DataPort:    cfg.Node.DataPort,
		NetworkID:   cfg.Chain.NetworkID,
		Genesis:     cfg.Chain.Genesis,
		Neighbours:  neighbours,
		Operator:    cfg.Node.Operator,
		Discovery: rp.Discovery{
			Port:      cfg.Discovery.Port,
			Trees:     cfg.Discovery.DNS,
			Walk:      cfg.Discovery.Discv5,
			Bootnodes: bootnodes,
			Allow:     cfg.Discovery.Allow,
			Open:      cfg.Discovery.Open,
		},
		Limits: membership.Limits{
			Sessions:    maxPeers(cfg),
			Per64:       cfg.Limits.MaxPer64,
			Per48:       cfg.Limits.MaxPer48,
			Probes:      proto.MaxProbes * cfg.Limits.MaxPer64,
			ProbeWindow: probeWindow,
			Joins:       cfg.Limits.JoinRate,
			Replays:     cfg.Limits.EgressLimit / 4,
			JoinsPer48:  cfg.Limits.JoinRatePer48,
			JoinsPer64:  cfg.Limits.JoinRatePer64,
		},
		Lease:         time.Duration(cfg.Limits.Lease),
		Rate:          cfg.Limits.PublishRate,
		Burst:         cfg.Limits.PublishBurst,
		PublishEgress: cfg.Limits.PublishEgress,
		MeshEgress:    cfg.Limits.MeshEgress,
		EgressLimit:   cfg.Limits.EgressLimit,
		Joiners:       joiners,
		Publishers:    publishers,
		RekeyInterval: time.Duration(cfg.Mesh.RekeyInterval),
		GroupPort:     groupPort,
		HopLimit:      cfg.Delivery.HopLimit,
		Mesh: rp.MeshConfig{
			Mode:   mode,
			Alpha:  cfg.Mesh.Alpha,
			Budget: cfg.Mesh.CopyBudget,
		},
		Engine: func(c datapath.Config) (e datapath.Engine, err error) {
			e, choice, err = openEngine(&cfg.Datapath, c, log)
			return e, err
		},
		Choice: func() rp.Choice { return choice },
		Log:    log,
	})
}

// maxPeers returns the limit of the sessions of peers. With another engine than the socket
// it is one that the tables have room for.
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
			err = fmt.Errorf("node key %s: %w", path, err)
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
	key, err := loadKey(cfg.Node.KeyFile)
	if err != nil {
		return nil, err
	}
	return rp.Record(rp.Config{
		PrivateKey:  key,
		Address:     cfg.Node.Address,
		ControlPort: cfg.Node.ControlPort,
		DataPort:    cfg.Node.DataPort,
		NetworkID:   cfg.Chain.NetworkID,
		Genesis:     cfg.Chain.Genesis,
		Operator:    cfg.Node.Operator,
		Discovery:   rp.Discovery{Port: cfg.Discovery.Port},
	}, time.Now())
}
