// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/front/fronttest"
	"github.com/ethmcast/mdcs/rp/mesh"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
)

// remote is a neighbour's end of a connection, of which the test says everything.
type remote struct {
	t       *testing.T
	at      *point
	name    byte
	session ids.Session // of the RP that is tested
	rw      *p2p.MsgPipeRW
	done    chan struct{} // closed when that RP's end has returned
	err     error         // of it
}

func (p *point) connect(name byte) *remote {
	near, far := p2p.MsgPipe()
	c := &remote{t: p.net.t, at: p, name: name, rw: far, done: make(chan struct{})}
	p.net.t.Cleanup(func() { far.Close() })
	go func() {
		defer close(c.done)
		c.err = p.Protocol().Run(&fronttest.Conn{Node: nodeOf(p.net.t, name).ID(), RW: near})
		near.Close()
	}()
	return c
}

type sendable interface{ Code() uint64 }

func (c *remote) send(m sendable) {
	c.t.Helper()
	require.NoError(c.t, p2p.Send(c.rw, m.Code(), m))
	synctest.Wait()
}

// read returns the next message.
func (c *remote) read() message {
	c.t.Helper()
	msg, err := c.rw.ReadMsg()
	require.NoError(c.t, err)
	b, err := io.ReadAll(msg.Payload)
	require.NoError(c.t, err)
	m, err := decode(msg.Code, b)
	require.NoError(c.t, err)
	return m
}

// expect returns the next M.
func expect[M any](c *remote) M {
	c.t.Helper()
	for {
		m := c.read()
		if m, ok := any(m.link).(M); ok {
			return m
		}
		if m, ok := any(m.state).(M); ok {
			return m
		}
	}
}

// open exchanges Hellos.
func (c *remote) open(incarnation ids.Incarnation) *mesh.Hello {
	c.t.Helper()
	own := expect[*mesh.Hello](c)
	c.session = own.Session
	c.send(&mesh.Hello{NetworkID: 1, Incarnation: incarnation, DataPort: 40501, Session: 0x77, Share: auth.Share{9}})
	return own
}

// drain reads and drops messages from now on.
func (c *remote) drain() {
	go func() {
		for {
			msg, err := c.rw.ReadMsg()
			if err != nil || msg.Discard() != nil {
				return
			}
		}
	}()
}

// hello sends a hello that answers at once.
func (c *remote) hello(h linkstate.Hello) {
	c.at.cfg.Hellos.Hello(c.session, [wire.HelloSize]byte(h.Append(nil)), time.Now())
	synctest.Wait()
}

// greet sends a hello as an RP that hears sends it.
func (c *remote) greet() {
	now := c.at.stamp()
	c.hello(linkstate.Hello{Stamp: now, Echo: now - 1000, Interval: 1000, Up: true, Echoes: true})
}

// stamp is the clock of the hellos of an RP.
func (p *point) stamp() uint32 { return uint32(time.Since(p.startAt).Microseconds()) }

// up lets the link come up.
func (c *remote) up() {
	c.t.Helper()
	for range 4 {
		time.Sleep(linkstate.TreeInterval)
		c.greet()
	}
	require.Equal(c.t, Up, c.at.neighbour(c.name).State)
}

func (p *point) neighbour(name byte) Neighbour {
	for _, n := range p.Stats().Neighbours {
		if n.RP == idOf(p.net.t, name) {
			return n
		}
	}
	panic("no such neighbour")
}

// A link begins with Hellos, accepts datagrams then, and leaves nothing when it ends.
func TestLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNetwork(t).start(1, incarnationOf(1, 0))
		c := p.connect(2)
		synctest.Wait()
		require.True(t, p.Connected(nodeOf(t, 2).ID()))
		require.Equal(t, Connected, p.neighbour(2).State)
		own := c.open(incarnationOf(2, 0))
		require.Equal(t, incarnationOf(1, 0), own.Incarnation)
		require.Equal(t, uint16(30501), own.DataPort)

		send, receive := auth.HopKeys(nodeOf(t, 1).ID(), nodeOf(t, 2).ID(), own.Share, auth.Share{9})
		addr := nodeOf(t, 2).IPAddr()
		require.Equal(t, map[ids.Session]datapath.Session{own.Session: {
			Index: own.Session, Role: datapath.Mesh, Addr: netip.AddrPortFrom(addr, 40501),
			SendSession: 0x77, SendKey: send, ReceiveKey: receive, Egress: 7, EgressBurst: 8,
		}}, p.engine.sessions)
		require.Equal(t, Linked, p.neighbour(2).State)
		require.Equal(t, incarnationOf(2, 0), p.neighbour(2).Incarnation)
		c.drain()
		c.up()
		for _, h := range p.engine.Hellos() {
			require.Equal(t, own.Session, h.Session)
		}

		second := p.connect(2)
		<-second.done
		require.Equal(t, p2p.DiscAlreadyConnected, second.err)

		c.rw.Close()
		<-c.done
		synctest.Wait()
		require.Empty(t, p.engine.sessions)
		require.Equal(t, uint64(1), p.Stats().LinksLost)
		require.False(t, p.Connected(nodeOf(t, 2).ID()))
	})
}

// Neighbours that do not do their part are let go, with the reason.
func TestLinkFails(t *testing.T) {
	forged := func(t *testing.T, sign byte, a linkstate.Advert) linkstate.Aged {
		s, err := linkstate.Sign(a, keyOf(t, sign))
		require.NoError(t, err)
		return linkstate.Aged{Signed: s}
	}
	for name, c := range map[string]struct {
		play  func(p *point, c *remote)
		takes time.Duration // until the Bye
		want  proto.Reason
	}{
		"no Hello": {
			play:  func(*point, *remote) {},
			takes: mesh.HelloTimeout, want: proto.ReasonUnreachable,
		},
		"garbage": {
			play: func(_ *point, c *remote) {
				require.NoError(c.t, c.rw.WriteMsg(p2p.Msg{Code: mesh.HelloMsg, Size: 2, Payload: bytes.NewReader([]byte{0xff, 0xff})}))
			},
			want: proto.ReasonMalformed,
		},
		"garbage of the link state": {
			play: func(_ *point, c *remote) {
				require.NoError(c.t, c.rw.WriteMsg(p2p.Msg{Code: linkstate.AdvertsMsg, Size: 2, Payload: bytes.NewReader([]byte{0xff, 0xff})}))
			},
			want: proto.ReasonMalformed,
		},
		"unknown code": {
			play: func(_ *point, c *remote) {
				require.NoError(c.t, c.rw.WriteMsg(p2p.Msg{Code: mesh.Length - 1, Size: 1, Payload: bytes.NewReader([]byte{0xc0})}))
			},
			want: proto.ReasonMalformed,
		},
		"too long": {
			play: func(_ *point, c *remote) {
				b := make([]byte, mesh.MaxMessage+1)
				require.NoError(c.t, c.rw.WriteMsg(p2p.Msg{Code: mesh.KeysMsg, Size: uint32(len(b)), Payload: bytes.NewReader(b)}))
			},
			want: proto.ReasonMalformed,
		},
		"other chain": {
			play: func(_ *point, c *remote) {
				c.send(&mesh.Hello{NetworkID: 2, Incarnation: 1, DataPort: 1, Session: 1})
			},
			want: proto.ReasonChain,
		},
		"own incarnation": {
			play: func(p *point, c *remote) {
				c.send(&mesh.Hello{NetworkID: 1, Incarnation: p.incarnation, DataPort: 1, Session: 1})
			},
			want: proto.ReasonUnexpected,
		},
		"link state before Hello": {
			play: func(_ *point, c *remote) { c.send(&linkstate.RouteSum{}) },
			want: proto.ReasonUnexpected,
		},
		"acknowledgement of nothing": {
			play: func(_ *point, c *remote) { c.open(incarnationOf(2, 0)); c.send(&mesh.KeysAck{ID: 7}) },
			want: proto.ReasonUnexpected,
		},
		"advert with the signature of another": {
			play: func(_ *point, c *remote) {
				c.open(incarnationOf(2, 0))
				c.send(&linkstate.Adverts{Adverts: []linkstate.Aged{forged(c.t, 2, linkstate.Advert{Origin: idOf(c.t, 3), Incarnation: 9})}})
			},
			want: proto.ReasonUnexpected,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newNetwork(t).start(1, incarnationOf(1, 0))
				remote := p.connect(2)
				start := time.Now()
				c.play(p, remote)
				require.Equal(t, c.want, expect[*mesh.Bye](remote).Reason)
				require.InDelta(t, c.takes, time.Since(start), float64(linkstate.TreeInterval))
				<-remote.done
				require.Error(t, remote.err)
				st := p.Stats()
				if c.takes == 0 {
					require.Equal(t, uint64(1), st.Violations)
				}
				for _, s := range p.engine.sessions {
					require.NotEqual(t, nodeOf(t, 2).IPAddr(), s.Addr.Addr(), "left in the datapath")
				}
			})
		})
	}
}

// What a neighbour cannot say is refused and counted, and changes nothing.
func TestHostileNeighbour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNetwork(t).start(1, incarnationOf(1, 0))
		c := p.connect(2)
		c.open(incarnationOf(2, 0))
		c.drain()
		c.up()

		// An RP that nobody allowed.
		strange, err := linkstate.Sign(linkstate.Advert{Origin: idOf(t, 99), Incarnation: incarnationOf(99, 0)}, keyOf(t, 99))
		require.NoError(t, err)
		c.send(&linkstate.Adverts{Adverts: []linkstate.Aged{{Signed: strange}}})
		require.Equal(t, uint64(1), p.Stats().Core.NotAllowed)

		// An older advert of itself, and then many.
		advert := func(sequence uint64) linkstate.Aged {
			s, err := linkstate.Sign(linkstate.Advert{Origin: idOf(t, 2), Incarnation: incarnationOf(2, 0), Epoch: 1, Sequence: sequence}, keyOf(t, 2))
			require.NoError(t, err)
			return linkstate.Aged{Signed: s}
		}
		c.send(&linkstate.Adverts{Adverts: []linkstate.Aged{advert(5), advert(4)}})
		require.Equal(t, uint64(1), p.Stats().Core.Stale)
		for sequence := range uint64(60) {
			c.send(&linkstate.Adverts{Adverts: []linkstate.Aged{advert(10 + sequence)}})
		}
		require.Greater(t, p.Stats().Core.Limited, uint64(30))

		// Round-trip times that cannot be, and hellos that are none.
		before := p.neighbour(2).RTT
		now := p.stamp()
		c.hello(linkstate.Hello{Stamp: now, Echo: now - 1000, Hold: 5000, Interval: 1000, Up: true, Echoes: true})
		require.Equal(t, uint64(1), p.Stats().Core.BadEchoes)
		require.Equal(t, before, p.neighbour(2).RTT)
		p.cfg.Hellos.Hello(c.session, [wire.HelloSize]byte{15: 1}, time.Now())
		p.cfg.Hellos.Hello(c.session+1, [wire.HelloSize]byte{}, time.Now())
		synctest.Wait()
		require.Equal(t, uint64(1), p.Stats().BadHellos)

		// Keys of RPs whose datagrams do not come from it, and of the receiver.
		foreign := []proto.GroupKey{{Ingress: incarnationOf(3, 0), Group: group}, {Ingress: incarnationOf(1, 0), Group: group, Epoch: 1}}
		c.send(&mesh.Keys{ID: 1, Wait: 1000, Keys: foreign})
		require.Equal(t, uint64(2), p.Stats().KeysRefused)
		require.Empty(t, p.engine.keys)
		require.Zero(t, p.Stats().Violations, "it may be late news")
	})
}

// The keys that the parent offers count. Those of others are kept until they are parents.
func TestKeysOfUpstreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ingress = 0x500
		p := newNetwork(t).start(1, incarnationOf(1, 0))
		parent, other, child := p.connect(2), p.connect(3), p.connect(4)
		for i, c := range []*remote{parent, other, child} {
			c.open(incarnationOf(byte(2+i), 0))
		}
		route := func(r linkstate.Route) {
			r.Ingress = ingress
			require.True(t, p.call(func() { p.route(r) }))
		}
		key := func(epoch, secret byte) proto.GroupKey {
			return proto.GroupKey{Ingress: ingress, Group: group, Epoch: epoch, Key: auth.Key{secret}}
		}
		keys := func() (installed []proto.GroupKey) {
			time.Sleep(2 * installPause)
			synctest.Wait()
			for _, i := range p.installer.take() {
				installed = append(installed, i.keys...)
			}
			return installed
		}
		offer := func(c *remote, id uint32, keys ...proto.GroupKey) {
			c.send(&mesh.Keys{ID: id, Wait: 4000, Keys: keys})
		}
		acknowledged := func(c *remote, id uint32) { require.Equal(t, id, expect[*mesh.KeysAck](c).ID) }

		two, three := idOf(t, 2), idOf(t, 3)
		route(linkstate.Route{Parent: two, Previous: []linkstate.ID{three}})
		offer(other, 1, key(7, 66))
		acknowledged(other, 1)
		require.Empty(t, keys(), "not even the first ones")
		offer(parent, 1, key(7, 1))
		acknowledged(parent, 1)
		require.Equal(t, []proto.GroupKey{key(7, 1)}, keys())

		// Another upstream has another key, and one that is newer.
		offer(other, 2, key(7, 66), key(8, 66))
		acknowledged(other, 2)
		require.Empty(t, keys())
		require.Zero(t, p.Stats().KeyConflicts)

		// The child gets what is there, and then what is new, before the parent has its answer.
		route(linkstate.Route{Parent: two, Previous: []linkstate.ID{three}, Children: []linkstate.Child{{ID: idOf(t, 4), All: true}}})
		first := expect[*mesh.Keys](child)
		require.Equal(t, []proto.GroupKey{key(7, 1)}, first.Keys)
		child.send(&mesh.KeysAck{ID: first.ID})
		start := time.Now()
		offer(parent, 2, key(7, 1), key(8, 2))
		next := expect[*mesh.Keys](child)
		require.Equal(t, []proto.GroupKey{key(7, 1), key(8, 2)}, next.Keys)
		require.Equal(t, uint32(3000), next.Wait, "less than the 4 s of the parent")
		time.Sleep(time.Second)
		child.send(&mesh.KeysAck{ID: next.ID})
		acknowledged(parent, 2)
		require.Equal(t, time.Second, time.Since(start))
		require.Equal(t, []proto.GroupKey{key(7, 1), key(8, 2)}, keys())

		// The other one becomes parent: now its keys count, not silently.
		route(linkstate.Route{Parent: three, Previous: []linkstate.ID{two}, Children: []linkstate.Child{{ID: idOf(t, 4), All: true}}})
		require.Equal(t, []proto.GroupKey{key(7, 66), key(8, 66)}, expect[*mesh.Keys](child).Keys)
		require.Equal(t, []proto.GroupKey{key(7, 66), key(8, 66)}, keys())
		require.Equal(t, uint64(2), p.Stats().KeyConflicts)

		// A child that does not answer: the parent has its answer after three quarters of the time.
		start = time.Now()
		offer(other, 3, key(8, 66), key(9, 66))
		acknowledged(other, 3)
		require.InDelta(t, 3, time.Since(start).Seconds(), 0.2)

		// The route ends, and a minute later the keys.
		require.True(t, p.call(func() { p.routeGone(ingress) }))
		require.Equal(t, []proto.GroupKey{key(8, 66), key(9, 66)}, keys())
		offer(other, 4, key(10, 66))
		acknowledged(other, 4)
		require.Equal(t, uint64(1), p.Stats().KeysRefused)
		time.Sleep(RetireAfter)
		synctest.Wait()
		require.Equal(t, []install{{nil, []ids.Incarnation{ingress}}}, p.installer.take())
	})
}

// However many ingress RPs have new keys at once, each member is told in few messages.
func TestKeysOfManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNetwork(t).start(1, incarnationOf(1, 0))
		c := p.connect(2)
		c.open(incarnationOf(2, 0))
		var keys []proto.GroupKey
		for i := range ids.Incarnation(mesh.MaxKeys) {
			keys = append(keys, proto.GroupKey{Ingress: 0x1000 + i, Group: group, Key: auth.Key{1}})
		}
		require.True(t, p.call(func() {
			for _, k := range keys {
				p.route(linkstate.Route{Ingress: k.Ingress, Parent: idOf(t, 2)})
			}
		}))
		for i, epoch := range []byte{0, 1} {
			for k := range keys {
				keys[k].Epoch = epoch
			}
			c.send(&mesh.Keys{ID: uint32(i), Wait: 4000, Keys: keys})
			require.Equal(t, uint32(i), expect[*mesh.KeysAck](c).ID)
			installs := p.installer.take()
			require.Len(t, installs, 1)
			require.GreaterOrEqual(t, len(installs[0].keys), len(keys))
			require.Equal(t, epoch, installs[0].keys[len(installs[0].keys)-1].Epoch)
		}
		require.True(t, p.call(func() {
			for _, k := range keys {
				p.routeGone(k.Ingress)
			}
		}))
		time.Sleep(RetireAfter + time.Second)
		synctest.Wait()
		installs := p.installer.take()
		require.Len(t, installs, 1)
		require.Len(t, installs[0].retired, len(keys))
		require.Empty(t, p.stale)
	})
}

// Keys that the datapath refuses for one ingress RP do not keep those of others out.
func TestKeysRefusedByTheDatapath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNetwork(t).start(1, incarnationOf(1, 0))
		c := p.connect(2)
		c.open(incarnationOf(2, 0))
		p.engine.OnApply = func(change datapath.Change) error {
			refused := new(datapath.Refused)
			change.Keys = slices.DeleteFunc(slices.Clone(change.Keys), func(k proto.GroupKey) bool {
				if k.Ingress == 0x1000 {
					refused.Key(k.Stream(), datapath.ErrNoRoom)
				}
				return k.Ingress == 0x1000
			})
			return cmp.Or(p.engine.apply(change), refused.Err())
		}
		var keys []proto.GroupKey
		for i := range ids.Incarnation(3) {
			keys = append(keys, proto.GroupKey{Ingress: 0x1000 + i, Group: group})
		}
		require.True(t, p.call(func() {
			for _, k := range keys {
				p.route(linkstate.Route{Ingress: k.Ingress, Parent: idOf(t, 2)})
			}
		}))
		c.send(&mesh.Keys{ID: 1, Wait: 4000, Keys: keys})
		time.Sleep(2 * retryPause)
		synctest.Wait()
		require.False(t, p.has(keys[0]))
		require.True(t, p.has(keys[1]))
		require.True(t, p.has(keys[2]))
	})
}

// A route that the datapath refuses holds up no other. One that found no room is tried
// again, one that contradicts its contract is not.
func TestRoutesRefusedByTheDatapath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNetwork(t).start(1, incarnationOf(1, 0))
		c := p.connect(2)
		c.open(incarnationOf(2, 0))
		const roomless, wrong, good = 0x1000, 0x1001, 0x1002
		full, wanted := true, make(map[ids.Incarnation]int)
		p.engine.OnApply = func(change datapath.Change) error {
			refused := new(datapath.Refused)
			change.Routes = slices.DeleteFunc(slices.Clone(change.Routes), func(r datapath.Route) bool {
				wanted[r.Ingress]++
				switch {
				case r.Ingress == roomless && full:
					refused.Route(r.Ingress, fmt.Errorf("%w: routes", datapath.ErrNoRoom))
				case r.Ingress == wrong:
					refused.Route(r.Ingress, datapath.ErrContract)
				}
				return refused.Routes[r.Ingress] != nil
			})
			return cmp.Or(p.engine.apply(change), refused.Err())
		}
		require.True(t, p.call(func() {
			for _, ingress := range []ids.Incarnation{roomless, wrong, good} {
				p.Server.route(linkstate.Route{Ingress: ingress, Parent: idOf(t, 2)})
			}
			p.applyRoutes()
		}))
		require.Len(t, p.engine.routes[good].From, 1)
		require.Equal(t, uint64(2), p.Stats().RoutesRefused)
		full = false
		time.Sleep(3 * retryPause)
		synctest.Wait()
		require.Len(t, p.engine.routes[roomless].From, 1)
		require.Equal(t, map[ids.Incarnation]int{roomless: 2, wrong: 1, good: 1}, wanted)
	})
}

// 2 and 3 claim the incarnation of 4, one in its Hello and one in an advert: both are let go,
// and the stream of 4 stays where it is.
func TestClaimedIncarnation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		claimed := incarnationOf(4, 0)
		p := newNetwork(t).start(1, incarnationOf(1, 0))
		four := p.connect(4)
		four.open(claimed)
		four.drain()
		advert := func(c *remote, name byte, incarnation ids.Incarnation, sequence uint64) {
			s, err := linkstate.Sign(linkstate.Advert{
				Origin: idOf(t, name), Incarnation: incarnation, Epoch: 1, Sequence: sequence, Publishes: true,
			}, keyOf(t, name))
			require.NoError(t, err)
			c.send(&linkstate.Adverts{Adverts: []linkstate.Aged{{Signed: s}}})
		}
		advert(four, 4, claimed, 1)
		require.True(t, p.call(func() { p.route(linkstate.Route{Ingress: claimed, Parent: idOf(t, 4)}) }))
		key := proto.GroupKey{Ingress: claimed, Group: group, Key: auth.Key{4}}
		four.send(&mesh.Keys{ID: 1, Wait: 1000, Keys: []proto.GroupKey{key}})

		two := p.connect(2)
		two.open(claimed)
		require.Equal(t, proto.ReasonUnexpected, expect[*mesh.Bye](two).Reason)
		three := p.connect(3)
		three.open(incarnationOf(3, 0))
		advert(three, 3, claimed, 1)
		require.Equal(t, proto.ReasonUnexpected, expect[*mesh.Bye](three).Reason)
		time.Sleep(2 * sweepInterval)
		synctest.Wait()
		require.Equal(t, uint64(2), p.Stats().Violations)
		require.True(t, p.has(key))
		require.Equal(t, []ids.Session{four.session}, p.engine.routes[claimed].From)
		require.True(t, p.call(func() { require.Equal(t, idOf(t, 4), p.origins[claimed]) }))
	})
}

func TestStranger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNetwork(t).start(1, incarnationOf(1, 0)).connect(99)
		<-c.done
		require.Equal(t, p2p.DiscUselessPeer, c.err)
	})
}

func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNetwork(t).start(1, incarnationOf(1, 0))
		c := p.connect(2)
		c.open(incarnationOf(2, 0))
		go p.Stop()
		require.Equal(t, proto.ReasonQuit, expect[*mesh.Bye](c).Reason)
		<-c.done
		require.Equal(t, p2p.DiscQuitting, c.err)
		late := p.connect(2)
		<-late.done
		require.Equal(t, p2p.DiscQuitting, late.err)
	})
}

// When a link of the mesh ends, an ingress RP tells for two seconds what is true of its streams:
// somebody may have got them from a liar.
func TestHeartbeatsWhenTheMeshChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p := n.chain(2)
		far := n.start(3, incarnationOf(3, 0))
		cut := n.link(p[1], far)
		p[0].Admit(true)
		n.settle()
		for _, r := range n.points {
			r.engine.Heartbeats()
		}
		n.settle()
		require.Empty(t, p[0].engine.Heartbeats(), "nothing changes")
		cut()
		time.Sleep(1600 * time.Millisecond)
		synctest.Wait()
		require.InDelta(t, 4, len(p[0].engine.Heartbeats()), 1)
		n.settle()
		require.LessOrEqual(t, len(p[0].engine.Heartbeats()), 2)
		n.settle()
		require.Empty(t, p[0].engine.Heartbeats(), "it is long ago")
		require.Empty(t, p[1].engine.Heartbeats(), "it does not publish")
	})
}

// A child that asks for a stream, and acknowledges its keys, again and again, has nothing sent
// more often than each 500 ms, and nothing at all for keys that it had.
func TestHeartbeatsForKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNetwork(t).start(1, incarnationOf(1, 0))
		p.Admit(true)
		time.Sleep(4 * time.Second)
		c := p.connect(2)
		c.open(incarnationOf(2, 0))
		acks := 0
		go func() {
			for {
				msg, err := c.rw.ReadMsg()
				if err != nil {
					return
				}
				b := new(bytes.Buffer)
				_, _ = b.ReadFrom(msg.Payload)
				if m, err := decode(msg.Code, b.Bytes()); err == nil {
					if k, ok := m.link.(*mesh.Keys); ok {
						acks++
						go c.push(&mesh.KeysAck{ID: k.ID})
					}
				}
			}
		}()
		c.up()
		p.engine.Heartbeats()
		for i := range 1000 {
			if i%100 == 0 {
				c.greet()
			}
			c.push(grafts(p.incarnation))
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		require.Len(t, p.engine.Heartbeats(), 1, "it has the keys now")
		require.Greater(t, acks, 900)
		for i := range 1000 {
			if i%100 == 0 {
				c.greet()
			}
			c.push(&linkstate.Prune{Ingress: []ids.Incarnation{p.incarnation}})
			c.push(grafts(p.incarnation))
			time.Sleep(4 * time.Millisecond)
		}
		synctest.Wait()
		require.LessOrEqual(t, len(p.engine.Heartbeats()), 9)
		require.Zero(t, p.Stats().Violations)
	})
}

// An ingress RP that changes its keys, or their order, all the time has members told 8 times at once, and then each
// 10 s, at all RPs. The newest keys count.
func TestFloodOfKeys(t *testing.T) {
	for name, keys := range map[string]func(ingress ids.Incarnation, i uint32) []proto.GroupKey{
		"other keys": func(ingress ids.Incarnation, i uint32) []proto.GroupKey {
			return []proto.GroupKey{{Ingress: ingress, Group: group, Epoch: uint8(i), Key: auth.Key{byte(i), byte(i >> 8), 9}}}
		},
		"another order": func(ingress ids.Incarnation, i uint32) []proto.GroupKey {
			return []proto.GroupKey{{Ingress: ingress, Group: group, Epoch: uint8(i % 2)}, {Ingress: ingress, Group: group, Epoch: uint8(1 - i%2)}}
		},
	} {
		t.Run(name, func(t *testing.T) { testFloodOfKeys(t, keys) })
	}
}

func testFloodOfKeys(t *testing.T, keys func(ingress ids.Incarnation, i uint32) []proto.GroupKey) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p := n.chain(2)
		l := n.liar(4, 30*time.Millisecond, false, p[0])
		defer l.gone()
		l.advert(func(a *linkstate.Advert) { a.Publishes = true })
		n.settle()
		for _, r := range p {
			r.installer.take()
		}
		const seconds = 30
		var last []proto.GroupKey
		for i := range uint32(seconds * 20) {
			last = keys(l.incarnation(), i)
			l.say(&mesh.Keys{ID: i + 1, Wait: 100, Keys: last})
			time.Sleep(49 * time.Millisecond)
		}
		synctest.Wait()
		for _, r := range p {
			installs := len(r.installer.take()) // several changes at once are one
			require.LessOrEqual(t, installs, rekeyBurst+seconds/10+1)
			require.Greater(t, installs, seconds/10)
			require.Equal(t, r == p[0], r.Stats().KeysDelayed > 0, "the next one has less to do")
			require.Zero(t, r.Stats().Violations)
		}
		time.Sleep(rekeyEach + time.Second)
		synctest.Wait()
		for _, r := range p {
			r.engine.mu.Lock()
			of := r.engine.keys[l.incarnation()]
			r.engine.mu.Unlock()
			require.Equal(t, last, of[len(of)-len(last):])
		}
	})
}

// A neighbour that floods gains nothing by connecting anew: it is banned as on one connection.
func TestFloodOnManyConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNetwork(t).start(1, incarnationOf(1, 0))
		began := time.Now()
		for p.neighbour(2).State != Banned {
			c := p.connect(2)
			c.open(incarnationOf(2, 0))
			c.drain()
			ends := time.After(4 * time.Second) // sooner than a flood is one
			for over := false; !over; {
				written := make(chan error, 1)
				go func() { written <- p2p.Send(c.rw, linkstate.AckedMsg, &linkstate.Acked{Hash: linkstate.Hash{1}}) }()
				select {
				case err := <-written:
					over = err != nil
				case <-ends:
					over = true
				}
			}
			c.rw.Close()
			<-c.done
			synctest.Wait()
			require.Less(t, time.Since(began), time.Minute)
		}
		require.NotZero(t, p.Stats().Violations)
	})
}

// Keys that wait for a child cost nothing when something else comes.
func TestWaitsCost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p := n.chain(2)[0]
		p.Admit(true)
		n.settle()
		over := 0
		p.call(func() {
			own := p.ingress(p.incarnation)
			for range 64 {
				p.waits = append(p.waits, &wait{
					versions: map[*ingress]uint64{own: own.version + 1}, due: p.now.Add(10 * time.Second), over: func(int) { over++ },
				})
			}
		})
		p.call(func() {}) // the first look
		require.Less(t, testing.AllocsPerRun(100, func() { p.call(func() {}) }), 20.0)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		require.Equal(t, 64, over)
		n.stop()
	})
}
