// SPDX-License-Identifier: LGPL-3.0-or-later

package testnet

import (
	"encoding/json"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/rpc"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast"
	"github.com/ethmcast/mdcs/ethmcast/discovery/discoverytest"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/socket"
)

// A geth of the main network is told nothing but where to look. It measures the two RPs
// that it finds and connects to both.
//
//	geth --mdcs.dns URL  --DNS---> 127.0.0.153:53, in its mount namespace the system's name server
//	     --mdcs.discv5   --discv5-> DHT of three: RP [::1], RP [::1], geth
//	     then            --TALKREQ, RLPx--> RP, RP
func TestGethFindsRPs(t *testing.T) {
	binary := programPath(t, "geth")
	const networkID = 1
	genesis := common.HexToHash("0xd4e56740f876aef8c010b86a40d5f56745a118d0906a34e69aec8c0db1cb8fa3")
	start := func(t *testing.T, operator string, find rp.Discovery) *enode.Node {
		r, err := rp.New(rp.Config{
			PrivateKey:    discoverytest.Key(t),
			Address:       netip.IPv6Loopback(),
			NetworkID:     networkID,
			Genesis:       genesis,
			Operator:      operator,
			Discovery:     find,
			Settings:      rp.Settings{Lease: proto.Lease, Rate: 2000, Burst: 512},
			RekeyInterval: time.Hour,
			Engine:        func(c datapath.Config) (datapath.Engine, error) { return socket.Listen(c) },
			Log:           slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		require.NoError(t, r.Start())
		t.Cleanup(r.Stop)
		return r.Self()
	}
	t.Run("tree", func(t *testing.T) {
		nodes := []*enode.Node{start(t, "one", rp.Discovery{}), start(t, "two", rp.Discovery{})}
		zone := new(discoverytest.Zone)
		url := zone.Publish(t, discoverytest.Key(t), "rps.example.org", 1, nodes)
		server := zone.Serve(t, netip.MustParseAddrPort("127.0.0.153:53"))
		gethFinds(t, binary, server.Addr().String(), true, "--nodiscover", "--mdcs.dns", url)
	})
	t.Run("DHT", func(t *testing.T) {
		one := start(t, "one", rp.Discovery{Walk: true, Open: true})
		start(t, "two", rp.Discovery{Walk: true, Open: true, Bootnodes: []*enode.Node{one}})
		gethFinds(t, binary, "127.0.0.153", false, "--netrestrict", "::1/128,127.0.0.0/8", "--discovery.dns", "", "--discovery.v4=false",
			"--discovery.v5", "--bootnodes", one.String(), "--mdcs.discv5", "--mdcs.open")
	})
}

// gethFinds starts a geth with a name server and flags, and waits until it found two RPs.
func gethFinds(t *testing.T, binary, nameServer string, trusted bool, flags ...string) {
	dir := t.TempDir()
	resolv := filepath.Join(dir, "resolv.conf")
	require.NoError(t, os.WriteFile(resolv, []byte("nameserver "+nameServer+"\n"), 0o644))

	port, err := net.Listen("tcp6", "[::1]:0") // geth's own, not to be that of a node on this machine
	require.NoError(t, err)
	own := port.Addr().(*net.TCPAddr).Port
	require.NoError(t, port.Close())
	ipc := filepath.Join(dir, "geth.ipc")
	cmd := exec.Command("unshare", "-m", "sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, resolv,
		binary, "--datadir", filepath.Join(dir, "data"), "--ipcpath", ipc, "--nat", "none", "--maxpeers", "50",
		"--port", strconv.Itoa(own), "--authrpc.port", "0",
		"--syncmode", "full", "--cache", "32", "--lightkdf", "--mdcs", "--mdcs.port", "0")
	cmd.Args = append(cmd.Args, flags...)
	logs, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	defer logs.Close()
	cmd.Stdout, cmd.Stderr = logs, logs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, cmd.Start())
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(logs.Name())
			t.Logf("geth:\n%s", text)
		}
	}()

	var client *rpc.Client
	require.Eventually(t, func() bool {
		client, err = rpc.Dial(ipc)
		return err == nil
	}, time.Minute, 50*time.Millisecond, "geth does not answer: %v", err)
	defer client.Close()
	var found ethmcast.Discovery
	for end := time.Now().Add(time.Minute); len(found.Candidates) < 2; time.Sleep(50 * time.Millisecond) {
		require.NoError(t, client.CallContext(t.Context(), &found, "mdcs_discovery"))
		require.True(t, time.Now().Before(end), "found only %+v", found)
	}
	text, err := json.Marshal(found)
	require.NoError(t, err)
	t.Logf("%s", text)
	operators := make(map[string]bool)
	for _, c := range found.Candidates {
		rtt, err := time.ParseDuration(c.RTT)
		require.NoError(t, err)
		require.Less(t, rtt, 5*time.Second)
		require.Equal(t, "100 %", c.Room)
		require.Equal(t, trusted, c.Trusted)
		operators[c.Operator] = true
	}
	require.Len(t, operators, 2)
	var rps []ethmcast.RP
	for end := time.Now().Add(time.Minute); len(rps) < 2 || !rps[0].Connected || !rps[1].Connected; time.Sleep(50 * time.Millisecond) {
		rps = nil
		require.NoError(t, client.CallContext(t.Context(), &rps, "mdcs_rps"))
		require.True(t, time.Now().Before(end), "connected only to %+v", rps)
	}
	require.Equal(t, found.Candidates[0].ID, rps[0].ID)
}
