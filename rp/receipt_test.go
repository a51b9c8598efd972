// SPDX-License-Identifier: LGPL-3.0-or-later

package rp_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/meshside"
)

//	0 --- 1 --- 2      peers: 0: the publisher and one, 1: none, 2: three, of which one does not confirm
//
// The publisher, and nobody else, gets the receipt of what asks for one.
func TestReceiptAlongChain(t *testing.T) {
	t.Parallel()
	points, _ := partialMesh(t, 3, [][2]int{{0, 1}, {1, 2}}, func(c *rp.Config) { c.Lease = time.Minute })
	publisher := newPeer(t, points[0], peerOptions{})
	others := []*lightPeer{
		newPeer(t, points[0], peerOptions{}), newPeer(t, points[2], peerOptions{}), newPeer(t, points[2], peerOptions{}),
		newPeer(t, points[2], peerOptions{secret: true}),
	}
	members(t, append(others, publisher)...)
	next := linkstate.IDOf(points[1].Self().ID())
	require.Eventually(t, func() bool {
		c := see(publisher, func(p *lightPeer) proto.Counters { return p.counters })
		// RP 1 counts for a member for a while, as no RP has had one yet.
		return c.Members == 6 && c.Here == 2 && len(c.RPs) == 1 && c.RPs[0] == proto.RPMembers{RP: uint64(next), Members: 4}
	}, patience, 10*time.Millisecond)
	require.Equal(t, uint64(4), neighbour(t, points[0].Status().Mesh, next).Members)

	publisher.publish("quiet")
	publisher.publishWith("asks", wire.FlagReceipt)
	for _, p := range others {
		require.Eventually(t, func() bool { return len(p.got()) == 2 }, patience, time.Millisecond)
		require.ElementsMatch(t, []string{"quiet", "asks"}, p.got())
	}
	want := proto.ObjectReceipt{
		Place:    proto.Place{Ingress: points[0].Incarnation(), Group: testGroup, Sequence: 2},
		ObjectID: 2, Members: 5, Sent: 4, Confirmed: 3,
	}
	newest := func() (o proto.ObjectReceipt) {
		return see(publisher, func(p *lightPeer) proto.ObjectReceipt {
			if len(p.receipts) > 0 {
				o = p.receipts[len(p.receipts)-1]
			}
			return o
		})
	}
	require.Eventually(t, func() bool { return newest() == want }, patience, 10*time.Millisecond, "receipt %+v", newest())

	// What the publisher, or a peer that was told nothing, says, counts for nothing.
	for _, p := range []*lightPeer{publisher, others[1]} {
		see(p, func(p *lightPeer) any {
			p.send(&proto.Confirm{Places: []proto.Place{want.Place, {Ingress: 1}}})
			return nil
		})
	}
	time.Sleep(time.Second) // two more reports, if anything was to be reported
	require.Equal(t, want, newest())
	for _, p := range others {
		require.Empty(t, see(p, func(p *lightPeer) []proto.ObjectReceipt { return p.receipts }))
	}
	for i, p := range points {
		st := p.Status()
		require.Equal(t, uint64(1), st.Mesh.Receipts, "rp %d", i)
		require.Zero(t, st.Peers.Violations+st.Mesh.Violations)
	}
}

// neighbour returns what the mesh tells of an RP.
func neighbour(t *testing.T, st meshside.Stats, id linkstate.ID) meshside.Neighbour {
	t.Helper()
	for _, n := range st.Neighbours {
		if n.RP == id {
			return n
		}
	}
	t.Fatalf("no neighbour %016x", id)
	return meshside.Neighbour{}
}
