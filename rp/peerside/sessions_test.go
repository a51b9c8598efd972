// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/events"
	"github.com/ethmcast/mdcs/rp/membership"
)

// told returns the kinds of the events up to one of kind last.
func told(t *testing.T, l *events.Listener, last events.Kind) (kinds []events.Kind) {
	t.Helper()
	for {
		e, err := l.Next(t.Context())
		require.NoError(t, err)
		require.Equal(t, enode.ID{1}.TerminalString(), e.Node)
		require.Equal(t, home.String(), e.Addr)
		if kinds = append(kinds, e.Kind); e.Kind == last {
			return kinds
		}
	}
}

// An operator sees the members as they are, and is told what becomes of each peer once.
func TestSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{Sessions: 1})
		hub := events.NewHub()
		r.cfg.Events = hub
		l, err := hub.Listen(100)
		require.NoError(t, err)
		defer l.Close()

		p := r.connect(home)
		require.Empty(t, r.Sessions())
		welcome := r.join(p)
		want := Session{
			Index: welcome.Session, Node: enode.ID{1}, Addr: netip.AddrPortFrom(home, 4000), Groups: []ids.Group{group},
			Publish: true, Lease: time.Now().Add(proto.Lease),
		}
		require.Equal(t, []Session{want}, r.Sessions())
		require.Equal(t, []events.Kind{events.Join, events.Admitted}, told(t, l, events.Admitted))

		// Only an announce extends the lease.
		time.Sleep(10 * time.Second)
		require.Equal(t, []Session{want}, r.Sessions())
		p.send(&proto.Announce{})
		want.Lease = time.Now().Add(proto.Lease)
		require.Equal(t, []Session{want}, r.Sessions())

		// There is no room for another one.
		late := r.connect(home)
		late.greet()
		join := theJoin
		late.send(&join)
		require.Equal(t, proto.ReasonFull, expect[*proto.Leave](late).Reason)
		require.Equal(t, []events.Kind{events.Refused}, told(t, l, events.Refused))

		// A Join that is refused as such, and one that is none.
		join.Groups = []ids.Group{group + 100}
		late.send(&join)
		require.Equal(t, proto.ReasonGroup, expect[*proto.Leave](late).Reason)
		require.Equal(t, []events.Kind{events.Refused}, told(t, l, events.Refused))
		late.send(&proto.Have{})
		require.Equal(t, proto.ReasonUnexpected, expect[*proto.Leave](late).Reason)
		require.Equal(t, []events.Kind{events.Violation}, told(t, l, events.Violation))
		<-late.done

		p.send(&proto.Leave{})
		require.Empty(t, r.Sessions())
		require.Equal(t, []events.Kind{events.Leave}, told(t, l, events.Leave))

		// Who does not answer was probed, and is refused.
		p.send(&theJoin)
		require.Equal(t, proto.ReasonUnreachable, expect[*proto.Leave](p).Reason)
		require.Equal(t, []events.Kind{events.Join, events.Refused}, told(t, l, events.Refused))
		p.close()
		r.Stop()
	})
}

// Who proves an endpoint takes it over: the earlier session ends in the same change, and its
// end takes nothing from the later one.
func TestEndpointProvenAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		first, other, second := r.connectAs(enode.ID{1}, home), r.connectAs(enode.ID{2}, home.Next()), r.connectAs(enode.ID{3}, home)
		old, far := r.join(first), r.join(other)
		r.engine.Changes()

		second.port = first.port
		welcome := r.join(second)
		require.Equal(t, proto.ReasonQuit, expect[*proto.Leave](first).Reason)
		synctest.Wait()
		changes := r.engine.Changes()
		require.Equal(t, []ids.Session{old.Session}, changes[0].Remove, "with the session that comes")
		require.Equal(t, welcome.Session, changes[0].Add[0].Index)
		require.NotEqual(t, old.Session, welcome.Session)
		sessions := r.Sessions()
		require.Len(t, sessions, 2)
		for _, s := range sessions {
			require.Contains(t, []ids.Session{welcome.Session, far.Session}, s.Index)
		}
		require.Equal(t, map[ids.Group]int{group: 2}, r.cfg.Members.Members())

		// The connection goes on, and so does the game.
		join := theJoin
		join.Port = first.port
		first.send(&join)
		probe := <-r.engine.probes
		first.send(&proto.ProbeAck{Nonce: probe.nonce, Size: uint16(probe.size)})
		expect[*proto.Welcome](first)
		require.Equal(t, proto.ReasonQuit, expect[*proto.Leave](second).Reason)

		// Standby and back is the same session.
		first.send(&proto.Deactivate{})
		first.send(&proto.Activate{})
		expect[*proto.Activated](first)
		require.Len(t, r.Sessions(), 2)
		first.close()
		second.close()
		other.close()
		require.Empty(t, r.endpoints)
		require.Empty(t, r.members)
		require.Zero(t, r.cfg.Members.Sessions())
		r.Stop()
	})
}

// Without the proof nobody loses a session: a Join, its PROBEs and a wrong nonce are not enough.
func TestEndpointNotProven(t *testing.T) {
	for _, nonce := range [][wire.NonceSize]byte{{}, {1}} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, membership.Limits{})
			first, second := r.connectAs(enode.ID{1}, home), r.connectAs(enode.ID{3}, home)
			old := r.join(first)
			second.greet()
			join := theJoin
			second.send(&join)
			if nonce != ([wire.NonceSize]byte{}) {
				second.send(&proto.ProbeAck{Nonce: nonce, Size: wire.MaxDatagram})
			} else {
				time.Sleep(proto.ProbeTimeout + time.Second)
			}
			expect[*proto.Leave](second)
			require.Len(t, r.Sessions(), 1)
			require.Equal(t, old.Session, r.Sessions()[0].Index)
			r.nothingElse(first)
			first.close()
			second.close()
			r.Stop()
		})
	}
}
