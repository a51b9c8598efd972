// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"fmt"
	"image/color"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

const (
	pictureWidth  = 18 * vg.Centimeter
	pictureHeight = 12 * vg.Centimeter
)

// lineRates are those, in Gbit/s, of which the pictures show the delay.
var lineRates = []float64{1, 10, 25}

// colors are told apart by the colour-blind too (Okabe, Ito, 2008).
var colors = map[string]color.Color{
	XDP:      color.RGBA{0x00, 0x72, 0xb2, 0xff},
	Socket:   color.RGBA{0xd5, 0x5e, 0x00, 0xff},
	Bare:     color.RGBA{0x00, 0x9e, 0x73, 0xff},
	TC:       color.RGBA{0xcc, 0x79, 0xa7, 0xff},
	Sendmmsg: color.RGBA{0xe6, 0x9f, 0x00, 0xff},
}

// pictures writes both pictures to a directory.
func (r *Result) pictures(dir string) error {
	for file, draw := range map[string]func() (*plot.Plot, error){
		SpeedFile: r.speed,
		DelayFile: r.delay,
	} {
		p, err := draw()
		if err != nil {
			return fmt.Errorf("draw %s: %w", file, err)
		}
		if err := p.Save(pictureWidth, pictureHeight, filepath.Join(dir, file)); err != nil {
			return fmt.Errorf("write %s: %w", file, err)
		}
	}
	return nil
}

// speed shows the copies per second of the largest bursts without loss.
func (r *Result) speed() (*plot.Plot, error) {
	p := newPlot(fmt.Sprintf("Largest burst without loss, frames of %d bytes", FrameSize), "copies per second")
	err := addCurves(p, r.curves(func(x *Row) (float64, bool) {
		return 1e9 / float64(x.PerCopy), x.Lost == 0
	}))
	widen(p).Y.Max *= 4 // room for the legend
	return p, err
}

// delay shows when the last copy of a lone datagram arrives, and what lines would
// need for the copies alone.
func (r *Result) delay() (*plot.Plot, error) {
	p := newPlot(fmt.Sprintf("Lone datagrams, frames of %d bytes", FrameSize), "injection to the last copy, ms")
	curves := r.curves(func(x *Row) (float64, bool) { return float64(x.LastCopy), x.Burst == 1 })
	if err := addCurves(p, curves); err != nil {
		return nil, err
	}
	for i, rate := range lineRates {
		var xy plotter.XYs
		for _, n := range r.subscribers() {
			xy = append(xy, plotter.XY{X: float64(n), Y: lineDelay(n, rate)})
		}
		line, err := plotter.NewLine(xy)
		if err != nil {
			return nil, err
		}
		line.Color = color.Gray{0x80}
		line.Dashes = []vg.Length{vg.Points(float64(1 + 3*i)), vg.Points(3)}
		p.Add(line)
		p.Legend.Add(fmt.Sprintf("line of %g Gbit/s", rate), line)
	}
	return widen(p), nil
}

// lineDelay is how long n copies occupy a line of a rate in Gbit/s, in ms.
func lineDelay(n int, rate float64) float64 { return float64(n) * LineSize * 8 / rate / 1e6 }

// curve is what is drawn of one engine.
type curve struct {
	engine string
	points plotter.XYs
}

// curves takes a value of the rows for which value says so; of several rows with the
// same number of subscribers the last one counts.
func (r *Result) curves(value func(*Row) (float64, bool)) (list []curve) {
	for _, engine := range Engines() {
		c := curve{engine: engine}
		for i := range r.Rows {
			x := &r.Rows[i]
			if x.Engine != engine || x.Again {
				continue
			}
			y, ok := value(x)
			if !ok || !Figure(y).known() || y <= 0 {
				continue
			}
			point := plotter.XY{X: float64(x.Subscribers), Y: y}
			if last := len(c.points) - 1; last >= 0 && c.points[last].X == point.X {
				c.points[last] = point
			} else {
				c.points = append(c.points, point)
			}
		}
		if len(c.points) > 0 {
			list = append(list, c)
		}
	}
	return list
}

// subscribers are the numbers of subscribers in the rows.
func (r *Result) subscribers() (list []int) {
	for i := range r.Rows {
		if n := r.Rows[i].Subscribers; !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	return list
}

func newPlot(title, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text = title
	p.X.Label.Text, p.Y.Label.Text = "subscribers", y
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Scale = plot.LogScale{}
		axis.Tick.Marker = plot.LogTicks{Prec: -1}
		axis.Padding = vg.Points(5)
	}
	p.Add(plotter.NewGrid())
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.Padding = vg.Points(2)
	return p
}

// widen gives the axes a length where there is a single value, or none.
func widen(p *plot.Plot) *plot.Plot {
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		switch {
		case axis.Min > axis.Max:
			axis.Min, axis.Max = 1, 10
		case axis.Min == axis.Max:
			axis.Min, axis.Max = axis.Min/2, axis.Max*2
		}
	}
	return p
}

func addCurves(p *plot.Plot, list []curve) error {
	for _, c := range list {
		line, points, err := plotter.NewLinePoints(c.points)
		if err != nil {
			return err
		}
		line.Color, line.Width = colors[c.engine], vg.Points(1.5)
		points.Color, points.Shape = colors[c.engine], draw.CircleGlyph{}
		p.Add(line, points)
		p.Legend.Add(c.engine, line, points)
	}
	return nil
}
