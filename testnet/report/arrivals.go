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
	"strconv"

	"github.com/ethmcast/mdcs/testnet/measure"
)

// Arrivals is arrivals.csv: one line per transaction and node other than its
// origin, with the columns mode, tx, origin, node, delay_ms. The delay of what
// did not arrive is "inf".
type Arrivals struct {
	out *csv.Writer
	err error
}

// NewArrivals writes the header.
func NewArrivals(out io.Writer) *Arrivals {
	a := &Arrivals{out: csv.NewWriter(out)}
	a.err = a.out.Write([]string{"mode", "tx", "origin", "node", "delay_ms"})
	return a
}

// Add writes the pairs of a mode; names are the names of the nodes. An error is
// kept for Flush.
func (a *Arrivals) Add(mode string, names []string, pairs []measure.Pair) {
	for _, p := range pairs {
		if a.err != nil {
			return
		}
		delay := "inf"
		if !math.IsInf(p.Delay, 1) {
			delay = strconv.FormatFloat(p.Delay, 'f', 3, 64)
		}
		a.err = a.out.Write([]string{mode, strconv.Itoa(p.Tx), names[p.Origin], names[p.Node], delay})
	}
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
