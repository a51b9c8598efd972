// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/keyring"
	"github.com/ethmcast/mdcs/rp/mesh"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
)

// Times of group keys (SPEC section 11).
const (
	// RetireAfter is how long the keys and windows of an ingress RP outlive its route.
	RetireAfter = time.Minute

	memberTimeout = 2 * time.Second        // that members have to acknowledge
	installPause  = 100 * time.Millisecond // between two rekeyings of all members
	retryPause    = time.Second            // after one that failed
	graftWait     = 3 * time.Second        // of a Keys that nobody waits for

	rekeyBurst = 8                // changes of the keys of one ingress RP at once,
	rekeyEach  = 10 * time.Second // and then one each
)

// ingress is an ingress RP whose datagrams come by here: its route, and its group keys,
// which come along it. What the parent offers counts. What another upstream offers is
// kept until it becomes the parent, so that nobody but the parent, who could as well send
// nothing, can break the stream with wrong keys.
type ingress struct {
	incarnation ids.Incarnation
	route       linkstate.Route
	offered     map[linkstate.ID][]proto.GroupKey // by upstream

	version   uint64    // of the keys in Server.keys; 0: none
	installed uint64    // that the members have
	until     time.Time // that somebody upstream waits for it

	installing bool      // a call of Installer is under way
	installAt  time.Time // not before
	changes    bucket    // of the keys
	takeAt     time.Time // when what the parent offered is taken; zero: it is
	retireAt   time.Time // zero: not
	retired    bool      // to be told to the members
}

// sentKeys is a version of an ingress RP's keys that a child was offered.
type sentKeys struct {
	ingress ids.Incarnation
	version uint64
}

// wait is for versions of keys to be at the members, and at all below.
type wait struct {
	of       *link // that waits, nil for this RP
	versions map[*ingress]uint64
	due      time.Time
	over     func(missing int) // neighbours that have not acknowledged
}

// startKeys takes over the own keys, which the members have already.
func (s *Server) startKeys() {
	own := s.ingress(s.cfg.Incarnation)
	s.setKeys(own, s.cfg.Keys.Of(own.incarnation))
	own.installed = own.version
}

func (s *Server) ingress(incarnation ids.Incarnation) *ingress {
	in := s.ingresses[incarnation]
	if in == nil {
		in = &ingress{
			incarnation: incarnation,
			route:       linkstate.Route{Ingress: incarnation},
			offered:     make(map[linkstate.ID][]proto.GroupKey),
		}
		s.ingresses[incarnation] = in
	}
	return in
}

func (in *ingress) upstream(id linkstate.ID) bool {
	return id == in.route.Parent || id == in.route.Backup || slices.Contains(in.route.Previous, id)
}

func (in *ingress) child(id linkstate.ID) bool {
	return slices.ContainsFunc(in.route.Children, func(c linkstate.Child) bool { return c.ID == id })
}

// follow has the keys of an ingress RP follow its route: a new child gets them, those
// of a new parent count.
func (s *Server) follow(r linkstate.Route) {
	in := s.ingress(r.Ingress)
	before := in.route
	in.route, in.retireAt = r, time.Time{}
	for _, c := range r.Children {
		if slices.ContainsFunc(before.Children, func(b linkstate.Child) bool { return b.ID == c.ID }) {
			continue
		}
		if l := s.links[c.ID]; l != nil {
			l.due[r.Ingress] = true
		}
	}
	for _, c := range before.Children {
		if l := s.links[c.ID]; l != nil && !in.child(c.ID) {
			delete(l.due, r.Ingress)
			delete(l.acked, r.Ingress)
		}
	}
	maps.DeleteFunc(in.offered, func(id linkstate.ID, _ []proto.GroupKey) bool { return !in.upstream(id) })
	if r.Parent != before.Parent && len(in.offered[r.Parent]) > 0 {
		s.take(in)
	}
}

// routeGone ends the route of an ingress RP, and some time later its keys.
func (s *Server) routeGone(incarnation ids.Incarnation) {
	s.route(linkstate.Route{Ingress: incarnation})
	if incarnation != s.cfg.Incarnation {
		s.ingresses[incarnation].retireAt = s.now.Add(RetireAfter)
	}
}

// retire forgets the keys of an ingress RP.
func (s *Server) retire(incarnation ids.Incarnation) {
	in := s.ingresses[incarnation]
	if in == nil || incarnation == s.cfg.Incarnation {
		return
	}
	in.retireAt, in.takeAt = time.Time{}, time.Time{}
	if len(s.keys.Of(incarnation)) == 0 { // as it is after a restart, when the route ends later
		s.forget(in)
		return
	}
	s.keys.Retire([]ids.Incarnation{incarnation})
	clear(in.offered)
	in.version++
	in.installed, in.retired = in.version, true
	s.install(in)
}

// offered takes keys from a neighbour, and answers when all who need them have them.
func (s *Server) offered(l *link, a mesh.Install) {
	due := s.now.Add(a.Wait * 3 / 4) // what waits behind waits less
	w := &wait{of: l, versions: make(map[*ingress]uint64), due: due, over: func(int) {
		l.state.Installed(a.ID)
		s.drive(l)
	}}
	for incarnation, keys := range byIngress(a.Keys) {
		in := s.ingresses[incarnation]
		if in == nil || incarnation == s.cfg.Incarnation || !in.upstream(l.id) {
			s.counters.KeysRefused += uint64(len(keys))
			continue
		}
		in.offered[l.id] = keys
		if in.route.Parent == l.id {
			if due.After(in.until) {
				in.until = due
			}
			w.versions[in] = s.take(in)
		}
	}
	if over, missing := s.isOver(w); over {
		w.over(missing)
		return
	}
	s.waits = append(s.waits, w)
}

// byIngress sorts keys by ingress RP. Of each group there are no more than count, the
// last ones, and none is active.
func byIngress(keys []proto.GroupKey) map[ids.Incarnation][]proto.GroupKey {
	ring := make(map[ids.Incarnation][]proto.GroupKey)
	for _, k := range keys {
		k.Active = false
		same := func(o proto.GroupKey) bool { return o.Group == k.Group }
		all := ring[k.Ingress]
		if older := slices.IndexFunc(all, same); older >= 0 && countFunc(all, same) == datapath.EpochsKept {
			all = slices.Delete(all, older, older+1)
		}
		ring[k.Ingress] = append(all, k)
	}
	return ring
}

func countFunc(keys []proto.GroupKey, is func(proto.GroupKey) bool) (n int) {
	for _, k := range keys {
		if is(k) {
			n++
		}
	}
	return n
}

// take makes the keys that the parent offers those of an ingress RP, and returns their version.
// Each change is a message to every member of all RPs below: what comes too soon after others is
// put off, and the newest counts then.
func (s *Server) take(in *ingress) (version uint64) {
	keys, before := in.offered[in.route.Parent], s.keys.Of(in.incarnation)
	put := !in.takeAt.IsZero()
	in.takeAt = time.Time{}
	after := keyring.New()
	after.Install(before)
	after.Install(keys)
	if !slices.Equal(before, after.Of(in.incarnation)) { // other keys, or another order
		if wait := in.changes.wait(s.now, rekeyBurst, rekeyEach); wait > 0 {
			in.takeAt = s.now.Add(wait)
			if s.counters.KeysDelayed++; !put {
				s.log.Warn("group keys change too often", "ingress", fmt.Sprintf("%08x", in.incarnation), "parent", fmt.Sprintf("%016x", in.route.Parent))
			}
			return in.version + 1
		}
		in.changes.take(s.now, 1, rekeyBurst, rekeyEach)
	}
	for _, k := range before {
		if i := slices.IndexFunc(keys, func(o proto.GroupKey) bool { return o.Group == k.Group && o.Epoch == k.Epoch }); i >= 0 && keys[i].Key != k.Key {
			s.counters.KeyConflicts++
			s.log.Warn("parent has another group key", "ingress", fmt.Sprintf("%08x", in.incarnation),
				"parent", fmt.Sprintf("%016x", in.route.Parent), "group", fmt.Sprintf("%08x", k.Group), "epoch", k.Epoch)
		}
	}
	s.setKeys(in, keys)
	s.install(in)
	return in.version
}

// setKeys adds keys to those of an ingress RP, and has the children get all of them when
// they changed.
func (s *Server) setKeys(in *ingress, keys []proto.GroupKey) {
	before := s.keys.Of(in.incarnation)
	inactive := slices.Clone(keys)
	for i := range inactive {
		inactive[i].Active = false
	}
	s.keys.Install(inactive)
	if slices.Equal(before, s.keys.Of(in.incarnation)) {
		return
	}
	in.version++
	for _, c := range in.route.Children {
		if l := s.links[c.ID]; l != nil {
			l.due[in.incarnation] = true
		}
	}
}

// install has the keys of an ingress RP given to the datapath and the members, or has
// these forget it, as soon as that may be.
func (s *Server) install(in *ingress) {
	if in.installed != in.version || in.retired {
		s.stale[in] = true
	}
}

// installed is what one call of Installer says of an ingress RP.
type installed struct {
	of      *ingress
	version uint64 // 0: retired
}

// installKeys gives the datapath and the members what is new of all ingress RPs together,
// for each call is a message to every member. It runs beside, because it takes as long as
// the slowest member; one call after the other for an ingress RP keeps the order.
func (s *Server) installKeys() {
	if len(s.stale) == 0 || s.now.Before(s.installAt) {
		return
	}
	var batch []installed
	var keys []proto.GroupKey
	var retired []ids.Incarnation
	for in := range s.stale {
		if in.installing || s.now.Before(in.installAt) {
			continue
		}
		if in.retired {
			if len(retired) == proto.MaxKeys {
				continue
			}
			retired, in.retired = append(retired, in.incarnation), false
			batch = append(batch, installed{in, 0})
		} else {
			all := s.keys.Of(in.incarnation)
			if len(batch) > 0 && len(keys)+len(all) > proto.MaxKeys {
				continue
			}
			keys = append(keys, all...)
			batch = append(batch, installed{in, in.version})
		}
		delete(s.stale, in)
		in.installing = true
	}
	if len(batch) == 0 {
		return
	}
	s.installAt = s.now.Add(installPause)
	s.wg.Go(func() {
		missing, err := s.cfg.Peers.Install(keys, retired, memberTimeout)
		s.do(func() { s.keysInstalled(batch, missing, err) })
	})
}

func (s *Server) keysInstalled(batch []installed, missing int, err error) {
	if missing > 0 {
		s.log.Warn("group keys not at all members", "ingresses", len(batch), "missing", missing)
	}
	refused, some := errors.AsType[*datapath.Refused](err)
	for _, done := range batch {
		in := done.of
		in.installing = false
		err := err
		if some { // each ingress RP has a result of its own
			err = refused.Ingress(in.incarnation)
		}
		name := fmt.Sprintf("%08x", in.incarnation)
		switch {
		case errors.Is(err, datapath.ErrClosed):
			continue
		case err != nil:
			s.log.Error("group keys not installed", "ingress", name, "err", err)
			in.installAt = s.now.Add(retryPause)
			in.retired = in.retired || done.version == 0
		case done.version == 0:
			s.log.Info("ingress rp retired", "ingress", name)
			if in.routed() { // the datapath forgot the route, too
				s.want(in.incarnation)
				s.applyRoutes()
			}
			s.forget(in)
		default:
			in.installed, s.waitsMoved = max(in.installed, done.version), true
		}
		s.install(in)
	}
}

// forget drops what is known of an ingress RP of which there is nothing left.
func (s *Server) forget(in *ingress) {
	if !in.installing && !in.retired && !in.routed() && len(s.keys.Of(in.incarnation)) == 0 {
		delete(s.ingresses, in.incarnation)
		delete(s.stale, in)
	}
}

// routed reports whether the datagrams of an ingress RP come or go by here.
func (in *ingress) routed() bool {
	return in.route.Parent != 0 || len(in.route.Previous) > 0 || len(in.route.Children) > 0
}

// tickKeys does what is due.
func (s *Server) tickKeys() {
	s.waitsMoved = true
	s.retryRoutes()
	for _, in := range s.ingresses {
		if !in.retireAt.IsZero() && !s.now.Before(in.retireAt) {
			s.retire(in.incarnation)
		}
		if !in.takeAt.IsZero() && !s.now.Before(in.takeAt) {
			s.take(in)
		}
		s.install(in)
	}
}

// sendKeys offers the neighbours the keys that they lack.
func (s *Server) sendKeys() {
	for _, l := range s.links {
		for len(l.due) > 0 && l.state.Room() && s.offerSome(l) {
		}
	}
}

// offerSome sends one Keys. It returns false when nothing can be sent now.
func (s *Server) offerSome(l *link) bool {
	var keys []proto.GroupKey
	var sent []sentKeys
	until := s.now
	for _, incarnation := range slices.Sorted(maps.Keys(l.due)) {
		in := s.ingresses[incarnation]
		all := s.keys.Of(incarnation)
		if len(keys)+len(all) > mesh.MaxKeys {
			break
		}
		if len(all) == 0 { // it gets them when they are here
			delete(l.due, incarnation)
			continue
		}
		keys = append(keys, all...)
		sent = append(sent, sentKeys{incarnation, in.version})
		if in.until.After(until) {
			until = in.until
		}
	}
	if len(sent) == 0 {
		return false
	}
	wait := until.Sub(s.now)
	if wait == 0 {
		wait = graftWait
	}
	id, ok := l.state.Offer(s.now, min(wait, mesh.MaxWait), keys)
	if !ok {
		return false // after some answers there is room again
	}
	for _, k := range sent {
		delete(l.due, k.ingress)
	}
	l.sent[id] = sent
	s.drive(l)
	return true
}

// acked notes that a neighbour, and all below it, have keys.
func (s *Server) acked(l *link, id uint32) {
	for _, k := range l.sent[id] {
		if in := s.ingresses[k.ingress]; in != nil && in.child(l.id) {
			if k.version > l.acked[k.ingress] {
				l.acked[k.ingress], s.waitsMoved = k.version, true
				s.beat = s.beat || k.ingress == s.cfg.Incarnation
			}
		}
	}
	delete(l.sent, id)
}

// missing returns how many neighbours below have not acknowledged a version of an
// ingress RP's keys.
func (s *Server) missing(in *ingress, version uint64) (missing []linkstate.ID) {
	for _, id := range s.below(in) {
		if l := s.links[id]; l == nil || l.acked[in.incarnation] < version {
			missing = append(missing, id)
		}
	}
	return missing
}

// checkWaits ends the waits for what has come, or that take too long, if something may have.
func (s *Server) checkWaits() {
	if !s.waitsMoved {
		return
	}
	s.waitsMoved = false
	var over []func()
	s.waits = slices.DeleteFunc(s.waits, func(w *wait) bool {
		is, missing := s.isOver(w)
		if is {
			over = append(over, func() { w.over(missing) })
		}
		return is
	})
	for _, f := range over { // which may end links, and waits with them
		f()
	}
}

// isOver reports whether what a wait is for has come, or it takes too long, and how many neighbours
// have not acknowledged.
func (s *Server) isOver(w *wait) (over bool, missing int) {
	done := true
	for in, version := range w.versions {
		n := len(s.missing(in, version))
		missing += n
		done = done && n == 0 && in.installed >= version
	}
	return done || !s.now.Before(w.due), missing
}

// Offer gives own keys, which the caller gives to the own members, to all RPs that the
// own datagrams go to. It returns how many neighbours had not acknowledged for themselves
// and all below them after the timeout.
func (s *Server) Offer(keys []proto.GroupKey, timeout time.Duration) (missing int) {
	result := make(chan int, 1)
	if !s.do(func() {
		own := s.ingress(s.cfg.Incarnation)
		own.until = s.now.Add(timeout)
		s.setKeys(own, keys)
		own.installed, s.waitsMoved = own.version, true
		s.waits = append(s.waits, &wait{
			versions: map[*ingress]uint64{own: own.version}, due: own.until,
			over: func(missing int) { result <- missing },
		})
	}) {
		return 0
	}
	select {
	case missing = <-result:
	case <-s.done:
	}
	if missing > 0 {
		s.log.Warn("own keys not acknowledged", "neighbours", missing, "timeout", timeout)
	}
	return missing
}
