// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"fmt"
	"image/color"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/ethmcast/mdcs/testnet/lightpeer"
	"github.com/ethmcast/mdcs/testnet/results"
)

// PeersResult is what a measurement with peers found.
type PeersResult struct {
	Name    string     `json:"name"`
	Started time.Time  `json:"started"`
	Host    Host       `json:"host"`
	Engine  string     `json:"engine"`
	Rate    Figure     `json:"datagrams_s"`
	Steady  Figure     `json:"steady_s"`
	Notes   []string   `json:"notes"`
	Rows    []PeersRow `json:"rows"`
}

// PeersRow is a replication point with a number of peers.
type PeersRow struct {
	Peers int `json:"peers"`

	// The join storm.
	Joins          Figure `json:"joins_s"`
	CPUPerJoin     Figure `json:"cpu_ms_per_join"`
	ControlPerJoin Figure `json:"control_bytes_per_join"` // both directions

	// The steady state.
	CPU        Figure `json:"cpu_percent"`     // of one core, user and system time of rpd
	Memory     Figure `json:"kib_per_peer"`    // resident, beyond that without peers
	Control    Figure `json:"control_bytes_s"` // both directions, all peers
	Published  int    `json:"published"`
	LastCopy   Figure `json:"last_copy_ms"` // median
	LastCopy99 Figure `json:"last_copy_p99_ms"`

	// From the start of rpd, after it was killed, until all are members again.
	Rejoin Figure `json:"rejoin_s"`

	// Of the steady state, and of a short load after the restart.
	Lost       uint64 `json:"lost"`       // copies that did not arrive
	Duplicated uint64 `json:"duplicated"` // copies
	Refused    uint64 `json:"refused"`    // datagrams that a peer refused
	Again      uint64 `json:"again"`      // joins beyond the first and the one after the restart

	resident float64 // bytes of rpd without peers
}

// add adds what went wrong while datagrams were published.
func (r *PeersRow) add(before, after lightpeer.Counters, missing int) {
	r.Lost += max(after.Lost-before.Lost, uint64(missing))
	r.Duplicated += after.Duplicates - before.Duplicates
	r.Refused += after.Refused + after.Early - before.Refused - before.Early
}

// peersNotes explain figures that could be misread.
var peersNotes = []string{
	"each peer has an RLPx connection, an endpoint and checks of its own; all run in one process on the same machine as rpd, whose CPU they share",
	"cpu_percent is what the process rpd used; the xdp engine copies in the kernel, in the time of whoever is interrupted",
	"last_copy_ms runs from the sending of a datagram to the arrival of its last copy at a socket of the peers",
	"a peer that lost its connection dials again within a second; a geth of today takes up to 35 s by itself",
	"peers are 16 to a /64 and 256 to a /48, the limits of rpd's default configuration",
}

func newPeersResult(cfg *PeersConfig) (*PeersResult, error) {
	host, err := hostFacts()
	if err != nil {
		return nil, err
	}
	return &PeersResult{
		Name:    cfg.Name,
		Started: time.Now().UTC().Truncate(time.Second),
		Host:    host,
		Engine:  cfg.Engine,
		Rate:    Figure(cfg.Rate),
		Steady:  Figure(cfg.Steady.Seconds()),
		Notes:   peersNotes,
		Rows:    []PeersRow{},
	}, nil
}

// RowsJSON is the list of the rows.
func (r *PeersResult) RowsJSON() ([]byte, error) { return results.JSON(r.Rows) }

// Table writes the result for people.
func (r *PeersResult) Table(out io.Writer) error {
	h := &r.Host
	fmt.Fprintf(out, "%s: engine %s, %v datagrams/s; Linux %s, %d CPUs %s, %s\n\n",
		r.Name, r.Engine, r.Rate, h.Kernel, h.CPUs, h.Processor, h.Go)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, strings.Join(strings.Fields(
		"peers joins/s join-CPU-ms join-bytes CPU-% KiB/peer control-B/s last-ms p99-ms lost duplicated refused rejoin-s again"), "\t")+"\t")
	for _, x := range r.Rows {
		for _, cell := range []any{x.Peers, x.Joins, x.CPUPerJoin, x.ControlPerJoin, x.CPU, x.Memory, x.Control, x.LastCopy,
			x.LastCopy99, x.Lost, x.Duplicated, x.Refused, x.Rejoin, x.Again} {
			fmt.Fprintf(w, "%v\t", cell)
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// Names of the files in the directory of a result with peers.
const (
	PeersFile        = "peers.json"
	PeersTableFile   = "peers.txt"
	PeersPictureFile = "peers.svg"
)

// Write writes all files of the result to a directory, which it makes.
func (r *PeersResult) Write(dir string) error {
	if err := results.Write(dir, PeersFile, r, PeersTableFile, r.Table); err != nil {
		return err
	}
	return r.picture(filepath.Join(dir, PeersPictureFile))
}

// picture shows what peers cost.
func (r *PeersResult) picture(file string) error {
	p := newPlot(fmt.Sprintf("One rpd, engine %s, %v datagrams per second", r.Engine, r.Rate), "")
	p.X.Label.Text = "peers"
	for _, c := range []struct {
		name  string
		color color.Color
		value func(*PeersRow) Figure
	}{
		{"CPU, % of a core", colors[XDP], func(x *PeersRow) Figure { return x.CPU }},
		{"memory of a peer, KiB", colors[Bare], func(x *PeersRow) Figure { return x.Memory }},
		{"all joined again, s", colors[Socket], func(x *PeersRow) Figure { return x.Rejoin }},
		{"last copy, ms", colors[TC], func(x *PeersRow) Figure { return x.LastCopy }},
	} {
		var points plotter.XYs
		for i := range r.Rows {
			if y := c.value(&r.Rows[i]); y.known() && y > 0 {
				points = append(points, plotter.XY{X: float64(r.Rows[i].Peers), Y: float64(y)})
			}
		}
		if len(points) == 0 {
			continue
		}
		line, marks, err := plotter.NewLinePoints(points)
		if err != nil {
			return fmt.Errorf("draw %s: %w", PeersPictureFile, err)
		}
		line.Color, line.Width = c.color, vg.Points(1.5)
		marks.Color, marks.Shape = c.color, draw.CircleGlyph{}
		p.Add(line, marks)
		p.Legend.Add(c.name, line, marks)
	}
	widen(p).Y.Max *= 8 // room for the legend
	if err := p.Save(pictureWidth, pictureHeight, file); err != nil {
		return fmt.Errorf("write %s: %w", PeersPictureFile, err)
	}
	return nil
}
