// SPDX-License-Identifier: LGPL-3.0-or-later

package report

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/ethmcast/mdcs/testnet/measure"
)

// Columns are those of arrivals.csv, which has one line per transaction and node
// other than its origin: as and class are those of the node, sent_ns is in ns
// since 1970, the others end in their unit. delay_ms and overhead_ms are empty if
// the transaction did not arrive.
var Columns = []string{
	"mode", "round", "seed", "tx", "hash", "bytes", "type", "origin", "node", "as", "class", "sent_ns",
	"delay_ms", "floor_physical_ms", "floor_bgp_ms", "floor_serialised_ms", "overhead_ms",
}

// firstTime is the column of delay_ms, which the floors follow.
const firstTime = 12

// Arrivals writes arrivals.csv.
type Arrivals struct {
	out *csv.Writer
	err error
}

// NewArrivals writes the header.
func NewArrivals(out io.Writer) *Arrivals {
	a := &Arrivals{out: csv.NewWriter(out)}
	a.err = a.out.Write(Columns)
	return a
}

// Add writes a run. An error is kept for Flush.
func (a *Arrivals) Add(o Outcome) {
	for _, s := range o.Samples {
		if a.err != nil {
			return
		}
		tx, node := o.Txs[s.Tx], o.Nodes[s.Node]
		a.err = a.out.Write([]string{
			o.Mode, strconv.Itoa(o.Round), strconv.FormatUint(o.Seed, 10),
			strconv.Itoa(s.Tx), tx.Hash.Hex(), strconv.Itoa(len(tx.Raw)), string(tx.Kind),
			o.Nodes[s.Origin].Name, node.Name, node.AS, node.Class,
			strconv.FormatInt(o.Sent[s.Tx].At.UnixNano(), 10),
			decimal(s.Delay), decimal(s.Physical), decimal(s.BGP), decimal(s.Serialised), decimal(s.Overhead()),
		})
	}
}

// decimal keeps microseconds of a time in ms.
func decimal(ms float64) string {
	if math.IsInf(ms, 1) {
		return ""
	}
	return strconv.FormatFloat(ms, 'f', 3, 64)
}

// Flush ends the file.
func (a *Arrivals) Flush() error {
	a.out.Flush()
	if err := errors.Join(a.err, a.out.Error()); err != nil {
		return fmt.Errorf("write arrivals: %w", err)
	}
	return nil
}

// CreateArrivals opens arrivals.csv in dir.
func CreateArrivals(dir string) (*os.File, error) {
	f, err := os.Create(filepath.Join(dir, ArrivalsFile))
	if err != nil {
		return nil, fmt.Errorf("write arrivals: %w", err)
	}
	return f, nil
}

// ReadArrivals reads the samples of arrivals.csv by mode. Their transactions are
// numbered through over all runs of a mode, in the order of the file, and nodes
// and origins over the whole file.
func ReadArrivals(in io.Reader) (map[string][]measure.Sample, error) {
	r := csv.NewReader(in)
	r.ReuseRecord = true
	header, err := r.Read()
	if err == nil && !slices.Equal(header, Columns) {
		err = fmt.Errorf("columns are %q", header)
	}
	if err != nil {
		return nil, fmt.Errorf("read arrivals: %w", err)
	}
	var (
		samples = make(map[string][]measure.Sample)
		txs     = make(map[string]int) // by mode: last number
		last    = make(map[string]string)
		nodes   = make(map[string]int)
		node    = func(name string) int {
			if _, ok := nodes[name]; !ok {
				nodes[name] = len(nodes)
			}
			return nodes[name]
		}
	)
	for {
		line, err := r.Read()
		if errors.Is(err, io.EOF) {
			return samples, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read arrivals: %w", err)
		}
		var s measure.Sample
		for i, v := range []*float64{&s.Delay, &s.Physical, &s.BGP, &s.Serialised} {
			if column := firstTime + i; i == 0 && line[column] == "" {
				*v = math.Inf(1)
			} else if *v, err = strconv.ParseFloat(line[column], 64); err != nil {
				n, _ := r.FieldPos(column)
				return nil, fmt.Errorf("read arrivals: line %d: %s: %w", n, Columns[column], err)
			}
		}
		mode, tx := line[0], line[1]+" "+line[2]+" "+line[3]
		if last[mode] != tx {
			if last[mode] != "" {
				txs[mode]++
			}
			last[mode] = tx
		}
		s.Tx, s.Origin, s.Node = txs[mode], node(line[7]), node(line[8])
		samples[mode] = append(samples[mode], s)
	}
}
