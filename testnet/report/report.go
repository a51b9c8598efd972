// SPDX-License-Identifier: LGPL-3.0-or-later

// Package report is the result of a comparison as files and as text.
package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/ethmcast/mdcs/testnet/delayline"
)

// Names of the files in the directory of a result.
const (
	SummaryFile  = "summary.json"
	ArrivalsFile = "arrivals.csv"
)

// Summary is the content of summary.json.
type Summary struct {
	Name    string    `json:"name"`
	Started time.Time `json:"started"`
	// Valid is false if the machine was too busy for the figures to describe
	// the network; Warnings say why.
	Valid    bool     `json:"valid"`
	Warnings []string `json:"warnings"`
	Notes    []string `json:"notes"`

	Seed     uint64            `json:"seed"`
	Host     Host              `json:"host"`
	Versions map[string]string `json:"versions"`
	Topology Topology          `json:"topology"`
	Workload Workload          `json:"workload"`

	Tx   map[string]Tx  `json:"tx"`   // by mode
	Runs map[string]Run `json:"runs"` // by mode
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
	Links             string `json:"links"` // netem or wire
	CongestionControl string `json:"tcp_congestion_control"`
}

// Workload is what was sent, the same in each mode. Sizes are in bytes.
type Workload struct {
	Txs       int            `json:"txs"`
	Rate      float64        `json:"rate_tx_per_s"`
	Kinds     map[string]int `json:"kinds"`
	MinBytes  int            `json:"min_bytes"`
	MeanBytes float64        `json:"mean_bytes"`
	MaxBytes  int            `json:"max_bytes"`
}

// Tx is the outcome of one mode for transactions.
type Tx struct {
	Sent           int     `json:"sent"`
	DeliveredRatio float64 `json:"delivered_ratio"` // of (tx, node) pairs without the origin
	P50            Millis  `json:"p50_ms"`
	P90            Millis  `json:"p90_ms"`
	P99            Millis  `json:"p99_ms"`
	Max            Millis  `json:"max_ms"`
	Slow           float64 `json:"over_400ms_ratio"`   // of pairs, those that did not arrive included
	BytesPerNode   uint64  `json:"bytes_per_node"`     // mean over the Ethereum nodes, both directions
	RPBytes        *uint64 `json:"rp_bytes,omitempty"` // sum over the replication points
	TotalBytes     uint64  `json:"total_bytes"`        // sum over nodes and replication points
}

// Run is how one mode ran. Bytes are those of the window.
type Run struct {
	Engine        string             `json:"engine,omitempty"` // datapath of the replication points
	Seconds       float64            `json:"duration_s"`       // from the start of the net to its end
	Window        float64            `json:"window_s"`         // in which bytes were counted
	CPUPressure   float64            `json:"cpu_pressure"`     // share of the window, 0..1
	Wire          *delayline.Summary `json:"wire,omitempty"`   // in the window
	Pairs         int                `json:"pairs"`
	Bytes         map[string]uint64  `json:"bytes"`          // by host, both directions
	ProtocolBytes map[string]uint64  `json:"protocol_bytes"` // devp2p payload, sum over the nodes, each message at both ends
}

// Millis is a time in ms. In JSON, null stands for an infinite one: so many
// transactions did not arrive that the percentile falls on one of them.
type Millis float64

// Infinite is the time of what did not arrive.
var Infinite = Millis(math.Inf(1))

func (m Millis) finite() bool { return !math.IsInf(float64(m), 0) && !math.IsNaN(float64(m)) }

// MarshalJSON keeps three decimals, i.e. microseconds.
func (m Millis) MarshalJSON() ([]byte, error) {
	if !m.finite() {
		return []byte("null"), nil
	}
	return strconv.AppendFloat(nil, math.Round(float64(m)*1000)/1000, 'f', -1, 64), nil
}

// UnmarshalJSON is the inverse of MarshalJSON.
func (m *Millis) UnmarshalJSON(text []byte) error {
	if bytes.Equal(text, []byte("null")) {
		*m = Infinite
		return nil
	}
	return json.Unmarshal(text, (*float64)(m))
}

// String is the time for a table, e.g. "21.4" or "inf".
func (m Millis) String() string {
	if !m.finite() {
		return "inf"
	}
	return strconv.FormatFloat(float64(m), 'f', 1, 64)
}

// Notes explain fields that could be misread.
var Notes = []string{
	"delays run from the call of eth_sendRawTransaction at the origin to the newPendingTransactions notification of the node, on one clock",
	"the pair of a transaction with its own origin does not count; a transaction that did not arrive has an infinite delay, and an infinite percentile is null",
	"bytes are Ethernet frames without preamble, FCS and gap, received and sent, on the interface of the host (so that a frame between two hosts counts at both), in a window from the first transaction to at least 3 s after the last",
}

// Limits above which a run is not valid.
const (
	maxOverdue  = 0.05 // share of frames more than 1 ms late on the wire
	maxPressure = 0.60 // share of time in which a task waited for a CPU
)

// Judge fills Valid and Warnings from the figures.
func (s *Summary) Judge() {
	s.Warnings = []string{}
	warn := func(format string, args ...any) { s.Warnings = append(s.Warnings, fmt.Sprintf(format, args...)) }
	for _, mode := range s.modes() {
		r := s.Runs[mode]
		if w := r.Wire; w != nil {
			if w.Overdue > maxOverdue {
				warn("%s: %.1f %% of the frames were more than 1 ms late on the wire (limit %.0f %%)", mode, w.Overdue*100, maxOverdue*100)
			}
			if w.Lost > 0 {
				warn("%s: the wire lost %d frames", mode, w.Lost)
			}
		}
		if r.CPUPressure > maxPressure {
			warn("%s: tasks waited for a CPU in %.0f %% of the time (limit %.0f %%)", mode, r.CPUPressure*100, maxPressure*100)
		}
	}
	s.Valid = len(s.Warnings) == 0
}

// JSON is the summary as in summary.json.
func (s *Summary) JSON() ([]byte, error) {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode summary: %w", err)
	}
	return append(text, '\n'), nil
}

// Write writes summary.json into dir.
func (s *Summary) Write(dir string) error {
	text, err := s.JSON()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, SummaryFile), text, 0o644); err != nil {
		return fmt.Errorf("write summary: %w", err)
	}
	return nil
}
