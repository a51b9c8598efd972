// SPDX-License-Identifier: LGPL-3.0-or-later

// Package plot draws the result of a comparison: pictures in SVG, and one HTML
// page that contains them with the tables and needs no other file.
package plot

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	_ "gonum.org/v1/plot/vg/vgsvg" // format of the pictures

	"github.com/ethmcast/mdcs/testnet/measure"
	"github.com/ethmcast/mdcs/testnet/report"
)

// PageFile is the page with everything.
const PageFile = "index.html"

const (
	width  = 22 * vg.Centimeter
	height = 13 * vg.Centimeter
)

// colors are told apart by the colour-blind too (Okabe, Ito, 2008). The modes
// keep theirs in all pictures.
var colors = map[string]color.Color{
	"gossip":        color.RGBA{0xd5, 0x5e, 0x00, 0xff},
	"gossip-direct": color.RGBA{0xe6, 0x9f, 0x00, 0xff},
	"gossip+relays": color.RGBA{0xcc, 0x79, 0xa7, 0xff},
	"mdcs":          color.RGBA{0x00, 0x72, 0xb2, 0xff},
	"mdcs-socket":   color.RGBA{0x56, 0xb4, 0xe9, 0xff},
	"ideal":         color.RGBA{0x00, 0x9e, 0x73, 0xff},
}

func colorOf(mode string) color.Color {
	if c, ok := colors[mode]; ok {
		return c
	}
	return color.Gray{0x80}
}

// data is what the pictures show.
type data struct {
	*report.Summary
	modes   []string
	samples map[string][]measure.Sample // by mode
}

// picture is a file and how to draw it.
type picture struct {
	File, Caption string
	draw          func(*data) (*plot.Plot, error)
}

var pictures = []picture{
	{"delay.svg", "A curve that ends below 1 belongs to a mode in which some transactions did not arrive everywhere.", delay},
	{"reach.svg", "Dots are medians over transactions; lines go up to the 99th percentile, and end in a triangle if that is infinite.", reach},
	{"overhead.svg", "Dots are medians over all (transaction, node) pairs; lines go up to the 99th percentile, and end in a triangle if that is infinite.", overhead},
	{"overhead-cdf.svg", "Delay above the floor of the BGP path with serialisation.", overheadCDF},
	{"bytes.svg", "Total bytes are those of nodes, replication points and relays.", cost},
	{"copies.svg", "Bytes of mDCS and of the eth protocol over the bytes of all transactions sent once. A multicast tree has 1 on the links that it uses.", copies},
}

// Write draws the result in dir, which has an arrivals.csv, into the same
// directory.
func Write(dir string, s *report.Summary) error {
	d := &data{Summary: s, modes: s.Modes()}
	file, err := os.Open(filepath.Join(dir, report.ArrivalsFile))
	if err != nil {
		return fmt.Errorf("draw result: %w", err)
	}
	defer file.Close()
	if d.samples, err = report.ReadArrivals(file); err != nil {
		return fmt.Errorf("draw result: %w", err)
	}
	var svgs [][]byte
	for _, p := range pictures {
		svg, err := p.svg(d)
		if err != nil {
			return fmt.Errorf("draw %s: %w", p.File, err)
		}
		if err := os.WriteFile(filepath.Join(dir, p.File), svg, 0o644); err != nil {
			return fmt.Errorf("draw result: %w", err)
		}
		svgs = append(svgs, svg)
	}
	html, err := page(s, svgs)
	if err != nil {
		return fmt.Errorf("draw result: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, PageFile), html, 0o644); err != nil {
		return fmt.Errorf("draw result: %w", err)
	}
	return nil
}

func (p picture) svg(d *data) ([]byte, error) {
	drawn, err := p.draw(d)
	if err != nil {
		return nil, err
	}
	w, err := drawn.WriterTo(width, height, "svg")
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if _, err := w.WriteTo(&b); err != nil {
		return nil, err
	}
	// Who lacks the font should not see one with serifs.
	return bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,sans-serif;")), nil
}

func newPlot(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.Padding = vg.Points(8)
	for _, style := range []*text.Style{
		&p.Title.TextStyle, &p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label, &p.Legend.TextStyle,
	} {
		style.Font.Variant = "Sans"
	}
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Padding = vg.Points(5)
	}
	p.Legend.Top = true
	p.Legend.Padding = vg.Points(2)
	p.Legend.XOffs = -vg.Points(6)
	p.Add(plotter.NewGrid())
	return p
}

// logarithmic makes an axis logarithmic over the positive finite values.
func logarithmic(axis *plot.Axis, values []float64) {
	low, high := math.Inf(1), 0.0
	for _, v := range values {
		if v > 0 && !math.IsInf(v, 1) {
			low, high = min(low, v), max(high, v)
		}
	}
	if high == 0 {
		low, high = 1, 10
	}
	margin := 1.2
	if high < 3*low {
		margin = 2 // so that there are labels
	}
	axis.Min, axis.Max = low/margin, high*margin
	axis.Scale, axis.Tick.Marker = plot.LogScale{}, ticks125{}
}

// ticks125 labels 1, 2 and 5 times the powers of ten.
type ticks125 struct{}

func (ticks125) Ticks(low, high float64) (ticks []plot.Tick) {
	for e := math.Floor(math.Log10(low)); e <= math.Ceil(math.Log10(high)); e++ {
		for digit := 1.0; digit < 10; digit++ {
			v := digit * math.Pow(10, e)
			if v < low || v > high {
				continue
			}
			tick := plot.Tick{Value: v}
			if digit == 1 || digit == 2 || digit == 5 {
				tick.Label = strconv.FormatFloat(v, 'g', 4, 64)
				if v >= 1 && v < 1e6 {
					tick.Label = strconv.FormatFloat(v, 'f', 0, 64)
				}
			}
			ticks = append(ticks, tick)
		}
	}
	return ticks
}

// points is the resolution of a curve.
const points = 500

// leastShown is the smallest time in ms that a logarithmic axis shows; what is
// below stands there.
const leastShown = 0.05

// cdf draws the share of the values up to x for each mode.
func cdf(d *data, title, x string, value func(measure.Sample) float64) (*plot.Plot, error) {
	p := newPlot(title, x, "share of (transaction, node) pairs")
	var all []float64
	for _, mode := range d.modes {
		values := sorted(d.samples[mode], value)
		all = append(all, values...)
		var xy plotter.XYs
		for i := range points + 1 {
			if len(values) == 0 {
				break
			}
			k := i * (len(values) - 1) / points
			if v := values[k]; !math.IsInf(v, 1) {
				xy = append(xy, plotter.XY{X: v, Y: float64(k+1) / float64(len(values))})
			}
		}
		if err := addLine(p, mode, xy); err != nil {
			return nil, err
		}
	}
	logarithmic(&p.X, all)
	p.Y.Min, p.Y.Max = 0, 1
	p.Legend.Top = false
	return p, nil
}

func addLine(p *plot.Plot, mode string, xy plotter.XYs) error {
	if len(xy) == 0 {
		return nil
	}
	line, err := plotter.NewLine(xy)
	if err != nil {
		return err
	}
	line.Color, line.Width = colorOf(mode), vg.Points(1.8)
	p.Add(line)
	p.Legend.Add(mode, line)
	return nil
}

// sorted are the values of samples in ascending order, at least [leastShown].
func sorted(samples []measure.Sample, value func(measure.Sample) float64) []float64 {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = max(leastShown, value(s))
	}
	slices.Sort(values)
	return values
}

func delay(d *data) (*plot.Plot, error) {
	return cdf(d, "Delay of each transaction at each node (left is better)", "delay, ms",
		func(s measure.Sample) float64 { return s.Delay })
}

func overheadCDF(d *data) (*plot.Plot, error) {
	return cdf(d, "Delay above what the network needs (left is better)", "overhead, ms", measure.Sample.Overhead)
}

// span is a median and a 99th percentile.
type span struct{ p50, p99 float64 }

func spanOf(sorted []float64) span {
	return span{measure.Percentile(sorted, 50), measure.Percentile(sorted, 99)}
}

func reach(d *data) (*plot.Plot, error) {
	groups := []string{"50 % of the nodes", "95 %", "100 %"}
	return spans(d, "Delay until so many nodes have a transaction (lower is better)", "delay, ms", groups, func(mode string, group int) span {
		var pairs []measure.Pair
		for _, s := range d.samples[mode] {
			pairs = append(pairs, s.Pair)
		}
		values := measure.Reached(pairs, []float64{50, 95, 100}[group])
		for i := range values {
			values[i] = max(leastShown, values[i])
		}
		slices.Sort(values)
		return spanOf(values)
	})
}

func overhead(d *data) (*plot.Plot, error) {
	groups := []string{"physically shortest path", "BGP path", "BGP path with serialisation"}
	floors := []func(measure.Sample) float64{
		func(s measure.Sample) float64 { return s.Delay - s.Physical },
		func(s measure.Sample) float64 { return s.Delay - s.BGP },
		measure.Sample.Overhead,
	}
	return spans(d, "Delay above three floors (lower is better)", "overhead, ms", groups, func(mode string, group int) span {
		return spanOf(sorted(d.samples[mode], floors[group]))
	})
}

// spans draws one span per mode in each group.
func spans(d *data, title, y string, groups []string, of func(mode string, group int) span) (*plot.Plot, error) {
	p := newPlot(title, "", y)
	var all []float64
	drawn := make(map[string][]span)
	for _, mode := range d.modes {
		if len(d.samples[mode]) == 0 {
			continue
		}
		for g := range groups {
			s := of(mode, g)
			drawn[mode] = append(drawn[mode], s)
			all = append(all, s.p50, s.p99)
		}
	}
	logarithmic(&p.Y, all)
	top := p.Y.Max
	p.Y.Max *= 3 // room for the legend
	for i, mode := range d.modes {
		for g, s := range drawn[mode] {
			x := float64(g) + 0.7*((float64(i)+0.5)/float64(len(d.modes))-0.5)
			end := draw.GlyphDrawer(nil)
			if math.IsInf(s.p99, 1) {
				end = draw.PyramidGlyph{}
			}
			if err := addSpan(p, mode, x, min(s.p50, top), min(s.p99, top), end, g == 0); err != nil {
				return nil, err
			}
		}
	}
	p.NominalX(groups...)
	p.X.Tick.Label.Font.Variant = "Sans"
	p.X.Min, p.X.Max = -0.5, float64(len(groups))-0.5
	return p, nil
}

// addSpan draws a dot and a line from there upwards, and a glyph at the end.
func addSpan(p *plot.Plot, mode string, x, from, to float64, end draw.GlyphDrawer, named bool) error {
	line, dot, err := plotter.NewLinePoints(plotter.XYs{{X: x, Y: from}, {X: x, Y: to}})
	if err != nil {
		return err
	}
	line.Color, line.Width = colorOf(mode), vg.Points(3)
	dot.GlyphStyleFunc = func(i int) draw.GlyphStyle {
		g := draw.GlyphStyle{Color: colorOf(mode), Radius: vg.Points(5), Shape: draw.CircleGlyph{}}
		if i == 1 {
			if g.Shape = end; end == nil {
				g.Shape, g.Radius = draw.BoxGlyph{}, vg.Points(1.5)
			}
		}
		return g
	}
	p.Add(line, dot)
	if named {
		p.Legend.Add(mode, line)
	}
	return nil
}

// cost shows what the speed of each mode costs.
func cost(d *data) (*plot.Plot, error) {
	p := newPlot("Bytes and delay (lower left is better)", "total bytes on the wire, MB", "95 % of the nodes reached, median, ms")
	var xs, ys []float64
	for _, mode := range d.modes {
		t := d.Tx[mode]
		x, y := float64(t.TotalBytes)/1e6, float64(t.T95P50)
		if !(x > 0) || !(y > 0) || math.IsInf(y, 1) {
			continue
		}
		xs, ys = append(xs, x), append(ys, y)
		dot, err := plotter.NewScatter(plotter.XYs{{X: x, Y: y}})
		if err != nil {
			return nil, err
		}
		dot.GlyphStyle = draw.GlyphStyle{Color: colorOf(mode), Radius: vg.Points(6), Shape: draw.CircleGlyph{}}
		p.Add(dot)
		p.Legend.Add(mode, dot)
	}
	logarithmic(&p.X, xs)
	logarithmic(&p.Y, ys)
	p.X.Max *= 1.5 // room for the legend
	return p, nil
}

// copies shows the links by the copies of the first mode, the largest first.
func copies(d *data) (*plot.Plot, error) {
	p := newPlot("Copies of each transaction on links between ASes (lower is better)", "", "copies")
	byLink := make(map[string][]float64) // by mode
	var links []string
	for i, mode := range d.modes {
		for _, c := range d.Tx[mode].LinkCopies {
			if byLink[c.Link] == nil {
				byLink[c.Link] = make([]float64, len(d.modes))
				links = append(links, c.Link)
			}
			byLink[c.Link][i] = c.Copies
		}
	}
	if len(links) == 0 {
		p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, 1, 0, 1
		return p, nil
	}
	slices.SortStableFunc(links, func(a, b string) int { return slices.Compare(byLink[b], byLink[a]) })
	// The bars of a link fill three quarters of its place.
	bar := (width - 2*vg.Centimeter) / vg.Length(len(links)) * 3 / 4 / vg.Length(len(d.modes))
	for i, mode := range d.modes {
		values := make(plotter.Values, len(links))
		for k, link := range links {
			values[k] = byLink[link][i]
		}
		bars, err := plotter.NewBarChart(values, bar)
		if err != nil {
			return nil, err
		}
		bars.Color, bars.LineStyle.Width = colorOf(mode), 0
		bars.Offset = bar * (vg.Length(i) - vg.Length(len(d.modes)-1)/2)
		p.Add(bars)
		p.Legend.Add(mode, bars)
	}
	p.NominalX(links...)
	p.X.Tick.Label.Font.Variant = "Sans"
	p.X.Tick.Label.Rotation = math.Pi / 3
	p.X.Tick.Label.XAlign, p.X.Tick.Label.YAlign = draw.XRight, draw.YCenter
	p.X.Min, p.X.Max = -0.5, float64(len(links))-0.5
	p.Y.Min = 0
	return p, nil
}
