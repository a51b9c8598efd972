// SPDX-License-Identifier: LGPL-3.0-or-later

package report

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/measure"
	"github.com/ethmcast/mdcs/testnet/topology"
	"github.com/ethmcast/mdcs/testnet/workload"
)

// Outcome is what one run of a mode brought.
type Outcome struct {
	Mode  string
	Round int    // from 1 on
	Seed  uint64 // of workload and peerings

	Nodes   []topology.Host // the Ethereum nodes, to which the samples refer
	Txs     []workload.Tx
	Sent    []workload.Sent
	Samples []measure.Sample

	RPs    []string // hosts in Run.Bytes that are replication points or relays
	Copies []measure.LinkCopies
	Run    Run // without what follows from the rest: Pairs and the lateness of the sender
}

// Add enters a run.
func (s *Summary) Add(o Outcome) {
	o.Run.Pairs = len(o.Samples)
	late := make([]float64, len(o.Sent))
	for i, sent := range o.Sent {
		late[i] = float64(sent.Late.Microseconds()) / 1000
	}
	slices.Sort(late)
	if len(late) > 0 {
		o.Run.SenderLateP99 = Figure(measure.Percentile(late, 99))
		o.Run.SenderLateMax = Figure(measure.Percentile(late, 100))
	}
	if s.outcomes == nil {
		s.outcomes = make(map[string][]Outcome)
	}
	s.outcomes[o.Mode] = append(s.outcomes[o.Mode], o)
	s.Each = append(s.Each, Single{o.Mode, o.Round, o.Seed, combine([]Outcome{o}, measure.Bootstrap{}), o.Run})
}

// Finish computes the figures of all modes from the runs that were added, and
// judges them.
func (s *Summary) Finish(b measure.Bootstrap) {
	s.Tx, s.Runs = make(map[string]Tx), make(map[string]Run)
	s.Seeds, s.Rounds, s.Flags = []uint64{}, 0, []string{}
	var engines []string
	for mode, outcomes := range s.outcomes {
		s.Tx[mode] = combine(outcomes, b)
		s.Runs[mode] = merge(outcomes)
		if e := s.Runs[mode].Engine; e != "" {
			engines = append(engines, e)
		}
	}
	if e := s.Runs[kernelMode].Engine; e != "" && e != kernelEngine {
		s.Flags = append(s.Flags, fmt.Sprintf("%s: the replication points had the %s engine, not %s", kernelMode, e, kernelEngine))
	}
	for _, r := range s.Each {
		if !slices.Contains(s.Seeds, r.Seed) {
			s.Seeds = append(s.Seeds, r.Seed)
		}
		s.Rounds = max(s.Rounds, r.Round)
	}
	if len(s.Seeds) > 0 {
		s.Seed = s.Seeds[0]
	}
	slices.Sort(engines)
	s.Engine = strings.Join(slices.Compact(engines), ",")
	s.Nodes, s.ASes = s.Topology.Nodes, s.Topology.ASes
	s.Judge()
}

// The mode in which the replication points copy in the kernel where they can, and the
// engine that does.
const (
	kernelMode   = "mdcs"
	kernelEngine = "xdp"
)

// moved is the change at half the rate from which on a figure is flagged.
const moved = 0.10

// CompareHalf enters the result of the same at half the rate, and flags the
// figures that differ. Call it after Finish.
func (s *Summary) CompareHalf(half map[string]Tx) {
	s.HalfRate = half
	for _, mode := range s.Modes() {
		t := s.Tx[mode]
		h, ok := half[mode]
		if !ok {
			continue
		}
		t.CPUBound = []string{}
		other := h.delays()
		for i, f := range t.delays() {
			if measure.Moved(float64(*f.value), float64(*other[i].value), moved) {
				t.CPUBound = append(t.CPUBound, f.name)
			}
		}
		s.Tx[mode] = t
		if len(t.CPUBound) > 0 {
			s.Flags = append(s.Flags, fmt.Sprintf("%s: differ by more than %.0f %% at half the rate: %s", mode, moved*100, strings.Join(t.CPUBound, ", ")))
		}
	}
}

// named is a figure with its name in JSON.
type named struct {
	name  string
	value *Figure
}

// delays are the figures that a busy machine moves.
func (t *Tx) delays() []named {
	return []named{
		{"p50_ms", &t.P50}, {"p90_ms", &t.P90}, {"p99_ms", &t.P99},
		{"overhead_p50_ms", &t.OverheadP50}, {"overhead_p95_ms", &t.OverheadP95}, {"overhead_p99_ms", &t.OverheadP99},
		{"t95_p50_ms", &t.T95P50}, {"t95_p99_ms", &t.T95P99},
	}
}

// combine computes the figures of the runs of a mode.
func combine(runs []Outcome, b measure.Bootstrap) Tx {
	t := Tx{Intervals: make(map[string][2]Figure), CPUBound: []string{}}
	set := func(name string, value *Figure, i measure.Interval) {
		*value = Figure(i.Value)
		if !math.IsNaN(i.Low) {
			t.Intervals[name] = [2]Figure{Figure(i.Low), Figure(i.High)}
		}
	}

	var all []measure.Pair
	for _, o := range runs {
		for _, x := range o.Samples {
			all = append(all, x.Pair)
		}
		t.Sent += len(o.Txs)
	}
	d := measure.Summarize(all)
	t.DeliveredRatio, t.Max, t.Slow = d.Delivered, Figure(d.Max), d.Slow

	of := func(value func(measure.Sample) float64) (list []*measure.Series) {
		for _, o := range runs {
			list = append(list, measure.SeriesOf(o.Samples, value))
		}
		return list
	}
	delay := b.Combine(of(func(x measure.Sample) float64 { return x.Delay }), 50, 90, 99)
	set("p50_ms", &t.P50, delay[0])
	set("p90_ms", &t.P90, delay[1])
	set("p99_ms", &t.P99, delay[2])
	overhead := b.Combine(of(measure.Sample.Overhead), 50, 95, 99)
	set("overhead_p50_ms", &t.OverheadP50, overhead[0])
	set("overhead_p95_ms", &t.OverheadP95, overhead[1])
	set("overhead_p99_ms", &t.OverheadP99, overhead[2])
	set("overhead_bgp_p50_ms", &t.OverheadBGPP50, b.Combine(of(func(x measure.Sample) float64 { return x.Delay - x.BGP }), 50)[0])
	set("overhead_physical_p50_ms", &t.OverheadPhysicalP50, b.Combine(of(func(x measure.Sample) float64 { return x.Delay - x.Physical }), 50)[0])

	for _, reached := range []struct {
		percent  float64
		p50, p99 *Figure
	}{{50, &t.T50P50, &t.T50P99}, {95, &t.T95P50, &t.T95P99}, {100, &t.T100P50, &t.T100P99}} {
		var list []*measure.Series
		for _, o := range runs {
			list = append(list, measure.Each(measure.Reached(pairs(o.Samples), reached.percent)))
		}
		i := b.Combine(list, 50, 99)
		set(fmt.Sprintf("t%g_p50_ms", reached.percent), reached.p50, i[0])
		set(fmt.Sprintf("t%g_p99_ms", reached.percent), reached.p99, i[1])
	}

	// What each run has one figure of.
	single := func(name string, value func(Outcome) float64) Figure {
		var values []float64
		for _, o := range runs {
			values = append(values, value(o))
		}
		var f Figure
		set(name, &f, b.Median(values))
		return f
	}
	t.BytesPerNode = uint64(single("bytes_per_node", func(o Outcome) float64 {
		return float64(o.bytes(o.nodeNames())) / float64(max(len(o.Nodes), 1))
	}))
	t.RPBytes = uint64(single("rp_bytes", func(o Outcome) float64 { return float64(o.bytes(o.RPs)) }))
	t.TotalBytes = uint64(single("total_bytes", func(o Outcome) float64 { return float64(o.bytes(o.nodeNames()) + o.bytes(o.RPs)) }))
	t.LinkCopies = meanCopies(runs)
	t.LinkCopiesMax, t.LinkCopiesMean = unknown, unknown
	if len(t.LinkCopies) > 0 {
		t.LinkCopiesMax = single("link_copies_max", func(o Outcome) float64 { largest, _ := measure.Busiest(o.Copies); return largest })
		t.LinkCopiesMean = single("link_copies_mean", func(o Outcome) float64 { _, mean := measure.Busiest(o.Copies); return mean })
	}
	return t
}

func pairs(samples []measure.Sample) []measure.Pair {
	list := make([]measure.Pair, len(samples))
	for i, s := range samples {
		list[i] = s.Pair
	}
	return list
}

func (o *Outcome) nodeNames() []string {
	names := make([]string, len(o.Nodes))
	for i, h := range o.Nodes {
		names[i] = h.Name
	}
	return names
}

// bytes is the sum over some hosts.
func (o *Outcome) bytes(hosts []string) (total uint64) {
	for _, h := range hosts {
		total += o.Run.Bytes[h]
	}
	return total
}

func meanCopies(runs []Outcome) []measure.LinkCopies {
	sum := make(map[string]float64)
	for _, o := range runs {
		for _, c := range o.Copies {
			sum[c.Link] += c.Copies / float64(len(runs))
		}
	}
	list := []measure.LinkCopies{}
	for _, link := range slices.Sorted(maps.Keys(sum)) {
		list = append(list, measure.LinkCopies{Link: link, Copies: sum[link]})
	}
	return list
}

// merge adds up the runs of a mode.
func merge(runs []Outcome) Run {
	all := Run{
		Bytes:         make(map[string]uint64),
		ProtocolBytes: make(map[string]uint64),
		CPUSeconds:    make(map[string]float64),
		Metrics:       make(map[string]float64),
	}
	for _, o := range runs {
		r := o.Run
		all.Engine = r.Engine
		all.Seconds += r.Seconds
		all.Window += r.Window
		all.Pairs += r.Pairs
		all.CPUPressure = max(all.CPUPressure, r.CPUPressure)
		all.SenderLateP99 = max(all.SenderLateP99, r.SenderLateP99)
		all.SenderLateMax = max(all.SenderLateMax, r.SenderLateMax)
		addTo(all.Bytes, r.Bytes)
		addTo(all.ProtocolBytes, r.ProtocolBytes)
		addTo(all.CPUSeconds, r.CPUSeconds)
		addTo(all.Metrics, r.Metrics)
		all.Wire = mergeWire(all.Wire, r.Wire)
	}
	return all
}

func addTo[V uint64 | float64](sum, values map[string]V) {
	for name, v := range values {
		sum[name] += v
	}
}

// mergeWire keeps the scheduling of the worse one.
func mergeWire(a, b *delayline.Summary) *delayline.Summary {
	if a == nil || b == nil {
		if a == nil {
			a = b
		}
		return a
	}
	sum := *a
	if b.P99 > a.P99 {
		sum.Scheduling = b.Scheduling
	}
	sum.CPU += b.CPU
	sum.Frames += b.Frames
	sum.Bytes += b.Bytes
	sum.Lost += b.Lost
	sum.P50, sum.P99, sum.Max = max(a.P50, b.P50), max(a.P99, b.P99), max(a.Max, b.Max)
	sum.Overdue = max(a.Overdue, b.Overdue)
	frames := make(map[float64]uint64)
	for _, bucket := range slices.Concat(a.Histogram, b.Histogram) {
		frames[bucket.UpTo] += bucket.Frames
	}
	sum.Histogram = nil
	for _, upTo := range slices.Sorted(maps.Keys(frames)) {
		sum.Histogram = append(sum.Histogram, delayline.Bucket{UpTo: upTo, Frames: frames[upTo]})
	}
	return &sum
}

// times is how often b is in a, e.g. "0.35x", or "-" if that says nothing.
func times(a, b float64) string {
	if b == 0 || math.IsNaN(a/b) {
		return "-"
	}
	return fmt.Sprintf("%.2fx", a/b)
}
