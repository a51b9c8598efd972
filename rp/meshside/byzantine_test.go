// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/mesh"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/receipts"
)

// liar is an RP of the allow-list that has links to all RPs of a network and says what a test
// wants. It has adverts of its own, so that the trees know it.
type liar struct {
	t     *testing.T
	net   *network
	name  byte
	rtt   time.Duration // that its links seem to have
	mu    sync.Mutex
	ends  []*remote     // one for each RP
	bids  uint64        // sequence of its advert
	quiet chan struct{} // closed when it sends no more hellos
	once  sync.Once
}

// liar links one to some RPs.
func (n *network) liar(name byte, rtt time.Duration, outlives bool, at ...*point) *liar {
	l := &liar{t: n.t, net: n, name: name, rtt: rtt, quiet: make(chan struct{})}
	for _, p := range at {
		c := p.connect(name)
		l.ends = append(l.ends, c)
		c.session = expect[*mesh.Hello](c).Session
		c.push(&mesh.Hello{NetworkID: 1, Incarnation: l.incarnation(), DataPort: 40501, Session: 0x77, Outlives: outlives})
		go c.answer()
	}
	go func() {
		for {
			select {
			case <-l.quiet:
				return
			case <-time.After(linkstate.TreeInterval):
				l.hellos()
			}
		}
	}()
	time.Sleep(time.Second)
	l.advert(nil)
	n.settle()
	for _, p := range at {
		require.Equal(n.t, Up, p.neighbour(name).State)
	}
	return l
}

func (l *liar) incarnation() ids.Incarnation { return incarnationOf(l.name, 0) }

func (l *liar) hellos() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.ends {
		now := c.at.stamp()
		h := linkstate.Hello{Stamp: now, Echo: now - uint32(l.rtt.Microseconds()), Interval: 1000, Up: true, Echoes: true}
		c.at.cfg.Hellos.Hello(c.session, [wire.HelloSize]byte(h.Append(nil)), time.Now())
	}
}

// advert sends an advert with a link to each RP, after a change.
func (l *liar) advert(edit func(*linkstate.Advert)) {
	l.bids++
	a := linkstate.Advert{Origin: idOf(l.t, l.name), Incarnation: l.incarnation(), Epoch: 1, Sequence: l.bids, Budget: 100}
	for _, name := range []byte{1, 2, 3, 4, 5} {
		a.Links = append(a.Links, linkstate.Link{Neighbour: idOf(l.t, name), Cost: uint32(max(l.rtt/linkstate.CostUnit, 1))})
	}
	a.Links = sorted(a.Links, a.Origin)
	if edit != nil {
		edit(&a)
	}
	s, err := linkstate.Sign(a, keyOf(l.t, l.name))
	require.NoError(l.t, err)
	l.say(&linkstate.Adverts{Adverts: []linkstate.Aged{{Signed: s}}})
}

func sorted(links []linkstate.Link, but linkstate.ID) (out []linkstate.Link) {
	byID := make(map[linkstate.ID]linkstate.Link)
	for _, l := range links {
		byID[l.Neighbour] = l
	}
	delete(byID, but)
	for len(byID) > 0 {
		least := linkstate.ID(math.MaxUint64)
		for id := range byID {
			least = min(least, id)
		}
		out = append(out, byID[least])
		delete(byID, least)
	}
	return out
}

// say sends messages to all RPs, as far as they take them.
func (l *liar) say(all ...sendable) {
	for _, c := range l.ends {
		for _, m := range all {
			c.push(m)
		}
	}
	time.Sleep(time.Millisecond)
}

// raw sends bytes under a code.
func (l *liar) raw(code uint64, b []byte) {
	for _, c := range l.ends {
		_ = c.rw.WriteMsg(p2p.Msg{Code: code, Size: uint32(len(b)), Payload: bytes.NewReader(b)})
	}
	time.Sleep(time.Millisecond)
}

// silent has it send no more hellos.
func (l *liar) silent() { l.once.Do(func() { close(l.quiet) }) }

// gone ends all that the liar does.
func (l *liar) gone() {
	l.silent()
	for _, c := range l.ends {
		c.rw.Close()
		<-c.done
	}
	synctest.Wait()
}

// push is send, to somebody who may not listen any more.
func (c *remote) push(m sendable) { _ = p2p.Send(c.rw, m.Code(), m) }

// answer reads what comes, and grants what it is asked for.
func (c *remote) answer() {
	for {
		msg, err := c.rw.ReadMsg()
		if err != nil {
			return
		}
		b := new(bytes.Buffer)
		_, _ = b.ReadFrom(msg.Payload)
		m, err := decode(msg.Code, b.Bytes())
		if graft, ok := m.state.(*linkstate.Graft); ok && err == nil {
			ack := &linkstate.GraftAck{ID: graft.ID}
			for _, r := range graft.Routes {
				ack.Granted = append(ack.Granted, r.Ingress)
			}
			go c.push(ack)
		}
	}
}

func grafts(ingress ...ids.Incarnation) *linkstate.Graft {
	m := &linkstate.Graft{ID: 1}
	for _, i := range ingress {
		m.Routes = append(m.Routes, linkstate.GraftRoute{Ingress: i, Marks: []linkstate.Mark{{Group: group}}})
	}
	return m
}

// Whatever a neighbour says that is no parent, the datagrams of the others flow all the time;
// nothing of it is left when it is gone, and who breaks the protocol is banned.
//
//	1 --- 2 --- 3      4 has a long link to each
func TestLies(t *testing.T) {
	first, third := incarnationOf(1, 0), incarnationOf(3, 0)
	floodOf := func(l *liar, messages int, m func(i int) sendable) {
		for i := range messages {
			for _, c := range l.ends {
				go c.push(m(i))
			}
			if i%100 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	}
	type lie struct {
		tell   func(l *liar)
		banned bool
		count  func(Stats) uint64 // goes up at all RPs
	}
	lies := map[string]lie{
		"graft of ingress 0": {tell: func(l *liar) { l.say(grafts(0)) }, banned: true},
		"graft of made-up ingress RPs": {
			tell: func(l *liar) {
				for i := range ids.Incarnation(20) {
					var madeUp []ids.Incarnation
					for k := range ids.Incarnation(linkstate.MaxRoutes) {
						madeUp = append(madeUp, 0x70000000+i*linkstate.MaxRoutes+k)
					}
					l.say(grafts(madeUp...))
				}
			},
			count: func(st Stats) uint64 { return st.Core.Refused },
		},
		"graft of all there are": {tell: func(l *liar) { l.say(grafts(first, third)) }},
		"graft again and again": {
			tell:  func(l *liar) { floodOf(l, 3000, func(int) sendable { return grafts(first) }) },
			count: func(st Stats) uint64 { return st.Core.NotServed },
		},
		"prune of everything": {tell: func(l *liar) { l.say(&linkstate.Prune{Ingress: []ids.Incarnation{first, third, 0x7fffffff}}) }},
		"acknowledged and refused": {tell: func(l *liar) {
			for id := range uint32(50) {
				l.say(&linkstate.GraftAck{ID: id, Granted: []ids.Incarnation{first}, Refused: []ids.Incarnation{third}})
				l.say(&linkstate.GraftAck{ID: id, Granted: []ids.Incarnation{third}, Refused: []ids.Incarnation{first}})
			}
		}},
		"sum of other routes": {
			tell: func(l *liar) {
				for i := range uint32(50) {
					l.say(&linkstate.RouteSum{Sum: i})
				}
			},
			count: func(st Stats) uint64 { return st.Core.SumsDropped },
		},
		"serves everything, and nothing": {tell: func(l *liar) {
			for range 50 {
				l.say(&linkstate.Serving{Ingress: []ids.Incarnation{first, third}}, &linkstate.Serving{})
			}
		}},
		"claims an incarnation": {tell: func(l *liar) { l.advert(func(a *linkstate.Advert) { a.Incarnation, a.Publishes = first, true }) }, banned: true},
		"signs for another": {
			tell: func(l *liar) { l.advert(func(a *linkstate.Advert) { a.Origin = idOf(l.t, 1) }) }, banned: true,
		},
		"links that are none": {tell: func(l *liar) {
			l.advert(func(a *linkstate.Advert) {
				for i := range a.Links {
					a.Links[i].Cost = 1
				}
				a.Links = append(a.Links, linkstate.Link{Neighbour: math.MaxUint64, Cost: 1})
			})
		}},
		"no budget": {tell: func(l *liar) { l.advert(func(a *linkstate.Advert) { a.Budget = 0 }) }},
		"says others are lost": {tell: func(l *liar) {
			for range 40 {
				l.advert(func(a *linkstate.Advert) { a.Links = a.Links[:1] })
				l.advert(nil)
				time.Sleep(50 * time.Millisecond)
			}
		}},
		"adverts of itself": {
			tell: func(l *liar) {
				for range 200 {
					l.advert(func(a *linkstate.Advert) { a.Publishes = l.bids%2 == 0 })
				}
			},
			count: func(st Stats) uint64 { return st.Core.Limited },
		},
		"incarnations of its own": {tell: func(l *liar) {
			for life := range 30 {
				l.advert(func(a *linkstate.Advert) { a.Incarnation, a.Publishes = incarnationOf(l.name, life+1), true })
				l.say(grafts(incarnationOf(l.name, life+1)))
				time.Sleep(100 * time.Millisecond)
			}
		}},
		"offers what it does not have": {tell: func(l *liar) {
			var all []linkstate.Version
			for name := range byte(3) {
				all = append(all, linkstate.Version{Origin: idOf(l.t, name+1), Epoch: math.MaxUint64, Sequence: math.MaxUint64})
			}
			for _, v := range all {
				one := []linkstate.Version{v}
				for range 30 {
					l.say(&linkstate.Offer{Versions: one}, &linkstate.Summary{Versions: one})
				}
			}
		}},
		"digests and requests": {
			tell: func(l *liar) {
				for i := range uint32(50) {
					l.say(&linkstate.Digest{Sums: append(make([]uint32, linkstate.Buckets-1), i)},
						&linkstate.Request{Origins: []linkstate.ID{linkstate.ID(i + 1), math.MaxUint64}},
						&linkstate.Acked{Hash: linkstate.Hash{byte(i), byte(i >> 8)}})
				}
			},
			count: func(st Stats) uint64 { return st.Core.DigestsDropped },
		},
		"digests without end": {
			tell: func(l *liar) {
				for i := range uint32(100) {
					l.say(&linkstate.Digest{Sums: append(make([]uint32, linkstate.Buckets-1), i)})
				}
			},
			banned: true, count: func(st Stats) uint64 { return st.Core.DigestsDropped },
		},
		"offers without end": {
			tell: func(l *liar) {
				var all []linkstate.Version
				for i := range uint64(linkstate.MaxVersions) {
					all = append(all, linkstate.Version{Origin: linkstate.ID(i + 1), Epoch: 1, Sequence: 1})
				}
				for range 200 {
					l.say(&linkstate.Offer{Versions: all})
				}
			},
			banned: true, count: func(st Stats) uint64 { return st.Core.OffersDropped },
		},
		"keys of another": {
			tell: func(l *liar) {
				for id := range uint32(mesh.MaxOffers) {
					l.say(&mesh.Keys{ID: id, Wait: 1000, Keys: []proto.GroupKey{
						{Ingress: first, Group: group, Key: auth.Key{66}}, {Ingress: third, Group: group, Epoch: 1, Key: auth.Key{66}},
					}})
				}
			},
			count: func(st Stats) uint64 { return st.KeysRefused },
		},
		"acknowledges keys": {tell: func(l *liar) { l.say(&mesh.KeysAck{ID: 4711}) }, banned: true},
		"second Hello":      {tell: func(l *liar) { l.say(&mesh.Hello{NetworkID: 1, Incarnation: l.incarnation(), DataPort: 1, Session: 1}) }, banned: true},
		"reports everything": {tell: func(l *liar) {
			for i := range uint64(50) {
				l.say(&mesh.Report{Reports: []receipts.Report{{
					Key: receipts.Key{Ingress: third, Group: group, Sequence: i}, Count: receipts.Count{Sent: math.MaxUint32, Confirmed: math.MaxUint32},
				}}})
			}
		}},
		"says that we broke the protocol": {tell: func(l *liar) { l.say(&mesh.Bye{Reason: proto.ReasonMalformed}) }},
		"hellos": {
			tell: func(l *liar) {
				for range 3000 {
					l.hellos()
				}
				time.Sleep(200 * time.Millisecond)
			},
			banned: true, count: func(st Stats) uint64 { return st.HellosLost },
		},
		"hellos that are none": {
			tell: func(l *liar) {
				for _, c := range l.ends {
					for i := range byte(10) {
						c.at.cfg.Hellos.Hello(c.session, [wire.HelloSize]byte{i, 14: 0xff}, time.Now())
					}
				}
			},
			count: func(st Stats) uint64 { return st.BadHellos },
		},
		"does not hear": {tell: func(l *liar) {
			for range 20 {
				for _, c := range l.ends {
					h := linkstate.Hello{Stamp: c.at.stamp(), Interval: 100, Tree: true, Slack: 255}
					c.at.cfg.Hellos.Hello(c.session, [wire.HelloSize]byte(h.Append(nil)), time.Now())
				}
				time.Sleep(100 * time.Millisecond)
			}
		}},
		"messages": {
			tell: func(l *liar) {
				for range 18 {
					floodOf(l, 1000, func(i int) sendable { return &linkstate.Acked{Hash: linkstate.Hash{byte(i), byte(i >> 8)}} })
				}
				time.Sleep(2 * floodTime)
			},
			banned: true, count: func(st Stats) uint64 { return st.Slowed },
		},
		"connects again and again": {
			tell: func(l *liar) {
				for range 2 * linkBurst {
					for i, c := range l.ends {
						c.push(&mesh.Bye{})
						<-c.done
						again := c.at.connect(l.name)
						l.mu.Lock()
						l.ends[i] = again
						l.mu.Unlock()
						go again.answer()
					}
				}
			},
			banned: true, count: func(st Stats) uint64 { return st.Banned },
		},
	}
	for code := range uint64(mesh.Length) {
		for name, b := range map[string][]byte{"garbage": {0xff, 0x01}, "nothing": nil, "a list of lists": {0xc3, 0xc2, 0xc1, 0xc0}} {
			lies[fmt.Sprintf("%s as message 0x%02x", name, code)] = lie{tell: func(l *liar) { l.raw(code, b) }, banned: true}
		}
	}
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				p := n.chain(3)
				p[0].Admit(true)
				p[2].Admit(true)
				n.settle()
				l := n.liar(4, 50*time.Millisecond, false, p...)
				before := make([]map[ids.Incarnation]datapath.Route, len(p))
				counted := make([]uint64, len(p))
				for i, o := range p {
					before[i] = o.routesWithout(4)
					if lie.count != nil {
						counted[i] = lie.count(o.Stats())
					}
				}
				flow := func(d time.Duration) {
					t.Helper()
					for end := time.Now().Add(d); ; time.Sleep(10 * time.Millisecond) {
						synctest.Wait()
						require.Equal(t, map[byte]int{2: 1, 3: 1}, n.reach(p[0]))
						require.Equal(t, map[byte]int{1: 1, 2: 1}, n.reach(p[2]))
						if !time.Now().Before(end) {
							return
						}
					}
				}
				flow(0)
				told := make(chan struct{})
				go func() {
					defer close(told)
					lie.tell(l)
				}()
				for talks := true; talks; {
					select {
					case <-told:
						talks = false
					default:
						flow(10 * time.Millisecond)
					}
				}
				flow(3 * time.Second)
				for i, o := range p {
					st := o.Stats()
					if lie.banned {
						require.Equal(t, Banned, o.neighbour(4).State)
						require.NotZero(t, st.Violations)
					} else {
						require.Zero(t, st.Violations)
					}
					if lie.count != nil {
						require.Greater(t, lie.count(st), counted[i])
					}
					require.Zero(t, st.RoutesRefused)
				}
				l.gone()
				flow(2 * time.Second)
				for i, o := range p {
					require.Equal(t, before[i], o.routesWithout(4))
					require.Len(t, o.engine.state(0).Sessions, len(o.links), "of the liar there is none")
					require.Empty(t, o.routes)
				}
			})
		})
	}
}

// routesWithout returns the routes that the datapath has of the RPs 1 to 3, without branches to
// the RP with a name.
func (p *point) routesWithout(name byte) map[ids.Incarnation]datapath.Route {
	p.engine.mu.Lock()
	defer p.engine.mu.Unlock()
	routes := make(map[ids.Incarnation]datapath.Route)
	for _, of := range []byte{1, 2, 3} {
		if r, ok := p.engine.routes[incarnationOf(of, 0)]; ok {
			r = r.Clone()
			r.Keep(func(session ids.Session) bool { return p.engine.sessions[session].Addr.Addr().As16()[15] != name })
			routes[r.Ingress] = r
		}
	}
	return routes
}

// A parent that grants everything and forwards nothing takes what is below it, as long as it is
// the parent. Two seconds after it is gone, in whatever way, all of it is there.
//
//	1 ----- 2      20 ms
//	 \     /
//	  --4--        1 ms, as it says
func TestLyingParentIsGone(t *testing.T) {
	for name, leave := range map[string]func(l *liar){
		"closes":                         func(l *liar) { l.gone() },
		"says bye":                       func(l *liar) { l.say(&mesh.Bye{}); l.silent() },
		"is silent":                      func(l *liar) { l.silent() },
		"breaks the protocol":            func(l *liar) { l.raw(31, nil) },
		"says that its datapath goes on": func(l *liar) { l.gone() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.delay[[2]byte{1, 2}] = 20 * time.Millisecond
				p := n.chain(2)
				p[0].Admit(true)
				n.settle()
				require.Equal(t, map[byte]int{2: 1}, n.reach(p[0]))
				l := n.liar(4, time.Millisecond, name == "says that its datapath goes on", p...)
				within(t, 20*time.Second, func() bool { return maps.Equal(map[byte]int{}, n.reach(p[0])) })
				require.Equal(t, idOf(t, 4), p[1].Stats().Routes[0].Parent)
				leave(l)
				healed := within(t, 5*time.Second, func() bool { return maps.Equal(map[byte]int{2: 1}, n.reach(p[0])) })
				require.LessOrEqual(t, healed, 2*time.Second)
				l.gone()
			})
		})
	}
}

// A ban ends, and the next one is longer, up to a bound; after an hour without one they begin
// anew. The neighbour is not dialed meanwhile, nor when it says that this RP broke the protocol.
func TestBans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dialed []string
		p := newNetwork(t).start(1, incarnationOf(1, 0), func(c *Config) {
			c.Connect = func(nodes []*enode.Node, _ bool) {
				dialed = nil
				for _, n := range nodes {
					dialed = append(dialed, n.ID().TerminalString())
				}
			}
		})
		two := nodeOf(t, 2).ID().TerminalString()
		synctest.Wait()
		misbehave := func() {
			c := p.connect(2)
			c.open(incarnationOf(2, 0))
			c.drain()
			require.NoError(t, c.rw.WriteMsg(p2p.Msg{Code: 31}))
			<-c.done
			synctest.Wait()
			require.Equal(t, Banned, p.neighbour(2).State)
			require.NotContains(t, dialed, two)
		}
		for _, want := range []time.Duration{1, 2, 4, 8, 15, 15} {
			require.Contains(t, dialed, two)
			begin := time.Now()
			misbehave()
			within(t, time.Hour, func() bool {
				time.Sleep(time.Second)
				synctest.Wait()
				return p.neighbour(2).State != Banned
			})
			require.InDelta(t, want, time.Since(begin).Minutes(), 0.1)
			time.Sleep(time.Second)
			synctest.Wait()
		}
		c := p.connect(2)
		c.open(incarnationOf(2, 0))
		c.drain()
		c.up()
		c.send(&mesh.Bye{Reason: proto.ReasonUnexpected})
		<-c.done
		synctest.Wait()
		require.NotContains(t, dialed, two)
		require.Equal(t, Disconnected, p.neighbour(2).State, "it may connect")
		time.Sleep(banMemory + time.Minute)
		synctest.Wait()
		require.Contains(t, dialed, two)
		misbehave()
		time.Sleep(banFirst + time.Second)
		require.Equal(t, Disconnected, p.neighbour(2).State)
	})
}

// An RP of another chain or version is banned for a minute each time, so that it is back soon when
// that is mended. One that leaves the allow-list while it is not dialed is dialed when it returns.
func TestBanBeforeHello(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNetwork(t).start(1, incarnationOf(1, 0))
		for range 4 {
			c := p.connect(2)
			c.drain()
			require.NoError(t, p2p.Send(c.rw, mesh.HelloMsg, &mesh.Hello{NetworkID: 5, Incarnation: incarnationOf(2, 0), DataPort: 1, Session: 1}))
			<-c.done
			synctest.Wait()
			require.Equal(t, Banned, p.neighbour(2).State)
			time.Sleep(banFirst + time.Second)
			synctest.Wait()
			require.Equal(t, Disconnected, p.neighbour(2).State)
		}
		c := p.connect(2)
		c.open(incarnationOf(2, 0))
		c.drain()
		c.up()
		require.NoError(t, c.rw.WriteMsg(p2p.Msg{Code: 31}))
		<-c.done
		synctest.Wait()
		dialable := func() bool {
			nodes, _, _ := p.dialable()
			return slices.ContainsFunc(nodes, func(n *enode.Node) bool { return n.ID() == nodeOf(t, 2).ID() })
		}
		require.False(t, dialable())
		all := p.Neighbours()
		p.SetNeighbours(nil)
		time.Sleep(banLast)
		p.SetNeighbours(all)
		require.True(t, dialable())
	})
}

// A route that the datapath refuses keeps no other one out, and is not acknowledged; its child
// is told so.
func TestDatapathRefusesRoutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p := n.chain(2)
		p[1].Admit(true)
		n.settle()
		c := p[0].connect(3)
		c.open(incarnationOf(3, 0))
		seen := make(chan *linkstate.GraftAck, 10)
		go func() {
			for {
				msg, err := c.rw.ReadMsg()
				if err != nil {
					return
				}
				b := new(bytes.Buffer)
				_, _ = b.ReadFrom(msg.Payload)
				if m, err := decode(msg.Code, b.Bytes()); err == nil {
					if ack, ok := m.state.(*linkstate.GraftAck); ok {
						seen <- ack
					}
				}
			}
		}()
		c.up()
		bad := incarnationOf(2, 0)
		var refuse bool
		apply := p[0].engine.apply
		p[0].engine.OnApply = func(change datapath.Change) error {
			refused := new(datapath.Refused)
			for _, r := range change.Routes {
				if refuse && r.Ingress == bad && len(r.To) > 0 {
					refused.Route(r.Ingress, datapath.ErrNoRoom)
				}
			}
			change.Routes = slices.DeleteFunc(slices.Clone(change.Routes), func(r datapath.Route) bool { return refused.Routes[r.Ingress] != nil })
			return cmp.Or(apply(change), refused.Err())
		}
		p[0].call(func() { refuse = true })
		own := p[0].incarnation
		p[0].Admit(true)
		for range 50 {
			time.Sleep(linkstate.TreeInterval)
			c.greet()
		}
		both := grafts(min(own, bad), max(own, bad))
		c.send(both)
		require.Len(t, seen, 1)
		require.Equal(t, &linkstate.GraftAck{ID: 1, Granted: []ids.Incarnation{own}, Refused: []ids.Incarnation{bad}}, <-seen)
		p[0].engine.mu.Lock()
		require.Len(t, p[0].engine.routes[own].To, 2)
		require.Empty(t, p[0].engine.routes[bad].To)
		require.NotEmpty(t, p[0].engine.routes[bad].From, "it goes on as it was")
		p[0].engine.mu.Unlock()
		st := p[0].Stats()
		require.Equal(t, uint64(1), st.RoutesRefused)
		require.Equal(t, uint64(1), st.Core.Refused)
		p[0].call(func() { refuse = false })
		c.greet()
		c.send(both)
		require.Len(t, seen, 1)
		require.Equal(t, &linkstate.GraftAck{ID: 1, Granted: []ids.Incarnation{min(own, bad), max(own, bad)}, Refused: []ids.Incarnation{}}, <-seen)
	})
}

// Neighbours that are in no tree get the datagrams as guests, as far as the copy budget has room,
// and their reports count for nothing.
func TestChildOfNoTree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out told
		own := incarnationOf(1, 0)
		p := newNetwork(t).start(1, own, out.edit, func(c *Config) { c.Budget = 1 })
		p.join()
		p.Admit(true)
		time.Sleep(4 * time.Second)
		var all []*remote
		for name := byte(2); name <= 5; name++ {
			c := p.connect(name)
			c.open(incarnationOf(name, 0))
			c.drain()
			all = append(all, c)
			c.up()
		}
		alive := func(d time.Duration) {
			for ; d > 0; d -= linkstate.TreeInterval {
				time.Sleep(linkstate.TreeInterval)
				for _, c := range all {
					c.greet()
				}
			}
		}
		for _, c := range all {
			c.send(grafts(own))
		}
		branches := func() int {
			p.engine.mu.Lock()
			defer p.engine.mu.Unlock()
			return len(p.engine.routes[own].To)
		}
		require.Equal(t, 1, branches())
		p.cfg.Asked.Replicated(time.Now(), asking(own, 1))
		for _, c := range all {
			c.send(&mesh.Report{Reports: []receipts.Report{{
				Key: receipts.Key{Ingress: own, Group: group, Sequence: 1}, Count: receipts.Count{Sent: 1000, Confirmed: 1000},
			}}})
		}
		alive(2 * time.Second)
		for _, objects := range out.objects {
			for _, o := range objects {
				require.Zero(t, o.Confirmed)
				require.LessOrEqual(t, o.Sent, uint32(1), "the member here")
			}
		}
		alive(linkstate.Grace)
		require.Zero(t, branches())
		require.Zero(t, p.Stats().Violations)
	})
}
