// SPDX-License-Identifier: LGPL-3.0-or-later

// Package keyring holds the group keys that a replication point gives to its
// members (SPEC 5.6): its own and those of its RP neighbours.
package keyring

import (
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// Ring holds the newest datapath.EpochsKept epochs of each (ingress RP, group). At
// most one of them is active. It is safe for concurrent use.
type Ring struct {
	mu     sync.Mutex
	keys   map[ids.Stream][]proto.GroupKey // oldest first
	groups map[ids.Incarnation][]ids.Group // of each ingress RP, ascending
}

// New returns an empty ring.
func New() *Ring {
	return &Ring{keys: make(map[ids.Stream][]proto.GroupKey), groups: make(map[ids.Incarnation][]ids.Group)}
}

// Install adds keys. An epoch that is there already is replaced, and the newest one
// then; an active key makes the others of its (ingress RP, group) inactive.
func (r *Ring) Install(keys []proto.GroupKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range keys {
		r.install(k)
	}
}

func (r *Ring) install(k proto.GroupKey) {
	at := k.Stream()
	all := r.keys[at]
	if k.Active {
		for i := range all {
			all[i].Active = false
		}
	}
	if len(all) == 0 {
		of := r.groups[k.Ingress]
		i, _ := slices.BinarySearch(of, k.Group)
		r.groups[k.Ingress] = slices.Insert(of, i, k.Group)
	}
	all = append(slices.DeleteFunc(all, func(o proto.GroupKey) bool { return o.Epoch == k.Epoch }), k)
	if len(all) > datapath.EpochsKept {
		all = slices.Delete(all, 0, 1)
	}
	r.keys[at] = all
}

// Retire forgets the keys of ingress RPs that are gone.
func (r *Ring) Retire(ingress []ids.Incarnation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range ingress {
		for _, group := range r.groups[i] {
			delete(r.keys, ids.Stream{Ingress: i, Group: group})
		}
		delete(r.groups, i)
	}
}

// Groups returns the keys of groups, ordered by ingress RP and group, and oldest
// first among those.
func (r *Ring) Groups(groups []ids.Group) []proto.GroupKey {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []proto.GroupKey
	for at, keys := range r.keys {
		if slices.Contains(groups, at.Group) {
			found = append(found, keys...)
		}
	}
	slices.SortStableFunc(found, func(a, b proto.GroupKey) int { return a.Stream().Compare(b.Stream()) })
	return found
}

// Of returns the keys of one ingress RP in the same order.
func (r *Ring) Of(ingress ids.Incarnation) (found []proto.GroupKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, group := range r.groups[ingress] {
		found = append(found, r.keys[ids.Stream{Ingress: ingress, Group: group}]...)
	}
	return found
}

// Next returns an inactive key of the epoch that follows the newest one of
// a stream, drawn from rand. It is not installed.
func (r *Ring) Next(stream ids.Stream, rand io.Reader) (proto.GroupKey, error) {
	k := proto.GroupKey{Ingress: stream.Ingress, Group: stream.Group}
	if _, err := io.ReadFull(rand, k.Key[:]); err != nil {
		return k, fmt.Errorf("no random group key: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if keys := r.keys[stream]; len(keys) > 0 {
		k.Epoch = keys[len(keys)-1].Epoch + 1
	}
	return k, nil
}
