// SPDX-License-Identifier: LGPL-3.0-or-later

package datapathtest

import (
	"net/netip"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// ChannelSubject is the Subject of a datapath.Multicaster.
type ChannelSubject interface {
	Subject

	// Channel returns the address of a channel, whose zone is the index of an
	// interface. It is the destination in the outputs to it.
	Channel() netip.AddrPort
}

// channelWorld is a world in which the publisher and the subscriber listen to a
// channel, and the reader does not.
type channelWorld struct {
	*world
	channel datapath.Session
}

const channelIndex = 0x3001

func newChannelWorld(t *testing.T, new New) *channelWorld {
	w := newWorld(t, new)
	return &channelWorld{w, w.listen()}
}

// listen turns the publisher and the subscriber to the channel, which it returns.
func (w *world) listen() datapath.Session {
	w.t.Helper()
	channel := datapath.Session{
		Index:       channelIndex,
		Role:        datapath.Channel,
		Addr:        w.subject.(ChannelSubject).Channel(),
		SendSession: 0x4001,
		SendKey:     auth.Key{'c'},
		Groups:      []ids.Group{group},
	}
	w.sessions[publisher].Silent = true
	w.sessions[subscriber].Silent = true
	w.apply(datapath.Change{Add: append(slices.Clone(w.sessions[:reader]), channel)})
	return channel
}

// with returns the outputs and the copy of the last of them, which is the reader's,
// to the channel.
func (w *channelWorld) with(out []Output) []Output {
	h, payload, _ := wire.Parse(out[len(out)-1].Data)
	return append(out, copyTo(&w.channel, h, payload))
}

// RunChannels runs the tests of a datapath.Multicaster.
func RunChannels(t *testing.T, new New) {
	t.Run("a channel gets one copy, its publisher the echo besides", func(t *testing.T) {
		w := newChannelWorld(t, new)
		for i, from := range []int{publisher, subscriber} {
			p := w.packet(from)
			p.payload = make([]byte, wire.MaxPayload)
			compare(t, w.with(w.published(p, from, uint64(i+1), rp, reader)), w.pass(p))
		}
		st := w.subject.Stats()
		if st.Copies != 6 || st.Echoes != 2 || st.SendErrors != 0 {
			t.Errorf("copies %d, echoes %d, send errors %d; want 6, 2, 0", st.Copies, st.Echoes, st.SendErrors)
		}
	})
	t.Run("what comes from the mesh goes to the channel", func(t *testing.T) {
		w := newChannelWorld(t, new)
		p := w.packet(rp)
		compare(t, w.with(w.relayed(p, reader)), w.pass(p))
		p = w.heartbeat(rp, 1, 9)
		compare(t, w.with(w.relayed(p, reader)), w.pass(p))
	})
	t.Run("own heartbeats go to the channel", func(t *testing.T) {
		w := newChannelWorld(t, new)
		want := w.with(append(w.beat(otherGroup, 2, 0, stranger), w.beat(group, 1, 0, rp, reader)...))
		compare(t, want, w.subject.Heartbeat(datapath.All))
	})
	t.Run("a channel of another group gets nothing", func(t *testing.T) {
		w := newChannelWorld(t, new)
		w.channel.Groups = []ids.Group{otherGroup}
		w.apply(datapath.Change{Add: []datapath.Session{w.channel}})
		p := w.packet(publisher)
		compare(t, w.published(p, publisher, 1, rp, reader), w.pass(p))
	})
	t.Run("a channel that is removed gets nothing", func(t *testing.T) {
		w := newChannelWorld(t, new)
		w.apply(datapath.Change{Remove: []ids.Session{w.channel.Index}})
		p := w.packet(publisher)
		compare(t, w.published(p, publisher, 1, rp, reader), w.pass(p))
	})
	t.Run("a peer that is silent no more gets copies", func(t *testing.T) {
		w := newChannelWorld(t, new)
		w.sessions[subscriber].Silent = false
		w.apply(datapath.Change{Add: w.sessions[subscriber:reader]})
		p := w.packet(publisher)
		compare(t, w.with(w.published(p, publisher, 1, rp, subscriber, reader)), w.pass(p))
	})
	t.Run("a group of silent peers alone", func(t *testing.T) {
		w := newChannelWorld(t, new)
		w.apply(datapath.Change{Remove: []ids.Session{w.channel.Index, w.sessions[reader].Index, w.sessions[rp].Index}})
		p := w.packet(publisher)
		compare(t, w.published(p, publisher, 1), w.pass(p))
		compare(t, nil, w.pass(w.packet(silent)))
		compare(t, w.beat(otherGroup, 1, 0, stranger), w.subject.Heartbeat(datapath.All))
		w.apply(datapath.Change{Remove: []ids.Session{w.sessions[publisher].Index}})
		w.drop(w.packet(publisher).seq(2), wire.NoSession)
	})
	t.Run("nothing is accepted from a channel", func(t *testing.T) {
		w := newChannelWorld(t, new)
		before := w.snapshot()
		p := w.packet(publisher)
		p.header.Session, p.hopKey = w.channel.Index, w.channel.ReceiveKey
		w.drop(p, wire.BadSource)
		before.verdicts[wire.BadSource]++
		if diff := gocmp.Diff(before, w.snapshot(), allow); diff != "" {
			t.Fatalf("changed (-before +after):\n%s", diff)
		}
	})
	t.Run("refused sessions", func(t *testing.T) { testRefusedChannels(t, new) })
}

func testRefusedChannels(t *testing.T, new New) {
	w := newChannelWorld(t, new)
	addr := w.channel.Addr.Addr()
	at := func(a netip.Addr) func(*datapath.Session) {
		return func(s *datapath.Session) { s.Addr = netip.AddrPortFrom(a, s.Addr.Port()) }
	}
	for name, edit := range map[string]func(*datapath.Session){
		"no zone":      at(addr.WithZone("")),
		"zone 0":       at(addr.WithZone("0")),
		"zone by name": at(addr.WithZone("eth0")),
		"unicast":      at(netip.MustParseAddr("2001:db8::1%" + addr.Zone())),
		"ipv4":         at(netip.MustParseAddr("232.0.0.1")),
		"port 0":       func(s *datapath.Session) { s.Addr = netip.AddrPortFrom(addr, 0) },
		"index 0":      func(s *datapath.Session) { s.Index = 0 },
		"no group":     func(s *datapath.Session) { s.Groups = nil },
		"publishes":    func(s *datapath.Session) { s.Publish, s.Rate, s.Burst = true, 1, 1 },
		"silent":       func(s *datapath.Session) { s.Silent = true },
		"peer":         func(s *datapath.Session) { s.Role = datapath.Peer },
	} {
		t.Run(name, func(t *testing.T) {
			s := w.channel
			s.Index++
			edit(&s)
			if w.subject.Apply(datapath.Change{Add: []datapath.Session{s}}) == nil {
				t.Fatal("applied")
			}
		})
	}
	mesh := w.sessions[rp]
	mesh.Silent = true
	if w.subject.Apply(datapath.Change{Add: []datapath.Session{mesh}}) == nil {
		t.Fatal("applied a silent mesh session")
	}
	p := w.packet(publisher)
	compare(t, w.with(w.published(p, publisher, 1, rp, reader)), w.pass(p))
}
