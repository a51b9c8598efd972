// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/rp/mesh"
)

func ids(nodes []*enode.Node) []enode.ID {
	ids := []enode.ID{}
	for _, n := range nodes {
		ids = append(ids, n.ID())
	}
	return ids
}

// A neighbour may be added and removed while others are linked. One that is removed and
// comes back soon goes on as itself: its incarnation is not retired.
func TestSetNeighbours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.Stop()
		one, two, three := r.neighbours[0], r.neighbours[1], newNode(t, 3)
		ipv4 := enode.NewV4(newNode(t, 4).Pubkey(), []byte{192, 0, 2, 1}, 30500, 0)

		stranger := r.connect(three)
		<-stranger.done
		require.Equal(t, p2p.DiscUselessPeer, stranger.err)

		removed, added := r.SetNeighbours([]*enode.Node{one, three, ipv4})
		require.Equal(t, ids([]*enode.Node{two}), ids(removed))
		require.Equal(t, ids([]*enode.Node{three}), ids(added))
		require.Len(t, r.Stats().Neighbours, 2)
		late := r.connect(two)
		<-late.done
		require.Equal(t, p2p.DiscUselessPeer, late.err)

		c := r.connect(three)
		c.open(0x0b)
		removed, added = r.SetNeighbours([]*enode.Node{three, one})
		require.Empty(t, removed)
		require.Empty(t, added)

		// Removed, it is a neighbour until the connection has ended.
		removed, added = r.SetNeighbours([]*enode.Node{one})
		require.Equal(t, ids([]*enode.Node{three}), ids(removed))
		require.Empty(t, added)
		require.Len(t, r.Stats().Neighbours, 2)
		c.close()
		synctest.Wait()
		require.Len(t, r.Stats().Neighbours, 1)

		// It moved: it leaves and comes back by the new address.
		moved := enode.NewV4(three.Pubkey(), newNode(t, 5).IP(), 30500, 0)
		_, added = r.SetNeighbours([]*enode.Node{one, moved})
		require.Equal(t, ids([]*enode.Node{moved}), ids(added))
		c = r.connect(moved)
		c.open(0x0b)
		r.installer.take()
		removed, added = r.SetNeighbours([]*enode.Node{one, three})
		require.Equal(t, moved.IPAddr(), removed[0].IPAddr())
		require.Equal(t, three.IPAddr(), added[0].IPAddr())
		c.close()
		synctest.Wait()

		c = r.connect(three)
		_, keys := c.open(0x0b)
		c.send(&mesh.KeysAck{ID: keys.ID})
		time.Sleep(2 * RetireAfter)
		synctest.Wait()
		for _, install := range r.installer.take() {
			require.Empty(t, install.retired)
		}
		c.close()
	})
}
