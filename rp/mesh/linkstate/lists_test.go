// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/stretchr/testify/require"
)

// unequalLists is a mesh of 1 to 4, where 1 publishes, and 5 joins, which 4 does not have on its
// list. With 5 the parent of 4 is 3, without 5 it is 2, and 3 would stand below 4.
//
//	1 --20 ms-- 2 --15 ms-- 4
//	|`--60 ms-- 3 --10 ms--'
//	 `--5 ms--- 5 --5 ms--- 3
func unequalLists(t *testing.T) (w *network, listed *bool) {
	w, listed = newNetwork(t), new(bool)
	for n := range 4 {
		w.start(n + 1)
	}
	w.cores[4].cfg.Allowed = func(node [32]byte) bool { return IDOf(node) != rp(5) || *listed }
	w.cores[1].SetPublishes(w.now, true)
	w.link(1, 2, 20*time.Millisecond)
	w.link(2, 4, 15*time.Millisecond)
	w.link(1, 3, 60*time.Millisecond)
	w.link(3, 4, 10*time.Millisecond)
	w.run(10 * time.Second)
	w.start(5)
	w.cores[5].SetPublishes(w.now, true)
	w.link(1, 5, 5*time.Millisecond)
	w.link(3, 5, 5*time.Millisecond)
	return w, listed
}

// served reports whether datagrams of RP 1 reach an RP, by upstreams that replicate them to it.
func (w *network) served(n int, seen ...int) bool {
	if n == 1 {
		return true
	}
	r := w.route(n, ingress1)
	for _, up := range append([]ID{r.Parent}, r.Previous...) {
		u := number(up)
		if u == 0 || w.cores[u] == nil || slices.Contains(seen, u) {
			continue
		}
		isChild := func(c Child) bool { return c.ID == rp(n) }
		if slices.ContainsFunc(w.route(u, ingress1).Children, isChild) && w.served(u, append(seen, n)...) {
			return true
		}
	}
	return false
}

// A new RP that one RP does not have on its list changes the trees of all. No RP loses a stream, for
// as long as the lists differ, and all have the same trees of the RPs that are on both lists.
func TestListsDiffer(t *testing.T) {
	w, listed := unequalLists(t)
	for range 3 * 60 * 10 {
		w.run(100 * time.Millisecond)
		for n := range w.cores {
			require.True(t, n == 5 || w.served(n), "rp %d after %v", n, w.now.Sub(t0))
		}
	}
	for of := 1; of <= 5; of++ {
		want, _ := w.cores[1].TreeParent(rp(1), rp(of))
		got, _ := w.cores[4].TreeParent(rp(1), rp(of))
		require.Equal(t, want, got)
	}
	require.Equal(t, rp(3), w.route(4, ingress1).Parent)
	require.NotContains(t, w.cores[4].roots, rp(5), "it is no ingress RP for 4")
	require.NotContains(t, w.cores[4].routes, incarnation(5, 1))

	*listed = true // nobody sends an advert because of that
	w.run(5 * time.Second)
	require.Contains(t, w.cores[4].roots, rp(5))
	require.Equal(t, rp(3), w.route(4, incarnation(5, 1)).Parent)
}

// An RP on the list that lies advertises links to many RPs that nobody has on a list. Few of these are
// kept, none has a tree, and they go with the links.
func TestManyUnlisted(t *testing.T) {
	w := square(t)
	c := w.cores[1]
	c.cfg.Allowed = func(node [32]byte) bool { return number(IDOf(node)) != 0 }
	roots, route := slices.Sorted(maps.Keys(c.roots)), w.route(1, ingress1)
	last := byte(0)
	for round := range uint64(4) {
		var links []Link
		var told []*Signed
		for len(links) < MaxLinks-8 {
			last++
			key, err := crypto.ToECDSA(append(bytes.Repeat([]byte{1}, 31), last))
			require.NoError(t, err)
			a := Advert{Origin: IDOf([32]byte(nodeOf(key))), Incarnation: 1, Epoch: 1, Sequence: 1, Publishes: true, Links: []Link{{rp(2), 1, true}}}
			for !Belongs(a.Origin, a.Incarnation) {
				a.Incarnation++
			}
			for ; a.Sequence <= 3; a.Sequence++ {
				s, err := Sign(a, key)
				require.NoError(t, err)
				told = append(told, s)
			}
			links = append(links, Link{a.Origin, 1, true})
		}
		slices.SortFunc(links, func(a, b Link) int { return cmp.Compare(a.Neighbour, b.Neighbour) })

		refused := c.Stats().NotAllowed
		require.NoError(t, c.Handle(w.now, rp(2), adverts(told...)))
		require.Equal(t, refused+uint64(len(told)), c.Stats().NotAllowed, "no RP on the list has links to them")
		require.NoError(t, c.Handle(w.now, rp(2), adverts(advertOf(t, 2, (round+1)<<40, 1, func(a *Advert) { a.Links = links }))))
		require.NoError(t, c.Handle(w.now, rp(2), adverts(told...)))
		w.perform(1)
		require.LessOrEqual(t, len(c.unlisted), MaxUnlisted)
		require.LessOrEqual(t, len(c.entries), 4+MaxUnlisted)
		w.run(100 * time.Millisecond)
	}
	require.NotEmpty(t, c.unlisted)
	require.NotZero(t, c.Stats().Limited, "all of them share a rate")
	w.run(10 * time.Second) // 2 outbids the adverts that another process signed with its key
	require.Equal(t, roots, slices.Sorted(maps.Keys(c.roots)))
	require.Equal(t, route, w.route(1, ingress1))
	require.Empty(t, c.unlisted, "the advert of the RP itself is newer, and has no such links")
	require.Len(t, c.entries, 4)
}

// What an RP has of an RP that is not on its list ends with the links to that, and comes back with
// them.
func TestUnlistedGoesAndReturns(t *testing.T) {
	w, _ := unequalLists(t)
	w.run(10 * time.Second)
	require.Contains(t, w.cores[4].entries, rp(5))
	w.kill(5)
	w.run(6 * time.Second) // nothing of 5 for 3.2 s, then adverts of 1 and 3
	require.NotContains(t, w.cores[4].entries, rp(5))
	require.Equal(t, rp(2), w.route(4, ingress1).Parent)
	w.start(5)
	w.run(10 * time.Second)
	require.Contains(t, w.cores[4].entries, rp(5))
	require.Equal(t, rp(3), w.route(4, ingress1).Parent)
}
