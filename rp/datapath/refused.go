// SPDX-License-Identifier: LGPL-3.0-or-later

package datapath

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/ethmcast/mdcs/ethmcast/ids"
)

// Reasons of a refusal, for errors.Is.
var (
	// ErrContract is wrapped when an element contradicts its contract: a mistake of the
	// control plane, or a wish of an RP neighbour that nothing should have let through.
	ErrContract = errors.New("contradicts the contract of the datapath")

	// ErrNoRoom is wrapped when the engine has no room for an element. The element may
	// fit later, when others have ended.
	ErrNoRoom = errors.New("no room in the datapath")
)

// Refused is the error of Engine.Apply when the engine did not take some elements of a
// change, each with its reason. All other elements of the change took effect. Remove is
// never refused, and Retire only for the own incarnation.
type Refused struct {
	Sessions map[ids.Session]error     // by index, of Add
	Keys     map[ids.Stream]error      // no key of these streams was installed
	Routes   map[ids.Incarnation]error // by ingress RP, of Routes and Retire
}

// Session, Key and Route note why an element is refused. The first reason stays.
func (r *Refused) Session(index ids.Session, why error)     { note(&r.Sessions, index, why) }
func (r *Refused) Key(id ids.Stream, why error)             { note(&r.Keys, id, why) }
func (r *Refused) Route(ingress ids.Incarnation, why error) { note(&r.Routes, ingress, why) }

func note[K comparable](reasons *map[K]error, element K, why error) {
	if (*reasons)[element] != nil {
		return
	}
	if *reasons == nil {
		*reasons = make(map[K]error)
	}
	(*reasons)[element] = why
}

// Err returns r, or nil when r refuses nothing.
func (r *Refused) Err() error {
	if len(r.Sessions)+len(r.Keys)+len(r.Routes) == 0 {
		return nil
	}
	return r
}

// Of returns what r refuses of one change, nil for nothing. When several changes went to
// the engine as one, each caller gets the refusals of its own elements.
func (r *Refused) Of(c Change) error {
	var own Refused
	for i := range c.Add {
		if why := r.Sessions[c.Add[i].Index]; why != nil {
			own.Session(c.Add[i].Index, why)
		}
	}
	for i := range c.Keys {
		id := c.Keys[i].Stream()
		if why := r.Keys[id]; why != nil {
			own.Key(id, why)
		}
	}
	for _, ingress := range c.Retire {
		if why := r.Routes[ingress]; why != nil {
			own.Route(ingress, why)
		}
	}
	for i := range c.Routes {
		if why := r.Routes[c.Routes[i].Ingress]; why != nil {
			own.Route(c.Routes[i].Ingress, why)
		}
	}
	return own.Err()
}

// Ingress returns the first reason by which something of an ingress RP was refused, nil
// for none.
func (r *Refused) Ingress(ingress ids.Incarnation) error {
	for _, id := range slices.SortedFunc(maps.Keys(r.Keys), ids.Stream.Compare) {
		if id.Ingress == ingress {
			return r.Keys[id]
		}
	}
	return r.Routes[ingress]
}

// Error names the numbers of refused elements, and the first reason.
func (r *Refused) Error() string {
	return fmt.Sprintf("datapath refused %d sessions, keys of %d streams, %d routes: %v",
		len(r.Sessions), len(r.Keys), len(r.Routes), r.Unwrap()[0])
}

// Unwrap returns the reasons: of sessions, then of keys, then of routes, each by number.
func (r *Refused) Unwrap() (reasons []error) {
	for _, index := range slices.Sorted(maps.Keys(r.Sessions)) {
		reasons = append(reasons, r.Sessions[index])
	}
	for _, id := range slices.SortedFunc(maps.Keys(r.Keys), ids.Stream.Compare) {
		reasons = append(reasons, r.Keys[id])
	}
	for _, ingress := range slices.Sorted(maps.Keys(r.Routes)) {
		reasons = append(reasons, r.Routes[ingress])
	}
	return reasons
}
