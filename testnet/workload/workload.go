// SPDX-License-Identifier: LGPL-3.0-or-later

// Package workload makes the transactions of an experiment: which account sends
// what, when, and through which node. A plan is a pure function of its
// parameters, so that all ways of diffusion get the same transactions. A plan
// can be kept in a file and sent again; see [Write].
package workload

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/params"
	"github.com/holiman/uint256"
)

// AccountsPerNode is how many accounts send through each node, in turn. Geth
// chooses the peers that get a transaction directly by its sender, so each
// account is one sample of that choice; few accounts would make the tail of the
// delays a matter of luck. A node's first AccountsPerNode transactions each have
// an account of their own. Beyond that, two of one account are some 40 s apart
// at 20 nodes and 25 tx/s, and none waits for another because of its nonce.
const AccountsPerNode = 50

// Params describe a workload.
type Params struct {
	ChainID int64
	Seed    uint64
	Txs     int     // all of them, bursts and fee bumps included
	Rate    float64 // mean number of transactions per second between bursts
	Nodes   int

	// Weights are the shares of the nodes in what is sent, in any unit. Nil: all
	// alike. See [Weights].
	Weights []float64

	// Every BurstEvery, Burst transactions are sent at once.
	Burst      int
	BurstEvery time.Duration

	// Bumps is the share of the transactions, 0 to 0.5, that replace an earlier
	// one; see [FeeBump].
	Bumps float64
}

func (p Params) validate() error {
	var err error
	switch {
	case p.Txs <= 0:
		err = fmt.Errorf("%d transactions", p.Txs)
	case !(p.Rate > 0) || math.IsInf(p.Rate, 1):
		err = fmt.Errorf("rate %v tx/s", p.Rate)
	case p.Nodes <= 0:
		err = fmt.Errorf("%d nodes", p.Nodes)
	case p.Weights != nil && len(p.Weights) != p.Nodes:
		err = fmt.Errorf("%d weights for %d nodes", len(p.Weights), p.Nodes)
	case p.Weights != nil && (!(slices.Min(p.Weights) >= 0) || !(sum(p.Weights) > 0)):
		err = fmt.Errorf("weights %v", p.Weights)
	case p.Burst < 0 || p.Burst > 0 && p.BurstEvery <= 0:
		err = fmt.Errorf("%d transactions at once every %v", p.Burst, p.BurstEvery)
	case !(p.Bumps >= 0 && p.Bumps <= 0.5):
		err = fmt.Errorf("share %v of fee bumps", p.Bumps)
	}
	if err != nil {
		return fmt.Errorf("plan workload: %w", err)
	}
	return nil
}

// Weights divides the share of each AS evenly among its nodes, given the AS of
// each node.
func Weights(as []string, share map[string]float64) []float64 {
	nodes := make(map[string]int)
	for _, name := range as {
		nodes[name]++
	}
	weights := make([]float64, len(as))
	for i, name := range as {
		weights[i] = share[name] / float64(nodes[name])
	}
	return weights
}

// Kind is the form of a transaction. Calls carry data.
type Kind string

const (
	LegacyTransfer  Kind = "legacy-transfer"
	LegacyCall      Kind = "legacy-call"
	AccessListCall  Kind = "access-list-call"
	DynamicTransfer Kind = "dynamic-transfer"
	DynamicCall     Kind = "dynamic-call"
	SetCode         Kind = "set-code" // EIP-7702, one authorization

	// FeeBump replaces a transaction with dynamic fees of the same account and
	// nonce, and pays 10 to 25 % more. Both offer a tip below the one that geth
	// asks for a place in a block, so that no block comes between the two.
	FeeBump Kind = "fee-bump"
)

// mix is the share of each kind among what is no fee bump, in percent.
var mix = []struct {
	kind  Kind
	share int
}{
	{LegacyTransfer, 10},
	{LegacyCall, 10},
	{AccessListCall, 5},
	{DynamicTransfer, 35},
	{DynamicCall, 37},
	{SetCode, 3},
}

// sizes are the lengths of the data of calls in bytes, and the share of the
// calls that have one in that range, in percent. Within a range the logarithm of
// the length is uniform. From 4,096 bytes on, geth never sends a transaction
// directly but announces it.
var sizes = []struct{ from, to, share int }{
	{4, 256, 60},
	{256, 1024, 28},
	{1024, 3840, 8},
	{4096, 16384, 3},
	{16384, 64000, 1},
}

const (
	stuckTip = params.GWei / 2000 // geth's blocks ask for GWei/1000
	minBump  = 10                 // percent more that geth's pool asks of a replacement
	maxBump  = 25
)

// A replacement follows so long after the transaction that all nodes should
// have that.
const (
	minBumpDelay = 2 * time.Second
	maxBumpDelay = 4 * time.Second
)

// Tx is a planned transaction.
type Tx struct {
	At   time.Duration // after the start of the workload
	Node int           // through which it is sent
	Kind Kind
	Hash common.Hash
	Raw  []byte // binary form, as eth_sendRawTransaction takes it
}

// Plan makes a workload. Its transactions are in the order of their times, whose
// distances are exponentially distributed, bursts and fee bumps apart. An
// account sends through one node only, so nonces arrive there in order.
func Plan(p Params) ([]Tx, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	var (
		pl    = newPlanner(p)
		bumps = int(math.Round(p.Bumps * float64(p.Txs)))
		times = pl.times(p.Txs - bumps)
		stuck = make(map[int]bool, bumps) // those that are replaced later
		txs   = make([]Tx, 0, p.Txs)
	)
	for _, i := range pl.rng.Perm(len(times))[:bumps] {
		stuck[i] = true
	}
	for i, at := range times {
		var (
			node    = pl.node()
			account = pl.account(node)
			kind    = pl.kind()
		)
		if stuck[i] {
			kind = DynamicTransfer
			if pl.rng.IntN(2) == 0 {
				kind = DynamicCall
			}
		}
		data := pl.txData(kind, pl.nonces[account])
		pl.nonces[account]++
		add := func(at time.Duration, kind Kind, data types.TxData) error {
			tx, err := pl.sign(account, data)
			if err == nil {
				tx.At, tx.Node, tx.Kind = at, node, kind
				txs = append(txs, tx)
			}
			return err
		}
		if stuck[i] {
			first := data.(*types.DynamicFeeTx)
			first.GasTipCap = big.NewInt(stuckTip)
			if err := add(at+pl.bumpDelay(), FeeBump, pl.bump(*first)); err != nil {
				return nil, err
			}
		}
		if err := add(at, kind, data); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(txs, func(a, b Tx) int { return int(a.At - b.At) })
	return txs, nil
}

// planner draws what a plan consists of.
type planner struct {
	Params
	rng      *rand.Rand
	accounts []*ecdsa.PrivateKey
	order    []int // of the accounts of each node
	nonces   []uint64
	turns    []int // transactions of each node so far
	signer   types.Signer
}

func newPlanner(p Params) *planner {
	rng := rand.New(rand.NewPCG(p.Seed, 0))
	accounts := Accounts(p.Seed, p.Nodes)
	return &planner{
		Params:   p,
		rng:      rng,
		accounts: accounts,
		order:    rng.Perm(AccountsPerNode),
		nonces:   make([]uint64, len(accounts)),
		turns:    make([]int, p.Nodes),
		signer:   types.LatestSignerForChainID(big.NewInt(p.ChainID)),
	}
}

// times are those of n transactions, in order; the first one is 0.
func (p *planner) times(n int) []time.Duration {
	var (
		times []time.Duration
		at    time.Duration
		burst = p.BurstEvery
	)
	for len(times) < n {
		if p.Burst > 0 && at >= burst {
			for range min(p.Burst, n-len(times)) {
				times = append(times, burst)
			}
			burst += p.BurstEvery
			continue
		}
		times = append(times, at)
		at += time.Duration(p.rng.ExpFloat64() / p.Rate * float64(time.Second))
	}
	return times
}

func (p *planner) node() int {
	if p.Weights == nil {
		return p.rng.IntN(p.Nodes)
	}
	x := p.rng.Float64() * sum(p.Weights)
	last := 0
	for i, w := range p.Weights {
		if w == 0 {
			continue
		}
		if last = i; x < w {
			break
		}
		x -= w
	}
	return last
}

// account is the number of the next account of a node.
func (p *planner) account(node int) int {
	turn := p.turns[node]
	p.turns[node]++
	return p.order[turn%AccountsPerNode]*p.Nodes + node
}

func (p *planner) kind() Kind {
	x := p.rng.IntN(100)
	for _, m := range mix {
		if x < m.share {
			return m.kind
		}
		x -= m.share
	}
	panic("shares of the kinds are below 100 %")
}

func (p *planner) size() int {
	x := p.rng.IntN(100)
	for _, s := range sizes {
		if x < s.share {
			from, to := math.Log(float64(s.from)), math.Log(float64(s.to))
			return int(math.Exp(from + p.rng.Float64()*(to-from)))
		}
		x -= s.share
	}
	panic("shares of the sizes are below 100 %")
}

func (p *planner) bumpDelay() time.Duration {
	return minBumpDelay + time.Duration(p.rng.Int64N(int64(maxBumpDelay-minBumpDelay)))
}

// bump is the replacement of a transaction.
func (p *planner) bump(tx types.DynamicFeeTx) *types.DynamicFeeTx {
	percent := big.NewInt(100 + minBump + p.rng.Int64N(maxBump-minBump+1))
	raise := func(fee *big.Int) *big.Int {
		fee = new(big.Int).Mul(fee, percent)
		return fee.Div(fee, big.NewInt(100))
	}
	tx.GasTipCap, tx.GasFeeCap = raise(tx.GasTipCap), raise(tx.GasFeeCap)
	return &tx
}

func (p *planner) sign(account int, data types.TxData) (Tx, error) {
	signed, err := types.SignNewTx(p.accounts[account], p.signer, data)
	if err != nil {
		return Tx{}, fmt.Errorf("plan workload: %w", err)
	}
	raw, err := signed.MarshalBinary()
	if err != nil {
		return Tx{}, fmt.Errorf("plan workload: %w", err)
	}
	return Tx{Hash: signed.Hash(), Raw: raw}, nil
}

func (p *planner) txData(kind Kind, nonce uint64) types.TxData {
	var (
		to      = p.address()
		value   = big.NewInt(1 + p.rng.Int64N(params.GWei))
		feeCap  = big.NewInt(10 * params.GWei)
		tipCap  = big.NewInt(2 * params.GWei)
		chainID = big.NewInt(p.ChainID)
		gas     = params.TxGas
		data    []byte
	)
	if kind != LegacyTransfer && kind != DynamicTransfer {
		data = p.bytes(p.size())
		// The floor price of EIP-7623 for bytes that are not zero; the price
		// without it is lower.
		gas += uint64(len(data)) * params.TxTokenPerNonZeroByte * params.TxCostFloorPerToken
	}
	switch kind {
	case LegacyTransfer, LegacyCall:
		return &types.LegacyTx{Nonce: nonce, GasPrice: feeCap, Gas: gas, To: &to, Value: value, Data: data}
	case AccessListCall:
		list := p.accessList()
		gas += uint64(len(list))*params.TxAccessListAddressGas + uint64(list.StorageKeys())*params.TxAccessListStorageKeyGas
		return &types.AccessListTx{ChainID: chainID, Nonce: nonce, GasPrice: feeCap, Gas: gas, To: &to, Value: value, Data: data, AccessList: list}
	case SetCode:
		return &types.SetCodeTx{
			ChainID: uint256.MustFromBig(chainID), Nonce: nonce,
			GasTipCap: uint256.MustFromBig(tipCap), GasFeeCap: uint256.MustFromBig(feeCap),
			Gas: gas + params.CallNewAccountGas, To: to, Value: uint256.MustFromBig(value), Data: data,
			AuthList: []types.SetCodeAuthorization{p.authorization()},
		}
	default:
		return &types.DynamicFeeTx{ChainID: chainID, Nonce: nonce, GasTipCap: tipCap, GasFeeCap: feeCap, Gas: gas, To: &to, Value: value, Data: data}
	}
}

func (p *planner) accessList() types.AccessList {
	list := make(types.AccessList, 1+p.rng.IntN(3))
	for i := range list {
		list[i].Address = p.address()
		list[i].StorageKeys = make([]common.Hash, 1+p.rng.IntN(4))
		for k := range list[i].StorageKeys {
			list[i].StorageKeys[k] = common.BytesToHash(p.bytes(common.HashLength))
		}
	}
	return list
}

// authorization is signed by an account that does nothing else: geth's pool
// takes one transaction at a time of an account that delegates.
func (p *planner) authorization() types.SetCodeAuthorization {
	key := Key(p.rng.Uint64(), "authority", 0)
	auth, err := types.SignSetCode(key, types.SetCodeAuthorization{
		ChainID: *uint256.NewInt(uint64(p.ChainID)),
		Address: p.address(),
	})
	if err != nil {
		panic(fmt.Sprintf("sign with a valid key: %v", err))
	}
	return auth
}

// address has no code: the data of a call is carried and not executed.
func (p *planner) address() common.Address {
	return common.BytesToAddress(p.bytes(common.AddressLength))
}

func (p *planner) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(p.rng.Uint32())
	}
	return b
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

// Senders are the accounts that need money for a workload, each once.
func Senders(chainID int64, txs []Tx) ([]common.Address, error) {
	var (
		signer = types.LatestSignerForChainID(big.NewInt(chainID))
		seen   = make(map[common.Address]bool)
		list   []common.Address
		errs   []error
	)
	for i, x := range txs {
		var tx types.Transaction
		err := tx.UnmarshalBinary(x.Raw)
		if err == nil {
			var from common.Address
			if from, err = types.Sender(signer, &tx); err == nil && !seen[from] {
				seen[from] = true
				list = append(list, from)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sender of transaction %d: %w", i, err))
		}
	}
	return list, errors.Join(errs...)
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

func sum(values []float64) (total float64) {
	for _, v := range values {
		total += v
	}
	return total
}
