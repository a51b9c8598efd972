// SPDX-License-Identifier: LGPL-3.0-or-later

package measure

import (
	"cmp"
	"slices"

	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/topology"
)

// txClasses are the classes of traffic that carry transactions: datagrams of
// mDCS, its repair, and all of the eth protocol with its announcements, requests
// and TCP acknowledgements, which cannot be told apart on the wire.
var txClasses = []delayline.Class{delayline.Data, delayline.Repair, delayline.Eth}

// TxBytes are the bytes that carry transactions on each of the named lines, both
// directions together.
func TxBytes(counters []delayline.Counters, lines []string) map[string]uint64 {
	bytes := make(map[string]uint64)
	for _, c := range counters {
		if !slices.Contains(lines, c.Link) {
			continue
		}
		for _, class := range txClasses {
			bytes[c.Link] += c.AB.Classes[class].Bytes + c.BA.Classes[class].Bytes
		}
	}
	return bytes
}

// InterAS are the names of the lines between ASes: links, and ports of IXPs.
func InterAS(t *topology.Topology) []string {
	var names []string
	for _, l := range t.Links {
		names = append(names, l.Name())
	}
	for _, x := range t.IXPs {
		for _, m := range x.Members {
			names = append(names, x.PortName(m.AS))
		}
	}
	return names
}

// LinkCopies is how many copies of each transaction crossed a link on average:
// [TxBytes] over the bytes of all transactions in frames once; see [Framed]. A
// link that the multicast trees of all nodes use has 1.
type LinkCopies struct {
	Link   string  `json:"link"`
	Copies float64 `json:"copies"`
}

// Copies computes them from the bytes on each link, sorted by name.
func Copies(bytes map[string]uint64, framed uint64) []LinkCopies {
	list := make([]LinkCopies, 0, len(bytes))
	for link, n := range bytes {
		list = append(list, LinkCopies{link, float64(n) / float64(framed)})
	}
	slices.SortFunc(list, func(a, b LinkCopies) int { return cmp.Compare(a.Link, b.Link) })
	return list
}

// Busiest are the largest number of copies and the mean over all links; 0 if
// there are none.
func Busiest(list []LinkCopies) (largest, mean float64) {
	for _, c := range list {
		largest = max(largest, c.Copies)
		mean += c.Copies / float64(len(list))
	}
	return largest, mean
}
