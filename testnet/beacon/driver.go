// SPDX-License-Identifier: LGPL-3.0-or-later

package beacon

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ethereum/go-ethereum/beacon/engine"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
)

// SlotTime is a time between two blocks that is short enough for tests.
const SlotTime = 2 * time.Second

// A block is begun long before its slot, and taken from its proposer soon after that:
// geth chooses the transactions at once and would choose again after 2 s. So it holds
// what its proposer knew half a slot ago, when all had adopted the block before. When that is longer than the
// slowest diffusion, a transaction is known everywhere when the block with it
// arrives, and its diffusion can be measured to the end.
const takeTime = 500 * time.Millisecond // for the choice

// callTimeout limits one Engine API call. A node that does not answer in time
// misses the block and gets it later from its peers.
const callTimeout = time.Second

// Engine is the Engine API of an execution node.
type Engine interface {
	Name() string
	Call(ctx context.Context, result any, method string, args ...any) error
}

// Driver makes the chain grow. Each slot one node, in turn, builds a block, and
// then all nodes get it, one after another.
type Driver struct {
	engines []Engine
	slot    time.Duration
	head    common.Hash
	parent  common.Hash // of the head; final, as there are no forks
	genesis time.Time   // slot 0
	log     *slog.Logger
}

// New makes a driver that starts from the genesis block, and makes a block in each
// slot of the given length, whole seconds from 2 s on.
func New(engines []Engine, genesis *types.Block, slot time.Duration, log *slog.Logger) *Driver {
	return &Driver{
		engines: engines,
		slot:    slot,
		head:    genesis.Hash(),
		parent:  genesis.Hash(),
		genesis: time.Unix(int64(genesis.Time()), 0),
		log:     log,
	}
}

// Begin tells all nodes that the genesis block is the head. Until then they
// refuse transactions from their peers.
func (d *Driver) Begin(ctx context.Context) error {
	return errors.Join(d.all(ctx, 0, d.setHead)...)
}

// Run produces blocks until ctx ends. A slot whose proposer fails stays empty,
// and a node that does not accept a block is left alone; both are logged.
func (d *Driver) Run(ctx context.Context) {
	ahead := d.slot / 2
	slot := int64((time.Since(d.genesis)+ahead)/d.slot) + 1
	for ; ; slot++ {
		start := d.genesis.Add(time.Duration(slot) * d.slot)
		if !sleepUntil(ctx, start.Add(-ahead)) {
			return
		}
		proposer := d.engines[slot%int64(len(d.engines))]
		if err := d.produce(ctx, proposer, slot, start); err != nil && ctx.Err() == nil {
			d.log.Warn("slot stays empty", "slot", slot, "proposer", proposer.Name(), "err", err)
		}
	}
}

// produce lets proposer build a block for the slot, which begins at start, and
// then gives it to all nodes.
func (d *Driver) produce(ctx context.Context, proposer Engine, slot int64, start time.Time) error {
	root := beaconRoot(slot)
	id, err := d.build(ctx, proposer, start, root)
	if err != nil {
		return err
	}
	if !sleepUntil(ctx, time.Now().Add(takeTime)) {
		return ctx.Err()
	}
	block, err := getPayload(ctx, proposer, id)
	if err != nil {
		return err
	}
	if !sleepUntil(ctx, start) {
		return ctx.Err()
	}
	requests := make([]hexutil.Bytes, len(block.Requests))
	for i, r := range block.Requests {
		requests[i] = r
	}
	accepted := 0
	for i, err := range d.all(ctx, d.gap(), func(ctx context.Context, e Engine) error {
		return newPayload(ctx, e, block.ExecutionPayload, root, requests)
	}) {
		if err == nil {
			accepted++
		} else if ctx.Err() == nil {
			d.log.Warn("block not accepted", "slot", slot, "node", d.engines[i].Name(), "err", err)
		}
	}
	if accepted == 0 {
		return errors.New("no node accepted the block")
	}
	d.head, d.parent = block.ExecutionPayload.BlockHash, d.head
	for i, err := range d.all(ctx, d.gap(), d.setHead) {
		if err != nil && ctx.Err() == nil {
			d.log.Warn("head not set", "slot", slot, "node", d.engines[i].Name(), "err", err)
		}
	}
	return nil
}

// gap is between two nodes, so that all get and adopt a block in half a slot.
func (d *Driver) gap() time.Duration { return d.slot / time.Duration(4*len(d.engines)) }

// all calls f for every node and returns the errors in their order. One node works
// at a time, and then none for a while: elsewhere each has processors of its own, here
// all at once would take them from the transactions on their way.
func (d *Driver) all(ctx context.Context, gap time.Duration, f func(context.Context, Engine) error) []error {
	errs := make([]error, len(d.engines))
	for i, e := range d.engines {
		begin := time.Now()
		errs[i] = f(ctx, e)
		sleepUntil(ctx, begin.Add(gap))
	}
	return errs
}

func (d *Driver) setHead(ctx context.Context, e Engine) error {
	_, err := d.forkchoice(ctx, e, nil)
	return err
}

// build makes a node start on a block for a slot that begins at start.
func (d *Driver) build(ctx context.Context, e Engine, start time.Time, root common.Hash) (engine.PayloadID, error) {
	attrs := &engine.PayloadAttributes{
		Timestamp:   uint64(start.Unix()),
		Random:      root,                  // any value that changes per slot
		Withdrawals: []*types.Withdrawal{}, // null is refused
		BeaconRoot:  &root,
	}
	resp, err := d.forkchoice(ctx, e, attrs)
	if err != nil {
		return engine.PayloadID{}, err
	}
	if resp.PayloadID == nil {
		return engine.PayloadID{}, fmt.Errorf("%s: builds no block, head is %s", e.Name(), resp.PayloadStatus.Status)
	}
	return *resp.PayloadID, nil
}

func (d *Driver) forkchoice(ctx context.Context, e Engine, attrs *engine.PayloadAttributes) (engine.ForkChoiceResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var resp engine.ForkChoiceResponse
	state := engine.ForkchoiceStateV1{
		HeadBlockHash:      d.head,
		SafeBlockHash:      d.parent,
		FinalizedBlockHash: d.parent,
	}
	if err := e.Call(ctx, &resp, "engine_forkchoiceUpdatedV3", state, attrs); err != nil {
		return resp, err
	}
	return resp, checkStatus(e, resp.PayloadStatus)
}

func getPayload(ctx context.Context, e Engine, id engine.PayloadID) (*engine.ExecutionPayloadEnvelope, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	block := new(engine.ExecutionPayloadEnvelope)
	err := e.Call(ctx, block, "engine_getPayloadV5", id)
	return block, err
}

func newPayload(ctx context.Context, e Engine, payload *engine.ExecutableData, root common.Hash, requests []hexutil.Bytes) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var status engine.PayloadStatusV1
	// No blob transactions, hence no versioned hashes; null is refused.
	err := e.Call(ctx, &status, "engine_newPayloadV4", payload, []common.Hash{}, root, requests)
	if err != nil {
		return err
	}
	return checkStatus(e, status)
}

// checkStatus accepts VALID, and SYNCING and ACCEPTED, which a node answers that
// misses the parent and will fetch it from its peers.
func checkStatus(e Engine, s engine.PayloadStatusV1) error {
	switch s.Status {
	case engine.VALID, engine.SYNCING, engine.ACCEPTED:
		return nil
	}
	if s.ValidationError != nil {
		return fmt.Errorf("%s: %s: %s", e.Name(), s.Status, *s.ValidationError)
	}
	return fmt.Errorf("%s: %s", e.Name(), s.Status)
}

// beaconRoot is a made-up parent beacon block root.
func beaconRoot(slot int64) common.Hash {
	return sha256.Sum256(binary.BigEndian.AppendUint64([]byte("mdcs testnet slot "), uint64(slot)))
}

// sleepUntil returns false if ctx ended first.
func sleepUntil(ctx context.Context, at time.Time) bool {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
