// SPDX-License-Identifier: LGPL-3.0-or-later

package plot

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strings"

	"github.com/ethmcast/mdcs/testnet/report"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"percent": func(share float64) string { return fmt.Sprintf("%.2f %%", share*100) },
	"mega":    func(bytes uint64) string { return fmt.Sprintf("%.2f", float64(bytes)/1e6) },
	"copies":  func(f report.Figure) string { return fmt.Sprintf("%.2f", float64(f)) },
	"keys":    func(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) },
	"color": func(mode string) template.CSS {
		r, g, b, _ := colorOf(mode).RGBA()
		return template.CSS(fmt.Sprintf("#%02x%02x%02x", r>>8, g>>8, b>>8))
	},
}).Parse(pageText))

// row is a mode in the tables of the page.
type row struct {
	Mode string
	report.Tx
	report.Run
}

// With is a figure with its interval, if there is one.
func (r row) With(name string, f report.Figure) string {
	i, ok := r.Intervals[name]
	if !ok {
		return f.String()
	}
	return fmt.Sprintf("%v (%v to %v)", f, i[0], i[1])
}

// drawing is a picture on the page.
type drawing struct {
	Caption string
	SVG     template.HTML
}

// page is the whole result in HTML, given the drawings of [pictures].
func page(s *report.Summary, svgs [][]byte) ([]byte, error) {
	content := struct {
		*report.Summary
		Rows     []row
		Drawings []drawing
	}{Summary: s}
	for _, mode := range s.Modes() {
		content.Rows = append(content.Rows, row{mode, s.Tx[mode], s.Runs[mode]})
	}
	for i, svg := range svgs {
		content.Drawings = append(content.Drawings, drawing{pictures[i].Caption, inline(svg)})
	}
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, content); err != nil {
		return nil, fmt.Errorf("make page: %w", err)
	}
	return b.Bytes(), nil
}

// inline is the element of a drawing that package plot made, without what comes
// before it in a file of its own.
func inline(svg []byte) template.HTML {
	text := string(svg)
	if i := strings.Index(text, "<svg"); i > 0 {
		text = text[i:]
	}
	return template.HTML(text)
}
