// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/node"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/rpc"
)

// freePort asks the system for a port that is free for TCP and UDP on both loopback addresses. Somebody else may take
// it before its user does, which then says so and fails.
func freePort() (int, error) {
	for range 100 {
		tcp, err := net.Listen("tcp", "[::1]:0")
		if err != nil {
			return 0, err
		}
		port := tcp.Addr().(*net.TCPAddr).Port
		tcp4, err4 := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		udp, err := net.ListenPacket("udp", fmt.Sprintf("[::1]:%d", port))
		tcp.Close()
		if err4 == nil {
			tcp4.Close()
		}
		if err == nil {
			udp.Close()
		}
		if err == nil && err4 == nil {
			return port, nil
		}
	}
	return 0, errors.New("no free port on loopback")
}

func freePorts(n int) ([]int, error) {
	ports := make([]int, n)
	for i := range ports {
		var err error
		if ports[i], err = freePort(); err != nil {
			return nil, err
		}
	}
	return ports, nil
}

// chain is the part of the test chain's genesis that configurations repeat.
type chain struct {
	networkID uint64
	genesis   string // block hash
}

func readChain(testdata string) (chain, error) {
	var genesis core.Genesis
	if err := readJSON(filepath.Join(testdata, "genesis.json"), &genesis); err != nil {
		return chain{}, err
	}
	return chain{genesis.Config.ChainID.Uint64(), genesis.ToBlock().Hash().Hex()}, nil
}

// replicationPoint is a running rpd, the only one of its mesh.
type replicationPoint struct {
	*process
	enode string
}

const rpdConfig = `
[node]
key_file     = %q
address      = "::1"
control_port = %d
data_port    = %d

[chain]
network_id = %d
genesis    = %q

[mesh]
peers = []

[datapath]
engine = "socket"

[admin]
listen = "[::1]:%d"

[log]
level = "debug"
`

func startRP(ctx context.Context, program, dir, testdata string) (*replicationPoint, error) {
	key, err := crypto.GenerateKey()
	if err != nil {
		return nil, err
	}
	keyFile := filepath.Join(dir, "rpd.key")
	if err := crypto.SaveECDSA(keyFile, key); err != nil {
		return nil, err
	}
	chain, err := readChain(testdata)
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	control, data, admin := ports[0], ports[1], ports[2]
	config := filepath.Join(dir, "rpd.toml")
	text := fmt.Sprintf(rpdConfig, keyFile, control, data, chain.networkID, chain.genesis, admin)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	p, err := startProcess(ctx, dir, program, "--config", config)
	if err != nil {
		return nil, err
	}
	err = p.await(ctx, 30*time.Second, func(ctx context.Context) error {
		url := fmt.Sprintf("http://[::1]:%d/-/ready", admin)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", url, resp.Status)
		}
		return nil
	})
	if err != nil {
		p.stop()
		return nil, err
	}
	return &replicationPoint{p, enode.NewV4(&key.PublicKey, net.IPv6loopback, control, 0).URLv4()}, nil
}

// gethNode is a running geth that has imported the test chain and is synced to its head.
type gethNode struct {
	*process
	ipc       string
	enode     string
	engineURL string
	jwtSecret string // hex
}

// startNode starts a geth. With a replication point it waits until the geth has joined it.
func startNode(ctx context.Context, program, dir, testdata string, rp *replicationPoint) (*gethNode, error) {
	datadir := filepath.Join(dir, "geth")
	for _, args := range [][]string{
		{"init", filepath.Join(testdata, "genesis.json")},
		{"import", filepath.Join(testdata, "chain.rlp")},
	} {
		cmd := exec.CommandContext(ctx, program, append([]string{"--datadir", datadir}, args...)...)
		cmd.Env = environment()
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("geth %s: %w\n%s", args[0], err, out)
		}
	}
	chain, err := readChain(testdata)
	if err != nil {
		return nil, err
	}
	nodeKey, err := crypto.GenerateKey()
	if err != nil {
		return nil, err
	}
	keyFile := filepath.Join(dir, "node.key")
	if err := crypto.SaveECDSA(keyFile, nodeKey); err != nil {
		return nil, err
	}
	var secret [32]byte
	rand.Read(secret[:])
	jwtFile := filepath.Join(dir, "jwt.hex")
	if err := os.WriteFile(jwtFile, []byte(hexutil.Encode(secret[:])), 0o600); err != nil {
		return nil, err
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	p2pPort, enginePort, dataPort := ports[0], ports[1], ports[2]
	args := []string{
		"--datadir", datadir,
		"--networkid", fmt.Sprint(chain.networkID),
		"--nodekey", keyFile,
		"--nodiscover", "--nat", "none", "--netrestrict", "127.0.0.0/8,::1/128",
		"--port", fmt.Sprint(p2pPort),
		"--authrpc.addr", "127.0.0.1", "--authrpc.port", fmt.Sprint(enginePort), "--authrpc.jwtsecret", jwtFile,
		"--verbosity", "4",
	}
	if rp != nil {
		args = append(args, "--mdcs", "--mdcs.rp", rp.enode, "--mdcs.port", fmt.Sprint(dataPort))
	}
	p, err := startProcess(ctx, dir, program, args...)
	if err != nil {
		return nil, err
	}
	n := &gethNode{
		process:   p,
		ipc:       filepath.Join(datadir, "geth.ipc"),
		enode:     enode.NewV4(&nodeKey.PublicKey, net.IPv4(127, 0, 0, 1), p2pPort, 0).URLv4(),
		engineURL: fmt.Sprintf("http://127.0.0.1:%d", enginePort),
		jwtSecret: fmt.Sprintf("%x", secret),
	}
	if err := n.bringUp(ctx, testdata, secret, rp != nil); err != nil {
		n.stop()
		return nil, err
	}
	return n, nil
}

// bringUp sets the head of the chain, as a consensus client would, and waits until the node has joined.
func (n *gethNode) bringUp(ctx context.Context, testdata string, secret [32]byte, join bool) error {
	err := n.await(ctx, time.Minute, func(ctx context.Context) error {
		return setHead(ctx, n.engineURL, secret, filepath.Join(testdata, "headfcu.json"))
	})
	if err != nil {
		return fmt.Errorf("set the head of the chain: %w", err)
	}
	if !join {
		return nil
	}
	if err := n.await(ctx, time.Minute, n.checkJoined); err != nil {
		return fmt.Errorf("join the replication point: %w", err)
	}
	return nil
}

// setHead sends the recorded engine_forkchoiceUpdated call, and expects the node to know the block.
func setHead(ctx context.Context, url string, secret [32]byte, recorded string) error {
	var call struct {
		Method string
		Params []json.RawMessage
	}
	if err := readJSON(recorded, &call); err != nil {
		return err
	}
	params := make([]any, len(call.Params))
	for i, p := range call.Params {
		params[i] = p
	}
	client, err := rpc.DialOptions(ctx, url, rpc.WithHTTPAuth(node.NewJWTAuth(secret)))
	if err != nil {
		return err
	}
	defer client.Close()
	var result struct{ PayloadStatus struct{ Status string } }
	if err := client.CallContext(ctx, &result, call.Method, params...); err != nil {
		return err
	}
	if got := result.PayloadStatus.Status; got != "VALID" {
		return fmt.Errorf("%s: status %s, want VALID", call.Method, got)
	}
	return nil
}

// checkJoined asks the node whether it is served by a replication point.
func (n *gethNode) checkJoined(ctx context.Context) error {
	client, err := rpc.DialContext(ctx, n.ipc)
	if err != nil {
		return err
	}
	defer client.Close()
	var status struct{ State string }
	if err := client.CallContext(ctx, &status, "mdcs_status"); err != nil {
		return err
	}
	if status.State != "active" {
		return fmt.Errorf("mdcs_status: state %q, want \"active\"", status.State)
	}
	return nil
}
