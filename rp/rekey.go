// SPDX-License-Identifier: LGPL-3.0-or-later

package rp

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/events"
)

// rekeyTimeout is how long a new epoch waits for the acknowledgements of members
// and neighbours before it is used (SPEC 5.6).
const rekeyTimeout = 5 * time.Second

// firstKeys installs keys of each own group with the newest one active: nobody is
// there yet who would have to know it. They are those of an adopted datapath, else
// the first epoch.
func (r *RP) firstKeys(adopted *datapath.State) error {
	keys, err := r.nextKeys()
	if err != nil {
		return err
	}
	var all []proto.GroupKey
	for _, first := range active(keys) {
		own := []proto.GroupKey{first}
		if adopted != nil {
			had := slices.DeleteFunc(slices.Clone(adopted.Keys), func(k proto.GroupKey) bool {
				return k.Ingress != first.Ingress || k.Group != first.Group
			})
			if n := len(had); n > 0 {
				had[n-1].Active = true
				own = had
			}
		}
		all = append(all, own...)
	}
	_, err = r.peers.Install(all, nil, 0)
	return err
}

// nextKeys draws the following epoch of each own group, inactive.
func (r *RP) nextKeys() ([]proto.GroupKey, error) {
	var keys []proto.GroupKey
	for _, group := range r.groups {
		k, err := r.keys.Next(ids.Stream{Ingress: r.incarnation, Group: group}, r.cfg.Rand)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func active(keys []proto.GroupKey) []proto.GroupKey {
	on := make([]proto.GroupKey, len(keys))
	for i, k := range keys {
		k.Active = true
		on[i] = k
	}
	return on
}

// rekey changes the own group keys at every interval until ctx ends.
func (r *RP) rekey(ctx context.Context) {
	ticker := time.NewTicker(r.cfg.RekeyInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			r.rotate(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// rotate goes to the next epoch in two phases: first everybody gets the key, then
// the members publish by it. The epoch before stays valid, so nothing in flight is
// lost.
func (r *RP) rotate(ctx context.Context) {
	keys, err := r.nextKeys()
	if err != nil {
		r.cfg.Log.Error("group keys not changed", "err", err)
		return
	}
	var offers sync.WaitGroup
	offers.Go(func() { r.mesh.Offer(keys, rekeyTimeout) })
	_, err = r.peers.Install(keys, nil, rekeyTimeout)
	offers.Wait()
	if err == nil && ctx.Err() == nil {
		_, err = r.peers.Install(active(keys), nil, rekeyTimeout)
	}
	if err != nil {
		r.cfg.Log.Error("group keys not changed", "err", err)
		return
	}
	r.events.Emit(events.Event{Kind: events.Rekey, Detail: fmt.Sprintf("epoch %d", keys[0].Epoch)})
	r.cfg.Log.Info("group keys changed", "epoch", keys[0].Epoch)
}
