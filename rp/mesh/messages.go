// SPDX-License-Identifier: LGPL-3.0-or-later

// Package mesh is the link between two RPs, the part of the RP-RP protocol, devp2p
// capability mdcsmesh/1, that opens it and brings group keys along it (SPEC section
// 12): messages with their limits, and a state machine. It does no I/O. What the RPs of
// a mesh know of each other is in package linkstate.
//
// Messages are RLP lists of the fields in order:
//
//	code  message  fields                                                limits
//	0x00  Hello    NetworkID, Genesis, Incarnation, DataPort, Session,   first message of both sides, once;
//	               Share, Outlives                                       Incarnation, DataPort, Session not 0
//	0x01  Keys     ID, Wait, [[Ingress, Group, Epoch, Active, Key],      after Hello; at most 256 keys, Wait at
//	               ...]                                                  most 10 s; 64 unacknowledged
//	0x02  KeysAck  ID                                                    of Keys that was sent, once
//	0x03  Bye      Reason                                                reasons as in mdcs/1; the last message
//	0x0f  Report   [[[Ingress, Group, Sequence], [Sent, Confirmed]],     after Hello; at most 64, none with more
//	               ...]                                                  Confirmed than Sent
//
// 32 codes are reserved, those from 0x04 to 0x0e are of package linkstate. A message
// has at most 16 KiB. Whatever breaks a limit ends the link with Bye.
package mesh

import (
	"cmp"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/codec"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/receipts"
)

// The devp2p capability.
const (
	Name    = "mdcsmesh"
	Version = 1
	Length  = 32 // message codes reserved
)

// Message codes.
const (
	HelloMsg   = 0x00
	KeysMsg    = 0x01
	KeysAckMsg = 0x02
	ByeMsg     = 0x03
	ReportMsg  = 0x0f
)

// Limits on received messages (SPEC section 11).
const (
	MaxMessage = 16 << 10         // bytes of one message's RLP
	MaxKeys    = 256              // keys in a Keys
	MaxOffers  = 64               // Keys of one side without KeysAck
	MaxWait    = 10 * time.Second // of a Keys
	MaxReports = 64               // in a Report
)

// Message is one message of the capability.
type Message interface {
	codec.Message
	check() error // that it keeps its limits
}

// Hello opens the link. The data endpoint is the configured address of the
// sender and DataPort.
type Hello struct {
	NetworkID   uint64
	Genesis     [32]byte
	Incarnation ids.Incarnation
	DataPort    uint16
	Session     ids.Session // index that datagrams to the sender must carry
	Share       auth.Share  // the sender's part of the hop keys
	Outlives    bool        // the sender's datapath goes on when its process dies
}

// Keys brings all group keys that the sender has of some ingress RPs. The receiver
// accepts datagrams by them at once, gives them to its members and to those to whom it
// replicates the datagrams of these ingress RPs, and acknowledges when all have them.
// Wait is how many milliseconds the sender waits for that. No key is active: that
// matters to the members of the ingress RP only.
type Keys struct {
	ID   uint32
	Wait uint32
	Keys []proto.GroupKey
}

// KeysAck says that the keys of the Keys with this ID are where they have to be, or
// that the receiver waits no longer.
type KeysAck struct {
	ID uint32
}

// Bye ends the link.
type Bye struct {
	Reason proto.Reason
}

// Report tells how many peers of the sender, and of all behind it in the tree of
// their ingress RPs, have objects. A report replaces the one before.
type Report struct {
	Reports []receipts.Report
}

// Code returns the message's code.
func (*Hello) Code() uint64   { return HelloMsg }
func (*Keys) Code() uint64    { return KeysMsg }
func (*KeysAck) Code() uint64 { return KeysAckMsg }
func (*Bye) Code() uint64     { return ByeMsg }
func (*Report) Code() uint64  { return ReportMsg }

func (m *Hello) check() error {
	return cmp.Or(codec.NotZero("incarnation", m.Incarnation), codec.NotZero("data port", m.DataPort), codec.NotZero("session index", m.Session))
}

func (m *Keys) check() error {
	if wait := time.Duration(m.Wait) * time.Millisecond; wait > MaxWait {
		return codec.Wrong("wait", wait, "at most %v", MaxWait)
	}
	return codec.AtMost("group keys", len(m.Keys), MaxKeys)
}

func (m *KeysAck) check() error { return nil }

func (m *Bye) check() error { return nil }

func (m *Report) check() error {
	for i, r := range m.Reports {
		if r.Confirmed > r.Sent {
			return codec.In(codec.Wrong("confirmed", r.Confirmed, "at most %d as sent", r.Sent), "reports[%d]", i)
		}
	}
	return codec.AtMost("reports", len(m.Reports), MaxReports)
}

var kinds = codec.New[Message](MaxMessage, Message.check, new(Hello), new(Keys), new(KeysAck), new(Bye), new(Report))

// Encode returns the message's RLP.
func Encode(m Message) ([]byte, error) { return kinds.Encode(m) }

// Decode decodes a message and checks it against its limits. Each error is a *codec.Error.
func Decode(code uint64, payload []byte) (Message, error) { return kinds.Decode(code, payload) }
