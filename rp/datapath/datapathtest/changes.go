// SPDX-License-Identifier: LGPL-3.0-or-later

package datapathtest

import (
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/auth/authtest"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// drop receives a packet that must be dropped.
func (w *world) drop(p *packet, want wire.Verdict) {
	w.t.Helper()
	v, out := w.subject.Receive(p.src, p.bytes())
	if v != want || len(out) != 0 {
		w.t.Fatalf("%v: verdict %v with %d outputs, want %v", &p.header, v, len(out), want)
	}
}

func testChanges(t *testing.T, new New) {
	t.Run("a session that was removed", func(t *testing.T) {
		w := newWorld(t, new)
		w.apply(datapath.Change{Remove: []ids.Session{w.sessions[subscriber].Index, w.sessions[rp].Index, 0x9999}})
		p := w.packet(publisher)
		compare(t, w.published(p, publisher, 1, reader), w.pass(p))
		w.drop(w.packet(subscriber), wire.NoSession)
		w.drop(w.packet(rp), wire.NoSession)
	})
	t.Run("a session that comes back has a new window", func(t *testing.T) {
		w := newWorld(t, new)
		w.pass(w.packet(publisher))
		w.apply(datapath.Change{Remove: []ids.Session{w.sessions[publisher].Index}})
		w.apply(datapath.Change{Add: w.sessions[publisher : publisher+1]})
		p := w.packet(publisher)
		compare(t, w.published(p, publisher, 2, rp, subscriber, reader), w.pass(p))
	})
	t.Run("a session that is replaced keeps its window", func(t *testing.T) {
		w := newWorld(t, new)
		w.pass(w.packet(publisher))
		w.sessions[publisher].SendSession = 0x7777
		w.sessions[publisher].SendKey = auth.Key{'n'}
		w.apply(datapath.Change{Add: w.sessions[publisher : publisher+1]})
		w.drop(w.packet(publisher), wire.Replayed)
		p := w.packet(publisher).seq(2)
		compare(t, w.published(p, publisher, 2, rp, subscriber, reader), w.pass(p))
	})
	t.Run("a session that is replaced keeps its rate", func(t *testing.T) {
		w := newWorld(t, new)
		publisherSent(burst)(w)
		w.apply(datapath.Change{Add: w.sessions[publisher : publisher+1]})
		w.drop(w.packet(publisher).seq(burst+1), wire.OverRate)
	})
	t.Run("a session with another key is another", func(t *testing.T) {
		w := newWorld(t, new)
		w.pass(w.packet(publisher))
		w.sessions[publisher].ReceiveKey = auth.Key{'n'}
		w.apply(datapath.Change{Add: w.sessions[publisher : publisher+1]})
		p := w.packet(publisher)
		compare(t, w.published(p, publisher, 2, rp, subscriber, reader), w.pass(p))
	})
	t.Run("a group that stands twice counts once", func(t *testing.T) {
		w := newWorld(t, new)
		w.sessions[reader].Groups = []ids.Group{group, group}
		w.apply(datapath.Change{Add: w.sessions[reader : reader+1]})
		p := w.packet(publisher)
		compare(t, w.published(p, publisher, 1, rp, subscriber, reader), w.pass(p))
	})
	for _, test := range authtest.Epochs {
		t.Run("epochs: "+test.Name, func(t *testing.T) {
			w := newWorld(t, new)
			ingress := ingressOf(rp)
			w.apply(datapath.Change{Retire: []ids.Incarnation{ingress}})
			keys := make(map[uint8]auth.Key)
			for i, e := range test.Told {
				keys[e] = auth.Key{'e', e, byte(i)}
				w.apply(datapath.Change{
					Keys:   []proto.GroupKey{{Ingress: ingress, Group: group, Epoch: e, Key: keys[e]}},
					Routes: []datapath.Route{w.route(ingress, []int{rp})},
				})
			}
			for i, e := range slices.Sorted(maps.Keys(keys)) {
				p := w.packet(rp).seq(uint64(i) + 1)
				p.header.Epoch, p.payloadKey = e, keys[e]
				if slices.Contains(test.Kept, e) {
					compare(t, w.relayed(p, publisher, subscriber, reader), w.pass(p))
				} else {
					w.drop(p, wire.NoKey)
				}
			}
		})
	}
	t.Run("an epoch that is installed again has the new key", func(t *testing.T) {
		w := newWorld(t, new)
		k := w.key(incarnation, group, epoch)
		k.Key = auth.Key{'n'}
		w.apply(datapath.Change{Keys: []proto.GroupKey{k}})
		w.drop(w.packet(publisher), wire.BadPayloadTag)
		p := w.packet(publisher)
		p.payloadKey = k.Key
		w.pass(p)
		before := w.packet(publisher).seq(2)
		before.header.Epoch, before.payloadKey = epoch-1, w.keys[keyID{incarnation, group, epoch - 1}]
		w.pass(before)
	})
	t.Run("an epoch that is installed again keeps what was taken", func(t *testing.T) {
		w := newWorld(t, new)
		w.pass(w.packet(rp))
		w.apply(datapath.Change{Keys: []proto.GroupKey{w.key(ingressOf(rp), group, epoch)}})
		w.drop(w.packet(rp), wire.Replayed)
	})
	t.Run("a retired ingress is unknown, and new when it comes back", func(t *testing.T) {
		w := newWorld(t, new)
		ingress := ingressOf(rp)
		w.pass(w.packet(rp))
		w.apply(datapath.Change{Retire: []ids.Incarnation{ingress}})
		w.drop(w.packet(rp).seq(2), wire.NoKey)
		w.drop(w.heartbeat(rp, 1, 2), wire.NoKey)
		w.apply(datapath.Change{Keys: []proto.GroupKey{w.key(ingress, group, epoch)}})
		w.drop(w.packet(rp), wire.BadUpstream) // its route ended, too
		w.apply(datapath.Change{Routes: []datapath.Route{w.route(ingress, []int{rp})}})
		p := w.packet(rp)
		compare(t, w.relayed(p, publisher, subscriber, reader), w.pass(p))
	})
	t.Run("retire comes before keys and routes in one change", func(t *testing.T) {
		w := newWorld(t, new)
		ingress := ingressOf(rp)
		w.apply(datapath.Change{
			Retire: []ids.Incarnation{ingress},
			Keys:   []proto.GroupKey{w.key(ingress, group, epoch)},
			Routes: []datapath.Route{w.route(ingress, []int{rp})},
		})
		w.pass(w.packet(rp))
	})
}

func testRefused(t *testing.T, new New) {
	w := newWorld(t, new)
	good := w.sessions[publisher]
	good.Index, good.Addr = 0x5555, w.subject.Endpoint(nobody)
	mesh := w.sessions[rp]
	mesh.Index = 0x6666
	bad := map[string]datapath.Change{}
	session := func(name string, s datapath.Session, edit func(*datapath.Session)) {
		edit(&s)
		bad[name] = datapath.Change{Add: []datapath.Session{s}}
	}
	session("index 0", good, func(s *datapath.Session) { s.Index = 0 })
	session("no role", good, func(s *datapath.Session) { s.Role = 0 })
	session("publisher without rate", good, func(s *datapath.Session) { s.Rate = 0 })
	session("publisher without burst", good, func(s *datapath.Session) { s.Burst = 0 })
	session("egress limit without burst", mesh, func(s *datapath.Session) { s.Egress = 1 })
	session("mesh with a group", mesh, func(s *datapath.Session) { s.Groups = []ids.Group{group} })
	session("mesh that publishes", mesh, func(s *datapath.Session) { s.Publish, s.Rate, s.Burst = true, 1, 1 })
	for _, addr := range unusable {
		session("address "+addr.String(), good, func(s *datapath.Session) { s.Addr = addr })
	}
	bad["key without ingress"] = datapath.Change{Keys: []proto.GroupKey{{Group: group}}}
	route := func(name string, r datapath.Route) { bad[name] = datapath.Change{Routes: []datapath.Route{r}} }
	route("route of no ingress", w.route(0, []int{rp}))
	route("own route from somewhere", w.route(incarnation, []int{rp}))
	route("route to a session twice", w.route(7, nil, rp, silent, rp))
	route("route from too many", datapath.Route{Ingress: 7, From: make([]ids.Session, datapath.MaxUpstreams+1)})
	bad["own incarnation retired"] = datapath.Change{Retire: []ids.Incarnation{incarnation}}

	for name, c := range bad {
		t.Run(name, func(t *testing.T) {
			before := w.snapshot()
			if err := w.subject.Apply(c); !errors.Is(err, datapath.ErrContract) {
				t.Fatalf("applied with %v, want %v", err, datapath.ErrContract)
			}
			if diff := gocmp.Diff(before, w.snapshot(), allow); diff != "" {
				t.Fatalf("changed (-before +after):\n%s", diff)
			}
		})
	}
	w.next.check(t)
}

// testRefusedBeside has an element of each kind refused: all others of the change, before
// and after it, take effect.
func testRefusedBeside(t *testing.T, new New) {
	w := newWorld(t, new)
	good := w.sessions[publisher]
	good.Index, good.Addr = 0x5555, w.subject.Endpoint(nobody)
	bad := w.sessions[subscriber] // in whose place it would be
	bad.Role = 0
	const ingress = 7
	err := w.subject.Apply(datapath.Change{
		Remove: []ids.Session{w.sessions[reader].Index},
		Retire: []ids.Incarnation{incarnation, ingressOf(silent)},
		Keys:   []proto.GroupKey{{Group: group}, w.key(ingress, group, epoch)},
		Add:    []datapath.Session{bad, good},
		Routes: []datapath.Route{
			w.route(0, []int{rp}),
			w.route(ingress, []int{rp}),
			{Ingress: 8}, // ends a route that is not there: no error
			w.route(9, nil, rp, silent, rp),
		},
	})
	refused, ok := errors.AsType[*datapath.Refused](err)
	if !ok {
		t.Fatalf("error %v, want a Refused", err)
	}
	sessions, keys := slices.Sorted(maps.Keys(refused.Sessions)), slices.Collect(maps.Keys(refused.Keys))
	if !slices.Equal(sessions, []ids.Session{bad.Index}) || !slices.Equal(keys, []ids.Stream{{Group: group}}) {
		t.Errorf("refused sessions %08x and keys %v, want the bad ones", sessions, keys)
	}
	if routes := slices.Sorted(maps.Keys(refused.Routes)); !slices.Equal(routes, []ids.Incarnation{0, 9, incarnation}) {
		t.Errorf("refused routes %08x, want the bad ones", routes)
	}
	indexes := make(map[ids.Session]bool)
	for _, s := range w.subject.Stats().Sessions {
		indexes[s.Index] = true
	}
	if !indexes[good.Index] || !indexes[bad.Index] || indexes[w.sessions[reader].Index] {
		t.Errorf("sessions %08x: want the new one and the one before, not the removed", slices.Sorted(maps.Keys(indexes)))
	}
	p := w.packet(rp) // by the route that was beside the bad ones
	p.header.Ingress, p.payloadKey = ingress, w.key(ingress, group, epoch).Key
	w.pass(p)
	w.drop(w.packet(silent), wire.NoKey) // retired beside the own incarnation
}

// limit gives a session a byte of copies per second, and some at once.
func (w *world) limit(node int, burst uint64) {
	w.t.Helper()
	w.sessions[node].Egress, w.sessions[node].EgressBurst = 1, burst
	w.apply(datapath.Change{Add: w.sessions[node : node+1]})
}

// testEgress counts what passes until the bucket of copies is empty. It gets so little
// back that the time a test takes does not matter.
func testEgress(t *testing.T, new New) {
	for _, c := range []struct {
		name      string
		from      int
		gone      []int  // who left before
		receivers uint64 // of the rest, the publisher too
	}{
		{"of a publisher: the mesh and all peers count", publisher, nil, 4},
		{"of a publisher: who left does not count", publisher, []int{rp, reader}, 2},
		{"of an RP neighbour: local peers count", rp, nil, 3},
		{"of an RP neighbour: who left does not count", rp, []int{reader}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, new)
			w.sessions[publisher].Burst = 100
			var change datapath.Change
			for _, i := range c.gone {
				change.Remove = append(change.Remove, w.sessions[i].Index)
			}
			w.apply(change)
			// Two and a half datagrams of one size, and one that is longer.
			cost := c.receivers * uint64(len(w.packet(c.from).bytes()))
			w.limit(c.from, 2*cost+cost/2)
			w.pass(w.packet(c.from).seq(1))
			long := w.packet(c.from).seq(2)
			long.payload = make([]byte, wire.MaxPayload)
			w.pass(long)
			w.drop(w.packet(c.from).seq(3), wire.OverRate)

			// The refused sequence is not used up, and a replacement keeps the bucket.
			w.limit(c.from, 2*cost+cost/2)
			w.drop(w.packet(c.from).seq(3), wire.OverRate)
			longCost := c.receivers * uint64(len(long.bytes()))
			w.limit(c.from, cost+longCost+2*cost+cost/2)
			for seq := uint64(3); seq < 6; seq++ {
				w.pass(w.packet(c.from).seq(seq))
			}
			w.drop(w.packet(c.from).seq(6), wire.OverRate)
			w.sessions[c.from].Egress = 0
			w.apply(datapath.Change{Add: w.sessions[c.from : c.from+1]})
			w.pass(w.packet(c.from).seq(6))
		})
	}
}

// testEgressOfAll has a publisher and an RP neighbour empty the bucket of all copies, and
// nobody's own.
func testEgressOfAll(t *testing.T, new New) {
	size := uint64(len(newWorld(t, new).packet(publisher).bytes()))
	w := newLimitedWorld(t, new, 1, 6*size)
	w.pass(w.packet(publisher)) // 4 copies
	w.pass(w.packet(rp))        // 3
	w.drop(w.packet(publisher).seq(2), wire.OverRate)
	w.drop(w.packet(subscriber), wire.OverRate)
	w.drop(w.packet(rp).seq(2), wire.OverRate)
	w.drop(w.heartbeat(rp, 1, 2), wire.OverRate)
	for node := range w.sessions { // a new session finds the bucket empty, too
		w.sessions[node].ReceiveKey[0]++
	}
	w.apply(datapath.Change{Add: w.sessions[:]})
	w.drop(w.packet(publisher), wire.OverRate)
}

func testHeartbeat(t *testing.T, new New) {
	w := newWorld(t, new)
	publisherSent(2)(w)
	for n, scope := range []datapath.HeartbeatScope{datapath.All, datapath.Local, datapath.All} {
		beat, to := uint64(2*n+1), []int{publisher, subscriber, reader}
		if scope == datapath.All {
			to = append(to, rp)
		}
		want := append(w.beat(group, beat, 2, to...), w.beat(otherGroup, beat+1, 0, stranger)...)
		compare(t, want, w.subject.Heartbeat(scope))
	}
	// A group that nobody within the scope has is left out.
	var c datapath.Change
	for _, i := range []int{publisher, subscriber, reader, stranger} {
		c.Remove = append(c.Remove, w.sessions[i].Index)
	}
	w.apply(c)
	compare(t, nil, w.subject.Heartbeat(datapath.Local))
	compare(t, w.beat(group, 7, 2, rp), w.subject.Heartbeat(datapath.All))
	// What is relayed has numbers of the same count.
	w.beats = 7
	w.routes(w.route(ingressOf(silent), []int{silent}, rp))
	p := w.heartbeat(silent, 99, 5)
	compare(t, w.relayed(p, rp), w.pass(p))
	compare(t, w.beat(group, 9, 2, rp), w.subject.Heartbeat(datapath.All))
}

func testMarks(t *testing.T, new New) {
	w := newWorld(t, new)
	mark := func(ingress ids.Incarnation, group ids.Group, seq uint64) proto.Mark {
		return proto.Mark{Ingress: ingress, Group: group, Sequence: seq}
	}
	check := func(want ...proto.Mark) {
		t.Helper()
		if diff := gocmp.Diff(want, w.subject.Marks()); diff != "" {
			t.Fatalf("marks (-want +got):\n%s", diff)
		}
	}
	a, b := ingressOf(rp), ingressOf(silent)
	check(mark(incarnation, group, 0), mark(incarnation, otherGroup, 0)) // nothing was heard of the others
	publisherSent(2)(w)
	w.pass(w.heartbeat(rp, 1, 0))
	own, other := mark(incarnation, group, 2), mark(incarnation, otherGroup, 0)
	check(mark(a, group, 0), own, other)
	w.pass(w.packet(rp).seq(7))
	w.pass(w.packet(rp).seq(6))
	check(mark(a, group, 7), own, other)
	w.subject.Age(-time.Hour, 0) // 7 came just now
	w.pass(w.heartbeat(rp, 2, 5))
	w.pass(w.heartbeat(silent, 1, 90))
	check(mark(a, group, 7), mark(b, group, 90), own, other)
	w.apply(datapath.Change{Retire: []ids.Incarnation{a}})
	check(mark(b, group, 90), own, other)
}

func testCounters(t *testing.T, new New) {
	w := newWorld(t, new)
	full := w.packet(publisher)
	w.pass(full)
	w.pass(w.packet(rp))
	w.pass(w.heartbeat(reader, 0, 0))
	w.drop(w.packet(publisher), wire.Replayed)

	st := w.subject.Stats()
	size := uint64(len(full.bytes()))
	if st.Copies != 6 || st.CopyBytes != 6*size || st.Echoes != 1 || st.SendErrors != 0 {
		t.Errorf("copies %d, bytes %d, echoes %d, send errors %d; want 6, %d, 1, 0",
			st.Copies, st.CopyBytes, st.Echoes, st.SendErrors, 6*size)
	}
	if st.Verdicts[wire.Pass] != 3 || st.Verdicts[wire.Replayed] != 1 {
		t.Errorf("verdicts %v", st.Verdicts)
	}
	if len(st.Sessions) != len(w.sessions) {
		t.Fatalf("%d sessions, want %d", len(st.Sessions), len(w.sessions))
	}
	for i, s := range st.Sessions { // ordered by index, as the world's are
		want := w.sessions[i]
		received := map[int]uint64{publisher: 1, rp: 1, reader: 1}[i]
		if s.Index != want.Index || s.Role != want.Role || s.Addr != want.Addr || s.Received != received {
			t.Errorf("session %+v, want index %08x, %v, received %d", s, want.Index, want.Role, received)
		}
		if s.Heard.IsZero() != (received == 0) {
			t.Errorf("session %08x: last heard %v after %d datagrams", s.Index, s.Heard, received)
		}
	}
}
