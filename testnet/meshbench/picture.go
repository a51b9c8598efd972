// SPDX-License-Identifier: LGPL-3.0-or-later

package meshbench

import (
	"fmt"
	"image/color"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/ethmcast/mdcs/rp/mesh/tree"
	"github.com/ethmcast/mdcs/testnet/sim"
)

const (
	pictureWidth  = 18 * vg.Centimeter
	pictureHeight = 12 * vg.Centimeter
)

// Colours are told apart by the colour-blind too (Okabe, Ito, 2008).
var (
	blue       = color.RGBA{0x00, 0x72, 0xb2, 0xff}
	vermillion = color.RGBA{0xd5, 0x5e, 0x00, 0xff}
	green      = color.RGBA{0x00, 0x9e, 0x73, 0xff}
	purple     = color.RGBA{0xcc, 0x79, 0xa7, 0xff}
)

// curve is a figure of the meshes in one mode, by the number of RPs. Those of simulated
// meshes are dashed.
type curve struct {
	name      string
	mode      tree.Mode
	color     color.Color
	process   func(*Result) float64 // nil: none
	simulated func(*sim.Result) float64
}

// picture is a file and what it shows.
type picture struct {
	file, title, y string
	logarithmic    bool
	curves         []curve
}

var pictures = []picture{
	{"copies.svg", "Copies of a datagram on the busiest line between ASes", "copies", true, []curve{
		{"star", tree.Star, vermillion, func(r *Result) float64 { return r.LinkCopiesMax }, func(r *sim.Result) float64 { return r.LinkCopiesMax }},
		{"light", tree.Light, blue, func(r *Result) float64 { return r.LinkCopiesMax }, func(r *sim.Result) float64 { return r.LinkCopiesMax }},
	}},
	{"all-copies.svg", "Copies of a datagram on all lines between ASes", "copies", true, []curve{
		{"star", tree.Star, vermillion, func(r *Result) float64 { return r.LinkCopies }, nil},
		{"light", tree.Light, blue, func(r *Result) float64 { return r.LinkCopies }, nil},
		{"native multicast", tree.Light, green, func(r *Result) float64 { return r.LinkCopiesOptimum }, nil},
	}},
	{"stretch.svg", "Delay over that of the direct path, 95th percentile", "stretch", false, []curve{
		{"star", tree.Star, vermillion, func(r *Result) float64 { return r.StretchP95 }, func(r *sim.Result) float64 { return r.StretchP95 }},
		{"light", tree.Light, blue, func(r *Result) float64 { return r.StretchP95 }, func(r *sim.Result) float64 { return r.StretchP95 }},
	}},
	{"control.svg", "Control traffic to an RP neighbour while nothing is published, mode light", "kbit/s", false, []curve{
		{"with a tree edge", tree.Light, blue, func(r *Result) float64 { return r.ControlTree }, func(r *sim.Result) float64 { return r.ControlTree }},
		{"others", tree.Light, purple, func(r *Result) float64 { return r.ControlOther }, func(r *sim.Result) float64 { return r.ControlOther }},
	}},
	{"times.svg", "Time to converge, and to heal after the death of an inner RP, mode light", "s", false, []curve{
		{"converge", tree.Light, blue, func(r *Result) float64 { return r.ConvergeS }, func(r *sim.Result) float64 { return r.ConvergeS }},
		{"heal", tree.Light, vermillion, func(r *Result) float64 { return r.HealS }, func(r *sim.Result) float64 { return r.HealS }},
	}},
	{"memory.svg", "Resident memory of an RP, mode light", "MiB", false, []curve{
		{"mean", tree.Light, blue, func(r *Result) float64 { return r.MemoryMiB }, nil},
		{"largest", tree.Light, purple, func(r *Result) float64 { return r.MemoryMaxMiB }, nil},
	}},
}

// pictures draws those that have something to show into a directory.
func (r *Report) pictures(dir string) error {
	for _, p := range pictures {
		drawn, err := r.draw(p)
		if err != nil {
			return fmt.Errorf("draw %s: %w", p.file, err)
		}
		if drawn == nil {
			continue
		}
		if err := drawn.Save(pictureWidth, pictureHeight, filepath.Join(dir, p.file)); err != nil {
			return fmt.Errorf("write %s: %w", p.file, err)
		}
	}
	return nil
}

// draw returns nil when there is nothing to show.
func (r *Report) draw(p picture) (*plot.Plot, error) {
	drawn := plot.New()
	drawn.Title.Text, drawn.X.Label.Text, drawn.Y.Label.Text = p.title, "RPs", p.y
	drawn.X.Scale, drawn.X.Tick.Marker = plot.LogScale{}, sizes{}
	drawn.Add(plotter.NewGrid())
	drawn.Legend.Top, drawn.Legend.Left = true, true
	drawn.Legend.Padding = vg.Points(2)
	empty := true
	for _, c := range p.curves {
		for _, simulated := range []bool{false, true} {
			points := r.points(c, simulated)
			if len(points) == 0 {
				continue
			}
			empty = false
			line, dots, err := plotter.NewLinePoints(points)
			if err != nil {
				return nil, err
			}
			name := c.name
			line.Color, line.Width = c.color, vg.Points(1.5)
			dots.Color, dots.Shape = c.color, draw.CircleGlyph{}
			if simulated {
				name += ", simulated"
				line.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
			}
			drawn.Add(line, dots)
			drawn.Legend.Add(name, line, dots)
		}
	}
	if empty {
		return nil, nil
	}
	drawn.X.Min, drawn.X.Max = drawn.X.Min/1.1, drawn.X.Max*1.1
	drawn.Y.Min, drawn.Y.Max = 0, max(drawn.Y.Max*1.3, 1) // room for the legend
	if p.logarithmic {
		drawn.Y.Min, drawn.Y.Max = 0.8, drawn.Y.Max*3
		drawn.Y.Scale, drawn.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	}
	return drawn, nil
}

// points are those of a curve; a figure of 0 was not measured.
func (r *Report) points(c curve, simulated bool) (points plotter.XYs) {
	add := func(rps int, mode string, y float64) {
		if mode == c.mode.String() && y > 0 {
			points = append(points, plotter.XY{X: float64(rps), Y: y})
		}
	}
	if simulated && c.simulated != nil {
		for _, s := range r.Simulated {
			add(s.RPs, s.Mode, c.simulated(s))
		}
	}
	if !simulated && c.process != nil {
		for _, p := range r.Processes {
			add(p.RPs, p.Mode, c.process(p))
		}
	}
	return points
}

// sizes labels the powers of two, up to 64, and the numbers of RPs that are simulated.
type sizes struct{}

// Ticks implements plot.Ticker.
func (sizes) Ticks(low, high float64) (ticks []plot.Tick) {
	for _, n := range []float64{2, 4, 8, 16, 32, 64, 100, 300, 1000, 3000} {
		if n >= low && n <= high {
			ticks = append(ticks, plot.Tick{Value: n, Label: fmt.Sprint(n)})
		}
	}
	return ticks
}
