// SPDX-License-Identifier: LGPL-3.0-or-later

package proto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// Action is something that a Joiner, or the machine of an RP (rp/admission), wants done. Actions are
// done in order. IsAction does nothing: it marks the types that are actions.
type Action interface{ IsAction() }

// Send asks for a message to the other side. Both machines have it.
type Send struct{ Message Message }

// Subscribe asks for the source-specific join of a group, whose datagrams come
// from the RP's data endpoint to Port. Joiner.Subscribed answers.
type Subscribe struct {
	Group ids.Group
	Port  uint16
}

// Joined says that the RP admitted the peer. Datagrams from the RP carry
// ReceiveSession and ReceiveKey, datagrams to it SendSession and SendKey, those of
// the channel in mode ssm what Channel says. In mode unicast what was subscribed
// is not needed any more.
type Joined struct {
	RP                          Status
	Standby                     bool // in no group until Activated
	Mode                        DeliveryMode
	Channel                     Channel
	ReceiveSession, SendSession ids.Session
	ReceiveKey, SendKey         auth.Key
	Rate, Burst                 uint32
	Keys                        []GroupKey
	Marks                       []Mark
}

// ActivateDue asks for an Activate with the marks of what was delivered.
type ActivateDue struct{}

// Served says that the RP replicates to a session that was in standby, or resumed.
type Served struct{ Terms }

// Rested says that a session is in standby, after it was in groups. It is in mode
// unicast then.
type Rested struct{}

// Redirected says that the RP names others. Draining: it will stop, and the
// membership goes on until then.
type Redirected struct {
	URLs     []string
	Draining bool
}

// Install asks for a change of group keys, before the actions that follow.
type Install struct {
	Keys    []GroupKey
	Retired []ids.Incarnation
}

// Counted says how many members a group has.
type Counted struct{ Counters }

// Receipted says who has objects that this peer published.
type Receipted struct{ Objects []ObjectReceipt }

// AnnounceDue asks for an Announce and, beside it, a keep-alive datagram.
type AnnounceDue struct{}

// Left says that the membership ended, or the attempt to get one, and with it
// what was subscribed.
type Left struct{ Err error }

// IsAction marks an action.
func (Send) IsAction()        {}
func (Subscribe) IsAction()   {}
func (Joined) IsAction()      {}
func (Install) IsAction()     {}
func (AnnounceDue) IsAction() {}
func (Left) IsAction()        {}
func (ActivateDue) IsAction() {}
func (Served) IsAction()      {}
func (Rested) IsAction()      {}
func (Redirected) IsAction()  {}
func (Counted) IsAction()     {}
func (Receipted) IsAction()   {}

// JoinerState is the state of a Joiner (SPEC 8.1).
type JoinerState uint8

// States of a Joiner.
const (
	JoinerConnected  JoinerState = iota // no Status yet
	JoinerIdle                          // an RP that is not wanted
	JoinerJoining                       // Join sent
	JoinerActive                        // in groups
	JoinerBackoff                       // waiting to join again
	JoinerBarred                        // never joins on this connection
	JoinerStandby                       // admitted, in no group
	JoinerActivating                    // Activate sent
	JoinerDetached                      // a member without a connection, or without its Status
	JoinerResuming                      // Resume sent
	JoinerAway                          // no connection
)

func (s JoinerState) String() string {
	return [...]string{"connected", "idle", "joining", "active", "backoff", "barred", "standby", "activating", "detached",
		"resuming", "away"}[s]
}

// want is what the peer wants to be at an RP.
type want uint8

const (
	wantNothing want = iota
	wantStandby
	wantActive
)

// JoinerConfig is what a peer asks of an RP.
type JoinerConfig struct {
	Self, Remote [32]byte // devp2p node ids
	NetworkID    uint64
	Genesis      [32]byte
	Groups       []ids.Group
	Publish      bool
	Port         uint16 // UDP port of the peer
	MaxRate      uint64 // bytes per second, 0: no limit
	Mode         DeliveryMode
	Rand         io.Reader
}

// ErrUncopied is why a peer is not joined when the RP got no ProbeAck of its PROBEs.
var ErrUncopied = errors.New("the copies of the rp do not reach this node: let its datagrams in to the mdcs port (firewall); " +
	"on a veth, as containers have it, switch on the gro of the node's end: ethtool -K DEV gro on; the path must take 1280 bytes")

// Joiner is the peer's side of mdcs/1 with one RP, on one connection after the
// other. It joins while it is wanted, keeps the lease, notices when the RP falls
// silent, and joins again after a back-off that doubles up to MaxBackoff.
//
// A membership is in groups or in standby, as is wanted. With a token it outlives the
// connection: for DetachTimeout at most, and while datagrams come, the Joiner is a
// member that has nobody to talk to, and resumes on the next connection.
//
// In mode ssm it is the channel that must not fall silent. When it does, the
// Joiner joins in mode unicast at once, and stays with it on this connection.
//
// A violation by the RP ends the membership: Handle returns it for the log, the
// actions hold the Leave. A wrong Status bars the RP for the connection.
//
// The tests are in rp/admission, where a Joiner talks with the machine of the RP.
type Joiner struct {
	cfg     JoinerConfig
	state   JoinerState
	want    want
	rp      Status
	join    Join
	actions []Action

	connected bool
	greeted   bool // the RP's Status came on this connection

	token       Token // of the membership, zero for none
	session     ids.Session
	lease       time.Duration
	standby     bool         // of a membership that is detached: in no group
	draining    bool         // the RP said that it will stop
	mode        DeliveryMode // of the membership
	unicast     bool         // the channel fell silent on this connection: no more of it
	subscribing bool         // Subscribe is not answered, the Join not sent

	deadline time.Time // of the state
	heard    time.Time // last datagram of the RP
	ticked   time.Time
	backoff  time.Duration
	deaf     time.Duration // least back-off, of an RP that took nothing of what was sent to it
	retry    time.Time     // no Join before
}

// NewJoiner returns a Joiner for a connection that was just made.
func NewJoiner(cfg JoinerConfig) *Joiner {
	j := &Joiner{cfg: cfg, backoff: MinBackoff}
	j.greet()
	return j
}

func (j *Joiner) greet() {
	j.connected, j.greeted = true, false
	j.send(&Status{Role: RolePeer, NetworkID: j.cfg.NetworkID, Genesis: j.cfg.Genesis})
}

// State returns the state.
func (j *Joiner) State() JoinerState { return j.state }

// RP returns the RP's Status, zero before there was one.
func (j *Joiner) RP() Status { return j.rp }

// Member reports whether the RP admitted the peer: in groups, or in standby.
func (j *Joiner) Member() (groups, standby bool) {
	switch j.state {
	case JoinerActive:
		return true, false
	case JoinerStandby, JoinerActivating:
		return false, true
	case JoinerDetached, JoinerResuming:
		return !j.standby, j.standby
	}
	return false, false
}

// Usable reports whether the RP can be joined now, or serves already.
func (j *Joiner) Usable(now time.Time) bool {
	switch j.state {
	case JoinerIdle:
		return !now.Before(j.retry) && !j.draining
	case JoinerJoining, JoinerActive, JoinerStandby, JoinerActivating, JoinerDetached, JoinerResuming:
		return !j.draining
	}
	return false
}

// RetryAt returns the time before which no Join is sent, zero when there was no back-off yet.
func (j *Joiner) RetryAt() time.Time { return j.retry }

// Draining reports whether the RP said that it will stop.
func (j *Joiner) Draining() bool { return j.draining }

// Actions returns what is to be done since the last call.
func (j *Joiner) Actions() []Action {
	a := j.actions
	j.actions = nil
	return a
}

// Want says whether the peer wants to be a member, in groups.
func (j *Joiner) Want(now time.Time, wanted bool) {
	j.want = wantNothing
	if wanted {
		j.want = wantActive
	}
	j.steer(now)
}

// WantStandby says that the peer wants to be a member in standby.
func (j *Joiner) WantStandby(now time.Time) {
	j.want = wantStandby
	j.steer(now)
}

// steer goes from what is to what is wanted, as far as it can at once.
func (j *Joiner) steer(now time.Time) {
	switch j.state {
	case JoinerIdle:
		if j.want != wantNothing {
			j.start(now)
		}
		return
	case JoinerBackoff:
		if j.want == wantNothing {
			j.state = JoinerIdle
		}
		return
	case JoinerConnected, JoinerBarred, JoinerAway:
		return
	}
	switch {
	case j.want == wantNothing:
		if j.state != JoinerDetached {
			j.send(&Leave{ReasonQuit})
		}
		j.leave(&Error{ReasonQuit, "not wanted"})
	case j.want == wantStandby && (j.state == JoinerActive || j.state == JoinerActivating):
		j.send(&Deactivate{})
		j.state = JoinerStandby
		j.mode = ModeUnicast
		j.act(Rested{})
		j.announceAt(now)
	case j.want == wantActive && j.state == JoinerStandby:
		j.act(ActivateDue{})
		j.state, j.deadline = JoinerActivating, now.Add(ActivateTimeout)
	}
}

// Handle takes a message of the RP.
func (j *Joiner) Handle(now time.Time, m Message) error {
	if j.state == JoinerBarred {
		return nil
	}
	if err := j.handle(now, m); err != nil {
		j.Fail(now, err)
		return err
	}
	return nil
}

func (j *Joiner) handle(now time.Time, m Message) error {
	if status, ok := m.(*Status); ok {
		return j.status(now, status)
	}
	if !j.greeted {
		return Unexpected("message 0x%02x before status", m.Code())
	}
	switch m := m.(type) {
	case *Welcome:
		if j.state != JoinerJoining {
			return nil // crossed our Leave
		}
		if m.Mode > j.join.Mode {
			return Unexpected("welcome in mode %v", m.Mode)
		}
		j.welcome(now, m)
	case *Resumed:
		if j.state == JoinerResuming {
			j.resumed(now, m)
		}
	case *Activated:
		if j.state == JoinerActivating {
			j.state, j.heard, j.ticked = JoinerActive, now, now
			j.act(Served{m.Terms})
			j.announceAt(now)
		}
	case *Rekey:
		if groups, standby := j.Member(); groups || standby {
			j.act(Install{m.Keys, m.Retired})
			j.send(&RekeyAck{m.ID})
		}
	case *Redirect:
		groups, standby := j.Member()
		j.draining = groups || standby
		j.act(Redirected{m.URLs, j.draining})
	case *Counters:
		if groups, _ := j.Member(); groups { // else it crossed our Leave or Deactivate
			j.act(Counted{*m})
		}
	case *Receipt:
		if groups, standby := j.Member(); groups || standby {
			j.act(Receipted{m.Objects})
		}
	case *Leave:
		switch j.state {
		case JoinerResuming: // the RP lives, and forgot us
			j.leave(fmt.Errorf("not resumed by the rp: %v", m.Reason))
			j.steer(now)
		case JoinerJoining, JoinerActive, JoinerStandby, JoinerActivating:
			err := fmt.Errorf("ended by the rp: %v", m.Reason)
			if j.state == JoinerJoining && m.Reason == ReasonUnreachable {
				err = fmt.Errorf("%w: %w", err, ErrUncopied)
			}
			j.lose(now, err)
		}
	default:
		return Unexpected("message 0x%02x from an rp", m.Code())
	}
	return nil
}

func (j *Joiner) status(now time.Time, status *Status) error {
	switch {
	case j.greeted:
		return Unexpected("second status")
	case status.Role != RoleRP:
		return &Error{ReasonRole, fmt.Sprintf("status of a %v where an rp was expected", status.Role)}
	case status.NetworkID != j.cfg.NetworkID || status.Genesis != j.cfg.Genesis:
		return &Error{ReasonChain, fmt.Sprintf("rp serves network %d with genesis %x", status.NetworkID, status.Genesis[:4])}
	}
	same := *status == j.rp
	j.rp, j.greeted = *status, true
	if j.state == JoinerDetached {
		if same {
			j.send(&Resume{Token: j.token, Session: j.session, Port: j.cfg.Port, Groups: j.cfg.Groups, Publish: j.cfg.Publish})
			j.state = JoinerResuming
			return nil
		}
		j.leave(fmt.Errorf("the rp began anew as %08x", status.Incarnation))
	}
	j.state = JoinerIdle
	j.steer(now)
	return nil
}

// start begins an attempt to join, unless it is too early.
func (j *Joiner) start(now time.Time) {
	if now.Before(j.retry) {
		j.state, j.deadline = JoinerBackoff, j.retry
		return
	}
	j.join = Join{
		Groups:    j.cfg.Groups,
		Publish:   j.cfg.Publish,
		Standby:   j.want == wantStandby,
		Mode:      ModeUnicast,
		Port:      j.cfg.Port,
		ProbeSize: wire.MaxDatagram,
		MaxRate:   j.cfg.MaxRate,
	}
	var random [4 + auth.ShareSize]byte
	if _, err := io.ReadFull(j.cfg.Rand, random[:]); err != nil {
		j.lose(now, fmt.Errorf("no random bytes: %w", err))
		return
	}
	j.join.Session = ids.Session(binary.BigEndian.Uint32(random[:]) | 1) // never 0
	j.join.Share = auth.Share(random[4:])
	j.state, j.deadline = JoinerJoining, now.Add(JoinTimeout)
	// A Join has one mode, so several groups come in the one that any number can. A
	// session in standby is in none.
	if j.cfg.Mode == ModeSSM && j.rp.GroupPort != 0 && len(j.cfg.Groups) == 1 && !j.unicast && !j.join.Standby {
		j.subscribing = true
		j.act(Subscribe{Group: j.cfg.Groups[0], Port: j.rp.GroupPort})
		return
	}
	j.sendJoin()
}

// Subscribed answers Subscribe: the group is joined, or this host cannot.
func (j *Joiner) Subscribed(ok bool) {
	if j.state != JoinerJoining || !j.subscribing {
		return
	}
	j.subscribing = false
	if ok {
		j.join.Mode = ModeSSM
	}
	j.sendJoin()
}

func (j *Joiner) sendJoin() {
	join := j.join
	j.send(&join)
}

func (j *Joiner) welcome(now time.Time, m *Welcome) {
	send, receive := auth.HopKeys(j.cfg.Self, j.cfg.Remote, j.join.Share, m.Share)
	j.act(Joined{
		RP:             j.rp,
		Standby:        j.join.Standby,
		Mode:           m.Mode,
		Channel:        m.Channel,
		ReceiveSession: j.join.Session,
		SendSession:    m.Session,
		SendKey:        send,
		ReceiveKey:     receive,
		Rate:           m.Rate,
		Burst:          m.Burst,
		Keys:           m.Keys,
		Marks:          m.Marks,
	})
	j.token, j.session, j.mode = m.Token, m.Session, m.Mode
	j.begin(now, m.Lease, j.join.Standby)
}

func (j *Joiner) resumed(now time.Time, m *Resumed) {
	if m.Standby {
		if !j.standby { // it was in groups, and the RP took it out
			j.act(Rested{})
		}
		j.act(Install{Keys: m.Keys})
	} else {
		j.act(Served{m.Terms})
	}
	j.begin(now, m.Lease, m.Standby)
}

// begin enters Active or Standby with a lease in seconds, and goes on to what is wanted.
func (j *Joiner) begin(now time.Time, lease uint32, standby bool) {
	j.lease = time.Duration(lease) * time.Second
	j.state, j.heard, j.ticked = JoinerActive, now, now
	if standby {
		j.state = JoinerStandby
		j.backoff = MinBackoff
	}
	j.announceAt(now)
	j.steer(now)
}

// announceAt sets when to announce next: early enough for two to be lost in a lease.
func (j *Joiner) announceAt(now time.Time) {
	var random [2]byte
	_, _ = io.ReadFull(j.cfg.Rand, random[:]) // without it the interval has no jitter
	interval := min(AnnounceInterval, j.lease/3)
	jitter := interval / AnnounceJitter * time.Duration(binary.BigEndian.Uint16(random[:])) / 0xffff
	j.deadline = now.Add(interval - jitter)
}

// Probe takes a PROBE datagram that came from the RP's endpoint, size bytes long.
// One that is for another member of the channel is ignored.
func (j *Joiner) Probe(nonce [wire.NonceSize]byte, size int) {
	if j.state == JoinerJoining && !j.subscribing && ids.Session(binary.BigEndian.Uint32(nonce[:])) == j.join.Session {
		j.send(&ProbeAck{Nonce: nonce, Size: uint16(size)})
	}
}

// Heard says that a valid datagram of the RP arrived, in mode ssm by the channel.
func (j *Joiner) Heard(now time.Time) {
	switch j.state {
	case JoinerActive:
		j.backoff = MinBackoff
	case JoinerDetached, JoinerResuming:
	default:
		return
	}
	j.heard = now
}

// Unanswered says that the RP did not acknowledge what was sent to it more than
// once. If it has been silent too, or has no connection, it is lost.
func (j *Joiner) Unanswered(now time.Time) {
	detached := j.state == JoinerDetached || j.state == JoinerResuming
	suspect := j.state == JoinerActive && j.mode == ModeUnicast && now.Sub(j.heard) >= SuspectTimeout
	if detached || suspect {
		j.giveUp(now, "no echo, and no other sign of the rp")
	}
}

// Deaf says that the RP took nothing of several objects, whatever else it sends: what is sent to it does
// not arrive. It is lost, and left alone for DeafBackoff, then for twice as long each time.
func (j *Joiner) Deaf(now time.Time) {
	j.deaf = min(max(2*j.deaf, DeafBackoff), MaxDeafBackoff)
	j.giveUp(now, "it takes nothing of what is sent to it, and is left alone for %v", j.deaf)
}

// Echoed says that the RP took something.
func (j *Joiner) Echoed() { j.deaf = 0 }

// Disconnected says that the connection ended.
func (j *Joiner) Disconnected(now time.Time) {
	j.connected, j.draining = false, false
	switch j.state {
	case JoinerActive, JoinerStandby:
		if j.token != (Token{}) {
			j.standby = j.state == JoinerStandby
			j.state, j.deadline = JoinerDetached, now.Add(DetachTimeout)
			j.ticked = now
			return
		}
	case JoinerDetached, JoinerResuming:
		j.state = JoinerDetached
		return
	}
	j.leave(&Error{ReasonUnreachable, "connection lost"})
}

// Reconnected says that there is a connection again.
func (j *Joiner) Reconnected() {
	if j.state == JoinerAway {
		j.state = JoinerConnected
	}
	j.unicast = false
	j.greet()
}

// Drop ends the membership because what it rests on changed, as the RP's address.
// Nothing is sent: the RP knows it by another connection.
func (j *Joiner) Drop(err error) { j.leave(err) }

// Fail ends the membership because of what the RP sent.
func (j *Joiner) Fail(now time.Time, err error) {
	if j.connected && !j.greeted {
		j.send(&Leave{ReasonOf(err)})
		j.act(Left{err})
		j.state = JoinerBarred
		return
	}
	j.end(now, err)
}

// giveUp ends the membership, or the attempt to get one, because of what did not come.
func (j *Joiner) giveUp(now time.Time, format string, args ...any) {
	j.end(now, &Error{ReasonUnreachable, fmt.Sprintf(format, args...)})
}

func (j *Joiner) end(now time.Time, err error) {
	switch j.state {
	case JoinerJoining, JoinerActive, JoinerStandby, JoinerActivating, JoinerResuming:
		j.send(&Leave{ReasonOf(err)})
	}
	j.lose(now, err)
}

// fallBack leaves a silent channel and joins in mode unicast. It is the RP that is
// silent if this takes as long again.
func (j *Joiner) fallBack(now time.Time) {
	err := &Error{ReasonUnreachable, fmt.Sprintf("no datagram on the channel for %v", HeartbeatTimeout)}
	j.send(&Leave{err.Reason})
	j.leave(err)
	j.unicast = true
	j.start(now)
	j.deadline = now.Add(HeartbeatTimeout)
}

// leave ends a membership, or the attempt to get one.
func (j *Joiner) leave(err error) {
	switch j.state {
	case JoinerJoining, JoinerActive, JoinerStandby, JoinerActivating, JoinerDetached, JoinerResuming:
		j.act(Left{err})
	}
	j.subscribing, j.draining, j.token = false, false, Token{}
	switch {
	case !j.connected:
		j.state = JoinerAway
	case !j.greeted:
		j.state = JoinerConnected
	default:
		j.state = JoinerIdle
	}
}

// lose ends a membership, or the attempt to get one, for a back-off.
func (j *Joiner) lose(now time.Time, err error) {
	j.leave(err)
	if j.want == wantNothing {
		return
	}
	j.retry = now.Add(max(j.backoff, j.deaf))
	j.backoff = min(2*j.backoff, MaxBackoff)
	if j.state == JoinerIdle {
		j.state, j.deadline = JoinerBackoff, j.retry
	}
}

// Tick does what is due. Time that passed without a Tick for longer than a
// heartbeat interval does not count as the RP's silence: it was the peer's own.
func (j *Joiner) Tick(now time.Time) {
	if limit := j.silence(); limit > 0 {
		if stall := now.Sub(j.ticked); stall > HeartbeatInterval {
			j.heard = j.heard.Add(stall)
		}
		j.ticked = now
		if now.Sub(j.heard) >= limit {
			if j.mode == ModeSSM && j.state == JoinerActive {
				j.fallBack(now)
				return
			}
			j.giveUp(now, "no datagram of the rp for %v", limit)
			return
		}
	}
	if now.Before(j.deadline) {
		return
	}
	switch j.state {
	case JoinerJoining:
		j.giveUp(now, "no welcome in time")
	case JoinerActivating:
		j.giveUp(now, "not activated in time")
	case JoinerDetached, JoinerResuming:
		j.giveUp(now, "no connection for %v", DetachTimeout)
	case JoinerActive, JoinerStandby:
		j.act(AnnounceDue{})
		j.announceAt(now)
	case JoinerBackoff:
		j.start(now)
	}
}

// silence returns how long the RP may be silent in this state, 0 for any time.
func (j *Joiner) silence() time.Duration {
	switch j.state {
	case JoinerActive:
		return HeartbeatTimeout
	case JoinerDetached, JoinerResuming:
		if !j.standby {
			return DetachSilence
		}
	}
	return 0
}

// Deadline returns when Tick is due next, zero for never.
func (j *Joiner) Deadline() time.Time {
	switch j.state {
	case JoinerConnected, JoinerIdle, JoinerBarred, JoinerAway:
		return time.Time{}
	}
	if next := j.ticked.Add(HeartbeatInterval / 2); j.silence() > 0 && next.Before(j.deadline) {
		return next
	}
	return j.deadline
}

func (j *Joiner) send(m Message) { j.act(Send{m}) }

func (j *Joiner) act(a Action) { j.actions = append(j.actions, a) }
