// SPDX-License-Identifier: LGPL-3.0-or-later

package measure

import (
	"context"
	"fmt"
	"strings"

	"github.com/ethmcast/mdcs/testnet/netns"
	"github.com/ethmcast/mdcs/testnet/node"
)

// Host is a node whose interface is counted.
type Host interface {
	Name() string
	Counters() (netns.Counters, error)
}

// Traffic is the state of the counters of some hosts at one moment, by host.
type Traffic struct {
	bytes     map[string]uint64            // both directions of the interface
	protocols map[string]map[string]uint64 // bytes by protocol; geth only
}

// Count reads the counters. The nodes are asked over their loopback interfaces,
// which are not counted.
func Count(ctx context.Context, hosts []Host) (Traffic, error) {
	t := Traffic{
		bytes:     make(map[string]uint64),
		protocols: make(map[string]map[string]uint64),
	}
	for _, h := range hosts {
		c, err := h.Counters()
		if err != nil {
			return Traffic{}, err
		}
		t.bytes[h.Name()] = c.Bytes()
	}
	for _, h := range hosts {
		g, ok := h.(*node.Geth)
		if !ok {
			continue
		}
		m, err := g.Metrics(ctx)
		if err != nil {
			return Traffic{}, err
		}
		t.protocols[h.Name()] = protocolBytes(m)
	}
	return t, nil
}

// datagrams is the name of the UDP traffic with the RP among the protocols.
const datagrams = "mdcs datagrams"

// protocolBytes sums geth's meters p2p_{ingress,egress}_<name>_<version>_<code>
// over messages and directions, by "name/version". They count the payload of
// devp2p messages after compression. Meters with another ending count packets.
// The UDP payload of mDCS has meters of its own.
func protocolBytes(m node.Metrics) map[string]uint64 {
	sums := make(map[string]uint64)
	for name, value := range m {
		if name == "mdcs_rx_bytes" || name == "mdcs_tx_bytes" {
			sums[datagrams] += uint64(value)
			continue
		}
		rest, ok := strings.CutPrefix(name, "p2p_ingress_")
		if !ok {
			if rest, ok = strings.CutPrefix(name, "p2p_egress_"); !ok {
				continue
			}
		}
		parts := strings.Split(rest, "_")
		if len(parts) != 3 || !strings.HasPrefix(parts[2], "0x") {
			continue
		}
		sums[parts[0]+"/"+parts[1]] += uint64(value)
	}
	return sums
}

// Bytes is what passed the interface of each host between two moments.
func Bytes(before, after Traffic) map[string]uint64 {
	diff := make(map[string]uint64)
	for host, n := range after.bytes {
		diff[host] = n - before.bytes[host]
	}
	return diff
}

// ProtocolBytes is the traffic by protocol between two moments, by geth's own
// metrics, summed over the hosts. Each message between two of them counts at both.
func ProtocolBytes(before, after Traffic) (map[string]uint64, error) {
	diff := make(map[string]uint64)
	for host, protocols := range after.protocols {
		for protocol, n := range protocols {
			old := before.protocols[host][protocol]
			if n < old {
				return nil, fmt.Errorf("counter of %s at %s went back: it was restarted", protocol, host)
			}
			if n > old {
				diff[protocol] += n - old
			}
		}
	}
	return diff, nil
}
