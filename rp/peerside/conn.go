// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/admission"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/events"
	"github.com/ethmcast/mdcs/rp/front"
	"github.com/ethmcast/mdcs/rp/msgio"
	"github.com/ethmcast/mdcs/rp/round"
)

const (
	// statusTimeout ends a connection on which no Status came.
	statusTimeout = 10 * time.Second

	// outboxSize is the number of messages that may wait for a peer. One that
	// reads more slowly is disconnected.
	outboxSize = 32

	// outboxBytes is what these may have together, bytes.
	outboxBytes = proto.MaxMessage

	// flushTimeout is how long the last messages of a connection may take.
	flushTimeout = time.Second
)

var (
	errStopping = errors.New("rp stops")
	errLost     = errors.New("connection lost")
	errSlow     = errors.New("peer reads too slowly")
)

// conn is one peer's connection. All its state belongs to the goroutine of run.
type conn struct {
	srv  *Server
	rw   front.Conn
	id   enode.ID
	addr netip.Addr // of the connection, and of the endpoint
	log  *slog.Logger
	mail mail
	done chan struct{} // closed when run returns

	adm     *admission.Admission
	out     *msgio.Outbox
	groups  []ids.Group       // of the session, in standby those that it is to be in
	index   ids.Session       // of the session, 0 without one
	live    bool              // the datapath has the session
	session datapath.Session  // as the datapath has it
	link    string            // interface by which the channel was tried
	channel *channelID        // that serves the peer, nil in mode unicast
	wants   bool              // to publish
	waiting map[uint32]*rekey // by ID, not acknowledged
	missed  int               // of these, in a row and for good
	late    atomic.Bool       // the last one that was waited for
	slow    atomic.Int32      // how many quick acknowledgements it lacks to be waited for as others are
	report  report            // of the peer's last announce
	fatal   error             // ends the connection

	receipts  chan []proto.ObjectReceipt // for the publisher that the peer is
	counting                             // what the peer was told of the members
	policed   uint64                     // of its confirmations, as datapath.Policer has it
	joined    uint64                     // of its joins, likewise
	announced uint64                     // of its announces, likewise

	// What admits the peer, when ready is closed, and what tells its end.
	admission admission.Admit
	ready     <-chan struct{}
	ended     func()
}

// rekey is a Rekey to all members. Each connection that takes it answers.
type rekey struct {
	proto.Rekey
	round.Round[*conn]
	at    time.Time
	until time.Time // when nobody waits for answers any more
}

func newConn(s *Server, rw front.Conn) *conn {
	id, addr := rw.ID(), rw.Addr()
	return &conn{
		srv:     s,
		rw:      rw,
		id:      id,
		addr:    addr,
		log:     s.cfg.Log.With("peer", id.TerminalString(), "addr", addr),
		mail:    newMail(),
		done:    make(chan struct{}),
		waiting: make(map[uint32]*rekey),

		receipts: make(chan []proto.ObjectReceipt, receiptsWaiting),
		counting: counting{changed: s.counters.watch()},

		adm: admission.New(admission.Config{
			Self:   s.cfg.Self,
			Remote: id,
			Status: s.cfg.Status,
			Groups: s.cfg.Groups,
			Lease:  s.terms.Load().Lease,
			Rand:   s.cfg.Rand,
			Others: s.cfg.Others,
		}),
	}
}

// run serves the connection until it ends, and returns why.
func (c *conn) run() error {
	defer close(c.done)
	in := msgio.Receive(c.rw, proto.Decode, c.done)
	c.out = msgio.NewOutbox(c.rw, outboxSize, outboxBytes)
	defer c.out.Close(flushTimeout)
	defer func() {
		for _, f := range c.mail.close() {
			f(time.Now()) // there is no session any more
		}
	}()

	if !c.addr.Is6() || c.addr.Is4In6() {
		c.violation(&proto.Error{Reason: proto.ReasonUnreachable, Detail: "the connection is not over ipv6"})
		return c.fatal
	}
	opened := time.Now()
	if err := c.srv.bans.check(opened, c.id, c.addr); err != nil {
		c.srv.banned.Add(1)
		c.end(err, p2p.DiscUselessPeer)
		return c.fatal
	}
	timer := time.NewTimer(statusTimeout)
	defer timer.Stop()
	c.perform(opened)
	drain := c.srv.drain
	for c.fatal == nil {
		timer.Reset(c.untilTick(opened))
		select {
		case r := <-in:
			c.handle(r)
		case <-c.mail.wake:
			for _, f := range c.mail.take() {
				f(time.Now())
			}
		case <-c.ready:
			c.ready = nil
			c.admit(time.Now(), c.admission)
			c.perform(time.Now())
		case objects := <-c.receipts:
			c.adm.Tell(&proto.Receipt{Objects: objects})
			c.perform(time.Now())
		case <-c.changed:
			c.countSoon(time.Now())
		case <-timer.C:
			select {
			case r := <-in: // a ProbeAck that waits is not late
				c.handle(r)
			default:
			}
			if c.fatal == nil {
				c.tick(opened)
			}
		case <-drain:
			drain = nil
			c.adm.Redirect()
			c.perform(time.Now())
		case <-c.srv.quit:
			c.end(errStopping, p2p.DiscQuitting)
		}
	}
	return c.fatal
}

func (c *conn) handle(r msgio.Received[proto.Message]) {
	now := time.Now()
	if proto.IsViolation(r.Err) {
		c.violation(r.Err)
		return
	}
	if r.Err != nil {
		c.end(errLost, r.Err)
		return
	}
	if err := c.tooFast(now, r.Message); err != nil {
		c.violation(err)
		return
	}
	if err := c.adm.Handle(now, r.Message); err != nil {
		switch proto.ReasonOf(err) {
		case proto.ReasonMalformed, proto.ReasonUnexpected, proto.ReasonChain, proto.ReasonRole:
			c.blame(err)
		default:
			c.srv.refused.Add(1)
			c.log.Debug("peer refused", "reason", err)
			if c.index == 0 { // else the session ends, which tells it
				c.emit(events.Refused, err.Error())
			}
		}
	}
	c.perform(now)
}

// tooFast accounts for a message that changes the session, and returns the violation
// when there are too many.
func (c *conn) tooFast(now time.Time, m proto.Message) error {
	at := c.srv.clock.at(now)
	switch m.(type) {
	case *proto.Join, *proto.Resume:
		if !joins.Conforms(c.joined, at) {
			return &proto.Error{Reason: proto.ReasonUnexpected, Detail: "joins faster than the back-off"}
		}
		c.joined = joins.Charge(c.joined, at, 1)
	case *proto.Announce:
		if !announces.Conforms(c.announced, at) {
			return &proto.Error{Reason: proto.ReasonUnexpected, Detail: "announces more than once a second"}
		}
		c.announced = announces.Charge(c.announced, at, 1)
	case *proto.Activate, *proto.Deactivate:
		if !c.srv.switches.take(at, c.id, 1) {
			return &proto.Error{Reason: proto.ReasonUnexpected, Detail: "activates and deactivates more than once a second"}
		}
	}
	return nil
}

// violation ends the connection because of a message that is none.
func (c *conn) violation(err error) {
	c.adm.Fail(err)
	c.blame(err)
	c.perform(time.Now())
}

// blame logs a violation; the Leave is among the actions already.
func (c *conn) blame(err error) {
	c.srv.violations.Add(1)
	length := time.Duration(0)
	switch proto.ReasonOf(err) {
	case proto.ReasonChain, proto.ReasonRole, proto.ReasonUnreachable: // it only is at the wrong place
	default:
		length = c.srv.bans.strike(time.Now(), c.id, c.addr, err.Error())
	}
	c.log.Warn("peer broke the protocol", "err", err, "banned", length)
	c.emit(events.Violation, err.Error())
	c.fatal = p2p.DiscSubprotocolError
}

// end ends the session, if there is one, and the connection.
func (c *conn) end(reason, fatal error) {
	c.adm.Fail(reason)
	c.fatal = fatal
	c.perform(time.Now())
}

func (c *conn) tick(opened time.Time) {
	now := time.Now()
	if c.adm.State() == admission.Connected && now.Sub(opened) >= statusTimeout {
		c.violation(&proto.Error{Reason: proto.ReasonUnexpected, Detail: fmt.Sprintf("no status within %v", statusTimeout)})
		return
	}
	c.adm.Tick(now)
	c.count(now)
	c.perform(now)
}

// untilTick returns the time until something is due.
func (c *conn) untilTick(opened time.Time) time.Duration {
	deadline := c.adm.Deadline()
	if c.adm.State() == admission.Connected {
		deadline = opened.Add(statusTimeout)
	}
	if at := c.countAt; !at.IsZero() && (deadline.IsZero() || at.Before(deadline)) {
		deadline = at
	}
	if deadline.IsZero() {
		return time.Hour
	}
	return time.Until(deadline)
}

// perform does what the admission wants, which may make it want more.
func (c *conn) perform(now time.Time) {
	for actions := c.adm.Actions(); len(actions) > 0; actions = c.adm.Actions() {
		for _, a := range actions {
			switch a := a.(type) {
			case proto.Send:
				c.send(a.Message)
			case admission.SendProbe:
				c.probe(now, a)
			case admission.Admit:
				c.prepare(now, a)
			case admission.Readmit:
				c.readmit(now, &a.Resume)
			case admission.Serve:
				c.serve(now, a.Marks)
			case admission.Rest:
				c.rest()
			case admission.Refresh:
				c.credit(now, a.Counters)
				c.srv.sessions.extend(c.index, c.adm.Deadline())
			case admission.KeysInstalled:
				c.acknowledged(a.ID)
			case admission.Confirmed:
				c.confirmed(now, a.Places)
			case admission.Remove:
				c.remove(a.Err)
			}
		}
	}
}

func (c *conn) send(m proto.Message) {
	payload, err := proto.Encode(m)
	if err != nil { // a message of ours always encodes
		if c.fatal == nil {
			c.fatal = fmt.Errorf("encode message 0x%02x: %w", m.Code(), err)
			c.adm.Fail(c.fatal)
		}
		return
	}
	if !c.out.Send(m.Code(), payload) && c.fatal == nil {
		c.fatal = errSlow
		c.adm.Fail(errSlow)
	}
}

// probe sends a PROBE, as far as the limits allow it.
func (c *conn) probe(now time.Time, a admission.SendProbe) {
	defer func() { c.adm.ProbeLeft(time.Now()) }()
	if a.Mode == proto.ModeSSM {
		c.probeChannel(a)
		return
	}
	if c.adm.State() != admission.Probing {
		return // refused by an action before this one
	}
	if c.index == 0 {
		index, err := c.reserve(now)
		if err != nil {
			c.srv.refused.Add(1)
			c.adm.Fail(err)
			return
		}
		c.index = index
		c.emit(events.Join, "")
	}
	if err := c.srv.cfg.Members.Probe(now, c.addr); err != nil {
		c.adm.Fail(err)
		return
	}
	err := c.srv.cfg.Engine.Probe(netip.AddrPortFrom(c.addr, a.Port), a.Nonce, a.Size)
	if errors.Is(err, datapath.ErrNoWay) {
		c.adm.Fail(&proto.Error{Reason: proto.ReasonUnreachable, Detail: err.Error()})
	} else if err != nil {
		c.log.Debug("probe not sent", "port", a.Port, "err", err) // the next one may be, or the time runs out
	}
}

// reserve returns the index of a new session, if the peer may have one. Who may not
// join at all takes nothing from the others' share of joins.
func (c *conn) reserve(now time.Time) (ids.Session, error) {
	members := c.srv.cfg.Members
	if err := c.mayJoin(); err != nil {
		return 0, err
	}
	if err := c.srv.Room(); err != nil {
		return 0, err
	}
	if err := members.Join(now, c.addr); err != nil {
		return 0, err
	}
	return members.Reserve(c.addr)
}

// Room returns an error when one more member of some group would leave less than a datagram
// per second for each, by the limit of all copies.
func (s *Server) Room() error {
	limit := s.terms.Load().Limit
	if limit == 0 {
		return nil
	}
	for group, n := range s.cfg.Members.Members() {
		if uint64(n+1)*wire.MaxDatagram > limit {
			return &proto.Error{Reason: proto.ReasonFull, Detail: fmt.Sprintf("%d members of group %08x", n, group)}
		}
	}
	return nil
}

// mayJoin returns why the peer may not have a session at all.
func (c *conn) mayJoin() error {
	if err := c.listed(); err != nil {
		return err
	}
	if c.srv.Draining() {
		return &proto.Error{Reason: proto.ReasonDraining, Detail: "no more joins"}
	}
	return nil
}

// listed returns why the peer may not be a member, whoever else is.
func (c *conn) listed() error {
	if !c.srv.listed(c.id) {
		return &proto.Error{Reason: proto.ReasonDenied, Detail: "not among those who may join"}
	}
	return nil
}

// mayPublish reports whether a peer that wants to publish may.
func (c *conn) mayPublish(wants bool) bool {
	publishers := c.srv.terms.Load().Publishers
	return wants && (publishers == nil || publishers[c.id])
}

// probeChannel sends a PROBE on the channel of the peer's link. It counts for no
// limit: the endpoint is proven, and only who joined the channel gets it.
func (c *conn) probeChannel(a admission.SendProbe) {
	link, err := c.srv.cfg.Link(c.addr)
	if err == nil {
		c.link = link
		err = c.srv.cfg.Engine.Probe(channelID{a.Group, link}.addr(a.Port), a.Nonce, a.Size)
	}
	if err != nil {
		c.log.Debug("probe not sent on the channel", "err", err) // the next one may be, or it becomes unicast
	}
}

// prepare admits a peer as soon as the mesh is ready for it.
func (c *conn) prepare(now time.Time, a admission.Admit) {
	if c.srv.cfg.Admit == nil {
		c.admit(now, a)
		return
	}
	c.admission = a
	c.ready, c.ended = c.srv.cfg.Admit(c.mayPublish(a.Join.Publish))
}

// admit puts the session into the datapath, and only then lets the Welcome go.
func (c *conn) admit(now time.Time, a admission.Admit) {
	cfg := &c.srv.cfg
	if err := c.mayJoin(); err != nil { // no longer: since it joined lists may have changed, or a drain begun
		c.srv.refused.Add(1)
		c.adm.Fail(err)
		return
	}
	var channel proto.Channel
	if a.Mode == proto.ModeSSM {
		id := channelID{a.Join.Groups[0], c.link}
		var err error
		if channel, err = c.srv.channels.join(id); err != nil {
			c.log.Error("peer not admitted", "err", err)
			c.adm.Fail(refusal(err))
			return
		}
		c.channel = &id
	}
	session := datapath.Session{
		Index:       c.index,
		Role:        datapath.Peer,
		Addr:        netip.AddrPortFrom(c.addr, a.Join.Port),
		SendSession: a.Join.Session,
		SendKey:     a.SendKey,
		ReceiveKey:  a.ReceiveKey,
		Groups:      a.Join.Groups,
		Silent:      a.Mode == proto.ModeSSM,
		Publish:     c.mayPublish(a.Join.Publish),
	}
	c.srv.terms.Load().limit(&session)
	if a.Join.Standby {
		session.Groups = nil
	}
	change := datapath.Change{Add: []datapath.Session{session}}
	if earlier, ok := c.srv.replace(session.Addr); ok { // in one change: the endpoint is served all the time, and once
		change.Remove = []ids.Session{earlier}
	}
	if err := cfg.Engine.Apply(change); err != nil {
		c.log.Error("peer not admitted", "err", err)
		c.adm.Fail(refusal(err))
		return
	}
	c.wants = a.Join.Publish
	c.begin(session, a.Join.Groups)
	c.srv.admitted.Add(1)
	grant := c.grant()
	grant.Session, grant.Channel, grant.Token = c.index, channel, c.srv.token(c.id, c.index, session.Addr)
	c.adm.Admitted(now, grant)
	c.noteSession(a.Mode)
	c.emit(events.Admitted, a.Mode.String())
	c.log.Info("peer joined", "port", a.Join.Port, "session", fmt.Sprintf("%08x", c.index), "publish", session.Publish,
		"delivery", a.Mode, "standby", a.Join.Standby)
}

// refusal is what the peer is told when the datapath refuses its session: that there is no
// room, so that it turns to another RP.
func refusal(err error) error {
	if errors.Is(err, datapath.ErrNoRoom) {
		return &proto.Error{Reason: proto.ReasonFull, Detail: err.Error()}
	}
	return err
}

// noteSession shows the operator what the session is now.
func (c *conn) noteSession(mode proto.DeliveryMode) {
	c.srv.sessions.note(Session{
		Index:   c.index,
		Node:    c.id,
		Addr:    c.session.Addr,
		Groups:  c.session.Groups,
		Mode:    mode,
		Publish: c.session.Publish,
		Lease:   c.adm.Deadline(),
	})
}

// emit tells the operator what happened to the peer.
func (c *conn) emit(kind events.Kind, detail string) {
	e := events.Event{Kind: kind, Node: c.id.TerminalString(), Addr: c.addr.String(), Detail: detail}
	if c.index != 0 {
		e.Session = fmt.Sprintf("%08x", c.index)
	}
	c.srv.cfg.Events.Emit(e)
}

// begin notes that the datapath has the session.
func (c *conn) begin(session datapath.Session, groups []ids.Group) {
	c.live, c.session, c.groups = true, session, groups
	c.rw.SetSession(true)
	c.report = newReport(c.srv.newestMarks(time.Now()))
	c.srv.enter(c)
	if len(session.Groups) == 0 {
		c.srv.standby.Add(1)
		return
	}
	c.srv.cfg.Members.Admit(c.index, groups)
	c.told, c.countAt = nil, time.Now()
}

// grant returns what a member is given now: keys, marks, and what it may publish,
// which is what the limit of copies lets it publish in datagrams of full size to the
// members of now, and never nothing.
func (c *conn) grant() admission.Grant {
	cfg := &c.srv.cfg
	marks := slices.DeleteFunc(cfg.Engine.Marks(), func(m proto.Mark) bool { return !slices.Contains(c.groups, m.Group) })
	g := admission.Grant{Keys: cfg.Keys.Groups(c.groups), Marks: marks, Rate: c.session.Rate, Burst: c.session.Burst}
	if c.session.Egress == 0 || !c.session.Publish {
		return g
	}
	most := 1
	members := cfg.Members.Members()
	for _, group := range c.groups {
		most = max(most, members[group])
	}
	cost := uint64(most) * wire.MaxDatagram
	within := func(granted uint32, limit uint64) uint32 {
		return uint32(min(uint64(granted), max(1, limit/cost)))
	}
	g.Rate, g.Burst = within(g.Rate, c.session.Egress), within(g.Burst, c.session.EgressBurst)
	return g
}

// serve begins to replicate to a session in standby, within the limits of joins.
func (c *conn) serve(now time.Time, marks []proto.Mark) {
	cfg := &c.srv.cfg
	err := c.mayJoin()
	if err == nil {
		err = c.srv.Room()
	}
	if err == nil {
		err = cfg.Members.Switch(now, c.addr)
	}
	if err != nil {
		c.srv.refused.Add(1)
		c.adm.Fail(err)
		return
	}
	session := c.session
	session.Groups = c.groups
	if err := cfg.Engine.Apply(datapath.Change{Add: []datapath.Session{session}}); err != nil {
		c.log.Error("peer not activated", "err", err)
		c.adm.Fail(refusal(err))
		return
	}
	c.srv.standby.Add(-1)
	c.begin(session, c.groups)
	c.adm.Activated(c.grant())
	c.replay(now, marks)
	c.noteSession(proto.ModeUnicast)
	c.log.Debug("peer activated", "session", fmt.Sprintf("%08x", c.index))
}

// replay sends what is newer than marks: of each stream of the session's groups once,
// and not to who is activated again and again.
func (c *conn) replay(now time.Time, marks []proto.Mark) {
	if c.srv.cfg.Replay == nil || !c.srv.replays.take(c.srv.clock.at(now), c.id, replayCost) {
		return
	}
	seen := make(map[ids.Stream]bool)
	c.srv.cfg.Replay(c.index, c.addr, slices.DeleteFunc(slices.Clone(marks), func(m proto.Mark) bool {
		of := m.Stream()
		again := seen[of]
		seen[of] = true
		return again || !slices.Contains(c.groups, m.Group)
	}))
}

// rest stops replication to a session, which stays in standby.
func (c *conn) rest() {
	session := c.session
	session.Groups, session.Silent = nil, false
	if err := c.srv.cfg.Engine.Apply(datapath.Change{Add: []datapath.Session{session}}); err != nil {
		c.log.Error("peer not put into standby", "err", err)
		c.adm.Fail(err)
		return
	}
	c.srv.cfg.Members.Suspend(c.index)
	c.begin(session, c.groups)
	c.leaveChannel()
	c.noteSession(proto.ModeUnicast)
	c.log.Debug("peer in standby", "session", fmt.Sprintf("%08x", c.index))
}

func (c *conn) remove(reason error) {
	if c.live {
		err := c.srv.cfg.Engine.Apply(datapath.Change{Remove: []ids.Session{c.index}})
		if err != nil && !errors.Is(err, datapath.ErrClosed) {
			c.log.Error("session not removed", "session", fmt.Sprintf("%08x", c.index), "err", err)
		}
		c.srv.sessions.forget(c.index)
		c.emit(events.Leave, reason.Error())
		c.log.Info("peer left", "session", fmt.Sprintf("%08x", c.index), "reason", reason)
	} else {
		c.emit(events.Refused, reason.Error())
		c.notAdmitted(reason)
	}
	if c.live && len(c.session.Groups) == 0 {
		c.srv.standby.Add(-1)
	}
	c.srv.exit(c.index)
	c.told, c.countAt = nil, time.Time{}
	c.leaveChannel()
	if c.index != 0 {
		c.srv.cfg.Members.Release(c.index)
	}
	for id := range c.waiting {
		c.answer(id)
	}
	if c.ended != nil {
		c.ended()
	}
	c.ready, c.ended = nil, nil
	c.rw.SetSession(false)
	c.index, c.live, c.groups, c.missed = 0, false, nil, 0
	c.late.Store(false)
	c.slow.Store(0)
}

// notAdmitted logs why there is no session. What the operator of one of both ends can mend
// is a warning.
func (c *conn) notAdmitted(reason error) {
	if proto.ReasonOf(reason) != proto.ReasonUnreachable {
		c.log.Debug("peer not admitted", "reason", reason)
		return
	}
	c.srv.unreached.Add(1)
	c.log.Warn("copies do not reach a peer", "reason", reason,
		"cure", "let datagrams out to the peer, and in at its firewall; on a veth switch on GRO of the peer's end: ethtool -K DEV gro on; the path must take 1280 bytes")
}

func (c *conn) leaveChannel() {
	if c.channel == nil {
		return
	}
	if err := c.srv.channels.leave(*c.channel); err != nil && !errors.Is(err, datapath.ErrClosed) {
		c.log.Error("channel not removed", "err", err)
	}
	c.channel = nil
}

const (
	// missedKeys is how many Rekeys in a row a member may leave without an acknowledgement.
	missedKeys = 3

	// A member is quick when it acknowledges a Rekey in this time, which is more than the
	// longest ways of the Internet take. Who was slow has to be quick so often in a row.
	quickAck  = 500 * time.Millisecond
	quickAcks = 3
)

// rekey passes keys on to a member, unless it never acknowledges any.
func (c *conn) rekey(now time.Time, r *rekey) {
	maps.DeleteFunc(c.waiting, func(_ uint32, o *rekey) bool {
		if now.Before(o.until) {
			return false
		}
		c.missed++
		return true
	})
	if c.missed >= missedKeys && c.live {
		c.adm.Fail(&proto.Error{Reason: proto.ReasonExpired, Detail: fmt.Sprintf("%d rekeys not acknowledged", c.missed)})
		c.perform(now)
	}
	m := r.Rekey
	m.Keys = slices.DeleteFunc(slices.Clone(m.Keys), func(k proto.GroupKey) bool { return !slices.Contains(c.groups, k.Group) })
	if len(m.Keys)+len(m.Retired) == 0 || !c.adm.Rekey(&m) {
		r.Answer(c)
		return
	}
	c.waiting[m.ID] = r
	c.perform(now)
}

// acknowledged notes that the peer has the keys of a Rekey.
func (c *conn) acknowledged(id uint32) {
	if r := c.waiting[id]; r != nil {
		c.missed = 0
		if time.Now().Before(r.until) { // else it is as late as before
			c.late.Store(false)
		}
		if time.Since(r.at) > quickAck {
			c.slow.Store(quickAcks)
			c.srv.slowAcks.Add(1)
		} else if lacks := c.slow.Load(); lacks > 0 {
			c.slow.CompareAndSwap(lacks, lacks-1)
		}
	}
	c.answer(id)
}

// answer says that this connection is done with a Rekey.
func (c *conn) answer(id uint32) {
	if r := c.waiting[id]; r != nil {
		delete(c.waiting, id)
		r.Answer(c)
	}
}
