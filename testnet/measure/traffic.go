// SPDX-License-Identifier: LGPL-3.0-or-later

package measure

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/ethmcast/mdcs/testnet/delayline"
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
	protocols map[string]map[string]uint64 // bytes by protocol
	metrics   map[string]node.Metrics      // those that [selected] picks
}

// observed is a host with counters of its own: geth and replication points.
type observed interface {
	Metrics(context.Context) (node.Metrics, error)
}

// Count reads the counters. The nodes are asked over their loopback interfaces,
// which are not counted.
func Count(ctx context.Context, hosts []Host) (Traffic, error) {
	t := Traffic{
		bytes:     make(map[string]uint64),
		protocols: make(map[string]map[string]uint64),
		metrics:   make(map[string]node.Metrics),
	}
	for _, h := range hosts {
		c, err := h.Counters()
		if err != nil {
			return Traffic{}, err
		}
		t.bytes[h.Name()] = c.Bytes()
	}
	for _, h := range hosts {
		o, ok := h.(observed)
		if !ok {
			continue
		}
		m, err := o.Metrics(ctx)
		if err != nil {
			return Traffic{}, err
		}
		t.protocols[h.Name()] = protocolBytes(m)
		t.metrics[h.Name()] = selected(m)
	}
	return t, nil
}

// selected are the metrics that tell how transactions travelled: bytes and
// packets of each devp2p message, what the transaction fetcher and the pool did,
// and all of mDCS.
func selected(m node.Metrics) node.Metrics {
	picked := make(node.Metrics)
	for name, value := range m {
		for _, prefix := range []string{"p2p_ingress_", "p2p_egress_", "eth_fetcher_transaction_", "txpool_", "mdcs_"} {
			if strings.HasPrefix(name, prefix) {
				picked[name] = value
			}
		}
	}
	return picked
}

// MetricChanges is the sum over the hosts of how much each selected metric
// changed between two moments, for a gauge that of its level. Metrics that did
// not change are left out.
func MetricChanges(before, after Traffic) map[string]float64 {
	changes := make(map[string]float64)
	for host, metrics := range after.metrics {
		for name, value := range metrics {
			if change := value - before.metrics[host][name]; change != 0 {
				changes[name] += change
			}
		}
	}
	return changes
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

// HostBytes takes the bytes of each host from the counters of its line, where the
// wire has counted it. Interfaces are less exact: one that takes frames in by NAPI
// counts them without their Ethernet header.
func HostBytes(interfaces map[string]uint64, lines []delayline.Counters) map[string]uint64 {
	bytes := maps.Clone(interfaces)
	for _, l := range lines {
		if _, ok := bytes[l.Link]; ok {
			bytes[l.Link] = l.AB.Forwarded().Bytes + l.BA.Forwarded().Bytes
		}
	}
	return bytes
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
