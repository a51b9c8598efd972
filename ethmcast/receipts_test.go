// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast_test

import (
	"context"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/ethmcast/mdcs/ethmcast"
	"github.com/ethmcast/mdcs/ethmcast/ethmcasttest"
)

// majorities subscribes to the majorities of a node, as a client of its RPC does.
func majorities(t *testing.T, n *ethmcasttest.Node) <-chan ethmcast.Receipt {
	t.Helper()
	server := rpc.NewServer()
	if err := server.RegisterName("mdcs", n.API); err != nil {
		t.Fatal(err)
	}
	client := rpc.DialInProc(server)
	receipts := make(chan ethmcast.Receipt, 100)
	if _, err := client.Subscribe(context.Background(), "mdcs", receipts, "majority"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Stop() })
	return receipts
}

// awaitCounters waits until a node knows how many there are.
func awaitCounters(t *testing.T, n *ethmcasttest.Node, members, here, below uint64) {
	t.Helper()
	eventually(t, "counters", func() bool {
		c := n.API.Counters()
		return c.Members == members && c.Here == here && c.RP != "" && (below == 0 || len(c.RPs) == 1 && c.RPs[0].Members == below)
	})
}

// Two nodes at each of two RPs: who publishes learns that all others have it, once.
func TestReceipts(t *testing.T) {
	a, b := mesh(t)
	x, y, z := startNode(t, a), startNode(t, a), startNode(t, b)
	always := ethmcasttest.StartNode(t, ethmcast.Config{
		RPs: []*enode.Node{b.Self()}, Publish: ethmcast.PublishAll, NetworkID: networkID, Genesis: genesis, Receipts: 1, Surplus: 1,
	})
	nodes := []*ethmcasttest.Node{x, y, z, always}
	for _, n := range nodes {
		eventually(t, "join", func() bool { return n.API.Status().State == "active" })
		awaitCounters(t, n, 4, 2, 2)
	}
	events := map[*ethmcasttest.Node]<-chan ethmcast.Receipt{x: majorities(t, x), y: majorities(t, y), always: majorities(t, always)}

	quiet, small, large, chosen := transaction(t, 1, 0), transaction(t, 2, 0), transaction(t, 3, 100_000), transaction(t, 4, 5000)
	for _, hash := range []common.Hash{small.Hash(), large.Hash()} {
		if !x.API.RequestReceipt(hash) {
			t.Error("request refused")
		}
	}
	x.Enter(quiet, nil)
	x.Enter(small, nil)
	always.Enter(chosen, nil)
	complete := func(n *ethmcasttest.Node, hash common.Hash) func() bool {
		return func() bool {
			for _, r := range n.API.Receipts() {
				if r.Hash == hash {
					return r.Members == 3 && r.Sent == 3 && r.Confirmed == 3 && r.Majority && r.At != nil && r.Sequence > 0
				}
			}
			return false
		}
	}
	eventually(t, "receipt of a small transaction", complete(x, small.Hash()))
	x.Enter(large, nil)
	eventually(t, "receipt of a large transaction", complete(x, large.Hash()))
	eventually(t, "receipt of a chosen transaction", complete(always, chosen.Hash()))
	if x.API.RequestReceipt(small.Hash()) {
		t.Error("request after it was published")
	}
	if all := x.API.Receipts(); len(all) != 2 || all[0].Hash != large.Hash() || all[1].Ingress != a.Incarnation() {
		t.Errorf("receipts %+v", all)
	}

	time.Sleep(time.Second) // an event that came twice would be here
	for n, want := range map[*ethmcasttest.Node][]common.Hash{x: {small.Hash(), large.Hash()}, y: {}, always: {chosen.Hash()}} {
		if len(events[n]) != len(want) {
			t.Errorf("%d majorities, want %d", len(events[n]), len(want))
			continue
		}
		for _, hash := range want {
			if r := <-events[n]; r.Hash != hash || r.Confirmed < 2 || !r.Majority {
				t.Errorf("majority %+v of %v", r, hash)
			}
		}
	}
	for _, n := range []*ethmcasttest.Node{y, z} {
		if all := n.API.Receipts(); len(all) != 0 {
			t.Errorf("receipts of a node that asked nothing: %+v", all)
		}
	}
	for _, p := range []uint64{a.Status().Mesh.Receipts, b.Status().Mesh.Receipts} {
		if p < 3 { // more if an ECHO was late
			t.Errorf("%d datagrams asked, want 3", p)
		}
	}
}

func TestReceiptsConfig(t *testing.T) {
	for _, share := range []float64{-0.1, 1.1} {
		cfg := ethmcast.Config{RPs: []*enode.Node{nil}, Publish: ethmcast.PublishAll, Receipts: share}
		if _, err := ethmcast.New(cfg, nil); err == nil {
			t.Errorf("share %v accepted", share)
		}
	}
}

func TestNoCounters(t *testing.T) {
	n := startNode(t, startRP(t, ethmcasttest.Key(t), 0))
	awaitCounters(t, n, 1, 1, 0)
	n.API.SetEnabled(false)
	eventually(t, "no counters without an RP", func() bool { return n.API.Counters().RP == "" })
}
