// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
)

// A full engine refuses exactly the elements that find no room, serves the others of the
// same change, and has room again for as many as left.
func TestXDPNoRoom(t *testing.T) {
	e := newBare(t, datapath.Config{Incarnation: testOwn})
	apply := func(c datapath.Change) *datapath.Refused {
		t.Helper()
		err := e.apply(c)
		refused, _ := err.(*datapath.Refused)
		if refused == nil {
			require.NoError(t, err)
			return new(datapath.Refused)
		}
		require.ErrorIs(t, err, datapath.ErrNoRoom)
		require.NotErrorIs(t, err, datapath.ErrContract)
		return refused
	}
	session := func(index ids.Session) datapath.Session {
		return datapath.Session{Index: index, Role: datapath.Mesh, Addr: bareAddr, ReceiveKey: auth.Key{1}}
	}

	var streams datapath.Change
	for ingress := ids.Incarnation(1); ingress <= MaxStreams+3; ingress++ {
		streams.Keys = append(streams.Keys, proto.GroupKey{Ingress: ingress, Group: testGroup})
	}
	require.Len(t, apply(streams).Keys, 3)
	require.Len(t, e.table.streams, MaxStreams)
	require.Empty(t, apply(datapath.Change{
		Retire: []ids.Incarnation{7, 8}, // their elements are in quarantine
		Routes: []datapath.Route{{Ingress: 9, From: []ids.Session{1}}},
	}).Keys)

	var sessions datapath.Change
	for index := ids.Session(1); index <= MaxSessions+2; index++ {
		sessions.Add = append(sessions.Add, session(index))
	}
	refused := apply(sessions)
	require.Len(t, refused.Sessions, 2)
	require.Len(t, e.table.sessions, MaxSessions)
	require.Empty(t, apply(datapath.Change{Add: []datapath.Session{session(5)}}).Sessions, "it replaces one")
	require.Empty(t, apply(datapath.Change{Remove: []ids.Session{5, 5}, Add: []datapath.Session{session(0x10000)}}).Sessions)
	require.Len(t, apply(datapath.Change{Add: []datapath.Session{session(5), session(6)}}).Sessions, 1)

	branches := make([]datapath.Branch, MaxSessions/2)
	for i := range branches {
		branches[i] = datapath.Branch{Session: ids.Session(100 + i), Groups: []ids.Group{testGroup}}
	}
	var routes datapath.Change
	for ingress := ids.Incarnation(20); ingress < 40; ingress++ { // a sixteenth of them and some
		routes.Routes = append(routes.Routes, datapath.Route{Ingress: ingress, To: branches})
	}
	refused = apply(routes)
	require.NotEmpty(t, refused.Routes)
	require.Less(t, len(refused.Routes), len(routes.Routes), "those before are served")
	require.Len(t, e.table.routes, len(routes.Routes)-len(refused.Routes))
}

// BenchmarkApplyOne is one session that comes and goes among ten thousand.
func BenchmarkApplyOne(b *testing.B) {
	e := newBare(b, datapath.Config{Incarnation: testOwn})
	var all datapath.Change
	for index := ids.Session(1); index <= 10_000; index++ {
		all.Add = append(all.Add, datapath.Session{Index: index, Role: datapath.Peer, Addr: bareAddr, Groups: []ids.Group{testGroup}})
	}
	require.NoError(b, e.apply(all))
	one := datapath.Session{Index: 20_000, Role: datapath.Peer, Addr: bareAddr, Groups: []ids.Group{testGroup}}
	for b.Loop() {
		require.NoError(b, e.apply(datapath.Change{Add: []datapath.Session{one}}))
		require.NoError(b, e.apply(datapath.Change{Remove: []ids.Session{one.Index}}))
		e.table.sessionStates.Expire(time.Now().Add(fanout.Quarantine))
	}
}
