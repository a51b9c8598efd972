// SPDX-License-Identifier: LGPL-3.0-or-later

package ideal

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/ethmcast/mdcs/testnet/topology"
)

// Tree is the way from a source to all receivers, by the name of each router on
// it.
type Tree struct {
	Source   netip.Addr
	Branches map[string]Branch
}

// Branch is what a router does with packets of the source: it takes them from one
// interface and sends a copy out of each of the others.
type Branch struct {
	In  string
	Out []string
}

// lan is the bridge of a router to which its hosts are attached.
const lan = "lan"

// lines are the ends of the lines between ASes.
type lines struct {
	intf map[string]string // of a router, by name of the line; alike at both ends of a link
	port map[string]bool   // by name: one of the two lines between members of an IXP
}

func linesOf(t *topology.Topology) lines {
	l := lines{make(map[string]string), make(map[string]bool)}
	for i, link := range t.Links {
		l.intf[link.Name()] = fmt.Sprintf("wan%d", i)
	}
	for i, x := range t.IXPs {
		for _, m := range x.Members {
			name := x.PortName(m.AS)
			l.intf[name], l.port[name] = fmt.Sprintf("ix%d", i), true
		}
	}
	return l
}

// Trees are the trees from each node to all others. As with PIM-SSM (RFC 7761,
// 4.8), the router of each receiver joins towards the source along its own best
// BGP path, and data flow against the joins. As each AS has one best path to the
// source, and those of its neighbours go on along it, they form a tree. The best
// paths from the source to the receivers need not, and where they differ from the
// reverse ones, so do the delays from the floors of BGP.
//
// If export at an IXP is restricted, two routers of one tree may send to the same
// IXP. Then those that listen there take both copies, as the kernel does not play
// the assert of PIM; see [Net.Datagrams].
func Trees(t *topology.Topology, nodes []topology.Host) ([]Tree, error) {
	var (
		paths = t.BGP()
		lines = linesOf(t)
		trees = make([]Tree, len(nodes))
	)
	for i, source := range nodes {
		trees[i] = Tree{Source: source.Addr, Branches: make(map[string]Branch)}
		for _, receiver := range nodes {
			if receiver.AS == source.AS {
				continue // the bridge takes it there
			}
			if err := trees[i].join(paths, lines, source, receiver); err != nil {
				return nil, fmt.Errorf("tree from %s to %s: %w", source.Name, receiver.Name, err)
			}
		}
	}
	return trees, nil
}

// join adds the branches between a receiver and the source, beginning at the
// receiver.
func (t *Tree) join(paths *topology.Paths, lines lines, source, receiver topology.Host) error {
	routers := paths.AS(receiver.AS, source.AS)
	if routers == nil {
		return errors.New("no path by policy")
	}
	names := paths.Lines(receiver, source)
	names = names[1 : len(names)-1] // without those of the hosts
	out := lan
	for _, router := range routers[:len(routers)-1] {
		if err := t.add(router, lines.intf[names[0]], out); err != nil {
			return err
		}
		if lines.port[names[0]] {
			names = names[1:]
		}
		out = lines.intf[names[0]]
		names = names[1:]
	}
	return t.add(source.AS, lan, out)
}

// add adds an interface to a branch.
func (t *Tree) add(router, in, out string) error {
	b, ok := t.Branches[router]
	switch {
	case !ok:
		b.In = in
	case b.In != in:
		return fmt.Errorf("router %s would take the packets from %s and from %s", router, b.In, in)
	}
	if !slices.Contains(b.Out, out) {
		b.Out = append(b.Out, out)
	}
	t.Branches[router] = b
	return nil
}
