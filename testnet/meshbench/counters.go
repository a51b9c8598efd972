// SPDX-License-Identifier: LGPL-3.0-or-later

package meshbench

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/node"
	"github.com/ethmcast/mdcs/testnet/topology"
)

// Metrics of rpd. Those with an RP neighbour have the beginning of its node id as label.
const (
	metricSent    = "mdcs_rp_mesh_sent_total"
	metricTree    = "mdcs_rp_mesh_link_tree"
	metricUp      = "mdcs_rp_mesh_link_up"
	metricDowns   = "mdcs_rp_mesh_neighbours_lost_total"
	metricAdvert  = "mdcs_rp_mesh_adverts_total"
	metricAsked   = "mdcs_rp_mesh_grafts_total"
	metricKnown   = "mdcs_rp_mesh_rps"
	metricRoutes  = `mdcs_rp_mesh_routes{attached="yes"}`
	metricAstray  = `mdcs_rp_mesh_routes{attached="no"}`
	metricChanged = "mdcs_rp_mesh_last_changed_seconds"
	metricMemory  = "process_resident_memory_bytes"
)

// ofNeighbour is the name of a metric about an RP neighbour.
func ofNeighbour(metric string, r *node.RP) string {
	return fmt.Sprintf("%s{rp=%q}", metric, r.ID().TerminalString())
}

// scrape reads the metrics of all RPs.
func (m *mesh) scrape(ctx context.Context) ([]node.Metrics, error) {
	all := make([]node.Metrics, len(m.rps))
	for i, r := range m.rps {
		var err error
		if all[i], err = r.Metrics(ctx); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// complete returns since when all RPs know all others, and have a way for the datagrams of
// each source. The RPs say when that changed last.
func (m *mesh) complete(ctx context.Context) (since time.Time, err error) {
	all, err := m.scrape(ctx)
	if err != nil {
		return since, err
	}
	for i, metrics := range all {
		known, routes, astray := metrics[metricKnown], metrics[metricRoutes], metrics[metricAstray]
		if int(known) != len(m.rps) || int(routes) != len(m.sources) || astray != 0 {
			return since, fmt.Errorf("%s knows %g rps, has %g routes, and %g without a parent", m.rps[i].Name(), known, routes, astray)
		}
		changed, ok := metrics[metricChanged]
		if !ok {
			return since, fmt.Errorf("%s has no metric %s", m.rps[i].Name(), metricChanged)
		}
		if at := time.UnixMilli(int64(changed * 1e3)); at.After(since) {
			since = at
		}
	}
	return since, nil
}

// sent is how many datagrams each RP has sent to each other one.
func (m *mesh) sent(ctx context.Context) ([][]float64, error) {
	all, err := m.scrape(ctx)
	if err != nil {
		return nil, err
	}
	sent := make([][]float64, len(m.rps))
	for from, metrics := range all {
		for _, to := range m.rps {
			sent[from] = append(sent[from], metrics[ofNeighbour(metricSent, to)])
		}
	}
	return sent, nil
}

// changes is how much a metric of all RPs together grew between two scrapes.
func changes(metric string, before, after []node.Metrics) (sum float64) {
	for i := range after {
		sum += after[i][metric] - before[i][metric]
	}
	return sum
}

// downs is how often each RP found an RP neighbour down.
func (m *mesh) downs(ctx context.Context) ([]int, error) {
	all, err := m.scrape(ctx)
	if err != nil {
		return nil, err
	}
	downs := make([]int, len(m.rps))
	for i, metrics := range all {
		n, ok := metrics[metricDowns]
		if !ok {
			return nil, fmt.Errorf("%s has no metric %s", m.rps[i].Name(), metricDowns)
		}
		downs[i] = int(n)
	}
	return downs, nil
}

// ethernetHeader is what the line counts of a frame besides the packet, in bytes.
const ethernetHeader = 14

// control is the control traffic between RPs by kind of RP neighbour: those with whom an
// RP shares an edge of some tree, and the others.
type control struct {
	rps   map[netip.Addr]int
	kinds map[[2]int]bool   // directed pairs of RP neighbours: whether of a tree
	bytes map[[2]int]uint64 // of IPv6 packets sent
}

func newControl(hosts []topology.Host) *control {
	c := &control{rps: make(map[netip.Addr]int), kinds: make(map[[2]int]bool), bytes: make(map[[2]int]uint64)}
	for i, h := range hosts {
		c.rps[h.Addr] = i
	}
	return c
}

// neighbour notes a directed pair.
func (c *control) neighbour(from, to int, tree bool) { c.kinds[[2]int{from, to}] = tree }

// add counts what one RP sent to another one, at the line of the sender.
func (c *control) add(hosts []topology.Host, p delayline.Pair) {
	from, known := c.rps[p.From]
	to, alsoKnown := c.rps[p.To]
	if known && alsoKnown && hosts[from].Name == p.Link {
		c.bytes[[2]int{from, to}] += p.Bytes - ethernetHeader*p.Frames
	}
}

// rates are the means in kbit/s to an RP neighbour of either kind, and counts how many of
// each kind an RP has.
func (c *control) rates(seconds float64) (tree, other, trees, others float64) {
	for pair, isTree := range c.kinds {
		if isTree {
			trees++
			tree += float64(c.bytes[pair])
		} else {
			others++
			other += float64(c.bytes[pair])
		}
	}
	kbit := 8 / 1000.0 / seconds
	n := float64(len(c.rps))
	return tree * kbit / max(trees, 1), other * kbit / max(others, 1), trees / n, others / n
}
