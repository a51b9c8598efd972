// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"context"
	randv2 "math/rand/v2"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
)

const (
	measureTimeout = 30 * time.Second
	chooseInterval = time.Minute // between looks at whether those chosen took the connection
)

// choose has connections made: to all of a small mesh, else to some, see
// linkstate.Choose. Those that are chosen and do not connect are replaced: they may have
// as many neighbours as they take, or are gone.
func (s *Server) choose() {
	if len(s.cfg.Neighbours) < linkstate.FullMesh {
		s.cfg.Connect(s.cfg.Neighbours)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.wg.Go(func() {
		select {
		case <-s.quit:
			cancel()
		case <-ctx.Done():
		}
	})
	var chosen []*enode.Node
	near, far := linkstate.Near, linkstate.Far
	left := slices.Clone(s.cfg.Neighbours)
	for ctx.Err() == nil {
		if near+far > 0 {
			more := s.pick(ctx, left, near, far)
			left = slices.DeleteFunc(left, func(n *enode.Node) bool { return slices.Contains(more, n) })
			chosen = append(chosen, more...)
			s.cfg.Connect(slices.Clone(chosen))
		}
		select {
		case <-time.After(chooseInterval):
		case <-ctx.Done():
		}
		before := len(chosen)
		chosen = slices.DeleteFunc(chosen, func(n *enode.Node) bool { return !s.Connected(n.ID()) })
		near, far = 0, before-len(chosen)
		if len(left) == 0 { // all were tried: from the beginning
			left = slices.DeleteFunc(slices.Clone(s.cfg.Neighbours), func(n *enode.Node) bool { return slices.Contains(chosen, n) })
		}
	}
}

// pick chooses among nodes.
func (s *Server) pick(ctx context.Context, nodes []*enode.Node, near, far int) (chosen []*enode.Node) {
	var rtts map[enode.ID]time.Duration
	if s.cfg.Measure != nil {
		bounded, cancel := context.WithTimeout(ctx, measureTimeout)
		rtts = s.cfg.Measure(bounded, nodes)
		cancel()
	}
	rng := randv2.New(randv2.NewPCG(randv2.Uint64(), randv2.Uint64())) // nothing rests on it
	byID := make(map[linkstate.ID]*enode.Node)
	var candidates []linkstate.Candidate
	for _, n := range nodes {
		rtt, measured := rtts[n.ID()]
		if !measured && len(rtts) > 0 {
			continue // it did not answer
		}
		if !measured {
			rtt = time.Duration(rng.Int64())
		}
		id := linkstate.IDOf(n.ID())
		byID[id] = n
		candidates = append(candidates, linkstate.Candidate{ID: id, RTT: rtt})
	}
	if len(candidates) < linkstate.FullMesh && near == 0 {
		// Choose takes all of few: these replace some that did not connect.
		rng.Shuffle(len(candidates), func(i, j int) { candidates[i], candidates[j] = candidates[j], candidates[i] })
		candidates = candidates[:min(far, len(candidates))]
	}
	for _, id := range linkstate.Choose(candidates, near, far, rng) {
		chosen = append(chosen, byID[id])
	}
	return chosen
}
