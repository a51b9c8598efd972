// SPDX-License-Identifier: LGPL-3.0-or-later

package report

import (
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/measure"
	"github.com/ethmcast/mdcs/testnet/topology"
	"github.com/ethmcast/mdcs/testnet/workload"
)

// outcome is a run with three nodes and two transactions: the first from a takes
// 20 and 30 ms, the second from c takes slow and 10 ms. All floors are 5, 8 and
// 9 ms.
func outcome(mode string, slow float64) Outcome {
	floor := measure.Floor{Physical: 5, BGP: 8, Serialised: 9}
	at := time.Unix(1700000000, 5)
	return Outcome{
		Mode: mode, Round: 1, Seed: 7,
		Nodes: []topology.Host{
			{Name: "a", AS: "as1", Class: "home"}, {Name: "b", AS: "as1", Class: "dc"}, {Name: "c", AS: "as2"},
		},
		Txs: []workload.Tx{
			{Node: 0, Kind: workload.LegacyTransfer, Raw: make([]byte, 110), Hash: common.Hash{1}},
			{Node: 2, Kind: workload.SetCode, Raw: make([]byte, 300), Hash: common.Hash{2}},
		},
		Sent: []workload.Sent{{At: at, Late: 250 * time.Microsecond}, {At: at.Add(time.Second), Late: time.Millisecond}},
		Samples: []measure.Sample{
			{Pair: measure.Pair{Tx: 0, Origin: 0, Node: 1, Delay: 20}, Floor: floor},
			{Pair: measure.Pair{Tx: 0, Origin: 0, Node: 2, Delay: 30}, Floor: floor},
			{Pair: measure.Pair{Tx: 1, Origin: 2, Node: 0, Delay: slow}, Floor: floor},
			{Pair: measure.Pair{Tx: 1, Origin: 2, Node: 1, Delay: 10}, Floor: floor},
		},
		RPs:    []string{"rp"},
		Copies: []measure.LinkCopies{{Link: "as1-as2", Copies: 4}, {Link: "as1-as3", Copies: 1}},
		Run: Run{
			Seconds: 30, Window: 18, CPUPressure: 0.2,
			Wire:          &delayline.Summary{Scheduling: "fifo-50", Frames: 10, P50: 40, P99: 150, Max: 900, Histogram: []delayline.Bucket{{UpTo: 50, Frames: 10}}},
			Bytes:         map[string]uint64{"a": 100, "b": 200, "c": 303, "rp": 1000, "router": 9},
			ProtocolBytes: map[string]uint64{"eth/69": 30},
			CPUSeconds:    map[string]float64{"a": 1.5},
			Metrics:       map[string]float64{"txpool_valid": 2},
		},
	}
}

func sample() *Summary {
	s := &Summary{
		Name:     "two-as",
		Topology: Topology{Name: "two-as", Nodes: 3, RPs: 1, ASes: 2, Links: "wire", Routing: "bird"},
		Workload: Workload{Txs: 2, Rate: 20, MinBytes: 110, MaxBytes: 300},
	}
	slow := outcome("gossip", 500)
	s.Add(slow)
	lost := outcome("mdcs", math.Inf(1))
	lost.Run.Engine, lost.Run.CPUPressure = "xdp", 0.1
	s.Add(lost)
	late := outcome("mdcs", 40)
	late.Round, late.Run.Engine = 2, "xdp"
	late.Run.Wire = &delayline.Summary{Scheduling: "nice-20", Frames: 5, P50: 30, P99: 250, Max: 300, Histogram: []delayline.Bucket{{UpTo: 50, Frames: 4}, {UpTo: 300, Frames: 1}}}
	s.Add(late)
	s.Add(outcome("ideal", 12))
	s.Finish(measure.Bootstrap{Replicates: 200, Seed: 1})
	return s
}

func TestFinish(t *testing.T) {
	s := sample()
	require.Equal(t, []string{"gossip", "mdcs", "ideal"}, s.Modes())
	require.Equal(t, []any{true, Figure(0.25), 3, 2, "xdp", uint64(7), []uint64{7}, 2},
		[]any{s.Valid, s.LatenessP99, s.Nodes, s.ASes, s.Engine, s.Seed, s.Seeds, s.Rounds})

	g := s.Tx["gossip"]
	require.Equal(t, 2, g.Sent)
	require.Equal(t, []Figure{20, 500, 500, 500}, []Figure{g.P50, g.P90, g.P99, g.Max})
	require.Equal(t, []float64{1, 0.25}, []float64{g.DeliveredRatio, g.Slow})
	require.Equal(t, []Figure{11, 491, 491, 12, 15}, []Figure{g.OverheadP50, g.OverheadP95, g.OverheadP99, g.OverheadBGPP50, g.OverheadPhysicalP50})
	require.Equal(t, []Figure{10, 20, 30, 500, 30, 500}, []Figure{g.T50P50, g.T50P99, g.T95P50, g.T95P99, g.T100P50, g.T100P99})
	require.Equal(t, []uint64{201, 1000, 1603}, []uint64{g.BytesPerNode, g.RPBytes, g.TotalBytes})
	require.Equal(t, []Figure{4, 2.5}, []Figure{g.LinkCopiesMax, g.LinkCopiesMean})
	require.Equal(t, [2]Figure{10, 20}, g.Intervals["t50_p50_ms"], "of two transactions")
	require.NotContains(t, g.Intervals, "bytes_per_node", "of a single run")

	// Two runs: medians, of which one value of the maximum's pair is infinite.
	m := s.Tx["mdcs"]
	require.Equal(t, 4, m.Sent)
	require.Equal(t, 7.0/8, m.DeliveredRatio)
	require.Equal(t, []Figure{20, Infinite, Infinite}, []Figure{m.P50, m.P99, m.Max})
	require.Equal(t, [2]Figure{201, 201}, m.Intervals["bytes_per_node"])
	require.Len(t, s.Each, 4)
	require.Equal(t, Figure(40), s.Each[2].Tx.P99)

	r := s.Runs["mdcs"]
	require.Equal(t, []float64{60, 36, 0.2}, []float64{r.Seconds, r.Window, r.CPUPressure})
	require.Equal(t, 8, r.Pairs)
	require.Equal(t, uint64(200), r.Bytes["a"])
	require.Equal(t, map[string]uint64{"eth/69": 60}, r.ProtocolBytes)
	require.Equal(t, map[string]float64{"a": 3}, r.CPUSeconds)
	require.Equal(t, map[string]float64{"txpool_valid": 4}, r.Metrics)
	require.Equal(t, []Figure{1, 1}, []Figure{r.SenderLateP99, r.SenderLateMax})
	require.Equal(t, &delayline.Summary{
		Scheduling: "nice-20", Frames: 15, P50: 40, P99: 250, Max: 900,
		Histogram: []delayline.Bucket{{UpTo: 50, Frames: 14}, {UpTo: 300, Frames: 1}},
	}, r.Wire)
}

func TestCompareHalf(t *testing.T) {
	s, half := sample(), sample()
	h := half.Tx["gossip"]
	h.P99, h.OverheadP50 = 440, 11.5 // -12 %, +5 %
	half.Tx["gossip"] = h
	delete(half.Tx, "ideal")
	s.CompareHalf(half.Tx)
	require.Equal(t, []string{"p99_ms"}, s.Tx["gossip"].CPUBound)
	require.Empty(t, s.Tx["mdcs"].CPUBound, "infinite in both")
	require.Equal(t, []string{"gossip: differ by more than 10 % at half the rate: p99_ms"}, s.Flags)
	require.True(t, s.Valid, "a flag, not a warning")
}

func TestTable(t *testing.T) {
	s := sample()
	s.Each[0].Run.CPUPressure = 0.9
	s.Judge()
	s.CompareHalf(map[string]Tx{"ideal": {}})
	for _, tx := range s.Tx { // the intervals have a test of their own
		tx.Intervals["p99_ms"] = [2]Figure{1.5, Infinite}
		for name := range tx.Intervals {
			if name != "p99_ms" {
				delete(tx.Intervals, name)
			}
		}
	}
	var out strings.Builder
	require.NoError(t, s.Table(&out))
	want := `*** NOT VALID: the figures describe the machine, not the network ***

two-as: 3 nodes in 2 ASes, 1 replication points, links by wire, routes by bird
2 transactions at 20 tx/s (110 to 300 bytes), seeds 7, 2 rounds each

delay, ms: over (tx, node) pairs; until 95 % of the nodes have a tx; above the BGP floor with serialisation
    mode  delivered   p50    p99    max  >400 ms  t95 p50  t95 p99  over p50  over p95  over p99
  gossip        1.0  20.0  500.0  500.0  25.00 %     30.0    500.0      11.0     491.0     491.0
    mdcs     0.8750  20.0    inf    inf  12.50 %     30.0      inf      11.0       inf       inf
   ideal        1.0  12.0   30.0   30.0   0.00 %     12.0     30.0       3.0      21.0      21.0

95 % intervals
    mode  p50       p99  t95 p50  t95 p99  over p50  over p95  over p99
  gossip    -  1.5..inf        -        -         -         -         -
    mdcs    -  1.5..inf        -        -         -         -         -
   ideal    -  1.5..inf        -        -         -         -         -

cost: bytes on the wire, both directions; copies of each tx on links between ASes
    mode  bytes/node  of gossip  RP bytes  total bytes  of gossip  copies max  mean  CPU s
  gossip         201      1.00x      1000         1603      1.00x        4.00  2.50    1.5
    mdcs         201      1.00x      1000         1603      1.00x        4.00  2.50    3.0
   ideal         201      1.00x      1000         1603      1.00x        4.00  2.50    1.5

gossip: payload bytes/node by geth's metrics:  eth/69 10
mdcs: payload bytes/node by geth's metrics:  eth/69 20
ideal: payload bytes/node by geth's metrics:  eth/69 10
gossip: window 18.0 s, CPU pressure 20 %, wire fifo-50 late p50 40 us, p99 150 us, max 900 us, > 1 ms 0.00 %
mdcs: engine xdp, window 36.0 s, CPU pressure 20 %, wire nice-20 late p50 40 us, p99 250 us, max 900 us, > 1 ms 0.00 %
ideal: window 18.0 s, CPU pressure 20 %, wire fifo-50 late p50 40 us, p99 150 us, max 900 us, > 1 ms 0.00 %
note: ideal: differ by more than 10 % at half the rate: p50_ms, p90_ms, p99_ms, overhead_p50_ms, overhead_p95_ms, overhead_p99_ms, t95_p50_ms, t95_p99_ms
warning: gossip, seed 7, round 1: tasks waited for a CPU in 90 % of the time (limit 60 %)

*** NOT VALID: the figures describe the machine, not the network ***
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("table (-want +have):\n%s", diff)
	}
}

// TestNotMeasured has no counts of copies, an engine in user space, and a run that was
// not made.
func TestNotMeasured(t *testing.T) {
	s := new(Summary)
	for _, mode := range []string{"gossip", "mdcs"} {
		o := outcome(mode, 40)
		o.Copies = nil
		if mode == "mdcs" {
			o.Run.Engine = "socket"
		}
		s.Add(o)
	}
	s.Planned = 3
	s.Finish(measure.Bootstrap{Replicates: 10})
	for _, mode := range s.Modes() {
		require.Equal(t, "-", s.Tx[mode].LinkCopiesMax.String())
		require.Equal(t, "-", s.Tx[mode].LinkCopiesMean.String())
		require.NotContains(t, s.Tx[mode].Intervals, "link_copies_max")
	}
	var out strings.Builder
	require.NoError(t, s.Table(&out))
	require.NotContains(t, out.String(), "NaN")
	require.Contains(t, out.String(), "the replication points had the socket engine, not xdp")
	require.False(t, s.Valid)
	require.Contains(t, out.String(), "only 2 of 3 runs were made")
	text, err := s.JSON()
	require.NoError(t, err)
	require.Contains(t, string(text), `"link_copies_max": null`)
}

// TestTableWidth has figures as long as they can be expected to be.
func TestTableWidth(t *testing.T) {
	s := sample()
	wide := s.Tx["gossip"]
	for _, f := range wide.delays() {
		*f.value = 1234.5
	}
	wide.Max, wide.Slow, wide.DeliveredRatio = 15000, 0.1234, 0.9876
	wide.BytesPerNode, wide.RPBytes, wide.TotalBytes = 12345678, 123456789, 1234567890
	wide.LinkCopiesMax, wide.LinkCopiesMean = 123.45, 123.45
	for name := range wide.Intervals {
		wide.Intervals[name] = [2]Figure{123.4, 567.8}
	}
	s.Tx["gossip+relays"] = wide
	var out strings.Builder
	require.NoError(t, s.Table(&out))
	tables, _, _ := strings.Cut(out.String(), "payload")
	for line := range strings.Lines(tables) {
		require.LessOrEqual(t, len(line), 121, line)
	}
}

func TestJSON(t *testing.T) {
	s := sample()
	text, err := s.JSON()
	require.NoError(t, err)
	var raw struct {
		Tx    map[string]map[string]any
		Valid bool
	}
	require.NoError(t, json.Unmarshal(text, &raw))
	require.True(t, raw.Valid)
	for _, key := range []string{
		"sent", "delivered_ratio", "p50_ms", "p90_ms", "p99_ms", "max_ms", "over_400ms_ratio", "bytes_per_node", "rp_bytes", "total_bytes",
		"overhead_p50_ms", "overhead_p95_ms", "overhead_p99_ms", "t95_p50_ms", "t95_p99_ms", "link_copies_max", "link_copies_mean",
	} {
		require.Contains(t, raw.Tx["mdcs"], key)
	}
	require.Nil(t, raw.Tx["mdcs"]["max_ms"])
	require.Equal(t, 20.0, raw.Tx["mdcs"]["p50_ms"])
	var top map[string]any
	require.NoError(t, json.Unmarshal(text, &top))
	for key, want := range map[string]any{"valid": true, "lateness_p99_ms": 0.25, "nodes": 3.0, "ases": 2.0, "engine": "xdp", "seed": 7.0} {
		require.Equal(t, want, top[key], key)
	}

	var again Summary
	require.NoError(t, json.Unmarshal(text, &again))
	require.Equal(t, Infinite, again.Tx["mdcs"].Max)
	require.Equal(t, s.Tx["gossip"], again.Tx["gossip"])
	require.Equal(t, s.Runs, again.Runs)
}

func TestFigure(t *testing.T) {
	for f, want := range map[Figure]string{21.44: "21.4", Infinite: "inf", Figure(math.NaN()): "-"} {
		require.Equal(t, want, f.String())
	}
	text, err := json.Marshal([]Figure{1.23456, Infinite, Figure(math.NaN())})
	require.NoError(t, err)
	require.Equal(t, "[1.235,null,null]", string(text))
}

func TestJudge(t *testing.T) {
	for name, c := range map[string]struct {
		run  Run
		want string // part of the only warning
	}{
		"quiet":    {Run{CPUPressure: 0.1, Wire: &delayline.Summary{Overdue: 0.01, P99: 2900}}, ""},
		"late":     {Run{Wire: &delayline.Summary{Overdue: 0.2}}, "20.0 % of the frames"},
		"too late": {Run{Wire: &delayline.Summary{P99: 3100}}, "more than 3.1 ms late"},
		"lossy":    {Run{Wire: &delayline.Summary{Lost: 3}}, "lost 3 frames"},
		"busy":     {Run{CPUPressure: 0.9}, "90 % of the time"},
		"no wire":  {Run{}, ""},
		"just low": {Run{CPUPressure: maxPressure}, ""},
	} {
		s := &Summary{Each: []Single{{Mode: "gossip", Seed: 3, Round: 2, Run: c.run}}}
		s.Judge()
		require.Equal(t, c.want == "", s.Valid, name)
		if c.want != "" {
			require.Len(t, s.Warnings, 1, name)
			require.Contains(t, s.Warnings[0], "gossip, seed 3, round 2: ", name)
			require.Contains(t, s.Warnings[0], c.want, name)
		}
	}
}

func TestArrivals(t *testing.T) {
	var out strings.Builder
	a := NewArrivals(&out)
	first, second := outcome("gossip", math.Inf(1)), outcome("gossip", 20.12345)
	second.Round = 2
	a.Add(first)
	a.Add(second)
	require.NoError(t, a.Flush())
	lines := strings.Split(out.String(), "\n")
	require.Equal(t, strings.Join(Columns, ","), lines[0])
	hash := "0x01" + strings.Repeat("0", 62)
	require.Equal(t, "gossip,1,7,0,"+hash+",110,legacy-transfer,a,b,as1,dc,1700000000000000005,20.000,5.000,8.000,9.000,11.000", lines[1])
	require.Equal(t, "gossip,1,7,1,0x02"+strings.Repeat("0", 62)+",300,set-code,c,a,as1,home,1700000001000000005,,5.000,8.000,9.000,", lines[3])

	samples, err := ReadArrivals(strings.NewReader(out.String()))
	require.NoError(t, err)
	want := first.Samples
	for _, s := range second.Samples {
		s.Tx += 2
		s.Delay = math.Round(s.Delay*1000) / 1000
		want = append(want, s)
	}
	require.Equal(t, map[string][]measure.Sample{"gossip": want}, samples)

	for name, c := range map[string]struct{ old, new, want string }{
		"columns":  {"mode,round", "mode,run", "columns are"},
		"no delay": {"20.000", "x", "line 2: delay_ms"},
		"no floor": {"20.000,5.000", "20.000,", "line 2: floor_physical_ms"},
		"short":    {",11.000", "", "wrong number of fields"},
	} {
		_, err := ReadArrivals(strings.NewReader(strings.Replace(out.String(), c.old, c.new, 1)))
		require.ErrorContains(t, err, c.want, name)
	}
}

// TestPlotsR checks that plots.R names only columns that there are, and runs it
// where there is R.
func TestPlotsR(t *testing.T) {
	used := regexp.MustCompile(`\b[ad]\$(\w+)`).FindAllSubmatch(plotsR, -1)
	require.NotEmpty(t, used)
	for _, name := range used {
		require.Contains(t, Columns, string(name[1]))
	}

	rscript, err := exec.LookPath("Rscript")
	if err != nil {
		t.Skip("Rscript is not installed: plots.R was not run")
	}
	dir := t.TempDir()
	file, err := CreateArrivals(dir)
	require.NoError(t, err)
	a := NewArrivals(file)
	a.Add(outcome("gossip", math.Inf(1)))
	a.Add(outcome("mdcs", 15))
	require.NoError(t, a.Flush())
	require.NoError(t, file.Close())
	require.NoError(t, sample().Write(dir))
	cmd := exec.Command(rscript, PlotsFile)
	cmd.Dir = dir
	text, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", text)
	require.Contains(t, string(text), "gossip")
	pictures, err := os.Stat(filepath.Join(dir, "plots.pdf"))
	require.NoError(t, err)
	require.Greater(t, pictures.Size(), int64(4000))
}
