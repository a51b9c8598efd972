// SPDX-License-Identifier: LGPL-3.0-or-later

package node

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/rpc"
	"github.com/pelletier/go-toml/v2"

	"github.com/ethmcast/mdcs/testnet/netns"
)

// Ports of a geth. Each has its own namespace, so they are the same everywhere.
const (
	GethPort        = 30303 // devp2p, TCP
	GethDataPort    = 30400 // mDCS, UDP
	gethMetricsPort = 6060  // HTTP on loopback
)

// Time limits on an Ethereum node.
const (
	gethStartTimeout = 60 * time.Second // 64 nodes on two cores need 83 s in all
	gethStopGrace    = 10 * time.Second
)

// GethConfig describes an Ethereum node.
type GethConfig struct {
	Name      string
	Binary    string
	Key       *ecdsa.PrivateKey
	Addr      netip.Addr
	NetworkID uint64
	Dir       string // data directory, initialised with the genesis
	Log       string // path of the log file
	// Peers are dialled when the node comes back after its first run. At the first
	// start of a net they have to be joined by [Geth.Connect], once they run: a
	// node that dials one that does not listen yet, or two that dial each other at
	// the same time and refuse each other's connection as a second one, try again
	// only after 35 s.
	Peers     []*enode.Node
	Multicast bool          // --mdcs; needs the patched binary
	RPs       []*enode.Node // replication points, the preferred one first
	Delivery  string        // wished of them: unicast or ssm; "" is unicast
}

// Geth is an Ethereum node. Start, Stop and Kill must not run at the same time;
// all else is safe for concurrent use.
type Geth struct {
	*daemon
	cfg    GethConfig
	client atomic.Pointer[rpc.Client] // nil before the first start
}

// NewGeth writes the key of a node into its data directory.
func NewGeth(run *netns.Run, ns *netns.Namespace, cfg GethConfig) (*Geth, error) {
	g := &Geth{
		daemon: newDaemon(run, ns, cfg.Name, cfg.Binary, cfg.Dir, cfg.Log),
		cfg:    cfg,
	}
	if err := crypto.SaveECDSA(g.keyFile(), cfg.Key); err != nil {
		return nil, fmt.Errorf("make %s: %w", cfg.Name, err)
	}
	return g, nil
}

// gethConfigFile has what no flag of geth can say.
func gethConfigFile(peers []*enode.Node) ([]byte, error) {
	var file struct {
		Node struct {
			P2P struct{ StaticNodes []string }
		}
	}
	file.Node.P2P.StaticNodes = urls(peers)
	return toml.Marshal(file)
}

func urls(nodes []*enode.Node) []string {
	list := make([]string, len(nodes))
	for i, n := range nodes {
		list[i] = n.URLv4()
	}
	return list
}

func (g *Geth) keyFile() string    { return filepath.Join(g.cfg.Dir, "nodekey") }
func (g *Geth) configFile() string { return filepath.Join(g.cfg.Dir, "config.toml") }
func (g *Geth) ipcFile() string    { return filepath.Join(g.cfg.Dir, "geth.ipc") }

func (g *Geth) args() []string {
	args := []string{
		"--config", g.configFile(),
		"--datadir", g.cfg.Dir,
		"--nodekey", g.keyFile(),
		"--ipcpath", g.ipcFile(),
		"--networkid", strconv.FormatUint(g.cfg.NetworkID, 10),
		"--port", strconv.Itoa(GethPort),
		"--nodiscover", "--nat", "none", "--maxpeers", "50",
		"--syncmode", "full", "--state.scheme", "path", "--snapshot=false",
		"--cache", "32", "--cache.noprefetch", "--history.logs.disable", "--txpool.nolocals", "--lightkdf",
		"--metrics", "--metrics.addr", "::1", "--metrics.port", strconv.Itoa(gethMetricsPort),
		"--verbosity", "3",
	}
	if g.cfg.Multicast {
		args = append(args, "--mdcs", "--mdcs.port", strconv.Itoa(GethDataPort))
		for _, url := range urls(g.cfg.RPs) {
			args = append(args, "--mdcs.rp", url)
		}
		if g.cfg.Delivery != "" {
			args = append(args, "--mdcs.delivery", g.cfg.Delivery)
		}
	}
	return args
}

// GethURL is the address of a node with a key at addr.
func GethURL(key *ecdsa.PrivateKey, addr netip.Addr) *enode.Node {
	return enode.NewV4(&key.PublicKey, addr.AsSlice(), GethPort, 0)
}

// Multicast reports whether the node speaks mDCS.
func (g *Geth) Multicast() bool { return g.cfg.Multicast }

// Start starts the process and returns when it answers.
func (g *Geth) Start(ctx context.Context) error {
	var peers []*enode.Node
	if g.started() {
		peers = g.cfg.Peers
	}
	config, err := gethConfigFile(peers)
	if err != nil {
		return fmt.Errorf("start %s: %w", g.name, err)
	}
	if err := os.WriteFile(g.configFile(), config, 0o600); err != nil {
		return fmt.Errorf("start %s: %w", g.name, err)
	}
	if err := g.launch(g.args()...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, gethStartTimeout)
	defer cancel()
	ctx, cancel = g.untilExit(ctx)
	defer cancel()
	return Wait(ctx, "IPC of "+g.name, func(ctx context.Context) error {
		client, err := rpc.DialIPC(ctx, g.ipcFile())
		if err != nil {
			return err
		}
		g.client.Store(client)
		return nil
	})
}

// Stop ends the node properly.
func (g *Geth) Stop() error {
	g.hangUp()
	return g.stop(gethStopGrace)
}

// Kill ends the node as a crash would.
func (g *Geth) Kill() error {
	g.hangUp()
	return g.kill()
}

func (g *Geth) hangUp() {
	if client := g.client.Load(); client != nil {
		client.Close()
	}
}

// Client is the RPC connection, for subscriptions. It ends with the process.
func (g *Geth) Client() *rpc.Client { return g.client.Load() }

// Call calls an RPC method, of any namespace including engine and admin.
func (g *Geth) Call(ctx context.Context, result any, method string, args ...any) error {
	client := g.client.Load()
	if client == nil {
		return fmt.Errorf("%s: %s: never started", g.name, method)
	}
	if err := client.CallContext(ctx, result, method, args...); err != nil {
		return fmt.Errorf("%s: %s: %w", g.name, method, err)
	}
	return nil
}

// URL is the address of the node for its peers.
func (g *Geth) URL() *enode.Node { return GethURL(g.cfg.Key, g.cfg.Addr) }

// Connect makes the node dial another one and keep the connection.
func (g *Geth) Connect(ctx context.Context, peer *enode.Node) error {
	return g.Call(ctx, nil, "admin_addPeer", peer.URLv4())
}

// EthPeers are the ids of the peers with which the eth protocol runs.
func (g *Geth) EthPeers(ctx context.Context) ([]string, error) {
	var peers []p2p.PeerInfo
	if err := g.Call(ctx, &peers, "admin_peers"); err != nil {
		return nil, err
	}
	var ids []string
	for _, p := range peers {
		// While the handshake goes on, the value is a string.
		if _, ok := p.Protocols["eth"].(map[string]any); ok {
			ids = append(ids, p.ID)
		}
	}
	return ids, nil
}

// Head is the newest block of the canonical chain.
type Head struct {
	Number hexutil.Uint64 `json:"number"`
	Hash   common.Hash    `json:"hash"`
}

// Head asks for the newest block.
func (g *Geth) Head(ctx context.Context) (Head, error) {
	var head Head
	err := g.Call(ctx, &head, "eth_getBlockByNumber", "latest", false)
	return head, err
}

// HasTx reports whether the node knows a transaction, pending or in a block.
func (g *Geth) HasTx(ctx context.Context, hash common.Hash) (bool, error) {
	var tx *struct{}
	err := g.Call(ctx, &tx, "eth_getTransactionByHash", hash)
	return tx != nil, err
}

// SendTx submits a signed transaction in its binary form.
func (g *Geth) SendTx(ctx context.Context, raw []byte) error {
	return g.Call(ctx, nil, "eth_sendRawTransaction", hexutil.Bytes(raw))
}

// Status is the answer of mdcs_status.
type Status struct {
	Enabled     bool   `json:"enabled"`
	State       string `json:"state"`    // active, joining or idle
	RP          string `json:"rp"`       // id of the replication point, hex
	Standby     string `json:"standby"`  // of the one that takes over, "" for none
	Delivery    string `json:"delivery"` // that it granted, when active: unicast or ssm
	GossipPeers int    `json:"gossipPeers"`
	Covered     int    `json:"covered"` // gossip peers that also receive by multicast
	Published   uint64 `json:"published"`
	Failed      uint64 `json:"failed"` // to be published
	Received    uint64 `json:"received"`
	Announced   uint64 `json:"announced"` // gossip that was left out at first
}

// StateActive is the state of a node that receives by multicast.
const StateActive = "active"

// Status asks for the state of mDCS.
func (g *Geth) Status(ctx context.Context) (Status, error) {
	var s Status
	if !g.cfg.Multicast {
		return s, fmt.Errorf("%s: status: started without mDCS", g.name)
	}
	err := g.Call(ctx, &s, "mdcs_status")
	return s, err
}

// Metrics fetches the node's own counters.
func (g *Geth) Metrics(ctx context.Context) (Metrics, error) {
	text, err := g.get(ctx, gethMetricsPort, "/debug/metrics/prometheus")
	if err != nil {
		return nil, err
	}
	return parseMetrics(text)
}

// WaitEthPeers waits until the node has n Ethereum peers.
func (g *Geth) WaitEthPeers(ctx context.Context, n int) error {
	ctx, cancel := g.untilExit(ctx)
	defer cancel()
	return Wait(ctx, "peers of "+g.name, func(ctx context.Context) error {
		ids, err := g.EthPeers(ctx)
		if err == nil && len(ids) < n {
			err = fmt.Errorf("%d of %d", len(ids), n)
		}
		return err
	})
}

// WaitMulticast waits until the node receives by multicast and at least covered
// of its gossip peers are known to do so too.
func (g *Geth) WaitMulticast(ctx context.Context, covered int) error {
	ctx, cancel := g.untilExit(ctx)
	defer cancel()
	return Wait(ctx, "multicast at "+g.name, func(ctx context.Context) error {
		s, err := g.Status(ctx)
		if err == nil && (s.State != StateActive || s.Covered < covered) {
			err = fmt.Errorf("state %s, %d of %d gossip peers covered", s.State, s.Covered, covered)
		}
		return err
	})
}

// WaitTx waits until the node knows a transaction.
func (g *Geth) WaitTx(ctx context.Context, hash common.Hash) error {
	ctx, cancel := g.untilExit(ctx)
	defer cancel()
	return Wait(ctx, fmt.Sprintf("transaction %s at %s", hash, g.name), func(ctx context.Context) error {
		ok, err := g.HasTx(ctx, hash)
		if err == nil && !ok {
			err = errors.New("unknown")
		}
		return err
	})
}

// WaitHead waits until the chain has a block with at least this number.
func (g *Geth) WaitHead(ctx context.Context, number uint64) error {
	ctx, cancel := g.untilExit(ctx)
	defer cancel()
	return Wait(ctx, fmt.Sprintf("block %d at %s", number, g.name), func(ctx context.Context) error {
		head, err := g.Head(ctx)
		if err == nil && uint64(head.Number) < number {
			err = fmt.Errorf("head is %d", head.Number)
		}
		return err
	})
}
