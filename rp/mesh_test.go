// SPDX-License-Identifier: LGPL-3.0-or-later

package rp_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/socket"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/mesh/tree"
)

// partialMesh starts n RPs that know of each other, of which only some are linked: to
// the others they have a port that nobody listens on. It returns their engines, too.
func partialMesh(t *testing.T, n int, links [][2]int, edit ...func(*rp.Config)) ([]*rp.RP, []*socket.Engine) {
	t.Helper()
	sites := make([]*site, n)
	for i := range sites {
		sites[i] = newSite(t)
	}
	points, engines := make([]*rp.RP, n), make([]*socket.Engine, n)
	for i, s := range sites {
		degree := 0
		var others []*site
		for j, o := range sites {
			if j == i {
				continue
			}
			far := *o
			far.control = 1
			for _, l := range links {
				if l == [2]int{i, j} || l == [2]int{j, i} {
					far.control = o.control
					degree++
				}
			}
			others = append(others, &far)
		}
		cfg := s.config(t, others...)
		cfg.Mesh.Mode = tree.Light
		cfg.Engine = func(c datapath.Config) (datapath.Engine, error) {
			e, err := socket.Listen(c)
			engines[i] = e
			return e, err
		}
		for _, f := range edit {
			f(&cfg)
		}
		points[i] = start(t, cfg)
		defer awaitUp(t, points[i], degree)
	}
	return points, engines
}

// awaitUp waits until a number of neighbours is up, and the RP is on all trees.
func awaitUp(t *testing.T, p *rp.RP, degree int) {
	t.Helper()
	require.Eventually(t, func() bool {
		up, st := 0, p.Status().Mesh
		for _, n := range st.Neighbours {
			if n.Up() {
				up++
			}
		}
		return up == degree && st.Settled
	}, patience, 10*time.Millisecond)
}

// What is published anywhere in a chain of RPs arrives everywhere, exactly once.
func TestPublishAlongChain(t *testing.T) {
	t.Parallel()
	points, _ := partialMesh(t, 4, [][2]int{{0, 1}, {1, 2}, {2, 3}}, func(c *rp.Config) { c.RekeyInterval = time.Second })
	var peers []*lightPeer
	for _, p := range points {
		peers = append(peers, newPeer(t, p, peerOptions{}))
	}
	members(t, peers...)
	for _, p := range peers {
		see(p, func(p *lightPeer) any { p.bad = nil; return nil }) // heartbeats that came before the Welcome
	}
	const n = 30 // within a lease
	sent := make([][]string, len(peers))
	for i := range n {
		for j, p := range peers {
			sent[j] = append(sent[j], fmt.Sprintf("%d by %d", i, j))
			p.publish(sent[j][i])
		}
		time.Sleep(100 * time.Millisecond) // so that keys change twice meanwhile
	}
	for i, p := range peers {
		var want []string
		for j := range peers {
			if j != i {
				want = append(want, sent[j]...)
			}
		}
		require.Eventually(t, func() bool { return len(p.got()) >= len(want) }, patience, 5*time.Millisecond)
		require.ElementsMatch(t, want, p.got())
		require.Empty(t, p.badDatagrams())
		for _, h := range see(p, func(p *lightPeer) []wire.Header { return p.data }) {
			for j, point := range points {
				if h.Ingress == point.Incarnation() {
					require.Equal(t, wire.InitialHopLimit-max(i-j, j-i), int(h.HopLimit))
				}
			}
		}
	}
	edges, ok := points[0].Tree(linkstate.IDOf(points[3].Self().ID()))
	require.True(t, ok)
	require.Len(t, edges, 4)
	for _, p := range points {
		st := p.Status().Mesh
		require.Len(t, st.Routes, 4)
		require.Len(t, st.Database, 4)
		require.Zero(t, st.Counters)
	}
}

//	    1
//	  /   \
//	0       3
//	  \   /
//	    2
//
// The datapath of the RP that 3 has its datagrams from dies: nothing is lost.
func TestNeighbourDies(t *testing.T) {
	t.Parallel()
	points, engines := partialMesh(t, 4, [][2]int{{0, 1}, {0, 2}, {1, 3}, {2, 3}}, func(c *rp.Config) { c.Mesh.Alpha = tree.MinAlpha })
	a, d := newPeer(t, points[0], peerOptions{}), newPeer(t, points[3], peerOptions{})
	members(t, a, d)
	var want []string
	publish := func(n int) {
		for range n {
			want = append(want, fmt.Sprint(len(want)))
			a.publish(want[len(want)-1])
			time.Sleep(5 * time.Millisecond)
		}
	}
	publish(100)
	parentOf := func() (parent int) {
		for i, p := range points {
			for _, r := range points[3].Status().Mesh.Routes {
				if r.Ingress == points[0].Incarnation() && r.Parent == linkstate.IDOf(p.Self().ID()) {
					parent = i
				}
			}
		}
		return parent
	}
	parent := parentOf()
	require.Contains(t, []int{1, 2}, parent)
	require.NoError(t, engines[parent].Close())
	publish(400)
	require.Eventually(t, func() bool { return len(d.got()) >= len(want) }, patience, 5*time.Millisecond)
	require.ElementsMatch(t, want, d.got())
	require.Empty(t, d.badDatagrams())
	require.NotZero(t, points[3].Status().Mesh.Core.Downs)
	require.Equal(t, 3-parent, parentOf(), "as a backup, or by the next tree if that was sooner")
}
