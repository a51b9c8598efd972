// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"fmt"
	"strings"
)

// tiers are the rows of a drawing: ASes without providers are in row 0, others
// below the lowest of their providers.
func (t *Topology) tiers() map[string]int {
	tier := make(map[string]int)
	for range t.ASes { // a chain of providers has at most that length
		for _, l := range t.Links {
			if l.Relation == Transit {
				tier[l.B] = max(tier[l.B], tier[l.A]+1)
			}
		}
	}
	return tier
}

// DOT is the graph of ASes and IXPs in the language of Graphviz. Arrows point
// from providers to customers, dashed lines join peers; the labels are one-way
// delays.
func (t *Topology) DOT() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("digraph %q {", t.Name)
	p("\tnode [shape=box, style=rounded, fontname=\"sans-serif\"];")
	p("\tedge [fontname=\"sans-serif\", fontsize=10];")
	rows := make(map[int][]string)
	tiers := t.tiers()
	for _, a := range t.ASes {
		p("\t%q [label=%q];", a.Name, strings.Join(a.label(), "\n"))
		rows[tiers[a.Name]] = append(rows[tiers[a.Name]], fmt.Sprintf("%q", a.Name))
	}
	for row := range len(rows) {
		p("\t{ rank=same; %s; }", strings.Join(rows[row], "; "))
	}
	for _, l := range t.Links {
		style := ""
		if l.Relation == Peer {
			style = ", dir=none, style=dashed, constraint=false"
		}
		p("\t%q -> %q [label=%q%s];", l.A, l.B, l.Line.Delay.String(), style)
	}
	for _, x := range t.IXPs {
		p("\t%q [shape=ellipse, label=%q];", x.Name, strings.Join(x.label(), "\n"))
		for _, m := range x.Members {
			p("\t%q -> %q [label=%q, dir=none, style=dashed];", m.AS, x.Name, m.Line.Delay.String())
		}
	}
	p("}")
	return b.String()
}

// label are the lines of text in the box of an AS.
func (a AS) label() []string {
	text := fmt.Sprintf("AS %d", a.Number)
	if a.Region != "" {
		text += ", " + a.Region
	}
	return []string{a.Name, text}
}

func (x IXP) label() []string {
	return []string{x.Name, fmt.Sprintf("IXP, route server AS %d", x.Number)}
}
