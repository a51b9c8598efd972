// SPDX-License-Identifier: LGPL-3.0-or-later

package workload

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/miner"
	"github.com/ethereum/go-ethereum/params"
	"github.com/stretchr/testify/require"
)

var small = Params{ChainID: 1337, Seed: 1, Txs: 400, Rate: 20, Nodes: 6}

// large has bursts, fee bumps and weights.
var large = Params{
	ChainID: 1337, Seed: 7, Txs: 3000, Rate: 25, Nodes: 5,
	Weights: []float64{5, 1, 2, 2, 0},
	Burst:   50, BurstEvery: 10 * time.Second,
	Bumps: 0.05,
}

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

func TestPlanTimes(t *testing.T) {
	txs, err := Plan(small)
	require.NoError(t, err)
	require.Len(t, txs, small.Txs)
	require.Zero(t, txs[0].At)
	require.True(t, slices.IsSortedFunc(txs, func(a, b Tx) int { return int(a.At - b.At) }))
	mean := txs[len(txs)-1].At.Seconds() / float64(len(txs)-1)
	require.InEpsilon(t, 1/small.Rate, mean, 0.3)
}

// TestPlanIsValid checks what a node checks of each transaction.
func TestPlanIsValid(t *testing.T) {
	txs, err := Plan(large)
	require.NoError(t, err)
	require.Len(t, txs, large.Txs)

	var (
		osaka  = params.Rules{IsHomestead: true, IsIstanbul: true, IsShanghai: true, IsPrague: true, IsOsaka: true}
		signer = types.LatestSignerForChainID(big.NewInt(large.ChainID))
		nonces = make(map[common.Address]uint64)
		node   = make(map[common.Address]int)
		known  = make(map[common.Address]bool)
		hashes = make(map[common.Hash]bool)
		auths  = make(map[common.Address]bool)
	)
	for _, a := range Addresses(large.Seed, large.Nodes) {
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
		if x.Kind != FeeBump {
			require.Equal(t, nonces[from], tx.Nonce())
			nonces[from]++
		}
		if n, ok := node[from]; ok {
			require.Equal(t, n, x.Node, "account sends through two nodes")
		}
		node[from] = x.Node
		for _, a := range tx.SetCodeAuthorities() {
			require.False(t, auths[a] || known[a], "authority does something else")
			auths[a] = true
		}

		intrinsic, err := core.IntrinsicGas(tx.Data(), tx.AccessList(), tx.SetCodeAuthorizations(), from, tx.To(), nil, osaka)
		require.NoError(t, err)
		floor, err := core.FloorDataGas(osaka, from, tx.To(), nil, tx.Data(), nil)
		require.NoError(t, err)
		require.GreaterOrEqual(t, tx.Gas(), max(intrinsic, floor))
		require.LessOrEqual(t, tx.Gas(), params.MaxTxGas)
	}
	require.NotEmpty(t, auths)
	senders, err := Senders(large.ChainID, txs)
	require.NoError(t, err)
	require.Len(t, senders, len(node))
	_, err = Senders(1, txs[:1])
	require.ErrorContains(t, err, "transaction 0")
}

func TestPlanMix(t *testing.T) {
	txs, err := Plan(large)
	require.NoError(t, err)
	kinds, nodes, announced, moments := make(map[Kind]int), make([]int, large.Nodes), 0, make(map[time.Duration]int)
	for _, x := range txs {
		kinds[x.Kind]++
		nodes[x.Node]++
		moments[x.At]++
		require.Greater(t, len(x.Raw), 90)
		require.LessOrEqual(t, len(x.Raw), 64<<10)
		if len(x.Raw) > 4096 {
			announced++
		}
	}
	require.Len(t, kinds, len(mix)+1)
	require.Equal(t, 150, kinds[FeeBump])
	for _, m := range mix {
		require.InDelta(t, m.share, float64(kinds[m.kind])*100/float64(large.Txs), 4, m.kind)
	}
	for i, w := range large.Weights {
		require.InDelta(t, w/10, float64(nodes[i])/float64(large.Txs), 0.04, "node %d", i)
	}
	require.Zero(t, nodes[4])
	require.Greater(t, announced, large.Txs/200)
	require.Less(t, announced, large.Txs/20)
	for i := range 5 {
		require.Equal(t, large.Burst, moments[time.Duration(i+1)*large.BurstEvery])
	}
}

// TestFeeBumps looks for the transaction that each fee bump replaces.
func TestFeeBumps(t *testing.T) {
	txs, err := Plan(large)
	require.NoError(t, err)
	type slot struct {
		from  common.Address
		nonce uint64
	}
	type first struct {
		Tx
		tx types.Transaction
	}
	var (
		signer = types.LatestSignerForChainID(big.NewInt(large.ChainID))
		firsts = make(map[slot]*first)
	)
	for _, x := range txs {
		f := &first{Tx: x}
		require.NoError(t, f.tx.UnmarshalBinary(x.Raw))
		from, err := types.Sender(signer, &f.tx)
		require.NoError(t, err)
		key := slot{from, f.tx.Nonce()}
		if x.Kind != FeeBump {
			firsts[key] = f
			continue
		}
		old := firsts[key]
		require.NotNil(t, old, "replaces nothing")
		require.Equal(t, old.Node, x.Node)
		require.GreaterOrEqual(t, x.At-old.At, minBumpDelay)
		require.LessOrEqual(t, x.At-old.At, maxBumpDelay)
		for _, fees := range [][2]*big.Int{{old.tx.GasTipCap(), f.tx.GasTipCap()}, {old.tx.GasFeeCap(), f.tx.GasFeeCap()}} {
			rise := float64(fees[1].Int64()) / float64(fees[0].Int64())
			require.GreaterOrEqual(t, rise, 1.1)
			require.LessOrEqual(t, rise, 1.25)
		}
		require.Less(t, f.tx.GasTipCap().Int64(), miner.DefaultConfig.GasPrice.Int64(), "could be in a block")
	}
}

func TestWeights(t *testing.T) {
	require.Equal(t, []float64{0.3, 0.3, 0.4}, Weights([]string{"a", "a", "b"}, map[string]float64{"a": 0.6, "b": 0.4}))
}

func TestFile(t *testing.T) {
	txs, err := Plan(large)
	require.NoError(t, err)
	want := File{ChainID: large.ChainID, Nodes: large.Nodes, Txs: txs}
	var text bytes.Buffer
	require.NoError(t, Write(&text, want))
	lines := strings.SplitAfter(text.String(), "\n")
	require.Len(t, lines, 1+len(txs)+1)
	require.Equal(t, "mdcs-workload 1 chain=1337 nodes=5\n", lines[0])
	have, err := Read(&text)
	require.NoError(t, err)
	require.Equal(t, want, have)

	header, one := lines[0], lines[1]
	at := strings.SplitN(one, " ", 2)[1]
	for name, c := range map[string]struct{ text, want string }{
		"empty":           {"", "no transactions"},
		"only a header":   {header, "no transactions"},
		"another version": {"mdcs-workload 2 chain=1337 nodes=5\n", "line 1: no workload of version 1"},
		"no nodes":        {"mdcs-workload 1 chain=1337 nodes=0\n", "line 1: chain 1337 with 0 nodes"},
		"another chain":   {"mdcs-workload 1 chain=1 nodes=5\n" + one, "line 2: transaction is for chain 1337"},
		"too few nodes":   {"mdcs-workload 1 chain=1337 nodes=5\n0 5 " + strings.SplitN(at, " ", 2)[1], "line 2: node 5 of 5"},
		"times go back":   {header + "5 " + at + "4 " + at, "line 3: time 4ns"},
		"fields":          {header + "0 1 legacy-call\n", "line 2: 3 fields"},
		"no hex":          {header + "0 1 legacy-call xx\n", "line 2: encoding/hex"},
		"no transaction":  {header + "0 1 legacy-call 02c0\n", "line 2: transaction"},
	} {
		_, err := Read(strings.NewReader(c.text))
		require.ErrorContains(t, err, c.want, name)
	}
}

func TestPlanRefusesNonsense(t *testing.T) {
	for _, spoil := range []func(*Params){
		func(p *Params) { p.Txs = 0 },
		func(p *Params) { p.Rate = 0 },
		func(p *Params) { p.Rate = math.NaN() },
		func(p *Params) { p.Nodes = -1 },
		func(p *Params) { p.Weights = []float64{1} },
		func(p *Params) { p.Weights = make([]float64, p.Nodes) },
		func(p *Params) { p.Weights = []float64{1, 1, 1, 1, 1, -1} },
		func(p *Params) { p.Burst = 3 },
		func(p *Params) { p.Bumps = 0.6 },
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
			require.Equal(t, s.At.Sub(start)-txs[i].At, s.Late)
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
