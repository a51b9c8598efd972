// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/events"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
)

// hellosWaiting is how many hellos may wait for the goroutine of serve: those of some
// seconds.
const hellosWaiting = 1024

// Hellos brings the hellos of neighbours from the engine, whose Config.Hello is Hello.
type Hellos struct{ queue chan hello }

type hello struct {
	session uint32
	hello   [wire.HelloSize]byte
	at      time.Time
}

// NewHellos returns Hellos without any.
func NewHellos() *Hellos { return &Hellos{make(chan hello, hellosWaiting)} }

// Hello takes a hello that came at some time. It never blocks: one that finds no room is
// lost, as on the way.
func (h *Hellos) Hello(session uint32, b [wire.HelloSize]byte, at time.Time) {
	select {
	case h.queue <- hello{session, b, at}:
	default:
	}
}

// heardHellos passes on what waits.
func (s *Server) heardHellos() {
	for n := len(s.cfg.Hellos.queue); n > 0; n-- {
		s.heardHello(<-s.cfg.Hellos.queue)
	}
}

// heardHello passes a hello on.
func (s *Server) heardHello(h hello) {
	l := s.sessions[h.session]
	if l == nil {
		return // of a link that ended
	}
	m, err := linkstate.ParseHello(h.hello[:])
	if err != nil {
		s.counters.BadHellos++
		return
	}
	if !l.proven {
		s.prove(l)
	}
	s.core.HeardHello(h.at, l.id, m) // round-trip times do not grow with what waits here
}

// settle does what the link state wants, which may make it want more.
func (s *Server) settle() {
	s.newest = nil
	s.sendKeys()
	s.checkWaits()
	s.checkAdmission()
	s.greet()
	for actions := s.core.Actions(); len(actions) > 0; actions = s.core.Actions() {
		s.perform(actions)
	}
	s.installKeys()
}

// perform does some actions. Routes come before everything else and go to the datapath
// in one change; keys come before the messages that tell a child that it is one. Who asks
// for a route again may be another process, which has no keys.
func (s *Server) perform(actions []linkstate.Action) {
	for _, a := range actions {
		switch a := a.(type) {
		case linkstate.Route:
			s.route(a)
		case linkstate.RouteGone:
			s.routeGone(a.Ingress)
		case linkstate.Serve:
			if l := s.links[a.To]; l != nil {
				l.due[a.Ingress] = true
			}
		}
	}
	s.applyRoutes()
	s.sendKeys()
	for _, a := range actions {
		switch a := a.(type) {
		case linkstate.Send:
			if l := s.links[a.To]; l != nil {
				payload, err := linkstate.Encode(a.Message)
				s.send(l, a.Message.Code(), payload, err)
			}
		case linkstate.SendHello:
			if l := s.links[a.To]; l != nil {
				b := [wire.HelloSize]byte(a.Hello.Append(nil))
				if err := s.cfg.Engine.Hello(l.index, b); err != nil {
					l.log.Debug("hello not sent", "err", err) // the next one may be
				}
			}
		case linkstate.Serve:
			s.queueServe(a)
		case linkstate.NeighbourUp:
			if l := s.links[a.ID]; l != nil {
				s.emit(l, events.LinkUp, "")
				l.log.Info("mesh link up")
			}
		case linkstate.NeighbourDown:
			if l := s.links[a.ID]; l != nil {
				s.emit(l, events.LinkDown, "not heard")
				l.log.Warn("neighbour is not heard")
				s.endOutlived(l.neighbour, func(outlived) bool { return true })
			}
		case linkstate.MayPublish:
			s.mayPublish = true
		}
	}
}

// route notes a route of the link state for the datapath.
func (s *Server) route(a linkstate.Route) {
	s.follow(a)
	s.routes[a.Ingress] = s.way(a.Ingress)
	s.cfg.Events.Emit(events.Event{
		Kind:   events.Route,
		Node:   fmt.Sprintf("%016x", a.Parent),
		Detail: fmt.Sprintf("ingress %08x, %d children", a.Ingress, len(a.Children)),
	})
}

// applyRoutes gives the datapath the routes that changed. A route that it refuses holds up
// no other: it is counted, and dropped unless it was for want of room, which is tried again.
func (s *Server) applyRoutes() {
	if len(s.routes) == 0 {
		return
	}
	var change datapath.Change
	for _, ingress := range slices.Sorted(maps.Keys(s.routes)) {
		change.Routes = append(change.Routes, s.routes[ingress])
	}
	clear(s.routes)
	err := s.cfg.Engine.Apply(change)
	if err == nil || errors.Is(err, datapath.ErrClosed) {
		return
	}
	if refused, some := errors.AsType[*datapath.Refused](err); some {
		s.counters.RoutesRefused += uint64(len(refused.Routes))
		for ingress, why := range refused.Routes {
			if errors.Is(why, datapath.ErrNoRoom) {
				s.roomless[ingress] = true
			}
		}
		s.roomlessAt = s.now
	}
	if s.now.Sub(s.refusedAt) >= refusalPause {
		s.refusedAt = s.now
		s.cfg.Log.Error("routes refused by the datapath", "routes", len(change.Routes), "refused", s.counters.RoutesRefused, "err", err)
	}
}

// retryRoutes tries the routes again that found no room in the datapath.
func (s *Server) retryRoutes() {
	if len(s.roomless) == 0 || s.now.Sub(s.roomlessAt) < retryPause {
		return
	}
	for ingress := range s.roomless {
		s.routes[ingress] = s.way(ingress)
	}
	clear(s.roomless)
	s.applyRoutes()
}

// refusalPause is the least time between two log lines about routes that the datapath
// refused: the total stands in each line.
const refusalPause = time.Minute

// greet tells those who have the own keys now the newest sequences of the own streams.
func (s *Server) greet() {
	if !s.beat {
		return
	}
	s.beat = false
	if err := s.cfg.Engine.Heartbeat(datapath.All); err != nil {
		s.cfg.Log.Debug("heart-beat not sent", "err", err) // the next one is due soon
	}
}

// marks says up to where nothing is missing of what an ingress RP sent, for a new
// parent: as the cache knows it, else the newest sequences that the engine knows.
func (s *Server) marks(incarnation uint32) (marks []linkstate.Mark) {
	if s.newest == nil {
		s.newest = s.cfg.Engine.Marks()
	}
	for _, m := range s.newest {
		if m.Ingress != incarnation || len(marks) == linkstate.MaxGroups {
			continue
		}
		mark := linkstate.Mark{Group: m.Group, Sequence: m.Sequence}
		if whole, ok := s.cfg.Cache.Whole(s.now, m.Ingress, m.Group, maxHole); ok {
			mark.Sequence = whole
		}
		marks = append(marks, mark)
	}
	return marks
}

// sweepInterval is how often the database is looked through for what the link state
// does not tell.
const sweepInterval = time.Second

// known is what the database says of an RP, and since when.
type known struct {
	version     linkstate.Version
	incarnation uint32
	since       time.Time
}

// sweep looks through the database. An RP that restarted has another incarnation: what
// is left of the one before ends at once, unless it is that of somebody else, whom the RP
// may only have pretended to be.
func (s *Server) sweep() {
	s.swept = s.now
	clear(s.origins)
	seen := make(map[linkstate.ID]bool)
	claimed := make(map[uint32]bool)
	var left []uint32
	s.core.Adverts(func(a *linkstate.Advert) {
		seen[a.Origin], claimed[a.Incarnation] = true, true
		k := s.known[a.Origin]
		if k.incarnation != 0 && k.incarnation != a.Incarnation {
			left = append(left, k.incarnation)
		}
		if v := a.Version(); k.version != v {
			s.known[a.Origin] = known{v, a.Incarnation, s.now}
		}
		if o, ok := s.origins[a.Incarnation]; a.Publishes && (!ok || a.Origin < o) { // as the trees have it
			s.origins[a.Incarnation] = a.Origin
		}
	})
	for _, incarnation := range left {
		if !claimed[incarnation] {
			s.retire(incarnation)
		}
	}
	maps.DeleteFunc(s.known, func(id linkstate.ID, _ known) bool { return !seen[id] })
}

// sweepSoon is sweep, but not oftener than is good.
func (s *Server) sweepSoon() {
	if s.now.Sub(s.swept) >= linkstate.TreeInterval {
		s.sweep()
	}
}

// below returns the neighbours that get the datagrams of an ingress RP from here, and
// those that will, since the tree says so.
func (s *Server) below(in *ingress) []linkstate.ID {
	var ids []linkstate.ID
	for _, c := range in.route.Children {
		ids = append(ids, c.ID)
	}
	root, ok := s.origins[in.incarnation]
	if !ok {
		s.sweepSoon()
		root, ok = s.origins[in.incarnation]
	}
	if in.incarnation == s.cfg.Incarnation {
		root, ok = s.self, true
	}
	if !ok {
		return ids
	}
	for _, n := range s.core.Neighbours() {
		if parent, _ := s.core.TreeParent(root, n.ID); n.Up && parent == s.self && !slices.Contains(ids, n.ID) {
			ids = append(ids, n.ID)
		}
	}
	return ids
}
