// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast_test

import (
	"crypto/ecdsa"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast"
	"github.com/ethmcast/mdcs/ethmcast/coverage"
	"github.com/ethmcast/mdcs/ethmcast/ethmcasttest"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/socket"
)

const networkID = 1337

var genesis = common.Hash{1, 2, 3}

// patience bounds every wait; nothing is measured by it.
const patience = 20 * time.Second

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not within %v: %s", patience, what)
}

// startRP starts a real replication point on [::1].
func startRP(t *testing.T, key *ecdsa.PrivateKey, control uint16, rps ...*enode.Node) *rp.RP {
	t.Helper()
	return startRPWith(t, key, control, 0, rps...)
}

// startRPWith starts one that offers mode ssm on a port that is not 0.
func startRPWith(t *testing.T, key *ecdsa.PrivateKey, control, group uint16, rps ...*enode.Node) *rp.RP {
	t.Helper()
	r, err := rp.New(rp.Config{
		GroupPort:     group,
		PrivateKey:    key,
		Address:       netip.IPv6Loopback(),
		ControlPort:   control,
		NetworkID:     networkID,
		Genesis:       genesis,
		Settings:      rp.Settings{Neighbours: rps, Lease: proto.Lease, Rate: 2000, Burst: 512},
		RekeyInterval: time.Hour,
		Engine:        func(c datapath.Config) (datapath.Engine, error) { return socket.Listen(c) },
		Log:           slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Stop)
	return r
}

// freePort returns a TCP port that was free just now.
func freePort(t *testing.T) uint16 {
	t.Helper()
	server := ethmcasttest.StartServer(t, []p2p.Protocol{{Name: "none", Version: 1, Length: 1}})
	port := server.Self().TCP()
	server.Stop()
	return uint16(port)
}

// mesh starts two RPs that are linked to each other.
func mesh(t *testing.T) (a, b *rp.RP) {
	t.Helper()
	keys := [2]*ecdsa.PrivateKey{ethmcasttest.Key(t), ethmcasttest.Key(t)}
	var nodes [2]*enode.Node
	var ports [2]uint16
	for i, key := range keys {
		ports[i] = freePort(t)
		nodes[i] = enode.NewV4(&key.PublicKey, netip.IPv6Loopback().AsSlice(), int(ports[i]), 0)
	}
	a = startRP(t, keys[0], ports[0], nodes[1])
	b = startRP(t, keys[1], ports[1], nodes[0])
	eventually(t, "mesh links up", func() bool { return a.Ready() == nil && b.Ready() == nil })
	return a, b
}

func startNode(t *testing.T, rps ...*rp.RP) *ethmcasttest.Node {
	t.Helper()
	cfg := ethmcast.Config{Publish: ethmcast.PublishAll, NetworkID: networkID, Genesis: genesis}
	for _, r := range rps {
		cfg.RPs = append(cfg.RPs, r.Self())
	}
	return ethmcasttest.StartNode(t, cfg)
}

// connect makes gossip peers of all nodes and waits until they are covered.
func connect(t *testing.T, nodes ...*ethmcasttest.Node) {
	t.Helper()
	for i, n := range nodes {
		for _, other := range nodes[i+1:] {
			n.Server.AddPeer(other.Server.Self())
		}
	}
	for i, n := range nodes {
		eventually(t, fmt.Sprintf("node %d covers its gossip peers", i), func() bool {
			st := n.API.Status()
			return st.State == "active" && st.GossipPeers == len(nodes)-1 && st.Covered == len(nodes)-1
		})
	}
}

var txKey, _ = crypto.ToECDSA(crypto.Keccak256([]byte("sender")))

// transaction returns a signed transaction with size bytes of data.
func transaction(t *testing.T, nonce uint64, size int) *types.Transaction {
	t.Helper()
	tx, err := types.SignNewTx(txKey, types.LatestSignerForChainID(big.NewInt(networkID)), &types.DynamicFeeTx{
		ChainID: big.NewInt(networkID), Nonce: nonce, Gas: 21000, GasFeeCap: big.NewInt(1), GasTipCap: big.NewInt(1),
		To: &common.Address{1}, Data: make([]byte, size),
	})
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

// leavesOut waits until a node leaves out gossip to other geths of what comes by the stream
// that a transaction came by.
func leavesOut(t *testing.T, n *ethmcasttest.Node, tx *types.Transaction, peers ...*ethmcasttest.Node) {
	t.Helper()
	eventually(t, "coverage of the stream", func() bool { return len(n.Enter(tx, nil, peers...)) == len(peers) })
}

func TestTransactionsCrossTwoRPs(t *testing.T) {
	a, b := mesh(t)
	nodes := []*ethmcasttest.Node{startNode(t, a), startNode(t, a), startNode(t, b), startNode(t, b)}
	connect(t, nodes...)

	othersOf := func(origin *ethmcasttest.Node) []*ethmcasttest.Node {
		return slices.DeleteFunc(slices.Clone(nodes), func(n *ethmcasttest.Node) bool { return n == origin })
	}

	// The marks know both ingress RPs once each side published something.
	for i, origin := range []*ethmcasttest.Node{nodes[0], nodes[2]} {
		tx := transaction(t, uint64(1000+i), 0)
		origin.Enter(tx, nil)
		for _, n := range othersOf(origin) {
			eventually(t, "delivery", func() bool { return n.Backend.Offered(tx.Hash()) > 0 })
		}
		for _, n := range nodes {
			leavesOut(t, n, tx, othersOf(n)...)
		}
	}

	for i, size := range []int{0, 1000, 5000, 100_000} {
		origin := nodes[i]
		others := othersOf(origin)
		tx := transaction(t, uint64(i), size)
		if skipped := origin.Enter(tx, nil, others...); len(skipped) != 3 {
			t.Errorf("%d bytes: gossip left out for %d of 3 covered gossip peers", size, len(skipped))
		}
		for k, n := range others {
			eventually(t, fmt.Sprintf("%d bytes from %d at %d", size, i, k), func() bool { return n.Backend.Offered(tx.Hash()) > 0 })
			if skipped := n.Enter(tx, []enode.ID{}, nodes...); len(skipped) != 3 {
				t.Errorf("%d bytes: a receiver left gossip out for %d of 3 gossip peers", size, len(skipped))
			}
		}
	}
	// Confirmed by marks: announced to the guards alone, of which each has two.
	eventually(t, "nothing held", func() bool {
		for _, n := range nodes {
			if n.API.Status().Held != 0 {
				return false
			}
		}
		return true
	})
	for i, n := range nodes {
		tx, guards := transaction(t, uint64(i), []int{0, 1000, 5000, 100_000}[i]), 0
		for _, other := range nodes {
			if n.Backend.Announced(other.ID(), tx.Hash()) {
				guards++
			}
			if other != n && other.Backend.Offered(tx.Hash()) != 1 {
				t.Errorf("transaction of %d delivered %d times", i, other.Backend.Offered(tx.Hash()))
			}
		}
		if guards != coverage.Guards {
			t.Errorf("transaction of %d announced to %d gossip peers, want the %d guards", i, guards, coverage.Guards)
		}
	}
	if st := nodes[0].API.Status(); st.Failed > 0 {
		t.Errorf("status %+v", st)
	}
}

// When the RP goes, everything held is announced and gossip is not left out.
func TestRPStops(t *testing.T) {
	r := startRP(t, ethmcasttest.Key(t), 0)
	x, y := startNode(t, r), startNode(t, r)
	connect(t, x, y)
	first := transaction(t, 1, 0)
	x.Enter(first, nil)
	eventually(t, "delivery", func() bool { return y.Backend.Offered(first.Hash()) == 1 })
	eventually(t, "coverage of the stream", func() bool {
		return len(x.Enter(first, nil, y)) == 1
	})
	r.Stop()
	last := transaction(t, 2, 0)
	x.Enter(last, nil, y)
	eventually(t, "withdrawal", func() bool { return x.API.Status().State != "active" && x.API.Status().Covered == 0 })
	if skipped := x.Enter(transaction(t, 3, 0), nil, y); len(skipped) != 0 {
		t.Error("gossip left out without an RP")
	}
	eventually(t, "nothing held", func() bool { return x.API.Status().Held == 0 && y.API.Status().Held == 0 })
	if skipped := x.Enter(last, nil, y); len(skipped) != 0 && !x.Backend.Announced(y.ID(), last.Hash()) {
		t.Error("neither gossiped nor announced")
	}
}

// The next RP of the list takes over.
func TestSecondRP(t *testing.T) {
	a, b := mesh(t)
	x, y := startNode(t, a, b), startNode(t, b)
	connect(t, x, y)
	if st := x.API.Status(); st.RP != a.Self().ID().String() {
		t.Fatalf("joined %s, not the first RP", st.RP)
	}
	a.Stop()
	eventually(t, "move to the second RP", func() bool {
		st := x.API.Status()
		return st.State == "active" && st.RP == b.Self().ID().String()
	})
	tx := transaction(t, 1, 0)
	x.Enter(tx, nil)
	eventually(t, "delivery by the second RP", func() bool { return y.Backend.Offered(tx.Hash()) == 1 })
	if rps := x.API.Rps(); len(rps) != 2 || rps[1].State != "active" || rps[0].Connected {
		t.Errorf("rps: %+v", rps)
	}
}

// RPs that cannot reach each other: a gossip peer without marks of the stream is
// not covered, so gossip is not left out at all.
func TestPartition(t *testing.T) {
	a := startRP(t, ethmcasttest.Key(t), 0)
	b := startRP(t, ethmcasttest.Key(t), 0)
	x, y := startNode(t, a), startNode(t, b)
	connect(t, x, y)
	for i := range 3 {
		if skipped := x.Enter(transaction(t, uint64(i), 0), nil, y); len(skipped) != 0 {
			t.Error("gossip left out to a gossip peer behind another RP")
		}
	}
}

// A loopback interface has no multicast: who wishes it is served all the same.
func TestSSMWhereThereIsNone(t *testing.T) {
	r := startRPWith(t, ethmcasttest.Key(t), 0, 30502)
	x := startNode(t, r)
	y := ethmcasttest.StartNode(t, ethmcast.Config{
		RPs: []*enode.Node{r.Self()}, Publish: ethmcast.PublishAll, Delivery: ethmcast.DeliverSSM, NetworkID: networkID, Genesis: genesis,
	})
	connect(t, x, y)
	for _, n := range []*ethmcasttest.Node{x, y} {
		if st := n.API.Status(); st.Delivery != ethmcast.DeliverUnicast {
			t.Errorf("delivery %q", st.Delivery)
		}
	}
	there, back := transaction(t, 1, 5000), transaction(t, 2, 5000)
	x.Enter(there, nil)
	y.Enter(back, nil)
	eventually(t, "delivery", func() bool {
		return y.Backend.Offered(there.Hash()) == 1 && x.Backend.Offered(back.Hash()) == 1
	})
}

// Two peers hear a transaction of a stock node; one of them publishes it.
func TestBridge(t *testing.T) {
	r := startRP(t, ethmcasttest.Key(t), 0)
	x, y, z := startNode(t, r), startNode(t, r), startNode(t, r)
	connect(t, x, y, z)
	stock := enode.ID{9}
	tx := transaction(t, 1, 0)
	x.Enter(tx, []enode.ID{stock})
	y.Enter(tx, []enode.ID{stock})
	eventually(t, "delivery", func() bool { return z.Backend.Offered(tx.Hash()) == 1 })
	covered := transaction(t, 2, 0)
	if skipped := x.Enter(covered, []enode.ID{y.ID()}, z); len(skipped) != 0 {
		t.Error("a transaction of a covered gossip peer was published again")
	}
}

func TestBlobTransactionsKeepGossip(t *testing.T) {
	r := startRP(t, ethmcasttest.Key(t), 0)
	x, y := startNode(t, r), startNode(t, r)
	connect(t, x, y)
	blob := types.NewTx(&types.BlobTx{})
	if skip := x.Service.RouteTx(blob, nil); skip != nil {
		t.Error("a blob transaction was routed")
	}
}

func TestSetEnabled(t *testing.T) {
	r := startRP(t, ethmcasttest.Key(t), 0)
	x, y := startNode(t, r), startNode(t, r)
	connect(t, x, y)
	x.API.SetEnabled(false)
	eventually(t, "withdrawal at the gossip peer", func() bool { return y.API.Status().Covered == 0 })
	if st := x.API.Status(); st.Enabled || st.State != "idle" {
		t.Errorf("status %+v", st)
	}
	if skip := x.Service.RouteTx(transaction(t, 1, 0), nil); skip != nil {
		t.Error("routed while disabled")
	}
	x.API.SetEnabled(true)
	eventually(t, "coverage again", func() bool { return y.API.Status().Covered == 1 && x.API.Status().State == "active" })
}

func TestNotSynced(t *testing.T) {
	r := startRP(t, ethmcasttest.Key(t), 0)
	x := startNode(t, r)
	eventually(t, "join", func() bool { return x.API.Status().State == "active" })
	x.Backend.SetSynced(false)
	eventually(t, "leave", func() bool { return x.API.Status().State == "idle" })
}

// A transaction that the pool refuses is offered again after the next heads.
func TestRefusedIsOfferedAgain(t *testing.T) {
	r := startRP(t, ethmcasttest.Key(t), 0)
	x, y := startNode(t, r), startNode(t, r)
	connect(t, x, y)
	tx := transaction(t, 1, 0)
	refused := make(chan struct{}, 10)
	y.Backend.SetRefuse(func(*types.Transaction) bool { refused <- struct{}{}; return true })
	x.Enter(tx, nil)
	<-refused
	y.Backend.SetRefuse(nil)
	eventually(t, "delivery after a head", func() bool {
		y.Backend.NewHead()
		return y.Backend.Offered(tx.Hash()) == 1
	})
}

func TestPublishModes(t *testing.T) {
	r := startRP(t, ethmcasttest.Key(t), 0)
	nonce := uint64(0) // what one publishes arrives at the next
	for mode, want := range map[ethmcast.PublishMode]struct{ local, foreign bool }{
		ethmcast.PublishAll:     {true, true},
		ethmcast.PublishBridged: {false, true},
		ethmcast.PublishNone:    {false, false},
	} {
		n := ethmcasttest.StartNode(t, ethmcast.Config{
			RPs: []*enode.Node{r.Self()}, Publish: mode, NetworkID: networkID, Genesis: genesis,
		})
		eventually(t, "join", func() bool { return n.API.Status().State == "active" })
		nonce += 2
		if got := n.Service.RouteTx(transaction(t, nonce, 0), nil) != nil; got != want.local {
			t.Errorf("%s: own transaction published: %v", mode, got)
		}
		if got := n.Service.RouteTx(transaction(t, nonce+1, 0), []enode.ID{{9}}) != nil; got != want.foreign {
			t.Errorf("%s: transaction of a gossip peer published: %v", mode, got)
		}
	}
}

// Garbage ends the mdcs session of that gossip peer, and neither the connection
// nor another gossip peer's coverage.
func TestMalformedMessages(t *testing.T) {
	r := startRP(t, ethmcasttest.Key(t), 0)
	x, y := startNode(t, r), startNode(t, r)
	connect(t, x, y)
	for name, send := range map[string]func(p2p.MsgReadWriter) error{
		"garbage":         func(rw p2p.MsgReadWriter) error { return p2p.Send(rw, proto.HaveMsg, "garbage") },
		"unknown code":    func(rw p2p.MsgReadWriter) error { return p2p.Send(rw, proto.Length-1, []uint{}) },
		"oversized":       func(rw p2p.MsgReadWriter) error { return p2p.Send(rw, proto.HaveMsg, make([]byte, proto.MaxMessage+1)) },
		"before status":   func(rw p2p.MsgReadWriter) error { return p2p.Send(rw, proto.HaveMsg, &proto.Have{}) },
		"wrong direction": func(rw p2p.MsgReadWriter) error { return p2p.Send(rw, proto.WelcomeMsg, &proto.Welcome{}) },
	} {
		left := make(chan proto.Reason, 1)
		ended := make(chan error, 1)
		raw := ethmcasttest.StartServer(t, []p2p.Protocol{{
			Name: proto.Name, Version: proto.Version, Length: proto.Length,
			Run: func(_ *p2p.Peer, rw p2p.MsgReadWriter) error {
				if err := send(rw); err != nil {
					return err
				}
				for {
					msg, err := rw.ReadMsg()
					if err != nil {
						ended <- err
						return err
					}
					if msg.Code == proto.LeaveMsg {
						var leave proto.Leave
						if err := msg.Decode(&leave); err != nil {
							return err
						}
						left <- leave.Reason
					}
					if err := msg.Discard(); err != nil {
						return err
					}
				}
			},
		}})
		raw.AddPeer(x.Server.Self())
		select {
		case reason := <-left:
			if reason != proto.ReasonMalformed && reason != proto.ReasonUnexpected {
				t.Errorf("%s: left for reason %v", name, reason)
			}
		case err := <-ended:
			t.Errorf("%s: connection ended: %v", name, err)
		case <-time.After(patience):
			t.Errorf("%s: no leave", name)
		}
		if n := raw.PeerCount(); n != 1 {
			t.Errorf("%s: the devp2p connection ended", name)
		}
		raw.Stop()
	}
	if st := x.API.Status(); st.State != "active" || st.GossipPeers != 1 || st.Covered != 1 {
		t.Errorf("status %+v", st)
	}
}

func TestConfigErrors(t *testing.T) {
	if _, err := ethmcast.New(ethmcast.Config{Publish: ethmcast.PublishAll}, nil); err == nil {
		t.Error("no RP accepted")
	}
	if _, err := ethmcast.New(ethmcast.Config{RPs: []*enode.Node{nil}, Publish: "some"}, nil); err == nil {
		t.Error("unknown publish mode accepted")
	}
	cfg := ethmcast.Config{RPs: []*enode.Node{nil}, Publish: ethmcast.PublishAll, Delivery: "some"}
	if _, err := ethmcast.New(cfg, nil); err == nil {
		t.Error("unknown delivery accepted")
	}
}

// Nothing of a node reaches its RP, whose heartbeats come all the same. What the node publishes goes back
// to gossip as if it had just entered the pool, and after some the RP is lost.
func TestDeafRP(t *testing.T) {
	point := startRP(t, ethmcasttest.Key(t), 0)
	x, y := startNode(t, point), startNode(t, point)
	connect(t, x, y)
	first := transaction(t, 1000, 0)
	x.Enter(first, nil)
	eventually(t, "delivery", func() bool { return y.Backend.Offered(first.Hash()) > 0 })
	leavesOut(t, x, first, y)

	failed := x.API.Status().Failed // of all nodes of this process
	x.Service.Mute()
	n := uint64(0)
	for ; x.API.Status().State == "active" && n < 100; n++ {
		tx := transaction(t, n, 0)
		if len(x.Enter(tx, nil, y)) != 1 {
			t.Fatal("not published")
		}
		eventually(t, "gossip", func() bool { return x.Backend.Broadcast(tx.Hash()) == 1 })
		if x.Backend.Announced(y.ID(), tx.Hash()) {
			t.Error("announced, too")
		}
		if len(x.Enter(tx, nil, y)) > 0 {
			t.Error("gossip is left out once more")
		}
	}
	if n < 3 {
		t.Errorf("the RP was lost after %d transactions", n)
	}
	eventually(t, "the RP is lost", func() bool { return x.API.Status().State != "active" })
	eventually(t, "and the others know it", func() bool { return y.API.Status().Covered == 0 })
	if tx := transaction(t, n, 0); len(x.Enter(tx, nil, y)) > 0 || x.API.Status().Failed != failed+int64(n) {
		t.Error("published without an RP")
	}
}
