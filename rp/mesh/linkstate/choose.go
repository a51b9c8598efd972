// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"
)

// Numbers of neighbours that an RP chooses. Others choose it, too: it has about
// twice as many links.
const (
	FullMesh = 32 // RPs in all, up to which everybody is a neighbour
	Near     = 4
	Far      = 4
	MaxPeers = 32 // connections; an RP that has them takes no more: one near to many would be the hub of all trees
)

// Candidate is an RP that could be a neighbour.
type Candidate struct {
	ID  ID
	RTT time.Duration
}

// Wanted returns how many near and far neighbours an RP chooses that may have some number:
// all of a small mesh. What counts is who may be one, not who answers: else the first RPs
// of a large mesh would be neighbours of all others.
func Wanted(others int) (near, far int) {
	if others < FullMesh {
		return others, 0
	}
	return Near, Far
}

// Choose returns to whom an RP connects, given those that take connections: the nearest,
// which keep trees light, and a random one of each of far classes of round-trip time,
// which keep the mesh connected and its ways short.
func Choose(candidates []Candidate, near, far int, rng *rand.Rand) []ID {
	sorted := slices.Clone(candidates)
	slices.SortFunc(sorted, func(a, b Candidate) int { return cmp.Or(cmp.Compare(a.RTT, b.RTT), cmp.Compare(a.ID, b.ID)) })
	near = min(near, len(sorted))
	var chosen []ID
	for _, c := range sorted[:near] {
		chosen = append(chosen, c.ID)
	}
	rest := sorted[near:]
	far = min(far, len(rest))
	for i := range far {
		from, to := i*len(rest)/far, (i+1)*len(rest)/far
		chosen = append(chosen, rest[from+rng.IntN(to-from)].ID)
	}
	return chosen
}
