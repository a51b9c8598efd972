// SPDX-License-Identifier: LGPL-3.0-or-later

// Package report is the result of a comparison as files and as text. A result is
// a directory:
//
//	summary.json   all figures and facts: [Summary]
//	arrivals.csv   each transaction at each node: [Arrivals]
//	plots.R        draws pictures from arrivals.csv
//
// A [Summary] is filled run by run with [Summary.Add], and its figures are those
// of all runs of a mode together, computed by [Summary.Finish].
package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/measure"
	"github.com/ethmcast/mdcs/testnet/results"
)

// Names of the files in the directory of a result.
const (
	SummaryFile  = "summary.json"
	ArrivalsFile = "arrivals.csv"
	PlotsFile    = "plots.R"
)

// Summary is the content of summary.json.
type Summary struct {
	Name    string    `json:"name"`
	Started time.Time `json:"started"`
	// Valid is false if the machine was too busy for the figures to describe
	// the network; Warnings say why.
	Valid    bool     `json:"valid"`
	Warnings []string `json:"warnings"`
	Flags    []string `json:"flags"` // what else a reader should know
	Planned  int      `json:"planned_runs"`
	Notes    []string `json:"notes"`

	LatenessP99 Figure `json:"lateness_p99_ms"` // of the wire in its worst run
	Nodes       int    `json:"nodes"`           // Ethereum nodes
	ASes        int    `json:"ases"`
	Engine      string `json:"engine"` // datapath of the replication points; several with a comma

	Seed     uint64            `json:"seed"`   // of the first run
	Seeds    []uint64          `json:"seeds"`  // of workload and peerings
	Rounds   int               `json:"rounds"` // runs per mode and seed
	Host     Host              `json:"host"`
	Versions map[string]string `json:"versions"`
	Topology Topology          `json:"topology"`
	Workload Workload          `json:"workload"`

	Tx       map[string]Tx  `json:"tx"`                  // by mode
	HalfRate map[string]Tx  `json:"half_rate,omitempty"` // by mode: the same at half the rate
	Runs     map[string]Run `json:"runs"`                // by mode: all runs together, see [Run]
	Each     []Single       `json:"each_run"`            // in the order in which they ran

	outcomes map[string][]Outcome
}

// Host is the machine of the run.
type Host struct {
	Kernel string `json:"kernel"`
	CPUs   int    `json:"cpus"`
	Go     string `json:"go"`
}

// Topology is the emulated network.
type Topology struct {
	Name              string `json:"name"`
	Nodes             int    `json:"nodes"`
	RPs               int    `json:"rps"`
	ASes              int    `json:"ases"`
	IXPs              int    `json:"ixps"`
	Degree            int    `json:"degree"`  // peers per node, 0: all others
	Links             string `json:"links"`   // netem or wire
	Routing           string `json:"routing"` // bird or static
	CongestionControl string `json:"tcp_congestion_control"`
}

// Workload is what was sent, the same in each mode. Sizes are in bytes.
type Workload struct {
	Txs        int            `json:"txs"` // per run
	Rate       float64        `json:"rate_tx_per_s"`
	Burst      int            `json:"burst"` // sent at once
	BurstEvery float64        `json:"burst_every_s"`
	Kinds      map[string]int `json:"kinds"`
	MinBytes   int            `json:"min_bytes"`
	MeanBytes  float64        `json:"mean_bytes"`
	MaxBytes   int            `json:"max_bytes"`
	Announced  int            `json:"over_4096_bytes"` // transactions that gossip only announces
}

// Tx is the outcome of one mode for transactions. Percentiles and bytes are the
// median over its runs; sums, ratios and the maximum are over all of them.
type Tx struct {
	Sent           int     `json:"sent"`
	DeliveredRatio float64 `json:"delivered_ratio"` // of (tx, node) pairs without the origin
	P50            Figure  `json:"p50_ms"`
	P90            Figure  `json:"p90_ms"`
	P99            Figure  `json:"p99_ms"`
	Max            Figure  `json:"max_ms"`
	Slow           float64 `json:"over_400ms_ratio"` // of pairs, those that did not arrive included

	// Delay above the floor of the BGP path with serialisation, and the medians
	// above the two others.
	OverheadP50         Figure `json:"overhead_p50_ms"`
	OverheadP95         Figure `json:"overhead_p95_ms"`
	OverheadP99         Figure `json:"overhead_p99_ms"`
	OverheadBGPP50      Figure `json:"overhead_bgp_p50_ms"`
	OverheadPhysicalP50 Figure `json:"overhead_physical_p50_ms"`

	// Delay until a share of the nodes has a transaction, over transactions.
	T50P50  Figure `json:"t50_p50_ms"`
	T50P99  Figure `json:"t50_p99_ms"`
	T95P50  Figure `json:"t95_p50_ms"`
	T95P99  Figure `json:"t95_p99_ms"`
	T100P50 Figure `json:"t100_p50_ms"`
	T100P99 Figure `json:"t100_p99_ms"`

	BytesPerNode uint64 `json:"bytes_per_node"` // mean over the Ethereum nodes, both directions
	RPBytes      uint64 `json:"rp_bytes"`       // sum over replication points or relays
	TotalBytes   uint64 `json:"total_bytes"`    // sum over nodes, replication points and relays

	LinkCopiesMax  Figure               `json:"link_copies_max"`
	LinkCopiesMean Figure               `json:"link_copies_mean"`
	LinkCopies     []measure.LinkCopies `json:"link_copies"` // mean over the runs

	// Intervals are the 95 % intervals by the name of the figure: lower and upper
	// bound in the same unit, null if it is infinite. What each run has only one
	// figure of has an interval from two runs on.
	Intervals map[string][2]Figure `json:"intervals"`

	// CPUBound names the figures that differ by more than 10 % at half the rate:
	// the machine has a part in them.
	CPUBound []string `json:"cpu_bound"`
}

// Run is how a mode ran. Bytes, times and counters are those of the window. Of
// several runs, sums stand for what can be added and the worst for the rest.
type Run struct {
	Engine        string             `json:"engine,omitempty"` // datapath of the replication points
	Seconds       float64            `json:"duration_s"`       // from the start of the net to its end
	Window        float64            `json:"window_s"`         // in which bytes were counted
	CPUPressure   float64            `json:"cpu_pressure"`     // share of the window, 0..1
	Wire          *delayline.Summary `json:"wire,omitempty"`   // in the window
	SenderLateP99 Figure             `json:"sender_late_p99_ms"`
	SenderLateMax Figure             `json:"sender_late_max_ms"`
	Pairs         int                `json:"pairs"`
	Bytes         map[string]uint64  `json:"bytes"`          // by host, both directions
	ProtocolBytes map[string]uint64  `json:"protocol_bytes"` // devp2p payload, sum over the nodes, each message at both ends
	CPUSeconds    map[string]float64 `json:"cpu_s"`          // by process
	Metrics       map[string]float64 `json:"metrics"`        // change of the nodes' own, summed over the nodes
}

// Single is one run.
type Single struct {
	Mode  string `json:"mode"`
	Round int    `json:"round"`
	Seed  uint64 `json:"seed"`
	Tx    Tx     `json:"tx"`
	Run   Run    `json:"run"`
}

// Figure is a number. In JSON, null stands for one that is infinite or unknown:
// of a percentile, that so many transactions did not arrive that it falls on one
// of them.
type Figure float64

// Infinite is the delay of what did not arrive.
var Infinite = Figure(math.Inf(1))

// unknown is what was not measured.
var unknown = Figure(math.NaN())

// Known reports whether the number is finite.
func (f Figure) Known() bool { return !math.IsInf(float64(f), 0) && !math.IsNaN(float64(f)) }

// MarshalJSON keeps three decimals: microseconds of a time in ms.
func (f Figure) MarshalJSON() ([]byte, error) {
	if !f.Known() {
		return []byte("null"), nil
	}
	return strconv.AppendFloat(nil, math.Round(float64(f)*1000)/1000, 'f', -1, 64), nil
}

// UnmarshalJSON is the inverse of MarshalJSON.
func (f *Figure) UnmarshalJSON(text []byte) error {
	if bytes.Equal(text, []byte("null")) {
		*f = Infinite
		return nil
	}
	return json.Unmarshal(text, (*float64)(f))
}

// String is the number for a table, e.g. "21.4", "inf" or "-" if it is unknown.
func (f Figure) String() string { return f.text(1) }

// text is the number with some decimals.
func (f Figure) text(decimals int) string {
	switch {
	case math.IsNaN(float64(f)):
		return "-"
	case !f.Known():
		return "inf"
	}
	return strconv.FormatFloat(float64(f), 'f', decimals, 64)
}

// Notes explain the figures.
var Notes = []string{
	"modes: gossip is stock geth; gossip-direct is geth that pushes all transactions to all peers; gossip+relays has stock geths in the places of the replication points, as everyone's peers; mdcs is patched geth with replication points; ideal is native IPv6 multicast without nodes, repair and control traffic",
	"in mode ideal packets take the reverse of each receiver's BGP path to the source, as PIM-SSM would have it: where routing is not symmetric, a delay can be below the floor of BGP; what a line loses does not arrive",
	"p50_ms, p90_ms, p99_ms, max_ms: delay from the call of eth_sendRawTransaction at the origin to the newPendingTransactions notification of the node, on one clock; in mode ideal from the call that sends to the kernel's time stamp of the last frame",
	"the pair of a transaction with its own origin does not count; a transaction that did not arrive has an infinite delay, and an infinite percentile is null",
	"delivered_ratio is the share of (transaction, node) pairs that arrived; over_400ms_ratio is the share that took longer than 400 ms or did not arrive: in gossip those that waited for an announcement",
	"floors: physical is the path of least delay, BGP the path of the routing policy, and BGP with serialisation adds the time for all datagrams of the transaction, back to back with all their headers, to leave each line that has a rate, until the last byte has arrived; access lines are in all of them",
	"overhead_*_ms: delay above the floor of BGP with serialisation; overhead_bgp_p50_ms and overhead_physical_p50_ms: above the other two",
	"t50, t95, t100: for each transaction the delay until that share of the nodes, its origin left out, has it; p50 and p99 over the transactions",
	"bytes are Ethernet frames without preamble, FCS and gap, received and sent, on the line of the host (so that a frame between two hosts counts at both), in a window from the first transaction to at least 3 s after the last; bytes_per_node is the mean over the Ethereum nodes, rp_bytes the sum over replication points or relays, total_bytes all of them",
	"link_copies are null where nothing counts what crosses a link, as with netem",
	"link_copies: bytes of mDCS data and repair and of all of the eth protocol, with its acknowledgements, on a link between ASes in both directions, over the bytes of all transactions in frames once; link_copies_max is the busiest link and link_copies_mean the mean of all; a port of an IXP is a link",
	"percentiles and bytes are the median over the runs of a mode; intervals are 95 % percentile bootstrap intervals with 2000 replicates, which draw runs and then whole transactions",
	"cpu_bound names figures that differ by more than 10 % when the same is sent at half the rate",
	"lateness is how long after its due time a frame left the wire; runs is the sum or the worst over the runs of a mode, each_run has them one by one",
	"cpu_s is the time of a process in user and kernel mode; work in softirqs for its packets is not in it",
}

// Limits above which a run is not valid.
const (
	maxOverdue  = 0.05 // share of frames more than 1 ms late on the wire
	maxLateness = 3000 // us, 99th percentile of the lateness on the wire
	maxPressure = 0.60 // share of time in which a task waited for a CPU
)

// Judge fills Valid, Warnings and LatenessP99 from the runs.
func (s *Summary) Judge() {
	s.Warnings, s.LatenessP99 = []string{}, 0
	for _, r := range s.Each {
		warn := func(format string, args ...any) {
			what := fmt.Sprintf("%s, seed %d, round %d: ", r.Mode, r.Seed, r.Round)
			s.Warnings = append(s.Warnings, what+fmt.Sprintf(format, args...))
		}
		if w := r.Run.Wire; w != nil {
			s.LatenessP99 = max(s.LatenessP99, Figure(w.P99/1000))
			if w.Overdue > maxOverdue {
				warn("%.1f %% of the frames were more than 1 ms late on the wire (limit %.0f %%)", w.Overdue*100, maxOverdue*100)
			}
			if w.P99 > maxLateness {
				warn("1 %% of the frames were more than %.1f ms late on the wire (limit %.0f ms)", w.P99/1000, maxLateness/1000.0)
			}
			if w.Lost > 0 {
				warn("the wire lost %d frames", w.Lost)
			}
		}
		if r.Run.CPUPressure > maxPressure {
			warn("tasks waited for a CPU in %.0f %% of the time (limit %.0f %%)", r.Run.CPUPressure*100, maxPressure*100)
		}
	}
	if made := len(s.Each); made < s.Planned {
		s.Warnings = append(s.Warnings, fmt.Sprintf("only %d of %d runs were made", made, s.Planned))
	}
	s.Valid = len(s.Warnings) == 0
}

// baseline is the mode against which the others are held.
const baseline = "gossip"

// Modes are the modes of the result in a fixed order: gossip, the baseline,
// first, and ideal last.
func (s *Summary) Modes() []string {
	rank := func(mode string) int {
		switch mode {
		case baseline:
			return 0
		case "ideal":
			return 2
		}
		return 1
	}
	return slices.SortedFunc(maps.Keys(s.Tx), func(a, b string) int {
		if rank(a) != rank(b) {
			return rank(a) - rank(b)
		}
		return strings.Compare(a, b)
	})
}

// JSON is the summary as in summary.json.
func (s *Summary) JSON() ([]byte, error) { return results.JSON(s) }

// Write writes summary.json and plots.R into dir.
func (s *Summary) Write(dir string) error {
	text, err := s.JSON()
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{SummaryFile: text, PlotsFile: plotsR} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return fmt.Errorf("write summary: %w", err)
		}
	}
	return nil
}
