// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/eth"
	"github.com/ethereum/go-ethereum/eth/fetcher"
	ethproto "github.com/ethereum/go-ethereum/eth/protocols/eth"
	"github.com/ethereum/go-ethereum/event"
	"github.com/ethereum/go-ethereum/node"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/ethmcast/discovery"
)

const flagCategory = "MULTICAST DIFFUSION"

// Flags of geth.
var (
	EnabledFlag = &cli.BoolFlag{
		Name:     "mdcs",
		Usage:    "Send and receive transactions by multicast through replication points",
		Category: flagCategory,
	}
	RPFlag = &cli.StringSliceFlag{
		Name:     "mdcs.rp",
		Usage:    "enode URL of a replication point, with its IPv6 address; give more in order of preference",
		Category: flagCategory,
	}
	PortFlag = &cli.IntFlag{
		Name:     "mdcs.port",
		Usage:    "UDP port for datagrams of the replication point (0 = any)",
		Value:    30400,
		Category: flagCategory,
	}
	PublishFlag = &cli.StringFlag{
		Name:     "mdcs.publish",
		Usage:    `Transactions to publish by multicast: "all", "bridged" (not those of the own RPC) or "none"`,
		Value:    string(PublishAll),
		Category: flagCategory,
	}
	DeliveryFlag = &cli.StringFlag{
		Name:     "mdcs.delivery",
		Usage:    `How datagrams come: "unicast", or "ssm" (one by multicast for all nodes on the link, where possible)`,
		Value:    string(DeliverUnicast),
		Category: flagCategory,
	}
	DNSFlag = &cli.StringSliceFlag{
		Name:     "mdcs.dns",
		Usage:    "enrtree URL of a signed DNS tree of replication points; the nearest are used, those of --mdcs.rp among them",
		Category: flagCategory,
	}
	Discv5Flag = &cli.BoolFlag{
		Name:     "mdcs.discv5",
		Usage:    "Look for replication points in the DHT too, and use those that --mdcs.allow names",
		Category: flagCategory,
	}
	AllowFlag = &cli.StringSliceFlag{
		Name:     "mdcs.allow",
		Usage:    "Node id of a replication point that may be used when it is found in the DHT",
		Category: flagCategory,
	}
	OpenFlag = &cli.BoolFlag{
		Name:     "mdcs.open",
		Usage:    "Use any replication point that is found in the DHT",
		Category: flagCategory,
	}
	ReceiptsFlag = &cli.Float64Flag{
		Name:     "mdcs.receipts",
		Usage:    "Share of the published transactions, 0 to 1, that ask how many nodes get them",
		Category: flagCategory,
	}
	SurplusFlag = &cli.Uint64Flag{
		Name:     "mdcs.surplus",
		Usage:    "Confirmations beyond half of the nodes that make a majority",
		Category: flagCategory,
	}
	Flags = []cli.Flag{EnabledFlag, RPFlag, DNSFlag, Discv5Flag, AllowFlag, OpenFlag, PortFlag, PublishFlag, DeliveryFlag, ReceiptsFlag, SurplusFlag}
)

// Register adds multicast diffusion to a geth node that does not run yet.
func Register(ctx *cli.Context, stack *node.Node, backend *eth.Ethereum) error {
	cfg := Config{
		Publish:   PublishMode(ctx.String(PublishFlag.Name)),
		Delivery:  Delivery(ctx.String(DeliveryFlag.Name)),
		NetworkID: networkID(backend),
		Genesis:   backend.BlockChain().Genesis().Hash(),
		Receipts:  ctx.Float64(ReceiptsFlag.Name),
		Surplus:   ctx.Uint64(SurplusFlag.Name),
		Gossips:   func(peer *p2p.Peer) bool { return peer.RunningCap(ethproto.ProtocolName, ethproto.ProtocolVersions) },
	}
	port := ctx.Int(PortFlag.Name)
	if port < 0 || port > 65535 {
		return fmt.Errorf("--%s: %d is not a port", PortFlag.Name, port)
	}
	cfg.Port = uint16(port)
	rps, err := rpConfig(ctx)
	if err != nil {
		return err
	}
	cfg.RPs = rps
	find, err := findConfig(ctx)
	if err != nil {
		return err
	}
	cfg.Find = find
	hooks, ok := any(backend).(patched)
	if !ok {
		return errors.New("this geth was built without the mDCS patches")
	}
	service, err := New(cfg, &gethBackend{backend, hooks})
	if err != nil {
		return err
	}
	hooks.SetTxRouter(service.RouteTx)
	stack.RegisterProtocols(service.Protocols())
	stack.RegisterAPIs(service.APIs())
	stack.RegisterLifecycle(&lifecycle{Service: service, stack: stack})
	return nil
}

// networkID returns the network that geth is in, by flag, by file or by its chain.
func networkID(backend *eth.Ethereum) uint64 {
	for _, p := range backend.Protocols() {
		if info, ok := p.NodeInfo().(*ethproto.NodeInfo); ok {
			return info.Network
		}
	}
	return backend.BlockChain().Config().ChainID.Uint64()
}

// lifecycle starts the service when the devp2p server runs. Without the service geth gossips.
type lifecycle struct {
	*Service
	stack   *node.Node
	started bool
}

func (l *lifecycle) Start() error {
	if err := l.start(); err != nil {
		l.log.Error("Multicast diffusion not started, transactions go by gossip alone", "err", err)
		return nil
	}
	l.started = true
	return nil
}

func (l *lifecycle) Stop() error {
	if !l.started {
		return nil
	}
	return l.Service.Stop()
}

func (l *lifecycle) start() error {
	server := l.stack.Server()
	if find := l.cfg.Find; find != nil && find.DHT {
		disc := server.DiscoveryV5()
		if disc == nil {
			return fmt.Errorf("--%s needs discovery of version 5 (--discovery.v5, without --nodiscover)", Discv5Flag.Name)
		}
		find.Walk = disc.RandomNodes()
	}
	return l.Service.Start(server)
}

// rpConfig returns the replication points that are named. Datagrams of one are known by
// its address, so a host name is none.
func rpConfig(ctx *cli.Context) (rps []*enode.Node, err error) {
	for _, url := range ctx.StringSlice(RPFlag.Name) {
		rp, err := enode.ParseV4(url)
		if err != nil {
			return nil, fmt.Errorf("--%s %s: %w", RPFlag.Name, url, err)
		}
		if endpoint, ok := rp.TCPEndpoint(); !ok || !endpoint.Addr().Is6() || endpoint.Addr().Is4In6() {
			return nil, fmt.Errorf("--%s %s: want an IPv6 address, in brackets, and a port", RPFlag.Name, url)
		}
		rps = append(rps, rp)
	}
	return rps, nil
}

// findConfig returns where to look for replication points, nil for nowhere.
func findConfig(ctx *cli.Context) (*Find, error) {
	find := &Find{
		Trees: ctx.StringSlice(DNSFlag.Name),
		DHT:   ctx.Bool(Discv5Flag.Name),
		Open:  ctx.Bool(OpenFlag.Name),
	}
	for _, text := range ctx.StringSlice(AllowFlag.Name) {
		id, err := enode.ParseID(text)
		if err != nil {
			return nil, fmt.Errorf("--%s %s: %w", AllowFlag.Name, text, err)
		}
		find.Allow = append(find.Allow, id)
	}
	if (find.Open || len(find.Allow) > 0) && !find.DHT {
		return nil, fmt.Errorf("--%s and --%s are for --%s", OpenFlag.Name, AllowFlag.Name, Discv5Flag.Name)
	}
	for _, url := range find.Trees {
		if err := discovery.CheckTree(url); err != nil {
			return nil, fmt.Errorf("--%s: %w", DNSFlag.Name, err)
		}
	}
	if len(find.Trees) == 0 && !find.DHT {
		return nil, nil
	}
	return find, nil
}

// patched is what patches/ adds to eth.Ethereum. As an interface it lets this
// package build, and be checked, against a geth without the patches too.
type patched interface {
	SetTxRouter(router func(tx *types.Transaction, known []enode.ID) (skip func(peer enode.ID) bool))
	TxFetcher() *fetcher.TxFetcher
	AnnounceTxs(id enode.ID, hashes []common.Hash)
	BroadcastTxs(hashes []common.Hash)
}

type gethBackend struct {
	eth   *eth.Ethereum
	hooks patched
}

func (b *gethBackend) Synced() bool { return b.eth.Synced() }

func (b *gethBackend) Enqueue(txs []*types.Transaction) error {
	return b.hooks.TxFetcher().Enqueue("mdcs", ethproto.ETH72, txs, false)
}

func (b *gethBackend) HasTx(hash common.Hash) bool { return b.eth.TxPool().Has(hash) }

func (b *gethBackend) BroadcastTxs(hashes []common.Hash) { b.hooks.BroadcastTxs(hashes) }

func (b *gethBackend) AnnounceTxs(peer enode.ID, hashes []common.Hash) {
	b.hooks.AnnounceTxs(peer, hashes)
}

func (b *gethBackend) SubscribeHeads(f func()) event.Subscription {
	heads := make(chan core.ChainHeadEvent, 16)
	sub := b.eth.BlockChain().SubscribeChainHeadEvent(heads)
	return event.NewSubscription(func(quit <-chan struct{}) error {
		defer sub.Unsubscribe()
		for {
			select {
			case <-heads:
				f()
			case err := <-sub.Err():
				return err
			case <-quit:
				return nil
			}
		}
	})
}
