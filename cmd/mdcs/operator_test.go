// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/rp/admin"
	"github.com/ethmcast/mdcs/rp/admin/admintest"
	"github.com/ethmcast/mdcs/rp/events"
)

// operated is a point behind a socket.
func operated(t *testing.T, members int) (point *admintest.Point, socket string) {
	t.Helper()
	point, socket = admintest.New(members), filepath.Join(t.TempDir(), "s")
	s, err := admin.StartSocket(socket, point.Operator().Handler(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(s.Stop)
	return point, socket
}

// More members than an answer of rpd has are put together.
func TestAllSubscribers(t *testing.T) {
	_, socket := operated(t, 10_000)
	status, stdout, stderr := execute(t.Context(), "subscribers", "--socket", socket, "--limit", "0", "-o", "json")
	require.Zero(t, status, stderr)
	var all admin.Subscribers
	require.NoError(t, json.Unmarshal([]byte(stdout), &all))
	require.Len(t, all.Page, 10_000)
	require.Empty(t, all.Next)
	for i, s := range all.Page[1:] {
		require.Greater(t, s.Session, all.Page[i].Session)
	}
	_, stdout, _ = execute(t.Context(), "subscribers", "--socket", socket, "--limit", "2500", "--match", "unicast")
	require.Contains(t, stdout, "\n2500 of 10000 members, 7500 match; more: --after 00000d05\n")
}

// lines is an io.Writer that passes on each line.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}

func TestMonitor(t *testing.T) {
	point, socket := operated(t, 0)
	at := time.Date(2026, 11, 3, 12, 0, 0, 5e6, time.Local)
	for _, c := range []struct {
		form string
		e    events.Event
		want string
	}{
		{"table", events.Event{Kind: events.Admitted, Node: "ab", Addr: "::1", Session: "00000001", Detail: "unicast"},
			"12:00:00.005  admitted   node ab  addr ::1  session 00000001  (unicast)\n"},
		{"table", events.Event{Kind: events.Lost, Count: 3}, "12:00:00.005  lost       events 3\n"},
		{"json", events.Event{Kind: events.LinkDown, Node: "cd"}, `"kind":"link-down","node":"cd"}` + "\n"},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		stdout, ended := make(lines), make(chan int)
		go func() {
			ended <- run(ctx, []string{"mdcs", "monitor", "--socket", socket, "-o", c.form}, stdout, io.Discard)
		}()
		require.Eventually(t, func() bool { return point.Events().Listeners() == 1 }, 20*time.Second, time.Millisecond)
		c.e.Time = at
		point.Events().Emit(c.e)
		require.Contains(t, <-stdout, c.want)
		cancel()
		require.Equal(t, 130, <-ended)
		require.Eventually(t, func() bool { return point.Events().Listeners() == 0 }, 20*time.Second, time.Millisecond)
	}
}

func TestPerSecond(t *testing.T) {
	at := admintest.Now
	last := admin.Stats{
		At: at, Incarnation: "1",
		Verdicts: map[string]uint64{"pass": 100, "replayed": 5},
		Counters: map[string]uint64{"copies": 1000, "send_errors": 7},
	}
	next := admin.Stats{
		At: at.Add(2 * time.Second), Incarnation: "1",
		Verdicts: map[string]uint64{"pass": 103, "replayed": 5},
		Counters: map[string]uint64{"copies": 1500, "send_errors": 3},
	}
	rates := perSecond(last, next)
	require.Equal(t, map[string]float64{"datagrams_pass": 1.5, "datagrams_replayed": 0, "copies": 250}, rates)
	require.Empty(t, perSecond(next, next), "no time passed")
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	statsTable(w, next, rates)
	require.NoError(t, w.Flush())
	require.Regexp(t, `(?m)^datagrams_pass +103 +1\.5$`, table.String())
	require.Regexp(t, `(?m)^send_errors +3 +-$`, table.String(), "it fell")
	next.Incarnation = "2"
	require.Empty(t, perSecond(last, next), "another rpd counts anew")
}

// A database that contradicts itself is drawn as far as it goes.
func TestDrawTree(t *testing.T) {
	for name, c := range map[string]struct {
		tree admin.Tree
		want string
	}{
		"nothing": {admin.Tree{RP: "a"}, "RP RTT FROM THE ROOT OPERATOR\n"},
		"loop": {
			admin.Tree{RP: "a", Self: "c", Nodes: []admin.TreeNode{{RP: "a", Parent: "b"}, {RP: "b", Parent: "c"}, {RP: "c", Parent: "b"}}},
			"RP RTT FROM THE ROOT OPERATOR\na - - -\n\nnot reached: b, c\n",
		},
		"unknown times": {
			admin.Tree{RP: "a", Nodes: []admin.TreeNode{{RP: "a"}, {RP: "b", Parent: "a"}, {RP: "c", Parent: "b", RTT: admin.Seconds(time.Second)}}},
			"RP RTT FROM THE ROOT OPERATOR\na - - -\n`-- b - - -\n    `-- c 1s - -\n",
		},
	} {
		var b strings.Builder
		drawTree(&b, c.tree)
		require.Equal(t, c.want, strings.ReplaceAll(b.String(), "\t", " "), name)
	}
}
