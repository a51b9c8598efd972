// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet/lightpeer"
)

// TestMain lets the test program be the process of the light peers, too.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == lightpeer.Command {
		if err := lightpeer.Main(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestBenchPeers lets a few peers join a real rpd with each engine, and again after it
// was killed.
func TestBenchPeers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces and loads kernel programs")
	}
	rpd := buildRPD(t)
	for _, engine := range []string{XDP, Socket} {
		t.Run(engine, func(t *testing.T) {
			cfg := PeersConfig{
				Name: "quick", Results: t.TempDir(), RPD: rpd, Engine: engine,
				Peers: []int{40}, Rate: 20, Steady: time.Second,
			}
			r, err := Peers(t.Context(), cfg)
			require.NoError(t, err)
			requireNothingLeft(t)
			require.Len(t, r.Rows, 1)
			for i, row := range r.Rows {
				require.Equal(t, cfg.Peers[i], row.Peers)
				require.Equal(t, 20, row.Published)
				require.Zero(t, row.Lost+row.Duplicated+row.Refused+row.Again, "%+v", row)
				for _, f := range []Figure{row.Joins, row.ControlPerJoin, row.LastCopy, row.LastCopy99, row.Rejoin} {
					require.True(t, f.known() && f > 0, "%+v", row)
				}
			}
			text, err := r.RowsJSON()
			require.NoError(t, err)
			var rows []map[string]any
			require.NoError(t, json.Unmarshal(text, &rows))
			for _, key := range []string{"peers", "cpu_percent", "kib_per_peer", "rejoin_s", "last_copy_ms", "lost", "joins_s", "control_bytes_s"} {
				require.Contains(t, rows[0], key)
			}
			require.NoError(t, r.Write(cfg.Dir()))
			for _, name := range []string{PeersFile, PeersTableFile, PeersPictureFile} {
				text, err := os.ReadFile(filepath.Join(cfg.Dir(), name))
				require.NoError(t, err)
				require.NotEmpty(t, strings.TrimSpace(string(text)))
			}
		})
	}
}

// TestBenchPeersKeepsRows is interrupted in its second row: the first one stays.
func TestBenchPeersKeepsRows(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	second := slog.New(slog.NewTextHandler(writerFunc(func(line []byte) (int, error) {
		if bytes.Contains(line, []byte("msg=join peers=3")) {
			cancel()
		}
		return len(line), nil
	}), nil))
	r, err := Peers(ctx, PeersConfig{
		RPD: buildRPD(t), Engine: Socket, Peers: []int{2, 3}, Rate: 20, Steady: time.Second, Log: second,
	})
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "3 peers: join: ")
	require.Len(t, r.Rows, 1)
	require.Equal(t, 2, r.Rows[0].Peers)
	requireNothingLeft(t)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func buildRPD(t *testing.T) string {
	rpd := filepath.Join(t.TempDir(), "rpd")
	out, err := exec.Command("go", "build", "-o", rpd, "github.com/ethmcast/mdcs/cmd/rpd").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return rpd
}

func TestPeersCheck(t *testing.T) {
	good := PeersConfig{Engine: XDP, Peers: []int{2, MaxPeers}, Rate: 1, Steady: time.Second}
	require.NoError(t, good.Check())
	for want, change := range map[string]func(*PeersConfig){
		"neither xdp nor socket": func(c *PeersConfig) { c.Engine = TC },
		"no peers":               func(c *PeersConfig) { c.Peers = nil },
		"10001 is not within":    func(c *PeersConfig) { c.Peers = []int{10001} },
		"nobody to send to":      func(c *PeersConfig) { c.Peers = []int{1} },
		"rate 1001 is not":       func(c *PeersConfig) { c.Rate = 1001 },
		"below 1s":               func(c *PeersConfig) { c.Steady = time.Millisecond },
	} {
		c := good
		change(&c)
		require.ErrorContains(t, c.Check(), want)
	}
}

func TestPeersRowAdds(t *testing.T) {
	var r PeersRow
	r.add(lightpeer.Counters{Lost: 5, Early: 1}, lightpeer.Counters{Lost: 7, Early: 2, Refused: 3, Duplicates: 4}, 1)
	r.add(lightpeer.Counters{}, lightpeer.Counters{}, 6)
	require.Equal(t, uint64(8), r.Lost, "what the peers miss, or what did not arrive")
	require.Equal(t, uint64(4), r.Duplicated)
	require.Equal(t, uint64(4), r.Refused)
}

func TestDelayFigures(t *testing.T) {
	var list []time.Duration
	for i := range 100 {
		list = append(list, time.Duration(100-i)*time.Millisecond)
	}
	median, p99 := delayFigures(list)
	require.Equal(t, [2]Figure{51, 100}, [2]Figure{median, p99})
	median, _ = delayFigures(nil)
	require.False(t, median.known())
}
