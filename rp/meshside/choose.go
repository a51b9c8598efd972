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
		nodes, all, changed := s.dialable()
		var look <-chan time.Time
		if all < linkstate.FullMesh {
			chosen, tried = nil, nil
			s.cfg.Connect(nodes, true)
		} else {
			chosen = slices.DeleteFunc(chosen, func(n *enode.Node) bool { return !slices.Contains(nodes, n) })
			chosen, tried = s.chooseMore(ctx, nodes, chosen, tried)
			s.cfg.Connect(slices.Clone(chosen), false)
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
	near, far := linkstate.Wanted(len(nodes))
	if len(tried) > 0 {
		near, far = 0, max(near+far-len(chosen), 0)
	}
	if near+far == 0 {
		return chosen, tried
	}
	left := slices.DeleteFunc(nodes, func(n *enode.Node) bool { return slices.Contains(tried, n) })
	var rtts map[enode.ID]time.Duration
	if s.cfg.Measure != nil {
		var some []*enode.Node
		if len(tried) == 0 {
			// Measuring takes some round trips. Meanwhile any neighbours will do; those of
			// them that are met stay.
			some = random(left, far)
			s.cfg.Connect(slices.Clone(some), false)
		}
		bounded, cancel := context.WithTimeout(ctx, measureTimeout)
		rtts = s.cfg.Measure(bounded, left)
		cancel()
		some = slices.DeleteFunc(some, func(n *enode.Node) bool { return !s.Connected(n.ID()) })
		left = slices.DeleteFunc(left, func(n *enode.Node) bool { return slices.Contains(some, n) })
		chosen, tried, far = append(chosen, some...), append(tried, some...), far-len(some)
	}
	more := pick(left, rtts, near, far)
	chosen, tried = append(chosen, more...), append(tried, more...)
	if len(more) < near+far { // all were tried: from the beginning
		tried = slices.Clone(chosen)
	}
	return chosen, tried
}

func random(nodes []*enode.Node, n int) (chosen []*enode.Node) {
	for _, i := range randv2.Perm(len(nodes))[:min(n, len(nodes))] { // nothing rests on it
		chosen = append(chosen, nodes[i])
	}
	return chosen
}

// pick chooses among nodes by the round-trip times to those that answered, or at random
// when there are none.
func pick(nodes []*enode.Node, rtts map[enode.ID]time.Duration, near, far int) (chosen []*enode.Node) {
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
