// SPDX-License-Identifier: LGPL-3.0-or-later

package mesh

import (
	"fmt"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/receipts"
)

// Times of the protocol (SPEC section 11).
const (
	HelloTimeout = 5 * time.Second         // connection to Hello
	AckTimeout   = MaxWait + 5*time.Second // Keys to KeysAck
)

// Action is something that a Link wants done. Actions are done in order.
type Action interface{ action() }

// Send asks for a message to the neighbour.
type Send struct{ Message Message }

// Up says that the neighbour is known. Its datagrams are to be accepted from now
// on: they carry the own Session and ReceiveKey, those to it Hello.Session and
// SendKey.
type Up struct {
	Hello               Hello
	SendKey, ReceiveKey auth.Key
}

// Install asks to install keys that the neighbour offers, and to call Installed when
// all who need them have them or Wait is over.
type Install struct {
	ID   uint32
	Wait time.Duration
	Keys []proto.GroupKey
}

// Acked says that the neighbour, and all behind it, have the keys of an offer.
type Acked struct{ ID uint32 }

// Reported brings receipts of the neighbour.
type Reported struct{ Reports []receipts.Report }

// ByeError is the error of a link that the neighbour ended.
type ByeError struct{ Reason proto.Reason }

func (e ByeError) Error() string { return fmt.Sprintf("ended by the neighbour: %v", e.Reason) }

// Down says that the link ended. It is the last action; when Up came before it,
// the session must leave the datapath.
type Down struct{ Err error }

func (Send) action()     {}
func (Up) action()       {}
func (Install) action()  {}
func (Acked) action()    {}
func (Reported) action() {}
func (Down) action()     {}

// State is the state of a Link (SPEC section 12).
type State uint8

// States of a Link.
const (
	Connected State = iota // no Hello yet
	Open                   // the neighbour is known
	Ended                  // for good; the connection is to be closed
)

func (s State) String() string {
	return [...]string{"connected", "open", "ended"}[s]
}

// Config is one RP's side of a link.
type Config struct {
	Self, Remote [32]byte    // devp2p node ids
	Hello        Hello       // the own
	Groups       []ids.Group // served; keys of other groups are ignored
}

// Link is the state of one connection to an RP neighbour. Both sides do the same:
// Hello, then offers of keys, each of which is acknowledged.
//
// A violation by the neighbour ends the link: Handle returns it for the log, the
// actions hold the Bye and the Down.
type Link struct {
	cfg     Config
	state   State
	actions []Action

	hellodue time.Time // end of state Connected
	offers   []offer   // own, not acknowledged, oldest first
	lastID   uint32    // of an own offer
	pending  []uint32  // the neighbour's offers that are not acknowledged yet
}

type offer struct {
	id  uint32
	due time.Time
}

// NewLink returns the Link of a connection that was just made.
func NewLink(now time.Time, cfg Config) *Link {
	l := &Link{cfg: cfg, hellodue: now.Add(HelloTimeout)}
	hello := cfg.Hello
	l.send(&hello)
	return l
}

// State returns the state.
func (l *Link) State() State { return l.state }

// Actions returns what is to be done since the last call.
func (l *Link) Actions() []Action {
	actions := l.actions
	l.actions = nil
	return actions
}

// Handle takes a message of the neighbour.
func (l *Link) Handle(m Message) error {
	if l.state == Ended {
		return nil
	}
	if err := l.handle(m); err != nil {
		l.Fail(err)
		return err
	}
	return nil
}

func (l *Link) handle(m Message) error {
	switch m := m.(type) {
	case *Hello:
		return l.opened(m)
	case *Bye:
		l.end(ByeError{m.Reason})
		return nil
	}
	if l.state == Connected {
		return proto.Unexpected("message 0x%02x before Hello", m.Code())
	}
	switch m := m.(type) {
	case *Keys:
		return l.offered(m)
	case *KeysAck:
		return l.acked(m.ID)
	case *Report:
		l.act(Reported{m.Reports})
		return nil
	}
	return proto.Unexpected("message 0x%02x", m.Code())
}

func (l *Link) opened(m *Hello) error {
	switch {
	case l.state != Connected:
		return proto.Unexpected("second Hello")
	case m.NetworkID != l.cfg.Hello.NetworkID || m.Genesis != l.cfg.Hello.Genesis:
		return &proto.Error{
			Reason: proto.ReasonChain,
			Detail: fmt.Sprintf("rp of network %d with genesis %x", m.NetworkID, m.Genesis[:4]),
		}
	case m.Incarnation == l.cfg.Hello.Incarnation:
		return proto.Unexpected("incarnation %08x is our own", m.Incarnation)
	case !linkstate.Belongs(linkstate.IDOf(l.cfg.Remote), m.Incarnation):
		return proto.Unexpected("incarnation %08x is not one of it", m.Incarnation)
	}
	l.state = Open
	send, receive := auth.HopKeys(l.cfg.Self, l.cfg.Remote, l.cfg.Hello.Share, m.Share)
	l.act(Up{Hello: *m, SendKey: send, ReceiveKey: receive})
	return nil
}

func (l *Link) offered(m *Keys) error {
	if len(l.pending) >= MaxOffers {
		return proto.Unexpected("%d offers of keys at once", len(l.pending)+1)
	}
	if slices.Contains(l.pending, m.ID) {
		return proto.Unexpected("second offer %d of keys", m.ID)
	}
	keys := slices.DeleteFunc(slices.Clone(m.Keys), func(k proto.GroupKey) bool {
		return !slices.Contains(l.cfg.Groups, k.Group)
	})
	l.pending = append(l.pending, m.ID)
	l.act(Install{ID: m.ID, Wait: time.Duration(m.Wait) * time.Millisecond, Keys: keys})
	return nil
}

// Installed says that the keys of an Install are where they have to be, or that the
// time for it is over.
func (l *Link) Installed(id uint32) {
	i := slices.Index(l.pending, id)
	if l.state == Ended || i < 0 {
		return
	}
	l.pending = slices.Delete(l.pending, i, i+1)
	l.send(&KeysAck{id})
}

// Room reports whether Offer would send keys.
func (l *Link) Room() bool { return l.state == Open && len(l.offers) < MaxOffers }

// Offer sends keys, at most MaxKeys, and returns the offer's ID for Acked. It returns
// false when the neighbour is not known yet, or has not acknowledged too many offers:
// after an Acked there is room again. Wait is at most MaxWait.
func (l *Link) Offer(now time.Time, wait time.Duration, keys []proto.GroupKey) (id uint32, ok bool) {
	if !l.Room() {
		return 0, false
	}
	l.lastID++
	l.offers = append(l.offers, offer{l.lastID, now.Add(AckTimeout)})
	l.send(&Keys{ID: l.lastID, Wait: uint32(wait.Milliseconds()), Keys: keys})
	return l.lastID, true
}

func (l *Link) acked(id uint32) error {
	i := slices.IndexFunc(l.offers, func(o offer) bool { return o.id == id })
	if i < 0 {
		return proto.Unexpected("acknowledgement of keys %d", id)
	}
	l.offers = slices.Delete(l.offers, i, i+1)
	l.act(Acked{id})
	return nil
}

// Fail ends the link because of what the neighbour did, or with any other error
// because this RP wants no more.
func (l *Link) Fail(err error) {
	if l.state == Ended {
		return
	}
	l.send(&Bye{proto.ReasonOf(err)})
	l.end(err)
}

func (l *Link) end(err error) {
	l.state = Ended
	l.act(Down{err})
}

// Tick does what is due.
func (l *Link) Tick(now time.Time) {
	due := l.Deadline()
	if due.IsZero() || now.Before(due) {
		return
	}
	waited := fmt.Sprintf("no Hello within %v", HelloTimeout)
	if l.state != Connected {
		waited = fmt.Sprintf("keys %d not acknowledged within %v", l.offers[0].id, AckTimeout)
	}
	l.Fail(&proto.Error{Reason: proto.ReasonUnreachable, Detail: waited})
}

// Deadline returns when Tick is due next, zero for never.
func (l *Link) Deadline() time.Time {
	switch {
	case l.state == Connected:
		return l.hellodue
	case l.state != Ended && len(l.offers) > 0:
		return l.offers[0].due
	}
	return time.Time{}
}

func (l *Link) send(m Message) { l.act(Send{m}) }

func (l *Link) act(a Action) { l.actions = append(l.actions, a) }
