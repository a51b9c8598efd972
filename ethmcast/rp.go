// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/outbox"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// rpConn is an RP that may be used. A membership outlives the connection, so what
// belongs to it does as well.
type rpConn struct {
	node   *enode.Node // as it was given or found last
	id     enode.ID
	ctx    context.Context // ends when the RP is needed no more
	cancel context.CancelFunc
	ended  chan struct{} // has an element when a connection ended

	conn   *conn         // nil without one
	addr   netip.Addr    // of the RP, on the newest connection
	local  netip.Addr    // our end of it
	source []byte        // by which datagrams leave from it, see source
	socket net.Conn      // of the connection, nil if it was not dialled here
	joiner *proto.Joiner // nil before the first connection
	role   role          // that the joiner was told
	member bool          // this node was one when the last connection ended

	// Of the membership.
	sender   *sender            // nil without one
	path     *outbox.Path       // on which to publish
	keyed    bool               // path has a group key
	uncopied bool               // its copies did not arrive, which was logged
	marks    []proto.Mark       // of its own stream in the Welcome, if it has one
	mode     proto.DeliveryMode // of the copies
	channel  *net.UDPConn       // its multicast channel, nil for none

	counters *proto.Counters // that the RP told last, nil for none
}

func newRPConn(node *enode.Node) *rpConn {
	rp := &rpConn{node: node, id: node.ID(), ended: make(chan struct{}, 1)}
	rp.ctx, rp.cancel = context.WithCancel(context.Background())
	return rp
}

// state returns the state of the joiner; of nil, or before the first connection, there
// is no connection.
func (rp *rpConn) state() proto.JoinerState {
	if rp == nil || rp.joiner == nil {
		return proto.JoinerAway
	}
	return rp.joiner.State()
}

// serves reports whether the RP replicates to us in a mode. It may be nil.
func (rp *rpConn) serves(mode proto.DeliveryMode) bool {
	if rp == nil || rp.joiner == nil {
		return false
	}
	groups, _ := rp.joiner.Member()
	return groups && rp.mode == mode
}

// usable reports whether the RP can be joined or serves already.
func (rp *rpConn) usable(now time.Time) bool { return rp.joiner != nil && rp.joiner.Usable(now) }

// operator returns who runs the RP, "" if that is not known.
func (rp *rpConn) operator() string {
	if rp.joiner == nil {
		return ""
	}
	return rp.joiner.RP().Operator
}

// rtt returns the least round-trip time of the connection, 0 if it is not known.
func (rp *rpConn) rtt() time.Duration {
	if rp.conn == nil || rp.socket == nil {
		return 0
	}
	return tcpRTT(rp.socket)
}

// dataAddr returns the RP's UDP endpoint: the address of the RLPx connection and
// the port of its Status.
func (rp *rpConn) dataAddr() netip.AddrPort {
	return netip.AddrPortFrom(rp.addr, rp.joiner.RP().DataPort)
}

// send sends a message if there is a connection.
func (rp *rpConn) send(m proto.Message) {
	if rp.conn != nil {
		rp.conn.send(m)
	}
}

// rpOf returns the RP of a sender, nil for none.
func (s *Service) rpOf(from *sender) *rpConn {
	for _, rp := range s.rps {
		if from != nil && rp.sender == from {
			return rp
		}
	}
	return nil
}

func (s *Service) nodeOf(rp *rpConn) *enode.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return rp.node
}

func (s *Service) isConnected(rp *rpConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return rp.conn != nil
}

func (s *Service) isDetached(rp *rpConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return rp.state() == proto.JoinerDetached
}

// wasMember reports whether this node was a member when the last connection ended.
func (s *Service) wasMember(rp *rpConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return rp.member
}

func (s *Service) setSocket(rp *rpConn, socket net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rp.socket = socket
}

// openRP registers a connection to an RP.
func (s *Service) openRP(c conn, rp *rpConn, peer *p2p.Peer) (handler, error) {
	tcp, ok := peer.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return nil, fmt.Errorf("no TCP address: %v", peer.RemoteAddr())
	}
	addr, ok := netip.AddrFromSlice(tcp.IP)
	if addr = addr.Unmap(); !ok || !addr.Is6() {
		return nil, fmt.Errorf("%v is not an IPv6 address", tcp.IP)
	}
	now, local := time.Now(), localAddr(peer)
	if rp.joiner == nil {
		rp.joiner = proto.NewJoiner(proto.JoinerConfig{
			Self:      s.self,
			Remote:    c.id,
			NetworkID: s.cfg.NetworkID,
			Genesis:   s.cfg.Genesis,
			Groups:    []ids.Group{s.group},
			Publish:   s.cfg.Publish != PublishNone,
			Port:      s.port(),
			Mode:      s.cfg.Delivery.mode(),
			Rand:      rand.Reader,
		})
	} else {
		if rp.addr != addr || rp.local != local { // the endpoints of the membership
			rp.joiner.Drop(errMoved)
			s.drain(now, rp)
		}
		rp.joiner.Reconnected()
	}
	rp.conn, rp.addr, rp.local, rp.source = &c, addr, local, source(local)
	s.drain(now, rp)
	s.choose(now)
	return &rpHandler{s, rp, &c}, nil
}

var errMoved = errors.New("the addresses of the connection changed")

// localAddr returns our address of a connection, zero when it has none.
func localAddr(peer *p2p.Peer) netip.Addr {
	if tcp, ok := peer.LocalAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr()
	}
	return netip.Addr{}
}

// rpHandler serves a connection to an RP.
type rpHandler struct {
	s    *Service
	rp   *rpConn
	conn *conn
}

func (h *rpHandler) handle(now time.Time, m proto.Message) error {
	err := h.rp.joiner.Handle(now, m)
	h.s.drain(now, h.rp)
	h.s.choose(now)
	return err
}

func (h *rpHandler) fail(now time.Time, err error) error {
	if h.rp.state() == proto.JoinerBarred {
		return nil
	}
	h.rp.joiner.Fail(now, err)
	h.s.drain(now, h.rp)
	h.s.choose(now)
	return err
}

func (h *rpHandler) close(now time.Time) {
	rp := h.rp
	if rp.conn != h.conn {
		return
	}
	rp.conn, rp.socket = nil, nil
	groups, standby := rp.joiner.Member()
	rp.member = groups || standby
	rp.joiner.Disconnected(now)
	h.s.drain(now, rp)
	h.s.choose(now)
	select {
	case rp.ended <- struct{}{}:
	default:
	}
}

// opening is a datagram of no session, which an RP drops. It leaves with each Join, so that a firewall that lets in
// only answers lets in the PROBEs.
var opening = (&wire.Header{Type: wire.Heartbeat}).Append(nil)

// drain does what an RP's state machine wants done, which may make it want more.
func (s *Service) drain(now time.Time, rp *rpConn) {
	for actions := rp.joiner.Actions(); len(actions) > 0; actions = rp.joiner.Actions() {
		s.poke() // deadlines may have moved
		for _, a := range actions {
			s.perform(now, rp, a)
		}
	}
}

func (s *Service) perform(now time.Time, rp *rpConn, a proto.Action) {
	switch a := a.(type) {
	case proto.Send:
		if _, ok := a.Message.(*proto.Join); ok {
			s.sendDatagram(rp, opening)
		}
		rp.send(a.Message)
	case proto.Subscribe:
		rp.joiner.Subscribed(s.subscribe(rp, a))
	case proto.Joined:
		s.join(now, rp, a)
	case proto.ActivateDue:
		rp.send(&proto.Activate{Marks: s.delivered()})
	case proto.Served:
		s.receiver.replace(s.ours(rp, a.Keys))
		s.useKey(now, rp, a.Keys)
		rp.path.Rate, rp.path.Burst = a.Rate, a.Burst
		s.serve(now, rp, a.Marks)
	case proto.Rested:
		s.unsubscribe(rp)
		rp.mode, rp.counters = proto.ModeUnicast, nil
	case proto.Counted:
		if a.Group == s.group {
			rp.counters = &a.Counters
		}
	case proto.Receipted:
		s.receipts(now, a.Objects)
	case proto.Redirected:
		s.redirected(rp, a)
	case proto.Install:
		for _, k := range s.ours(rp, a.Keys) {
			s.receiver.install(k)
		}
		s.useKey(now, rp, a.Keys)
		if rp == s.active { // another RP may still hear of it
			for _, ingress := range a.Retired {
				s.receiver.retire(ingress)
				s.marks.Retire(ingress)
			}
		}
	case proto.AnnounceDue:
		rp.send(&proto.Announce{Counters: s.marks.Counters()})
		s.sendDatagram(rp, rp.path.KeepAlive())
	case proto.Left:
		s.left(now, rp, a.Err)
	}
}

// join begins a membership.
func (s *Service) join(now time.Time, rp *rpConn, j proto.Joined) {
	if rp.mode = j.Mode; j.Mode == proto.ModeUnicast {
		s.unsubscribe(rp)
	}
	rp.uncopied = false
	rp.sender = s.receiver.join(rp.dataAddr(), j.RP.Incarnation,
		hop{session: j.ReceiveSession, key: j.ReceiveKey}, hop{session: j.Channel.Session, key: j.Channel.Key})
	rp.keyed = false
	rp.path = &outbox.Path{
		RP:      j.RP.Incarnation,
		Session: j.SendSession,
		Group:   s.group,
		Key:     j.SendKey,
		Rate:    j.Rate,
		Burst:   j.Burst,
	}
	s.receiver.replace(s.ours(rp, j.Keys))
	s.useKey(now, rp, j.Keys)
	s.log.Info("Joined replication point", "rp", rp.id, "addr", rp.dataAddr(), "incarnation", fmt.Sprintf("%08x", j.RP.Incarnation),
		"operator", j.RP.Operator, "delivery", j.Mode, "standby", j.Standby)
	rp.marks = slices.DeleteFunc(slices.Clone(j.Marks), func(m proto.Mark) bool { return m.Ingress != j.RP.Incarnation })
	switch {
	case !j.Standby:
		s.serve(now, rp, j.Marks)
	case s.covered:
		s.begin(now, rp.marks)
	}
}

// begin begins the streams that are not known, after their marks. The receiver learns how far
// they have come: when the active RP tells of less, the mark was a lie.
func (s *Service) begin(now time.Time, marks []proto.Mark) {
	for _, m := range marks {
		stream := m.Stream()
		if m.Group == s.group && s.marks.Begin(stream, m.Sequence) {
			s.receiver.reached(now, stream, m.Sequence)
		}
	}
}

// serve takes an RP that replicates to us from now on, from what is after the marks.
func (s *Service) serve(now time.Time, rp *rpConn, marks []proto.Mark) {
	if rp == s.next {
		s.active, s.next, s.standby = rp, nil, s.active
		movedMeter.Mark(1)
		s.log.Info("Moved to another replication point", "rp", rp.id, "from", s.standby.id)
	}
	if rp != s.active {
		return // not wanted any more: the joiner knows
	}
	s.receiver.trusted = rp.sender
	if !s.covered {
		s.marks.Reset()
	}
	s.begin(now, marks)
	if s.standby != nil { // whose own stream comes from the active one meanwhile
		s.begin(now, s.standby.marks)
	}
	s.hints, s.redirects = nil, 0
	changed := !s.covered
	s.covered = true
	s.usePath(now)
	s.sendHave(now, changed)
}

// delivered returns the marks from which on another RP is to replicate: what is before
// was delivered.
func (s *Service) delivered() []proto.Mark {
	var marks []proto.Mark
	have, _ := s.marks.Have(0)
	for _, m := range have {
		next := m.Next
		if len(m.Missing) > 0 {
			next = m.Missing[0]
		}
		marks = append(marks, proto.Mark{Ingress: m.Ingress, Group: m.Group, Sequence: next - 1})
	}
	return marks
}

// usePath publishes to the active RP, if it lets us. What another one did not
// acknowledge goes to it.
func (s *Service) usePath(now time.Time) {
	if path := s.path(); s.outbox.Path() != path {
		s.outbox.SetPath(now, path)
		s.drainOutbox(now)
	}
}

// path returns how to publish to the active RP, nil if it does not let us. The outbox
// takes it when the RP serves: what is published until then waits in it.
func (s *Service) path() *outbox.Path {
	if rp := s.active; s.covered && rp != nil && rp.keyed && rp.path.Rate > 0 {
		return rp.path
	}
	return nil
}

// activeKey returns the key in which to publish by an ingress RP.
func activeKey(keys []proto.GroupKey, ingress ids.Incarnation, group ids.Group) (proto.GroupKey, bool) {
	for _, k := range keys {
		if k.Ingress == ingress && k.Group == group && k.Active {
			return k, true
		}
	}
	return proto.GroupKey{}, false
}

// ours returns those of an RP's group keys that datagrams are checked by: none while it
// stands by, as it has no say in what another one replicates (SPEC 9.5).
func (s *Service) ours(rp *rpConn, keys []proto.GroupKey) []proto.GroupKey {
	if rp != s.active && rp != s.next {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(keys), func(k proto.GroupKey) bool { return k.Group != s.group })
}

// useKey publishes to an RP in the newest of its own keys, if there is one among these.
func (s *Service) useKey(now time.Time, rp *rpConn, keys []proto.GroupKey) {
	k, ok := activeKey(keys, rp.path.RP, s.group)
	if !ok {
		return
	}
	rp.path.Epoch, rp.path.Payload = k.Epoch, k.Key
	if rp.keyed = true; rp == s.active {
		s.usePath(now)
	}
}

// left ends a membership, or an attempt.
func (s *Service) left(now time.Time, rp *rpConn, err error) {
	s.unsubscribe(rp)
	if rp.sender == nil {
		if errors.Is(err, proto.ErrUncopied) && !rp.uncopied {
			rp.uncopied = true // told once, until it changes
			s.log.Warn("Replication point not joined", "rp", rp.id, "err", err)
		} else {
			s.log.Debug("Replication point not joined", "rp", rp.id, "err", err)
		}
		return
	}
	s.receiver.leave(rp.sender)
	rp.sender, rp.path, rp.keyed, rp.counters = nil, nil, false, nil
	if rp == s.active {
		s.outbox.SetPath(now, nil)
		s.drainOutbox(now)
	}
	s.log.Warn("Left replication point", "rp", rp.id, "err", err)
}

// forget ends the use of an RP that may not be used any more.
func (s *Service) forget(now time.Time, rp *rpConn) {
	rp.cancel()
	if rp.joiner != nil {
		rp.joiner.Want(now, false)
		s.drain(now, rp)
	}
	if s.active == rp {
		s.active = nil
	}
	if s.next == rp {
		s.next = nil
	}
	if s.standby == rp {
		s.standby = nil
	}
}
