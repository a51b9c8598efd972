// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"fmt"
	"slices"
)

// maxRPs of an AS have two digits in a name.
const maxRPs = 99

// WithRPs returns a copy with a number of replication points in place of its own,
// and no Ethereum nodes. ASes have RPs by their share of the nodes, and at least one
// where there are enough; those that have some also get a plain host, on which
// subscribers may run. In the AS "london" the RPs are called london-rp1, london-rp2
// and so on, the host london-peer.
func (t *Topology) WithRPs(n int) (*Topology, error) {
	var (
		shares = make([]float64, len(t.ASes))
		least  = make([]int, len(t.ASes))
		some   int
	)
	for i, a := range t.ASes {
		if shares[i] = a.Share; a.Share > 0 {
			least[i] = 1
			some++
		}
	}
	switch {
	case n < 1:
		return nil, fmt.Errorf("topology %s: %d replication points are none", t.Name, n)
	case some == 0:
		return nil, fmt.Errorf("topology %s: no AS has a share of the replication points", t.Name)
	case n < some:
		clear(least)
	}
	mesh := *t
	mesh.ASes = slices.Clone(t.ASes)
	mesh.Hosts, mesh.Peerings, mesh.Nodes = nil, nil, Population{}
	for i, count := range apportion(n, shares, least) {
		if count > maxRPs {
			return nil, fmt.Errorf("topology %s: %d of %d replication points are in AS %s, at most %d fit",
				t.Name, count, n, t.ASes[i].Name, maxRPs)
		}
		a := &mesh.ASes[i]
		if a.RP = count > 0; !a.RP {
			continue
		}
		for k := 1; k <= count; k++ {
			mesh.Hosts = append(mesh.Hosts, t.host(fmt.Sprintf("%s%d", rpName(a.Name), k), RP, *a, "", fmt.Sprintf("53:%d", k)))
		}
		mesh.Hosts = append(mesh.Hosts, t.host(PeerHost(a.Name), Plain, *a, "", "b0"))
	}
	if err := mesh.Validate(); err != nil {
		return nil, err
	}
	return &mesh, nil
}

// PeerHost is the name of the plain host that WithRPs puts into an AS.
func PeerHost(as string) string { return as + "-peer" }
