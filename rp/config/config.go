// SPDX-License-Identifier: LGPL-3.0-or-later

// Package config is the configuration file of a replication point, in TOML. Keys
// that it does not know are errors, as are values that cannot work: both name the
// key.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/pelletier/go-toml/v2"

	"github.com/ethmcast/mdcs/ethmcast/discovery"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/mesh/tree"
)

// Config is the file.
type Config struct {
	Node      Node      `toml:"node"`
	Chain     Chain     `toml:"chain"`
	Mesh      Mesh      `toml:"mesh"`
	Discovery Discovery `toml:"discovery"`
	Datapath  Datapath  `toml:"datapath"`
	Delivery  Delivery  `toml:"delivery"`
	Limits    Limits    `toml:"limits"`
	Admission Admission `toml:"admission"`
	Admin     Admin     `toml:"admin"`
	Log       Log       `toml:"log"`
}

// Node says who and where the RP is.
type Node struct {
	KeyFile     string     `toml:"key_file"`     // secp256k1 key in hex, made when missing
	Address     netip.Addr `toml:"address"`      // IPv6
	ControlPort uint16     `toml:"control_port"` // TCP
	DataPort    uint16     `toml:"data_port"`    // UDP
	Operator    string     `toml:"operator"`     // who runs it, "" to tell nobody
}

// Chain says what the RP serves.
type Chain struct {
	NetworkID uint64      `toml:"network_id"`
	Genesis   common.Hash `toml:"genesis"`
}

// Mesh lists the other RPs, and says how datagrams go between them.
type Mesh struct {
	Peers         []string `toml:"peers"` // enode URLs
	RekeyInterval Duration `toml:"rekey_interval"`
	Mode          string   `toml:"mode"`        // of the trees: "light" or "star"
	Alpha         int      `toml:"alpha"`       // of mode light, percent
	CopyBudget    int      `toml:"copy_budget"` // RPs that get copies of one datagram from here, 0 for no bound
}

// Discovery says how the RP is found and measured, and how it finds others.
type Discovery struct {
	Port      uint16     `toml:"port"`      // UDP, 0 for the number of the control port
	DNS       []string   `toml:"dns"`       // enrtree:// URLs of trees with RP neighbours
	Discv5    bool       `toml:"discv5"`    // take part in the DHT
	Bootnodes []string   `toml:"bootnodes"` // node records to begin with
	Allow     []enode.ID `toml:"allow"`     // RP neighbours when they are found in the DHT
	Open      bool       `toml:"open"`      // so are all others
}

// Datapath chooses the engine.
type Datapath struct {
	Engine  string   `toml:"engine"`  // "auto", "xdp" or "socket"
	Devices []string `toml:"devices"` // of the XDP engine; none: the one that has the address
	Pin     string   `toml:"pin"`     // directory that its BPF maps and programs are kept in, "" for none
}

// Delivery says how copies reach peers, besides one by one.
type Delivery struct {
	SSM       bool   `toml:"ssm"`        // offer source-specific multicast
	GroupPort uint16 `toml:"group_port"` // UDP port of its datagrams
	HopLimit  uint8  `toml:"hop_limit"`  // of their packets
}

// Limits bound what peers can take; 0 is no limit, but not for a rate.
type Limits struct {
	MaxPeers     int      `toml:"max_peers"`
	MaxPer64     int      `toml:"max_per_64"`
	MaxPer48     int      `toml:"max_per_48"`
	Lease        Duration `toml:"lease"`
	PublishRate  uint32   `toml:"publish_rate"`  // datagrams per second and publisher
	PublishBurst uint32   `toml:"publish_burst"` // datagrams at once

	// Bytes of copies per second, of what one publisher and one RP neighbour send.
	EgressPerGeth uint64 `toml:"egress_per_geth"`
	EgressPerRP   uint64 `toml:"egress_per_rp"`

	// Bytes of copies per second, of what anybody sends; 0 for what the line has.
	EgressTotal uint64 `toml:"egress_total"`

	JoinRate      int `toml:"join_rate"`        // joins per second
	JoinRatePer48 int `toml:"join_rate_per_48"` // of one /48
	JoinRatePer64 int `toml:"join_rate_per_64"` // of one /64
}

// Admission says who may be a member.
type Admission struct {
	Join    string   `toml:"join"`    // "open" or "list"
	Publish string   `toml:"publish"` // "open" or "list"
	List    []string `toml:"list"`    // node ids in hex, or enode URLs
}

// Admin is where an operator looks: the HTTP listener for metrics and health, and the
// socket that mdcs asks.
type Admin struct {
	Listen string `toml:"listen"` // host:port, "" for none
	Socket string `toml:"socket"` // path, "" for none
}

// Log says what is logged.
type Log struct {
	Level slog.Level `toml:"level"`
}

// Duration is a time.Duration written as "1h30m".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Default returns the values of keys that a file leaves out. The address and the
// chain have none.
func Default() Config {
	return Config{
		Node:     Node{KeyFile: "/var/lib/rpd/nodekey", ControlPort: 30500, DataPort: 30501},
		Mesh:     Mesh{RekeyInterval: Duration(time.Hour), Mode: tree.Light.String(), Alpha: tree.DefaultAlpha},
		Datapath: Datapath{Engine: "auto", Pin: "/sys/fs/bpf/mdcs"},
		Delivery: Delivery{GroupPort: 30502, HopLimit: 1},
		Limits: Limits{
			MaxPeers:     10_000,
			MaxPer64:     16,
			MaxPer48:     256,
			Lease:        Duration(proto.Lease),
			PublishRate:  2000,
			PublishBurst: 512,

			JoinRate:      1000,
			JoinRatePer48: 256,
			JoinRatePer64: 16,
		},
		Admission: Admission{Join: "open", Publish: "open"},
		Admin:     Admin{Listen: "[::1]:9300", Socket: "/run/rpd/admin.sock"},
	}
}

// Load reads and checks a file.
func Load(path string) (*Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Parse reads and checks the text of a file. All that is wrong with its values is
// in the error, one line for each key.
func Parse(text []byte) (*Config, error) {
	c := Default()
	dec := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return nil, explain(err)
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return &c, nil
}

// renamed are the keys that had other names.
var renamed = map[string]string{
	"limits.publish_egress": "limits.egress_per_geth",
	"limits.mesh_egress":    "limits.egress_per_rp",
	"limits.egress_limit":   "limits.egress_total",
}

// exampleAddress is node.address in the file that is shipped.
var exampleAddress = netip.MustParseAddr("2001:db8::1")

// CheckEdited returns an error when a required key still has the value of the example.
func (c *Config) CheckEdited() error {
	if c.Node.Address == exampleAddress {
		return fmt.Errorf("node.address: %v is the example of the shipped file: set the IPv6 address of this host", exampleAddress)
	}
	return nil
}

// explain names the line and the key of a decoding error.
func explain(err error) error {
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		errs := make([]error, len(strict.Errors))
		for i := range strict.Errors {
			row, _ := strict.Errors[i].Position()
			key := strings.Join(strict.Errors[i].Key(), ".")
			if now := renamed[key]; now != "" {
				errs[i] = fmt.Errorf("line %d: %s is called %s now", row, key, now)
				continue
			}
			errs[i] = fmt.Errorf("line %d: unknown key %s", row, key)
		}
		return errors.Join(errs...)
	}
	if decode, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, _ := decode.Position()
		detail := strings.TrimPrefix(decode.Error(), "toml: ")
		if key := strings.Join(decode.Key(), "."); key != "" {
			return fmt.Errorf("line %d: %s: %s", row, key, detail)
		}
		return fmt.Errorf("line %d: %s", row, detail)
	}
	return err
}

func (c *Config) check() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf(key+": "+format, args...))
	}
	if c.Node.KeyFile == "" {
		bad("node.key_file", "missing")
	}
	switch a := c.Node.Address; {
	case !a.IsValid():
		bad("node.address", "missing")
	case !a.Is6() || a.Is4In6():
		bad("node.address", "%v is not IPv6", a)
	case a.IsUnspecified() || a.IsMulticast() || a.Zone() != "":
		bad("node.address", "%v is not the address of one host that others reach", a)
	}
	if err := discovery.CheckOperator(c.Node.Operator); err != nil {
		bad("node.operator", "%v", err)
	}
	if c.Node.ControlPort == 0 {
		bad("node.control_port", "0 is not a port")
	}
	if c.Node.DataPort == 0 {
		bad("node.data_port", "0 is not a port")
	}
	if c.Chain.NetworkID == 0 {
		bad("chain.network_id", "missing")
	}
	if c.Chain.Genesis == (common.Hash{}) {
		bad("chain.genesis", "missing")
	}
	places := make(map[linkstate.ID]int) // of RPs in mesh.peers
	for i, url := range c.Mesh.Peers {
		key := fmt.Sprintf("mesh.peers[%d]", i)
		node, err := neighbour(url)
		if err != nil {
			bad(key, "%v", err)
			continue
		}
		// The mesh names an RP by the first 8 bytes of its node ID.
		if first, ok := places[linkstate.IDOf(node.ID())]; ok {
			bad(key, "is the RP of mesh.peers[%d] again", first)
			continue
		}
		places[linkstate.IDOf(node.ID())] = i
	}
	port := c.Discovery.Port
	if port == 0 {
		port = c.Node.ControlPort
	}
	if port == c.Node.DataPort && port != 0 {
		bad("discovery.port", "%d is that of the datagrams, node.data_port", port)
	}
	for i, url := range c.Discovery.DNS {
		if err := discovery.CheckTree(url); err != nil {
			bad(fmt.Sprintf("discovery.dns[%d]", i), "%v", err)
		}
		if slices.Contains(c.Discovery.DNS[:i], url) {
			bad(fmt.Sprintf("discovery.dns[%d]", i), "stands twice")
		}
	}
	for i, text := range c.Discovery.Bootnodes {
		if _, err := bootnode(text); err != nil {
			bad(fmt.Sprintf("discovery.bootnodes[%d]", i), "%v", err)
		}
	}
	if c.Discovery.Discv5 && len(c.Discovery.Bootnodes) == 0 {
		bad("discovery.bootnodes", "missing: discv5 begins with them")
	}
	if c.Discovery.Open && !c.Discovery.Discv5 {
		bad("discovery.open", "has no use without discv5")
	}
	if d := time.Duration(c.Mesh.RekeyInterval); d < time.Minute {
		bad("mesh.rekey_interval", "%v is less than 1m", d)
	}
	if _, err := c.Mesh.TreeMode(); err != nil {
		bad("mesh.mode", "%v", err)
	}
	if a := c.Mesh.Alpha; a < tree.MinAlpha {
		bad("mesh.alpha", "%d is less than %d percent", a, tree.MinAlpha)
	}
	if b := c.Mesh.CopyBudget; b < 0 {
		bad("mesh.copy_budget", "%d is negative", b)
	}
	if e := c.Datapath.Engine; e != "auto" && e != "xdp" && e != "socket" {
		bad("datapath.engine", "%q is none of auto, xdp, socket", e)
	}
	if p := c.Datapath.Pin; p != "" && !filepath.IsAbs(p) {
		bad("datapath.pin", "%q is not an absolute path", p)
	}
	if c.Delivery.GroupPort == 0 {
		bad("delivery.group_port", "0 is not a port")
	}
	if c.Delivery.HopLimit == 0 {
		bad("delivery.hop_limit", "0 lets nothing leave this host")
	}
	for _, limit := range []struct {
		key string
		n   int
	}{
		{"limits.max_peers", c.Limits.MaxPeers},
		{"limits.max_per_64", c.Limits.MaxPer64},
		{"limits.max_per_48", c.Limits.MaxPer48},
		{"limits.join_rate", c.Limits.JoinRate},
		{"limits.join_rate_per_48", c.Limits.JoinRatePer48},
		{"limits.join_rate_per_64", c.Limits.JoinRatePer64},
	} {
		if limit.n < 0 {
			bad(limit.key, "%d is negative", limit.n)
		}
	}
	if d := time.Duration(c.Limits.Lease); d < proto.MinLease || d > proto.MaxLease || d%time.Second != 0 {
		bad("limits.lease", "%v: want whole seconds from %v to %v", d, proto.MinLease, proto.MaxLease)
	}
	if c.Limits.PublishRate == 0 {
		bad("limits.publish_rate", "0 lets nobody publish")
	}
	if c.Limits.PublishBurst == 0 {
		bad("limits.publish_burst", "0 lets nobody publish")
	}
	for _, rule := range []struct{ key, value string }{{"admission.join", c.Admission.Join}, {"admission.publish", c.Admission.Publish}} {
		if rule.value != "open" && rule.value != "list" {
			bad(rule.key, "%q is none of open, list", rule.value)
		}
	}
	for i, text := range c.Admission.List {
		if _, err := nodeID(text); err != nil {
			bad(fmt.Sprintf("admission.list[%d]", i), "%v", err)
		}
	}
	if l := c.Admin.Listen; l != "" {
		if _, _, err := net.SplitHostPort(l); err != nil {
			bad("admin.listen", "%v", err)
		}
	}
	if s := c.Admin.Socket; s != "" && !filepath.IsAbs(s) {
		bad("admin.socket", "%q is not an absolute path", s)
	}
	return errors.Join(errs...)
}

// TreeMode returns the mode of the trees.
func (m *Mesh) TreeMode() (tree.Mode, error) { return tree.ParseMode(m.Mode) }

// Admitted returns the nodes that may join and those that may publish, nil for
// everybody.
func (a *Admission) Admitted() (joiners, publishers map[enode.ID]bool, err error) {
	list := make(map[enode.ID]bool)
	for i, text := range a.List {
		id, err := nodeID(text)
		if err != nil {
			return nil, nil, fmt.Errorf("admission.list[%d]: %w", i, err)
		}
		list[id] = true
	}
	if a.Join == "list" {
		joiners = list
	}
	if a.Publish == "list" {
		publishers = list
	}
	return joiners, publishers, nil
}

// nodeID returns the id of a node that is named by it or by an enode URL.
func nodeID(text string) (enode.ID, error) {
	if !strings.Contains(text, ":") {
		return enode.ParseID(text)
	}
	n, err := enode.Parse(enode.ValidSchemes, text)
	if err != nil {
		return enode.ID{}, err
	}
	return n.ID(), nil
}

// Neighbours returns the nodes of [mesh] peers.
func (c *Config) Neighbours() ([]*enode.Node, error) {
	nodes := make([]*enode.Node, len(c.Mesh.Peers))
	for i, url := range c.Mesh.Peers {
		n, err := neighbour(url)
		if err != nil {
			return nil, fmt.Errorf("mesh.peers[%d]: %w", i, err)
		}
		nodes[i] = n
	}
	return nodes, nil
}

func neighbour(url string) (*enode.Node, error) {
	n, err := enode.Parse(enode.ValidSchemes, url)
	if err != nil {
		return nil, err
	}
	if a := n.IPAddr(); !a.Is6() || a.Is4In6() {
		return nil, fmt.Errorf("%s: no IPv6 address", url)
	}
	if n.TCP() == 0 {
		return nil, fmt.Errorf("%s: no TCP port", url)
	}
	return n, nil
}

// Bootnodes returns the nodes of [discovery] bootnodes.
func (c *Config) Bootnodes() ([]*enode.Node, error) {
	nodes := make([]*enode.Node, len(c.Discovery.Bootnodes))
	for i, text := range c.Discovery.Bootnodes {
		n, err := bootnode(text)
		if err != nil {
			return nil, fmt.Errorf("discovery.bootnodes[%d]: %w", i, err)
		}
		nodes[i] = n
	}
	return nodes, nil
}

func bootnode(text string) (*enode.Node, error) {
	n, err := enode.Parse(enode.ValidSchemes, text)
	if err != nil {
		return nil, err
	}
	if _, ok := n.UDPEndpoint(); !ok {
		return nil, fmt.Errorf("%s: no UDP endpoint", text)
	}
	return n, nil
}
