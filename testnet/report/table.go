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

const notValid = "*** NOT VALID: the figures describe the machine, not the network ***"

// Table writes the summary for people, at most 120 columns wide for runs of
// usual size.
func (s *Summary) Table(out io.Writer) error {
	if !s.Valid {
		fmt.Fprintf(out, "%s\n\n", notValid)
	}
	fmt.Fprintf(out, "%s: %d nodes in %d ASes, %d replication points, links by %s, routes by %s\n",
		s.Name, s.Nodes, s.ASes, s.Topology.RPs, s.Topology.Links, s.Topology.Routing)
	fmt.Fprintf(out, "%d transactions at %g tx/s (%d to %d bytes), seeds %s, %d rounds each\n",
		s.Workload.Txs, s.Workload.Rate, s.Workload.MinBytes, s.Workload.MaxBytes, join(s.Seeds), s.Rounds)

	modes := s.Modes()
	percent := func(x float64) string { return fmt.Sprintf("%.2f %%", x*100) }
	err := table(out, "delay, ms: over (tx, node) pairs; until 95 % of the nodes have a tx; above the BGP floor with serialisation",
		[]string{"mode", "delivered", "p50", "p99", "max", ">400 ms", "t95 p50", "t95 p99", "over p50", "over p95", "over p99"},
		modes, func(mode string) []string {
			t := s.Tx[mode]
			return []string{
				mode, ratio(t.DeliveredRatio), t.P50.String(), t.P99.String(), t.Max.String(), percent(t.Slow),
				t.T95P50.String(), t.T95P99.String(),
				t.OverheadP50.String(), t.OverheadP95.String(), t.OverheadP99.String(),
			}
		})
	if err != nil {
		return err
	}
	names := []string{"p50_ms", "p99_ms", "t95_p50_ms", "t95_p99_ms", "overhead_p50_ms", "overhead_p95_ms", "overhead_p99_ms"}
	err = table(out, "95 % intervals",
		[]string{"mode", "p50", "p99", "t95 p50", "t95 p99", "over p50", "over p95", "over p99"},
		modes, func(mode string) []string {
			cells := []string{mode}
			for _, name := range names {
				cell := "-"
				if i, ok := s.Tx[mode].Intervals[name]; ok {
					cell = i[0].String() + ".." + i[1].String()
				}
				cells = append(cells, cell)
			}
			return cells
		})
	if err != nil {
		return err
	}
	err = table(out, "cost: bytes on the wire, both directions; copies of each tx on links between ASes",
		[]string{"mode", "bytes/node", "of gossip", "RP bytes", "total bytes", "of gossip", "copies max", "mean", "CPU s"},
		modes, func(mode string) []string {
			t, base := s.Tx[mode], s.Tx[baseline]
			cpu := 0.0
			for _, used := range s.Runs[mode].CPUSeconds {
				cpu += used
			}
			return []string{
				mode,
				strconv.FormatUint(t.BytesPerNode, 10), times(float64(t.BytesPerNode), float64(base.BytesPerNode)),
				strconv.FormatUint(t.RPBytes, 10),
				strconv.FormatUint(t.TotalBytes, 10), times(float64(t.TotalBytes), float64(base.TotalBytes)),
				t.LinkCopiesMax.text(2), t.LinkCopiesMean.text(2), fmt.Sprintf("%.1f", cpu),
			}
		})
	if err != nil {
		return err
	}

	fmt.Fprintln(out)
	for _, mode := range modes {
		if bytes := s.Runs[mode].ProtocolBytes; len(bytes) > 0 {
			fmt.Fprintf(out, "%s: payload bytes/node by geth's metrics:", mode)
			for _, protocol := range slices.Sorted(maps.Keys(bytes)) {
				fmt.Fprintf(out, "  %s %d", protocol, bytes[protocol]/uint64(max(s.Nodes, 1)))
			}
			fmt.Fprintln(out)
		}
	}
	for _, mode := range modes {
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
	for _, text := range s.Flags {
		fmt.Fprintln(out, "note:", text)
	}
	for _, text := range s.Warnings {
		fmt.Fprintln(out, "warning:", text)
	}
	if !s.Valid {
		fmt.Fprintf(out, "\n%s\n", notValid)
	}
	return nil
}

// table writes one row per mode.
func table(out io.Writer, title string, header, modes []string, row func(string) []string) error {
	fmt.Fprintf(out, "\n%s\n", title)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, strings.Join(header, "\t")+"\t")
	for _, mode := range modes {
		fmt.Fprintln(w, strings.Join(row(mode), "\t")+"\t")
	}
	return w.Flush()
}

func join(numbers []uint64) string {
	texts := make([]string, len(numbers))
	for i, n := range numbers {
		texts[i] = strconv.FormatUint(n, 10)
	}
	return strings.Join(texts, " ")
}

// ratio shows a share of 1 without rounding up to 1.
func ratio(r float64) string {
	if r == 1 {
		return "1.0"
	}
	return strconv.FormatFloat(min(r, 0.9999), 'f', 4, 64)
}
