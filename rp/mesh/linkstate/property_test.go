// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/ethmcast/ids"
)

// TestAlwaysAgreesInTheEnd lets RPs start, die, restart, and resume with a datapath that
// outlived them, links come, go and turn into black holes, and members change, in any order. Once all is quiet, who can
// reach each other has the same database and the same trees, each parent copies to
// its children and to nobody else, and the ways lead to the ingress RP.
func TestAlwaysAgreesInTheEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newNetwork(t)
		const rps = 5
		number := func(name string) int { return rapid.IntRange(1, rps).Draw(t, name) }
		for n := 1; n <= rps; n++ {
			w.start(n)
			w.cores[n].SetPublishes(w.now, n <= 2)
			for m := 1; m < n; m++ {
				w.link(m, n, step*time.Duration(rapid.IntRange(1, 10).Draw(t, "delay")))
			}
		}
		for range rapid.IntRange(1, 12).Draw(t, "events") {
			a, b := number("a"), number("b")
			_, linked := w.delay[pair(a, b)]
			switch event := rapid.IntRange(0, 7).Draw(t, "event"); {
			case event == 0 && w.cores[a] != nil:
				w.kill(a)
			case event == 1 && w.cores[a] == nil:
				w.start(a)
				w.cores[a].SetPublishes(w.now, a <= 2)
			case event == 2 && a != b && linked:
				w.unlink(a, b)
			case event == 3 && a != b && !linked:
				w.link(a, b, step*time.Duration(rapid.IntRange(1, 10).Draw(t, "delay")))
			case event == 4 && a != b:
				w.cut[pair(a, b)] = !w.cut[pair(a, b)]
			case event == 5 && w.cores[a] != nil:
				w.cores[a].SetMembers(w.now, []Members{{groupA, uint32(rapid.IntRange(0, 3).Draw(t, "members"))}})
			case event == 6 && w.cores[a] != nil:
				w.detach(a)
			case event == 7 && w.cores[a] == nil && w.left[a].Sign != nil:
				w.resume(a).SetPublishes(w.now, a <= 2)
			}
			w.run(time.Duration(rapid.IntRange(0, 1500).Draw(t, "ms")) * time.Millisecond)
		}
		w.run(settleDelay)   // until then one that resumed prunes nobody
		if len(w.left) > 0 { // they are not waited for any longer
			w.run(awayTime)
		}
		for range 20 { // at last a digest, once a minute, finds what is missed
			w.forget()
			w.run(2*time.Second + Overlap)
			if agreed(w) && !rerouted(w) {
				break
			}
		}
		requireAgreement(t, w)
	})
}

func requireAgreement(t require.TestingT, w *network) {
	for n, c := range w.cores {
		for m, other := range w.cores {
			if c.reached(rp(m)) {
				require.True(t, other.reached(rp(n)))
				same(t, c, other)
			}
		}
		for id, root := range c.roots {
			checkWay(t, w, n, id, root.incarnation)
		}
	}
}

// agreed reports whether those that reach each other have the same database, as far
// as the digests say.
func agreed(w *network) bool {
	for _, c := range w.cores {
		for m, other := range w.cores {
			if c.reached(rp(m)) && c.Sums(1) != other.Sums(1) {
				return false
			}
		}
	}
	return true
}

// rerouted reports whether routes changed since the last call of forget. Costs that
// follow slowly change trees late.
func rerouted(w *network) bool {
	for n := range w.cores {
		if len(took[Route](w, n)) > 0 {
			return true
		}
	}
	return false
}

// same compares what two RPs have of those that both reach.
func same(t require.TestingT, a, b *Core) {
	for id, e := range a.entries {
		if a.reached(id) {
			require.Equal(t, e.Signature, b.entries[id].Signature)
		}
	}
	require.Equal(t, slices.Sorted(maps.Keys(a.roots)), slices.Sorted(maps.Keys(b.roots)))
	for ingress := range a.roots {
		for of := range a.entries {
			p, _ := a.TreeParent(ingress, of)
			q, _ := b.TreeParent(ingress, of)
			require.Equal(t, p, q)
		}
	}
}

// checkWay follows the parents of an RP up to the ingress RP.
func checkWay(t require.TestingT, w *network, n int, ingress ID, incarnation ids.Incarnation) {
	for hops := 0; rp(n) != ingress; hops++ {
		require.Less(t, hops, 6, "loop")
		r := w.route(n, incarnation)
		require.NotZero(t, r.Parent, "rp %d", n)
		require.Empty(t, r.Previous)
		up := number(r.Parent)
		isChild := func(c Child) bool { return c.ID == rp(n) }
		require.True(t, slices.ContainsFunc(w.route(up, incarnation).Children, isChild), "%d is no child of %d", n, up)
		for m := range w.cores {
			if m != up && w.cores[m].reached(rp(n)) {
				require.False(t, slices.ContainsFunc(w.route(m, incarnation).Children, isChild), "%d is a child of %d too", n, m)
			}
		}
		n = up
	}
}

func TestChoose(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var all []Candidate
	for i := range 100 {
		all = append(all, Candidate{ID(i + 1), time.Duration(100-i) * time.Millisecond})
	}
	near, far := Wanted(FullMesh - 1)
	require.Len(t, Choose(all[:FullMesh-1], near, far, rng), FullMesh-1, "a small mesh is full")
	near, far = Wanted(FullMesh)
	require.Len(t, Choose(all[:FullMesh-1], near, far, rng), Near+Far, "also when not all answer")
	chosen := Choose(all, 3, 4, rng)
	require.Equal(t, []ID{100, 99, 98}, chosen[:3])
	for i, id := range chosen[3:] {
		rank := 100 - int(id) - 3 // of the 97 others, by round-trip time
		require.GreaterOrEqual(t, rank, i*97/4)
		require.Less(t, rank, (i+1)*97/4)
	}
	require.Len(t, Choose(all[:40], 38, 9, rng), 40)
	require.Empty(t, Choose(nil, 3, 4, rng))
}
