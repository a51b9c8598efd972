// SPDX-License-Identifier: LGPL-3.0-or-later

// Package proto is the RP-Peer protocol, devp2p capability mdcs/1 (SPEC section
// 7): its messages with their limits, and Joiner, the state machine of a peer. It does
// no I/O: it takes the time and what arrived, and returns what to do. The state machine
// of a replication point is in rp/admission.
package proto

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/codec"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// The devp2p capability.
const (
	Name    = "mdcs"
	Version = 1
	Length  = 32 // message codes reserved
)

// Message codes (SPEC 7.1).
const (
	StatusMsg   = 0x00
	JoinMsg     = 0x01
	ProbeAckMsg = 0x02
	WelcomeMsg  = 0x03
	AnnounceMsg = 0x04
	RekeyMsg    = 0x05
	RekeyAckMsg = 0x06
	LeaveMsg    = 0x07
	HaveMsg     = 0x08

	ResumeMsg     = 0x09
	ResumedMsg    = 0x0a
	ActivateMsg   = 0x0b
	ActivatedMsg  = 0x0c
	DeactivateMsg = 0x0d
	RedirectMsg   = 0x0e

	CountersMsg = 0x0f
	ConfirmMsg  = 0x10
	ReceiptMsg  = 0x11
)

// Limits on received messages (SPEC section 11).
const (
	MaxMessage  = 128 << 10 // bytes of one message's RLP
	MaxGroups   = 16        // groups in a Join
	MaxKeys     = 2048      // group keys in a Welcome or a Rekey
	MaxMarks    = 2048      // marks in a Welcome, Announce or Have
	MaxMissing  = 64        // missing sequences in a mark of Have
	MaxRedirect = 8         // enode URLs in a Redirect
	MaxURL      = 256       // bytes of one of them
	MaxOperator = 32        // bytes of an operator's name
	MaxLease    = 10 * time.Minute
	MinLease    = 5 * time.Second
	MinProbe    = 256 // bytes of a PROBE

	MaxRPs    = 64 // RPs in a Counters
	MaxPlaces = 64 // objects in a Confirm or a Receipt
)

// Times of the protocol (SPEC section 11).
const (
	Lease             = 45 * time.Second // granted by an RP unless configured
	AnnounceInterval  = 15 * time.Second // a third of the lease, and not longer
	AnnounceJitter    = 5                // an interval is shorter by up to a fifth of it
	JoinTimeout       = 5 * time.Second  // Join to Welcome
	HeartbeatInterval = 500 * time.Millisecond
	HeartbeatTimeout  = 1500 * time.Millisecond // silence after which an RP is lost
	ProbeTimeout      = 3 * time.Second         // first PROBE to its ProbeAck, at the RP, if no PROBE is late
	ChannelTimeout    = 1500 * time.Millisecond // the same on a channel
	MaxProbes         = 3                       // datagrams sent to an unproven endpoint, and for a Join on a channel
	MinBackoff        = 500 * time.Millisecond  // between attempts to join
	MaxBackoff        = 30 * time.Second
	DeafBackoff       = 10 * time.Second // after an RP took nothing, twice as long each time
	MaxDeafBackoff    = 16 * time.Minute
	ActivateTimeout   = time.Second            // Activate to Activated
	SuspectTimeout    = 750 * time.Millisecond // silence that loses an RP which does not acknowledge either
	DetachTimeout     = 20 * time.Second       // without a connection, until a membership ends
	DetachSilence     = 6 * time.Second        // without a datagram meanwhile
)

// Times of counters and receipts (SPEC section 11).
const (
	CountersInterval = 5 * time.Second // least time between two Counters of a group
	CountersJitter   = time.Second     // by which a Counters comes later, at random
	MinConfirm       = 50 * time.Millisecond
	MaxConfirm       = 250 * time.Millisecond // from a datagram that asks to the Confirm, at random
)

// TokenSize is the length of the token by which a member resumes, in bytes.
const TokenSize = 16

// TopicTxs is the topic of transactions: an object is one transaction in its
// canonical encoding (EIP-2718), so the object id begins its hash.
const TopicTxs = "txs"

// GroupID returns the group of a topic on a chain: the first 4 bytes of
// keccak256("mdcs/1 group" || network id (8 bytes) || genesis hash || topic).
func GroupID(networkID uint64, genesis [32]byte, topic string) ids.Group {
	id := binary.BigEndian.AppendUint64([]byte("mdcs/1 group"), networkID)
	return ids.Group(binary.BigEndian.Uint32(crypto.Keccak256(id, genesis[:], []byte(topic))))
}

// GroupAddr returns the multicast address of a group in mode ssm: FF3E::/32, the
// source-specific range of global scope (RFC 4607), with an id from the half that
// RFC 3307 leaves to hosts.
func GroupAddr(group ids.Group) netip.Addr {
	b := [16]byte{0: 0xff, 1: 0x3e}
	binary.BigEndian.PutUint32(b[12:], uint32(group|1<<31))
	return netip.AddrFrom16(b)
}

// Role says what a node is on this connection.
type Role uint8

// Roles of SPEC 7.2.
const (
	RolePeer Role = 1
	RoleRP   Role = 2
)

func (r Role) String() string {
	switch r {
	case RolePeer:
		return "peer"
	case RoleRP:
		return "rp"
	}
	return fmt.Sprintf("role-%d", uint8(r))
}

// DeliveryMode is how copies reach a peer.
type DeliveryMode uint8

// Modes of delivery (SPEC 7.9).
const (
	ModeUnicast DeliveryMode = 0 // a copy for each subscriber
	ModeSSM     DeliveryMode = 1 // a copy for each link, by source-specific multicast
)

func (m DeliveryMode) String() string {
	switch m {
	case ModeUnicast:
		return "unicast"
	case ModeSSM:
		return "ssm"
	}
	return fmt.Sprintf("mode-%d", uint8(m))
}

// Reason says why a session ended (SPEC 7.8).
type Reason uint8

// Reasons of Leave.
const (
	ReasonQuit        Reason = 0 // the sender stops or needs the session no more
	ReasonMalformed   Reason = 1 // a message could not be decoded or breaks a limit
	ReasonUnexpected  Reason = 2 // a message is not allowed in this state
	ReasonChain       Reason = 3 // other network id or genesis
	ReasonRole        Reason = 4 // the roles do not fit
	ReasonGroup       Reason = 5 // one of the groups is not served
	ReasonFull        Reason = 6 // a limit of the RP is reached
	ReasonUnreachable Reason = 7 // no ProbeAck came back
	ReasonExpired     Reason = 8 // the lease ran out
	ReasonMode        Reason = 9 // delivery mode not offered

	ReasonSession  Reason = 10 // nothing to resume
	ReasonDenied   Reason = 11 // not on the RP's list
	ReasonDraining Reason = 12 // the RP is about to stop
)

var reasonNames = [...]string{"quit", "malformed message", "unexpected message", "other chain", "role does not fit",
	"group not served", "full", "endpoint unreachable", "lease expired", "delivery mode not offered",
	"session not known", "not on the list", "draining"}

func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason-%d", uint8(r))
}

// Error is a violation of the protocol by the other side. It ends the mdcs
// session, never the devp2p connection.
type Error struct {
	Reason Reason
	Detail string
}

func (e *Error) Error() string { return fmt.Sprintf("%v: %s", e.Reason, e.Detail) }

// ReasonOf returns the reason to send in a Leave for err.
func ReasonOf(err error) Reason {
	if violation, ok := errors.AsType[*Error](err); ok {
		return violation.Reason
	}
	if _, ok := errors.AsType[*codec.Error](err); ok {
		return ReasonMalformed
	}
	return ReasonQuit
}

// IsViolation reports whether err says that the other side broke the protocol: it is an *Error, or
// the *codec.Error of a message that is none.
func IsViolation(err error) bool {
	_, broken := errors.AsType[*Error](err)
	_, malformed := errors.AsType[*codec.Error](err)
	return broken || malformed
}

// Unexpected returns an *Error for a message that is not allowed in this state. Detail is format with args.
func Unexpected(format string, args ...any) error {
	return &Error{ReasonUnexpected, fmt.Sprintf(format, args...)}
}

// Message is one message of the capability.
type Message interface {
	codec.Message
	check() error // that it keeps its limits
}

// Status is the first message, sent by both sides.
type Status struct {
	Role        Role
	NetworkID   uint64
	Genesis     [32]byte
	Incarnation ids.Incarnation // of an RP, 0 for a peer
	DataPort    uint16          // UDP port of an RP, 0 for a peer
	GroupPort   uint16          // UDP port of an RP's channels, 0 without mode ssm and for a peer
	Operator    string          // who runs an RP, "" when not told and for a peer
}

// Join asks an RP for membership. The endpoint is the address of the RLPx
// connection and Port.
type Join struct {
	Groups    []ids.Group
	Publish   bool
	Standby   bool         // proven and keyed, but in no group until Activate
	Mode      DeliveryMode // a wish: an RP that cannot serve it serves in unicast
	Port      uint16
	ProbeSize uint16      // bytes of UDP payload of the PROBE that proves the endpoint; copies may be larger
	MaxRate   uint64      // bytes per second that the peer takes, 0: no limit
	Session   ids.Session // index that datagrams to the peer must carry
	Share     auth.Share  // the peer's part of the hop keys
}

// ProbeAck returns the nonce of a PROBE and the length of the datagram it came in. A
// nonce begins with the session index of the Join that it is for.
type ProbeAck struct {
	Nonce [wire.NonceSize]byte
	Size  uint16
}

// GroupKey is a payload key of (ingress RP, group, epoch).
type GroupKey struct {
	Ingress ids.Incarnation
	Group   ids.Group
	Epoch   uint8
	Active  bool // the epoch in which to publish by that ingress RP
	Key     auth.Key
}

// Stream returns the stream whose payload key it is.
func (k *GroupKey) Stream() ids.Stream { return ids.Stream{Ingress: k.Ingress, Group: k.Group} }

// Mark is a sequence of (ingress RP, group): what comes after it is delivered.
type Mark struct {
	Ingress  ids.Incarnation
	Group    ids.Group
	Sequence uint64
}

// Stream returns the stream of the sequence.
func (m *Mark) Stream() ids.Stream { return ids.Stream{Ingress: m.Ingress, Group: m.Group} }

// Channel is how the datagrams of a multicast channel are known. All members that
// it serves share it.
type Channel struct {
	Session ids.Session // index that they carry
	Key     auth.Key    // hop key
}

// Welcome admits a peer. It is sent after the RP began to replicate to it.
type Welcome struct {
	Session ids.Session // index that datagrams to the RP must carry
	Share   auth.Share  // the RP's part of the hop keys
	Lease   uint32      // seconds
	Rate    uint32      // datagrams per second that the peer may publish, 0: none
	Burst   uint32      // datagrams that it may publish at once, 0 with Rate
	Mode    DeliveryMode
	Channel Channel // zero in mode unicast
	Token   Token   // resumes the session, zero when nothing of it outlives the RP's process
	Keys    []GroupKey
	Marks   []Mark
}

// Token proves to an RP that it admitted a session, also to an RP that forgot it.
type Token [TokenSize]byte

// Resume asks an RP that lost the connection, or died, to go on with a session. The
// endpoint is as it was: the address of the RLPx connection, and Port.
type Resume struct {
	Token   Token
	Session ids.Session // of the Welcome
	Port    uint16
	Groups  []ids.Group
	Publish bool
}

// Resumed says that the session goes on as it was.
type Resumed struct {
	Standby bool   // it is in no group
	Lease   uint32 // seconds
	Terms
}

// Terms is what an RP tells who goes on with a session.
type Terms struct {
	Rate, Burst uint32 // as in Welcome
	Keys        []GroupKey
	Marks       []Mark // the newest sequences that the RP knows
}

// Activate asks for replication to a standby session. What is newer than the marks
// may be replayed.
type Activate struct {
	Marks []Mark
}

// Activated says that the RP replicates to the session.
type Activated struct{ Terms }

// Deactivate makes a standby session of one in groups.
type Deactivate struct{}

// Redirect names other RPs, by their enode URLs, to which a peer may turn. To a
// member it says that the RP will stop.
type Redirect struct {
	URLs []string
}

// Counters says how many members a group has.
type Counters struct {
	Group   ids.Group
	Members uint64 // at all RPs
	Here    uint64 // at the sender
	RPs     []RPMembers
}

// RPMembers is the members at an RP neighbour and behind it, in the tree of the
// sender. An RP is named by the first 8 bytes of its devp2p node id.
type RPMembers struct {
	RP      uint64
	Members uint64
}

// Place is that of a datagram in the stream of (ingress RP, group).
type Place struct {
	Ingress  ids.Incarnation
	Group    ids.Group
	Sequence uint64
}

// Confirm says that the sender has the objects about which these datagrams asked.
type Confirm struct {
	Places []Place
}

// Receipt tells a publisher who has its objects.
type Receipt struct {
	Objects []ObjectReceipt
}

// ObjectReceipt is what RPs say of one object. It replaces what was said before of the
// same Place. The publisher itself counts nowhere.
type ObjectReceipt struct {
	Place            // of the datagram that asked
	ObjectID  uint64 // of that datagram
	Members   uint64 // of the group at all RPs, when it was replicated
	Sent      uint32 // members that RPs on the tree had at that time
	Confirmed uint32 // of these, how many confirmed
}

// Counter is what a peer counted of (ingress RP, group) since it joined.
type Counter struct {
	Ingress    ids.Incarnation
	Group      ids.Group
	Received   uint64
	Lost       uint64
	Duplicates uint64
}

// Stream returns the stream that was counted.
func (c *Counter) Stream() ids.Stream { return ids.Stream{Ingress: c.Ingress, Group: c.Group} }

// Announce refreshes the lease.
type Announce struct {
	Counters []Counter
}

// Rekey installs group keys and retires ingress RPs. It is acknowledged.
type Rekey struct {
	ID      uint32
	Keys    []GroupKey
	Retired []ids.Incarnation // ingress RPs that are gone
}

// RekeyAck says that the Rekey with this ID is installed.
type RekeyAck struct {
	ID uint32
}

// Leave ends the session; the connection may start another.
type Leave struct {
	Reason Reason
}

// HaveMark says which sequences of (ingress RP, group) the sender has delivered:
// all from First up to but without Next, except those in Missing.
type HaveMark struct {
	Ingress ids.Incarnation
	Group   ids.Group
	First   uint64
	Next    uint64
	Missing []uint64 // ascending, First <= each < Next
}

// Stream returns the stream of the sequences.
func (m *HaveMark) Stream() ids.Stream { return ids.Stream{Ingress: m.Ingress, Group: m.Group} }

// Covers reports whether the sender has delivered seq.
func (m *HaveMark) Covers(seq uint64) bool {
	if seq < m.First || seq >= m.Next {
		return false
	}
	for _, missing := range m.Missing {
		if missing == seq {
			return false
		}
	}
	return true
}

// Have is exchanged between two peers. Covered is false when the sender has no
// RP at present, which withdraws its earlier marks. Whole says that there are no
// others than Marks; else those of other streams are as they were.
type Have struct {
	Covered bool
	Whole   bool
	Marks   []HaveMark
}

// Code returns the message's code.
func (*Status) Code() uint64   { return StatusMsg }
func (*Join) Code() uint64     { return JoinMsg }
func (*ProbeAck) Code() uint64 { return ProbeAckMsg }
func (*Welcome) Code() uint64  { return WelcomeMsg }
func (*Announce) Code() uint64 { return AnnounceMsg }
func (*Rekey) Code() uint64    { return RekeyMsg }
func (*RekeyAck) Code() uint64 { return RekeyAckMsg }
func (*Leave) Code() uint64    { return LeaveMsg }
func (*Have) Code() uint64     { return HaveMsg }

func (*Resume) Code() uint64     { return ResumeMsg }
func (*Resumed) Code() uint64    { return ResumedMsg }
func (*Activate) Code() uint64   { return ActivateMsg }
func (*Activated) Code() uint64  { return ActivatedMsg }
func (*Deactivate) Code() uint64 { return DeactivateMsg }
func (*Redirect) Code() uint64   { return RedirectMsg }

func (*Counters) Code() uint64 { return CountersMsg }
func (*Confirm) Code() uint64  { return ConfirmMsg }
func (*Receipt) Code() uint64  { return ReceiptMsg }

func (m *Status) check() error {
	if err := codec.AtMost("operator", len(m.Operator), MaxOperator); err != nil {
		return err
	}
	switch m.Role {
	case RolePeer:
		return nil
	case RoleRP:
		return cmp.Or(codec.NotZero("incarnation", m.Incarnation), codec.NotZero("data port", m.DataPort))
	}
	return codec.Wrong("role", uint8(m.Role), "1 or 2")
}

func (m *Join) check() error {
	if m.ProbeSize < MinProbe || m.ProbeSize > wire.MaxDatagram {
		return codec.Wrong("size of the PROBE", m.ProbeSize, "%d to %d", MinProbe, wire.MaxDatagram)
	}
	return cmp.Or(checkGroups(m.Groups), codec.NotZero("port", m.Port), codec.NotZero("session index", m.Session))
}

func (m *ProbeAck) check() error { return nil }

func (m *Welcome) check() error {
	if m.Mode > ModeSSM {
		return codec.Wrong("delivery mode", uint8(m.Mode), "0 or 1")
	}
	if (m.Mode == ModeSSM) != (m.Channel.Session != 0) {
		return codec.Wrong("session index of the channel", fmt.Sprintf("%08x", m.Channel.Session), "0 in mode unicast alone")
	}
	terms := Terms{m.Rate, m.Burst, m.Keys, m.Marks}
	return cmp.Or(codec.NotZero("session index", m.Session), checkLease(m.Lease), terms.check())
}

func (m *Resume) check() error {
	return cmp.Or(checkGroups(m.Groups), codec.NotZero("port", m.Port), codec.NotZero("session index", m.Session))
}

func (m *Resumed) check() error { return cmp.Or(checkLease(m.Lease), m.Terms.check()) }

func (m *Terms) check() error {
	if (m.Rate == 0) != (m.Burst == 0) {
		return codec.Wrong("burst", m.Burst, "0 with a rate of 0 alone, which is %d", m.Rate)
	}
	return cmp.Or(codec.AtMost("group keys", len(m.Keys), MaxKeys), codec.AtMost("marks", len(m.Marks), MaxMarks))
}

func (m *Activate) check() error { return codec.AtMost("marks", len(m.Marks), MaxMarks) }

func (m *Activated) check() error { return m.Terms.check() }

func (m *Deactivate) check() error { return nil }

func (m *Redirect) check() error {
	for i, url := range m.URLs {
		if err := codec.AtMost("length", len(url), MaxURL); err != nil {
			return codec.In(err, "enode URLs[%d]", i)
		}
	}
	return codec.AtMost("enode URLs", len(m.URLs), MaxRedirect)
}

func (m *Counters) check() error { return codec.AtMost("RPs", len(m.RPs), MaxRPs) }

func (m *Confirm) check() error { return codec.AtMost("places", len(m.Places), MaxPlaces) }

func (m *Receipt) check() error {
	for i, o := range m.Objects {
		if o.Confirmed > o.Sent {
			return codec.In(codec.Wrong("confirmed", o.Confirmed, "at most %d as sent", o.Sent), "objects[%d]", i)
		}
	}
	return codec.AtMost("objects", len(m.Objects), MaxPlaces)
}

func (m *Announce) check() error { return codec.AtMost("counters", len(m.Counters), MaxMarks) }

func (m *Rekey) check() error {
	return cmp.Or(codec.AtMost("group keys", len(m.Keys), MaxKeys), codec.AtMost("retired ingress RPs", len(m.Retired), MaxKeys))
}

func (m *RekeyAck) check() error { return nil }

func (m *Leave) check() error { return nil }

func (m *Have) check() error {
	for i := range m.Marks {
		if err := m.Marks[i].check(); err != nil {
			return codec.In(err, "marks[%d]", i)
		}
	}
	return codec.AtMost("marks", len(m.Marks), MaxMarks)
}

func (m *HaveMark) check() error {
	if m.First > m.Next {
		return codec.Wrong("first", m.First, "at most %d as next", m.Next)
	}
	for i, seq := range m.Missing {
		if seq < m.First || seq >= m.Next || (i > 0 && seq <= m.Missing[i-1]) {
			return codec.Wrong("missing", seq, "ascending numbers from %d on, less than %d", m.First, m.Next)
		}
	}
	return codec.AtMost("missing", len(m.Missing), MaxMissing)
}

func checkGroups(groups []ids.Group) error {
	if len(groups) == 0 || len(groups) > MaxGroups {
		return codec.Wrong("groups", len(groups), "1 to %d", MaxGroups)
	}
	return nil
}

// checkLease checks a lease in seconds.
func checkLease(seconds uint32) error {
	if lease := time.Duration(seconds) * time.Second; lease < MinLease || lease > MaxLease {
		return codec.Wrong("lease", lease, "%v to %v", MinLease, MaxLease)
	}
	return nil
}

var kinds = codec.New[Message](MaxMessage, Message.check,
	new(Status), new(Join), new(ProbeAck), new(Welcome), new(Announce), new(Rekey), new(RekeyAck), new(Leave), new(Have),
	new(Resume), new(Resumed), new(Activate), new(Activated), new(Deactivate), new(Redirect),
	new(Counters), new(Confirm), new(Receipt))

// Encode returns the message's RLP.
func Encode(m Message) ([]byte, error) { return kinds.Encode(m) }

// Decode decodes a message and checks it against the limits of SPEC section 11. Each error is a
// *codec.Error.
func Decode(code uint64, payload []byte) (Message, error) { return kinds.Decode(code, payload) }
