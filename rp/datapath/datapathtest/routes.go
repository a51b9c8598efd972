// SPDX-License-Identifier: LGPL-3.0-or-later

package datapathtest

import (
	"errors"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// routes applies routes alone.
func (w *world) routes(routes ...datapath.Route) {
	w.t.Helper()
	w.apply(datapath.Change{Routes: routes})
}

// from returns p as it comes from another RP neighbour.
func (w *world) from(p *packet, node int) *packet {
	s := &w.sessions[node]
	p.src, p.hopKey, p.header.Session = s.Addr, s.ReceiveKey, s.Index
	return p
}

func testRoutes(t *testing.T, new New) {
	peers := []int{publisher, subscriber, reader}
	t.Run("a branch gets what an upstream sends", func(t *testing.T) {
		w := newWorld(t, new)
		w.routes(w.route(ingressOf(rp), []int{rp}, silent))
		p := w.packet(rp)
		compare(t, w.relayed(p, silent, publisher, subscriber, reader), w.pass(p))
		p = w.heartbeat(rp, 1, 9)
		compare(t, w.relayed(p, silent, publisher, subscriber, reader), w.pass(p))
		p = w.packet(rp).seq(2)
		p.payload = make([]byte, wire.MaxPayload)
		compare(t, w.relayed(p, silent, publisher, subscriber, reader), w.pass(p))
		p = w.packet(publisher)
		compare(t, w.published(p, publisher, 1, rp, subscriber, reader), w.pass(p))
	})
	t.Run("no copy goes back", func(t *testing.T) {
		w := newWorld(t, new)
		w.routes(w.route(ingressOf(rp), []int{rp, silent}, rp, silent))
		p := w.packet(rp)
		compare(t, w.relayed(p, silent, publisher, subscriber, reader), w.pass(p))
		p = w.from(w.packet(rp).seq(2), silent)
		compare(t, w.relayed(p, rp, publisher, subscriber, reader), w.pass(p))
		p = w.heartbeat(rp, 1, 2)
		compare(t, w.relayed(p, silent, publisher, subscriber, reader), w.pass(p))
	})
	t.Run("two upstreams share a window", func(t *testing.T) {
		w := newWorld(t, new)
		w.routes(w.route(ingressOf(rp), []int{rp, silent}))
		w.pass(w.packet(rp))
		w.drop(w.from(w.packet(rp), silent), wire.Replayed)
		p := w.from(w.packet(rp).seq(2), silent)
		compare(t, w.relayed(p, peers...), w.pass(p))
		w.drop(w.packet(rp).seq(2), wire.Replayed)
	})
	t.Run("the first upstream is believed", func(t *testing.T) {
		w := newWorld(t, new)
		w.routes(w.route(ingressOf(rp), []int{rp, silent}))
		p := w.heartbeat(rp, 7, 2)
		compare(t, w.relayed(p, peers...), w.pass(p))
		w.drop(w.heartbeat(rp, 7, 2), wire.Replayed)
		// Each has numbers of its own, and the other one is only there.
		compare(t, nil, w.pass(w.from(w.heartbeat(rp, 7, 1<<40), silent)))
		w.drop(w.from(w.heartbeat(rp, 7, 2), silent), wire.Replayed)
		w.drop(w.packet(rp).seq(1<<39), wire.FarAhead)
		w.routes(w.route(ingressOf(rp), []int{silent, rp}))
		p = w.from(w.heartbeat(rp, 8, 3), silent)
		compare(t, w.relayed(p, peers...), w.pass(p))
		compare(t, nil, w.pass(w.heartbeat(rp, 8, 3)))
	})
	t.Run("an upstream that is none any more", func(t *testing.T) {
		w := newWorld(t, new)
		w.pass(w.packet(rp))
		w.routes(w.route(ingressOf(rp), []int{silent}))
		w.drop(w.packet(rp).seq(2), wire.BadUpstream)
		w.drop(w.heartbeat(rp, 1, 2), wire.BadUpstream)
		w.drop(w.from(w.packet(rp), silent), wire.Replayed)
		p := w.from(w.packet(rp).seq(2), silent)
		compare(t, w.relayed(p, peers...), w.pass(p))
	})
	t.Run("as many upstreams as may be, and others", func(t *testing.T) {
		w := newWorld(t, new)
		r := w.route(ingressOf(rp), []int{rp})
		var c datapath.Change
		for i := range ids.Session(2 * datapath.MaxUpstreams) {
			s := w.sessions[silent]
			s.Index += 100 + i
			c.Add = append(c.Add, s)
		}
		seq := uint64(0)
		for step := range datapath.MaxUpstreams + 1 { // most stay, one after the other goes
			r.From = r.From[:0]
			for i := range c.Add {
				if step <= i && i < step+datapath.MaxUpstreams {
					r.From = append(r.From, c.Add[i].Index)
				}
			}
			c.Routes = []datapath.Route{r}
			w.apply(c)
			for i := range c.Add {
				p := w.from(w.packet(rp), silent)
				p.header.Session = c.Add[i].Index
				if step <= i && i < step+datapath.MaxUpstreams {
					seq++
					w.pass(p.seq(seq))
				} else {
					w.drop(p.seq(seq+1), wire.BadUpstream)
				}
			}
		}
	})
	t.Run("a branch gets its groups", func(t *testing.T) {
		w := newWorld(t, new)
		own := w.route(incarnation, nil, rp, silent)
		own.To[1].Groups = []ids.Group{otherGroup}
		w.routes(own)
		p := w.packet(publisher)
		compare(t, w.published(p, publisher, 1, rp, subscriber, reader), w.pass(p))
		p = w.packet(stranger)
		compare(t, w.published(p, stranger, 1, silent), w.pass(p))
		want := append(w.beat(group, 1, 1, rp, publisher, subscriber, reader), w.beat(otherGroup, 2, 1, silent, stranger)...)
		compare(t, want, w.subject.Heartbeat(datapath.All))
		own.To[1].Groups = []ids.Group{otherGroup, group}
		w.routes(own)
		p = w.packet(publisher).seq(2)
		compare(t, w.published(p, publisher, 2, rp, silent, subscriber, reader), w.pass(p))
	})
	t.Run("each ingress has a route of its own", func(t *testing.T) {
		w := newWorld(t, new)
		w.routes(w.route(ingressOf(rp), []int{rp}, silent), w.route(ingressOf(silent), []int{silent}, rp))
		w.routes(w.route(incarnation, nil, silent))
		p := w.packet(rp)
		compare(t, w.relayed(p, silent, publisher, subscriber, reader), w.pass(p))
		p = w.packet(silent)
		compare(t, w.relayed(p, rp, publisher, subscriber, reader), w.pass(p))
		p = w.packet(publisher)
		compare(t, w.published(p, publisher, 1, silent, subscriber, reader), w.pass(p))
	})
	t.Run("a route that ends", func(t *testing.T) {
		w := newWorld(t, new)
		w.routes(datapath.Route{Ingress: ingressOf(rp)}, datapath.Route{Ingress: incarnation})
		w.drop(w.packet(rp), wire.BadUpstream)
		p := w.packet(publisher)
		compare(t, w.published(p, publisher, 1, subscriber, reader), w.pass(p))
		p = w.packet(silent)
		compare(t, w.relayed(p, peers...), w.pass(p))
	})
	t.Run("a session that is removed leaves the routes", func(t *testing.T) {
		w := newWorld(t, new)
		w.routes(w.route(incarnation, nil, rp, silent), w.route(ingressOf(rp), []int{rp, silent}))
		w.apply(datapath.Change{Remove: []ids.Session{w.sessions[silent].Index}})
		w.apply(datapath.Change{Add: w.sessions[silent : silent+1]})
		p := w.packet(publisher)
		compare(t, w.published(p, publisher, 1, rp, subscriber, reader), w.pass(p))
		w.drop(w.packet(silent), wire.BadUpstream)
		w.drop(w.from(w.packet(rp), silent), wire.BadUpstream)
		p = w.packet(rp)
		compare(t, w.relayed(p, peers...), w.pass(p))
	})
	t.Run("a session that is replaced stays in the routes", func(t *testing.T) {
		w := newWorld(t, new)
		s := &w.sessions[rp]
		s.SendSession, s.SendKey, s.ReceiveKey = 0x7777, auth.Key{'n', 's'}, auth.Key{'n', 'r'}
		w.apply(datapath.Change{Add: w.sessions[rp : rp+1]})
		p := w.packet(publisher)
		compare(t, w.published(p, publisher, 1, rp, subscriber, reader), w.pass(p))
		p = w.packet(rp)
		compare(t, w.relayed(p, peers...), w.pass(p))
	})
	t.Run("sessions that are none of an RP neighbour are ignored", func(t *testing.T) {
		w := newWorld(t, new)
		late := w.sessions[silent]
		late.Index++
		own, r := w.route(incarnation, nil, rp, reader), w.route(ingressOf(rp), []int{rp, publisher})
		own.To = append(own.To, datapath.Branch{Session: late.Index, Groups: []ids.Group{group}})
		r.From = append(r.From, late.Index)
		w.routes(own, r)
		w.apply(datapath.Change{Add: []datapath.Session{late}})
		p := w.packet(publisher)
		compare(t, w.published(p, publisher, 1, rp, subscriber, reader), w.pass(p))
		p = w.from(w.packet(rp), silent)
		p.header.Session = late.Index
		w.drop(p, wire.BadUpstream)
	})
	t.Run("a route before the keys", func(t *testing.T) {
		w := newWorld(t, new)
		const ingress = 0x12345678
		w.routes(w.route(ingress, []int{rp}, silent))
		p := w.packet(rp)
		p.header.Ingress = ingress
		w.drop(p, wire.NoKey)
		k := w.key(ingress, group, epoch)
		w.apply(datapath.Change{Keys: []proto.GroupKey{k}})
		p.payloadKey = k.Key
		compare(t, w.relayed(p, silent, publisher, subscriber, reader), w.pass(p))
	})
	t.Run("the last hop", func(t *testing.T) {
		w := newWorld(t, new)
		w.routes(w.route(ingressOf(rp), []int{rp}, silent))
		p := w.packet(rp)
		p.header.HopLimit = 1
		out := w.pass(p)
		compare(t, w.relayed(p, silent, publisher, subscriber, reader), out)
		if h, _, _ := wire.Parse(out[0].Data); h.HopLimit != 0 {
			t.Fatalf("hop limit %d", h.HopLimit)
		}
		p = w.packet(rp).seq(2)
		p.header.HopLimit = 0
		w.drop(p, wire.HopLimit)
	})
	t.Run("peers that join and leave do not touch routes", func(t *testing.T) {
		w := newWorld(t, new)
		w.routes(w.route(ingressOf(rp), []int{rp}, silent))
		seq := uint64(0)
		check := func(to ...int) {
			t.Helper()
			seq++
			p := w.packet(rp).seq(seq)
			compare(t, w.relayed(p, append(to, silent)...), w.pass(p))
		}
		check(peers...)
		w.apply(datapath.Change{Remove: []ids.Session{w.sessions[reader].Index, w.sessions[publisher].Index}})
		check(subscriber)
		w.apply(datapath.Change{Remove: []ids.Session{w.sessions[subscriber].Index}})
		check()
		w.apply(datapath.Change{Add: w.sessions[:stranger]})
		check(peers...)
	})
	t.Run("more branches than fit a slice", func(t *testing.T) {
		w := newWorld(t, new)
		r := w.route(ingressOf(rp), []int{rp})
		var c datapath.Change
		for i := range ids.Session(20) {
			s := w.sessions[silent]
			s.Index, s.SendSession = s.Index+100+i, s.SendSession+100+i
			c.Add = append(c.Add, s)
			r.To = append(r.To, datapath.Branch{Session: s.Index, Groups: []ids.Group{group}})
		}
		c.Routes = []datapath.Route{r}
		w.apply(c)
		seq := uint64(0)
		check := func(to []datapath.Session) {
			t.Helper()
			seq++
			p := w.packet(rp).seq(seq)
			want := w.relayed(p, peers...)
			h, payload, _ := wire.Parse(want[0].Data)
			for i := range to {
				want = append(want, copyTo(&to[i], h, payload))
			}
			compare(t, want, w.pass(p))
		}
		check(c.Add)
		w.apply(datapath.Change{Remove: []ids.Session{c.Add[0].Index, c.Add[1].Index, c.Add[2].Index}})
		check(c.Add[3:])
		r.To = r.To[12:]
		w.routes(r)
		check(c.Add[12:])
	})
	t.Run("branches count for the limit of copies", func(t *testing.T) {
		w := newWorld(t, new)
		w.routes(w.route(ingressOf(rp), []int{rp}, rp, silent))
		w.limit(rp, 5*uint64(len(w.packet(rp).bytes()))+1) // three peers, a branch and the one that gets no copy
		w.pass(w.packet(rp))
		w.pass(w.packet(rp).seq(2))
		w.drop(w.packet(rp).seq(3), wire.OverRate)
	})
}

// hello returns the next hello that the engine handed out.
func (w *world) hello() Hello {
	w.t.Helper()
	select {
	case h := <-w.hellos:
		return h
	case <-time.After(10 * time.Second):
		w.t.Fatal("no hello")
		return Hello{}
	}
}

func testHello(t *testing.T, new New) {
	t.Run("what is received", func(t *testing.T) {
		w := newWorld(t, new)
		start := time.Now()
		for _, i := range []int{rp, silent} {
			if at := w.subject.Heard(w.sessions[i].Index); !at.IsZero() {
				t.Fatalf("heard at %v", at)
			}
			w.pass(w.helloFrom(i, 1))
			w.drop(w.helloFrom(i, 1), wire.Replayed)
			w.pass(w.helloFrom(i, 3))
			w.pass(w.helloFrom(i, 2))
			for _, seq := range []uint64{1, 3, 2} {
				want := Hello{w.sessions[i].Index, testHelloOf(seq)}
				if diff := gocmp.Diff(want, w.hello()); diff != "" {
					t.Fatalf("hello (-want +got):\n%s", diff)
				}
			}
		}
		if at := w.subject.Heard(w.sessions[rp].Index); at.IsZero() || at.Sub(start).Abs() > time.Hour {
			t.Errorf("heard at %v, it is %v", at, start)
		}
		if at := w.subject.Heard(0x9999); !at.IsZero() {
			t.Errorf("an unknown session was heard at %v", at)
		}
		// The sequences of hellos are those of no stream.
		p := w.packet(rp)
		compare(t, w.relayed(p, publisher, subscriber, reader), w.pass(p))
	})
	t.Run("what is sent", func(t *testing.T) {
		w := newWorld(t, new)
		for i, node := range []int{rp, silent, rp} {
			seq := uint64(1 + i/2)
			s := &w.sessions[node]
			out, err := w.subject.Hello(s.Index, testHelloOf(uint64(i)))
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, wire.HeaderSize)
			b[0] = wire.Version<<4 | 5
			wire.SetSession(b, s.SendSession)
			b[23] = byte(seq)
			hello := testHelloOf(uint64(i))
			copy(b[28:44], hello[:])
			wire.SetHopTag(b, s.SendKey.HopTag(b))
			compare(t, []Output{{s.Addr, b}}, out)
			// A session that is replaced goes on with its count.
			w.apply(datapath.Change{Add: w.sessions[node : node+1]})
		}
		for _, session := range []ids.Session{0x9999, w.sessions[reader].Index} {
			if out, err := w.subject.Hello(session, testHelloOf(0)); err == nil || len(out) > 0 {
				t.Errorf("hello to session %08x: %d datagrams, error %v", session, len(out), err)
			}
		}
	})
}

func testResend(t *testing.T, new New) {
	w := newWorld(t, new)
	var datagrams [][]byte
	var want []Output
	for seq := range uint64(100) { // more than a batch
		p := w.packet(rp).seq(seq)
		p.payload = make([]byte, 1+seq*4)
		datagrams = append(datagrams, p.bytes())
		want = append(want, copyTo(&w.sessions[silent], p.parsed(), p.payload))
	}
	kept := string(datagrams[0])
	out, err := w.subject.Resend(w.sessions[silent].Index, datagrams)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, want, out)
	if string(datagrams[0]) != kept {
		t.Error("the datagrams were changed")
	}
	p := w.packet(publisher)
	out, err = w.subject.Resend(w.sessions[reader].Index, [][]byte{p.bytes()})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, []Output{copyTo(&w.sessions[reader], p.parsed(), p.payload)}, out)
	if st := w.subject.Stats(); st.Copies != 101 {
		t.Errorf("%d copies", st.Copies)
	}
	for name, c := range map[string]struct {
		session   ids.Session
		datagrams [][]byte
	}{
		"unknown session": {0x9999, datagrams[:1]},
		"no DATA":         {w.sessions[reader].Index, [][]byte{w.heartbeat(rp, 1, 1).bytes()}},
		"no datagram":     {w.sessions[reader].Index, [][]byte{datagrams[0], datagrams[0][:20]}},
	} {
		if out, err := w.subject.Resend(c.session, c.datagrams); err == nil || len(out) > 0 {
			t.Errorf("%s: %d datagrams, error %v", name, len(out), err)
		}
	}
}

// testResendIsLimited has what is sent again take half of the burst of all copies, and new
// datagrams the rest.
func testResendIsLimited(t *testing.T, new New) {
	w := newWorld(t, new)
	old := w.packet(rp)
	size := uint64(len(old.bytes()))
	again := [][]byte{old.bytes(), w.packet(rp).seq(2).bytes(), w.packet(rp).seq(3).bytes()}
	resend := func(want error) {
		t.Helper()
		out, err := w.subject.Resend(w.sessions[silent].Index, again)
		if !errors.Is(err, want) || err == nil && len(out) != len(again) || err != nil && len(out) > 0 {
			t.Fatalf("%d of %d datagrams, error %v, want %v", len(out), len(again), err, want)
		}
	}
	w.subject.SetEgress(1, 8*size)
	resend(nil)
	resend(nil) // 3 are gone, 5 are left
	resend(datapath.ErrOverRate)
	w.pass(w.packet(publisher)) // to 4, with 2 left
	w.drop(w.packet(publisher).seq(2), wire.OverRate)

	w.subject.SetEgress(1, 10*size) // the bucket is full again
	w.pass(w.packet(publisher).seq(2))
	resend(nil) // 6 were left
	resend(datapath.ErrOverRate)
	w.subject.SetEgress(0, 0)
	for range 5 {
		resend(nil)
	}
	w.pass(w.packet(publisher).seq(3))
}

func testCache(t *testing.T, new New) {
	w := newWorld(t, new)
	w.routes(w.route(ingressOf(rp), []int{rp}, silent))
	record := func(from int, out Output) datapath.Record {
		t.Helper()
		var r datapath.Record
		select {
		case r = <-w.records:
		case <-time.After(10 * time.Second):
			t.Fatal("no record")
		}
		h, _, v := wire.Parse(r.Datagram)
		if v != wire.Pass || r.Ingress != h.Ingress || r.Group != h.Group || r.Sequence != h.Sequence || r.Session != w.sessions[from].Index {
			t.Fatalf("record %+v of %v (%v)", r, &h, v)
		}
		// But for session and hop tag it is the copy.
		got, want := out.Data, r.Datagram
		if string(got[:4])+string(got[8:56])+string(got[64:]) != string(want[:4])+string(want[8:56])+string(want[64:]) {
			t.Fatalf("record\n%x of\n%x", want, got)
		}
		return r
	}
	for seq, size := range []int{1, 7, 8, 9, wire.MaxPayload} {
		own := w.packet(publisher).seq(uint64(seq + 1))
		if seq >= burst {
			own = w.packet(subscriber).seq(uint64(seq + 1))
		}
		own.payload = make([]byte, size)
		out := w.pass(own)
		from := publisher
		if seq >= burst {
			from = subscriber
		}
		record(from, out[len(out)-1])

		w.drop(own, wire.Replayed)
		w.pass(w.heartbeat(rp, uint64(seq+1), 0))
		relayed := w.packet(rp).seq(uint64(seq + 1))
		relayed.payload = make([]byte, size)
		out = w.pass(relayed)
		r := record(rp, out[0])

		// What was kept can be sent again.
		again, err := w.subject.Resend(w.sessions[silent].Index, [][]byte{r.Datagram})
		if err != nil {
			t.Fatal(err)
		}
		compare(t, w.relayed(relayed, silent), again)
	}
	// What went before a change of routes is there when the change is made.
	for seq := uint64(100); seq < 120; seq++ {
		w.pass(w.packet(rp).seq(seq))
		w.routes(w.route(ingressOf(rp), []int{rp}, silent))
		select {
		case r := <-w.records:
			if r.Sequence != seq {
				t.Fatalf("record of sequence %d, want %d", r.Sequence, seq)
			}
		default:
			t.Fatal("no record when the routes have changed")
		}
	}
}
