// SPDX-License-Identifier: LGPL-3.0-or-later

package fanout_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout/fanouttest"
)

// rig is a Fanout over BPF maps in memory, with a clock that the test moves.
type rig struct {
	*fanout.Fanout
	maps *fanouttest.Memory
	now  time.Time
}

func newRig() *rig {
	r := &rig{maps: fanouttest.NewMemory(), now: time.Unix(1, 0)}
	r.Fanout = r.fanout()
	return r
}

// fanout returns the Fanout of another process on these BPF maps.
func (r *rig) fanout() *fanout.Fanout {
	return fanout.New(r.maps, r.maps, func() time.Time { return r.now })
}

// expire ends all quarantines.
func (r *rig) expire() {
	r.now = r.now.Add(fanout.Quarantine)
	r.Expire(r.now)
}

func members(indexes ...ids.Session) map[ids.Session]*fanout.Member {
	some := make(map[ids.Session]*fanout.Member)
	for _, index := range indexes {
		some[index] = &fanout.Member{To: &fanouttest.Receiver{Index: index}}
	}
	return some
}

func TestChainProperty(t *testing.T) {
	r := newRig()
	fanouttest.CheckChains(t, r.Fanout, r.maps, r.expire)
}

// Whatever the kernel refuses while chains change, each is as it was or as it is to be, no slice is lost, and a
// receiver has all copies that went to it, once.
func TestRefusalsProperty(t *testing.T) {
	no := errors.New("no memory")
	rapid.Check(t, func(t *rapid.T) {
		r := newRig()
		w := &fanouttest.Walker{Reader: r.maps, T: t}
		receivers := make(map[ids.Session]*fanouttest.Receiver)
		want, passed := make(map[ids.Session]uint64), 0
		c, err := r.NewChain(nil)
		require.NoError(t, err)
		have := make(map[ids.Session]bool)
		for range rapid.IntRange(1, 20).Draw(t, "changes") {
			left := rapid.IntRange(0, 6).Draw(t, "writes")
			r.maps.Refuse = func(*bpf.RpSlice) error {
				if left--; left < 0 {
					return no
				}
				return nil
			}
			some, next := make(map[ids.Session]*fanout.Member), make(map[ids.Session]bool)
			for index := range have {
				next[index] = true
			}
			for _, number := range rapid.SliceOfN(rapid.Uint32Range(1, 60), 0, 20).Draw(t, "who") {
				index := ids.Session(number)
				if rapid.Bool().Draw(t, "there") {
					if receivers[index] == nil {
						receivers[index] = &fanouttest.Receiver{Index: index}
					}
					some[index], next[index] = &fanout.Member{To: receivers[index]}, true
				} else {
					some[index] = nil
					delete(next, index)
				}
			}
			switch err := c.Change(some, 0); {
			case err == nil:
				have = next
			default:
				require.ErrorIs(t, err, no)
			}
			var now []ids.Session
			for index := range have {
				now = append(now, index)
			}
			require.ElementsMatch(t, now, w.From(uint64(c.Anchor())))
			r.maps.Pass(uint64(c.Anchor()))
			passed++
			for index := range have {
				want[index]++
			}
			if rapid.Bool().Draw(t, "time passes") {
				r.expire()
			}
		}
		copies := make(map[ids.Session]uint64)
		for index, receiver := range receivers {
			copies[index] = receiver.Copies
		}
		r.CountCopies([]*fanout.Chain{c}, func(to fanout.Receiver, n uint64) { copies[to.SessionIndex()] += n })
		for index := range receivers {
			require.Equal(t, want[index], copies[index], "session %d of %d frames", index, passed)
		}
		r.maps.Refuse = nil
		c.Retire()
		r.expire()
		require.Equal(t, fanout.MaxSlices-1, r.Room())
		require.Empty(t, r.RetiredAnchors())
	})
}

// Device maps are installed before all slices are in use, off the thread; a change that
// needs them at once waits for the device maps that are under way.
func TestGrowsAhead(t *testing.T) {
	const step = 64
	r := newRig()
	require.NoError(t, r.Grow())
	taken := make(map[uint32]bool)
	take := func() {
		t.Helper()
		s, err := r.Build([]fanout.Member{{To: &fanouttest.Receiver{Index: 1}}}, false)
		require.NoError(t, err)
		require.False(t, taken[s.Index()], "slice %d", s.Index())
		taken[s.Index()] = true
	}
	for range step / 2 {
		require.Nil(t, r.Growing())
		take()
	}
	take()
	require.NotNil(t, r.Growing())
	room := r.Room()
	require.NoError(t, r.Add(<-r.Growing())) // as the thread does
	require.Nil(t, r.Growing())
	require.Equal(t, room, r.Room())
	for range 3 * step { // as one change does
		take()
	}
	require.Len(t, taken, step/2+1+3*step)
	r.Close()
}

// When slices are short, a change is told whether waiting helps.
func TestOutOfSlices(t *testing.T) {
	r := newRig()
	all, err := r.NewChain(nil)
	require.NoError(t, err)
	const most = fanout.MaxSlices - 1
	var sessions []ids.Session
	for index := range ids.Session(most * fanout.SliceSize) {
		sessions = append(sessions, index+1)
	}
	require.NoError(t, all.Change(members(sessions...), 0))
	require.Zero(t, r.Room())
	more, err := r.NewChain(nil)
	require.NoError(t, err)
	require.ErrorContains(t, more.Change(members(1), 0), "no slice is left")
	require.True(t, r.Released().IsZero())

	all.Retire()
	require.ErrorIs(t, more.Change(members(1), 0), fanout.ErrQuarantine)
	require.Equal(t, r.now.Add(fanout.Quarantine), r.Released())
	r.now = r.Released()
	require.NoError(t, more.Change(members(1), 0))
	require.Equal(t, most-1, r.Room())

	r.maps.RefuseMaps = errors.New("no memory")
	f := r.fanout()
	_, err = f.Build(nil, false)
	require.ErrorIs(t, err, r.maps.RefuseMaps)
}

// A device that is gone is told of. A device whose copies the kernel refuses for another reason is
// not taken for gone.
func TestGoneDevice(t *testing.T) {
	r := newRig()
	c, err := r.NewChain(nil)
	require.NoError(t, err)
	some := members(1, 2)
	some[2].Hop.Device = 3
	r.maps.Gone[4] = true
	gone, ok := errors.AsType[*fanout.GoneError](c.Change(some, 0))
	require.True(t, ok)
	require.Equal(t, 3, gone.Device)
	require.Empty(t, c.Slices())
	delete(some, 2)
	r.maps.RefuseCopies = errors.New("no memory")
	err = c.Change(some, 0)
	require.ErrorIs(t, err, r.maps.RefuseCopies)
	_, ok = errors.AsType[*fanout.GoneError](err)
	require.False(t, ok)
	r.maps.RefuseCopies = nil
	require.NoError(t, c.Change(some, 0))
	require.Equal(t, []ids.Session{1}, (&fanouttest.Walker{Reader: r.maps, T: t}).From(uint64(c.Anchor())))
}

// Slices that something follows, those in quarantine too, lead to another recirculation pair when
// there is one, and nothing else of them changes. While there is no pair none of them is built.
func TestRechain(t *testing.T) {
	r := newRig()
	c, err := r.NewChain(nil)
	require.NoError(t, err)
	var sessions []ids.Session
	for index := range ids.Session(40) {
		sessions = append(sessions, index+1)
	}
	require.NoError(t, c.Change(members(sessions...), 0))
	retired := c.Slices()[0]
	require.NoError(t, c.Change(map[ids.Session]*fanout.Member{retired.Members()[0].To.SessionIndex(): nil}, 0))
	before := c.Slices()
	w := &fanouttest.Walker{Reader: r.maps, T: t}
	reached := w.From(uint64(c.Anchor()))

	r.maps.Pair = 0
	require.ErrorIs(t, r.Rechain(), fanout.ErrPair)
	require.ErrorIs(t, c.Change(members(100), 0), fanout.ErrPair)
	r.maps.Pair = 77
	require.NoError(t, r.Rechain())
	require.Equal(t, before, c.Slices())
	require.Equal(t, reached, w.From(uint64(c.Anchor())))
	for _, s := range append(before[:len(before)-1:len(before)-1], retired) {
		require.Equal(t, 77, r.maps.LeadsTo(s.Index(), uint32(len(s.Members()))), "slice %d", s.Index())
	}
	last := before[len(before)-1]
	require.Zero(t, r.maps.LeadsTo(last.Index(), uint32(len(last.Members()))), "nothing follows it")
	require.NoError(t, c.Change(members(100), 0))
}

// A process that goes on uses no slice and no anchor that frames may still come by, until their
// quarantine is over, and then all of them.
func TestAdopt(t *testing.T) {
	r := newRig()
	w := &fanouttest.Walker{Reader: r.maps, T: t}
	group, err := r.NewChain(nil)
	require.NoError(t, err)
	stream, err := r.NewChain(group)
	require.NoError(t, err)
	gone, err := r.NewChain(nil)
	require.NoError(t, err)
	gone.GiveBack()
	var sessions []ids.Session
	for index := range ids.Session(40) {
		sessions = append(sessions, index+1)
	}
	require.NoError(t, group.Change(members(sessions...), 0))
	require.NoError(t, stream.Replace([]fanout.Member{{}, *members(99)[99]}, 2))
	require.NoError(t, r.SetEcho(7, members(7)[7]))
	reached := w.From(uint64(stream.Anchor()))
	require.Len(t, reached, 42)
	old := make(map[uint32]bool)
	for _, c := range []*fanout.Chain{group, stream} {
		for _, s := range c.Slices() {
			old[s.Index()] = true
		}
	}

	next := r.fanout()
	require.NoError(t, next.AdoptEchoes())
	require.Contains(t, next.Echoes(), ids.Session(7))
	busy := next.AdoptAnchors([]uint32{stream.Anchor()})
	require.ElementsMatch(t, []uint32{group.Anchor(), stream.Anchor()}, busy)
	require.NoError(t, next.AdoptSlices([]uint32{stream.Anchor()}))
	require.Equal(t, len(old), next.Left())
	var copies []ids.Session
	require.NoError(t, next.LeftReplicas(func(r *bpf.RpReplica) { copies = append(copies, ids.Session(r.Session)) }))
	require.ElementsMatch(t, reached, copies)

	c, err := next.NewChain(nil)
	require.NoError(t, err)
	require.NotContains(t, busy, c.Anchor())
	require.NoError(t, c.Change(members(sessions...), 0))
	for _, s := range c.Slices() {
		require.False(t, old[s.Index()])
	}
	require.Equal(t, reached, w.From(uint64(stream.Anchor())), "frames in the old chains")
	next.LetGo([]uint32{stream.Anchor()})
	require.Equal(t, len(old), next.Left(), "a stream goes by them")
	next.LetGo(nil)
	require.Zero(t, next.Left())
	next.RetireAnchors(busy)
	require.ElementsMatch(t, busy, next.RetiredAnchors())
	room, chains := next.Room(), next.AnchorsLeft()
	r.now = r.now.Add(fanout.Quarantine)
	next.Expire(r.now)
	require.Equal(t, room+len(old), next.Room())
	require.Equal(t, chains+len(busy), next.AnchorsLeft())
	require.Empty(t, next.RetiredAnchors())
	require.ElementsMatch(t, sessions, w.From(uint64(c.Anchor())))
}
