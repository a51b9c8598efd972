// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"fmt"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
)

// room is what a table takes of the BPF maps while a change is admitted to it, element by
// element. Slices are counted at their emptiest, so that nothing fails for want of room
// once it was admitted.
type room struct {
	t         *table
	gone      map[ids.Session]bool              // sessions that the change removes
	joined    map[ids.Session]*datapath.Session // admitted by the change
	sessions  int
	states    int               // elements of session states to be taken
	receivers map[ids.Group]int // by group
	streams   map[ids.Stream]bool
	added     int                     // streams
	anchors   int                     // to be taken
	routes    map[ids.Incarnation]int // branches, by ingress RP
	branches  int
	slices    int
}

// newRoom returns the room of a table when a change has removed and retired what it will.
func newRoom(t *table, c datapath.Change) *room {
	r := &room{
		t:         t,
		gone:      make(map[ids.Session]bool),
		joined:    make(map[ids.Session]*datapath.Session),
		sessions:  len(t.sessions),
		receivers: make(map[ids.Group]int),
		streams:   make(map[ids.Stream]bool),
		routes:    make(map[ids.Incarnation]int),
	}
	for id, g := range t.groups {
		r.receivers[id] = g.sessions
	}
	for _, index := range c.Remove {
		if s := t.sessions[index]; s != nil && !r.gone[index] {
			r.sessions--
			for _, group := range s.Groups {
				r.receivers[group]--
			}
		}
		r.gone[index] = true
	}
	for _, n := range r.receivers {
		r.slices += slicesOfGroup(n)
	}
	retired := make(map[ids.Incarnation]bool)
	for _, ingress := range c.Retire {
		retired[ingress] = ingress != t.e.cfg.Incarnation
	}
	for ingress, route := range t.routes {
		if !retired[ingress] {
			r.routes[ingress] = len(route.To)
			r.branches += len(route.To)
		}
	}
	for id := range t.streams {
		if !retired[id.Ingress] {
			r.streams[id] = true
			r.slices += r.slicesOfStream(id)
		}
	}
	return r
}

// slicesOfGroup is how many slices the receivers of a group take at most.
func slicesOfGroup(receivers int) int { return 2*receivers/fanout.SliceSize + 8 }

func slicesOfBranches(n int) int { return (n + fanout.SliceSize - 1) / fanout.SliceSize }

// slicesOfStream is how many slices a stream takes before those of its group.
func (r *room) slicesOfStream(id ids.Stream) int {
	n := slicesOfBranches(r.routes[id.Ingress])
	if id.Ingress == r.t.e.cfg.Incarnation {
		n++ // for the ECHO
	}
	return n
}

// group returns what a group takes that is not there: anchors and slices.
func (r *room) group(id ids.Group) (anchors, slices int) {
	if _, ok := r.receivers[id]; ok {
		return 0, 0
	}
	return 1, slicesOfGroup(0)
}

// stream admits a stream, or tells what it finds no room in.
func (r *room) stream(id ids.Stream) error {
	if r.streams[id] {
		return nil
	}
	anchors, slices := r.group(id.Group)
	anchors, slices = anchors+1, slices+r.slicesOfStream(id)
	switch {
	case len(r.streams) >= MaxStreams || r.added >= r.t.streamStates.Left() || r.anchors+anchors > r.t.e.fanout.AnchorsLeft():
		return fmt.Errorf("%w: stream %v beyond %d streams", datapath.ErrNoRoom, id, len(r.streams))
	case r.slices+slices > fanout.MaxSlices:
		return fmt.Errorf("%w: slices of stream %v", datapath.ErrNoRoom, id)
	}
	r.streams[id] = true
	r.added++
	r.anchors += anchors
	r.slices += slices
	r.receivers[id.Group] += 0 // it is there now
	return nil
}

// session admits a session, or tells what it finds no room in.
func (r *room) session(s *datapath.Session) error {
	old, states := r.joined[s.Index], 1
	if had := r.t.sessions[s.Index]; old == nil && had != nil && !r.gone[s.Index] {
		old = &had.Session
		if had.ReceiveKey == s.ReceiveKey {
			states = 0 // it keeps its state
		}
	}
	receivers := make(map[ids.Group]int)
	if old != nil {
		for _, group := range distinct(old.Groups) {
			receivers[group]--
		}
	}
	for _, group := range distinct(s.Groups) {
		receivers[group]++
	}
	anchors, slices := 0, 0
	for group, n := range receivers {
		a, more := r.group(group)
		anchors += a
		slices += more + slicesOfGroup(r.receivers[group]+n) - slicesOfGroup(r.receivers[group])
	}
	switch {
	case old == nil && r.sessions >= MaxSessions || r.states+states > r.t.sessionStates.Left():
		return fmt.Errorf("%w: session %08x beyond %d sessions", datapath.ErrNoRoom, s.Index, r.sessions)
	case r.anchors+anchors > r.t.e.fanout.AnchorsLeft():
		return fmt.Errorf("%w: groups of session %08x", datapath.ErrNoRoom, s.Index)
	case r.slices+slices > fanout.MaxSlices:
		return fmt.Errorf("%w: slices of session %08x", datapath.ErrNoRoom, s.Index)
	}
	if old == nil {
		r.sessions++
	}
	r.joined[s.Index] = s
	r.states += states
	r.anchors += anchors
	r.slices += slices
	for group, n := range receivers {
		r.receivers[group] += n
	}
	return nil
}

// route admits a route, or tells what it finds no room in.
func (r *room) route(route *datapath.Route) error {
	old, replaces := r.routes[route.Ingress]
	streams := 0
	for id := range r.streams {
		if id.Ingress == route.Ingress {
			streams++
		}
	}
	branches := len(route.To) - old
	slices := streams * (slicesOfBranches(len(route.To)) - slicesOfBranches(old))
	switch {
	case !replaces && !route.Ends() && len(r.routes) >= MaxStreams:
		return fmt.Errorf("%w: route of %08x beyond %d routes", datapath.ErrNoRoom, route.Ingress, len(r.routes))
	case r.branches+branches > int(r.t.e.objects.Branches.MaxEntries()):
		return fmt.Errorf("%w: route of %08x with %d branches", datapath.ErrNoRoom, route.Ingress, len(route.To))
	case r.slices+slices > fanout.MaxSlices:
		return fmt.Errorf("%w: slices of the route of %08x", datapath.ErrNoRoom, route.Ingress)
	}
	r.branches += branches
	r.slices += slices
	if route.Ends() {
		delete(r.routes, route.Ingress)
	} else {
		r.routes[route.Ingress] = len(route.To)
	}
	return nil
}

// admit refuses the elements of a change for which the BPF maps have no room.
func (t *table) admit(c datapath.Change, refused *datapath.Refused) {
	r := newRoom(t, c)
	for i := range c.Keys {
		id := c.Keys[i].Stream()
		if refused.Keys[id] != nil {
			continue
		}
		if err := r.stream(id); err != nil {
			refused.Key(id, err)
		}
	}
	for i := range c.Add {
		if s := &c.Add[i]; refused.Sessions[s.Index] == nil {
			if err := r.session(s); err != nil {
				refused.Session(s.Index, err)
			}
		}
	}
	for i := range c.Routes {
		if route := &c.Routes[i]; refused.Routes[route.Ingress] == nil {
			if err := r.route(route); err != nil {
				refused.Route(route.Ingress, err)
			}
		}
	}
}
