// SPDX-License-Identifier: LGPL-3.0-or-later

package report

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/measure"
)

func sample() *Summary {
	rp := uint64(123456)
	return &Summary{
		Name:     "two-as",
		Seed:     1,
		Topology: Topology{Name: "two-as", Nodes: 6, RPs: 2, Links: "wire"},
		Workload: Workload{Txs: 300, Rate: 20, MinBytes: 110, MaxBytes: 1140},
		Tx: map[string]Tx{
			"mdcs":   {Sent: 300, DeliveredRatio: 0.99999, P50: 21.44, P90: 22, P99: 30.5, Max: Infinite, BytesPerNode: 65536, RPBytes: &rp, TotalBytes: 516672},
			"gossip": {Sent: 300, DeliveredRatio: 1, P50: 25, P90: 505.25, P99: 530, Max: 541, Slow: 0.125, BytesPerNode: 700000, TotalBytes: 4200000},
		},
		Runs: map[string]Run{
			"gossip": {Window: 18, CPUPressure: 0.2, Wire: &delayline.Summary{Scheduling: "fifo-50", P50: 40, P99: 150, Max: 900}},
			"mdcs":   {Window: 18, CPUPressure: 0.1, ProtocolBytes: map[string]uint64{"mdcs/1": 60, "eth/72": 120}},
		},
	}
}

func TestTable(t *testing.T) {
	s := sample()
	s.Judge()
	var out strings.Builder
	require.NoError(t, s.Table(&out))
	want := `two-as: 6 nodes, 300 transactions at 20 tx/s (110 to 1140 bytes), seed 1, links by wire

    mode  sent  delivered  p50 ms  p90 ms  p99 ms  max ms  >400 ms  bytes/node  RP bytes  total bytes
  gossip   300        1.0    25.0   505.2   530.0   541.0  12.50 %      700000         -      4200000
    mdcs   300     0.9999    21.4    22.0    30.5     inf   0.00 %       65536    123456       516672

gossip: payload bytes/node by geth's metrics:
mdcs: payload bytes/node by geth's metrics:  eth/72 20  mdcs/1 10
gossip: window 18.0 s, CPU pressure 20 %, wire fifo-50 late p50 40 us, p99 150 us, max 900 us, > 1 ms 0.00 %
mdcs: window 18.0 s, CPU pressure 10 %
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("table (-want +have):\n%s", diff)
	}
}

func TestJSON(t *testing.T) {
	text, err := sample().JSON()
	require.NoError(t, err)
	var raw struct {
		Tx map[string]map[string]any
	}
	require.NoError(t, json.Unmarshal(text, &raw))
	require.Equal(t, map[string]any{
		"sent": 300.0, "delivered_ratio": 0.99999,
		"p50_ms": 21.44, "p90_ms": 22.0, "p99_ms": 30.5, "max_ms": nil, "over_400ms_ratio": 0.0,
		"bytes_per_node": 65536.0, "rp_bytes": 123456.0, "total_bytes": 516672.0,
	}, raw.Tx["mdcs"])
	require.NotContains(t, raw.Tx["gossip"], "rp_bytes")

	var again Summary
	require.NoError(t, json.Unmarshal(text, &again))
	require.Equal(t, Infinite, again.Tx["mdcs"].Max)
	require.Equal(t, Millis(505.25), again.Tx["gossip"].P90)
}

func TestJudge(t *testing.T) {
	for name, c := range map[string]struct {
		run  Run
		want string // part of the only warning
	}{
		"quiet":    {Run{CPUPressure: 0.1, Wire: &delayline.Summary{Overdue: 0.01}}, ""},
		"late":     {Run{Wire: &delayline.Summary{Overdue: 0.2}}, "20.0 % of the frames"},
		"lossy":    {Run{Wire: &delayline.Summary{Lost: 3}}, "lost 3 frames"},
		"busy":     {Run{CPUPressure: 0.9}, "90 % of the time"},
		"no wire":  {Run{}, ""},
		"just low": {Run{CPUPressure: maxPressure}, ""},
	} {
		s := &Summary{Tx: map[string]Tx{"gossip": {}}, Runs: map[string]Run{"gossip": c.run}}
		s.Judge()
		require.Equal(t, c.want == "", s.Valid, name)
		if c.want != "" {
			require.Len(t, s.Warnings, 1, name)
			require.Contains(t, s.Warnings[0], c.want, name)
		}
	}
}

func TestArrivals(t *testing.T) {
	var out strings.Builder
	a := NewArrivals(&out)
	a.Add("gossip", []string{"a", "b"}, []measure.Pair{
		{Tx: 0, Origin: 0, Node: 1, Delay: 20.12345},
		{Tx: 1, Origin: 1, Node: 0, Delay: math.Inf(1)},
	})
	require.NoError(t, a.Flush())
	require.Equal(t, "mode,tx,origin,node,delay_ms\ngossip,0,a,b,20.123\ngossip,1,b,a,inf\n", out.String())
}
