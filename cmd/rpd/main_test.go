// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/pelletier/go-toml/v2"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/rp/config"
	"github.com/ethmcast/mdcs/rp/datapath/xdp"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"rpd": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			// Ports that nobody has, for daemons that run. UDP and TCP may come to the same number.
			taken := make(map[int]bool)
			for _, name := range []string{"CONTROL", "CONTROL2", "DATA", "DATA2", "ADMIN", "ADMIN2"} {
				port := 0
				for port == 0 || taken[port] {
					var err error
					if port, err = freePort(name[0] == 'D'); err != nil {
						return err
					}
				}
				taken[port] = true
				env.Setenv(name, strconv.Itoa(port))
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"awaithttp": awaitHTTP,
			"expand":    expand,
			"sigterm":   sigterm,
		},
	})
}

// freePort returns a UDP or TCP port of the loopback address that was free.
func freePort(udp bool) (int, error) {
	if udp {
		c, err := net.ListenPacket("udp6", "[::1]:0")
		if err != nil {
			return 0, err
		}
		defer c.Close()
		return c.LocalAddr().(*net.UDPAddr).Port, nil
	}
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// The printed configuration says what the code does.
func TestDefaultConfig(t *testing.T) {
	printed, err := config.Parse([]byte(defaultConfig))
	require.NoError(t, err)
	want := config.Default()
	want.Node.Address = printed.Node.Address
	want.Chain = printed.Chain
	want.Mesh.Peers, want.Datapath.Devices = []string{}, []string{}
	want.Discovery.DNS, want.Discovery.Bootnodes, want.Discovery.Allow = []string{}, []string{}, []enode.ID{}
	want.Mesh.Peers, want.Datapath.Devices, want.Admission.List = []string{}, []string{}, []string{}
	require.Equal(t, want, *printed)

	// It names every key.
	var named, known map[string]map[string]any
	require.NoError(t, toml.Unmarshal([]byte(defaultConfig), &named))
	all, err := toml.Marshal(printed)
	require.NoError(t, err)
	require.NoError(t, toml.Unmarshal(all, &known))
	for table, keys := range known {
		for key := range keys {
			require.Contains(t, named[table], key, "[%s]", table)
		}
	}
}

// There is a limit where the maps have one.
func TestMaxPeers(t *testing.T) {
	for _, test := range []struct {
		engine      string
		peers, want int
	}{
		{"auto", 10_000, 10_000},
		{"auto", 0, xdp.MaxPeers},
		{"xdp", 1 << 20, xdp.MaxPeers},
		{"socket", 0, 0},
		{"socket", 1 << 20, 1 << 20},
	} {
		cfg := config.Default()
		cfg.Datapath.Engine, cfg.Limits.MaxPeers = test.engine, test.peers
		require.Equal(t, test.want, maxPeers(&cfg))
	}
}

// The file says of each key whether it reloads.
func TestReloadsAreDocumented(t *testing.T) {
	table, marked := "", make(map[string][]string)
	for line := range strings.Lines(defaultConfig) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			table = strings.Trim(line, "[]")
		} else if key, rest, ok := strings.Cut(line, " = "); ok && !strings.HasPrefix(line, "#") && strings.HasSuffix(rest, " # reloads") {
			marked[table] = append(marked[table], key)
		}
	}
	for _, keys := range []map[string][]string{marked, reloads} {
		for table := range keys {
			slices.Sort(keys[table])
		}
	}
	require.Equal(t, reloads, marked)
}

// The line's speed bounds the copies unless a limit is configured.
func TestEgressTotal(t *testing.T) {
	cfg := config.Default()
	total := func() uint64 { return egressTotal(&cfg, 0).total }
	cfg.Node.Address = netip.IPv6Loopback() // a device without a speed
	require.Equal(t, uint64(93_750_000), total())
	cfg.Datapath.Devices = []string{"nosuch"}
	require.Equal(t, uint64(93_750_000), total())
	require.True(t, egressTotal(&cfg, 0).guessed)
	require.Equal(t, uint64(7), egressTotal(&cfg, 7).total, "a line that is down has the limit of before")
	cfg.Limits.EgressTotal = 5
	require.False(t, egressTotal(&cfg, 0).guessed)
	require.Equal(t, uint64(5), total())
}
