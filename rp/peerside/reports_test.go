// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/membership"
)

// A member is believed that it received, lost and doubled no more than went by.
func TestReports(t *testing.T) {
	const other = 0x0b
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		marks := func(own, mesh uint64) {
			r.engine.marks = []proto.Mark{
				{Ingress: incarnation, Group: group, Sequence: own},
				{Ingress: other, Group: group, Sequence: mesh},
				{Ingress: incarnation, Group: otherGroup, Sequence: 1e6},
			}
		}
		marks(100, 5)
		p := r.connect(home)
		r.join(p)
		announce := func(counters ...proto.Counter) (received, lost, duplicates uint64) {
			t.Helper()
			before := r.Stats()
			time.Sleep(2 * time.Second)
			p.send(&proto.Announce{Counters: counters})
			after := r.Stats()
			return after.Received - before.Received, after.Lost - before.Lost, after.Duplicates - before.Duplicates
		}
		is := func(want [3]uint64, received, lost, duplicates uint64) {
			t.Helper()
			require.Equal(t, want, [3]uint64{received, lost, duplicates})
		}
		own := func(received, lost, duplicates uint64) proto.Counter {
			return proto.Counter{Ingress: incarnation, Group: group, Received: received, Lost: lost, Duplicates: duplicates}
		}
		marks(110, 5)
		is2 := func(want [3]uint64) func(a, b, c uint64) {
			return func(a, b, c uint64) { t.Helper(); is(want, a, b, c) }
		}
		is2([3]uint64{7, 3, 1})(announce(own(7, 3, 1)))
		marks(120, 5)
		is2([3]uint64{8, 2, 0})(announce(own(15, 5, 1)))
		marks(130, 8)
		is2([3]uint64{4, 1, 0})(announce(own(4, 1, 0), proto.Counter{Ingress: other, Group: group})) // it began anew
		marks(140, 8)
		is2([3]uint64{10, 0, 10})(announce(own(math.MaxUint64, math.MaxUint64, math.MaxUint64)))
		is2([3]uint64{0, 0, 0})(announce(own(0, math.MaxUint64, 0)))
		marks(150, 8)
		is2([3]uint64{0, 10, 0})(announce(own(0, 50, 0), own(5, 5, 5)))

		// Streams that do not exist, or that the member is not sent, count nothing.
		marks(1000, 1000)
		var many []proto.Counter
		for n := range ids.Incarnation(2000) {
			many = append(many, proto.Counter{Ingress: 0x1000 + n, Group: group, Received: math.MaxUint64 / 2000, Lost: 1 << 63})
		}
		many = append(many, proto.Counter{Ingress: incarnation, Group: otherGroup, Lost: 1e6})
		is2([3]uint64{0, 0, 0})(announce(many...))

		st := r.Stats()
		require.Equal(t, uint64(7+8+4+10), st.Received)
		require.Equal(t, uint64(3+2+1+10), st.Lost)
		p.close()
		r.Stop()
	})
}

// Who announces all the time breaks the protocol.
func TestAnnouncesAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		p := r.connect(home)
		r.join(p)
		for range 30 {
			time.Sleep(1300 * time.Millisecond)
			p.send(&proto.Announce{})
		}
		require.Zero(t, r.Stats().Violations)
		time.Sleep(2 * time.Second)
		for range 10 {
			p.send(&proto.Announce{})
		}
		require.Zero(t, r.Stats().Violations)
		p.send(&proto.Announce{})
		require.Equal(t, proto.ReasonUnexpected, expect[*proto.Leave](p).Reason)
		<-p.done
		r.Stop()
	})
}
