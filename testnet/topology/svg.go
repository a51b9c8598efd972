// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// Sizes of a drawing, in px.
const (
	boxWidth    = 148
	boxHeight   = 42
	columnWidth = 210
	rowHeight   = 190
	margin      = 30
	textHeight  = 15
	letterWidth = 6.2 // of the delays, on average
)

type point struct{ x, y float64 }

func (a point) to(b point, share float64) point {
	return point{a.x + (b.x-a.x)*share, a.y + (b.y-a.y)*share}
}

// rect is given by its centre.
type rect struct {
	centre        point
	width, height float64
}

func (r rect) overlaps(s rect) bool {
	return math.Abs(r.centre.x-s.centre.x) < (r.width+s.width)/2 && math.Abs(r.centre.y-s.centre.y) < (r.height+s.height)/2
}

// edge is a line of a drawing.
type edge struct {
	a, b  string
	peer  bool
	label string
}

// SVG is a picture of ASes and IXPs, with tier 1 at the top and providers above
// their customers. Solid lines are transit, dashed ones peerings, both with
// their one-way delay.
func (t *Topology) SVG() string {
	var (
		edges  = t.edges()
		places = t.layout(edges)
		drawn  []rect // what labels must leave free
		body   strings.Builder
		labels strings.Builder
		size   point
	)
	for _, name := range slices.Sorted(maps.Keys(places)) {
		drawn = append(drawn, rect{places[name], boxWidth, boxHeight})
		size.x, size.y = max(size.x, places[name].x+boxWidth/2+margin), max(size.y, places[name].y+boxHeight/2+margin)
	}
	boxes := slices.Clone(drawn)
	for _, e := range edges {
		c := bend(places[e.a], places[e.b], boxes)
		dash := ""
		if e.peer {
			dash = ` stroke-dasharray="6 4"`
		}
		fmt.Fprintf(&body, `<path d="M%.0f %.0f Q%.0f %.0f %.0f %.0f"%s/>`+"\n",
			c.from.x, c.from.y, c.control.x, c.control.y, c.to.x, c.to.y, dash)
		size.x = max(size.x, c.at(0.5).x+margin)
		label := rect{width: letterWidth*float64(len(e.label)) + 4, height: textHeight}
		label.centre = c.free(label, drawn)
		drawn = append(drawn, label)
		fmt.Fprintf(&labels, `<rect class="delay" x="%.1f" y="%.1f" width="%.1f" height="%d"/><text class="delay" x="%.1f" y="%.1f">%s</text>`+"\n",
			label.centre.x-label.width/2, label.centre.y-textHeight/2, label.width, textHeight, label.centre.x, label.centre.y+4, escape(e.label))
	}
	box := func(name string, lines []string, radius int, class string) {
		p := places[name]
		fmt.Fprintf(&labels, `<g class=%q><rect x="%.0f" y="%.0f" width="%d" height="%d" rx="%d"/>`+
			`<text class="name" x="%.0f" y="%.0f">%s</text><text x="%.0f" y="%.0f">%s</text></g>`+"\n",
			class, p.x-boxWidth/2, p.y-boxHeight/2, boxWidth, boxHeight, radius,
			p.x, p.y-3, escape(lines[0]), p.x, p.y+13, escape(lines[1]))
	}
	for _, a := range t.ASes {
		box(a.Name, a.label(), 6, "as")
	}
	for _, x := range t.IXPs {
		box(x.Name, x.label(), boxHeight/2, "ixp")
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f">
<title>%s</title>
<style>
rect { fill: #e8f0fa; stroke: #35547a; }
path { fill: none; stroke: #555; stroke-width: 1.3; }
text { font: 11px sans-serif; text-anchor: middle; fill: #222; }
text.name { font-weight: bold; font-size: 13px; }
rect.delay { fill: #fff; stroke: none; }
.ixp rect { fill: #fdf1dc; stroke: #96702a; }
</style>
<rect width="100%%" height="100%%" style="fill: #fff; stroke: none"/>
%s%s</svg>
`, size.x, size.y, size.x, size.y, escape(t.Name), body.String(), labels.String())
}

func (t *Topology) edges() []edge {
	var edges []edge
	for _, l := range t.Links {
		edges = append(edges, edge{l.A, l.B, l.Relation == Peer, l.Line.Delay.String()})
	}
	for _, x := range t.IXPs {
		for _, m := range x.Members {
			edges = append(edges, edge{m.AS, x.Name, true, m.Line.Delay.String()})
		}
	}
	return edges
}

// layout places the centres of the boxes. Each row is ordered by the mean place
// of its neighbours in other rows, which keeps lines short.
func (t *Topology) layout(edges []edge) map[string]point {
	tiers := t.tiers()
	for _, x := range t.IXPs { // below its members
		for _, m := range x.Members {
			tiers[x.Name] = max(tiers[x.Name], tiers[m.AS]+1)
		}
	}
	var rows [][]string
	add := func(name string) {
		for len(rows) <= tiers[name] {
			rows = append(rows, nil)
		}
		rows[tiers[name]] = append(rows[tiers[name]], name)
	}
	longest := 1
	for _, a := range t.ASes {
		add(a.Name)
	}
	for _, x := range t.IXPs {
		add(x.Name)
	}
	for _, row := range rows {
		longest = max(longest, len(row))
	}
	highest := 0.0 // of the arcs above the first row
	for _, e := range edges {
		if tiers[e.a] == 0 && tiers[e.b] == 0 {
			highest = arc(columnWidth * float64(len(rows[0])-1))
		}
	}
	places := make(map[string]point)
	place := func() {
		for i, row := range rows {
			for k, name := range row {
				x := float64(columnWidth) * (float64(k) + float64(longest-len(row))/2)
				places[name] = point{margin + boxWidth/2 + x, margin + boxHeight/2 + highest + float64(rowHeight*i)}
			}
		}
	}
	place()
	const sweeps = 8
	for range sweeps {
		for i, row := range rows {
			mean := make(map[string]float64)
			for _, name := range row {
				sum, n := places[name].x, 1.0
				for _, e := range edges {
					if e.b == name {
						e.a, e.b = e.b, e.a
					}
					if e.a == name && tiers[e.b] != i {
						sum, n = sum+places[e.b].x, n+1
					}
				}
				mean[name] = sum / n
			}
			slices.SortStableFunc(row, func(a, b string) int { return cmp.Compare(mean[a], mean[b]) })
		}
		place()
	}
	return places
}

// curve is a quadratic Bézier curve.
type curve struct{ from, control, to point }

// arc is the height of an arc over a distance, at its middle.
func arc(distance float64) float64 { return boxHeight + 0.16*(distance-columnWidth) }

// bend joins two boxes: in one row by an arc above it, else by a line that is
// bent only as far as other boxes demand.
func bend(a, b point, boxes []rect) curve {
	if a.y == b.y {
		a.y, b.y = a.y-boxHeight/2, b.y-boxHeight/2
		middle := a.to(b, 0.5)
		middle.y -= 2 * arc(math.Abs(a.x-b.x)) // a curve goes half the way to its control point
		return curve{a, middle, b}
	}
	down := float64(boxHeight / 2)
	if a.y > b.y {
		down = -down
	}
	a.y, b.y = a.y+down, b.y-down
	straight := curve{a, a.to(b, 0.5), b}
	for _, aside := range []float64{0, 0.5, -0.5, 1, -1, 2, -2, 3, -3} {
		c := straight
		c.control.x += aside * columnWidth
		if c.at(0.5).x > 0 && !c.crosses(boxes) {
			return c
		}
	}
	return straight
}

// crosses says whether a curve goes through a box between its ends.
func (c curve) crosses(boxes []rect) bool {
	const steps = 40
	for i := 1; i < steps; i++ {
		if slices.ContainsFunc(boxes, rect{c.at(float64(i) / steps), 8, 0}.overlaps) {
			return true
		}
	}
	return false
}

func (c curve) at(share float64) point {
	return c.from.to(c.control, share).to(c.control.to(c.to, share), share)
}

// free is a place on the curve where a label covers no other thing, near the
// middle; the middle if there is none.
func (c curve) free(label rect, drawn []rect) point {
	const steps = 18
	for i := range steps {
		share := 0.5 + float64((i+1)/2)/40
		if i%2 == 1 {
			share = 1 - share
		}
		label.centre = c.at(share)
		if !slices.ContainsFunc(drawn, label.overlaps) {
			return label.centre
		}
	}
	return c.at(0.5)
}

func escape(text string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(text)); err != nil {
		panic(err) // a strings.Builder does not fail
	}
	return b.String()
}
