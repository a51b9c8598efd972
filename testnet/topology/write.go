// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import "github.com/pelletier/go-toml/v2"

// TOML is the description as a file that [Parse] reads back. The Ethereum nodes
// that Populate added are not in it: they follow from the population.
func (t *Topology) TOML() []byte {
	f := file{Nodes: nodesTable(t.Nodes)}
	names := make(map[int]string)
	for name, l := range t.Classes {
		if f.Class == nil {
			f.Class = make(map[string]lineTable)
		}
		f.Class[name] = l.table()
	}
	if t.RPLine != nil {
		line := t.RPLine.table()
		f.RP = &line
	}
	for _, a := range t.ASes {
		names[a.Number] = a.Name
		f.AS = append(f.AS, asTable{a.Name, a.Number, a.Region, a.Share, a.RP, duration(a.Access), a.Classes})
	}
	for _, x := range t.IXPs {
		table := ixpTable{Name: x.Name, Number: x.Number}
		for _, m := range x.Members {
			member := memberTable{AS: m.AS, lineTable: m.Line.table()}
			if m.ExportTo != nil {
				to := []string{}
				for _, n := range m.ExportTo {
					to = append(to, names[n])
				}
				member.ExportTo = &to
			}
			table.Member = append(table.Member, member)
		}
		f.IXP = append(f.IXP, table)
	}
	for _, l := range t.Links {
		table := linkTable{Provider: l.A, Customer: l.B, lineTable: l.Line.table()}
		if l.Relation == Peer {
			table = linkTable{Peers: []string{l.A, l.B}, lineTable: l.Line.table()}
		}
		f.Link = append(f.Link, table)
	}
	for _, h := range t.Hosts {
		if !reserved(h.AS, h.Name) {
			f.Host = append(f.Host, hostTable{h.Name, h.AS, h.Role, h.Class})
		}
	}
	text, err := toml.Marshal(f)
	if err != nil {
		panic(err) // the form has only types that TOML has
	}
	return text
}

func (l Line) table() lineTable {
	var table lineTable
	set(&table.Delay, duration(l.Delay))
	set(&table.Jitter, duration(l.Jitter))
	set(&table.Rate, bitRate(l.Rate))
	set(&table.Loss, l.Loss)
	set(&table.Queue, duration(l.Queue))
	return table
}

// set leaves out what is zero.
func set[T comparable](to **T, v T) {
	var zero T
	if v != zero {
		*to = &v
	}
}
