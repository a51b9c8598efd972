// SPDX-License-Identifier: LGPL-3.0-or-later

package datapath_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/datapathtest"
)

// Orphans are replaced in the change that brings what replaces them, and only once.
func TestOrphans(t *testing.T) {
	const own, near, far = 1, 2, 3
	at := func(host string) netip.AddrPort { return netip.MustParseAddrPort(host) }
	peer := func(index ids.Session, addr string) datapath.Session {
		return datapath.Session{Index: index, Role: datapath.Peer, Addr: at(addr)}
	}
	mesh := func(index ids.Session, addr string) datapath.Session {
		return datapath.Session{Index: index, Role: datapath.Mesh, Addr: at(addr)}
	}
	state := &datapath.State{
		Incarnation: own,
		Keys:        []proto.GroupKey{{Ingress: own, Group: 9}, {Ingress: near, Group: 9}, {Ingress: far, Group: 9}},
		Sessions: []datapath.Session{
			peer(10, "[2001:db8::10]:1"), peer(11, "[2001:db8::11]:1"), peer(12, "[2001:db8::12]:1"),
			mesh(20, "[2001:db8::20]:1"), mesh(21, "[2001:db8::21]:1"), peer(13, "[2001:db8::13]:1"),
		},
	}
	refused := errors.New("refused")
	var refuse error
	engine := &datapathtest.Recorder{OnApply: func(datapath.Change) error { return refuse }}
	o := datapath.NewOrphans(engine, state)
	apply := func(c datapath.Change) datapath.Change {
		t.Helper()
		require.NoError(t, o.Apply(c))
		changes := engine.Changes()
		require.Len(t, changes, 1)
		return changes[0]
	}

	// By endpoint, by index, and by what the change itself removes.
	refuse = refused
	rejoin := datapath.Change{Remove: []ids.Session{99}, Add: []datapath.Session{peer(50, "[2001:db8::10]:1")}}
	require.ErrorIs(t, o.Apply(rejoin), refused)
	refuse = nil
	require.Equal(t, []ids.Session{10, 99}, apply(rejoin).Remove, "after a refusal as before it")
	require.Equal(t, []ids.Session{99}, rejoin.Remove, "the caller's change is its own")
	require.Equal(t, []ids.Session{99}, apply(rejoin).Remove, "not twice")
	require.Equal(t, []ids.Session{11}, apply(datapath.Change{Add: []datapath.Session{peer(11, "[2001:db8::aa]:1")}}).Remove)
	require.Equal(t, []ids.Session{12, 12}, apply(datapath.Change{Remove: []ids.Session{12}}).Remove)
	require.Empty(t, apply(datapath.Change{Add: []datapath.Session{peer(51, "[2001:db8::13]:2")}}).Remove, "another port")

	require.Equal(t, []ids.Session{20}, apply(datapath.Change{
		Keys: []proto.GroupKey{{Ingress: near, Group: 9}},
		Add:  []datapath.Session{mesh(60, "[2001:db8::20]:1")},
	}).Remove)

	// What nobody came for ends, and then nothing more.
	refuse = refused
	require.ErrorIs(t, o.Expire(), refused)
	refuse = nil
	require.NoError(t, o.Expire())
	require.Equal(t, []datapath.Change{{Remove: []ids.Session{13, 21}, Retire: []ids.Incarnation{far}}}, engine.Changes())
	require.NoError(t, o.Expire())
	require.Empty(t, engine.Changes())
}

// Who gives keys of an ingress RP wants its streams; a route alone may be the old one by
// other sessions.
func TestOrphanStreams(t *testing.T) {
	engine := new(datapathtest.Recorder)
	o := datapath.NewOrphans(engine, &datapath.State{
		Incarnation: 1,
		Keys:        []proto.GroupKey{{Ingress: 2}, {Ingress: 3}, {Ingress: 4}},
		Routes:      []datapath.Route{{Ingress: 1}, {Ingress: 5}},
	})
	require.NoError(t, o.Apply(datapath.Change{Keys: []proto.GroupKey{{Ingress: 2}}}))
	require.NoError(t, o.Apply(datapath.Change{Retire: []ids.Incarnation{3}}))
	require.NoError(t, o.Apply(datapath.Change{Routes: []datapath.Route{{Ingress: 4, From: []ids.Session{6}}}}))
	engine.Changes()
	require.NoError(t, o.Expire())
	require.Equal(t, []datapath.Change{{Retire: []ids.Incarnation{4, 5}}}, engine.Changes())
}

// What is claimed goes on as it is, and does not expire.
func TestClaim(t *testing.T) {
	e := new(datapathtest.Recorder)
	o := datapath.NewOrphans(e, &datapath.State{Incarnation: 1, Sessions: []datapath.Session{{Index: 5}, {Index: 6}}})
	five := func(s datapath.Session) bool { return s.Index == 5 }
	s, ok := o.Claim(five)
	require.True(t, ok)
	require.Equal(t, datapath.Session{Index: 5}, s)
	_, ok = o.Claim(five)
	require.False(t, ok, "once")
	require.NoError(t, o.Expire())
	require.Equal(t, []datapath.Change{{Remove: []ids.Session{6}}}, e.Changes())
}
