// SPDX-License-Identifier: LGPL-3.0-or-later

// Package workload makes the transactions of an experiment: which account sends
// what, when, and through which node. A plan is a pure function of its
// parameters, so that two ways of diffusion get the same transactions.
package workload

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/big"
	"math/rand/v2"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/params"
)

// AccountsPerNode is how many accounts send through each node, in turn. Geth
// chooses the peers that get a transaction directly by its sender, so each
// account is one sample of that choice; few accounts would make the tail of the
// delays a matter of luck. Up to nodes x AccountsPerNode transactions each have
// an account of their own. Beyond that, two of one account are 15 s apart at 6
// nodes and 20 tx/s, and none waits for another because of its nonce.
const AccountsPerNode = 50

// Params describe a workload.
type Params struct {
	ChainID int64
	Seed    uint64
	Txs     int
	Rate    float64 // mean number of transactions per second
	Nodes   int
}

func (p Params) validate() error {
	switch {
	case p.Txs <= 0:
		return fmt.Errorf("plan workload: %d transactions", p.Txs)
	case p.Rate <= 0:
		return fmt.Errorf("plan workload: rate %v tx/s", p.Rate)
	case p.Nodes <= 0:
		return fmt.Errorf("plan workload: %d nodes", p.Nodes)
	}
	return nil
}

// Kind is the form of a transaction.
type Kind string

const (
	LegacyTransfer  Kind = "legacy transfer"
	LegacyCall      Kind = "legacy call" // with 4 to 1024 bytes of data
	DynamicTransfer Kind = "dynamic-fee transfer"
	DynamicCall     Kind = "dynamic-fee call" // with 4 to 1024 bytes of data
)

// mix is the share of each kind, in tenths.
var mix = [10]Kind{
	LegacyTransfer, LegacyTransfer, LegacyCall,
	DynamicTransfer, DynamicTransfer, DynamicTransfer, DynamicTransfer,
	DynamicCall, DynamicCall, DynamicCall,
}

// maxData keeps transactions below 4,096 bytes, from which on geth announces
// instead of sending directly.
const maxData = 1024

// Tx is a planned transaction.
type Tx struct {
	At   time.Duration // after the start of the workload
	Node int           // through which it is sent
	Kind Kind
	Hash common.Hash
	Raw  []byte // binary form, as eth_sendRawTransaction takes it
}

// Plan makes a workload. Its transactions are in the order of their times, whose
// distances are exponentially distributed. An account sends through one node
// only, so nonces arrive there in order.
func Plan(p Params) ([]Tx, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(p.Seed, 0))
	var (
		accounts = Accounts(p.Seed, p.Nodes)
		order    = rng.Perm(len(accounts))
		nonces   = make([]uint64, len(accounts))
		signer   = types.LatestSignerForChainID(big.NewInt(p.ChainID))
		txs      = make([]Tx, p.Txs)
		at       time.Duration
	)
	for i := range txs {
		a := order[i%len(order)]
		kind := mix[rng.IntN(len(mix))]
		signed, err := types.SignNewTx(accounts[a], signer, txData(rng, p.ChainID, kind, nonces[a]))
		if err != nil {
			return nil, fmt.Errorf("plan workload: %w", err)
		}
		raw, err := signed.MarshalBinary()
		if err != nil {
			return nil, fmt.Errorf("plan workload: %w", err)
		}
		nonces[a]++
		txs[i] = Tx{At: at, Node: a % p.Nodes, Kind: kind, Hash: signed.Hash(), Raw: raw}
		at += time.Duration(rng.ExpFloat64() / p.Rate * float64(time.Second))
	}
	return txs, nil
}

// Accounts are the keys that send; number i sends through node i mod nodes.
func Accounts(seed uint64, nodes int) []*ecdsa.PrivateKey {
	keys := make([]*ecdsa.PrivateKey, nodes*AccountsPerNode)
	for i := range keys {
		keys[i] = Key(seed, "account", i)
	}
	return keys
}

// Addresses are the addresses of [Accounts].
func Addresses(seed uint64, nodes int) []common.Address {
	keys := Accounts(seed, nodes)
	addrs := make([]common.Address, len(keys))
	for i, k := range keys {
		addrs[i] = crypto.PubkeyToAddress(k.PublicKey)
	}
	return addrs
}

// Key derives a private key of an experiment from its seed. It protects nothing.
func Key(seed uint64, use string, number int) *ecdsa.PrivateKey {
	text := []byte("mdcs testnet key " + use)
	text = binary.BigEndian.AppendUint64(text, seed)
	text = binary.BigEndian.AppendUint64(text, uint64(number))
	hash := sha256.Sum256(text)
	key, err := crypto.ToECDSA(hash[:])
	if err != nil {
		panic(fmt.Sprintf("hash %x is no secp256k1 key: %v", hash, err)) // chance 2^-127
	}
	return key
}

func txData(rng *rand.Rand, chainID int64, kind Kind, nonce uint64) types.TxData {
	var (
		to    = randomAddress(rng)
		value = big.NewInt(1 + rng.Int64N(params.GWei))
		data  []byte
	)
	if kind == LegacyCall || kind == DynamicCall {
		data = make([]byte, 4+rng.IntN(maxData-4+1))
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
	}
	// The floor price of EIP-7623 for bytes that are not zero.
	gas := params.TxGas + uint64(len(data))*params.TxTokenPerNonZeroByte*params.TxCostFloorPerToken
	gwei := func(n int64) *big.Int { return big.NewInt(n * params.GWei) }
	switch kind {
	case LegacyTransfer, LegacyCall:
		return &types.LegacyTx{
			Nonce: nonce, GasPrice: gwei(10), Gas: gas, To: &to, Value: value, Data: data,
		}
	default:
		return &types.DynamicFeeTx{
			ChainID: big.NewInt(chainID),
			Nonce:   nonce, GasTipCap: gwei(2), GasFeeCap: gwei(10), Gas: gas, To: &to, Value: value, Data: data,
		}
	}
}

// randomAddress has no code: the data of a call is carried and not executed.
func randomAddress(rng *rand.Rand) common.Address {
	var a common.Address
	for i := range a {
		a[i] = byte(rng.Uint32())
	}
	return a
}
