// SPDX-License-Identifier: LGPL-3.0-or-later

package testnet

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/log"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast"
	"github.com/ethmcast/mdcs/ethmcast/ethmcasttest"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/testnet/beacon"
	"github.com/ethmcast/mdcs/testnet/netns"
	"github.com/ethmcast/mdcs/testnet/node"
	"github.com/ethmcast/mdcs/testnet/topology"
	"github.com/ethmcast/mdcs/testnet/workload"
)

// TestNetnsSSM has a real replication point and the service of ethmcast in other
// namespaces, behind a bridge with MLDv2 snooping and a querier:
//
//	          lan (br0, 2001:db8::/64)
//	 +-------+-------+-------+-------+-------+
//	p0      p1      p2      p3      p4      p5
//	 |       |       |       |       |       |
//	rp      g1      g2      g3      g4      out
//	        ssm     ssm     ssm   unicast   listens to nothing
//
// One datagram on the RP's link serves all in mode ssm, and the bridge keeps it
// from the others. When the bridge drops the group, they turn to unicast.
func TestNetnsSSM(t *testing.T) {
	for _, engine := range []string{"socket", "xdp"} {
		t.Run(engine, func(t *testing.T) { testSSM(t, engine) })
	}
}

func testSSM(t *testing.T, engine string) {
	rpd := programPath(t, "rpd")
	lan := newSSMNet(t)
	rp := lan.startRP(rpd, engine)
	g1, g2, g3 := lan.startNode(1, rp, ethmcast.DeliverSSM), lan.startNode(2, rp, ethmcast.DeliverSSM), lan.startNode(3, rp, ethmcast.DeliverSSM)
	g4 := lan.startNode(4, rp, ethmcast.DeliverUnicast)
	for _, n := range []*ssmNode{g1, g2, g3} {
		n.await(ethmcast.DeliverSSM)
	}
	g4.await(ethmcast.DeliverUnicast)

	// What XDP sends passes by the packet sockets at the RP's own end of its link.
	atRP := watchSSM(t, lan.spaces["lan"], "p0", ssmRPPort)
	watch := func(host string) *ssmWatch { return watchSSM(t, lan.spaces[host], "eth0", ssmRPPort) }
	atG2, atG4, out := watch("g2"), watch("g4"), watch("out")
	const txs = 40
	g1.publish(txs)
	for _, n := range []*ssmNode{g2, g3, g4} {
		n.awaitOffered(txs)
	}
	g1.eventually(func(st ethmcast.Status) bool { return st.Published >= txs && st.Duplicates >= txs })
	group := netip.AddrPortFrom(proto.GroupAddr(proto.GroupID(ssmNetwork, ssmGenesis, proto.TopicTxs)), ssmGroupPort)
	require.Equal(t, map[ssmFrame]int{
		{wire.Data, group}:     txs, // serves g2 and g3, and g1 again
		{wire.Data, g4.data()}: txs,
		{wire.Echo, g1.data()}: txs,
	}, atRP.frames(), "on the link of the RP")
	require.Equal(t, map[ssmFrame]int{{wire.Data, group}: txs}, atG2.frames())
	require.Equal(t, map[ssmFrame]int{{wire.Data, g4.data()}: txs}, atG4.frames(), "snooping keeps the group from who did not join")
	require.Empty(t, out.frames())
	st := g1.status()
	require.EqualValues(t, []int64{txs, 0, txs}, []int64{st.Published, st.Failed, st.Duplicates}, "the own copies are duplicates")
	for _, n := range []*ssmNode{g1, g2, g3, g4} {
		refused := n.status().Datagrams
		delete(refused, wire.Pass.String())
		delete(refused, wire.NoSession.String()) // while it joined
		require.Empty(t, refused)
	}

	// The bridge drops the group, and all fall back. Who comes now is admitted
	// in unicast at once.
	nft, err := exec.LookPath("nft")
	require.NoError(t, err, "nftables is not installed: run make deps")
	lan.command("lan", nft, "add table bridge cut; add chain bridge cut f { type filter hook forward priority 0; }; "+
		"add rule bridge cut f ip6 daddr ff3e::/32 drop")
	cut := time.Now()
	for _, n := range []*ssmNode{g1, g2, g3} {
		n.await(ethmcast.DeliverUnicast)
	}
	t.Logf("all in unicast %v after the cut", time.Since(cut).Round(10*time.Millisecond))
	late := lan.startNode(5, rp, ethmcast.DeliverSSM)
	late.await(ethmcast.DeliverUnicast)

	atRP.frames() // what was before
	g2.publish(txs)
	for n, want := range map[*ssmNode]int64{g1: txs, g3: 2 * txs, g4: 2 * txs, late: txs} {
		n.awaitOffered(want)
	}
	g2.eventually(func(st ethmcast.Status) bool { return st.Published >= txs })
	require.Equal(t, map[ssmFrame]int{
		{wire.Data, g1.data()}: txs, {wire.Data, g3.data()}: txs, {wire.Data, g4.data()}: txs, {wire.Data, late.data()}: txs,
		{wire.Echo, g2.data()}: txs,
	}, atRP.frames())
}

// TestNetnsSSMGeths has geths on one LAN with their replication point, on a plain
// bridge. All that one publishes reaches the others by the channel:
//
//	as1-rp  ::53 --.
//	as1-g1  ::a1 --+-- ::1 [as1]
//	as1-g2  ::a2 --'
func TestNetnsSSMGeths(t *testing.T) {
	for _, engine := range []string{"socket", "xdp"} {
		t.Run(engine, func(t *testing.T) { testSSMGeths(t, engine) })
	}
}

func testSSMGeths(t *testing.T, engine string) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	top, err := topology.Parse("one-as", []byte(`
		[[as]]
		name = "as1"
		number = 1
		share = 1
		rp = true
	`))
	require.NoError(t, err)
	top, err = top.Populate(topology.Population{Count: 2})
	require.NoError(t, err)
	n, err := Start(ctx, Config{
		Topology: top,
		Geth:     programPath(t, "geth"),
		RPD:      programPath(t, "rpd"),
		Patched:  All,
		Engine:   engine,
		Delivery: string(ethmcast.DeliverSSM),
		Seed:     5,
		Log:      testLog(t),
	})
	require.NoError(t, err)
	defer n.Close()
	running, err := n.RPs[0].Engine(ctx)
	require.NoError(t, err)
	require.Equal(t, engine, running)

	const count = 20
	txs, err := workload.Plan(workload.Params{ChainID: beacon.ChainID, Seed: 5, Txs: count, Rate: 20, Nodes: len(n.Geths)})
	require.NoError(t, err)
	atRP := watchSSM(t, n.fabric.routers["as1"], "pas1-rp", node.RPDataPort)
	for _, tx := range txs {
		require.NoError(t, n.Geths[tx.Node].SendTx(ctx, tx.Raw))
	}
	for _, tx := range txs {
		require.NoError(t, n.WaitTx(ctx, tx.Hash))
	}
	group := proto.GroupAddr(proto.GroupID(beacon.ChainID, n.Genesis().Hash(), proto.TopicTxs))
	sent := make(map[wire.Type]int)
	require.Eventually(t, func() bool {
		for frame, frames := range atRP.frames() {
			if frame.kind == wire.Data {
				require.Equal(t, group, frame.dst.Addr(), "a copy for one node")
			}
			sent[frame.kind] += frames
		}
		return sent[wire.Data] >= count && sent[wire.Data] == sent[wire.Echo]
	}, ssmPatience, 10*time.Millisecond)
	for _, g := range n.Geths {
		st, err := g.Status(ctx)
		require.NoError(t, err)
		require.Equal(t, []any{string(ethmcast.DeliverSSM), uint64(0)}, []any{st.Delivery, st.Failed})
		require.Positive(t, st.Received)
	}
	require.NoError(t, n.Close())
	requireNothingLeft(t, n.run.Prefix())
}

const (
	ssmNetwork     = 1337
	ssmControlPort = 30500
	ssmRPPort      = 30501
	ssmGroupPort   = 30502
	ssmPort        = 30400 // of the nodes
	ssmPatience    = 20 * time.Second
)

var ssmGenesis = common.Hash{7}

// ssmNet is the LAN of the test.
type ssmNet struct {
	t      *testing.T
	run    *netns.Run
	spaces map[string]*netns.Namespace
	rp     netip.Addr
}

func newSSMNet(t *testing.T) *ssmNet {
	run, err := netns.NewRun(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, run.Close()) })
	l := &ssmNet{t: t, run: run, spaces: make(map[string]*netns.Namespace), rp: ssmAddr(0)}
	for _, name := range []string{"lan", "rp", "g1", "g2", "g3", "g4", "g5", "out"} {
		l.spaces[name], err = run.Namespace(name)
		require.NoError(t, err)
	}
	lan := l.spaces["lan"]
	require.NoError(t, lan.Bridge("br0"))
	for i, name := range []string{"rp", "g1", "g2", "g3", "g4", "g5", "out"} {
		port := fmt.Sprint("p", i)
		ns := l.spaces[name]
		require.NoError(t, ns.Veth("eth0", lan, port))
		require.NoError(t, lan.Attach("br0", port))
		require.NoError(t, ns.AddAddress("eth0", netip.PrefixFrom(ssmAddr(i), 64)))
		require.NoError(t, ns.SetUp("eth0", true))
	}
	// A bridge floods until its querier is valid, one response interval (1/100 s)
	// after it began: the interval must be set before.
	ip, err := exec.LookPath("ip")
	require.NoError(t, err)
	bridge := []string{"link", "set", "dev", "br0", "type", "bridge"}
	l.command("lan", ip, append(bridge, "mcast_snooping", "1", "mcast_mld_version", "2", "mcast_query_response_interval", "100")...)
	l.command("lan", ip, append(bridge, "mcast_querier", "1")...)
	time.Sleep(1500 * time.Millisecond)
	return l
}

// ssmAddr leaves out ::1, which is the example in rpd.toml: rpd refuses it.
func ssmAddr(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+16)) }

// command runs a program in a namespace.
func (l *ssmNet) command(ns, program string, args ...string) {
	l.t.Helper()
	require.NoError(l.t, l.spaces[ns].Do(func() error {
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %q: %w: %s", program, args, err, out)
		}
		return nil
	}))
}

// startRP starts rpd, which offers mode ssm, and returns its node.
func (l *ssmNet) startRP(rpd, engine string) *enode.Node {
	l.t.Helper()
	key, err := crypto.GenerateKey()
	require.NoError(l.t, err)
	keyFile, file := filepath.Join(l.run.Dir(), "key"), filepath.Join(l.run.Dir(), "rpd.toml")
	require.NoError(l.t, crypto.SaveECDSA(keyFile, key))
	text := fmt.Sprintf("[node]\nkey_file = %q\naddress = %q\ncontrol_port = %d\ndata_port = %d\n[chain]\nnetwork_id = %d\ngenesis = %q\n"+
		"[datapath]\nengine = %q\n[delivery]\nssm = true\ngroup_port = %d\n",
		keyFile, l.rp, ssmControlPort, ssmRPPort, ssmNetwork, ssmGenesis.Hex(), engine, ssmGroupPort)
	require.NoError(l.t, os.WriteFile(file, []byte(text), 0o600))
	cmd := exec.Command(rpd, "--config", file)
	cmd.Stderr = l.t.Output()
	_, err = l.run.Start(l.spaces["rp"], "rpd", cmd)
	require.NoError(l.t, err)
	node := enode.NewV4(&key.PublicKey, l.rp.AsSlice(), ssmControlPort, 0)
	require.Eventually(l.t, func() bool { // a node that finds nobody tries again only after 35 s
		c, err := l.spaces["rp"].Dial(l.t.Context(), "tcp6", netip.AddrPortFrom(l.rp, ssmControlPort).String())
		if err == nil {
			c.Close()
		}
		return err == nil
	}, ssmPatience, 10*time.Millisecond)
	return node
}

// ssmNode is a node in another process, which answers on a pipe.
type ssmNode struct {
	t    *testing.T
	addr netip.Addr
	in   io.Writer
	out  *json.Decoder
}

// ssmNodeConfig is the argument of the process.
type ssmNodeConfig struct {
	RP       string
	Delivery ethmcast.Delivery
}

func (l *ssmNet) startNode(i int, rp *enode.Node, delivery ethmcast.Delivery) *ssmNode {
	l.t.Helper()
	config, err := json.Marshal(ssmNodeConfig{rp.URLv4(), delivery})
	require.NoError(l.t, err)
	self, err := os.Executable()
	require.NoError(l.t, err)
	cmd := exec.Command(self, ssmNodeCommand, string(config))
	cmd.Stderr = l.t.Output()
	in, err := cmd.StdinPipe()
	require.NoError(l.t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(l.t, err)
	name := fmt.Sprint("g", i)
	_, err = l.run.Start(l.spaces[name], name, cmd)
	require.NoError(l.t, err)
	return &ssmNode{t: l.t, addr: ssmAddr(i), in: in, out: json.NewDecoder(out)}
}

// data returns the node's data endpoint.
func (n *ssmNode) data() netip.AddrPort { return netip.AddrPortFrom(n.addr, ssmPort) }

// publish makes the node publish transactions and returns its status.
func (n *ssmNode) publish(txs int) (st ethmcast.Status) {
	n.t.Helper()
	_, err := fmt.Fprintln(n.in, txs)
	require.NoError(n.t, err)
	require.NoError(n.t, n.out.Decode(&st))
	return st
}

func (n *ssmNode) status() ethmcast.Status {
	n.t.Helper()
	return n.publish(0)
}

// await waits until the node is served in a mode.
func (n *ssmNode) await(want ethmcast.Delivery) {
	n.t.Helper()
	n.eventually(func(st ethmcast.Status) bool { return st.State == "active" && st.Delivery == want })
}

// awaitOffered waits until so many transactions were offered to the pool in all,
// each once.
func (n *ssmNode) awaitOffered(want int64) {
	n.t.Helper()
	n.eventually(func(st ethmcast.Status) bool { return st.Received >= want })
	require.Equal(n.t, want, n.status().Received)
}

func (n *ssmNode) eventually(cond func(ethmcast.Status) bool) {
	n.t.Helper()
	var st ethmcast.Status
	for end := time.Now().Add(ssmPatience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if st = n.status(); cond(st) {
			return
		}
	}
	n.t.Fatalf("node %v: not within %v: %+v", n.addr, ssmPatience, st)
}

// ssmFrame is a kind of frame of the RP.
type ssmFrame struct {
	kind wire.Type
	dst  netip.AddrPort
}

// ssmWatch reads the frames at an interface.
type ssmWatch struct {
	t    *testing.T
	fd   int
	port uint16 // of the RP
}

// watchSSM begins to read at an interface.
func watchSSM(t *testing.T, ns *netns.Namespace, name string, port uint16) *ssmWatch {
	t.Helper()
	w := &ssmWatch{t: t, port: port}
	require.NoError(t, ns.Do(func() error {
		intf, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00 // in network order
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: intf.Index})
	}))
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

// frames counts the frames with datagrams of the RP since the last call, without
// heartbeats, whose number is that of the clock.
func (w *ssmWatch) frames() map[ssmFrame]int {
	w.t.Helper()
	const ethernet, ipv6, udp = 14, 40, 8
	count := make(map[ssmFrame]int)
	b := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(w.fd, b, 0)
		if errors.Is(err, unix.EAGAIN) {
			return count
		}
		require.NoError(w.t, err)
		if n < ethernet+ipv6+udp || binary.BigEndian.Uint16(b[12:]) != unix.ETH_P_IPV6 || b[ethernet+6] != unix.IPPROTO_UDP {
			continue
		}
		ports := b[ethernet+ipv6:]
		if binary.BigEndian.Uint16(ports) != w.port {
			continue
		}
		h, _, v := wire.Parse(b[ethernet+ipv6+udp : n])
		require.Equal(w.t, wire.Pass, v)
		if h.Type != wire.Heartbeat {
			dst := netip.AddrFrom16([16]byte(b[ethernet+24:]))
			count[ssmFrame{h.Type, netip.AddrPortFrom(dst, binary.BigEndian.Uint16(ports[2:]))}]++
		}
	}
}

// ssmNodeCommand is the first argument that makes the test's program a node.
const ssmNodeCommand = "ssm-node"

// runSSMNode turns the process into a node and exits if it was started as one: the
// service of ethmcast with a pool that takes everything. Each line that it reads is
// the number of transactions that it publishes, before it answers with its status.
func runSSMNode() {
	if len(os.Args) != 3 || os.Args[1] != ssmNodeCommand {
		return
	}
	if err := serveSSMNode(os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serveSSMNode(config string) error {
	log.SetDefault(log.NewLogger(log.NewTerminalHandlerWithLevel(os.Stderr, log.LevelInfo, false)))
	var cfg ssmNodeConfig
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		return err
	}
	rp, err := enode.ParseV4(cfg.RP)
	if err != nil {
		return err
	}
	key, err := crypto.GenerateKey()
	if err != nil {
		return err
	}
	backend := new(ethmcasttest.Backend)
	backend.SetSynced(true)
	server := &p2p.Server{Config: p2p.Config{PrivateKey: key, MaxPeers: 10, NoDiscovery: true}}
	service, err := ethmcast.New(ethmcast.Config{
		RPs:       []*enode.Node{rp},
		Port:      ssmPort,
		Publish:   ethmcast.PublishAll,
		Delivery:  cfg.Delivery,
		NetworkID: ssmNetwork,
		Genesis:   ssmGenesis,
	}, backend)
	if err != nil {
		return err
	}
	server.Protocols = service.Protocols()
	if err := server.Start(); err != nil {
		return err
	}
	defer server.Stop()
	if err := service.Start(server); err != nil {
		return err
	}
	defer service.Stop()

	api := service.APIs()[0].Service.(*ethmcast.API)
	answers, nonce := json.NewEncoder(os.Stdout), uint64(0)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var txs int
		if _, err := fmt.Sscan(lines.Text(), &txs); err != nil {
			return err
		}
		for range txs {
			nonce++
			tx, err := types.SignNewTx(key, types.LatestSignerForChainID(big.NewInt(ssmNetwork)), &types.DynamicFeeTx{
				ChainID: big.NewInt(ssmNetwork), Nonce: nonce, Gas: 21000, GasFeeCap: big.NewInt(1), To: &common.Address{1},
			})
			if err != nil {
				return err
			}
			service.RouteTx(tx, nil)
		}
		if err := answers.Encode(api.Status()); err != nil {
			return err
		}
	}
	return nil
}
