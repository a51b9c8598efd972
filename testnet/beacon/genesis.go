// SPDX-License-Identifier: LGPL-3.0-or-later

// Package beacon stands in for the consensus layer of a private network: it
// makes a genesis in which all forks up to Osaka are active, and drives the
// execution nodes by the Engine API, with a slot clock and rotating proposers.
// Consensus itself is not emulated: there is one chain and no vote.
package beacon

import (
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/params"
)

// ChainID is the chain and network id of the private network.
const ChainID = 1337

// funds is what each account has at the start, 10^24 wei.
var funds, _ = new(big.Int).SetString("1000000000000000000000000", 10)

// Genesis is a chain after the merge from its first block on, with money for the
// given accounts. time is in seconds since 1970.
func Genesis(time uint64, accounts []common.Address) *core.Genesis {
	// The system contracts have to be there: from Prague on a block without
	// them is invalid.
	alloc := core.SystemContractAllocs()
	for _, a := range accounts {
		alloc[a] = types.Account{Balance: funds}
	}
	return &core.Genesis{
		Config:     chainConfig(),
		Timestamp:  time,
		GasLimit:   60_000_000,
		BaseFee:    big.NewInt(params.GWei),
		Difficulty: new(big.Int),
		Alloc:      alloc,
	}
}

func chainConfig() *params.ChainConfig {
	zero, first := new(big.Int), new(uint64)
	return &params.ChainConfig{
		ChainID:                 big.NewInt(ChainID),
		HomesteadBlock:          zero,
		EIP150Block:             zero,
		EIP155Block:             zero,
		EIP158Block:             zero,
		ByzantiumBlock:          zero,
		ConstantinopleBlock:     zero,
		PetersburgBlock:         zero,
		IstanbulBlock:           zero,
		MuirGlacierBlock:        zero,
		BerlinBlock:             zero,
		LondonBlock:             zero,
		ArrowGlacierBlock:       zero,
		GrayGlacierBlock:        zero,
		MergeNetsplitBlock:      zero,
		TerminalTotalDifficulty: zero,
		ShanghaiTime:            first,
		CancunTime:              first,
		PragueTime:              first,
		OsakaTime:               first,
		// Osaka keeps the blob parameters of Prague.
		BlobScheduleConfig: &params.BlobScheduleConfig{
			Cancun: params.DefaultCancunBlobConfig,
			Prague: params.DefaultPragueBlobConfig,
		},
	}
}
