// SPDX-License-Identifier: LGPL-3.0-or-later

package proto

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// Action is something that a state machine wants done. Actions are done in order.
type Action interface{ action() }

// Send asks for a message to the other side.
type Send struct{ Message Message }

// Subscribe asks for the source-specific join of a group, whose datagrams come
// from the RP's data endpoint to Port. Joiner.Subscribed answers.
type Subscribe struct {
	Group uint32
	Port  uint16
}

// Joined says that the RP admitted the peer. Datagrams from the RP carry
// ReceiveSession and ReceiveKey, datagrams to it SendSession and SendKey, those of
// the channel in mode ssm what Channel says. In mode unicast what was subscribed
// is not needed any more.
type Joined struct {
	RP                          Status
	Mode                        DeliveryMode
	Channel                     Channel
	ReceiveSession, SendSession uint32
	ReceiveKey, SendKey         auth.Key
	Rate, Burst                 uint32
	Keys                        []GroupKey
	Marks                       []Mark
}

// Install asks for a change of group keys, before the actions that follow.
type Install struct {
	Keys    []GroupKey
	Retired []uint32
}

// AnnounceDue asks for an Announce and, beside it, a keep-alive datagram.
type AnnounceDue struct{}

// Left says that the membership ended, or the attempt to get one, and with it
// what was subscribed.
type Left struct{ Err error }

func (Send) action()        {}
func (Subscribe) action()   {}
func (Joined) action()      {}
func (Install) action()     {}
func (AnnounceDue) action() {}
func (Left) action()        {}

// JoinerState is the state of a Joiner (SPEC 8.1).
type JoinerState uint8

// States of a Joiner.
const (
	JoinerConnected JoinerState = iota // no Status yet
	JoinerIdle                         // an RP that is not wanted
	JoinerJoining                      // Join sent
	JoinerActive                       // Welcome received
	JoinerBackoff                      // waiting to join again
	JoinerBarred                       // never joins on this connection
)

func (s JoinerState) String() string {
	return [...]string{"connected", "idle", "joining", "active", "backoff", "barred"}[s]
}

// JoinerConfig is what a peer asks of an RP.
type JoinerConfig struct {
	Self, Remote [32]byte // devp2p node ids
	NetworkID    uint64
	Genesis      [32]byte
	Groups       []uint32
	Publish      bool
	Port         uint16 // UDP port of the peer
	MaxRate      uint64 // bytes per second, 0: no limit
	Mode         DeliveryMode
	Rand         io.Reader
}

// Joiner is the peer's side of one connection to an RP. It joins while it is
// wanted, keeps the lease, notices when the RP falls silent, and joins again
// after a back-off that doubles up to MaxBackoff.
//
// In mode ssm it is the channel that must not fall silent. When it does, the
// Joiner joins in mode unicast at once, and stays with it.
//
// A violation by the RP ends the membership: Handle returns it for the log, the
// actions hold the Leave. A wrong Status bars the RP for the connection.
type Joiner struct {
	cfg     JoinerConfig
	state   JoinerState
	wanted  bool
	rp      Status
	join    Join
	actions []Action

	mode        DeliveryMode // of the membership
	unicast     bool         // the channel fell silent: no more of it
	subscribing bool         // Subscribe is not answered, the Join not sent

	deadline time.Time // of the state
	heard    time.Time // last datagram of the RP
	ticked   time.Time
	backoff  time.Duration
}

// NewJoiner returns a Joiner for a connection that was just made.
func NewJoiner(cfg JoinerConfig) *Joiner {
	j := &Joiner{cfg: cfg, backoff: MinBackoff}
	j.send(&Status{Role: RolePeer, NetworkID: cfg.NetworkID, Genesis: cfg.Genesis})
	return j
}

// State returns the state.
func (j *Joiner) State() JoinerState { return j.state }

// RP returns the RP's Status, zero in state JoinerConnected.
func (j *Joiner) RP() Status { return j.rp }

// Actions returns what is to be done since the last call.
func (j *Joiner) Actions() []Action {
	a := j.actions
	j.actions = nil
	return a
}

// Want says whether the peer wants to be a member.
func (j *Joiner) Want(now time.Time, wanted bool) {
	if j.wanted = wanted; wanted {
		if j.state == JoinerIdle {
			j.start(now)
		}
		return
	}
	switch j.state {
	case JoinerJoining, JoinerActive:
		j.send(&Leave{ReasonQuit})
		j.act(Left{&Error{ReasonQuit, "not wanted"}})
		j.state, j.subscribing = JoinerIdle, false
	case JoinerBackoff:
		j.state = JoinerIdle
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
	if j.state == JoinerConnected {
		return unexpected("message 0x%02x before status", m.Code())
	}
	switch m := m.(type) {
	case *Welcome:
		if j.state != JoinerJoining {
			return nil // crossed our Leave
		}
		if m.Mode > j.join.Mode {
			return unexpected("welcome in mode %v", m.Mode)
		}
		j.welcome(now, m)
	case *Rekey:
		if j.state == JoinerActive {
			j.act(Install{m.Keys, m.Retired})
			j.send(&RekeyAck{m.ID})
		}
	case *Leave:
		if j.state == JoinerJoining || j.state == JoinerActive {
			j.lose(now, fmt.Errorf("ended by the rp: %v", m.Reason))
		}
	default:
		return unexpected("message 0x%02x from an rp", m.Code())
	}
	return nil
}

func (j *Joiner) status(now time.Time, status *Status) error {
	switch {
	case j.state != JoinerConnected:
		return unexpected("second status")
	case status.Role != RoleRP:
		return &Error{ReasonRole, fmt.Sprintf("status of a %v where an rp was expected", status.Role)}
	case status.NetworkID != j.cfg.NetworkID || status.Genesis != j.cfg.Genesis:
		return &Error{ReasonChain, fmt.Sprintf("rp serves network %d with genesis %x", status.NetworkID, status.Genesis[:4])}
	}
	j.rp, j.state = *status, JoinerIdle
	if j.wanted {
		j.start(now)
	}
	return nil
}

// start begins an attempt to join.
func (j *Joiner) start(now time.Time) {
	j.join = Join{
		Groups:      j.cfg.Groups,
		Publish:     j.cfg.Publish,
		Mode:        ModeUnicast,
		Port:        j.cfg.Port,
		MaxDatagram: wire.MaxDatagram,
		MaxRate:     j.cfg.MaxRate,
	}
	var random [4 + auth.ShareSize]byte
	if _, err := io.ReadFull(j.cfg.Rand, random[:]); err != nil {
		j.lose(now, fmt.Errorf("no random bytes: %w", err))
		return
	}
	j.join.Session = binary.BigEndian.Uint32(random[:]) | 1 // never 0
	j.join.Share = auth.Share(random[4:])
	j.state, j.deadline = JoinerJoining, now.Add(JoinTimeout)
	// A Join has one mode, so several groups come in the one that any number can.
	if j.cfg.Mode == ModeSSM && j.rp.GroupPort != 0 && len(j.cfg.Groups) == 1 && !j.unicast {
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
	j.state, j.mode, j.heard, j.ticked = JoinerActive, m.Mode, now, now
	j.announceAt(now)
}

func (j *Joiner) announceAt(now time.Time) {
	var random [2]byte
	_, _ = io.ReadFull(j.cfg.Rand, random[:]) // without it the interval has no jitter
	jitter := AnnounceJitter * time.Duration(binary.BigEndian.Uint16(random[:])) / 0xffff
	j.deadline = now.Add(AnnounceInterval - jitter)
}

// Probe takes a PROBE datagram that came from the RP's endpoint, size bytes long.
// One that is for another member of the channel is ignored.
func (j *Joiner) Probe(nonce [wire.NonceSize]byte, size int) {
	if j.state == JoinerJoining && !j.subscribing && binary.BigEndian.Uint32(nonce[:]) == j.join.Session {
		j.send(&Echo{Nonce: nonce, Size: uint16(size)})
	}
}

// Heard says that a valid datagram of the RP arrived, in mode ssm by the channel.
func (j *Joiner) Heard(now time.Time) {
	if j.state != JoinerActive {
		return
	}
	j.heard, j.backoff = now, MinBackoff
}

// Fail ends the membership because of what the RP sent.
func (j *Joiner) Fail(now time.Time, err error) {
	if j.state == JoinerConnected {
		j.send(&Leave{ReasonOf(err)})
		j.act(Left{err})
		j.state = JoinerBarred
		return
	}
	if j.state == JoinerJoining || j.state == JoinerActive {
		j.send(&Leave{ReasonOf(err)})
	}
	j.lose(now, err)
}

// fallBack leaves a silent channel and joins in mode unicast. It is the RP that is
// silent if this takes as long again.
func (j *Joiner) fallBack(now time.Time) {
	err := &Error{ReasonUnreachable, fmt.Sprintf("no datagram on the channel for %v", HeartbeatTimeout)}
	j.send(&Leave{err.Reason})
	j.act(Left{err})
	j.unicast = true
	j.start(now)
	j.deadline = now.Add(HeartbeatTimeout)
}

// lose leaves states Joining and Active for a back-off.
func (j *Joiner) lose(now time.Time, err error) {
	if j.state == JoinerJoining || j.state == JoinerActive {
		j.act(Left{err})
	}
	j.state, j.subscribing = JoinerIdle, false
	if j.wanted {
		j.state, j.deadline = JoinerBackoff, now.Add(j.backoff)
		j.backoff = min(2*j.backoff, MaxBackoff)
	}
}

// Tick does what is due. Time that passed without a Tick for longer than a
// heart-beat interval does not count as the RP's silence: it was the peer's own.
func (j *Joiner) Tick(now time.Time) {
	if j.state == JoinerActive {
		if stall := now.Sub(j.ticked); stall > HeartbeatInterval {
			j.heard = j.heard.Add(stall)
		}
		j.ticked = now
		if now.Sub(j.heard) >= HeartbeatTimeout {
			if j.mode == ModeSSM {
				j.fallBack(now)
				return
			}
			j.Fail(now, &Error{ReasonUnreachable, fmt.Sprintf("no datagram of the rp for %v", HeartbeatTimeout)})
			return
		}
	}
	if now.Before(j.deadline) {
		return
	}
	switch j.state {
	case JoinerJoining:
		j.Fail(now, &Error{ReasonUnreachable, "no welcome in time"})
	case JoinerActive:
		j.act(AnnounceDue{})
		j.announceAt(now)
	case JoinerBackoff:
		j.start(now)
	}
}

// Deadline returns when Tick is due next, zero for never.
func (j *Joiner) Deadline() time.Time {
	switch j.state {
	case JoinerJoining, JoinerBackoff:
		return j.deadline
	case JoinerActive:
		next := j.ticked.Add(HeartbeatInterval / 2)
		if j.deadline.Before(next) {
			next = j.deadline
		}
		return next
	}
	return time.Time{}
}

func (j *Joiner) send(m Message) { j.act(Send{m}) }

func (j *Joiner) act(a Action) { j.actions = append(j.actions, a) }
