// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/mesh/tree"
)

// large is a mesh of which one core knows the adverts: a ring with chords, where all publish.
type large struct {
	t     *testing.T
	c     *Core
	now   time.Time
	costs map[[2]int]uint32
	gone  map[int]bool
}

const largeSize = 200

func (*large) id(i int) ID { return ID(i+1) << 40 }

func newLarge(t *testing.T) *large {
	m := &large{t: t, now: t0, costs: make(map[[2]int]uint32), gone: make(map[int]bool)}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range largeSize {
		for _, other := range []int{(i + 1) % largeSize, rng.IntN(largeSize), rng.IntN(largeSize)} {
			if other != i {
				m.costs[pair(i, other)] = uint32(20 + rng.IntN(2000))
			}
		}
	}
	cfg := config(1, 1)
	cfg.Self = m.id(0)
	m.c = New(m.now, cfg)
	m.c.Tick(m.now.Add(time.Second)) // its own first advert, without links
	m.now = m.now.Add(2 * time.Second)
	m.c.Tick(m.now)
	m.c.LinkUp(m.now, m.id(1))
	for i := range largeSize {
		m.tell(i, 10)
	}
	return m
}

// tell has the core know an advert of an RP, with a sequence.
func (m *large) tell(i int, sequence uint64) {
	a := Advert{Origin: m.id(i), Incarnation: ids.Incarnation(i + 1), Epoch: 1 << 20, Sequence: sequence, Publishes: true, Budget: 8}
	for ends, cost := range m.costs {
		for k, end := range ends {
			if other := ends[1-k]; end == i && !m.gone[i] && !m.gone[other] {
				a.Links = append(a.Links, Link{Neighbour: m.id(other), Cost: cost})
			}
		}
	}
	slices.SortFunc(a.Links, func(a, b Link) int { return compareLink(a, b.Neighbour) })
	m.c.now = m.now
	m.c.store(&Signed{Advert: a}, a.Version(), [32]byte{}, m.now)
}

// trees returns of how many RPs the core has the tree.
func (m *large) trees() (n int) {
	for i := range largeSize {
		if _, ok := m.c.TreeParent(m.id(i), m.id(i)); ok {
			n++
		}
	}
	return n
}

// tick lets the core do what is due next.
func (m *large) tick() {
	if at := m.c.Deadline(); at.After(m.now) {
		m.now = at
	}
	m.c.Tick(m.now)
	m.c.Actions()
}

// settle lets time pass until all that is known is in the trees, and compares each tree with the tree
// of a graph that was made at once.
func (m *large) settle() {
	for end := m.now.Add(20 * time.Second); m.now.Before(end); m.tick() {
	}
	g := tree.NewTopology()
	for i := range largeSize {
		g.SetBudget(g.Add(m.id(i)), 8)
	}
	for ends, cost := range m.costs {
		if !m.gone[ends[0]] && !m.gone[ends[1]] {
			g.SetCost(g.Slot(m.id(ends[0])), g.Slot(m.id(ends[1])), cost)
		}
	}
	g.Commit()
	for root := range largeSize {
		if m.gone[root] {
			continue
		}
		var want tree.Tree
		want.Build(g, tree.NewSPT(g, g.Slot(m.id(root))), m.c.cfg.Mode, m.c.cfg.Alpha)
		for i := range largeSize {
			parent := ID(0)
			if p := want.Parent[g.Slot(m.id(i))]; p != tree.None {
				parent = g.ID(int(p))
			}
			got, _ := m.c.TreeParent(m.id(root), m.id(i))
			require.Equal(m.t, parent, got, "parent of %d in the tree of %d", i, root)
		}
	}
}

// The trees of a large mesh are computed in parts, so that what comes meanwhile is heard between
// them. All parts together give the trees that one computation gives.
func TestTreesInParts(t *testing.T) {
	m := newLarge(t)
	parts, most := 0, 0
	for before := m.trees(); m.trees() < largeSize; {
		require.Less(t, parts, largeSize)
		m.tick()
		if trees := m.trees(); trees > before {
			parts, most, before = parts+1, max(most, trees-before), trees
		}
		// A neighbour that asks for a sign of life gets it.
		m.c.HeardHello(m.now, m.id(1), Hello{Stamp: 1, Interval: 1000, Poll: true})
		require.NotEmpty(t, m.c.Actions())
	}
	require.Greater(t, parts, 3)
	require.Less(t, most, largeSize/3)
	m.settle()
}

// What is learned between two parts is in the trees, too: other costs, links that end, an RP that goes
// and one that comes back.
func TestChangesBetweenParts(t *testing.T) {
	m := newLarge(t)
	m.gone[17] = true
	for _, i := range []int{16, 17, 18} {
		m.tell(i, 11)
	}
	for m.trees() == 0 {
		m.tick()
	}
	require.Less(t, m.trees(), largeSize-1, "some are still to come")
	for ends := range m.costs {
		if ends[0]%5 == 0 {
			m.costs[ends] += 700
		}
	}
	m.gone[17], m.gone[33] = false, true
	for i := range largeSize {
		m.tell(i, 12)
	}
	m.tick()
	m.c.forget(m.c.entries[m.id(33)])
	m.settle()
}
