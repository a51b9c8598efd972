// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast_test

import (
	"context"
	"crypto/ecdsa"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast"
	"github.com/ethmcast/mdcs/ethmcast/ethmcasttest"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/socket"
	"github.com/ethmcast/mdcs/rp/membership"
)

// meshWith starts RPs that are linked to each other, after a change to each configuration.
func meshWith(t *testing.T, n int, change func(i int, cfg *rp.Config)) []*rp.RP {
	t.Helper()
	keys, nodes := make([]*ecdsa.PrivateKey, n), make([]*enode.Node, n)
	for i := range n {
		keys[i] = ethmcasttest.Key(t)
		nodes[i] = enode.NewV4(&keys[i].PublicKey, netip.IPv6Loopback().AsSlice(), int(freePort(t)), 0)
	}
	points := make([]*rp.RP, n)
	for i := range n {
		cfg := rp.Config{
			PrivateKey:    keys[i],
			Address:       netip.IPv6Loopback(),
			ControlPort:   uint16(nodes[i].TCP()),
			NetworkID:     networkID,
			Genesis:       genesis,
			Settings:      rp.Settings{Lease: proto.Lease, Rate: 2000, Burst: 512},
			RekeyInterval: time.Hour,
			Engine:        func(c datapath.Config) (datapath.Engine, error) { return socket.Listen(c) },
			Log:           slog.New(slog.DiscardHandler),
		}
		for k, node := range nodes {
			if k != i {
				cfg.Neighbours = append(cfg.Neighbours, node)
			}
		}
		if change != nil {
			change(i, &cfg)
		}
		var err error
		if points[i], err = rp.New(cfg); err != nil {
			t.Fatal(err)
		}
		if err := points[i].Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(points[i].Stop)
	}
	eventually(t, "mesh links up", func() bool {
		for _, p := range points {
			if p.Ready() != nil {
				return false
			}
		}
		return true
	})
	return points
}

func id(r *rp.RP) string { return r.Self().ID().String() }

// uses waits until a node is a member of two RPs, each in its role; nil is any.
func uses(t *testing.T, n *ethmcasttest.Node, active, standby *rp.RP) {
	t.Helper()
	eventually(t, "active at one RP, standing by at another", func() bool {
		st := n.API.Status()
		return st.State == "active" && st.Standby != "" && (active == nil || st.RP == id(active)) && (standby == nil || st.Standby == id(standby))
	})
}

// publishes lets a node publish something, and waits until another one leaves out gossip
// to a gossip peer of what enters at the same RP.
func publishes(t *testing.T, origin, n, other *ethmcasttest.Node) {
	t.Helper()
	tx := transaction(t, 4998, 0)
	eventually(t, "delivery", func() bool {
		origin.Enter(tx, nil)
		return n.Backend.Offered(tx.Hash()) > 0
	})
	leavesOut(t, n, tx, other)
}

// traffic publishes at a node until it is stopped, and watches that a gossip peer never
// takes it for uncovered.
type traffic struct {
	t         *testing.T
	from      *ethmcasttest.Node
	other     *ethmcasttest.Node
	quit      atomic.Bool
	done      chan struct{}
	sent      []*types.Transaction
	gossiped  int // not published
	uncovered int
}

func startTraffic(t *testing.T, from, other *ethmcasttest.Node) *traffic {
	leavesOut(t, from, transaction(t, 4999, 0), other)
	tr := &traffic{t: t, from: from, other: other, done: make(chan struct{})}
	go func() {
		defer close(tr.done)
		for nonce := uint64(5000); !tr.quit.Load(); nonce++ {
			tx := transaction(t, nonce, 100)
			tr.sent = append(tr.sent, tx)
			if len(from.Enter(tx, nil, other)) == 0 {
				tr.gossiped++
				other.Backend.Enqueue([]*types.Transaction{tx})
			}
			if other.API.Status().Covered == 0 {
				tr.uncovered++
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
	return tr
}

// stop ends the traffic and returns how many transactions did not arrive, and how many
// arrived by gossip alone, of those that were not left to it at first.
func (tr *traffic) stop() (lost, announced int) {
	tr.quit.Store(true)
	<-tr.done
	missing := func() (n, announced int) {
		for _, tx := range tr.sent {
			switch {
			case tr.other.Backend.Offered(tx.Hash()) > 0:
			case tr.from.Backend.Announced(tr.other.ID(), tx.Hash()), tr.from.Backend.Broadcast(tx.Hash()) > 0:
				announced++
			default:
				n++
			}
		}
		return n, announced
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if lost, announced = missing(); lost == 0 {
			break
		}
	}
	return lost, announced
}

// The first RP replicates, the second of another operator stands by.
func TestTwoRPs(t *testing.T) {
	operators := []string{"north", "north", "south"}
	points := meshWith(t, 3, func(i int, cfg *rp.Config) { cfg.Operator = operators[i] })
	x := startNode(t, points...)
	uses(t, x, points[0], points[2])
	group := proto.GroupID(networkID, genesis, proto.TopicTxs)
	eventually(t, "one session in groups", func() bool {
		return points[0].Status().Members[group] == 1 && points[2].Status().Members[group] == 0 && points[2].Status().Peers.Standby == 1 && points[1].Status().Sessions == 0
	})
	rps := x.API.Rps()
	if rps[0].State != "active" || rps[2].State != "standby" || rps[2].Operator != "south" || rps[0].RTT == "" {
		t.Errorf("rps: %+v", rps)
	}
}

// An RP that drains loses its members without losing a transaction: they have another
// before they leave it.
func TestDrain(t *testing.T) {
	points := meshWith(t, 2, nil)
	a, b := points[0], points[1]
	x, y, z := startNode(t, a, b), startNode(t, a, b), startNode(t, b)
	connect(t, x, y)
	uses(t, x, a, b)
	uses(t, y, a, b)
	publishes(t, z, x, y)
	tr := startTraffic(t, x, y)
	time.Sleep(100 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	a.Drain(ctx)
	if ctx.Err() != nil {
		t.Error("members stayed")
	}
	for _, n := range []*ethmcasttest.Node{x, y} {
		if st := n.API.Status(); st.State != "active" || st.RP != id(b) {
			t.Errorf("after the drain: %s at %s", st.State, st.RP)
		}
	}
	a.Stop()
	time.Sleep(100 * time.Millisecond)
	if lost, announced := tr.stop(); lost+announced > 0 || tr.gossiped > 0 || tr.uncovered > 0 {
		t.Errorf("of %d transactions %d lost, %d announced, %d left to gossip; uncovered at %d looks", len(tr.sent), lost, announced, tr.gossiped,
			tr.uncovered)
	}
}

// An RP that is gone, with a Leave or without a word: the one that stands by takes over,
// and what was not acknowledged goes to it.
func TestStandbyTakesOver(t *testing.T) {
	for name, kill := range map[string]func(*rp.RP, datapath.Engine){
		"leave":  func(r *rp.RP, _ datapath.Engine) { r.Stop() },
		"silent": func(_ *rp.RP, e datapath.Engine) { e.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			var engine datapath.Engine
			points := meshWith(t, 2, func(i int, cfg *rp.Config) {
				if i == 0 {
					cfg.Engine = func(c datapath.Config) (datapath.Engine, error) {
						e, err := socket.Listen(c)
						engine = e
						return e, err
					}
				}
			})
			a, b := points[0], points[1]
			x, y := startNode(t, a, b), startNode(t, b, a)
			connect(t, x, y)
			uses(t, x, a, b)
			uses(t, y, b, a)
			publishes(t, y, x, y)
			tr := startTraffic(t, x, y)
			time.Sleep(100 * time.Millisecond)
			kill(a, engine)
			stopped := time.Now()
			eventually(t, "move", func() bool { st := x.API.Status(); return st.State == "active" && st.RP == id(b) })
			moved := time.Since(stopped)
			time.Sleep(200 * time.Millisecond)
			lost, announced := tr.stop()
			t.Logf("moved after %v; of %d transactions %d announced, %d left to gossip", moved, len(tr.sent), announced, tr.gossiped)
			if lost > 0 || tr.uncovered > 0 || x.API.Status().State != "active" {
				t.Errorf("%d of %d transactions lost, uncovered at %d looks", lost, len(tr.sent), tr.uncovered)
			}
		})
	}
}

// An RP that starts again is joined again, long before devp2p itself would dial it.
func TestRPStartsAgain(t *testing.T) {
	key, port := ethmcasttest.Key(t), freePort(t)
	first := startRP(t, key, port)
	x := startNode(t, first)
	eventually(t, "join", func() bool { return x.API.Status().State == "active" })
	first.Stop()
	eventually(t, "leave", func() bool { return x.API.Status().State != "active" })
	second := startRP(t, key, port)
	began := time.Now()
	eventually(t, "join again", func() bool {
		st := x.API.Rps()[0]
		return st.State == "active" && st.Incarnation == second.Incarnation()
	})
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("joined again after %v", took)
	}
}

// A full RP names others, and the node goes there.
func TestFullRP(t *testing.T) {
	points := meshWith(t, 3, func(i int, cfg *rp.Config) {
		if i == 0 {
			cfg.Limits = membership.Limits{Sessions: 1}
		}
	})
	startNode(t, points[0])
	eventually(t, "no room", func() bool { return points[0].Status().Sessions == 1 })
	x := startNode(t, points...)
	uses(t, x, nil, nil)
	if st := x.API.Status(); st.RP == id(points[0]) || st.Standby == id(points[0]) {
		t.Errorf("status %+v", st)
	}
}

// A node that may not publish gossips, and is covered all the same.
func TestNotAPublisher(t *testing.T) {
	points := meshWith(t, 1, func(_ int, cfg *rp.Config) { cfg.Publishers = map[enode.ID]bool{} })
	x := startNode(t, points[0])
	eventually(t, "join", func() bool { return x.API.Status().State == "active" })
	if x.Service.RouteTx(transaction(t, 1, 0), nil) != nil {
		t.Error("published")
	}
}

// RPs may be found while the node runs.
func TestSetRPs(t *testing.T) {
	points := meshWith(t, 2, nil)
	x := ethmcasttest.StartNode(t, ethmcast.Config{
		RPs: []*enode.Node{points[0].Self()}, Publish: ethmcast.PublishAll, NetworkID: networkID, Genesis: genesis,
	})
	eventually(t, "join", func() bool { return x.API.Status().State == "active" })
	x.Service.SetRPs([]*enode.Node{points[0].Self(), points[1].Self()})
	uses(t, x, points[0], points[1])
	x.Service.SetRPs([]*enode.Node{points[1].Self()})
	eventually(t, "the other one alone", func() bool {
		st := x.API.Status()
		return st.State == "active" && st.RP == id(points[1]) && st.Standby == "" && points[0].Status().Sessions == 0
	})
	eventually(t, "end of the connection", func() bool { return x.Server.PeerCount() == 1 })
}
