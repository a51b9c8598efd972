// SPDX-License-Identifier: LGPL-3.0-or-later

package datapath_test

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

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
				err := b.Apply(datapath.Change{Add: []datapath.Session{{Index: uint32(i)}}})
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

// An error belongs to the change that the engine refuses, not to those that went with it.
func TestBatcherErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := errors.New("refused")
		engine := &datapathtest.Recorder{OnApply: func(c datapath.Change) error {
			time.Sleep(time.Millisecond)
			for _, s := range c.Add {
				if s.Index == 7 {
					return refused
				}
			}
			return nil
		}}
		b := datapath.NewBatcher(engine)
		var errs [4]error
		var all sync.WaitGroup
		apply := func(i int, index uint32) {
			all.Go(func() { errs[i] = b.Apply(datapath.Change{Add: []datapath.Session{{Index: index}}}) })
		}
		apply(0, 1)
		synctest.Wait()
		apply(1, 7)
		apply(2, 8)
		all.Go(func() { errs[3] = b.Apply(datapath.Change{Remove: []uint32{9}}) })
		all.Wait()
		require.Equal(t, [4]error{nil, refused, nil, nil}, errs)
		require.ElementsMatch(t, []datapath.Change{
			{Add: []datapath.Session{{Index: 1}}}, {Add: []datapath.Session{{Index: 8}}}, {Remove: []uint32{9}},
		}, engine.Changes())
	})
}

func TestChangeMerge(t *testing.T) {
	a := datapath.Change{Remove: []uint32{1}, Retire: []uint32{2}}
	a.Merge(datapath.Change{Remove: []uint32{3}, Add: []datapath.Session{{Index: 4}}, Routes: []datapath.Route{{Ingress: 5}}})
	require.Equal(t, datapath.Change{
		Remove: []uint32{1, 3},
		Retire: []uint32{2},
		Add:    []datapath.Session{{Index: 4}},
		Routes: []datapath.Route{{Ingress: 5}},
	}, a)
}
