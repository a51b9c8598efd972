// SPDX-License-Identifier: LGPL-3.0-or-later

package beacon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/beacon/engine"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/stretchr/testify/require"
)

func TestGenesis(t *testing.T) {
	account := common.Address{1}
	g := Genesis(1000, []common.Address{account})
	block := g.ToBlock()
	require.Equal(t, uint64(1000), block.Time())
	require.Equal(t, g.ToBlock().Hash(), block.Hash())
	require.True(t, g.Config.IsOsaka(new(big.Int), 1000))
	require.NoError(t, g.Config.CheckConfigForkOrder())
	require.Equal(t, funds, g.Alloc[account].Balance)
}

// fakeEngine is a node that knows the blocks it was given.
type fakeEngine struct {
	name string

	mu       sync.Mutex
	down     bool
	head     common.Hash
	blocks   map[common.Hash]*engine.ExecutableData
	building *engine.ExecutableData
	heads    []common.Hash   // in the order in which they were set
	ahead    []time.Duration // of the slot, when a block for it was begun
}

func (f *fakeEngine) Name() string { return f.name }

func (f *fakeEngine) Call(_ context.Context, result any, method string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return errors.New("down")
	}
	valid := engine.PayloadStatusV1{Status: engine.VALID}
	switch method {
	case "engine_forkchoiceUpdatedV3":
		state, attrs := args[0].(engine.ForkchoiceStateV1), args[1].(*engine.PayloadAttributes)
		resp := result.(*engine.ForkChoiceResponse)
		parent, ok := f.blocks[state.HeadBlockHash]
		if !ok {
			resp.PayloadStatus.Status = engine.SYNCING
			return nil
		}
		resp.PayloadStatus = valid
		if attrs == nil {
			if f.head != state.HeadBlockHash {
				f.heads = append(f.heads, state.HeadBlockHash)
			}
			f.head = state.HeadBlockHash
			return nil
		}
		if attrs.Timestamp <= parent.Timestamp || attrs.Withdrawals == nil || attrs.BeaconRoot == nil {
			return errors.New("bad attributes")
		}
		f.ahead = append(f.ahead, time.Until(time.Unix(int64(attrs.Timestamp), 0)))
		f.building = &engine.ExecutableData{
			ParentHash: parent.BlockHash,
			BlockHash:  common.BytesToHash(fmt.Appendf(nil, "%s %d", f.name, attrs.Timestamp)),
			Number:     parent.Number + 1,
			Timestamp:  attrs.Timestamp,
		}
		resp.PayloadID = &engine.PayloadID{3}
	case "engine_getPayloadV5":
		result.(*engine.ExecutionPayloadEnvelope).ExecutionPayload = f.building
	case "engine_newPayloadV4":
		block := args[0].(*engine.ExecutableData)
		if args[1].([]common.Hash) == nil || args[3].([]hexutil.Bytes) == nil {
			return errors.New("null argument")
		}
		status := result.(*engine.PayloadStatusV1)
		if _, ok := f.blocks[block.ParentHash]; !ok {
			status.Status = engine.SYNCING
			return nil
		}
		*status = valid
		f.blocks[block.BlockHash] = block
	default:
		return fmt.Errorf("unexpected method %s", method)
	}
	return nil
}

// newFakes makes n nodes and a driver at slot 0.
func newFakes(n int) ([]*fakeEngine, *Driver) {
	genesis := types.NewBlockWithHeader(&types.Header{Time: uint64(time.Now().Unix())})
	var (
		fakes   []*fakeEngine
		engines []Engine
	)
	for i := range n {
		f := &fakeEngine{
			name: fmt.Sprintf("n%d", i),
			blocks: map[common.Hash]*engine.ExecutableData{
				genesis.Hash(): {BlockHash: genesis.Hash(), Timestamp: genesis.Time()},
			},
		}
		fakes, engines = append(fakes, f), append(engines, f)
	}
	return fakes, New(engines, genesis, SlotTime, slog.New(slog.DiscardHandler))
}

func runFor(t *testing.T, d *Driver, slots int) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(slots)*SlotTime+SlotTime/2)
	defer cancel()
	d.Run(ctx)
}

func TestDriver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, d := newFakes(3)
		require.NoError(t, d.Begin(t.Context()))
		runFor(t, d, 7)
		for _, n := range nodes {
			require.Equal(t, nodes[0].heads, n.heads)
			require.Equal(t, uint64(7), n.blocks[n.head].Number, "slots 1 to 7")
			require.Equal(t, uint64(time.Now().Unix())-1, n.blocks[n.head].Timestamp)
			for _, ahead := range n.ahead {
				require.Equal(t, SlotTime/2, ahead)
			}
		}
		proposers := make(map[byte]bool)
		for _, hash := range nodes[0].heads[1:] {
			proposers[common.TrimLeftZeroes(hash[:])[1]] = true
		}
		require.Len(t, proposers, len(nodes))
	})
}

// TestDriverWithFailedNode loses the slots of a node that is down, and nothing
// else.
func TestDriverWithFailedNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, d := newFakes(3)
		require.NoError(t, d.Begin(t.Context()))
		nodes[1].down = true
		runFor(t, d, 7)
		require.Equal(t, uint64(4), nodes[0].blocks[nodes[0].head].Number, "slots 2, 3, 5 and 6")
		require.Equal(t, nodes[0].heads, nodes[2].heads)
		require.Len(t, nodes[1].heads, 1)
	})
}

func TestBeginReportsDeadNode(t *testing.T) {
	nodes, d := newFakes(2)
	nodes[1].down = true
	require.ErrorContains(t, d.Begin(t.Context()), "down")
}
