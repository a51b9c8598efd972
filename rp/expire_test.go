// SPDX-License-Identifier: LGPL-3.0-or-later

package rp

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/datapathtest"
)

// What nobody came for ends after 30 s, or as soon as the engine can end it.
func TestExpireUntilItIsDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, tries := time.Now(), 0
		engine := &datapathtest.Recorder{OnApply: func(datapath.Change) error {
			if tries++; tries < 3 {
				return errors.New("not now")
			}
			return nil
		}}
		r := &RP{cfg: Config{Log: slog.New(slog.DiscardHandler)}}
		r.expire(t.Context(), datapath.NewOrphans(engine, &datapath.State{Incarnation: 1, Sessions: []datapath.Session{{Index: 5}}}))
		require.Equal(t, orphanGrace+2*orphanAgain, time.Since(start))
		require.Equal(t, []datapath.Change{{Remove: []ids.Session{5}}}, engine.Changes())
	})
}
