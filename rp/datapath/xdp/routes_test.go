// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"io"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// testIngress is the incarnation of another RP.
const testIngress = 0x0b0b0b0b

// asRPs makes the sessions from one on those of RP neighbours.
func asRPs(sessions []datapath.Session) []datapath.Session {
	for i := range sessions {
		sessions[i].Role, sessions[i].Groups = datapath.Mesh, nil
	}
	return sessions
}

// route returns a route of an ingress RP.
func route(ingress ids.Incarnation, from, to []datapath.Session) datapath.Route {
	r := datapath.Route{Ingress: ingress}
	for _, s := range from {
		r.From = append(r.From, s.Index)
	}
	for _, s := range to {
		r.To = append(r.To, datapath.Branch{Session: s.Index, Groups: []ids.Group{testGroup}})
	}
	return r
}

// relay sends the next datagram of the other RP, by each of some RPs.
func (c *crowd) relay(by []datapath.Session) {
	c.sent++
	c.relayAgain(by)
}

// checked is how many datagrams have a verdict.
func (c *crowd) checked() (n uint64) {
	for _, verdict := range c.Stats().Verdicts {
		n += verdict
	}
	return n
}

// relayAgain sends the datagram that relay sent last once more.
func (c *crowd) relayAgain(by []datapath.Session) {
	for _, s := range by {
		h := wire.Header{
			Type: wire.Data, HopLimit: 7, Session: s.Index, Group: testGroup, Ingress: testIngress, Sequence: c.sent,
			K: 1, N: 1, PayloadLen: 100, ObjectLen: 100, ObjectID: c.sent,
		}
		b := append(h.Append(nil), make([]byte, 100)...)
		wire.SetPayloadTag(b, new(auth.Key).PayloadTag(b))
		wire.SetHopTag(b, s.ReceiveKey.HopTag(b))
		_, err := c.node(s.Addr).conn.WriteToUDPAddrPort(b, c.Addr())
		require.NoError(c.lab.t, err)
	}
}

// bothKeys are those of both RPs.
func bothKeys() []proto.GroupKey {
	return []proto.GroupKey{{Ingress: testOwn, Group: testGroup}, {Ingress: testIngress, Group: testGroup}}
}

// Whoever stays gets every datagram once, while the upstreams change, of which two are
// accepted from at a time, branches come and go, and peers join and leave.
func TestXDPRoutesUnderTraffic(t *testing.T) {
	const peers, branches, upstreams, datagrams = 30, 20, 4, 1000
	l := newLab(t, 1)
	c := &crowd{
		subject:  newSubjectAt(l, datapath.Config{Incarnation: testOwn}, Options{}),
		sessions: crowdSessions(l, peers+branches+upstreams, func(int) int { return 0 }),
	}
	mesh := asRPs(c.sessions[peers:])
	to, from := mesh[:branches], mesh[branches:]
	stay := slices.Concat(c.sessions[:peers/2], to[:branches/2])
	require.NoError(t, c.Apply(datapath.Change{
		Keys:   bothKeys(),
		Add:    c.sessions,
		Routes: []datapath.Route{route(testIngress, from[:2], to)},
	}))
	y, stop, done := c.tally(), make(chan struct{}), make(chan error, 1)
	var begun, ended atomic.Int64 // changes of the upstreams
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			var change datapath.Change
			switch i % 3 {
			case 0: // one of the two stays
				pair := []datapath.Session{from[i/3%upstreams], from[(i/3+1)%upstreams]}
				some := slices.Concat(to[:branches/2], to[branches/2+i%5:branches-i%4])
				change.Routes = []datapath.Route{route(testIngress, pair, some), route(testOwn, nil, to[:i%branches])}
			case 1:
				change.Remove = []ids.Session{c.sessions[peers-1-i%7].Index, to[branches-1-i%7].Index}
			case 2:
				change.Add = []datapath.Session{c.sessions[peers-1-(i-1)%7], to[branches-1-(i-1)%7]}
			}
			begun.Add(int64(len(change.Routes) / 2))
			if err := c.Engine.Apply(change); err != nil {
				done <- err
				return
			}
			ended.Add(int64(len(change.Routes) / 2))
		}
	}()
	// A datagram comes by one upstream after the other. It has to pass when the upstreams change at most
	// once meanwhile, for one of them is accepted from all the time then. Else it comes once more.
	taken, again := uint64(0), 0
	relay := func(send func([]datapath.Session)) (changes int64) {
		before := ended.Load()
		send(from)
		taken += upstreams
		for deadline := time.Now().Add(10 * time.Second); c.checked() < taken; {
			require.True(t, time.Now().Before(deadline), "%d of %d datagrams checked", c.checked(), taken)
		}
		return begun.Load() - before
	}
	for seq := uint64(1); seq <= datagrams; seq++ {
		for changes := relay(c.relay); changes > 1; again++ {
			changes = relay(c.relayAgain)
		}
		if seq > 3 {
			y.complete(stay, seq-3, seq-3)
		}
	}
	close(stop)
	require.NoError(t, <-done)
	y.exact(stay, 1)
	v := c.Stats().Verdicts
	require.Equal(t, uint64(datagrams), v[wire.Pass], "verdicts %v", v)
	require.Positive(t, v[wire.Replayed])
	require.Positive(t, v[wire.BadUpstream])
	t.Logf("%d changes of the upstreams, %d datagrams came again", ended.Load(), again)
}

// The routes go on without the process, and with the next one, which knows them.
func TestXDPRoutesAdopted(t *testing.T) {
	const peers = 20
	c, spec := newOrphanCrowd(t, 2, peers+30, func(i int) int { return i % 2 })
	mesh := asRPs(c.sessions[peers:])
	from, to := mesh[:2], mesh[2:]
	// Two of the branches are upstreams, too: they get what the other one sends.
	routes := []datapath.Route{route(testOwn, nil, to[:3]), route(testIngress, from, mesh)}
	routes[0].To[1].Groups = []ids.Group{1, 2, testGroup}
	spec.Change = datapath.Change{Keys: bothKeys(), Add: c.sessions, Routes: routes}
	kill, err := c.lab.startChild(spec, false)
	require.NoError(t, err)
	served := slices.Concat(c.sessions[:peers], to)
	y := c.tally()
	relayed := func(n int) {
		t.Helper()
		for i := range n {
			c.relay(from[i%2:][:1])
			y.complete(served, c.sent, c.sent)
		}
	}
	relayed(10)
	kill()
	relayed(10)

	spec.Change = datapath.Change{}
	var e *Engine
	done := make(chan error, 1)
	go func() {
		var err error
		e, err = c.adoptHere(spec, io.Discard)
		done <- err
	}()
	for running := true; running; {
		select {
		case err := <-done:
			require.NoError(t, err)
			running = false
		default:
			relayed(2)
		}
	}
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	c.Engine = e
	require.Equal(t, routes, e.Adopted().Routes)
	require.Equal(t, c.sessions, e.Adopted().Sessions)
	relayed(20)

	// They stay until they are replaced: an upstream, a branch, and one that ends.
	require.NoError(t, c.Apply(datapath.Change{Routes: []datapath.Route{route(testIngress, from[1:], to[1:])}}))
	c.relay(from[:1])
	require.Eventually(t, func() bool { return e.Stats().Verdicts[wire.BadUpstream] == 1 }, 10*time.Second, time.Millisecond)
	c.sent--
	served = slices.Concat(c.sessions[:peers], to[1:])
	for range 5 {
		c.relay(from[1:])
		y.complete(served, c.sent, c.sent)
	}
	y.exact(served, 1)
	require.Len(t, y.seen[to[0].Addr], int(c.sent-5))
	require.NoError(t, e.Close())
	c.nothingLeft(spec.Pin)
}

// A branch that has no ND entry is served when it has one, and counts until then.
func TestXDPBranchWithoutEntry(t *testing.T) {
	l := newLab(t, 1)
	c := &crowd{
		subject:  newSubjectAt(l, datapath.Config{Incarnation: testOwn}, Options{}),
		sessions: crowdSessions(l, 4, func(int) int { return 0 }),
	}
	mesh := asRPs(c.sessions[1:])
	late := &c.sessions[3]
	late.Addr = netip.AddrPortFrom(l.hostAddr(0).Next().Next(), late.Addr.Port()) // nobody answers
	change := datapath.Change{
		Keys:   bothKeys(),
		Add:    c.sessions,
		Routes: []datapath.Route{route(testIngress, mesh[:1], mesh[1:])},
	}
	for _, s := range c.sessions[:3] {
		c.node(s.Addr)
	}
	require.NoError(t, c.Engine.Apply(change))
	y := c.tally()
	c.relay(mesh[:1])
	y.complete([]datapath.Session{c.sessions[0], mesh[1]}, 1, 1)
	require.Eventually(t, func() bool { return c.Stats().SendErrors == 1 }, 10*time.Second, time.Millisecond)
	c.node(late.Addr)
	require.NoError(t, c.Apply(datapath.Change{Add: mesh[2:]})) // it is asked for again
	c.relay(mesh[:1])
	y.complete(mesh[1:], 2, 2)
}
