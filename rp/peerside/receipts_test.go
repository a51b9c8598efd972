// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/membership"
)

// confirmation is what Config.Confirmed was told.
type confirmation struct {
	session ids.Session
	places  []proto.Place
}

func TestConfirm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		var told []confirmation
		r.Server.cfg.Confirmed = func(session ids.Session, places []proto.Place) {
			told = append(told, confirmation{session, places})
		}
		p := r.connect(home)
		welcome := r.join(p)
		place := proto.Place{Ingress: incarnation, Group: group, Sequence: 9}
		p.send(&proto.Confirm{Places: []proto.Place{place, {Ingress: incarnation, Group: otherGroup, Sequence: 9}}})
		require.Equal(t, []confirmation{{welcome.Session, []proto.Place{place}}}, told, "of its groups alone")

		for range 99 {
			p.send(&proto.Confirm{Places: []proto.Place{place}})
		}
		require.Len(t, told, confirmBurst, "at once")
		time.Sleep(10 * proto.MinConfirm)
		for range 99 {
			p.send(&proto.Confirm{Places: []proto.Place{place}})
		}
		require.Len(t, told, confirmBurst+10, "as time goes by")
		st := r.Stats()
		require.Equal(t, uint64(confirmBurst+10), st.Confirmed)
		require.Equal(t, uint64(199-confirmBurst-10), st.Limited)
		require.Zero(t, st.Violations)

		told = nil
		p.send(&proto.Deactivate{})
		time.Sleep(time.Second)
		p.send(&proto.Confirm{Places: []proto.Place{place}})
		require.Empty(t, told, "in standby")
		p.send(&proto.Leave{})
		p.send(&proto.Confirm{Places: []proto.Place{place}})
		require.Empty(t, told, "after it left")
		p.close()
		r.Stop()
	})
}

// nothingElse requires that no message waits for the members, which these are.
func (r *rig) nothingElse(members ...*peer) {
	r.t.Helper()
	_, err := r.Install([]proto.GroupKey{keyOf(0, group)}, nil, 0)
	require.NoError(r.t, err)
	for _, p := range members {
		expect[*proto.Rekey](p)
	}
}

// A receipt goes to the session that it is for, as long as that is there.
func TestReceipts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		p, other := r.connect(home), r.connect(home)
		welcome := r.join(p)
		r.join(other)
		objects := make([]proto.ObjectReceipt, proto.MaxPlaces+1)
		for i := range objects {
			objects[i] = proto.ObjectReceipt{ObjectID: uint64(i), Members: 3, Sent: 2, Confirmed: 1}
		}
		r.Receipts(welcome.Session, objects)
		r.Receipts(welcome.Session+1, objects)
		require.Equal(t, objects[:proto.MaxPlaces], expect[*proto.Receipt](p).Objects)
		require.Equal(t, objects[proto.MaxPlaces:], expect[*proto.Receipt](p).Objects)
		r.nothingElse(p, other)
		p.send(&proto.Leave{})
		r.Receipts(welcome.Session, objects)
		synctest.Wait()
		join := theJoin
		p.send(&join)
		probe := <-r.engine.probes
		p.send(&proto.ProbeAck{Nonce: probe.nonce, Size: uint16(probe.size)})
		expect[*proto.Welcome](p) // and nothing before
		p.close()
		other.close()
		r.Stop()
	})
}

func TestCounters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		counters := func(members, below uint64) []proto.Counters {
			return []proto.Counters{
				{Group: group, Members: members, Here: 1, RPs: []proto.RPMembers{{RP: 7, Members: below}}},
				{Group: otherGroup, Members: members},
			}
		}
		r.SetCounters(counters(16, 8))
		p := r.connect(home)
		r.join(p)
		start := time.Now()
		next := func() (*proto.Counters, time.Duration) {
			c := expect[*proto.Counters](p)
			took := time.Since(start)
			start = time.Now()
			return c, took
		}
		c, took := next()
		require.Equal(t, counters(16, 8)[0], *c, "its group alone")
		require.Less(t, took, time.Second)

		r.SetCounters(counters(18, 9))
		r.SetCounters(counters(19, 9)) // more than an eighth
		c, took = next()
		require.Equal(t, counters(19, 9)[0], *c)
		require.GreaterOrEqual(t, took, proto.CountersInterval)
		require.Less(t, took, proto.CountersInterval+proto.CountersJitter)

		time.Sleep(time.Minute / 4)
		start = time.Now()
		r.SetCounters(counters(19, 0))
		c, took = next()
		require.Equal(t, counters(19, 0)[0], *c, "none is a change")
		require.Less(t, took, proto.CountersJitter)

		p.send(&proto.Deactivate{})
		r.SetCounters(counters(100, 0))
		time.Sleep(10 * time.Second) // in standby it is told nothing
		p.send(&proto.Activate{})
		require.IsType(t, &proto.Activated{}, expect[*proto.Activated](p))
		c, _ = next()
		require.Equal(t, counters(100, 0)[0], *c)
		r.SetCounters(counters(101, 0)) // nobody is told
		time.Sleep(10 * time.Second)
		r.nothingElse(p)
		p.close()
		r.Stop()
	})
}

// The first Counters of a membership count the member itself, although what was counted last
// is older, and say no more than that when the next count comes.
func TestCountersOfANewMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		r.SetCounters([]proto.Counters{{Group: group}, {Group: otherGroup}})
		first := r.connect(home)
		r.join(first)
		start := time.Now()
		counts := func(p *peer) [2]uint64 {
			c := expect[*proto.Counters](p)
			require.EqualValues(t, group, c.Group)
			return [2]uint64{c.Members, c.Here}
		}
		require.Equal(t, [2]uint64{1, 1}, counts(first))
		require.Zero(t, time.Since(start))

		r.SetCounters([]proto.Counters{{Group: group, Members: 4, Here: 1}}) // 3 elsewhere
		require.Equal(t, [2]uint64{4, 1}, counts(first))
		second := r.connectAs(enode.ID{2}, home.Next())
		r.join(second)
		require.Equal(t, [2]uint64{5, 2}, counts(second))
		r.SetCounters([]proto.Counters{{Group: group, Members: 5, Here: 2}})
		require.Equal(t, [2]uint64{5, 2}, counts(first))
		time.Sleep(10 * time.Second)
		r.nothingElse(first, second)
		first.close()
		second.close()
		r.Stop()
	})
}
