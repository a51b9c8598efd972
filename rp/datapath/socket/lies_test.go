// SPDX-License-Identifier: LGPL-3.0-or-later

package socket

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// beatFrom returns a HEARTBEAT from a session, with right tags.
func beatFrom(from *datapath.Session, beat, seq uint64) []byte {
	h := wire.Header{Type: wire.Heartbeat, HopLimit: wire.InitialHopLimit, Session: from.Index, Group: txs, Ingress: otherIngress, Sequence: seq, ObjectID: beat}
	b := h.Append(nil)
	wire.SetPayloadTag(b, otherKey.PayloadTag(b))
	wire.SetHopTag(b, from.ReceiveKey.HopTag(b))
	return b
}

// An RP neighbour that took every word of the window far ahead is gone. Before the parent's
// HEARTBEAT may be believed the stream is as it was, from then on every DATA passes.
func TestWholeAfterLies(t *testing.T) {
	s, sessions := smallNet(3)
	evil := sessions[3]
	good := evil
	good.Index, good.SendKey, good.ReceiveKey = 77, auth.Key{'S'}, auth.Key{'R'}
	good.Addr = s.Endpoint(500)
	step := func(c datapath.Change) { require.NoError(t, s.Apply(c)) }
	step(datapath.Change{Add: []datapath.Session{good}, Routes: []datapath.Route{{Ingress: otherIngress, From: []ids.Session{evil.Index, good.Index}}}})
	verdict := func(from *datapath.Session, b []byte) wire.Verdict {
		v, _ := s.Receive(from.Addr, b)
		return v
	}
	require.Equal(t, wire.Pass, verdict(&good, data(&good, 1000)))
	top := uint64(0)
	for beat := uint64(1); beat <= 100; beat++ {
		s.now += time.Second
		top += uint64(time.Second / datapath.AheadEach)
		require.Equal(t, wire.Pass, verdict(&evil, beatFrom(&evil, 1<<39+beat, top)))
	}
	for i := range uint64(128) {
		require.Equal(t, wire.Pass, verdict(&evil, data(&evil, top+32*i)))
	}
	step(datapath.Change{Remove: []ids.Session{evil.Index}, Routes: []datapath.Route{{Ingress: otherIngress, From: []ids.Session{good.Index}}},
		Keys: []proto.GroupKey{{Ingress: otherIngress, Group: txs, Key: otherKey}}})
	s.now += auth.RestartAfter - 1
	require.Equal(t, wire.Pass, verdict(&good, beatFrom(&good, 1, 1000)))
	require.Equal(t, wire.TooOld, verdict(&good, data(&good, 1001)))
	s.now++
	require.Equal(t, wire.OverRate, verdict(&good, beatFrom(&good, 2, 1000)))
	s.now += datapath.HeartbeatGap
	require.Equal(t, wire.Pass, verdict(&good, beatFrom(&good, 2, 1000)))
	for seq := uint64(1001); seq <= 11_000; seq++ {
		require.Equal(t, wire.Pass, verdict(&good, data(&good, seq)))
	}
	require.Equal(t, wire.Replayed, verdict(&good, beatFrom(&good, 2, 1000)))
}

// HEARTBEATs are in the policers, as DATA is.
func TestHeartbeatsArePoliced(t *testing.T) {
	s, sessions := smallNet(1000)
	m := sessions[1000]
	m.Egress, m.EgressBurst = 64_000, 64_000
	require.NoError(t, s.Apply(datapath.Change{Add: []datapath.Session{m}}))
	sent := 0
	for beat := uint64(1); beat <= 100; beat++ { // in ten seconds, each 64 bytes to 1,000
		s.now += datapath.HeartbeatGap
		if v, out := s.Receive(m.Addr, beatFrom(&m, beat, 1)); v == wire.Pass {
			sent += len(out) * wire.HeaderSize
		} else {
			require.Equal(t, wire.OverRate, v)
		}
	}
	require.LessOrEqual(t, sent, 11*64_000+64_000)
	require.GreaterOrEqual(t, sent, 9*64_000)
}
