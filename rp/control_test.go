// SPDX-License-Identifier: LGPL-3.0-or-later

package rp_test

import (
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/mesh"
)

// Whoever breaks the protocol gets a Leave with the reason and is disconnected;
// nobody else notices.
func TestViolations(t *testing.T) {
	t.Parallel()
	point := single(t)
	witness := newPeer(t, point, peerOptions{})
	members(t, witness)

	// To the state that a violation needs.
	idle := func(r *rawPeer) { r.send(goodStatus()) }
	probing := func(r *rawPeer) { idle(r); r.send(goodJoin(9)) }
	for _, c := range []struct {
		name  string
		state func(*rawPeer)
		do    func(*rawPeer)
		want  proto.Reason
	}{
		{"garbage", nil, func(r *rawPeer) { r.sendRaw(proto.StatusMsg, []byte{0xff, 0xff}) }, proto.ReasonMalformed},
		{"empty", idle, func(r *rawPeer) { r.sendRaw(proto.JoinMsg, nil) }, proto.ReasonMalformed},
		{"unknown code", idle, func(r *rawPeer) { r.sendRaw(proto.Length-1, []byte{0xc0}) }, proto.ReasonMalformed},
		{"too long", idle, func(r *rawPeer) { r.sendRaw(proto.AnnounceMsg, make([]byte, proto.MaxMessage+1)) }, proto.ReasonMalformed},
		{"join with too many groups", idle, func(r *rawPeer) {
			m := goodJoin(9)
			m.Groups = make([]ids.Group, proto.MaxGroups+1)
			r.send(m)
		}, proto.ReasonMalformed},
		{"join to port 0", idle, func(r *rawPeer) { r.send(goodJoin(0)) }, proto.ReasonMalformed},
		{"join before status", nil, func(r *rawPeer) { r.send(goodJoin(9)) }, proto.ReasonUnexpected},
		{"second status", idle, func(r *rawPeer) { r.send(goodStatus()) }, proto.ReasonUnexpected},
		{"second join", probing, func(r *rawPeer) { r.send(goodJoin(9)) }, proto.ReasonUnexpected},
		{"ProbeAck with another nonce", probing, func(r *rawPeer) { r.send(&proto.ProbeAck{Size: wire.MaxDatagram}) }, proto.ReasonUnexpected},
		{"welcome from a peer", idle, func(r *rawPeer) {
			r.send(&proto.Welcome{Session: 1, Lease: 10, Rate: 1, Burst: 1})
		}, proto.ReasonUnexpected},
		{"have from a peer", idle, func(r *rawPeer) { r.send(&proto.Have{}) }, proto.ReasonUnexpected},
		{"status of an rp", nil, func(r *rawPeer) {
			m := goodStatus()
			m.Role, m.Incarnation, m.DataPort = proto.RoleRP, 1, 1
			r.send(m)
		}, proto.ReasonRole},
		{"other genesis", nil, func(r *rawPeer) {
			m := goodStatus()
			m.Genesis[0]++
			r.send(m)
		}, proto.ReasonChain},
		{"other network", nil, func(r *rawPeer) {
			m := goodStatus()
			m.NetworkID++
			r.send(m)
		}, proto.ReasonChain},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := point.Status().Peers.Violations
			r := connect(t, point)
			status := expect[*proto.Status](r)
			require.Equal(t, proto.RoleRP, status.Role)
			require.Equal(t, point.Incarnation(), status.Incarnation)
			require.Equal(t, point.Addr().Port(), status.DataPort)
			if c.state != nil {
				c.state(r)
			}
			c.do(r)
			require.Equal(t, c.want, expect[*proto.Leave](r).Reason)
			r.closed()
			require.Equal(t, before+1, point.Status().Peers.Violations)
			require.NoError(t, point.BanAddr(loopback.Addr(), 0)) // all nodes of this test have the address
		})
	}
	require.Eventually(t, func() bool { return point.Status().Sessions == 1 }, patience, 5*time.Millisecond)
	require.Empty(t, see(witness, func(p *lightPeer) []error { return p.left }))
	require.True(t, witness.isMember())
}

// What is no violation leaves the connection open: a peer may leave and join again.
func TestLeaveAndJoinAgain(t *testing.T) {
	t.Parallel()
	point := single(t)
	r := connect(t, point)
	expect[*proto.Status](r)
	r.send(goodStatus())
	for range 3 {
		r.send(goodJoin(9))
		require.Eventually(t, func() bool { return point.Status().Sessions == 1 }, patience, time.Millisecond)
		r.send(&proto.Leave{Reason: proto.ReasonQuit})
		require.Eventually(t, func() bool { return point.Status().Sessions == 0 }, patience, time.Millisecond)
	}
	require.Zero(t, point.Status().Peers.Violations)
}

// A Join that cannot be served is refused, and the next one may be better.
func TestJoinRefused(t *testing.T) {
	t.Parallel()
	point := single(t)
	r := connect(t, point)
	expect[*proto.Status](r)
	r.send(goodStatus())
	for _, c := range []struct {
		edit func(*proto.Join)
		want proto.Reason
	}{
		{func(m *proto.Join) { m.Groups = []ids.Group{1} }, proto.ReasonGroup},
		{func(m *proto.Join) { m.Mode = 7 }, proto.ReasonMode},
	} {
		m := goodJoin(9)
		c.edit(m)
		r.send(m)
		require.Equal(t, c.want, expect[*proto.Leave](r).Reason)
	}
	r.send(goodJoin(9))
	require.Eventually(t, func() bool { return point.Status().Sessions == 1 }, patience, time.Millisecond)
	require.Zero(t, point.Status().Peers.Violations)
}

// A node that is not configured cannot link as an RP.
func TestStrangerIsNoNeighbour(t *testing.T) {
	t.Parallel()
	point := single(t)
	key, err := crypto.GenerateKey()
	require.NoError(t, err)
	ended := make(chan error, 10)
	caps := []p2p.Protocol{
		{Name: proto.Name, Version: proto.Version, Length: proto.Length, Run: func(_ *p2p.Peer, rw p2p.MsgReadWriter) error {
			_, err := rw.ReadMsg() // nothing is said here between RPs
			return err
		}},
		{Name: mesh.Name, Version: mesh.Version, Length: mesh.Length, Run: func(_ *p2p.Peer, rw p2p.MsgReadWriter) error {
			_, err := rw.ReadMsg()
			ended <- err
			return err
		}},
	}
	server := &p2p.Server{Config: p2p.Config{
		PrivateKey: key, MaxPeers: 10, DialRatio: 1, NoDiscovery: true, StaticNodes: []*enode.Node{point.Self()}, Protocols: caps,
	}}
	require.NoError(t, server.Start())
	t.Cleanup(server.Stop)
	select {
	case err := <-ended:
		require.Error(t, err, "a message where the end was expected")
	case <-time.After(patience):
		t.Fatal("the link stays open")
	}
	require.Empty(t, point.Status().Mesh.Neighbours)
	require.NoError(t, point.Ready())
}
