// SPDX-License-Identifier: LGPL-3.0-or-later

package measure

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/node"
)

func TestPercentile(t *testing.T) {
	inf := math.Inf(1)
	ten := []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for _, c := range []struct {
		values []float64
		p      float64
		want   float64
	}{
		{ten, 0, 1},
		{ten, 50, 5},
		{ten, 51, 6},
		{ten, 90, 9},
		{ten, 99, 10},
		{ten, 100, 10},
		{[]float64{7}, 50, 7},
		{[]float64{1, 2, inf}, 50, 2},
		{[]float64{1, 2, inf}, 90, inf},
	} {
		require.Equal(t, c.want, Percentile(c.values, c.p), "p%v of %v", c.p, c.values)
	}
	require.True(t, math.IsNaN(Percentile(nil, 50)))
}

// TestPairs has two transactions and three nodes; the second transaction does
// not reach node 0.
func TestPairs(t *testing.T) {
	start := time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	pairs := Pairs(
		[]Sending{{Origin: 0, At: at(0)}, {Origin: 2, At: at(100)}},
		[][]time.Time{
			{at(1), at(20), at(30)},
			{{}, at(110), at(101)},
		})
	require.Equal(t, []Pair{
		{Tx: 0, Origin: 0, Node: 1, Delay: 20},
		{Tx: 0, Origin: 0, Node: 2, Delay: 30},
		{Tx: 1, Origin: 2, Node: 0, Delay: math.Inf(1)},
		{Tx: 1, Origin: 2, Node: 1, Delay: 10},
	}, pairs)

	d := Summarize(pairs)
	require.Equal(t, Distribution{
		Pairs: 4, Delivered: 0.75, P50: 20, P90: math.Inf(1), P99: math.Inf(1), Max: math.Inf(1), Slow: 0.25,
	}, d)
}

func TestArrivals(t *testing.T) {
	var (
		now  = time.Now()
		soon = now.Add(time.Minute)
		x, y = common.Hash{1}, common.Hash{2}
		a    = NewArrivals([]common.Hash{x, y}, 2)
	)
	a.Record(0, x, now)
	a.Record(0, x, soon) // again
	a.Record(1, x, now)
	a.Record(0, common.Hash{9}, now) // not ours
	missing, err := a.Wait(t.Context(), now)
	require.NoError(t, err)
	require.Equal(t, 2, missing)

	a.Record(0, y, now)
	a.Record(1, y, now)
	missing, err = a.Wait(t.Context(), soon)
	require.NoError(t, err)
	require.Zero(t, missing)
	require.Equal(t, [][]time.Time{{now, now}, {now, now}}, a.Times())
	a.fail(errors.New("too late to matter for the wait"))
}

func TestArrivalsBroken(t *testing.T) {
	a := NewArrivals([]common.Hash{{1}}, 1)
	a.fail(errors.New("gone"))
	a.fail(errors.New("gone again"))
	_, err := a.Wait(t.Context(), time.Now().Add(time.Minute))
	require.EqualError(t, err, "gone")
	a.Record(0, common.Hash{1}, time.Now())
}

func TestProtocolBytes(t *testing.T) {
	require.Equal(t, map[string]uint64{"eth/69": 35, "mdcs/1": 7, "mdcs datagrams": 8}, protocolBytes(node.Metrics{
		"p2p_ingress_eth_69_0x02":         10,
		"p2p_egress_eth_69_0x02":          20,
		"p2p_egress_eth_69_0x08":          5,
		"p2p_egress_eth_69_0x08_packets":  1000,
		"p2p_ingress_mdcs_1_0x00":         7,
		"mdcs_rx_bytes":                   5,
		"mdcs_tx_bytes":                   3,
		"mdcs_rx_duplicates":              1000,
		"p2p_ingress":                     1000,
		"p2p_peers":                       1000,
		"eth_fetcher_transaction_waiting": 1000,
	}))
}

func TestSelectedMetrics(t *testing.T) {
	require.Equal(t, node.Metrics{
		"p2p_ingress_eth_72_0x02_packets":       1,
		"eth_fetcher_transaction_announces_in":  2,
		"txpool_valid":                          3,
		"mdcs_tx_datagrams":                     4,
		`mdcs_rp_verdict_total{verdict="pass"}`: 5,
	}, selected(node.Metrics{
		"p2p_ingress_eth_72_0x02_packets":       1,
		"eth_fetcher_transaction_announces_in":  2,
		"txpool_valid":                          3,
		"mdcs_tx_datagrams":                     4,
		`mdcs_rp_verdict_total{verdict="pass"}`: 5,
		"chain_head_block":                      6,
		"p2p_peers":                             7,
	}))
}

func TestTrafficDifference(t *testing.T) {
	before := Traffic{
		bytes:     map[string]uint64{"a": 100, "b": 5},
		protocols: map[string]map[string]uint64{"a": {"eth/69": 10}, "b": {"eth/69": 20}},
		metrics:   map[string]node.Metrics{"a": {"txpool_pending": 5, "mdcs_joined": 1}, "b": {"txpool_pending": 5}},
	}
	after := Traffic{
		bytes:     map[string]uint64{"a": 150, "b": 5},
		protocols: map[string]map[string]uint64{"a": {"eth/69": 11}, "b": {"eth/69": 22, "mdcs/1": 4}},
		metrics:   map[string]node.Metrics{"a": {"txpool_pending": 2, "mdcs_joined": 1}, "b": {"txpool_pending": 15}},
	}
	require.Equal(t, map[string]uint64{"a": 50, "b": 0}, Bytes(before, after))
	protocols, err := ProtocolBytes(before, after)
	require.NoError(t, err)
	require.Equal(t, map[string]uint64{"eth/69": 3, "mdcs/1": 4}, protocols)
	require.Equal(t, map[string]float64{"txpool_pending": 7}, MetricChanges(before, after))
	_, err = ProtocolBytes(after, before)
	require.ErrorContains(t, err, "restarted")
}

func TestParsePressure(t *testing.T) {
	d, err := parsePressure("some avg10=1.00 avg60=2.00 avg300=3.00 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n")
	require.NoError(t, err)
	require.Equal(t, 1500*time.Millisecond, d)
	_, err = parsePressure("")
	require.Error(t, err)
}

func TestCPUSeconds(t *testing.T) {
	require.Equal(t, map[string]float64{"old": 1.5, "new": 2}, CPUSeconds(
		map[string]time.Duration{"old": time.Second},
		map[string]time.Duration{"old": 2500 * time.Millisecond, "new": 2 * time.Second}))
}

func TestHostBytes(t *testing.T) {
	var line delayline.Counters
	line.Link = "a"
	line.AB.Classes[delayline.Data] = delayline.Count{Frames: 2, Bytes: 200}
	line.BA.Classes[delayline.Eth] = delayline.Count{Frames: 1, Bytes: 50}
	other := line
	other.Link = "a-b"
	interfaces := map[string]uint64{"a": 240, "b": 7}
	require.Equal(t, map[string]uint64{"a": 250, "b": 7}, HostBytes(interfaces, []delayline.Counters{line, other}))
	require.Equal(t, interfaces, HostBytes(interfaces, nil))
}
