// SPDX-License-Identifier: LGPL-3.0-or-later

package config

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"
)

const minimal = `
[node]
address = "2001:db8::1"
[chain]
network_id = 7
genesis = "0x0100000000000000000000000000000000000000000000000000000000000000"
`

const dnsTree = "enrtree://AKA3AM6LPBYEUDMVNU3BSVQJ5AD45Y7YPOHJLEF6W26QOE4VTUDPE@rps.example.org"

func TestMinimal(t *testing.T) {
	c, err := Parse([]byte(minimal))
	require.NoError(t, err)
	want := Default()
	want.Node.Address = netip.MustParseAddr("2001:db8::1")
	want.Chain = Chain{NetworkID: 7, Genesis: common.Hash{1}}
	require.Equal(t, want, *c)
	nodes, err := c.Neighbours()
	require.NoError(t, err)
	require.Empty(t, nodes)
}

func TestAllKeys(t *testing.T) {
	peer, boot := nodeURL(t), udp(t)
	c, err := Parse([]byte(`
[node]
key_file = "k"
address = "fd00::1"
control_port = 1
data_port = 2
operator = "example"
[chain]
network_id = 3
genesis = "0x0200000000000000000000000000000000000000000000000000000000000000"
[mesh]
peers = ["` + peer + `"]
rekey_interval = "90s"
mode = "star"
alpha = 120
copy_budget = 10
[discovery]
port = 10
dns = ["` + dnsTree + `"]
discv5 = true
bootnodes = ["` + boot + `"]
allow = ["0300000000000000000000000000000000000000000000000000000000000000"]
open = true
[datapath]
engine = "xdp"
devices = ["eth0", "eth1"]
pin = ""
[delivery]
ssm = false
group_port = 8
hop_limit = 9
[limits]
max_peers = 0
max_per_64 = 4
max_per_48 = 5
lease = "10s"
publish_rate = 6
publish_burst = 7
egress_per_geth = 8
egress_per_rp = 9
egress_total = 10
join_rate = 11
join_rate_per_48 = 13
join_rate_per_64 = 12
[admission]
join = "list"
publish = "list"
list = ["` + peer + `", "0x0500000000000000000000000000000000000000000000000000000000000000"]
[admin]
listen = ""
socket = "/s"
[log]
level = "debug"
`))
	require.NoError(t, err)
	require.Equal(t, Config{
		Node:      Node{KeyFile: "k", Address: netip.MustParseAddr("fd00::1"), ControlPort: 1, DataPort: 2, Operator: "example"},
		Chain:     Chain{NetworkID: 3, Genesis: common.Hash{2}},
		Mesh:      Mesh{Peers: []string{peer}, RekeyInterval: Duration(90 * time.Second), Mode: "star", Alpha: 120, CopyBudget: 10},
		Discovery: Discovery{Port: 10, DNS: []string{dnsTree}, Discv5: true, Bootnodes: []string{boot}, Allow: []enode.ID{{3}}, Open: true},
		Datapath:  Datapath{Engine: "xdp", Devices: []string{"eth0", "eth1"}},
		Delivery:  Delivery{GroupPort: 8, HopLimit: 9},
		Limits:    Limits{MaxPer64: 4, MaxPer48: 5, Lease: Duration(10 * time.Second), PublishRate: 6, PublishBurst: 7, EgressPerGeth: 8, EgressPerRP: 9, EgressTotal: 10, JoinRate: 11, JoinRatePer48: 13, JoinRatePer64: 12},
		Admission: Admission{Join: "list", Publish: "list",
			List: []string{peer, "0x0500000000000000000000000000000000000000000000000000000000000000"}},
		Admin: Admin{Socket: "/s"},
		Log:   Log{Level: slog.LevelDebug},
	}, *c)
	nodes, err := c.Neighbours()
	require.NoError(t, err)
	require.Equal(t, netip.MustParseAddr("2001:db8::2"), nodes[0].IPAddr())
	joiners, publishers, err := c.Admission.Admitted()
	require.NoError(t, err)
	require.Equal(t, map[enode.ID]bool{nodes[0].ID(): true, {5}: true}, joiners)
	require.Equal(t, joiners, publishers)
	bootnodes, err := c.Bootnodes()
	require.NoError(t, err)
	require.Equal(t, boot, bootnodes[0].URLv4())
	open := Default()
	joiners, publishers, err = open.Admission.Admitted()
	require.NoError(t, err)
	require.Nil(t, joiners)
	require.Nil(t, publishers)
}

func nodeURL(t *testing.T) string {
	t.Helper()
	return testNode(t, "2001:db8::2").URLv4()
}

// Every error names the key, and the line where there is one.
func TestErrors(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"empty":          {"", []string{"node.address: missing", "chain.network_id: missing", "chain.genesis: missing"}},
		"unknown key":    {minimal + "[limits]\nmax_peer = 1\n", []string{"line 8: unknown key limits.max_peer"}},
		"unknown table":  {minimal + "[limit]\nmax_peers = 1\n", []string{"line 7: unknown key limit"}},
		"two unknown":    {minimal + "[log]\na = 1\nb = 1\n", []string{"line 8: unknown key log.a", "line 9: unknown key log.b"}},
		"no toml":        {"[node]\naddress = \n", []string{"line 2: "}},
		"wrong type":     {minimal + "[limits]\nmax_peers = \"many\"\n", []string{"line 8: limits.max_peers: "}},
		"out of range":   {minimal + "[limits]\npublish_rate = -1\n", []string{"line 8: limits.publish_rate: "}},
		"negative limit": {minimal + "[limits]\negress_per_rp = -1\n", []string{"line 8: limits.egress_per_rp: "}},
		"no duration":    {minimal + "[limits]\nlease = \"soon\"\n", []string{"line 8: limits.lease: ", "invalid duration"}},
		"no rule":        {minimal + "[admission]\njoin = \"all\"\n", []string{`admission.join: "all" is none of open, list`}},
		"no node":        {minimal + "[admission]\nlist = [\"7\", \"enode://x@[::1]:1\"]\n", []string{"admission.list[0]: ", "admission.list[1]: "}},
		"negative rate":  {minimal + "[limits]\njoin_rate = -1\n", []string{"limits.join_rate: -1 is negative"}},
		"long operator":  {strings.Replace(minimal, "[chain]", "operator = \""+strings.Repeat("x", 33)+"\"\n[chain]", 1), []string{"node.operator: operator of 33 bytes"}},
		"no level":       {minimal + "[log]\nlevel = \"loud\"\n", []string{"line 8: log.level: "}},
		"table in table": {minimal + "[node.x]\n", []string{"line 7: unknown key node.x"}},
	} {
		t.Run(name, func(t *testing.T) { requireErrors(t, c.text, c.want) })
	}
	for old, c := range map[string]struct{ new, want string }{
		`"2001:db8::1"`: {`"192.0.2.1"`, "node.address: 192.0.2.1 is not IPv6"},
		`2001:db8::1`:   {`::`, "node.address: :: is not the address of one host"},
		`:db8::1"`:      {`:db8::1%eth0"`, "node.address: 2001:db8::1%eth0 is not the address of one host"},
		`2001:db8::1"`:  {`::ffff:192.0.2.1"`, "node.address: ::ffff:192.0.2.1 is not IPv6"},
		`"2001:`:        {`"xyz:`, "line 3: node.address: "},
		"7":             {"0", "chain.network_id: missing"},
		"[chain]":       {"operator = \"\\u001b[2J\"\n[chain]", `node.operator: operator "\x1b[2J" cannot be printed`},
		`"0x01`:         {`"01`, "line 6: chain.genesis: "},
	} {
		t.Run(c.new, func(t *testing.T) { requireErrors(t, strings.Replace(minimal, old, c.new, 1), []string{c.want}) })
	}
	twice := nodeURL(t)
	for line, want := range map[string]string{
		"[mesh]\npeers = [\"http://x\"]":                                "mesh.peers[0]: ",
		"[mesh]\npeers = [\"" + twice + "\", \"" + twice + "\"]":        "mesh.peers[1]: is the RP of mesh.peers[0] again",
		"[mesh]\nrekey_interval = \"30s\"":                              "mesh.rekey_interval: 30s is less than 1m",
		"[datapath]\nengine = \"dpdk\"":                                 `datapath.engine: "dpdk" is none of auto, xdp, socket`,
		"[delivery]\ngroup_port = 0":                                    "delivery.group_port: 0 is not a port",
		"[delivery]\nhop_limit = 0":                                     "delivery.hop_limit: 0 lets nothing leave this host",
		"[limits]\nmax_peers = -1":                                      "limits.max_peers: -1 is negative",
		"[limits]\nmax_per_64 = -1":                                     "limits.max_per_64: -1 is negative",
		"[limits]\nmax_per_48 = -1":                                     "limits.max_per_48: -1 is negative",
		"[limits]\nlease = \"1s\"":                                      "limits.lease: 1s: want whole seconds from 5s to 10m0s",
		"[limits]\nlease = \"5500ms\"":                                  "limits.lease: 5.5s: want whole seconds",
		"[limits]\npublish_rate = 0":                                    "limits.publish_rate: 0 lets nobody publish",
		"[limits]\npublish_burst = 0":                                   "limits.publish_burst: 0 lets nobody publish",
		"[admin]\nlisten = \"here\"":                                    "admin.listen: ",
		"[admin]\nsocket = \"s\"":                                       `admin.socket: "s" is not an absolute path`,
		"[mesh]\npeers = [\"" + v4(t) + "\"]":                           "no IPv6 address",
		"[mesh]\npeers = [\"" + udp(t) + "\"]":                          "no TCP port",
		"[discovery]\ndns = [\"https://example.org\"]":                  "discovery.dns[0]: tree https://example.org: ",
		"[discovery]\ndns = [\"" + dnsTree + "\", \"" + dnsTree + "\"]": "discovery.dns[1]: stands twice",
		"[discovery]\nport = 30501":                                     "discovery.port: 30501 is that of the datagrams",
		"[discovery]\nbootnodes = [\"" + nodeURL(t) + "\"]":             "discovery.bootnodes[0]: ",
		"[discovery]\ndiscv5 = true":                                    "discovery.bootnodes: missing",
		"[discovery]\nopen = true":                                      "discovery.open: has no use without discv5",
		"[discovery]\nallow = [\"x\"]":                                  "line 8: ",
		"[datapath]\npin = \"bpf/mdcs\"":                                `datapath.pin: "bpf/mdcs" is not an absolute path`,
	} {
		t.Run(line, func(t *testing.T) { requireErrors(t, minimal+line, []string{want}) })
	}
	for _, key := range []string{"key_file = \"\"", "control_port = 0", "data_port = 0"} {
		text := strings.Replace(minimal, "[node]\n", "[node]\n"+key+"\n", 1)
		t.Run(key, func(t *testing.T) { requireErrors(t, text, []string{"node." + strings.Fields(key)[0] + ": "}) })
	}
}

func requireErrors(t *testing.T, text string, want []string) {
	t.Helper()
	_, err := Parse([]byte(text))
	for _, w := range want {
		require.ErrorContains(t, err, w)
	}
	require.Len(t, strings.Split(err.Error(), "\n"), len(want)-strings.Count(strings.Join(want, "\n"), "invalid duration"))
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rpd.toml")
	_, err := Load(path)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(path, []byte("x"), 0o600))
	_, err = Load(path)
	require.ErrorContains(t, err, path+": line 1: ")
	require.NoError(t, os.WriteFile(path, []byte(minimal), 0o600))
	_, err = Load(path)
	require.NoError(t, err)
}
