// SPDX-License-Identifier: LGPL-3.0-or-later

package rp

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// Times of heartbeats (SPEC 6.5).
const (
	beatLook  = 250 * time.Millisecond // between looks at the own streams
	beatIdle  = 5 * time.Second        // between heartbeats to the mesh, of streams at rest
	beatBusy  = time.Second            // and of streams that move, or move again
	beatFirst = 500 * time.Millisecond // and from the last DATA to the first, then twice as long each
	beatTimes = 3                      // that it doubles
)

// beats says when heartbeats are due, without a clock. Peers must hear their RP, or
// they leave it: they get one when an own stream was silent for a heartbeat interval.
// The mesh has hellos; it gets some when a stream comes to rest, so that the loss of the
// last DATA is seen, and few from then on. While streams move it gets one each second: what
// a neighbour that is no parent any more said of a stream ends with it.
type beats struct {
	newest []proto.Mark // of the own streams
	rest   time.Time    // since no stream had DATA
	silent time.Time    // since some stream had nothing for the peers
	mesh   int          // heartbeats to the mesh since then
	meshAt time.Time    // the next one
	busyAt time.Time    // the next one of a stream that moves
}

// newBeats returns beats that begin with one of each kind.
func newBeats(now time.Time) *beats {
	return &beats{rest: now, silent: now.Add(-proto.HeartbeatInterval), mesh: beatTimes, meshAt: now}
}

// look tells the newest sequences of the own streams, and returns whom to send a
// heartbeat, 0 for nobody.
func (b *beats) look(now time.Time, newest []proto.Mark) datapath.HeartbeatScope {
	moved := 0
	for _, m := range newest {
		if !slices.Contains(b.newest, m) {
			moved++
		}
	}
	b.newest = newest
	if moved > 0 {
		b.rest, b.mesh, b.meshAt = now, 0, now.Add(beatFirst)
		if b.busyAt.Before(b.meshAt) {
			b.meshAt = b.busyAt
		}
		if moved == len(newest) {
			b.silent = now
		}
	}
	if !now.Before(b.meshAt) {
		if moved == 0 { // else the stream has yet to come to rest
			b.mesh++
		}
		b.silent, b.meshAt, b.busyAt = now, now.Add(beatIdle), now.Add(beatBusy)
		if b.mesh < beatTimes {
			b.meshAt = b.rest.Add(beatFirst << b.mesh)
		}
		return datapath.All
	}
	if now.Sub(b.silent) >= proto.HeartbeatInterval {
		b.silent = now
		return datapath.Local
	}
	return 0
}

// heartbeat sends heartbeats until ctx ends. Members leave when they hear none, so it asks
// the engine for nothing that waits for a change.
func (r *RP) heartbeat(ctx context.Context) {
	ticker := time.NewTicker(beatLook)
	defer ticker.Stop()
	b := newBeats(time.Now())
	for {
		select {
		case now := <-ticker.C:
			if scope := b.look(now, r.engine.OwnMarks()); scope != 0 {
				err := r.engine.Heartbeat(scope)
				if errors.Is(err, datapath.ErrClosed) {
					return
				}
				if err != nil {
					r.cfg.Log.Error("heartbeat not sent", "err", err)
				}
				r.vitals.sent(err)
			}
			r.vitals.heartbeats.beat()
		case <-ctx.Done():
			return
		}
	}
}
