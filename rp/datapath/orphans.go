// SPDX-License-Identifier: LGPL-3.0-or-later

package datapath

import (
	"maps"
	"slices"
	"sync"
)

// Orphans is an Engine that adopted a datapath: its sessions, its routes and the streams
// of other RPs go on, but nobody asks for them any more. Each is replaced by what comes
// for it, in the same change, so that nobody is served twice:
//
//   - a session with the same index or endpoint replaces a session, in the routes that
//     nobody replaced, too: a tree goes on while the links come up again;
//   - a route replaces that of its ingress RP;
//   - keys or a route of an ingress RP make its streams belong to somebody.
//
// Expire ends the rest.
type Orphans struct {
	Engine

	mu       sync.Mutex // held by Apply
	sessions map[uint32]Session
	ingress  map[uint32]bool
	routes   map[uint32]Route // by ingress RP
}

// NewOrphans returns an Orphans in front of an engine that adopted a state.
func NewOrphans(e Engine, st *State) *Orphans {
	o := &Orphans{
		Engine:   e,
		sessions: make(map[uint32]Session),
		ingress:  make(map[uint32]bool),
		routes:   make(map[uint32]Route),
	}
	for _, s := range st.Sessions {
		o.sessions[s.Index] = s
	}
	for _, k := range st.Keys {
		o.ingress[k.Ingress] = true
	}
	for i := range st.Routes {
		r := st.Routes[i].Clone()
		o.ingress[r.Ingress], o.routes[r.Ingress] = true, r
	}
	delete(o.ingress, st.Incarnation)
	return o
}

// Apply implements Engine.
func (o *Orphans) Apply(c Change) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	replaced := make(map[uint32]uint32) // sessions that go, by what comes for them; 0: nothing
	for index, s := range o.sessions {
		if slices.Contains(c.Remove, index) {
			replaced[index] = 0
		}
		for _, by := range c.Add {
			if by.Index == index || by.Addr == s.Addr {
				replaced[index] = by.Index
			}
		}
	}
	claimed := slices.Clone(c.Retire)
	for _, k := range c.Keys {
		claimed = append(claimed, k.Ingress)
	}
	settled := slices.Clone(c.Retire)
	for _, r := range c.Routes {
		settled = append(settled, r.Ingress)
	}
	changed := o.follow(replaced, settled)
	c.Remove = slices.Concat(slices.Sorted(maps.Keys(replaced)), c.Remove)
	c.Routes = slices.Concat(changed, c.Routes)
	if err := o.Engine.Apply(c); err != nil {
		return err
	}
	for index := range replaced {
		delete(o.sessions, index)
	}
	for _, r := range changed {
		o.routes[r.Ingress] = r
	}
	for _, ingress := range settled {
		delete(o.routes, ingress)
	}
	for _, ingress := range slices.Concat(claimed, settled) {
		delete(o.ingress, ingress)
	}
	return nil
}

// follow returns the routes in which sessions are replaced, but not those of settled
// ingress RPs.
func (o *Orphans) follow(replaced map[uint32]uint32, settled []uint32) (changed []Route) {
	for _, ingress := range slices.Sorted(maps.Keys(o.routes)) {
		if slices.Contains(settled, ingress) {
			continue
		}
		old := o.routes[ingress]
		r := Route{Ingress: ingress}
		touched := false
		follow := func(session uint32) uint32 {
			if by, ok := replaced[session]; ok {
				session, touched = by, true
			}
			return session
		}
		for _, session := range old.From {
			if s := follow(session); s != 0 && !slices.Contains(r.From, s) {
				r.From = append(r.From, s)
			}
		}
		for _, b := range old.To {
			if s := follow(b.Session); s != 0 && !slices.ContainsFunc(r.To, func(b Branch) bool { return b.Session == s }) {
				r.To = append(r.To, Branch{Session: s, Groups: b.Groups})
			}
		}
		if touched {
			changed = append(changed, r)
		}
	}
	return changed
}

// Expire ends the sessions, routes and streams that nothing came for.
func (o *Orphans) Expire() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	rest := Change{Remove: slices.Sorted(maps.Keys(o.sessions)), Retire: slices.Sorted(maps.Keys(o.ingress))}
	for _, ingress := range slices.Sorted(maps.Keys(o.routes)) {
		rest.Routes = append(rest.Routes, Route{Ingress: ingress})
	}
	if len(rest.Remove)+len(rest.Retire)+len(rest.Routes) == 0 {
		return nil
	}
	if err := o.Engine.Apply(rest); err != nil {
		return err
	}
	clear(o.sessions)
	clear(o.ingress)
	clear(o.routes)
	return nil
}
