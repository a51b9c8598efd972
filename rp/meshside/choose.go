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
// as many neighbours as they take, or are gone. So are those that leave the allow-list.
func (s *Server) choose() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.wg.Go(func() {
		select {
		case <-s.quit:
			cancel()
		case <-ctx.Done():
		}
	})
	var chosen, tried []*enode.Node
	for {
		nodes, changed := s.allowed()
		var look <-chan time.Time
		if len(nodes) < linkstate.FullMesh {
			chosen, tried = nil, nil
			s.cfg.Connect(nodes)
		} else {
			chosen = slices.DeleteFunc(chosen, func(n *enode.Node) bool { return !slices.Contains(nodes, n) })
			chosen, tried = s.chooseMore(ctx, nodes, chosen, tried)
			s.cfg.Connect(slices.Clone(chosen))
			look = time.After(chooseInterval)
		}
		select {
		case <-look:
			chosen = slices.DeleteFunc(chosen, func(n *enode.Node) bool { return !s.Connected(n.ID()) })
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// chooseMore adds what is missing to those that are chosen, of nodes that were not tried
// yet.
func (s *Server) chooseMore(ctx context.Context, nodes, chosen, tried []*enode.Node) (chosenNow, triedNow []*enode.Node) {
	near, far := linkstate.Near, linkstate.Far
	if len(tried) > 0 {
		near, far = 0, max(near+far-len(chosen), 0)
	}
	if near+far == 0 {
		return chosen, tried
	}
	left := slices.DeleteFunc(nodes, func(n *enode.Node) bool { return slices.Contains(tried, n) })
	more := s.pick(ctx, left, near, far)
	chosen, tried = append(chosen, more...), append(tried, more...)
	if len(more) < near+far { // all were tried: from the beginning
		tried = slices.Clone(chosen)
	}
	return chosen, tried
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
	for _, id := range linkstate.Choose(candidates, near, far, rng) {
		chosen = append(chosen, byID[id])
	}
	return chosen
}
