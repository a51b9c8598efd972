// SPDX-License-Identifier: LGPL-3.0-or-later

package socket

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

const (
	own          = 0x0a0a0a0a
	otherIngress = 0x0b0b0b0b
	txs          = 0x00007478
)

var (
	ownKey   = auth.Key{'o'}
	otherKey = auth.Key{'n'}
)

// An RP neighbour's session that becomes a peer's leaves the routes.
func TestMeshSessionBecomesPeer(t *testing.T) {
	s, sessions := smallNet(1)
	mesh := sessions[1]
	id := ids.Stream{Ingress: otherIngress, Group: txs}
	require.NoError(t, s.Apply(datapath.Change{Routes: []datapath.Route{{Ingress: otherIngress, From: []ids.Session{mesh.Index}}}}))
	require.Equal(t, []ids.Session{mesh.Index}, s.streams[id].upstreams)
	mesh.Role, mesh.Groups = datapath.Peer, []ids.Group{txs}
	require.NoError(t, s.Apply(datapath.Change{Add: []datapath.Session{mesh}}))
	require.Empty(t, s.streams[id].upstreams)
}

// smallNet is a table with peers 0 to n-1, which may all publish at a datagram per
// second and two at once, and with one RP neighbour, which is last.
func smallNet(peers int) (*tableSubject, []datapath.Session) {
	s := newTableSubject(datapath.Config{Incarnation: own, HandleKey: auth.Key{'h'}})
	var sessions []datapath.Session
	for i := range peers + 1 {
		n := ids.Session(i + 1)
		session := datapath.Session{
			Index:       n,
			Role:        datapath.Peer,
			Addr:        netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), uint16(n)),
			SendSession: 0x10000 + n,
			SendKey:     auth.Key{'s', byte(n), byte(n >> 8)},
			ReceiveKey:  auth.Key{'r', byte(n), byte(n >> 8)},
			Groups:      []ids.Group{txs},
			Publish:     true,
			Rate:        1,
			Burst:       2,
		}
		if i == peers {
			session.Role, session.Publish, session.Groups = datapath.Mesh, false, nil
		}
		sessions = append(sessions, session)
	}
	rp := ids.Session(peers + 1)
	err := s.Apply(datapath.Change{
		Add: sessions,
		Keys: []proto.GroupKey{
			{Ingress: own, Group: txs, Key: ownKey},
			{Ingress: otherIngress, Group: txs, Key: otherKey},
		},
		Routes: []datapath.Route{
			{Ingress: own, To: []datapath.Branch{{Session: rp, Groups: []ids.Group{txs}}}},
			{Ingress: otherIngress, From: []ids.Session{rp}},
		},
	})
	if err != nil {
		panic(err)
	}
	return s, sessions
}

// data returns a DATA from a session, with right tags.
func data(from *datapath.Session, seq uint64) []byte {
	h := wire.Header{
		Type:       wire.Data,
		Session:    from.Index,
		Group:      txs,
		Sequence:   seq,
		K:          1,
		N:          1,
		PayloadLen: 5,
		ObjectLen:  5,
		ObjectID:   seq << 8,
	}
	key := ownKey
	if from.Role == datapath.Mesh {
		h.Ingress, h.HopLimit, key = otherIngress, wire.InitialHopLimit, otherKey
	}
	b := append(h.Append(nil), "bytes"...)
	wire.SetPayloadTag(b, key.PayloadTag(b))
	wire.SetHopTag(b, from.ReceiveKey.HopTag(b))
	return b
}

// dump renders the whole state but for the counters of verdicts.
func (t *table) dump() string {
	var b strings.Builder
	fmt.Fprintf(&b, "own %08x %x\n", t.own, t.handle)
	var lines []string
	for index, s := range t.sessions {
		st := s.state
		lines = append(lines, fmt.Sprintf("session %08x: %+v %v hellos %d due %d %d received %d heard %v copies %d",
			index, s.Session, st.window, st.hellos, st.datagramsDue, st.copiesDue, st.received, st.heard, st.copies.Load()))
	}
	for id, s := range t.streams {
		lines = append(lines, fmt.Sprintf("stream %+v: %+v", id, *s))
	}
	for ingress, r := range t.routes {
		lines = append(lines, fmt.Sprintf("route %08x: %+v", ingress, *r))
	}
	for group, peers := range t.groups {
		lines = append(lines, fmt.Sprintf("group %08x: %v", group, indexes(peers)))
	}
	slices.Sort(lines)
	b.WriteString(strings.Join(lines, "\n"))
	return b.String()
}

func indexes(sessions []*session) (all []ids.Session) {
	for _, s := range sessions {
		all = append(all, s.Index)
	}
	return all
}

func TestOrderOfSending(t *testing.T) {
	const peers = 200 // more than a batch
	s, sessions := smallNet(peers)
	rp := sessions[peers]
	for seq := uint64(1); seq <= 2; seq++ {
		v, out := s.Receive(sessions[7].Addr, data(&sessions[7], seq))
		require.Equal(t, wire.Pass, v)
		require.Len(t, out, peers+1)

		echo, _, v := wire.Parse(out[0].Data)
		require.Equal(t, wire.Pass, v)
		require.Equal(t, wire.Echo, echo.Type)
		require.Equal(t, sessions[7].Addr, out[0].Dst, "the publisher's ECHO is first")
		require.Equal(t, rp.Addr, out[1].Dst, "the mesh is next")

		// The subscribers follow in a circle that begins elsewhere each time.
		var want []netip.AddrPort
		for i := range uint64(peers) {
			if n := (i + seq) % peers; n != 7 {
				want = append(want, sessions[n].Addr)
			}
		}
		var got []netip.AddrPort
		for _, o := range out[2:] {
			got = append(got, o.Dst)
		}
		require.Equal(t, want, got)
	}
}

func TestPolicer(t *testing.T) {
	s, sessions := smallNet(2)
	publisher := sessions[0]
	send := func(at time.Duration, seq uint64) wire.Verdict {
		s.now = at
		v, _ := s.Receive(publisher.Addr, data(&publisher, seq))
		return v
	}
	const second, slack = time.Second, datapath.PolicerSlack
	for i, step := range []struct {
		at   time.Duration
		seq  uint64
		want wire.Verdict
	}{
		{10 * second, 1, wire.Pass}, // a burst of two
		{10 * second, 2, wire.Pass},
		{10 * second, 3, wire.OverRate},
		{11*second - slack - 1, 3, wire.OverRate},
		{11*second - slack, 3, wire.Pass}, // one more each second; the refused sequence was not used up
		{11 * second, 4, wire.OverRate},
		{100 * second, 4, wire.Pass}, // a pause gives the burst back, and no more
		{100 * second, 5, wire.Pass},
		{100 * second, 6, wire.OverRate},
	} {
		require.Equal(t, step.want, send(step.at, step.seq), "step %d", i)
	}
	require.Equal(t, uint64(5), s.Marks()[0].Sequence, "sequences have no gaps")
}

// A datagram that is not accepted changes nothing but the counter of its verdict,
// in the whole state and not only in what an engine shows.
func TestDropsChangeNothing(t *testing.T) {
	s, sessions := smallNet(3)
	publisher, rp := sessions[0], sessions[3]
	for seq := uint64(1); seq <= 2; seq++ {
		_, _ = s.Receive(publisher.Addr, data(&publisher, seq))
		_, _ = s.Receive(rp.Addr, data(&rp, seq))
	}
	s.now++
	drop := func(want wire.Verdict, src netip.AddrPort, b []byte) {
		t.Helper()
		before, counters := s.dump(), s.verdicts
		v, out := s.Receive(src, b)
		require.Equal(t, want, v)
		require.Empty(t, out)
		require.Equal(t, before, s.dump())
		counters[v]++
		require.Equal(t, counters, s.verdicts)
	}
	drop(wire.Replayed, publisher.Addr, data(&publisher, 1))
	drop(wire.OverRate, publisher.Addr, data(&publisher, 3))
	drop(wire.Replayed, rp.Addr, data(&rp, 2))
	drop(wire.FarAhead, rp.Addr, data(&rp, 3+datapath.MaxAhead))
	hello := wire.NewLinkHello(rp.Index, 7, [wire.HelloSize]byte{1})
	wire.SetHopTag(hello[:], rp.ReceiveKey.HopTag(hello[:]))
	_, _ = s.Receive(rp.Addr, hello[:])
	drop(wire.Replayed, rp.Addr, hello[:])
	drop(wire.BadSource, rp.Addr, data(&publisher, 3))

	// Each single byte of a right datagram counts, but for those that the RP
	// overwrites anyway and the hop tag covers all the same.
	right := data(&rp, 3)
	for i := range right {
		b := slices.Clone(right)
		b[i] ^= 0x40
		before := s.dump()
		v, out := s.Receive(rp.Addr, b)
		require.NotEqual(t, wire.Pass, v, "byte %d", i)
		require.Empty(t, out)
		require.Equal(t, before, s.dump(), "byte %d", i)
	}
	v, _ := s.Receive(rp.Addr, right)
	require.Equal(t, wire.Pass, v)
}

// A fan-out that is being sent does not see the change that is made meanwhile.
func TestChangeDuringSending(t *testing.T) {
	s, sessions := smallNet(4)
	var f fanout
	require.Equal(t, wire.Pass, s.process(s.now, sessions[0].Addr, data(&sessions[0], 1), &f))
	before := indexes(f.peers)

	late := sessions[1]
	late.Index, late.Addr = 99, netip.MustParseAddrPort("[2001:db8::2]:99")
	require.NoError(t, s.Apply(datapath.Change{Remove: []ids.Session{2, 3}, Add: []datapath.Session{late}}))
	require.Equal(t, before, indexes(f.peers))
	require.Equal(t, []ids.Session{1, 4, 99}, indexes(s.groups[txs]))

	later := late
	later.Index = 100
	require.NoError(t, s.Apply(datapath.Change{Add: []datapath.Session{later}}))
	require.Equal(t, before, indexes(f.peers))
}
