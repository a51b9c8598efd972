// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/front/fronttest"
	"github.com/ethmcast/mdcs/rp/limitlog"
	"github.com/ethmcast/mdcs/rp/membership"
)

// stepped returns the reading of the clocks at a time when the date was set by d before:
// the date is another one, the monotonic clock is not.
func stepped(t *testing.T, now time.Time, d time.Duration) time.Time {
	const secondsShift = 30 // a time.Time with a monotonic reading: 1 bit, 33 bits of seconds, 30 of ns
	after := now
	*(*uint64)(unsafe.Pointer(&after)) += uint64(int64(d/time.Second)) << secondsShift
	require.Zero(t, after.Sub(now), "the same time on the monotonic clock")
	require.Equal(t, int64(d/time.Second), after.Unix()-now.Unix(), "another date")
	return after
}

// Limits do not follow when the date is set.
func TestLimitsWhenTheDateIsSet(t *testing.T) {
	r := newRig(t, membership.Limits{JoinsPer64: 2})
	for _, step := range []time.Duration{-time.Hour, time.Hour, -24 * time.Hour} {
		now := time.Now()
		later := func(d time.Duration) time.Time { return stepped(t, now.Add(d), step) }
		c := newConn(r.Server, &fronttest.Conn{Node: enode.ID{byte(step / time.Hour)}, Remote: home})
		c.session.Groups = []ids.Group{group}
		until := func(limit func(time.Time) bool) {
			t.Helper()
			n := 0
			for limit(now) {
				n++
				require.Less(t, n, 100)
			}
			require.False(t, limit(later(0)), "the bucket is as empty as it was")
			require.True(t, limit(later(time.Minute)))
		}
		until(func(at time.Time) bool { return c.tooFast(at, &proto.Join{}) == nil })
		until(func(at time.Time) bool { return c.tooFast(at, &proto.Activate{}) == nil })
		until(func(at time.Time) bool {
			before := r.Stats().Confirmed
			c.confirmed(at, []proto.Place{{Group: group}})
			return r.Stats().Confirmed > before
		})
		until(func(at time.Time) bool {
			replayed := false
			r.Server.cfg.Replay = func(ids.Session, netip.Addr, []proto.Mark) { replayed = true }
			c.replay(at, nil)
			return replayed
		})
		r.cfg.Members = membership.New(membership.Limits{JoinsPer64: 2}, r.cfg.Rand)
		until(func(at time.Time) bool { return r.cfg.Members.Join(at, home) == nil })
	}
}

// A member that goes into its groups and out of them again and again is disconnected and
// banned, and causes few changes and few lines.
func TestSwitchesOfANode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		var log bytes.Buffer
		r.Server.cfg.Log = limitlog.New(slog.NewTextHandler(&log, nil))
		p := r.connect(home)
		r.joinAs(p, func(j *proto.Join) { j.Standby = true })
		activated := 0
		for {
			p.send(&proto.Activate{})
			leave, left := p.next().(*proto.Leave)
			if left {
				require.Equal(t, proto.ReasonUnexpected, leave.Reason)
				break
			}
			activated++
			p.send(&proto.Deactivate{})
		}
		<-p.done
		require.Equal(t, 5, activated, "ten messages, half of them Activate")
		require.LessOrEqual(t, len(r.engine.Changes()), 2*activated+2, "beside join and removal")
		for range 100 {
			p := r.connect(home)
			expect[*proto.Status](p)
			require.Equal(t, proto.ReasonDenied, expect[*proto.Leave](p).Reason)
			<-p.done
		}
		require.Less(t, strings.Count(log.String(), "\n"), 5)

		// A minute later the node is as welcome as any.
		time.Sleep(time.Minute)
		p = r.connect(home)
		r.joinAs(p, func(j *proto.Join) { j.Standby = true })
		p.send(&proto.Activate{})
		expect[*proto.Activated](p)
		p.close()
		require.Len(t, r.switches.due, 1, "full buckets are forgotten")
		r.Stop()
	})
}

// Many nodes of one site have a share of the switches, and leave the rest to others.
func TestSwitchesOfASite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{Per64: 4, JoinsPer64: 4})
		refused := 0
		for id := range byte(20) {
			if id%4 == 0 {
				time.Sleep(300 * time.Millisecond) // joins come back sooner than switches are used
			}
			p := r.connectAs(enode.ID{id, 1}, home)
			if p.joinStandby(r) {
				for range 3 {
					p.send(&proto.Activate{})
					if leave, full := p.next().(*proto.Leave); full {
						require.Equal(t, proto.ReasonFull, leave.Reason)
						refused++
						break
					}
					p.send(&proto.Deactivate{})
				}
			}
			p.close()
		}
		require.Positive(t, refused)
		require.Zero(t, r.Stats().Violations)

		other := r.connectAs(enode.ID{1, 2}, netip.MustParseAddr("2001:db8:1::7"))
		require.True(t, other.joinStandby(r))
		other.send(&proto.Activate{})
		expect[*proto.Activated](other)
		other.close()
		r.Stop()
	})
}

// joinStandby joins, and returns whether it could.
func (p *peer) joinStandby(r *rig) bool {
	p.greet()
	join := theJoin
	join.Port = p.port
	join.Standby = true
	p.send(&join)
	select {
	case probe := <-r.engine.probes:
		p.prove(probe)
		expect[*proto.Welcome](p)
		return true
	default:
		expect[*proto.Leave](p)
		return false
	}
}

// A session in standby goes into its groups within the limit of copies alone.
func TestLimitOfStandby(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		r.set(func(t *Terms) { t.Limit = 2*wire.MaxDatagram + 1 })
		var waiting []*peer
		for id := range byte(3) {
			p := r.connectAs(enode.ID{id, 1}, home)
			require.True(t, p.joinStandby(r), "a session in standby costs no copies")
			waiting = append(waiting, p)
		}
		for _, p := range waiting[:2] {
			p.send(&proto.Activate{})
			expect[*proto.Activated](p)
		}
		r.engine.Changes()
		waiting[2].send(&proto.Activate{})
		require.Equal(t, proto.ReasonFull, expect[*proto.Leave](waiting[2]).Reason)
		for _, c := range r.engine.Changes() {
			require.Empty(t, c.Add)
		}
		waiting[0].send(&proto.Deactivate{})
		standby := theJoin
		standby.Standby, standby.Port = true, waiting[2].port
		waiting[2].send(&standby)
		waiting[2].prove(<-r.engine.probes)
		expect[*proto.Welcome](waiting[2])
		waiting[2].send(&proto.Activate{})
		expect[*proto.Activated](waiting[2])
		for _, p := range waiting {
			p.close()
		}
		r.Stop()
	})
}

func TestNodeLimit(t *testing.T) {
	l := newNodeLimit(datapath.NewPolicer(1, 2))
	a, b := enode.ID{1}, enode.ID{2}
	second := uint64(time.Second)
	require.True(t, l.take(0, a, 1))
	require.True(t, l.take(0, a, 1))
	require.False(t, l.take(0, a, 1))
	require.True(t, l.take(0, b, 1))
	require.True(t, l.take(second, a, 1))
	require.False(t, l.take(second, a, 1))
	require.True(t, l.take(30*second, b, 1))
	require.Len(t, l.due, 1)
}
