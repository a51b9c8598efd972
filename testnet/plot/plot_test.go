// SPDX-License-Identifier: LGPL-3.0-or-later

package plot

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gonum.org/v1/plot"

	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/measure"
	"github.com/ethmcast/mdcs/testnet/report"
	"github.com/ethmcast/mdcs/testnet/topology"
	"github.com/ethmcast/mdcs/testnet/workload"
)

// result writes a result of all modes with 40 transactions and 5 nodes; lossy is
// a mode in which a tenth does not arrive.
func result(t *testing.T, dir, lossy string) *report.Summary {
	t.Helper()
	s := &report.Summary{
		Name: "<demo>", Notes: report.Notes, Started: time.Unix(1700000000, 0).UTC(),
		Topology: report.Topology{Nodes: 5, ASes: 5, RPs: 2, Links: "wire", Routing: "bird"},
		Versions: map[string]string{"geth": "1.0"},
	}
	file, err := report.CreateArrivals(dir)
	require.NoError(t, err)
	defer file.Close()
	arrivals := report.NewArrivals(file)
	rng := rand.New(rand.NewPCG(1, 1))
	for i, mode := range []string{"gossip", "gossip-direct", "gossip+relays", "mdcs", "mdcs-socket", "ideal"} {
		o := report.Outcome{
			Mode: mode, Round: 1, Seed: 1,
			Copies: []measure.LinkCopies{{Link: "a-b", Copies: float64(12 - 2*i)}, {Link: "ixp:a", Copies: 1}},
			Run:    report.Run{Wire: &delayline.Summary{Scheduling: "fifo-50"}, Bytes: map[string]uint64{}},
		}
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			o.Nodes = append(o.Nodes, topology.Host{Name: name, AS: "as" + name})
			o.Run.Bytes[name] = uint64(1e6 * (6 - i))
		}
		for tx := range 40 {
			o.Txs = append(o.Txs, workload.Tx{Raw: make([]byte, 100+tx)})
			o.Sent = append(o.Sent, workload.Sent{At: s.Started})
			for node := range o.Nodes {
				if node == tx%5 {
					continue
				}
				x := measure.Sample{Pair: measure.Pair{Tx: tx, Origin: tx % 5, Node: node}, Floor: measure.Floor{Physical: 15, BGP: 20, Serialised: 21}}
				x.Delay = 21 + rng.ExpFloat64()*100/float64(1+4*i)
				if mode == lossy && rng.IntN(10) == 0 {
					x.Delay = math.Inf(1)
				}
				o.Samples = append(o.Samples, x)
			}
		}
		s.Add(o)
		arrivals.Add(o)
	}
	require.NoError(t, arrivals.Flush())
	s.Finish(measure.Bootstrap{Replicates: 50, Seed: 1})
	return s
}

// texts are those of an XML document, which must be well formed.
func texts(t *testing.T, document []byte) string {
	t.Helper()
	var all strings.Builder
	d := xml.NewDecoder(strings.NewReader(string(document)))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return all.String()
		}
		require.NoError(t, err)
		if c, ok := token.(xml.CharData); ok {
			all.Write(c)
		}
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	s := result(t, dir, "mdcs-socket")
	require.NoError(t, Write(dir, s))
	for _, p := range pictures {
		svg, err := os.ReadFile(filepath.Join(dir, p.File))
		require.NoError(t, err)
		require.Less(t, len(svg), 300_000)
		require.Contains(t, string(svg), "sans-serif")
		text := texts(t, svg)
		for _, mode := range s.Modes() {
			require.Contains(t, text, mode, p.File)
		}
		require.Contains(t, text, "is better", p.File)
	}
	for file, want := range map[string][]string{
		"delay.svg":    {"delay, ms", "share of", "20", "100"},
		"reach.svg":    {"95 %", "100 %"},
		"overhead.svg": {"physically shortest", "serialisation"},
		"copies.svg":   {"a-b", "ixp:a"},
		"bytes.svg":    {"MB"},
	} {
		svg, err := os.ReadFile(filepath.Join(dir, file))
		require.NoError(t, err)
		for _, text := range want {
			require.Contains(t, texts(t, svg), text, file)
		}
	}

	html, err := os.ReadFile(filepath.Join(dir, PageFile))
	require.NoError(t, err)
	text := string(html)
	require.Equal(t, len(pictures), strings.Count(text, "<svg"))
	require.Contains(t, text, "&lt;demo&gt;")
	require.NotContains(t, text, "NOT VALID")
	require.NotContains(t, text, "ZgotmplZ", "the template refused a value")
	require.NotRegexp(t, `(src|href)=|url\(|@import`, text, "needs another file")
	require.Contains(t, text, "geth: 1.0")

	s.Each[0].Run.CPUPressure = 0.99
	s.Judge()
	html, err = page(s, nil)
	require.NoError(t, err)
	require.Contains(t, string(html), "NOT VALID")
	require.Contains(t, string(html), "tasks waited for a CPU")
}

// TestWriteOfLittle draws where there is nothing to draw.
func TestWriteOfLittle(t *testing.T) {
	dir := t.TempDir()
	file, err := report.CreateArrivals(dir)
	require.NoError(t, err)
	require.NoError(t, report.NewArrivals(file).Flush())
	require.NoError(t, file.Close())
	s := &report.Summary{}
	s.Add(report.Outcome{Mode: "gossip", Round: 1})
	s.Finish(measure.Bootstrap{Replicates: 10})
	require.NoError(t, Write(dir, s))

	require.NoError(t, os.Remove(filepath.Join(dir, report.ArrivalsFile)))
	require.ErrorContains(t, Write(dir, s), report.ArrivalsFile)
}

func TestTicks(t *testing.T) {
	var labels []string
	for _, tick := range (ticks125{}).Ticks(0.04, 30) {
		if tick.Label != "" {
			labels = append(labels, tick.Label)
		}
	}
	require.Equal(t, []string{"0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10", "20"}, labels)
	require.Equal(t, []plot.Tick{{Value: 3}, {Value: 4}}, ticks125{}.Ticks(3, 4))
}

func TestColorsDiffer(t *testing.T) {
	seen := make(map[any]string)
	for mode, c := range colors {
		require.NotContains(t, seen, c, mode)
		seen[c] = mode
	}
	require.NotContains(t, seen, colorOf("another"))
}
