// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// exampleResult has one of each.
func exampleResult() *Result {
	r := &Result{
		Name: "example", Host: Host{Kernel: "6.1", Processor: "abacus", CPUs: 2, Go: "go1"}, Rounds: 7,
		Packet: Packet{FrameSize, PacketSize, UDPPayload, PayloadSize, LineSize},
		Rows: []Row{
			{Engine: XDP, Subscribers: 1, Burst: 1, PerCopy: 5000, LastCopy: 0.005, Copies: 100, Gbit: 2},
			{Engine: Bare, Subscribers: 1, Burst: 1, PerCopy: 2500, LastCopy: 0.0025, Copies: 100, Gbit: 4},
			{Engine: Bare, Again: true, Subscribers: 1, Burst: 1, PerCopy: 2600, LastCopy: 0.0026, Copies: 100, Gbit: 4},
			{Engine: XDP, Subscribers: 1000, Burst: 1, PerCopy: 500, LastCopy: 0.5, Copies: 100, Gbit: 20},
			{Engine: Bare, Subscribers: 1000, Burst: 1, PerCopy: 400, LastCopy: 0.4, Copies: 50, Lost: 50, Gbit: 25},
			{Engine: XDP, Subscribers: 1000, Burst: 8, PerCopy: 450, LastCopy: 3.6, Copies: 100, Gbit: 22},
			{Engine: TC, Subscribers: 1000, Burst: 8, PerCopy: Figure(math.NaN()), LastCopy: Figure(math.NaN()), Lost: 100, Gbit: Figure(math.NaN())},
		},
		Sustained: []Sustained{{Engine: XDP, Subscribers: 1000, Seconds: 30, Rate: 1200, Share: 0.6, Datagrams: 36000}},
		Joins:     []Joins{{Engine: XDP, Stayers: 1000, Batch: 1, Changes: 512, JoinRate: 600, LeaveRate: 700}},
		Memory:    []Memory{{Engine: XDP, Subscribers: 1000, Maps: 43 << 20, PerSubscriber: 300}},
		Drop:      []Drop{{XDP, "no_session", 50}},
		Flood:     []Flood{{Engine: XDP, Subscribers: 64, Hostile: 1e6, Refused: 1e6 - 5, Overrun: 7, Honest: 2000, HonestOverrun: 2, Lost: 640, LostShare: 0.005}, {Engine: XDP, Shared: true, Subscribers: 64}},
	}
	r.compareBare(1)
	r.compareBare(1000)
	r.compareLone(1)
	r.compareLone(1000)
	return r
}

func TestNoise(t *testing.T) {
	require.Equal(t, []Noise{{1, 1, 1.04}}, exampleResult().Noise)
}

func TestCompareLone(t *testing.T) {
	require.Equal(t, []Compared{{
		Subscribers: 1, Load: "lone", Window: 1, Bare: 2500, XDP: 5000, Ratio: 2, Noise: 1.04,
	}}, exampleResult().Compared, "at 1,000 bare was not measured again")
}

func TestJSON(t *testing.T) {
	text, err := exampleResult().JSON()
	require.NoError(t, err)
	var all map[string]any
	require.NoError(t, json.Unmarshal(text, &all))
	for _, key := range []string{"rows", "joins", "memory", "drop", "flood", "host", "compared", "sustained", "noise"} {
		require.Contains(t, all, key)
	}
	rows := all["rows"].([]any)
	require.Subset(t, rows[0], map[string]any{
		"engine": "xdp", "subscribers": 1.0, "ns_per_copy": 5000.0, "burst": 1.0, "last_copy_ms": 0.005, "lost": 0.0, "gbit_s": 2.0,
	})
	require.Subset(t, rows[len(rows)-1], map[string]any{"ns_per_copy": nil, "lost": 100.0})
}

func TestTable(t *testing.T) {
	var out strings.Builder
	require.NoError(t, exampleResult().Table(&out))
	squeezed := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{
		"frames of 1200 bytes (UDP payload 1138), 7 rounds",
		"1 1 xdp 5000 2 0.005 0 200000 2 ",
		"1 1 bare again 2600 1.04 ",
		"1000 1 bare 400 - 0.4 50 % ",
		"1000 8 tc - - - 100 % - - ",
		"1000 xdp 30 1200 60 % 0",
		"1 lone 1 2500 5000 2 1.04 0",
		"xdp no_session 50",
		"xdp own 64 0 1000000 999995 7 0 0 2000 2 640 0.5 %",
		"xdp shared 64 ",
	} {
		require.Contains(t, squeezed, want)
	}

	out.Reset()
	require.NoError(t, new(Result).Table(&out))
	require.NotContains(t, out.String(), "flood", "a part without rows")
}

// TestPictures draws many rows, one, and none.
func TestPictures(t *testing.T) {
	one := exampleResult()
	one.Rows = one.Rows[:1]
	for _, r := range []*Result{exampleResult(), one, {}} {
		dir := filepath.Join(t.TempDir(), "new", "result")
		require.NoError(t, r.Write(dir))
		for _, name := range []string{ResultFile, TableFile} {
			require.FileExists(t, filepath.Join(dir, name))
		}
		for name, want := range map[string]string{SpeedFile: "copies per second", DelayFile: "line of 10 Gbit/s"} {
			text, err := os.ReadFile(filepath.Join(dir, name))
			require.NoError(t, err)
			require.Contains(t, string(text), want)
			for d := xml.NewDecoder(strings.NewReader(string(text))); err == nil; {
				_, err = d.Token()
			}
			require.True(t, errors.Is(err, io.EOF), "%s: %v", name, err)
			require.NotContains(t, string(text), "NaN")
		}
	}
}

func TestCurves(t *testing.T) {
	curves := exampleResult().curves(func(x *Row) (float64, bool) { return float64(x.PerCopy), x.Lost == 0 })
	require.Len(t, curves, 2, "tc lost everything")
	require.Equal(t, XDP, curves[0].engine)
	require.Len(t, curves[0].points, 2)
	require.Equal(t, 450.0, curves[0].points[1].Y, "the larger burst counts")
	require.Equal(t, 2500.0, curves[1].points[0].Y, "not that of the second measurement")
}

// TestFloodLose: what the ring lost is not the engine's loss, and what the ring cannot
// have lost is.
func TestFloodLose(t *testing.T) {
	for _, x := range []struct {
		accepted, overrun, copies, honestOverrun uint64
		lost                                     int64
	}{
		{100, 0, 1000, 0, 0},
		{100, 50, 990, 0, 10},  // the ring lost hostile datagrams only
		{97, 50, 970, 3, 0},    // and honest ones
		{97, 50, 960, 3, 10},   // and the engine a few copies
		{90, 4, 900, 4, 60},    // the ring lost 4, the engine did not take 6
		{90, 0, 900, 0, 100},   // the engine did not take 10
		{101, 0, 1010, 0, -10}, // more than were sent
	} {
		f := Flood{Honest: 100, Subscribers: 10}
		f.lose(x.accepted, x.overrun, x.copies)
		require.Equal(t, x.honestOverrun, f.HonestOverrun, "%+v", x)
		require.Equal(t, x.lost, f.Lost, "%+v", x)
	}
}

func TestLineDelay(t *testing.T) {
	require.InDelta(t, 0.9792, lineDelay(1000, 10), 1e-9)
}

func TestProcessor(t *testing.T) {
	require.Equal(t, "AMD EPYC: 9", processor("processor\t: 0\nmodel\t\t: 2\nmodel name\t: AMD EPYC: 9\n"))
	require.Empty(t, processor("BogoMIPS\t: 1"))
}

func TestParseMapID(t *testing.T) {
	id, ok := parseMapID("pos:\t0\nmap_type:\t2\nmap_id:\t42\n")
	require.True(t, ok)
	require.EqualValues(t, 42, id)
	_, ok = parseMapID("pos:\t0\n")
	require.False(t, ok)
}
