// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/proto"
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
			Index: welcome.Session, Node: enode.ID{1}, Addr: netip.AddrPortFrom(home, 4000), Groups: []uint32{group},
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
		join.Groups = []uint32{group + 100}
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
