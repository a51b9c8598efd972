// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// Populate returns a copy with Ethereum nodes, besides those that the file
// names, and with the peerings among all of them. ASes have nodes by their share
// and at least one if they have a share at all; classes by their share in the
// AS. The peerings are a connected random graph, in which all nodes have Degree
// peers; one node has one less if the numbers of nodes and of peers are odd.
func (t *Topology) Populate(p Population) (*Topology, error) {
	if p.Count < 0 || p.Degree < 0 {
		return nil, fmt.Errorf("topology %s: negative count or degree of nodes", t.Name)
	}
	counts, err := t.nodesPerAS(p.Count)
	if err != nil {
		return nil, fmt.Errorf("topology %s: %w", t.Name, err)
	}
	populated := *t
	populated.Nodes = p
	populated.Hosts = slices.Clone(t.Hosts)
	for i, a := range t.ASes {
		names := a.classes()
		shares := make([]float64, len(names))
		for i, name := range names {
			shares[i] = a.Classes[name]
		}
		n := 0
		add := func(class string) {
			n++
			populated.Hosts = append(populated.Hosts,
				t.host(fmt.Sprintf("%s-g%d", a.Name, n), Geth, a, class, fmt.Sprintf("a%d", n)))
		}
		if len(names) == 0 {
			for range counts[i] {
				add("")
			}
		}
		for k, number := range apportion(counts[i], shares, make([]int, len(names))) {
			for range number {
				add(names[k])
			}
		}
	}
	geths := populated.HostsOf(Geth)
	edges, err := randomGraph(len(geths), p.Degree, p.Seed)
	if err != nil {
		return nil, fmt.Errorf("topology %s: %w", t.Name, err)
	}
	populated.Peerings = nil
	for _, e := range edges {
		populated.Peerings = append(populated.Peerings, [2]string{geths[e[0]].Name, geths[e[1]].Name})
	}
	if err := populated.Validate(); err != nil {
		return nil, err
	}
	return &populated, nil
}

// maxNodes has three digits in an address.
const maxNodes = 999

// nodesPerAS distributes nodes to ASes.
func (t *Topology) nodesPerAS(count int) ([]int, error) {
	var (
		shares = make([]float64, len(t.ASes))
		least  = make([]int, len(t.ASes))
		sum    int
	)
	if count == 0 {
		return least, nil
	}
	for i, a := range t.ASes {
		shares[i] = a.Share
		if a.Share > 0 {
			least[i] = 1
			sum++
		}
	}
	switch {
	case sum == 0:
		return nil, fmt.Errorf("no AS has a share of the %d nodes", count)
	case count < sum:
		return nil, fmt.Errorf("%d nodes are not enough for one in each of the %d ASes that have a share", count, sum)
	}
	counts := apportion(count, shares, least)
	for i, n := range counts {
		if n > maxNodes {
			return nil, fmt.Errorf("%d of %d nodes are in AS %s, at most %d fit", n, count, t.ASes[i].Name, maxNodes)
		}
	}
	return counts, nil
}

// apportion distributes a number by shares, of which only the proportion
// matters, by largest remainders; of equal ones, the first. No place gets less
// than its least number, whose sum is at most the total.
func apportion(total int, shares []float64, least []int) []int {
	var sum float64
	for _, s := range shares {
		sum += s
	}
	counts := slices.Clone(least)
	left := total
	for i, n := range least {
		if sum > 0 {
			counts[i] = max(n, int(shares[i]/sum*float64(total)))
		}
		left -= counts[i]
	}
	remainder := func(i int) float64 { return shares[i]/sum*float64(total) - float64(counts[i]) }
	for ; left != 0 && sum > 0; left -= sign(left) {
		chosen := -1
		for i := range counts {
			switch {
			case shares[i] == 0 || left < 0 && counts[i] == least[i]:
			case chosen < 0, left > 0 && remainder(i) > remainder(chosen), left < 0 && remainder(i) < remainder(chosen):
				chosen = i
			}
		}
		counts[chosen] += sign(left)
	}
	return counts
}

func sign(n int) int {
	if n < 0 {
		return -1
	}
	return 1
}

// randomGraph draws a connected graph of n nodes with degree edges each, or with
// all edges if degree is 0 or too large. It begins with a ring in which the
// neighbours up to some distance are joined, in random order, and exchanges the
// ends of random pairs of edges, which leaves the degrees as they are.
func randomGraph(n, degree int, seed uint64) ([][2]int, error) {
	if degree == 0 || degree >= n {
		degree = n - 1
	}
	if degree == 1 && n > 2 {
		return nil, fmt.Errorf("%d nodes with one peer each are not connected", n)
	}
	var (
		random = rand.New(rand.NewPCG(seed, 0))
		order  = random.Perm(n)
		g      = graph{joined: make(map[[2]int]bool)}
	)
	for distance := 1; distance <= degree/2; distance++ {
		for i := range n {
			g.join(order[i], order[(i+distance)%n])
		}
	}
	if degree%2 == 1 {
		for i := range n / 2 {
			g.join(order[i], order[i+n/2])
		}
	}
	// A ring is random already, and a full mesh has nothing to exchange.
	for degree > 2 && degree < n-1 {
		for range 10 * len(g.edges) {
			g.exchange(random)
		}
		if g.connected(n) {
			break
		}
	}
	for i, e := range g.edges {
		g.edges[i] = [2]int{min(e[0], e[1]), max(e[0], e[1])}
	}
	slices.SortFunc(g.edges, func(a, b [2]int) int { return slices.Compare(a[:], b[:]) })
	return g.edges, nil
}

// graph is an undirected one.
type graph struct {
	edges  [][2]int
	joined map[[2]int]bool // in both directions
}

func (g *graph) join(a, b int) {
	g.edges = append(g.edges, [2]int{a, b})
	g.set(a, b, true)
}

func (g *graph) set(a, b int, joined bool) {
	g.joined[[2]int{a, b}] = joined
	g.joined[[2]int{b, a}] = joined
}

// exchange draws two edges a-b and c-d, and makes them a-d and c-b if that is
// possible.
func (g *graph) exchange(random *rand.Rand) {
	i, k := random.IntN(len(g.edges)), random.IntN(len(g.edges))
	a, b := g.edges[i][0], g.edges[i][1]
	c, d := g.edges[k][0], g.edges[k][1]
	if random.IntN(2) == 0 {
		c, d = d, c
	}
	if a == c || a == d || b == c || b == d || g.joined[[2]int{a, d}] || g.joined[[2]int{c, b}] {
		return
	}
	g.set(a, b, false)
	g.set(c, d, false)
	g.set(a, d, true)
	g.set(c, b, true)
	g.edges[i], g.edges[k] = [2]int{a, d}, [2]int{c, b}
}

func (g *graph) connected(n int) bool {
	neighbours := make([][]int, n)
	for _, e := range g.edges {
		neighbours[e[0]] = append(neighbours[e[0]], e[1])
		neighbours[e[1]] = append(neighbours[e[1]], e[0])
	}
	reached := make([]bool, n)
	todo := []int{0}
	count := 0
	for len(todo) > 0 {
		here := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if reached[here] {
			continue
		}
		reached[here] = true
		count++
		todo = append(todo, neighbours[here]...)
	}
	return count == n
}
