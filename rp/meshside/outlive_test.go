// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/mesh"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
)

func outlives(c *Config) { c.Outlives = true }

// kill ends the process of an RP, and its connections. Its datapath goes on.
func (p *point) kill(cuts ...func()) {
	p.killed.Store(true)
	p.engine.refuse(true)
	for _, cut := range cuts {
		cut()
	}
	synctest.Wait()
	p.Stop()
	p.engine.refuse(false)
}

// again starts the next process of an RP, which adopts the datapath.
func (n *network) again(p *point, edit ...func(*Config)) *point {
	st := p.engine.state(p.incarnation)
	orphans := datapath.NewOrphans(p.engine, st)
	return n.startOn(p.engine, p.name, p.incarnation, append(edit, outlives, func(c *Config) {
		c.Engine, c.Adopted, c.Routes, c.Publishes = orphans, orphans, st.Routes, true
	})...)
}

// chainOfThree is a chain in which 1 and 3 publish, and the links of 2.
//
//	1 --- 2 --- 3
func chainOfThree(n *network) (p []*point, cuts []func()) {
	for i := range byte(3) {
		p = append(p, n.start(i+1, incarnationOf(byte(i+1), 0), outlives))
		p[i].join()
		if i > 0 {
			cuts = append(cuts, n.link(p[i-1], p[i]))
		}
	}
	n.settle()
	for _, i := range []int{0, 2} {
		ready, _ := p[i].Admit(true)
		<-ready
	}
	n.settle()
	return p, cuts
}

// flows requires that each RP gets what 1 and 3 publish, once, at any time.
func flows(t *testing.T, n *network, p []*point, d time.Duration) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Millisecond) {
		synctest.Wait()
		require.Equal(t, map[byte]int{2: 1, 3: 1}, n.reach(p[0]))
		require.Equal(t, map[byte]int{1: 1, 2: 1}, n.reach(p[2]))
	}
}

// The process of 2 is killed, and the next one takes its datapath over: what 1 and 3
// publish arrives all the time, once.
func TestProcessDies(t *testing.T) {
	for name, away := range map[string]time.Duration{"soon": 100 * time.Millisecond, "late": 12 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				p, cuts := chainOfThree(n)
				flows(t, n, p, 100*time.Millisecond)
				for range 2 { // and once more
					p[1].kill(cuts...)
					flows(t, n, p, away)
					require.Equal(t, Away, stateOf(t, p[0], 2))
					p[1] = n.again(p[1])
					flows(t, n, p, 200*time.Millisecond)
					cuts[1] = n.link(p[2], p[1])
					flows(t, n, p, time.Second)
					cuts[0] = n.link(p[1], p[0])
					flows(t, n, p, 25*time.Second)
					for _, o := range p {
						st := o.Stats()
						require.True(t, st.Settled)
						require.Zero(t, st.Violations)
						require.Zero(t, st.Core.Downs, "rp %d", o.name)
						require.Zero(t, st.Core.Failovers)
						require.Len(t, st.Database, 3)
					}
					require.Equal(t, Up, stateOf(t, p[0], 2))
					require.Len(t, p[1].engine.state(0).Sessions, 2, "the sessions before are gone")
					require.Len(t, p[0].engine.state(0).Sessions, 1)
					require.Len(t, p[1].Stats().Routes, 3)
					p[1].call(func() {
						for _, o := range p {
							require.NotEmpty(t, p[1].keys.Of(o.incarnation), "of %d", o.name)
						}
					})
				}

				// A new key goes the whole way.
				key := firstKey(p[0].incarnation)
				key.Epoch, key.Key = 1, auth.Key{9}
				require.Zero(t, p[0].Offer([]proto.GroupKey{key}, time.Second))
				require.True(t, p[2].has(key))
			})
		})
	}
}

// The next process of 2 finds its neighbours some time later, all of them or one, and nothing
// is lost.
func TestProcessDiesAndFinds(t *testing.T) {
	for name, known := range map[string][]*enode.Node{"all": nil, "one": {nodeOf(t, 1)}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				p, cuts := chainOfThree(n)
				p[1].kill(cuts...)
				p[1] = n.again(p[1], func(c *Config) { c.Neighbours, c.Finds = known, true })
				if known != nil {
					n.link(p[1], p[0])
				}
				flows(t, n, p, 4*time.Second)
				p[1].SetNeighbours([]*enode.Node{nodeOf(t, 1), nodeOf(t, 3)})
				if known == nil {
					n.link(p[1], p[0])
				}
				n.link(p[1], p[2])
				flows(t, n, p, 25*time.Second)
				for _, o := range p {
					st := o.Stats()
					require.Zero(t, st.Core.Downs, "rp %d", o.name)
					require.Zero(t, st.Core.Failovers)
					require.Len(t, st.Database, 3)
				}
				require.Len(t, p[1].engine.state(0).Sessions, 2, "the sessions before are gone")
			})
		})
	}
}

// A connection ends, and both processes live: nothing is lost while it is made again.
func TestConnectionLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p, cuts := chainOfThree(n)
		for range 3 {
			cuts[0]()
			flows(t, n, p, time.Second)
			require.Equal(t, Away, stateOf(t, p[0], 2))
			require.Equal(t, Away, stateOf(t, p[1], 1))
			cuts[0] = n.link(p[0], p[1])
			flows(t, n, p, 200*time.Millisecond) // cut again while both sessions are there
		}
		flows(t, n, p, 20*time.Second)
		for _, o := range p {
			require.Zero(t, o.Stats().Core.Downs)
			require.Zero(t, o.Stats().Core.Repairs)
		}
		require.Len(t, p[0].engine.state(0).Sessions, 1)
		require.Len(t, p[1].engine.state(0).Sessions, 2)
	})
}

func stateOf(t *testing.T, p *point, name byte) State {
	all := p.Stats().Neighbours
	return all[slices.IndexFunc(all, func(o Neighbour) bool { return o.RP == idOf(t, name) })].State
}

// One that does not come back is lost after 15 s, and one that says Bye, or whose datapath
// ends with it, at once.
func TestProcessAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p, cuts := chainOfThree(n)
		p[1].kill(cuts...)
		took := within(t, time.Minute, func() bool { return stateOf(t, p[0], 2) == Disconnected })
		require.InDelta(t, awayTimeout.Seconds(), took.Seconds(), 0.2)
		require.Empty(t, n.reach(p[0]))
		require.Empty(t, p[0].engine.state(0).Sessions)
		require.Empty(t, p[0].engine.state(0).Routes)
	})
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p, _ := chainOfThree(n)
		p[1].Stop()
		synctest.Wait()
		require.Equal(t, Disconnected, stateOf(t, p[0], 2))
		require.Empty(t, n.reach(p[0]))
	})
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p := []*point{n.start(1, incarnationOf(1, 0)), n.start(2, incarnationOf(2, 0))}
		cut := n.link(p[0], p[1])
		n.settle()
		cut()
		synctest.Wait()
		require.Equal(t, Disconnected, stateOf(t, p[0], 2))
		require.Empty(t, p[0].engine.state(0).Sessions)
	})
}

// A neighbour that connects again and again and says Hello, but sends nothing, is away all the
// time, and lost after it; no sessions pile up.
func TestAwayAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNetwork(t).start(1, incarnationOf(1, 0), outlives)
		connect := func() *remote {
			c := p.connect(2)
			c.session = expect[*mesh.Hello](c).Session
			c.send(&mesh.Hello{NetworkID: 1, Incarnation: incarnationOf(2, 0), DataPort: 40501, Session: 0x77, Outlives: true})
			c.drain()
			return c
		}
		c := connect()
		c.up()
		began := time.Now()
		for {
			c.rw.Close()
			<-c.done
			synctest.Wait()
			if stateOf(t, p, 2) != Away {
				break
			}
			require.LessOrEqual(t, len(p.engine.state(0).Sessions), outlivedKept)
			require.LessOrEqual(t, time.Since(began), awayTimeout+time.Second)
			c = connect()
			time.Sleep(time.Second)
		}
		require.GreaterOrEqual(t, time.Since(began), awayTimeout)
		require.Empty(t, p.engine.state(0).Sessions)
		require.Empty(t, p.core.Neighbours())
	})
}

// Who comes back as another incarnation did not take the datapath over.
func TestProcessDiesForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p, cuts := chainOfThree(n)
		p[1].kill(cuts...)
		flows(t, n, p, time.Second)
		p[1] = n.start(2, incarnationOf(2, 1), outlives)
		n.link(p[0], p[1])
		synctest.Wait()
		require.Empty(t, n.reach(p[0]))
		require.Len(t, p[0].engine.state(0).Sessions, 1)
		n.link(p[1], p[2])
		within(t, 5*time.Second, func() bool { return maps.Equal(map[byte]int{2: 1, 3: 1}, n.reach(p[0])) })
	})
}

// Adopted sessions and routes end when the neighbours do not come.
func TestAdoptedAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		p, cuts := chainOfThree(n)
		p[1].kill(cuts...)
		p[1] = n.again(p[1])
		require.Len(t, p[1].engine.state(0).Routes, 2)
		time.Sleep(awayTimeout + time.Second)
		synctest.Wait()
		require.Empty(t, p[1].engine.state(0).Sessions)
		require.Empty(t, p[1].engine.state(0).Routes)
		require.Equal(t, Disconnected, stateOf(t, p[1], 1))
	})
}

// Branches of an adopted route go on beside the own ones, each session once.
func TestWay(t *testing.T) {
	near := &neighbour{id: 7, outlived: []outlived{{index: 1}, {index: 2}}}
	far := &neighbour{id: 8, link: &link{index: 3, open: true}}
	s := &Server{
		cfg: Config{Incarnation: 0x100, Groups: []ids.Group{4, 5}},
		rps: map[linkstate.ID]*neighbour{7: near, 8: far},
		ingresses: map[ids.Incarnation]*ingress{0x200: {route: linkstate.Route{
			Parent: 8, Previous: []linkstate.ID{9}, Children: []linkstate.Child{{ID: 7, Groups: []ids.Group{4}}, {ID: 8}},
		}}},
		adopted: adopted{routes: map[ids.Incarnation]linkstate.Route{
			0x100: {Previous: []linkstate.ID{7}, Children: []linkstate.Child{{ID: 7, All: true}}},
			0x200: {Previous: []linkstate.ID{7, 8}, Children: []linkstate.Child{{ID: 7, Groups: []ids.Group{4, 5}}}},
		}},
	}
	require.Equal(t, datapath.Route{
		Ingress: 0x200, From: []ids.Session{3, 1, 2}, To: []datapath.Branch{{Session: 1, Groups: []ids.Group{4, 5}}},
	}, s.way(0x200))
	require.Equal(t, datapath.Route{Ingress: 0x100, To: []datapath.Branch{{Session: 1, Groups: []ids.Group{4, 5}}}}, s.way(0x100))

	near.link = &link{index: 6, open: true}
	require.Equal(t, []ids.Session{3, 6, 1, 2}, s.way(0x200).From)
	require.Equal(t, ids.Session(1), near.sends(), "until the neighbour has the other")
	near.link.proven = true
	require.Equal(t, ids.Session(6), near.sends())
}

// The datapath of a neighbour whose process is away is heard by the session before: no backup is asked.
func TestAwayAndHeard(t *testing.T) {
	for name, forwards := range map[string]bool{"forwards": true, "is silent": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.delay[[2]byte{1, 3}] = 40 * time.Millisecond
				var p []*point
				for i := range byte(3) {
					p = append(p, n.start(i+1, incarnationOf(i+1, 0), outlives))
					p[i].join()
				}
				a, b := n.link(p[0], p[1]), n.link(p[1], p[2])
				n.link(p[0], p[2])
				n.settle()
				ready, _ := p[0].Admit(true)
				<-ready
				n.settle()
				grafts := p[2].Stats().Core.Grafts
				p[1].kill(a, b)
				for range 60 {
					if forwards {
						for _, s := range p[2].engine.state(0).Sessions {
							p[2].engine.SetHeard(s.Index, time.Now())
						}
					}
					time.Sleep(50 * time.Millisecond)
				}
				synctest.Wait()
				require.Equal(t, Away, stateOf(t, p[2], 2))
				require.Equal(t, forwards, p[2].Stats().Core.Grafts == grafts)
			})
		})
	}
}
