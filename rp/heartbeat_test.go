// SPDX-License-Identifier: LGPL-3.0-or-later

package rp

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// beatsOf looks at two streams every 250 ms, of which move tells the sequences, and
// returns what was sent when.
func beatsOf(length time.Duration, move func(at time.Duration) (a, b uint64)) (sent []string) {
	start := time.Unix(100, 0)
	b := newBeats(start)
	for at := time.Duration(0); at <= length; at += beatLook {
		x, y := move(at)
		scope := b.look(start.Add(at), []proto.Mark{{Group: 1, Sequence: x}, {Group: 2, Sequence: y}})
		if scope != 0 {
			sent = append(sent, fmt.Sprintf("%v %v", at, map[datapath.HeartbeatScope]string{datapath.Local: "local", datapath.All: "all"}[scope]))
		}
	}
	return sent
}

// A stream at rest: often for peers, who watch their RP by it, seldom for the mesh.
func TestBeatsAtRest(t *testing.T) {
	rest := func(time.Duration) (uint64, uint64) { return 0, 0 }
	sent := beatsOf(11*time.Second, rest)
	all := slices.DeleteFunc(slices.Clone(sent), func(s string) bool { return !strings.HasSuffix(s, " all") })
	require.Equal(t, []string{"0s all", "500ms all", "1s all", "2s all", "7s all"}, all)
	require.Len(t, sent, 23, "one of either kind each 500 ms")
}

// All streams move: one each second, and those of streams that come to rest.
func TestBeatsOfBusyStreams(t *testing.T) {
	busy := func(until time.Duration) func(time.Duration) (uint64, uint64) {
		return func(at time.Duration) (uint64, uint64) {
			n := uint64(min(at, until) / beatLook)
			return n, n
		}
	}
	sent := beatsOf(10*time.Second, busy(2*time.Second))
	require.Equal(t, []string{"0s all", "1s all", "2s all", "2.5s all", "3s all", "3.5s local", "4s all", "4.5s local"}, sent[:8])
	require.Len(t, beatsOf(9*time.Second, busy(time.Hour)), 10)
}

// A stream that moves after a rest tells it at once: what it was believed to have may be a lie.
func TestBeatsAfterARest(t *testing.T) {
	sent := beatsOf(22*time.Second, func(at time.Duration) (uint64, uint64) { n := uint64(at / (20 * time.Second)); return n, n })
	all := slices.DeleteFunc(slices.Clone(sent), func(s string) bool { return !strings.HasSuffix(s, " all") })
	require.Equal(t, []string{"17s all", "20s all", "20.5s all", "21s all", "22s all"}, all[len(all)-5:])
}

// One stream moves, another rests: its peers hear nothing else.
func TestBeatsOfOneStreamAtRest(t *testing.T) {
	sent := beatsOf(2*time.Second, func(at time.Duration) (uint64, uint64) { return uint64(at / beatLook), 7 })
	require.Equal(t, []string{"0s all", "500ms local", "1s all", "1.5s local", "2s all"}, sent)
}
