// SPDX-License-Identifier: LGPL-3.0-or-later

package node

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/require"
)

const keyHex = "0000000000000000000000000000000000000000000000000000000000000001"

// id is the node id, i.e. the public key, of keyHex.
const id = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798" +
	"483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8"

func testURL(t *testing.T) *enode.Node {
	key, err := crypto.HexToECDSA(keyHex)
	require.NoError(t, err)
	return GethURL(key, netip.MustParseAddr("2001:db8:1:1::a1"))
}

func TestGethConfigFile(t *testing.T) {
	text, err := gethConfigFile([]*enode.Node{testURL(t)})
	require.NoError(t, err)
	var file struct {
		Node struct {
			P2P struct{ StaticNodes []string }
		}
	}
	require.NoError(t, toml.Unmarshal(text, &file))
	require.Equal(t, []string{"enode://" + id + "@[2001:db8:1:1::a1]:30303?discport=0"}, file.Node.P2P.StaticNodes)
	back, err := enode.ParseV4(file.Node.P2P.StaticNodes[0])
	require.NoError(t, err)
	require.Equal(t, testURL(t).ID(), back.ID())
}

func TestGethArgs(t *testing.T) {
	g := &Geth{cfg: GethConfig{Dir: "/d", NetworkID: 1337, RPs: []*enode.Node{testURL(t)}}}
	require.NotContains(t, strings.Join(g.args(), " "), "mdcs")
	g.cfg.Multicast = true
	require.Contains(t, strings.Join(g.args(), " "), "--mdcs --mdcs.port 30400 --mdcs.rp enode://")
	require.NotContains(t, g.args(), "--mdcs.delivery")
	g.cfg.Delivery = "ssm"
	require.Contains(t, strings.Join(g.args(), " "), "--mdcs.delivery ssm")
}

func TestRPFile(t *testing.T) {
	key, err := crypto.HexToECDSA(keyHex)
	require.NoError(t, err)
	r := &RP{cfg: RPConfig{
		Addr: netip.MustParseAddr("2001:db8:1:1::53"), NetworkID: 1337,
		Genesis: common.Hash{0xab}, Dir: "/d", Engine: "socket", SSM: true,
		Peers: []*enode.Node{RPURL(key, netip.MustParseAddr("2001:db8:2:1::53"))},
	}}
	text, err := toml.Marshal(r.file())
	require.NoError(t, err)
	want := `[node]
key_file = '/d/nodekey'
address = '2001:db8:1:1::53'
control_port = 30500
data_port = 30501

[chain]
network_id = 1337
genesis = '0xab00000000000000000000000000000000000000000000000000000000000000'

[mesh]
peers = ['enode://` + id + `@[2001:db8:2:1::53]:30500?discport=0']

[datapath]
engine = 'socket'
pin = ''

[delivery]
ssm = true

[admin]
listen = '[::1]:9300'
socket = '/d/admin.sock'

[log]
level = 'info'
`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("file (-want +have):\n%s", diff)
	}
}

// TestParseMetrics has the forms that geth and client_golang write.
func TestParseMetrics(t *testing.T) {
	m, err := parseMetrics([]byte(`# TYPE p2p_ingress_eth_72_0x02 gauge
p2p_ingress_eth_72_0x02 1234

# TYPE geth_info gauge
geth_info {arch="amd64", version="1"} 1

# TYPE chain_inserts_count counter
chain_inserts_count 7

# TYPE chain_inserts summary
chain_inserts {quantile="0.5"} 12

# HELP rp_datagrams_total Datagrams.
# TYPE rp_datagrams_total counter
rp_datagrams_total{verdict="replicated"} 5
`))
	require.NoError(t, err)
	require.Equal(t, Metrics{"p2p_ingress_eth_72_0x02": 1234, "chain_inserts_count": 7, `geth_info{arch="amd64",version="1"}`: 1, `rp_datagrams_total{verdict="replicated"}`: 5}, m)
	_, err = parseMetrics([]byte("{"))
	require.Error(t, err)
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		require.NoError(t, Wait(t.Context(), "three calls", func(context.Context) error {
			if calls++; calls < 3 {
				return errors.New("not yet")
			}
			return nil
		}))
		require.Equal(t, 3, calls)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := Wait(ctx, "a miracle", func(context.Context) error { return errors.New("no sign of it") })
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "a miracle")
		require.ErrorContains(t, err, "no sign of it")
	})
}

func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	require.NoError(t, os.WriteFile(path, []byte("a\nb\nc\n"), 0o600))
	require.Equal(t, "b\nc", tail(path, 2))
	require.Equal(t, "a\nb\nc", tail(path, 9))
	require.Contains(t, tail(path+"x", 1), "no such file")
}
