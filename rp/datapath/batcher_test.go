// SPDX-License-Identifier: LGPL-3.0-or-later

package datapath_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/datapathtest"
)

// While a change is being applied, those that arrive wait and go together.
func TestBatcherJoinsChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := &datapathtest.Recorder{OnApply: func(datapath.Change) error {
			time.Sleep(10 * time.Millisecond) // virtual: an engine whose changes are dear
			return nil
		}}
		b := datapath.NewBatcher(engine)
		var all sync.WaitGroup
		apply := func(i int) {
			all.Go(func() {
				err := b.Apply(datapath.Change{Add: []datapath.Session{{Index: ids.Session(i)}}})
				if err != nil {
					t.Errorf("apply: %v", err)
				}
			})
		}
		start := time.Now()
		apply(0)
		synctest.Wait()
		for i := 1; i < 1000; i++ {
			apply(i)
		}
		all.Wait()
		require.Equal(t, 20*time.Millisecond, time.Since(start))
		changes := engine.Changes()
		require.Len(t, changes, 2)
		require.Len(t, changes[0].Add, 1)
		require.Len(t, changes[1].Add, 999)
	})
}

// Each caller is told of the refusals of its own change, which goes to the engine once.
func TestBatcherErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("no")
		engine := &datapathtest.Recorder{OnApply: func(c datapath.Change) error {
			time.Sleep(time.Millisecond)
			refused := new(datapath.Refused)
			for _, s := range c.Add {
				if s.Index == 7 {
					refused.Session(7, why)
				}
			}
			for _, k := range c.Keys {
				if k.Group == 5 {
					refused.Key(ids.Stream{Ingress: k.Ingress, Group: 5}, why)
				}
			}
			return refused.Err()
		}}
		b := datapath.NewBatcher(engine)
		changes := []datapath.Change{
			{Add: []datapath.Session{{Index: 1}}},
			{Add: []datapath.Session{{Index: 7}}},
			{Add: []datapath.Session{{Index: 8}}},
			{Remove: []ids.Session{7}, Routes: []datapath.Route{{Ingress: 7}}},
			{Keys: []proto.GroupKey{{Ingress: 7, Group: 5}, {Ingress: 7, Group: 6}}},
		}
		errs := make([]error, len(changes))
		var all sync.WaitGroup
		calls := 0
		apply := engine.OnApply
		engine.OnApply = func(c datapath.Change) error { calls++; return apply(c) }
		for i, c := range changes {
			all.Go(func() { errs[i] = b.Apply(c) })
			if i == 0 {
				synctest.Wait()
			}
		}
		all.Wait()
		require.Equal(t, 2, calls)
		require.Equal(t, []error{
			nil,
			&datapath.Refused{Sessions: map[ids.Session]error{7: why}},
			nil,
			nil,
			&datapath.Refused{Keys: map[ids.Stream]error{{Ingress: 7, Group: 5}: why}},
		}, errs)
	})
}

// An error that is no refusal belongs to all.
func TestBatcherClosed(t *testing.T) {
	engine := new(datapathtest.Recorder)
	require.NoError(t, engine.Close())
	require.ErrorIs(t, datapath.NewBatcher(engine).Apply(datapath.Change{Remove: []ids.Session{1}}), datapath.ErrClosed)
}

func TestRefused(t *testing.T) {
	r := new(datapath.Refused)
	require.NoError(t, r.Err())
	r.Route(3, errors.New("route"))
	r.Key(ids.Stream{Ingress: 2, Group: 1}, errors.New("key"))
	r.Session(1, fmt.Errorf("session: %w", datapath.ErrNoRoom))
	r.Session(1, errors.New("later reason"))
	require.ErrorIs(t, r.Err(), datapath.ErrNoRoom)
	require.EqualError(t, r.Err(), "datapath refused 1 sessions, keys of 1 streams, 1 routes: session: no room in the datapath")
	require.EqualError(t, r.Ingress(2), "key")
	require.EqualError(t, r.Ingress(3), "route")
	require.NoError(t, r.Ingress(1))
	require.NoError(t, r.Of(datapath.Change{Remove: []ids.Session{1}, Add: []datapath.Session{{Index: 2}}}))
}

func TestChangeMerge(t *testing.T) {
	a := datapath.Change{Remove: []ids.Session{1}, Retire: []ids.Incarnation{2}}
	a.Merge(datapath.Change{Remove: []ids.Session{3}, Add: []datapath.Session{{Index: 4}}, Routes: []datapath.Route{{Ingress: 5}}})
	require.Equal(t, datapath.Change{
		Remove: []ids.Session{1, 3},
		Retire: []ids.Incarnation{2},
		Add:    []datapath.Session{{Index: 4}},
		Routes: []datapath.Route{{Ingress: 5}},
	}, a)
}
