// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
)

// Table writes the result for people.
func (r *Result) Table(out io.Writer) error {
	h := &r.Host
	fmt.Fprintf(out, "%s: frames of %d bytes (UDP payload %d), %d rounds; Linux %s, %d CPUs %s, %s, CPU pressure %.0f %%\n",
		r.Name, r.Packet.Frame, r.Packet.UDPPayload, r.Rounds, h.Kernel, h.CPUs, h.Processor, h.Go, float64(h.CPUPressure)*100)
	for _, t := range []struct {
		title string
		head  string
		rows  [][]any
	}{
		{"copies", "subscribers burst engine ns/copy of-bare last-ms lost copies/s Gbit/s", r.copyCells()},
		{"bare measured twice", "subscribers burst ratio", cells(r.Noise, func(x Noise) []any {
			return []any{x.Subscribers, x.Burst, x.Ratio}
		})},
		{"xdp beside bare", "subscribers load window bare-ns xdp-ns xdp-of-bare bare-again lost", cells(r.Compared, func(x Compared) []any {
			return []any{x.Subscribers, x.Load, x.Window, x.Bare, x.XDP, x.Ratio, x.Noise, x.Lost}
		})},
		{"sustained load", "subscribers engine seconds datagrams/s of-capacity lost Gbit/s", cells(r.Sustained, func(x Sustained) []any {
			return []any{x.Subscribers, x.Engine, x.Seconds, x.Rate, percent(float64(x.Share)), x.Lost, x.Gbit}
		})},
		{"joins and leaves under traffic", "engine stayers batch changes joins/s leaves/s datagrams/s lost duplicated", cells(r.Joins, func(x Joins) []any {
			return []any{x.Engine, x.Stayers, x.Batch, x.Changes, x.JoinRate, x.LeaveRate, x.Rate, x.Lost, x.Duplicated}
		})},
		{"memory in bytes", "engine subscribers maps heap fixed per-subscriber", cells(r.Memory, func(x Memory) []any {
			return []any{x.Engine, x.Subscribers, x.Maps, x.Heap, x.Fixed, x.PerSubscriber}
		})},
		{"refused datagram", "engine verdict ns", cells(r.Drop, func(x Drop) []any {
			return []any{x.Engine, x.Verdict, x.Nanoseconds}
		})},
		{"hostile flood", "engine port subscribers hostile/s hostile refused overrun leaked honest/s honest honest-overrun lost lost-share", cells(r.Flood, func(x Flood) []any {
			port := "own"
			if x.Shared {
				port = "shared"
			}
			return []any{x.Engine, port, x.Subscribers, x.HostileRate, x.Hostile, x.Refused, x.Overrun, x.Leaked, x.HonestRate, x.Honest,
				x.HonestOverrun, x.Lost, percent(float64(x.LostShare))}
		})},
		{"not measured", "engine subscribers what why", cells(r.Failed, func(x Failed) []any {
			n := any("-")
			if x.Subscribers > 0 {
				n = x.Subscribers
			}
			return []any{x.Engine, n, x.What, x.Error}
		})},
	} {
		if len(t.rows) == 0 {
			continue
		}
		fmt.Fprintf(out, "\n%s\n", t.title)
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(w, strings.Join(strings.Fields(t.head), "\t")+"\t")
		for _, row := range t.rows {
			for _, cell := range row {
				fmt.Fprintf(w, "%v\t", cell)
			}
			fmt.Fprintln(w)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func (r *Result) copyCells() [][]any {
	return cells(r.Rows, func(x Row) []any {
		name := x.Engine
		if x.Again {
			name += " again"
		}
		return []any{x.Subscribers, x.Burst, name, x.PerCopy, r.ofBare(&x), x.LastCopy, percent(x.lossRatio()),
			Figure(1e9 / float64(x.PerCopy)), x.Gbit}
	})
}

// ofBare is the time per copy in relation to that of bare, where that lost nothing.
func (r *Result) ofBare(x *Row) Figure {
	bare := r.find(Bare, false, x.Subscribers, x.Burst)
	if bare == nil || bare.Lost > 0 {
		return Figure(math.NaN())
	}
	return x.PerCopy / bare.PerCopy
}

func cells[T any](list []T, row func(T) []any) (all [][]any) {
	for _, x := range list {
		all = append(all, row(x))
	}
	return all
}

// percent shows a share, of which 0 means none at all.
func percent(share float64) string {
	if share == 0 {
		return "0"
	}
	return Figure(share*100).String() + " %"
}
