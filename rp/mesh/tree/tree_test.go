// SPDX-License-Identifier: LGPL-3.0-or-later

package tree

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// mesh is a graph to be: links by ids.
type mesh struct {
	n       int
	budgets []int
	costs   map[[2]int]uint32 // lower node first
}

// drawMesh draws a connected mesh of 2 to max nodes, full or sparse.
func drawMesh(t *rapid.T, max int) mesh {
	m := mesh{n: rapid.IntRange(2, max).Draw(t, "nodes"), costs: make(map[[2]int]uint32)}
	full := rapid.Bool().Draw(t, "full")
	cost := rapid.Uint32Range(1, uint32(rapid.SampledFrom([]int{3, 3000}).Draw(t, "costs")))
	for b := 1; b < m.n; b++ {
		m.costs[[2]int{rapid.IntRange(0, b-1).Draw(t, "to"), b}] = cost.Draw(t, "cost")
		for a := range b {
			if full || rapid.IntRange(0, 3).Draw(t, "link") == 0 {
				m.costs[[2]int{a, b}] = cost.Draw(t, "cost")
			}
		}
	}
	for range m.n {
		m.budgets = append(m.budgets, m.n)
	}
	return m
}

func id(node int) ID { return ID(node*7919%1009 + 1) }

// graph adds the links in a random order, so that slots differ.
func (m mesh) graph(seed uint64) *Topology {
	rng := rand.New(rand.NewPCG(seed, 0))
	t := NewTopology()
	for _, n := range rng.Perm(m.n) {
		t.SetBudget(t.Add(id(n)), m.budgets[n])
	}
	links := make([][2]int, 0, len(m.costs))
	for l := range m.costs {
		links = append(links, l)
	}
	slices.SortFunc(links, func(a, b [2]int) int { return slices.Compare(a[:], b[:]) })
	for _, i := range rng.Perm(len(links)) {
		t.SetCost(t.Slot(id(links[i][0])), t.Slot(id(links[i][1])), m.costs[links[i]])
	}
	t.Commit()
	return t
}

// parents is a tree by nodes.
func parents(t *Topology, tr *Tree) map[ID]ID {
	all := make(map[ID]ID)
	for v, p := range tr.Parent {
		if p != None {
			all[t.ID(v)] = t.ID(int(p))
		}
	}
	return all
}

func build(t *Topology, root ID, mode Mode, alpha int) *Tree {
	var tr Tree
	tr.Build(t, NewSPT(t, t.Slot(root)), mode, alpha)
	return &tr
}

var modes = rapid.SampledFrom([]Mode{Star, Light})

// TestSameEverywhere: who has the same links has the same trees, which hold each
// node once and have no loops.
func TestSameEverywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawMesh(t, 24)
		for i := range m.budgets {
			m.budgets[i] = rapid.IntRange(0, 5).Draw(t, "budget")
		}
		root, mode := id(rapid.IntRange(0, m.n-1).Draw(t, "root")), modes.Draw(t, "mode")
		alpha := rapid.IntRange(100, 400).Draw(t, "alpha")
		a, b := m.graph(1), m.graph(rapid.Uint64().Draw(t, "order"))
		one, other := build(a, root, mode, alpha), build(b, root, mode, alpha)
		require.Equal(t, parents(a, one), parents(b, other))
		require.Len(t, parents(a, one), m.n-1)
		for v := range one.Parent {
			require.True(t, one.Below(v, a.Slot(root)))
		}
		node := id(rapid.IntRange(0, m.n-1).Draw(t, "node"))
		ids := func(t *Topology, slots []int) (ids []ID) {
			for _, s := range slots {
				ids = append(ids, t.ID(s))
			}
			return ids
		}
		require.Equal(t, ids(a, one.Backups(a, a.Slot(node), 3)), ids(b, other.Backups(b, b.Slot(node), 3)))
	})
}

// TestLastIsShortAndLight: no way is longer than alpha allows, and the tree costs at
// most 1 + 2/(alpha - 1) times the minimum spanning tree.
func TestLastIsShortAndLight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawMesh(t, 40)
		g := m.graph(1)
		root := g.Slot(id(rapid.IntRange(0, m.n-1).Draw(t, "root")))
		alpha := rapid.IntRange(MinAlpha, 500).Draw(t, "alpha")
		s := NewSPT(g, root)
		var tr Tree
		tr.Build(g, s, Light, alpha)
		dist, _ := tr.Distances(g)
		var weight uint64
		for v, p := range tr.Parent {
			if 100*uint64(dist[v]) > uint64(alpha)*uint64(s.Distance(v)) {
				t.Fatalf("distance %d, the shortest is %d", dist[v], s.Distance(v))
			}
			if p != None {
				weight += uint64(g.Cost(v, int(p)))
			}
		}
		if weight*uint64(alpha-100) > g.ForestCost()*uint64(alpha-100+200) {
			t.Fatalf("weight %d, the minimum is %d", weight, g.ForestCost())
		}
	})
}

// TestBudgets: in a full mesh no node has more children than its budget.
func TestBudgets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 20).Draw(t, "nodes")
		m := mesh{n: n, costs: make(map[[2]int]uint32)}
		for b := range n {
			m.budgets = append(m.budgets, rapid.IntRange(1, 4).Draw(t, "budget"))
			for a := range b {
				m.costs[[2]int{a, b}] = rapid.Uint32Range(1, 100).Draw(t, "cost")
			}
		}
		g := m.graph(1)
		tr := build(g, id(0), modes.Draw(t, "mode"), DefaultAlpha)
		children := make(map[ID]int)
		for _, p := range parents(g, tr) {
			children[p]++
		}
		for v := range n {
			require.LessOrEqual(t, children[id(v)], m.budgets[v])
		}
		for v := range tr.Parent {
			require.True(t, tr.Below(v, g.Slot(id(0))))
		}
	})
}

// TestRepairedPathsAreTheShortest: after any changes the repaired paths and the trees
// are those of a graph that never was another one.
func TestRepairedPathsAreTheShortest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawMesh(t, 24)
		g := m.graph(1)
		root := id(0)
		s := NewSPT(g, g.Slot(root))
		mode := modes.Draw(t, "mode")
		var tr Tree
		tr.Build(g, s, mode, DefaultAlpha)
		for range rapid.IntRange(1, 4).Draw(t, "commits") {
			for range rapid.IntRange(1, 12).Draw(t, "changes") {
				a, b := rapid.IntRange(0, m.n-1).Draw(t, "a"), rapid.IntRange(0, m.n-1).Draw(t, "b")
				if a == b {
					continue
				}
				a, b = min(a, b), max(a, b)
				cost := rapid.Uint32Range(0, 30).Draw(t, "new cost")
				m.costs[[2]int{a, b}] = cost
				g.SetCost(g.Slot(id(a)), g.Slot(id(b)), cost)
			}
			if changed := s.Update(g, g.Commit()); tr.Outdated(g, changed) {
				tr.Build(g, s, mode, DefaultAlpha)
			}
			fresh := m.graph(1)
			want := NewSPT(fresh, fresh.Slot(root))
			require.Equal(t, want.dist, s.dist)
			require.Equal(t, want.parent, s.parent)
			require.Equal(t, parents(fresh, build(fresh, root, mode, DefaultAlpha)), parents(g, &tr))
		}
	})
}

func TestStar(t *testing.T) {
	g := NewTopology()
	for n := range ID(4) {
		g.SetBudget(g.Add(n+1), 8)
	}
	g.SetCost(0, 1, 10)
	g.SetCost(0, 2, 100) // dear, but one hop
	g.SetCost(1, 2, 10)
	g.SetCost(2, 3, 10)
	g.Commit()
	require.Equal(t, map[ID]ID{2: 1, 3: 1, 4: 3}, parents(g, build(g, 1, Star, 0)))
	require.Equal(t, map[ID]ID{2: 1, 3: 2, 4: 3}, parents(g, build(g, 1, Light, DefaultAlpha)))
}

// A square with a diagonal tail: the other way around is the backup, not what stands below.
func TestBackups(t *testing.T) {
	g := NewTopology()
	for n := range ID(6) {
		g.SetBudget(g.Add(n+1), 8)
	}
	for _, l := range [][3]int{{0, 1, 10}, {1, 3, 10}, {0, 2, 15}, {2, 3, 15}, {3, 4, 10}, {1, 5, 1}, {5, 3, 10}} {
		g.SetCost(l[0], l[1], uint32(l[2]))
	}
	g.Commit()
	tr := build(g, 1, Light, 110)
	require.Equal(t, map[ID]ID{2: 1, 3: 1, 4: 2, 5: 4, 6: 2}, parents(g, tr))
	require.Equal(t, []int{2, 5}, tr.Backups(g, 3, 3), "3 avoids the parent, 6 does not, 5 stands below")
	require.Equal(t, []int{2}, tr.Backups(g, 3, 1))
	require.Nil(t, tr.Backups(g, 0, 3), "the root has none")

	bits := func(slot int) uint64 { return 1 << slot }
	require.Equal(t, map[int]uint64{1: 1<<1 | 1<<3 | 1<<4 | 1<<5, 2: 1 << 2}, tr.Branches(0, bits))
	require.Equal(t, map[int]uint64{4: 1 << 4}, tr.Branches(3, bits))
	require.Empty(t, tr.Branches(4, bits))
}

func TestSlotsAreReused(t *testing.T) {
	g := NewTopology()
	a, b := g.Add(1), g.Add(2)
	g.SetCost(a, b, 5)
	g.Remove(2)
	require.Equal(t, b, g.Slot(2), "a node with links stays")
	g.SetCost(a, b, 0)
	g.Remove(2)
	require.Equal(t, None, g.Slot(2))
	require.Equal(t, b, g.Add(3))
	g.SetCost(a, b, 7)
	s := NewSPT(g, a)
	require.Equal(t, 2, g.Len())
	s.Update(g, g.Commit())
	require.Equal(t, uint32(7), s.Distance(b))
	require.True(t, g.Spans(a, b))
}

// thousand is a mesh of 1,000 nodes with 6 links each and more.
func thousand() (*Topology, *rand.Rand) {
	rng := rand.New(rand.NewPCG(1, 2))
	g := NewTopology()
	for n := range 1000 {
		g.SetBudget(g.Add(ID(rng.Uint64())), 16)
		for range min(n, 6) {
			g.SetCost(n, rng.IntN(n), 1+rng.Uint32N(2000))
		}
	}
	g.Commit()
	return g, rng
}

// BenchmarkNodeDown is one change as each of 1,000 RPs sees it: a node loses its
// links, and the trees of all 1,000 roots follow.
func BenchmarkNodeDown(b *testing.B) {
	g, rng := thousand()
	paths, trees := make([]*SPT, 1000), make([]Tree, 1000)
	for r := range paths {
		paths[r] = NewSPT(g, r)
		trees[r].Build(g, paths[r], Light, DefaultAlpha)
	}
	for b.Loop() {
		node := rng.IntN(1000)
		for other := range 1000 {
			g.SetCost(node, other, 0)
		}
		changes := g.Commit()
		for r := range paths {
			if trees[r].Outdated(g, paths[r].Update(g, changes)) {
				trees[r].Build(g, paths[r], Light, DefaultAlpha)
			}
		}
		b.StopTimer()
		for range 6 {
			g.SetCost(node, rng.IntN(1000), 1+rng.Uint32N(2000))
		}
		changes = g.Commit()
		for r := range paths {
			paths[r].Update(g, changes)
			trees[r].Build(g, paths[r], Light, DefaultAlpha)
		}
		b.StartTimer()
	}
}

func TestParseMode(t *testing.T) {
	for _, m := range []Mode{Star, Light} {
		got, err := ParseMode(m.String())
		require.NoError(t, err)
		require.Equal(t, m, got)
	}
	_, err := ParseMode("last")
	require.ErrorContains(t, err, `"light"`)
	_, err = ParseMode("ring")
	require.ErrorContains(t, err, "neither light nor star")
}
