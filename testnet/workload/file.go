// SPDX-License-Identifier: LGPL-3.0-or-later

package workload

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/core/types"
)

// File is a workload to be sent again.
type File struct {
	ChainID int64
	Nodes   int // number of nodes, among which Tx.Node chooses
	Txs     []Tx
}

const fileHeader = "mdcs-workload 1 chain=%d nodes=%d"

// Write writes a workload as text. The first line is
//
//	mdcs-workload 1 chain=1337 nodes=20
//
// where 1 is the version of the format. Each other line is one transaction, in
// the order of their times, of four fields separated by a space: the time after
// the start in ns, the number of the node from 0 on, the [Kind], and the binary
// form of the signed transaction (EIP-2718) in hex digits.
func Write(out io.Writer, f File) error {
	w := bufio.NewWriter(out)
	fmt.Fprintf(w, fileHeader+"\n", f.ChainID, f.Nodes)
	for _, tx := range f.Txs {
		fmt.Fprintf(w, "%d %d %s %x\n", int64(tx.At), tx.Node, tx.Kind, tx.Raw)
	}
	if err := w.Flush(); err != nil { // reports the first error of all writes
		return fmt.Errorf("write workload: %w", err)
	}
	return nil
}

// maxLine is longer than a line with the largest transaction that geth's pool
// takes, 128 KiB.
const maxLine = 1 << 20

// Read reads what [Write] wrote. Errors name the line.
func Read(in io.Reader) (File, error) {
	var (
		f     File
		lines = bufio.NewScanner(in)
		n     int
	)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var err error
		if n++; n == 1 {
			err = f.readHeader(lines.Text())
		} else {
			err = f.readTx(lines.Text())
		}
		if err != nil {
			return File{}, fmt.Errorf("read workload: line %d: %w", n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return File{}, fmt.Errorf("read workload: line %d: %w", n+1, err)
	}
	if len(f.Txs) == 0 {
		return File{}, errors.New("read workload: no transactions")
	}
	return f, nil
}

func (f *File) readHeader(line string) error {
	if _, err := fmt.Sscanf(line, fileHeader, &f.ChainID, &f.Nodes); err != nil {
		return fmt.Errorf("no workload of version 1: %w", err)
	}
	if f.ChainID <= 0 || f.Nodes <= 0 {
		return fmt.Errorf("chain %d with %d nodes", f.ChainID, f.Nodes)
	}
	return nil
}

func (f *File) readTx(line string) error {
	var (
		tx     Tx
		at     int64
		digits string
	)
	if fields := strings.Count(line, " ") + 1; fields != 4 {
		return fmt.Errorf("%d fields, want 4", fields)
	}
	if _, err := fmt.Sscan(line, &at, &tx.Node, &tx.Kind, &digits); err != nil {
		return err
	}
	tx.At = time.Duration(at)
	var err error
	if tx.Raw, err = hex.DecodeString(digits); err != nil {
		return err
	}
	var signed types.Transaction
	if err := signed.UnmarshalBinary(tx.Raw); err != nil {
		return fmt.Errorf("transaction: %w", err)
	}
	tx.Hash = signed.Hash()
	switch last := len(f.Txs) - 1; {
	case tx.Node < 0 || tx.Node >= f.Nodes:
		return fmt.Errorf("node %d of %d", tx.Node, f.Nodes)
	case at < 0 || last >= 0 && tx.At < f.Txs[last].At:
		return fmt.Errorf("time %v is before the one of the line above", tx.At)
	case signed.ChainId().Int64() != f.ChainID:
		return fmt.Errorf("transaction is for chain %v", signed.ChainId())
	}
	f.Txs = append(f.Txs, tx)
	return nil
}
