// SPDX-License-Identifier: LGPL-3.0-or-later

package workload

import (
	"context"
	"errors"
	"math/big"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/params"
	"github.com/stretchr/testify/require"
)

var small = Params{ChainID: 1337, Seed: 1, Txs: 400, Rate: 20, Nodes: 6}

func TestPlanDependsOnSeedOnly(t *testing.T) {
	a, err := Plan(small)
	require.NoError(t, err)
	b, err := Plan(small)
	require.NoError(t, err)
	require.Equal(t, a, b)

	other := small
	other.Seed = 2
	c, err := Plan(other)
	require.NoError(t, err)
	require.NotEqual(t, a[0].Hash, c[0].Hash)
}

func TestPlan(t *testing.T) {
	txs, err := Plan(small)
	require.NoError(t, err)
	require.Len(t, txs, small.Txs)
	require.True(t, slices.IsSortedFunc(txs, func(a, b Tx) int { return int(a.At - b.At) }))
	mean := txs[len(txs)-1].At.Seconds() / float64(len(txs)-1)
	require.InEpsilon(t, 1/small.Rate, mean, 0.3)

	var (
		osaka  = params.Rules{IsPrague: true, IsOsaka: true}
		signer = types.LatestSignerForChainID(big.NewInt(small.ChainID))
		nonces = make(map[common.Address]uint64)
		node   = make(map[common.Address]int)
		used   = make(map[int]bool)
		kinds  = make(map[Kind]int)
		known  = make(map[common.Address]bool)
		hashes = make(map[common.Hash]bool)
	)
	for _, a := range Addresses(small.Seed, small.Nodes) {
		known[a] = true
	}
	for _, x := range txs {
		var tx types.Transaction
		require.NoError(t, tx.UnmarshalBinary(x.Raw))
		require.Equal(t, x.Hash, tx.Hash())
		require.False(t, hashes[x.Hash])
		hashes[x.Hash] = true

		from, err := types.Sender(signer, &tx)
		require.NoError(t, err)
		require.True(t, known[from], "sender without money")
		require.Equal(t, nonces[from], tx.Nonce())
		nonces[from]++
		if n, ok := node[from]; ok {
			require.Equal(t, n, x.Node, "account sends through two nodes")
		}
		node[from] = x.Node
		used[x.Node] = true
		kinds[x.Kind]++

		require.Less(t, len(x.Raw), 4096)
		floor, err := core.FloorDataGas(osaka, from, tx.To(), nil, tx.Data(), nil)
		require.NoError(t, err)
		require.GreaterOrEqual(t, tx.Gas(), floor)
	}
	require.Len(t, used, small.Nodes)
	require.Len(t, kinds, 4)
}

func TestPlanRefusesNonsense(t *testing.T) {
	for _, spoil := range []func(*Params){
		func(p *Params) { p.Txs = 0 },
		func(p *Params) { p.Rate = 0 },
		func(p *Params) { p.Nodes = -1 },
	} {
		p := small
		spoil(&p)
		_, err := Plan(p)
		require.Error(t, err)
	}
}

func TestSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		txs, err := Plan(small)
		require.NoError(t, err)
		var (
			mu    sync.Mutex
			start = time.Now().Add(time.Second)
			no    = errors.New("no")
			busy  = make(map[int]bool)
		)
		sent, err := Send(t.Context(), txs, start, func(_ context.Context, tx Tx) error {
			mu.Lock()
			require.False(t, busy[tx.Node], "two calls to a node at once")
			busy[tx.Node] = true
			mu.Unlock()
			time.Sleep(time.Microsecond)
			mu.Lock()
			busy[tx.Node] = false
			mu.Unlock()
			if tx.Hash == txs[3].Hash {
				return no
			}
			return nil
		})
		require.NoError(t, err)
		for i, s := range sent {
			require.InDelta(t, txs[i].At, s.At.Sub(start), float64(time.Millisecond))
		}
		require.ErrorIs(t, Refused(sent), no)
		require.ErrorContains(t, Refused(sent), "transaction 3")
	})
}

func TestSendEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		txs, err := Plan(small)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = Send(ctx, txs, time.Now(), func(context.Context, Tx) error { return nil })
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}
