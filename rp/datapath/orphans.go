// SPDX-License-Identifier: LGPL-3.0-or-later

package datapath

import (
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/ethmcast/mdcs/ethmcast/ids"
)

// Orphans is an Engine that adopted a datapath: its sessions and the streams of other RPs
// go on, but nobody asks for them any more. Each is replaced by what comes for it, in the
// same change, so that nobody is served twice:
//
//   - a session with the same index or endpoint replaces a session, also when the engine
//     then refuses the newcomer: its owner gave the old one up;
//   - keys of an ingress RP make its streams belong to somebody.
//
// Claim gives a session to somebody as it is, Expire ends the rest. Routes are left to
// whoever claims the sessions of RP neighbours.
type Orphans struct {
	Engine

	mu       sync.Mutex // held by Stage
	sessions map[ids.Session]Session
	ingress  map[ids.Incarnation]bool
}

// NewOrphans returns an Orphans in front of an engine that adopted a state.
func NewOrphans(e Engine, st *State) *Orphans {
	o := &Orphans{
		Engine:   e,
		sessions: make(map[ids.Session]Session),
		ingress:  make(map[ids.Incarnation]bool),
	}
	for _, s := range st.Sessions {
		o.sessions[s.Index] = s
	}
	for _, k := range st.Keys {
		o.ingress[k.Ingress] = true
	}
	for _, r := range st.Routes {
		o.ingress[r.Ingress] = true
	}
	delete(o.ingress, st.Incarnation)
	return o
}

// Apply implements Engine.
func (o *Orphans) Apply(c Change) error {
	err := o.Stage(c)
	o.Await(c)
	return err
}

// Await implements Stager.
func (o *Orphans) Await(c Change) { await(o.Engine, c) }

// Stage implements Stager.
func (o *Orphans) Stage(c Change) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var replaced []ids.Session
	for index, s := range o.sessions {
		comes := func(by Session) bool { return by.Index == index || by.Addr == s.Addr }
		if slices.Contains(c.Remove, index) || slices.ContainsFunc(c.Add, comes) {
			replaced = append(replaced, index)
		}
	}
	slices.Sort(replaced)
	next := c
	next.Remove = slices.Concat(replaced, c.Remove)
	err := stage(o.Engine, next)
	refused, some := errors.AsType[*Refused](err)
	if err != nil && !some {
		return err
	}
	for _, index := range replaced {
		delete(o.sessions, index)
	}
	for _, ingress := range c.Retire {
		delete(o.ingress, ingress)
	}
	for _, k := range c.Keys {
		if !some || refused.Keys[k.Stream()] == nil {
			delete(o.ingress, k.Ingress)
		}
	}
	return err
}

// Claim gives an adopted session that matches to who asks for it: it goes on as it
// is, and does not expire any more. It reports false when there is none.
func (o *Orphans) Claim(match func(Session) bool) (Session, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for index, s := range o.sessions {
		if match(s) {
			delete(o.sessions, index)
			return s, true
		}
	}
	return Session{}, false
}

// Expire ends the sessions and streams that nothing came for.
func (o *Orphans) Expire() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	rest := Change{Remove: slices.Sorted(maps.Keys(o.sessions)), Retire: slices.Sorted(maps.Keys(o.ingress))}
	if len(rest.Remove)+len(rest.Retire) == 0 {
		return nil
	}
	if err := o.Engine.Apply(rest); err != nil {
		return err
	}
	clear(o.sessions)
	clear(o.ingress)
	return nil
}
