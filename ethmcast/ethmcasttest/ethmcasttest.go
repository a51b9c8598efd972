// SPDX-License-Identifier: LGPL-3.0-or-later

// Package ethmcasttest stands in for geth in tests of ethmcast: a pool that takes
// what it is offered, and a node that runs the service over real devp2p and UDP
// on the loopback interface.
package ethmcasttest

import (
	"crypto/ecdsa"
	"net"
	"sync"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/event"
	"github.com/ethereum/go-ethereum/log"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/p2p/nat"

	"github.com/ethmcast/mdcs/ethmcast"
)

// Backend is an ethmcast.Backend that records what it is told. Its zero value is
// not synced and accepts every transaction.
type Backend struct {
	mu        sync.Mutex
	synced    bool
	refuse    func(*types.Transaction) bool
	pool      map[common.Hash]int
	announced map[enode.ID][]common.Hash
	broadcast map[common.Hash]int
	heads     event.Feed
}

// SetSynced says whether the node accepts transactions.
func (b *Backend) SetSynced(synced bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.synced = synced
}

// SetRefuse makes the pool refuse transactions; nil refuses none.
func (b *Backend) SetRefuse(refuse func(*types.Transaction) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuse = refuse
}

// NewHead tells the subscribers of a new head.
func (b *Backend) NewHead() { b.heads.Send(struct{}{}) }

// Offered returns how often a transaction was offered to the pool and accepted.
func (b *Backend) Offered(hash common.Hash) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pool[hash]
}

// Announced reports whether a transaction was announced to a peer.
func (b *Backend) Announced(peer enode.ID, hash common.Hash) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range b.announced[peer] {
		if h == hash {
			return true
		}
	}
	return false
}

// Synced implements ethmcast.Backend.
func (b *Backend) Synced() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.synced
}

// Enqueue implements ethmcast.Backend.
func (b *Backend) Enqueue(txs []*types.Transaction) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, tx := range txs {
		if b.refuse != nil && b.refuse(tx) {
			continue
		}
		if b.pool == nil {
			b.pool = make(map[common.Hash]int)
		}
		b.pool[tx.Hash()]++
	}
	return nil
}

// HasTx implements ethmcast.Backend.
func (b *Backend) HasTx(hash common.Hash) bool { return b.Offered(hash) > 0 }

// Broadcast returns how often a transaction was given back to gossip.
func (b *Backend) Broadcast(hash common.Hash) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.broadcast[hash]
}

// BroadcastTxs implements ethmcast.Backend.
func (b *Backend) BroadcastTxs(hashes []common.Hash) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broadcast == nil {
		b.broadcast = make(map[common.Hash]int)
	}
	for _, hash := range hashes {
		b.broadcast[hash]++
	}
}

// AnnounceTxs implements ethmcast.Backend.
func (b *Backend) AnnounceTxs(peer enode.ID, hashes []common.Hash) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.announced == nil {
		b.announced = make(map[enode.ID][]common.Hash)
	}
	b.announced[peer] = append(b.announced[peer], hashes...)
}

// SubscribeHeads implements ethmcast.Backend.
func (b *Backend) SubscribeHeads(f func()) event.Subscription {
	heads := make(chan struct{}, 16)
	sub := b.heads.Subscribe(heads)
	return event.NewSubscription(func(quit <-chan struct{}) error {
		defer sub.Unsubscribe()
		for {
			select {
			case <-heads:
				f()
			case <-quit:
				return nil
			}
		}
	})
}

// Node is a service on a devp2p server of its own.
type Node struct {
	Backend *Backend
	Service *ethmcast.Service
	API     *ethmcast.API
	Server  *p2p.Server
}

// Key returns a new node key.
func Key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// StartServer starts a devp2p server on [::1] without discovery; the test stops it.
func StartServer(t testing.TB, protocols []p2p.Protocol) *p2p.Server {
	t.Helper()
	server := &p2p.Server{Config: p2p.Config{
		PrivateKey:  Key(t),
		MaxPeers:    50,
		NoDiscovery: true,
		ListenAddr:  "[::1]:0",
		NAT:         nat.ExtIP(net.IPv6loopback),
		Protocols:   protocols,
		Logger:      log.NewLogger(log.DiscardHandler()),
	}}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	server.LocalNode().SetFallbackIP(net.IPv4zero) // 127.0.0.1 beats ::1 in a record
	return server
}

// StartNode starts a node that is synced; the test stops it.
func StartNode(t testing.TB, cfg ethmcast.Config) *Node {
	t.Helper()
	n := &Node{Backend: new(Backend)}
	n.Backend.SetSynced(true)
	service, err := ethmcast.New(cfg, n.Backend)
	if err != nil {
		t.Fatal(err)
	}
	n.Service = service
	n.API = service.APIs()[0].Service.(*ethmcast.API)
	n.Server = StartServer(t, service.Protocols())
	if err := service.Start(n.Server); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := service.Stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return n
}

// ID returns the node's id.
func (n *Node) ID() enode.ID { return n.Server.Self().ID() }

// Enter lets a transaction enter the node's pool, known to some peers, and
// returns the peers for which gossip of it is left out.
func (n *Node) Enter(tx *types.Transaction, known []enode.ID, peers ...*Node) (skipped []enode.ID) {
	skip := n.Service.RouteTx(tx, known)
	for _, p := range peers {
		if skip != nil && skip(p.ID()) {
			skipped = append(skipped, p.ID())
		}
	}
	return skipped
}
