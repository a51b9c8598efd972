// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"cmp"
	"fmt"
	"time"
)

// topology is the network that the file describes. The problems are those that
// the network cannot express.
func (f *file) topology(name string) (*Topology, []problem) {
	var problems []problem
	t := &Topology{Name: name, Nodes: Population(f.Nodes)}
	for class, l := range f.Class {
		if t.Classes == nil {
			t.Classes = make(map[string]Line)
		}
		t.Classes[class] = l.line()
	}
	if f.RP != nil {
		t.RPLine = new(Line)
		*t.RPLine = f.RP.line()
	}
	numbers := make(map[string]int)
	for _, a := range f.AS {
		numbers[a.Name] = a.Number
		as := AS{a.Name, a.Number, a.Region, a.Share, a.RP, time.Duration(a.Access), a.Classes}
		if as.Classes == nil {
			as.Classes = f.Defaults.Classes
		}
		if len(as.Classes) == 0 {
			as.Classes = nil
		}
		t.ASes = append(t.ASes, as)
		if a.RP {
			t.Hosts = append(t.Hosts, t.host(rpName(a.Name), RP, as, "", "53"))
		}
	}
	for i, l := range f.Link {
		link := Link{l.Provider, l.Customer, Transit, linkNet(i + 1), l.over(f.Defaults.Link).line()}
		if len(l.Peers) > 0 || l.Provider == "" && l.Customer == "" {
			if len(l.Peers) != 2 || l.Provider != "" || l.Customer != "" {
				problems = append(problems, problem{element{"link", i}, "link names neither a provider and a customer nor two peers"})
				continue
			}
			link.A, link.B, link.Relation = l.Peers[0], l.Peers[1], Peer
		}
		t.Links = append(t.Links, link)
	}
	for i, x := range f.IXP {
		ixp := IXP{Name: x.Name, Number: x.Number, Net: ixpNet(x.Number)}
		for _, m := range x.Member {
			member := Member{AS: m.AS, Addr: ixpAddr(x.Number, numbers[m.AS]), Line: m.over(f.Defaults.Port).line()}
			if m.ExportTo != nil {
				member.ExportTo = []int{}
				for _, to := range *m.ExportTo {
					n, ok := numbers[to]
					if !ok {
						problems = append(problems, problem{element{"ixp", i},
							fmt.Sprintf("IXP %s: %s exports to unknown AS %q", x.Name, m.AS, to)})
					}
					member.ExportTo = append(member.ExportTo, n)
				}
			}
			ixp.Members = append(ixp.Members, member)
		}
		t.IXPs = append(t.IXPs, ixp)
	}
	named := make(map[string]int) // hosts per AS
	for i, h := range f.Host {
		if reserved(h.AS, h.Name) {
			problems = append(problems, problem{element{"host", i}, fmt.Sprintf("host %s: such names are given to what the network adds itself", h.Name)})
		}
		named[h.AS]++
		as, _ := t.AS(h.AS)
		as.Name = h.AS // an unknown one is found by problems
		t.Hosts = append(t.Hosts, t.host(h.Name, h.Role, as, h.Class, fmt.Sprintf("e%d", named[h.AS])))
	}
	return t, problems
}

// over fills in what l leaves out.
func (l lineTable) over(defaults lineTable) lineTable {
	return lineTable{
		cmp.Or(l.Delay, defaults.Delay), cmp.Or(l.Jitter, defaults.Jitter), cmp.Or(l.Rate, defaults.Rate),
		cmp.Or(l.Loss, defaults.Loss), cmp.Or(l.Queue, defaults.Queue),
	}
}

func (l lineTable) line() Line {
	return Line{
		time.Duration(value(l.Delay)), time.Duration(value(l.Jitter)), uint64(value(l.Rate)),
		value(l.Loss), time.Duration(value(l.Queue)),
	}
}

func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
