// SPDX-License-Identifier: LGPL-3.0-or-later

package eth

import (
	"bytes"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/eth/ethconfig"
	"github.com/ethereum/go-ethereum/eth/fetcher"
	"github.com/ethereum/go-ethereum/eth/protocols/eth"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
)

// A service tells a patched geth by these methods. They name no type that is new here, so
// that it can be built without the patches.
var _ interface {
	SetTxRouter(router func(tx *types.Transaction, known []enode.ID) (skip func(peer enode.ID) bool))
	TxFetcher() *fetcher.TxFetcher
	AnnounceTxs(id enode.ID, hashes []common.Hash)
	BroadcastTxs(hashes []common.Hash)
} = (*Ethereum)(nil)

// recordingRouter skips the listed peers and records how it is called.
type recordingRouter struct {
	skip []enode.ID

	lock  sync.Mutex
	calls []routerCall
	asked []enode.ID // peers for which skip was called
}

type routerCall struct {
	hash  common.Hash
	known []enode.ID
}

func (r *recordingRouter) route(tx *types.Transaction, known []enode.ID) func(enode.ID) bool {
	r.lock.Lock()
	defer r.lock.Unlock()

	r.calls = append(r.calls, routerCall{tx.Hash(), slices.Clone(known)})
	return func(peer enode.ID) bool {
		r.lock.Lock()
		defer r.lock.Unlock()

		r.asked = append(r.asked, peer)
		return slices.Contains(r.skip, peer)
	}
}

// routerPeer is the far end of an eth session with the handler under test.
type routerPeer struct {
	id     enode.ID
	local  *eth.Peer // the session as the handler under test sees it
	anns   chan []common.Hash
	bcasts chan []*types.Transaction
}

// addRouterPeer connects a peer and waits until it is registered.
func addRouterPeer(t *testing.T, h *testHandler, id enode.ID) *routerPeer {
	t.Helper()

	pipe, remotePipe := p2p.MsgPipe()
	local := eth.NewPeer(eth.ETH69, p2p.NewPeerPipe(id, "", nil, pipe), pipe, h.txpool, h.blobpool, nil)
	remote := eth.NewPeer(eth.ETH69, p2p.NewPeerPipe(enode.ID{0xff}, "", nil, remotePipe), remotePipe, h.txpool, h.blobpool, nil)

	go h.handler.runEthPeer(local, func(peer *eth.Peer) error {
		return eth.Handle((*ethHandler)(h.handler), peer)
	})
	head := h.chain.CurrentBlock()
	if err := remote.Handshake(1, h.chain, eth.BlockRangeUpdatePacket{LatestBlock: head.Number.Uint64(), LatestBlockHash: head.Hash()}); err != nil {
		t.Fatalf("handshake: %v", err)
	}
	p := &routerPeer{id, local, make(chan []common.Hash, 16), make(chan []*types.Transaction, 16)}
	backend := new(testEthHandler)
	annSub := backend.txAnnounces.Subscribe(p.anns)
	bcastSub := backend.txBroadcasts.Subscribe(p.bcasts)
	go eth.Handle(backend, remote)

	t.Cleanup(func() {
		annSub.Unsubscribe()
		bcastSub.Unsubscribe()
		pipe.Close()
		local.Close()
		remote.Close()
	})
	for deadline := time.Now().Add(5 * time.Second); h.handler.peers.peer(local.ID()) == nil; {
		if time.Now().After(deadline) {
			t.Fatalf("peer %v was not registered", id)
		}
		time.Sleep(time.Millisecond)
	}
	return p
}

// expect checks that the given transaction is sent or announced next, whichever gossip chooses.
func (p *routerPeer) expect(t *testing.T, hash common.Hash) {
	t.Helper()
	var got common.Hash
	select {
	case hashes := <-p.anns:
		got = hashes[0]
	case txs := <-p.bcasts:
		got = txs[0].Hash()
	case <-time.After(5 * time.Second):
	}
	if got != hash {
		t.Fatalf("peer %x: got %x, want %x", p.id[:1], got, hash)
	}
}

// expectAnnounce checks that exactly the given hash is announced next.
func (p *routerPeer) expectAnnounce(t *testing.T, hash common.Hash) {
	t.Helper()
	select {
	case got := <-p.anns:
		if len(got) != 1 || got[0] != hash {
			t.Fatalf("peer %x: announced %x, want %x", p.id[:1], got, hash)
		}
	case <-p.bcasts:
		t.Fatalf("peer %x: got the transaction, want an announcement", p.id[:1])
	case <-time.After(5 * time.Second):
		t.Fatalf("peer %x: no announcement", p.id[:1])
	}
}

// expectTx checks that exactly the given transaction is sent next.
func (p *routerPeer) expectTx(t *testing.T, hash common.Hash) {
	t.Helper()
	select {
	case got := <-p.bcasts:
		if len(got) != 1 || got[0].Hash() != hash {
			t.Fatalf("peer %x: got %d transactions, want only %x", p.id[:1], len(got), hash)
		}
	case <-p.anns:
		t.Fatalf("peer %x: got an announcement, want the transaction", p.id[:1])
	case <-time.After(5 * time.Second):
		t.Fatalf("peer %x: no transaction", p.id[:1])
	}
}

// expectNothing checks that neither a transaction nor an announcement arrives.
func (p *routerPeer) expectNothing(t *testing.T) {
	t.Helper()
	select {
	case <-p.bcasts:
		t.Fatalf("peer %x: got a transaction, want nothing", p.id[:1])
	case <-p.anns:
		t.Fatalf("peer %x: got an announcement, want nothing", p.id[:1])
	case <-time.After(200 * time.Millisecond):
	}
}

func routerTestTx(nonce uint64) *types.Transaction {
	tx := types.NewTransaction(nonce, common.Address{}, new(big.Int), 100000, new(big.Int), nil)
	tx, _ = types.SignTx(tx, types.HomesteadSigner{}, testKey)
	return tx
}

// A skipped peer gets nothing and is not marked, a peer that knows the transaction is
// reported to the router and not asked for, and AnnounceTxs serves the skipped one later.
func TestTxRouterSkip(t *testing.T) {
	h := newTestHandler(ethconfig.FullSync)
	defer h.close()

	s := &Ethereum{handler: h.handler}
	knowing, skipped, served := addRouterPeer(t, h, enode.ID{1}), addRouterPeer(t, h, enode.ID{2}), addRouterPeer(t, h, enode.ID{3})
	router := &recordingRouter{skip: []enode.ID{skipped.id}}
	s.SetTxRouter(router.route)

	first, second := routerTestTx(0), routerTestTx(1)
	skipped.local.MarkTransaction(first.Hash())
	knowing.local.MarkTransaction(second.Hash())
	h.txpool.Add([]*types.Transaction{second}, false)
	served.expect(t, second.Hash())
	knowing.expectNothing(t)
	skipped.expectNothing(t)
	if skipped.local.KnownTransaction(second.Hash()) {
		t.Fatal("skipping marked the transaction as known")
	}
	router.lock.Lock()
	if len(router.calls) != 1 || router.calls[0].hash != second.Hash() || !slices.Equal(router.calls[0].known, []enode.ID{knowing.id}) {
		t.Fatalf("router calls %v, want one with peer 01 as known", router.calls)
	}
	slices.SortFunc(router.asked, func(a, b enode.ID) int { return bytes.Compare(a[:], b[:]) })
	if !slices.Equal(router.asked, []enode.ID{skipped.id, served.id}) {
		t.Fatalf("the router was asked for %x, want peers 02 and 03", router.asked)
	}
	router.lock.Unlock()

	// AnnounceTxs serves what the peer does not know, and only that.
	hashes := []common.Hash{first.Hash(), second.Hash()}
	s.AnnounceTxs(skipped.id, hashes)
	skipped.expectAnnounce(t, second.Hash())
	s.AnnounceTxs(skipped.id, hashes)
	skipped.expectNothing(t)
	s.AnnounceTxs(enode.ID{9}, hashes) // nobody
	if hashes[0] != first.Hash() || hashes[1] != second.Hash() {
		t.Fatal("AnnounceTxs changed its argument")
	}
}

// BroadcastTxs asks the router once more, and gossips to those who do not know the transaction.
func TestTxRouterBroadcastTxs(t *testing.T) {
	h := newTestHandler(ethconfig.FullSync)
	defer h.close()

	s := &Ethereum{handler: h.handler}
	knowing, skipped := addRouterPeer(t, h, enode.ID{1}), addRouterPeer(t, h, enode.ID{2})
	router := &recordingRouter{skip: []enode.ID{skipped.id}}
	s.SetTxRouter(router.route)

	tx := routerTestTx(0)
	knowing.local.MarkTransaction(tx.Hash())
	h.txpool.Add([]*types.Transaction{tx}, false)
	skipped.expectNothing(t)
	router.lock.Lock()
	router.skip = nil
	router.lock.Unlock()
	s.BroadcastTxs([]common.Hash{routerTestTx(1).Hash(), tx.Hash()}) // the first one is not in the pool
	skipped.expect(t, tx.Hash())
	knowing.expectNothing(t)
	router.lock.Lock()
	defer router.lock.Unlock()
	if len(router.calls) != 2 || router.calls[1].hash != tx.Hash() {
		t.Fatalf("router calls %v, want two with the transaction", router.calls)
	}
}

// A router that skips nobody, and the absence of one, leave gossip as it is.
func TestTxRouterGossip(t *testing.T) {
	h := newTestHandler(ethconfig.FullSync)
	defer h.close()

	s := &Ethereum{handler: h.handler}
	peer := addRouterPeer(t, h, enode.ID{1}) // the only one, so it gets the transactions themselves

	routers := []TxRouter{
		func(*types.Transaction, []enode.ID) func(enode.ID) bool { return nil },
		new(recordingRouter).route,
		nil,
	}
	for nonce := range len(routers) + 1 {
		if nonce > 0 { // the first transaction goes before any router is set
			s.SetTxRouter(routers[nonce-1])
		}
		tx := routerTestTx(uint64(nonce))
		h.txpool.Add([]*types.Transaction{tx}, false)
		peer.expectTx(t, tx.Hash())
	}
}

// The router sees every transaction of a batch once, also without any peer.
func TestTxRouterNoPeers(t *testing.T) {
	h := newTestHandler(ethconfig.FullSync)
	defer h.close()

	router := new(recordingRouter)
	(&Ethereum{handler: h.handler}).SetTxRouter(router.route)

	txs := types.Transactions{routerTestTx(0), routerTestTx(1)}
	h.handler.BroadcastTransactions(txs)
	if len(router.calls) != len(txs) {
		t.Fatalf("%d router calls, want %d", len(router.calls), len(txs))
	}
	for i, call := range router.calls {
		if call.hash != txs[i].Hash() || len(call.known) != 0 {
			t.Errorf("call %d: %v, want %x and no peers", i, call, txs[i].Hash())
		}
	}
}
