// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/rp/front/fronttest"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
)

// refused returns why an RP ends the connection of a node at once.
func refused(p *point, node *enode.Node) error {
	x, y := p2p.MsgPipe()
	defer x.Close()
	defer y.Close()
	return p.Protocol().Run(&fronttest.Conn{Node: node.ID(), RW: x})
}

//	1 --- 2 --- 3
//
// 2 is removed from the allow-list of 1, and 1 from that of 2. When they are back soon,
// all goes on: no key was retired.
func TestSetNeighbours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p := n.chain(3)
		one, two := p[0], p[1]
		one.join()
		two.join()
		ready, ended := p[2].Admit(true)
		<-ready
		n.settle()
		require.True(t, one.has(firstKey(p[2].incarnation)))
		for _, o := range p {
			o.installer.take()
		}

		rest := []*enode.Node{nodeOf(t, 3), nodeOf(t, 4), nodeOf(t, 5)}
		ipv4 := enode.NewV4(nodeOf(t, 6).Pubkey(), []byte{192, 0, 2, 1}, 30500, 0)
		one.SetNeighbours(append(rest, one.node, ipv4, rest[0]))
		two.SetNeighbours(rest)
		synctest.Wait()
		require.Equal(t, rest, one.Neighbours())
		require.Len(t, one.Stats().Neighbours, len(rest))
		require.False(t, one.Connected(two.node.ID()))
		require.False(t, two.Connected(one.node.ID()))
		require.True(t, two.Connected(p[2].node.ID()))
		require.Equal(t, p2p.DiscUselessPeer, refused(one, two.node))
		time.Sleep(10 * time.Second)

		one.SetNeighbours(append(rest, two.node))
		two.SetNeighbours(append(rest, one.node))
		n.link(one, two)
		n.settle()
		require.Equal(t, map[byte]int{1: 1, 2: 1}, n.reach(p[2]))
		time.Sleep(2 * RetireAfter)
		synctest.Wait()
		require.Equal(t, map[byte]int{1: 1, 2: 1}, n.reach(p[2]))
		for _, o := range p {
			for _, install := range o.installer.take() {
				require.Empty(t, install.retired)
			}
		}
		ended()
	})
}

// A neighbour that has another address links anew, and what is known of it stays.
func TestNeighbourMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p := n.chain(2)
		renewed := enode.NewV4(p[1].node.Pubkey(), p[1].node.IP(), p[1].node.TCP(), 7)
		p[0].SetNeighbours([]*enode.Node{renewed})
		require.True(t, p[0].Connected(renewed.ID()), "the endpoint is the same")
		require.Equal(t, []*enode.Node{p[1].node}, p[0].Neighbours())

		moved := enode.NewV4(p[1].node.Pubkey(), nodeOf(t, 9).IP(), 30500, 0)
		p[0].SetNeighbours([]*enode.Node{moved})
		synctest.Wait()
		require.False(t, p[0].Connected(moved.ID()))
		st := p[0].Stats().Neighbours
		require.Len(t, st, 1)
		require.Equal(t, moved.IPAddr(), st[0].Addr)
		require.Equal(t, p[1].incarnation, st[0].Incarnation)
	})
}

// An RP that is not on the list is a place in the trees of others. It has a tree as soon as it is on
// the list, without a word of it.
func TestAddedRPIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		only := func(nodes ...*enode.Node) func(*Config) { return func(c *Config) { c.Neighbours = nodes } }
		one := n.start(1, incarnationOf(1, 0), only(nodeOf(t, 2)))
		two := n.start(2, incarnationOf(2, 0), only(nodeOf(t, 1), nodeOf(t, 3)))
		three := n.start(3, incarnationOf(3, 0), only(nodeOf(t, 2)))
		n.link(one, two)
		n.link(two, three)
		three.Admit(true)
		n.settle()
		hasTree := func(s *Server) bool {
			_, ok := s.Tree(three.self)
			return ok
		}
		require.Len(t, one.Stats().Database, 3)
		require.True(t, hasTree(two.Server))
		require.False(t, hasTree(one.Server))
		require.Empty(t, one.Stats().Routes)
		published := three.Stats().Core.Published
		one.SetNeighbours([]*enode.Node{two.node, three.node})
		time.Sleep(3 * time.Second)
		synctest.Wait()
		require.True(t, hasTree(one.Server))
		require.Equal(t, published, three.Stats().Core.Published)
	})
}

// An RP without neighbours lets peers in at once, but not when it looks for some: it
// gives them the time that the mesh has.
func TestAdmitWhileSearching(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		alone := n.start(1, incarnationOf(1, 0), func(c *Config) { c.Neighbours = nil })
		ready, _ := alone.Admit(true)
		synctest.Wait()
		require.True(t, closed(ready))

		searching := n.start(2, incarnationOf(2, 0), func(c *Config) { c.Neighbours, c.Finds = nil, true })
		other := n.start(3, incarnationOf(3, 0), func(c *Config) { c.Neighbours = []*enode.Node{nodeOf(t, 2)} })
		ready, _ = searching.Admit(true)
		synctest.Wait()
		require.False(t, closed(ready))
		searching.SetNeighbours([]*enode.Node{other.node})
		n.link(searching, other)
		<-ready
		require.Equal(t, map[byte]int{3: 1}, n.reach(searching))
		require.True(t, other.has(firstKey(searching.incarnation)))
	})
}

// The choice of neighbours follows the allow-list, as the mesh grows and shrinks.
func TestChooseFollowsAllowList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		connects := make(chan []*enode.Node, 10)
		p := n.start(1, incarnationOf(1, 0), func(c *Config) {
			c.Neighbours = nil
			c.Connect = func(nodes []*enode.Node, _ bool) { connects <- nodes }
		})
		next := func() []*enode.Node {
			synctest.Wait()
			require.Len(t, connects, 1)
			return <-connects
		}
		require.Empty(t, next())
		var all []*enode.Node
		for name := range byte(linkstate.FullMesh + 1) {
			all = append(all, nodeOf(t, name+2))
		}
		small := all[:linkstate.FullMesh-1]
		p.SetNeighbours(small)
		require.Equal(t, small, next())
		p.SetNeighbours(small)
		synctest.Wait()
		require.Empty(t, connects, "nothing changed")

		p.SetNeighbours(all)
		chosen := next()
		require.Len(t, chosen, linkstate.Near+linkstate.Far)
		var rest []*enode.Node
		for _, o := range all {
			if o != chosen[0] {
				rest = append(rest, o)
			}
		}
		p.SetNeighbours(rest)
		fewer := next()
		require.Len(t, fewer, linkstate.Near+linkstate.Far)
		require.Subset(t, fewer, chosen[1:])
		require.NotContains(t, fewer, chosen[0])

		p.SetNeighbours(small[:2])
		require.Equal(t, small[:2], next())
		p.Stop()
	})
}
