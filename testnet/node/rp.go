// SPDX-License-Identifier: LGPL-3.0-or-later

package node

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/pelletier/go-toml/v2"

	"github.com/ethmcast/mdcs/testnet/netns"
)

// Ports of a replication point.
const (
	RPControlPort = 30500 // RLPx, TCP
	RPDataPort    = 30501 // mDCS, UDP
	rpAdminPort   = 9300  // HTTP on loopback
)

// Time limits on a replication point.
const (
	rpStartTimeout = 30 * time.Second
	rpStopGrace    = 15 * time.Second // it waits for its members to go elsewhere
)

// RPConfig describes a replication point.
type RPConfig struct {
	Name      string
	Binary    string
	Key       *ecdsa.PrivateKey
	Addr      netip.Addr
	NetworkID uint64
	Genesis   common.Hash
	Dir       string        // for its files; must exist
	Log       string        // path of the log file
	Peers     []*enode.Node // the other replication points
	Mesh      string        // kind of its trees: star or last; "": the daemon's default
	Engine    string        // datapath: auto, socket or xdp
	SSM       bool          // offer source-specific multicast
	Pin       string        // directory on a bpf file system that keeps the datapath, "" for none
	CPUs      int           // that the process uses at a time, 0 for all
}

// RP is a replication point. Start, Stop and Kill must not run at the same
// time; all else is safe for concurrent use.
type RP struct {
	*daemon
	cfg RPConfig
}

// rpFile is the configuration file of rpd.
type rpFile struct {
	Node struct {
		KeyFile     string `toml:"key_file"`
		Address     string `toml:"address"`
		ControlPort int    `toml:"control_port"`
		DataPort    int    `toml:"data_port"`
	} `toml:"node"`
	Chain struct {
		NetworkID uint64 `toml:"network_id"`
		Genesis   string `toml:"genesis"`
	} `toml:"chain"`
	Mesh struct {
		Mode  string   `toml:"mode,omitempty"`
		Peers []string `toml:"peers"`
	} `toml:"mesh"`
	Datapath struct {
		Engine string `toml:"engine"`
		Pin    string `toml:"pin"`
	} `toml:"datapath"`
	Delivery struct {
		SSM bool `toml:"ssm"`
	} `toml:"delivery"`
	Admin struct {
		Listen string `toml:"listen"`
		Socket string `toml:"socket"` // for mdcs, in the directory of the node
	} `toml:"admin"`
	Log struct {
		Level string `toml:"level"`
	} `toml:"log"`
}

// NewRP writes the files of a replication point into its directory.
func NewRP(run *netns.Run, ns *netns.Namespace, cfg RPConfig) (*RP, error) {
	r := &RP{
		daemon: newDaemon(run, ns, cfg.Name, cfg.Binary, cfg.Dir, cfg.Log),
		cfg:    cfg,
	}
	r.cpus = cfg.CPUs
	if err := crypto.SaveECDSA(r.keyFile(), cfg.Key); err != nil {
		return nil, fmt.Errorf("make %s: %w", cfg.Name, err)
	}
	text, err := toml.Marshal(r.file())
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", cfg.Name, err)
	}
	if err := os.WriteFile(r.configFile(), text, 0o600); err != nil {
		return nil, fmt.Errorf("make %s: %w", cfg.Name, err)
	}
	return r, nil
}

func (r *RP) file() rpFile {
	var f rpFile
	f.Node.KeyFile = r.keyFile()
	f.Node.Address = r.cfg.Addr.String()
	f.Node.ControlPort = RPControlPort
	f.Node.DataPort = RPDataPort
	f.Chain.NetworkID = r.cfg.NetworkID
	f.Chain.Genesis = r.cfg.Genesis.Hex()
	f.Mesh.Mode = r.cfg.Mesh
	f.Mesh.Peers = urls(r.cfg.Peers)
	f.Datapath.Engine = r.cfg.Engine
	f.Datapath.Pin = r.cfg.Pin // "": what is left of a run ends with it
	f.Delivery.SSM = r.cfg.SSM
	f.Admin.Listen = fmt.Sprintf("[::1]:%d", rpAdminPort)
	f.Admin.Socket = filepath.Join(r.cfg.Dir, "admin.sock")
	f.Log.Level = "info"
	return f
}

func (r *RP) keyFile() string    { return filepath.Join(r.cfg.Dir, "nodekey") }
func (r *RP) configFile() string { return filepath.Join(r.cfg.Dir, "rpd.toml") }

// RPURL is the address of a replication point with a key at addr.
func RPURL(key *ecdsa.PrivateKey, addr netip.Addr) *enode.Node {
	return enode.NewV4(&key.PublicKey, addr.AsSlice(), RPControlPort, 0)
}

// URL is what peers and other replication points need to connect.
func (r *RP) URL() *enode.Node { return RPURL(r.cfg.Key, r.cfg.Addr) }

// ID is the node id.
func (r *RP) ID() enode.ID { return r.URL().ID() }

// Start starts the daemon and returns when it is healthy. Its mesh links may
// come up later; see [RP.WaitReady].
func (r *RP) Start(ctx context.Context) error {
	if err := r.launch("--config", r.configFile()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, rpStartTimeout)
	defer cancel()
	ctx, cancel = r.untilExit(ctx)
	defer cancel()
	return Wait(ctx, "health of "+r.name, func(ctx context.Context) error {
		_, err := r.get(ctx, rpAdminPort, "/-/healthy")
		return err
	})
}

// WaitReady waits until the daemon serves and its mesh links are up.
func (r *RP) WaitReady(ctx context.Context) error {
	ctx, cancel := r.untilExit(ctx)
	defer cancel()
	return Wait(ctx, "mesh of "+r.name, func(ctx context.Context) error {
		text, err := r.get(ctx, rpAdminPort, "/-/ready")
		if err != nil {
			return err
		}
		var health struct {
			LinksDown []string `json:"links_down"`
		}
		if err := json.Unmarshal(text, &health); err != nil {
			return fmt.Errorf("%s: health: %w", r.name, err)
		}
		if len(health.LinksDown) > 0 {
			return fmt.Errorf("%s: mesh links down: %s", r.name, strings.Join(health.LinksDown, ", "))
		}
		return nil
	})
}

// Stop ends the daemon properly.
func (r *RP) Stop() error { return r.stop(rpStopGrace) }

// Kill ends the daemon as a crash would.
func (r *RP) Kill() error { return r.kill() }

// Engine asks for the datapath engine that runs.
func (r *RP) Engine(ctx context.Context) (string, error) {
	m, err := r.Metrics(ctx)
	if err != nil {
		return "", err
	}
	for _, engine := range []string{"socket", "xdp"} {
		for name := range m {
			if strings.HasPrefix(name, fmt.Sprintf("mdcs_rp_engine_info{engine=%q", engine)) {
				return engine, nil
			}
		}
	}
	return "", fmt.Errorf("%s: names no engine", r.name)
}

// Metrics fetches the daemon's counters.
func (r *RP) Metrics(ctx context.Context) (Metrics, error) {
	text, err := r.get(ctx, rpAdminPort, "/metrics")
	if err != nil {
		return nil, err
	}
	return parseMetrics(text)
}
