// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/mesh"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/receipts"
)

const publisher = 0xabc // session

// asking returns the record of a DATA of one symbol that asks.
func asking(ingress ids.Incarnation, sequence uint64) datapath.Record {
	h := wire.Header{
		Type: wire.Data, Flags: wire.FlagReceipt, Group: group, Ingress: ingress, Sequence: sequence,
		K: 1, N: 1, PayloadLen: 1, ObjectLen: 1, ObjectID: 1000 + sequence,
	}
	return datapath.NewRecord(publisher, append(h.Append(nil), 0))
}

// told is what Config.Receipted and Config.Counted were told last.
type told struct {
	objects map[ids.Session][]proto.ObjectReceipt
	groups  []proto.Counters
}

func (o *told) edit(c *Config) {
	o.objects = make(map[ids.Session][]proto.ObjectReceipt)
	c.Receipted = func(session ids.Session, objects []proto.ObjectReceipt) {
		o.objects[session] = append(o.objects[session], objects...)
	}
	c.Counted = func(groups []proto.Counters) { o.groups = groups }
}

//	1 --- 2 --- 3      members: 1: 2, one of which publishes; 2: 1; 3: 2
//
// Each RP counts its own, and the publisher is told the sum; all know how many members
// there are, and behind whom.
func TestReceipts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		var out [3]told
		var p []*point
		for i := range 3 {
			p = append(p, n.start(byte(i+1), incarnationOf(byte(i+1), 0), out[i].edit))
			if i > 0 {
				n.link(p[i-1], p[i])
			}
			for range []int{2, 1, 2}[i] {
				p[i].join()
			}
		}
		p[0].Admit(true)
		n.settle()
		n.settle()
		require.Equal(t, []proto.Counters{
			{Group: group, Members: 5, Here: 2, RPs: []proto.RPMembers{{RP: uint64(idOf(t, 2)), Members: 3}}},
		}, out[0].groups)
		require.Equal(t, []proto.Counters{{Group: group, Members: 5, Here: 1}}, out[1].groups, "it has no tree")

		rec := asking(p[0].incarnation, 7)
		place := proto.Place{Ingress: rec.Ingress, Group: group, Sequence: 7}
		for _, o := range p {
			o.cfg.Asked.Replicated(time.Now(), rec)
		}
		p[0].cfg.Asked.Confirm(time.Now(), publisher, []proto.Place{place})
		p[0].cfg.Asked.Confirm(time.Now(), 1, []proto.Place{place})
		p[1].cfg.Asked.Confirm(time.Now(), 1, []proto.Place{place, {Ingress: 9}})
		p[2].cfg.Asked.Confirm(time.Now(), 1, []proto.Place{place})
		p[2].cfg.Asked.Confirm(time.Now(), 1, []proto.Place{place})
		time.Sleep(3 * time.Second)
		synctest.Wait()
		all := proto.ObjectReceipt{Place: place, ObjectID: 1007, Members: 4, Sent: 4, Confirmed: 3}
		require.Equal(t, all, last(out[0].objects[publisher]))
		p[2].cfg.Asked.Confirm(time.Now(), 2, []proto.Place{place})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		all.Confirmed = 4
		require.Equal(t, all, last(out[0].objects[publisher]))
		require.Len(t, out[0].objects, 1)
		require.Empty(t, out[1].objects)
		require.Empty(t, out[2].objects)

		time.Sleep(receipts.Lifetime)
		synctest.Wait()
		require.Empty(t, p[0].cfg.Asked.published)
		st := p[0].Stats()
		require.Equal(t, uint64(1), st.Receipts)
		require.Zero(t, st.ReceiptsRefused+st.Violations)
		for _, o := range st.Neighbours {
			require.Equal(t, map[linkstate.ID]uint64{idOf(t, 2): 3}[o.RP], o.Members)
		}
	})
}

func last(objects []proto.ObjectReceipt) (o proto.ObjectReceipt) {
	if len(objects) > 0 {
		o = objects[len(objects)-1]
	}
	return o
}

// What is reported by who gets nothing from here, and of what nobody asked, does not
// count; nor does what is no question.
func TestReceiptsNotAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		var out told
		p := n.start(1, incarnationOf(1, 0), out.edit)
		p.join()
		p.Admit(true)
		c := p.connect(3)
		c.open(incarnationOf(3, 0))
		c.drain()
		n.settle()
		rec := asking(p.incarnation, 7)
		key := receipts.Key{Ingress: rec.Ingress, Group: group, Sequence: 7}
		p.cfg.Asked.Replicated(time.Now(), rec)
		c.send(&mesh.Report{Reports: []receipts.Report{{Key: key, Count: receipts.Count{Sent: 9, Confirmed: 9}}}})
		plain := asking(p.incarnation, 8)
		plain.Datagram[1] = wire.FlagRepublished
		p.cfg.Asked.Replicated(time.Now(), plain)
		time.Sleep(receipts.Lifetime)
		synctest.Wait()
		require.Empty(t, out.objects, "the only member published it")
		st := p.Stats()
		require.Equal(t, uint64(1), st.Receipts)
		require.Zero(t, st.Violations)
	})
}

// One peer cannot have everything counted.
func TestTooManyReceipts(t *testing.T) {
	r := NewReceipts()
	now := time.Now()
	r.Replicated(now, asking(incarnationOf(1, 0), 1)) // before the start
	require.Zero(t, r.requests)
	synctest.Test(t, func(t *testing.T) {
		p := newNetwork(t).start(1, incarnationOf(1, 0))
		for i := range uint64(receipts.MaxOpen + 10) {
			p.cfg.Asked.Replicated(time.Now(), asking(incarnationOf(1, 0), i))
		}
		st := p.Stats()
		require.Equal(t, uint64(receipts.MaxOpen), st.Receipts)
		require.Equal(t, uint64(10), st.ReceiptsRefused)
		require.Len(t, p.cfg.Asked.published, receipts.MaxOpen)
	})
}
