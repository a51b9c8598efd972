// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// hearsLate has RP 4 of a square hear a neighbour 5, in each step of a time, whose LINK_HELLOs claim a
// round-trip time of nearly 10 s.
func hearsLate(w *network, d time.Duration) {
	c := w.cores[4]
	c.LinkUp(w.now, rp(5))
	for end := w.now.Add(d); w.now.Before(end); {
		h := Hello{Stamp: c.micros(w.now), Echo: c.micros(w.now) - 9_900_000, Echoes: true, Interval: 100, Up: true}
		c.HeardHello(w.now, rp(5), h)
		w.perform(4)
		w.run(TreeInterval)
	}
}

// A neighbour that claims a long round-trip time, and is upstream of nothing, does not keep former
// upstreams of others.
func TestLieAboutRoundTrips(t *testing.T) {
	w := square(t)
	hearsLate(w, 5*time.Second)
	c := w.cores[4]
	require.True(t, c.alive(rp(5)))
	require.Greater(t, c.neighbour(rp(5)).rtt, 9*time.Second)
	require.Equal(t, rp(2), w.route(4, ingress1).Parent)

	w.delay[pair(2, 4)] = 30 * time.Millisecond
	for end := w.now.Add(30 * time.Second); w.route(4, ingress1).Parent != rp(3); hearsLate(w, TreeInterval) {
		require.True(t, w.now.Before(end))
	}
	require.Contains(t, w.route(4, ingress1).Previous, rp(2))
	hearsLate(w, Overlap+time.Second+graftTimeout)
	require.Empty(t, w.route(4, ingress1).Previous)
	require.Equal(t, rp(3), w.route(4, ingress1).Parent)
}

// A parent that claims a long round-trip time and does not answer is left as soon as another one.
func TestLateParentWithoutAnswer(t *testing.T) {
	w := square(t)
	w.unlink(3, 4)
	w.run(8 * time.Second)
	c := w.cores[4]
	n := c.neighbour(rp(2))
	n.rtt = 9 * time.Second // as its LINK_HELLOs claim
	r := c.routes[ingress1]
	require.Equal(t, rp(2), r.parent)
	r.asking, r.since = asking{}, w.now // asked, and no GraftAck came
	for at := w.now; c.Stats().Timeouts == 0; at = at.Add(TreeInterval) {
		require.Less(t, at.Sub(w.now), graftTimeout+time.Second+2*TreeInterval)
		n.alive(at)
		c.Tick(at)
	}
	require.False(t, slices.Contains(w.route(4, ingress1).Previous, rp(2)))
}

// A neighbour that another RP lost, and that claims a long round-trip time, is down in time.
func TestLateNeighbourIsLost(t *testing.T) {
	w := square(t)
	c := w.cores[4]
	n := c.neighbour(rp(2))
	n.rtt = 9 * time.Second
	n.heard, n.interval = w.now, Interval
	n.polled = w.now
	require.LessOrEqual(t, n.downAt().Sub(w.now), Missed*TreeInterval+TreeInterval/lateness+500*time.Millisecond+n.slack)
}
