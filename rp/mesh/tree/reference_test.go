// SPDX-License-Identifier: LGPL-3.0-or-later

package tree

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/rp/mesh/meshtest"
)

// reference computes trees as the text of SPEC 12.5 says, as slowly as it says.
type reference struct {
	nodes  []ID // ascending
	cost   map[[2]ID]uint64
	budget map[ID]int
	root   ID

	dist, d map[ID]uint64 // none: infinite
	sp      map[ID]ID
	parent  map[ID]ID
}

func (r *reference) room(v ID) int {
	if v == r.root {
		return max(r.budget[v], 1)
	}
	return r.budget[v]
}

func (r *reference) neighbours(v ID) (all []ID) {
	for _, u := range r.nodes {
		if r.cost[[2]ID{u, v}] != 0 {
			all = append(all, u)
		}
	}
	return all
}

// forest returns the links of the minimum spanning forest, in the order in which they are taken.
func (r *reference) forest() (taken [][2]ID) {
	var links [][2]ID
	for l := range r.cost {
		if l[0] < l[1] {
			links = append(links, l)
		}
	}
	slices.SortFunc(links, func(a, b [2]ID) int {
		return slices.Compare([]uint64{r.cost[a], uint64(a[0]), uint64(a[1])}, []uint64{r.cost[b], uint64(b[0]), uint64(b[1])})
	})
	part := make(map[ID]ID)
	for _, v := range r.nodes {
		part[v] = v
	}
	for _, l := range links {
		a, b := part[l[0]], part[l[1]]
		if a == b {
			continue
		}
		taken = append(taken, l)
		for v, p := range part {
			if p == a {
				part[v] = b
			}
		}
	}
	return taken
}

// shortest is Bellman's and Ford's algorithm.
func (r *reference) shortest() {
	r.dist, r.sp = map[ID]uint64{r.root: 0}, make(map[ID]ID)
	for range r.nodes {
		for l, cost := range r.cost {
			if from, ok := r.dist[l[0]]; ok {
				if to, ok := r.dist[l[1]]; !ok || from+cost < to {
					r.dist[l[1]] = from + cost
				}
			}
		}
	}
	for v, dv := range r.dist {
		for _, u := range r.neighbours(v) {
			if du, ok := r.dist[u]; ok && v != r.root && du+r.cost[[2]ID{u, v}] == dv {
				r.sp[v] = u
				break
			}
		}
	}
}

func (r *reference) build(mode Mode, alpha uint64) map[ID]ID {
	r.shortest()
	r.parent = make(map[ID]ID)
	if mode == Star {
		maps.Copy(r.parent, r.sp)
		for _, v := range r.neighbours(r.root) {
			r.parent[v] = r.root
		}
	} else {
		r.d = map[ID]uint64{r.root: 0}
		r.walk(r.root, 0, r.forest(), alpha)
	}
	r.limit()
	return r.parent
}

func (r *reference) relax(u, v ID) {
	sum := r.d[u] + r.cost[[2]ID{u, v}]
	if d, ok := r.d[v]; !ok || sum < d {
		r.d[v], r.parent[v] = sum, u
	}
}

func (r *reference) walk(u, from ID, forest [][2]ID, alpha uint64) {
	for _, l := range forest {
		v := l[0] ^ l[1] ^ u
		if l[0] != u && l[1] != u || v == from {
			continue
		}
		r.relax(u, v)
		if 100*r.d[v] > alpha*r.dist[v] {
			for x := v; ; x = r.sp[x] {
				if d, ok := r.d[x]; ok && d <= r.dist[x] {
					break
				}
				r.d[x], r.parent[x] = r.dist[x], r.sp[x]
			}
		}
		r.walk(v, u, forest, alpha)
		r.relax(v, u)
	}
}

func (r *reference) children(u ID) (all []ID) {
	for _, v := range r.nodes {
		if p, ok := r.parent[v]; ok && p == u {
			all = append(all, v)
		}
	}
	return all
}

func (r *reference) below(v, above ID) bool {
	for {
		if v == above {
			return true
		}
		p, ok := r.parent[v]
		if !ok {
			return false
		}
		v = p
	}
}

func (r *reference) limit() {
	r.d = map[ID]uint64{r.root: 0}
	var order []ID
	for generation := []ID{r.root}; len(generation) > 0; {
		order = append(order, generation...)
		var next []ID
		for _, u := range generation {
			for _, v := range r.children(u) {
				r.d[v] = r.d[u] + r.cost[[2]ID{u, v}]
				next = append(next, v)
			}
		}
		slices.Sort(next)
		generation = next
	}
	for _, u := range order {
		for len(r.children(u)) > r.room(u) {
			var best []int64 // loss, child, parent
			for _, v := range r.children(u) {
				for _, p := range r.neighbours(v) {
					dp, in := r.d[p]
					if p == u || !in || r.below(p, v) || len(r.children(p)) >= r.room(p) {
						continue
					}
					c := []int64{int64(dp) + int64(r.cost[[2]ID{p, v}]) - int64(r.d[v]), int64(v), int64(p)}
					if best == nil || slices.Compare(c, best) < 0 {
						best = c
					}
				}
			}
			if best == nil {
				break
			}
			r.parent[ID(best[1])] = ID(best[2])
		}
	}
}

func newReference(root ID, budget map[ID]int, cost map[[2]ID]uint64) *reference {
	r := &reference{root: root, budget: budget, cost: make(map[[2]ID]uint64)}
	r.nodes = slices.Sorted(maps.Keys(budget))
	for l, c := range cost {
		r.cost[l], r.cost[[2]ID{l[1], l[0]}] = c, c
	}
	return r
}

// TestTreesAreTheSpecified: the trees are those of the text, also with equal costs and little
// room.
func TestTreesAreTheSpecified(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawMesh(t, 14)
		budget, cost := make(map[ID]int), make(map[[2]ID]uint64)
		for n := range m.n {
			m.budgets[n] = rapid.SampledFrom([]int{0, 1, 2, 3, 14}).Draw(t, "budget")
			budget[id(n)] = m.budgets[n]
		}
		for l, c := range m.costs {
			cost[[2]ID{id(l[0]), id(l[1])}] = uint64(c)
		}
		g := m.graph(rapid.Uint64().Draw(t, "seed"))
		root := id(rapid.IntRange(0, m.n-1).Draw(t, "root"))
		mode, alpha := modes.Draw(t, "mode"), rapid.SampledFrom([]int{101, 115, 150, 300}).Draw(t, "alpha")
		require.Equal(t, newReference(root, budget, cost).build(mode, uint64(alpha)), parents(g, build(g, root, mode, alpha)))
	})
}

// TestGoldenTrees: the vectors are right for the text and for this package.
func TestGoldenTrees(t *testing.T) {
	trees := 0
	budget, cost := make(map[ID]int), make(map[[2]ID]uint64)
	g := NewTopology()
	for _, b := range meshtest.Parse(meshtest.Trees) {
		switch b.Kind {
		case "graph":
			clear(budget)
			clear(cost)
			g = NewTopology()
			for _, n := range b.Of("node") {
				v := ID(meshtest.Number(n[0]))
				budget[v] = int(meshtest.Number(n[2]))
				g.SetBudget(g.Add(v), budget[v])
			}
			for _, l := range b.Of("link") {
				a, z, c := ID(meshtest.Number(l[0])), ID(meshtest.Number(l[1])), meshtest.Number(l[3])
				cost[[2]ID{a, z}] = c
				g.SetCost(g.Slot(a), g.Slot(z), uint32(c))
			}
			g.Commit()
			var taken []string
			for _, l := range newReference(0, budget, cost).forest() {
				taken = append(taken, fmt.Sprintf("%d-%d", l[0], l[1]))
				require.True(t, g.Spans(g.Slot(l[0]), g.Slot(l[1])))
			}
			require.Equal(t, b.Of("forest")[0], append([]string{}, taken...), "forest of %v", b.Args)
		case "tree":
			trees++
			mode, err := ParseMode(b.Args[0])
			require.NoError(t, err)
			alpha, root := int(meshtest.Number(b.Args[1])), ID(meshtest.Number(b.Args[2]))
			want := make(map[ID]ID)
			for _, l := range b.Of("parent") {
				want[ID(meshtest.Number(l[2]))] = ID(meshtest.Number(l[0]))
			}
			tr := build(g, root, mode, alpha)
			require.Equal(t, want, parents(g, tr), "%v", b.Args)
			require.Equal(t, want, newReference(root, budget, cost).build(mode, uint64(alpha)), "%v", b.Args)
			for _, l := range b.Of("backups") {
				var got []string
				for _, s := range tr.Backups(g, g.Slot(ID(meshtest.Number(l[1]))), 3) {
					got = append(got, fmt.Sprint(g.ID(s)))
				}
				require.Equal(t, l[2:], append([]string{}, got...), "%v %v", b.Args, l)
			}
		default:
			t.Fatalf("block %q", b.Kind)
		}
	}
	require.Greater(t, trees, 8)
}
