// SPDX-License-Identifier: LGPL-3.0-or-later

package report

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// modes are the modes of the result in a fixed order: gossip, the baseline,
// first.
func (s *Summary) modes() []string {
	const baseline = "gossip"
	return slices.SortedFunc(maps.Keys(s.Tx), func(a, b string) int {
		switch {
		case a == b:
			return 0
		case a == baseline:
			return -1
		case b == baseline:
			return 1
		}
		return strings.Compare(a, b)
	})
}

// Table writes the summary for people.
func (s *Summary) Table(out io.Writer) error {
	fmt.Fprintf(out, "%s: %d nodes, %d transactions at %g tx/s (%d to %d bytes), seed %d, links by %s\n\n",
		s.Name, s.Topology.Nodes, s.Workload.Txs, s.Workload.Rate,
		s.Workload.MinBytes, s.Workload.MaxBytes, s.Seed, s.Topology.Links)

	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(cells ...string) { fmt.Fprintln(w, strings.Join(cells, "\t")+"\t") }
	row("mode", "sent", "delivered", "p50 ms", "p90 ms", "p99 ms", "max ms", ">400 ms", "bytes/node", "RP bytes", "total bytes")
	for _, mode := range s.modes() {
		t := s.Tx[mode]
		rp := "-"
		if t.RPBytes != nil {
			rp = strconv.FormatUint(*t.RPBytes, 10)
		}
		row(mode, strconv.Itoa(t.Sent), ratio(t.DeliveredRatio),
			t.P50.String(), t.P90.String(), t.P99.String(), t.Max.String(), fmt.Sprintf("%.2f %%", t.Slow*100),
			strconv.FormatUint(t.BytesPerNode, 10), rp, strconv.FormatUint(t.TotalBytes, 10))
	}
	if err := w.Flush(); err != nil {
		return err
	}

	fmt.Fprintln(out)
	for _, mode := range s.modes() {
		fmt.Fprintf(out, "%s: payload bytes/node by geth's metrics:", mode)
		bytes := s.Runs[mode].ProtocolBytes
		for _, protocol := range slices.Sorted(maps.Keys(bytes)) {
			fmt.Fprintf(out, "  %s %d", protocol, bytes[protocol]/uint64(max(s.Topology.Nodes, 1)))
		}
		fmt.Fprintln(out)
	}
	for _, mode := range s.modes() {
		r := s.Runs[mode]
		fmt.Fprintf(out, "%s: ", mode)
		if r.Engine != "" {
			fmt.Fprintf(out, "engine %s, ", r.Engine)
		}
		fmt.Fprintf(out, "window %.1f s, CPU pressure %.0f %%", r.Window, r.CPUPressure*100)
		if l := r.Wire; l != nil {
			fmt.Fprintf(out, ", wire %s late p50 %.0f us, p99 %.0f us, max %.0f us, > 1 ms %.2f %%",
				l.Scheduling, l.P50, l.P99, l.Max, l.Overdue*100)
		}
		fmt.Fprintln(out)
	}
	for _, text := range s.Warnings {
		fmt.Fprintln(out, "warning:", text)
	}
	if !s.Valid {
		fmt.Fprintln(out, "NOT VALID: the figures describe the machine, not the network")
	}
	return nil
}

// ratio shows a share of 1 without rounding up to 1.
func ratio(r float64) string {
	if r == 1 {
		return "1.0"
	}
	return strconv.FormatFloat(min(r, 0.9999), 'f', 4, 64)
}
