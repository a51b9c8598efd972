// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/events"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
)

// hellosWaiting is how many hellos may wait for the goroutine of serve: as many as all
// neighbours may have waiting together.
const hellosWaiting = 2 * linkstate.MaxPeers * helloShare

// Hellos brings the hellos of neighbours from the engine, whose Config.Hello is Hello. Each
// session has a share of the room for those that wait.
type Hellos struct {
	queue chan hello

	mu      sync.Mutex
	waiting map[ids.Session]int // by session
	lost    map[ids.Session]int // likewise, that found no room
}

type hello struct {
	session ids.Session
	hello   [wire.HelloSize]byte
	at      time.Time
}

// NewHellos returns Hellos without any.
func NewHellos() *Hellos {
	return &Hellos{queue: make(chan hello, hellosWaiting), waiting: make(map[ids.Session]int), lost: make(map[ids.Session]int)}
}

// Hello takes a hello that came at some time. It never blocks: one that finds no room is
// lost, as on the way.
func (h *Hellos) Hello(session ids.Session, b [wire.HelloSize]byte, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting[session] < helloShare {
		select {
		case h.queue <- hello{session, b, at}:
			h.waiting[session]++
			return
		default:
		}
	}
	h.lost[session]++
}

// took notes that a hello of a session does not wait any more.
func (h *Hellos) took(session ids.Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting[session]--; h.waiting[session] == 0 {
		delete(h.waiting, session)
	}
}

// takeLost returns how many hellos of each session were lost since the last call.
func (h *Hellos) takeLost() map[ids.Session]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.lost) == 0 {
		return nil
	}
	lost := h.lost
	h.lost = make(map[ids.Session]int)
	return lost
}

// heardHellos passes on what waits.
func (s *Server) heardHellos() {
	for n := len(s.cfg.Hellos.queue); n > 0; n-- {
		s.heardHello(<-s.cfg.Hellos.queue)
	}
}

// heardHello passes a hello on.
func (s *Server) heardHello(h hello) {
	s.cfg.Hellos.took(h.session)
	l := s.sessions[h.session]
	if l == nil || !s.mayHello(l, 1) {
		return // of a link that ended, or ends now
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

// tickHellos counts the hellos that found no room.
func (s *Server) tickHellos() {
	for session, lost := range s.cfg.Hellos.takeLost() {
		s.counters.HellosLost += uint64(lost)
		if l := s.sessions[session]; l != nil {
			s.mayHello(l, lost)
		}
	}
}

// mayHello counts hellos of a neighbour, and ends the link to one that floods.
func (s *Server) mayHello(l *link, hellos int) bool {
	if l.hellos.take(s.now, hellos, helloBurst, time.Second/helloRate) == 0 {
		return true
	}
	s.blame(l, flood("hellos"))
	s.drive(l)
	return false
}

// settle does what the link state wants, which may make it want more.
func (s *Server) settle() {
	s.newest = nil
	s.sendKeys()
	s.checkWaits()
	s.checkAdmission()
	for actions := s.core.Actions(); len(actions) > 0; actions = s.core.Actions() {
		s.perform(actions)
	}
	s.greet()
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
			s.sendState(a.To, a.Message)
		case linkstate.AckGraft:
			s.ackGraft(a)
		case linkstate.SendHello:
			s.sendHello(a)
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
				l.log.Warn("neighbour is not heard, or does not replicate")
				s.endOutlived(l.neighbour, func(outlived) bool { return true })
			}
		case linkstate.Excess:
			if l := s.links[a.ID]; l != nil {
				l.log.Warn("neighbour sends more than has an effect", "what", a.What)
			}
		case linkstate.Moved:
			s.beatUntil = s.now.Add(beatMoved)
		case linkstate.MayPublish:
			s.mayPublish = true
		}
	}
}

func (s *Server) sendState(to linkstate.ID, m linkstate.Message) {
	if l := s.links[to]; l != nil {
		payload, err := linkstate.Encode(m)
		s.send(l, m.Code(), payload, err)
	}
}

// ackGraft answers a Graft. A route that the datapath has no room for is refused.
func (s *Server) ackGraft(a linkstate.AckGraft) {
	a.Granted = slices.DeleteFunc(a.Granted, func(ingress ids.Incarnation) bool {
		if _, refused := s.refused[ingress]; !refused {
			return false
		}
		s.core.Refuse(s.now, a.To, ingress)
		a.Refused = append(a.Refused, ingress)
		return true
	})
	slices.Sort(a.Refused)
	s.sendState(a.To, a.Message())
}

// want has the datapath get the route of an ingress RP as it is now.
func (s *Server) want(incarnation ids.Incarnation) {
	s.routes[incarnation] = s.way(incarnation)
	delete(s.refused, incarnation)
}

// route notes a route of the link state for the datapath.
func (s *Server) route(a linkstate.Route) {
	s.follow(a)
	s.want(a.Ingress)
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
	err := s.apply(change)
	if err == nil || errors.Is(err, datapath.ErrClosed) {
		return
	}
	if refused, some := errors.AsType[*datapath.Refused](err); some {
		s.counters.RoutesRefused += uint64(len(refused.Routes))
		for ingress, why := range refused.Routes {
			s.refused[ingress] = errors.Is(why, datapath.ErrNoRoom)
		}
		s.retryAt = s.now.Add(retryPause)
	}
	s.log.Error("routes refused by the datapath", "routes", len(change.Routes), "refused", s.counters.RoutesRefused, "err", err)
}

// retryRoutes tries the routes again that found no room in the datapath.
func (s *Server) retryRoutes() {
	if len(s.refused) == 0 || s.now.Before(s.retryAt) {
		return
	}
	for ingress, roomless := range s.refused {
		if roomless {
			s.routes[ingress] = s.way(ingress)
		}
	}
	clear(s.refused)
	s.applyRoutes()
}

// Heartbeats besides those that are always due (SPEC 6.5). The second is longer than
// RPs need to get another parent, and to take what they were told before for a lie.
const (
	beatPause = 500 * time.Millisecond // between two of them
	beatMoved = 2 * time.Second        // that they go after the tree moved
)

// greet tells the newest sequences of the own streams to those who have the own keys now, or may
// have another parent.
func (s *Server) greet() {
	if s.now.Before(s.beatAt) || !s.beat && !s.now.Before(s.beatUntil) {
		return
	}
	s.beat, s.beatAt = false, s.now.Add(beatPause)
	if err := s.cfg.Engine.Heartbeat(datapath.All); err != nil {
		s.cfg.Log.Debug("heartbeat not sent", "err", err) // the next one is due soon
	}
}

// marks says up to where nothing is missing of what an ingress RP sent, for a new
// parent: as the cache knows it, else the newest sequences that the engine knows.
func (s *Server) marks(incarnation ids.Incarnation) (marks []linkstate.Mark) {
	if s.newest == nil {
		s.await(func() { s.newest = s.cfg.Engine.Marks() })
	}
	for _, m := range s.newest {
		if m.Ingress != incarnation || len(marks) == linkstate.MaxGroups {
			continue
		}
		mark := linkstate.Mark{Group: m.Group, Sequence: m.Sequence}
		if whole, ok := s.cfg.Cache.Whole(s.now, m.Stream(), maxHole); ok {
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
	incarnation ids.Incarnation
	since       time.Time
}

// sweep looks through the database. An RP that restarted has another incarnation: what
// is left of the one before ends at once, unless it is that of somebody else, whom the RP
// may only have pretended to be.
func (s *Server) sweep() {
	s.swept = s.now
	clear(s.origins)
	seen := make(map[linkstate.ID]bool)
	claimed := make(map[ids.Incarnation]bool)
	var left []ids.Incarnation
	s.core.Adverts(func(a *linkstate.Advert, v linkstate.Version, listed bool) {
		seen[a.Origin] = true
		if listed { // an RP that is not on the list has no incarnation that counts
			claimed[a.Incarnation] = true
		}
		k := s.known[a.Origin]
		if k.incarnation != 0 && k.incarnation != a.Incarnation {
			left = append(left, k.incarnation)
		}
		if k.version != v {
			s.known[a.Origin] = known{v, a.Incarnation, s.now}
		}
		if o, ok := s.origins[a.Incarnation]; listed && a.Publishes && (!ok || a.Origin < o) { // as the trees have it
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

// sweepSoon is sweep, but not more often than is good.
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
