// SPDX-License-Identifier: LGPL-3.0-or-later

package meshbench

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/measure"
	"github.com/ethmcast/mdcs/testnet/topology"
)

// ways are those of one source's datagrams: the parent of each RP by number, -1 at the
// source.
type ways []int

// errNoTree says that the ways are no tree, as they changed while they were looked at.
var errNoTree = errors.New("not a tree")

// observe finds the ways that n datagrams of a source took, from how many datagrams
// each RP sent to each other one meanwhile. Heartbeats are among these, so that a
// parent is who sent the most, and at least half of n.
func observe(source, n int, sent [][]float64) (ways, error) {
	w := make(ways, len(sent))
	for child := range w {
		w[child] = -1
		most := float64(n) / 2
		for parent := range sent {
			if child != source && sent[parent][child] >= most {
				w[child], most = parent, sent[parent][child]
			}
		}
		if child != source && w[child] < 0 {
			return nil, fmt.Errorf("%w: nobody sent the %d datagrams of rp %d to rp %d", errNoTree, n, source, child)
		}
	}
	for child := range w {
		if w.depth(child) < 0 {
			return nil, fmt.Errorf("%w: the way of the datagrams from rp %d to rp %d is a circle", errNoTree, source, child)
		}
	}
	return w, nil
}

// depth is the number of hops from the source, -1 in a circle.
func (w ways) depth(at int) (hops int) {
	for ; w[at] >= 0; at = w[at] {
		if hops++; hops > len(w) {
			return -1
		}
	}
	return hops
}

// below is how many RPs have each one on their way.
func (w ways) below() []int {
	counts := make([]int, len(w))
	for child := range w {
		for at := w[child]; at >= 0; at = w[at] {
			counts[at]++
		}
	}
	return counts
}

// linkCopies are the copies of each of n datagrams on the lines between ASes: on the
// busiest one, and on all together. Both directions of a line count.
func linkCopies(t *topology.Topology, counters []delayline.Counters, n int) (busiest, sum float64) {
	names := measure.InterAS(t)
	for _, c := range counters {
		if slices.Contains(names, c.Link) {
			copies := float64(c.AB.Classes[delayline.Data].Frames+c.BA.Classes[delayline.Data].Frames) / float64(n)
			busiest = max(busiest, copies)
			sum += copies
		}
	}
	return busiest, sum
}

// optimum is the number of copies on all lines between ASes of native multicast: one on
// each line of the tree that joins along the BGP paths of the receivers make.
func optimum(t *topology.Topology, source topology.Host) int {
	paths, lines := t.BGP(), make(map[string]bool)
	for _, receiver := range t.HostsOf(topology.RP) {
		if receiver.AS == source.AS {
			continue
		}
		for _, name := range paths.Lines(receiver, source) {
			if name != receiver.Name && name != source.Name {
				lines[name] = true
			}
		}
	}
	return len(lines)
}

// direct is the one-way delay along the path of BGP between two hosts with lines as
// those of the peers of two RPs.
func direct(t *topology.Topology, paths *topology.Paths, a, b topology.Host) time.Duration {
	from, _ := t.Host(topology.PeerHost(a.AS))
	to, _ := t.Host(topology.PeerHost(b.AS))
	if from.Name == to.Name {
		return from.Line.Delay + to.Line.Delay
	}
	d, _ := paths.Delay(from, to)
	return d
}

// quantile is a quantile of figures, from 0 to 1; 0 of none.
func quantile(figures []float64, q float64) float64 {
	if len(figures) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(figures))
	return sorted[min(int(float64(len(sorted))*q), len(sorted)-1)]
}

func mean(figures []float64) float64 {
	var sum float64
	for _, f := range figures {
		sum += f / float64(len(figures))
	}
	return sum
}
