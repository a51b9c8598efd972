// SPDX-License-Identifier: LGPL-3.0-or-later

// Package admission is the RP's side of mdcs/1 with one peer (SPEC 8.2). The peer's side is
// proto.Joiner.
package admission

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// SendProbe asks for a PROBE datagram of Size bytes to the peer's Port, or in mode
// ssm to that port of the channel of Group on the peer's link.
type SendProbe struct {
	Nonce [wire.NonceSize]byte
	Size  int
	Mode  proto.DeliveryMode
	Port  uint16
	Group ids.Group
}

// Admit asks for the session in the datapath. Admitted or Fail answers.
// Datagrams from the peer carry ReceiveKey, datagrams to it Join.Session and SendKey.
// Mode is what was proven.
type Admit struct {
	Join                proto.Join
	Mode                proto.DeliveryMode
	SendKey, ReceiveKey auth.Key
}

// Grant is what a peer is given with its admission.
type Grant struct {
	Session ids.Session   // that the datapath accepts datagrams of
	Channel proto.Channel // that serves the peer, zero in mode unicast
	Token   proto.Token   // resumes the session, zero for never
	Keys    []proto.GroupKey
	Marks   []proto.Mark // the sequences from which on the datapath replicates

	Rate, Burst uint32 // datagrams per second, and at once, that the peer may publish; 0 for none
}

func (g *Grant) terms() proto.Terms {
	return proto.Terms{Rate: g.Rate, Burst: g.Burst, Keys: g.Keys, Marks: g.Marks}
}

// Readmit asks for a session that the datapath kept. Resumed or Fail answers.
type Readmit struct{ Resume proto.Resume }

// Serve asks for replication to a standby session. Activated or Fail answers.
type Serve struct{ Marks []proto.Mark }

// Rest asks to stop replication to a session, which stays.
type Rest struct{}

// Refresh says that the peer announced itself.
type Refresh struct{ Counters []proto.Counter }

// Confirmed says that the peer, which is in groups, has these objects.
type Confirmed struct{ Places []proto.Place }

// KeysInstalled says that the peer installed the Rekey with this ID.
type KeysInstalled struct{ ID uint32 }

// Remove says that the session ended and must leave the datapath if it is there.
type Remove struct{ Err error }

// IsAction marks an action.
func (SendProbe) IsAction()     {}
func (Admit) IsAction()         {}
func (Readmit) IsAction()       {}
func (Serve) IsAction()         {}
func (Rest) IsAction()          {}
func (Refresh) IsAction()       {}
func (Confirmed) IsAction()     {}
func (KeysInstalled) IsAction() {}
func (Remove) IsAction()        {}

// State is the state of an Admission (SPEC 8.2).
type State uint8

// States of an Admission.
const (
	Connected State = iota // no Status yet
	Idle                   // no session
	Probing                // Join taken, endpoint unproven
	Proving                // endpoint proven, channel unproven
	Admitting              // proven, Welcome not sent
	Active                 // Welcome sent
	Barred                 // never admitted on this connection
)

func (s State) String() string {
	return [...]string{"connected", "idle", "probing", "proving", "admitting", "active", "barred"}[s]
}

// Config is what an RP offers.
type Config struct {
	Self, Remote [32]byte     // devp2p node ids
	Status       proto.Status // the RP's own; mode ssm is offered if it has a GroupPort
	Groups       []ids.Group  // served
	Lease        time.Duration
	Rand         io.Reader

	// Others returns the enode URLs of RPs that have room, for peers that this one
	// has none for; nil for none.
	Others func() []string
}

// Admission is the RP's side of one connection to a peer: it proves the endpoint, admits,
// and keeps the lease (SPEC 8.2).
//
//	connected  Status -> idle            any other message -> barred
//	idle       Join -> probing           Resume -> admitting
//	probing    ProbeAck -> admitting, for mode ssm -> proving
//	proving    ProbeAck, or the time is over -> admitting
//	admitting  Admitted or Resumed -> active
//
// Probing, proving, admitting and active have a session. It ends, and the state is idle, by a
// Leave, a violation, Fail, the end of the wait for a ProbeAck, or the end of the lease.
//
// Proving is there for mode ssm alone: the endpoint is proven, and PROBEs go to the channel;
// without a ProbeAck the peer is admitted in mode unicast. An active session is in groups or in
// standby.
//
// Invariants:
//   - at most proto.MaxProbes PROBEs go to an endpoint for a Join, and as many to the channel, none
//     before the endpoint is proven;
//   - Admit comes only after the endpoint is proven, in mode ssm the channel too; Welcome only
//     after Admitted, when the datapath replicates;
//   - a session ends with exactly one Remove;
//   - Deadline is not zero while the RP waits for the peer: in probing, proving and active.
//
// A violation by the peer, or a refusal, ends the session: Handle returns it for the log, and the
// actions hold the Leave with its reason (proto.ReasonOf), and the Remove if there was a session.
// A wrong first message bars the connection. An Admission that is barred takes everything and
// answers nothing.
type Admission struct {
	cfg     Config
	state   State
	standby bool // of Active: in no group
	join    proto.Join
	share   auth.Share
	nonce   [wire.NonceSize]byte
	channel [wire.NonceSize]byte // nonce on the channel; until there is one, the other
	probes  int
	actions []proto.Action

	deadline time.Time // next PROBE, or the end of the wait for its ProbeAck, or the lease
}

// probePauses are the pauses after each PROBE. After the last one the RP waits for the
// rest of ProbeTimeout or ChannelTimeout.
var probePauses = [proto.MaxProbes - 1]time.Duration{250 * time.Millisecond, 750 * time.Millisecond}

// New returns an Admission for a connection that was just made.
func New(cfg Config) *Admission {
	a := &Admission{cfg: cfg}
	status := cfg.Status
	a.send(&status)
	return a
}

// State returns the state.
func (a *Admission) State() State { return a.state }

// Standby reports whether the session is in standby.
func (a *Admission) Standby() bool { return a.state == Active && a.standby }

// Actions returns what is to be done since the last call.
func (a *Admission) Actions() []proto.Action {
	actions := a.actions
	a.actions = nil
	return actions
}

// Handle takes a message of the peer.
func (a *Admission) Handle(now time.Time, m proto.Message) error {
	if a.state == Barred {
		return nil
	}
	if err := a.handle(now, m); err != nil {
		a.Fail(err)
		return err
	}
	return nil
}

func (a *Admission) handle(now time.Time, m proto.Message) error {
	if status, ok := m.(*proto.Status); ok {
		return a.status(status)
	}
	if a.state == Connected {
		return proto.Unexpected("message 0x%02x before status", m.Code())
	}
	switch m := m.(type) {
	case *proto.Join:
		return a.joined(now, m)
	case *proto.ProbeAck:
		return a.probed(now, m)
	case *proto.Announce:
		if a.state == Active {
			a.deadline = now.Add(a.cfg.Lease)
			a.act(Refresh{m.Counters})
		}
	case *proto.RekeyAck:
		if a.state == Active {
			a.act(KeysInstalled{m.ID})
		}
	case *proto.Resume:
		return a.resume(m)
	case *proto.Activate:
		switch {
		case a.state == Active && !a.standby:
			return proto.Unexpected("activate of an active session")
		case a.state == Active:
			a.act(Serve{m.Marks})
		case a.state != Idle: // where it crossed our Leave
			return proto.Unexpected("activate in state %v", a.state)
		}
	case *proto.Deactivate:
		switch {
		case a.state == Active && a.standby:
			return proto.Unexpected("deactivate of a standby session")
		case a.state == Active:
			a.standby = true
			a.act(Rest{})
		case a.state != Idle:
			return proto.Unexpected("deactivate in state %v", a.state)
		}
	case *proto.Confirm:
		if a.state == Active && !a.standby { // else it crossed our Leave
			a.act(Confirmed{m.Places})
		}
	case *proto.Leave:
		a.end(fmt.Errorf("left: %v", m.Reason))
	default:
		return proto.Unexpected("message 0x%02x from a peer", m.Code())
	}
	return nil
}

func (a *Admission) status(status *proto.Status) error {
	switch {
	case a.state != Connected:
		return proto.Unexpected("second status")
	case status.Role != proto.RolePeer:
		return &proto.Error{Reason: proto.ReasonRole, Detail: fmt.Sprintf("status of an %v where a peer was expected", status.Role)}
	case status.NetworkID != a.cfg.Status.NetworkID || status.Genesis != a.cfg.Status.Genesis:
		return &proto.Error{Reason: proto.ReasonChain, Detail: fmt.Sprintf("peer of network %d with genesis %x", status.NetworkID, status.Genesis[:4])}
	}
	a.state = Idle
	return nil
}

// served returns the groups in order, each once. Any group that is not served is an error: a
// peer would not learn which of its groups it is a member of.
func (a *Admission) served(groups []ids.Group) ([]ids.Group, error) {
	for _, g := range groups {
		if !slices.Contains(a.cfg.Groups, g) {
			return nil, &proto.Error{Reason: proto.ReasonGroup, Detail: fmt.Sprintf("group %08x is not served", g)}
		}
	}
	groups = slices.Clone(groups)
	slices.Sort(groups)
	return slices.Compact(groups), nil
}

func (a *Admission) resume(m *proto.Resume) error {
	if a.state != Idle {
		return proto.Unexpected("resume in state %v", a.state)
	}
	groups, err := a.served(m.Groups)
	if err != nil {
		return err
	}
	again := *m
	again.Groups = groups
	a.state = Admitting
	a.act(Readmit{again})
	return nil
}

func (a *Admission) joined(now time.Time, m *proto.Join) error {
	if a.state != Idle {
		return proto.Unexpected("join in state %v", a.state)
	}
	groups, err := a.served(m.Groups)
	if err != nil {
		return err
	}
	if m.Mode > proto.ModeSSM {
		return &proto.Error{Reason: proto.ReasonMode, Detail: fmt.Sprintf("delivery mode %d", m.Mode)}
	}
	if _, err := io.ReadFull(a.cfg.Rand, a.share[:]); err != nil {
		return fmt.Errorf("no random bytes: %w", err)
	}
	a.join = *m
	a.join.Groups = groups
	if a.nonce, err = a.newNonce(); err != nil {
		return err
	}
	a.channel = a.nonce
	a.state, a.probes = Probing, 0
	a.sendProbe(now)
	return nil
}

// newNonce draws a nonce for the Join: on a channel it arrives at other peers, too,
// which must not take it for theirs.
func (a *Admission) newNonce() (nonce [wire.NonceSize]byte, err error) {
	if _, err := io.ReadFull(a.cfg.Rand, nonce[4:]); err != nil {
		return nonce, fmt.Errorf("no random bytes: %w", err)
	}
	binary.BigEndian.PutUint32(nonce[:], uint32(a.join.Session))
	return nonce, nil
}

func (a *Admission) sendProbe(now time.Time) {
	probe := SendProbe{Nonce: a.nonce, Size: int(a.join.ProbeSize), Port: a.join.Port}
	if a.state == Proving {
		probe.Nonce, probe.Mode, probe.Port, probe.Group = a.channel, proto.ModeSSM, a.cfg.Status.GroupPort, a.join.Groups[0]
	}
	a.act(probe)
	a.probes++
	a.ProbeLeft(now)
}

// ProbeLeft says when the PROBE left that was asked for last, if that took a while: a slow
// RP tries as often, and waits for the ProbeAck as long.
func (a *Admission) ProbeLeft(now time.Time) {
	var wait time.Duration
	switch a.state {
	case Probing:
		wait = proto.ProbeTimeout
	case Proving:
		wait = proto.ChannelTimeout
	default:
		return
	}
	if a.probes < proto.MaxProbes {
		a.deadline = now.Add(probePauses[a.probes-1])
		return
	}
	for _, pause := range probePauses {
		wait -= pause
	}
	a.deadline = now.Add(wait)
}

func (a *Admission) probed(now time.Time, m *proto.ProbeAck) error {
	switch {
	case a.state == Idle: // it crossed our Leave
	case m.Nonce != a.nonce && m.Nonce != a.channel:
		return proto.Unexpected("ProbeAck with a nonce that was not sent")
	case a.state == Proving && m.Nonce == a.channel:
		mode := proto.ModeSSM
		if m.Size != a.join.ProbeSize {
			mode = proto.ModeUnicast
		}
		a.admit(mode)
	case a.state != Probing: // of a second PROBE: far peers answer it after the first
	case m.Size != a.join.ProbeSize:
		return &proto.Error{Reason: proto.ReasonUnreachable, Detail: fmt.Sprintf("probe of %d bytes arrived with %d", a.join.ProbeSize, m.Size)}
	case a.wantsChannel():
		var err error
		if a.channel, err = a.newNonce(); err != nil {
			return err
		}
		a.state, a.probes = Proving, 0
		a.sendProbe(now)
	default:
		a.admit(proto.ModeUnicast)
	}
	return nil
}

// wantsChannel reports whether a channel is wished and offered.
func (a *Admission) wantsChannel() bool {
	return a.join.Mode == proto.ModeSSM && !a.join.Standby && len(a.join.Groups) == 1 && a.cfg.Status.GroupPort != 0
}

func (a *Admission) admit(mode proto.DeliveryMode) {
	send, receive := auth.HopKeys(a.cfg.Self, a.cfg.Remote, a.share, a.join.Share)
	a.state = Admitting
	a.act(Admit{Join: a.join, Mode: mode, SendKey: send, ReceiveKey: receive})
}

// Admitted sends the Welcome. The datapath must already replicate to the peer, in
// mode ssm to the channel.
func (a *Admission) Admitted(now time.Time, g Grant) {
	if a.state != Admitting {
		return
	}
	welcome := &proto.Welcome{
		Session: g.Session,
		Share:   a.share,
		Lease:   uint32(a.cfg.Lease / time.Second),
		Rate:    g.Rate,
		Burst:   g.Burst,
		Channel: g.Channel,
		Token:   g.Token,
		Keys:    g.Keys,
		Marks:   g.Marks,
	}
	if g.Channel.Session != 0 {
		welcome.Mode = proto.ModeSSM
	}
	a.send(welcome)
	a.state, a.standby, a.deadline = Active, a.join.Standby, now.Add(a.cfg.Lease)
}

// Resumed answers Readmit: the session goes on, in groups or in standby.
func (a *Admission) Resumed(now time.Time, g Grant, standby bool) {
	if a.state != Admitting {
		return
	}
	a.send(&proto.Resumed{Standby: standby, Lease: uint32(a.cfg.Lease / time.Second), Terms: g.terms()})
	a.state, a.standby, a.deadline = Active, standby, now.Add(a.cfg.Lease)
}

// Activated answers Serve. The datapath must already replicate to the peer.
func (a *Admission) Activated(g Grant) {
	if !a.Standby() {
		return
	}
	a.send(&proto.Activated{Terms: g.terms()})
	a.standby = false
}

// Redirect tells a member that the RP will stop, and of other RPs.
func (a *Admission) Redirect() {
	if a.state == Active {
		a.send(&proto.Redirect{URLs: a.others()})
	}
}

func (a *Admission) others() []string {
	if a.cfg.Others == nil {
		return nil
	}
	urls := a.cfg.Others()
	return urls[:min(len(urls), proto.MaxRedirect)]
}

// Rekey sends group keys to a member and reports whether an acknowledgement is
// due; a peer that is not a member gets the keys with its Welcome.
func (a *Admission) Rekey(m *proto.Rekey) bool {
	if a.state != Active {
		return false
	}
	a.send(m)
	return true
}

// Tell sends a Counters or a Receipt to a member and reports whether it did. Counters
// are for who is not in standby.
func (a *Admission) Tell(m proto.Message) bool {
	if _, counters := m.(*proto.Counters); a.state != Active || counters && a.standby {
		return false
	}
	a.send(m)
	return true
}

// Fail ends the session because of what the peer did, or because of a limit.
func (a *Admission) Fail(err error) {
	connected := a.state == Connected
	if reason := proto.ReasonOf(err); reason == proto.ReasonFull || reason == proto.ReasonDraining {
		if urls := a.others(); len(urls) > 0 {
			a.send(&proto.Redirect{URLs: urls})
		}
	}
	a.send(&proto.Leave{Reason: proto.ReasonOf(err)})
	a.end(err)
	if connected {
		a.state = Barred
	}
}

// end goes back to Idle.
func (a *Admission) end(err error) {
	switch a.state {
	case Probing, Proving, Admitting, Active:
		a.act(Remove{err})
	}
	a.state = Idle
}

// Tick does what is due.
func (a *Admission) Tick(now time.Time) {
	if due := a.Deadline(); due.IsZero() || now.Before(due) {
		return
	}
	switch {
	case a.state == Active:
		a.Fail(&proto.Error{Reason: proto.ReasonExpired, Detail: fmt.Sprintf("no announce for %v", a.cfg.Lease)})
	case a.probes < proto.MaxProbes:
		a.sendProbe(now)
	case a.state == Probing:
		a.Fail(&proto.Error{Reason: proto.ReasonUnreachable, Detail: fmt.Sprintf("no ProbeAck of %d probes", a.probes)})
	case a.state == Proving:
		a.admit(proto.ModeUnicast)
	}
}

// Deadline returns when Tick is due next, zero for never.
func (a *Admission) Deadline() time.Time {
	switch a.state {
	case Probing, Proving, Active:
		return a.deadline
	}
	return time.Time{}
}

func (a *Admission) send(m proto.Message) { a.act(proto.Send{Message: m}) }

func (a *Admission) act(x proto.Action) { a.actions = append(a.actions, x) }
