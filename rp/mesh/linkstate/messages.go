// SPDX-License-Identifier: LGPL-3.0-or-later

// Package linkstate is how the RPs of a mesh know each other, find out who is alive,
// and agree on the tree of each ingress RP. It does no I/O and has no clock.
//
// Each RP floods one signed advert: its links with their costs, its members by
// group, its copy budget. A link counts when both ends advertise it, at the higher
// of both costs. Adverts travel at once along the minimum spanning tree of the mesh
// and to all neighbours of the RP whose advert it is; other neighbours are told of
// them, and ask for what they miss. Neighbours watch each other by hellos, which are
// datagrams. A child asks for the datagrams of an ingress RP by Graft, and ends
// that by Prune after it has a new parent: make before break. Now and then it
// sums up what it asks for, and the parent answers when it does something else.
//
// Messages travel on mdcsmesh connections, which are reliable and in order. They are
// RLP lists of the fields in order:
//
//	code  message  fields                                           limits
//	0x04  Digest   [sum of 4 bytes, ...]                            32 sums; when a link comes up, then now and then
//	0x05  Summary  [[Origin, Epoch, Sequence], ...]                 512, ascending
//	0x06  Request  [Origin, ...]                                    512, ascending
//	0x07  Adverts  Ack, [[Age, [Advert, Signature]], ...]           64
//	0x08  Offer    [[Origin, Epoch, Sequence], ...]                 512, ascending
//	0x09  Acked    Epoch, Sequence                                  of the receiver's own advert
//	0x0a  Graft    ID, [[Ingress, [[Group, Sequence], ...]], ...]   256 routes, ascending, 16 marks each
//	0x0b  Prune    [Ingress, ...]                                   512, ascending
//	0x0c  GraftAck ID, [Granted, ...], [Refused, ...]               of a Graft that was sent; 256 each, ascending
//	0x0d  RouteSum  sum of 4 bytes                                   every 2 s on links of a tree
//	0x0e  Serving  [Ingress, ...]                                   2048, ascending; after a RouteSum that differs
//
// An Ingress is never 0. A message has at most 16 KiB; the sender keeps far below by count.
package linkstate

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/ethereum/go-ethereum/rlp"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/mesh/tree"
)

// Message codes, behind those of the link in package mesh.
const (
	DigestMsg   = 0x04
	SummaryMsg  = 0x05
	RequestMsg  = 0x06
	AdvertsMsg  = 0x07
	OfferMsg    = 0x08
	AckedMsg    = 0x09
	GraftMsg    = 0x0a
	PruneMsg    = 0x0b
	GraftAckMsg = 0x0c
	RouteSumMsg = 0x0d
	ServingMsg  = 0x0e
)

// Limits on received messages.
const (
	MaxMessage  = 16 << 10 // bytes of one message's RLP
	MaxVersions = 512      // in a Summary, Request, Offer or Prune
	MaxAdverts  = 64       // in an Adverts
	MaxRoutes   = 256      // in a Graft
	MaxServing  = 2048     // in a Serving, so that a child has no more routes of one parent
	MaxLinks    = 64       // in an advert
	MaxGroups   = proto.MaxGroups
	MaxOperator = 32 // bytes of an operator's name
	Buckets     = 32 // sums of a Digest
)

// What is put into one message: a fraction of the limits, so that it fits MaxMessage.
const (
	sendAdverts = 12
	sendRoutes  = 48
)

// ID names an RP: the first 8 bytes of its devp2p node id, big-endian.
type ID = tree.ID

// Message is one message of the protocol.
type Message interface {
	Code() uint64
	check() error
}

// Version orders the adverts of one RP: first by Epoch, then by Sequence.
type Version struct {
	Origin          ID
	Epoch, Sequence uint64
}

// newer reports whether v is newer than another version of the same origin.
func (v Version) newer(than Version) bool {
	return cmp.Or(cmp.Compare(v.Epoch, than.Epoch), cmp.Compare(v.Sequence, than.Sequence)) > 0
}

// Digest sums up the sender's adverts: sum i is over the origins whose ID is i modulo
// Buckets. The receiver answers with a Summary of the buckets that differ.
type Digest struct{ Sums []uint32 }

// Summary lists the sender's adverts of some buckets. The receiver asks for those
// that it lacks.
type Summary struct{ Versions []Version }

// Request asks for the adverts of these origins.
type Request struct{ Origins []ID }

// Adverts brings adverts. Ack asks for an Acked when the sender's own is among them.
type Adverts struct {
	Ack     bool
	Adverts []Aged
}

// Aged is an advert with the seconds since it was signed, as far as the sender knows.
type Aged struct {
	Age uint32
	*Signed
}

// Offer tells what the sender could be asked for.
type Offer struct{ Versions []Version }

// Acked says that the receiver's own advert is in the sender's database.
type Acked struct{ Epoch, Sequence uint64 }

// Graft asks the receiver to replicate datagrams of these ingress RPs to the
// sender, and to send those after the marks from its cache.
type Graft struct {
	ID     uint32
	Routes []GraftRoute
}

// GraftRoute is one route of a Graft.
type GraftRoute struct {
	Ingress uint32 // incarnation
	Marks   []Mark
}

// Mark is the highest sequence of a group up to which the sender of a Graft
// misses nothing.
type Mark struct {
	Group    uint32
	Sequence uint64
}

// Prune ends what Graft asked for.
type Prune struct{ Ingress []uint32 }

// GraftAck answers the Graft with this ID: of these ingress RPs the sender replicates the
// datagrams now, and of those it does not. An ingress RP that the sender does not know yet
// has an answer later.
type GraftAck struct {
	ID               uint32
	Granted, Refused []uint32
}

// RouteSum sums up the ingress RPs that the sender asks the receiver for, with what
// was sent before. The receiver answers with Serving when it does something else.
type RouteSum struct{ Sum uint32 }

// Serving lists the ingress RPs whose datagrams the sender replicates to the
// receiver, which answers with the Graft and the Prune that it lacks.
type Serving struct{ Ingress []uint32 }

// Code returns the message's code.
func (*Digest) Code() uint64   { return DigestMsg }
func (*Summary) Code() uint64  { return SummaryMsg }
func (*Request) Code() uint64  { return RequestMsg }
func (*Adverts) Code() uint64  { return AdvertsMsg }
func (*Offer) Code() uint64    { return OfferMsg }
func (*Acked) Code() uint64    { return AckedMsg }
func (*Graft) Code() uint64    { return GraftMsg }
func (*Prune) Code() uint64    { return PruneMsg }
func (*GraftAck) Code() uint64 { return GraftAckMsg }
func (*RouteSum) Code() uint64 { return RouteSumMsg }
func (*Serving) Code() uint64  { return ServingMsg }

func (m *Digest) check() error {
	if len(m.Sums) != Buckets {
		return malformed("digest: %d sums", len(m.Sums))
	}
	return nil
}

func (m *Summary) check() error { return checkVersions("summary", m.Versions) }
func (m *Offer) check() error   { return checkVersions("offer", m.Versions) }
func (m *Request) check() error {
	return checkList("request", m.Origins, MaxVersions, func(id ID) ID { return id })
}

func (m *Acked) check() error    { return nil }
func (m *RouteSum) check() error { return nil }
func (m *Prune) check() error    { return checkIngress("prune", m.Ingress, MaxVersions) }
func (m *Serving) check() error  { return checkIngress("serving", m.Ingress, MaxServing) }

func (m *GraftAck) check() error {
	if err := checkIngress("graft ack", m.Granted, MaxRoutes); err != nil {
		return err
	}
	return checkIngress("graft ack", m.Refused, MaxRoutes)
}

func (m *Adverts) check() error {
	for _, a := range m.Adverts {
		if err := a.Advert.check(); err != nil {
			return err
		}
	}
	return checkCount("adverts", len(m.Adverts), MaxAdverts)
}

func (m *Graft) check() error {
	for _, r := range m.Routes {
		if err := checkCount("marks", len(r.Marks), MaxGroups); err != nil {
			return err
		}
		for i, m := range r.Marks {
			if slices.ContainsFunc(r.Marks[:i], func(o Mark) bool { return o.Group == m.Group }) {
				return malformed("graft: two marks of group %08x", m.Group)
			}
		}
	}
	if len(m.Routes) > 0 && m.Routes[0].Ingress == 0 {
		return malformed("graft: ingress 0")
	}
	return checkList("graft", m.Routes, MaxRoutes, func(r GraftRoute) uint32 { return r.Ingress })
}

func checkVersions(what string, versions []Version) error {
	return checkList(what, versions, MaxVersions, func(v Version) ID { return v.Origin })
}

func checkIngress(what string, ingress []uint32, limit int) error {
	if len(ingress) > 0 && ingress[0] == 0 {
		return malformed("%s: ingress 0", what)
	}
	return checkList(what, ingress, limit, func(i uint32) uint32 { return i })
}

// checkList checks the length of a list, and that its keys ascend: none is there twice.
func checkList[T any, K cmp.Ordered](what string, list []T, limit int, key func(T) K) error {
	if err := checkCount(what, len(list), limit); err != nil {
		return err
	}
	for i := range list {
		if i > 0 && key(list[i]) <= key(list[i-1]) {
			return malformed("%s: entries out of order", what)
		}
	}
	return nil
}

func checkCount(what string, n, limit int) error {
	if n > limit {
		return malformed("%s: %d entries", what, n)
	}
	return nil
}

func (a *Advert) check() error {
	switch {
	case a.Incarnation == 0:
		return malformed("advert of %016x: incarnation 0", a.Origin)
	case len(a.Links) > MaxLinks:
		return malformed("advert of %016x: %d links", a.Origin, len(a.Links))
	case len(a.Groups) > MaxGroups:
		return malformed("advert of %016x: %d groups", a.Origin, len(a.Groups))
	case len(a.Operator) > MaxOperator:
		return malformed("advert of %016x: operator of %d bytes", a.Origin, len(a.Operator))
	}
	for i, l := range a.Links {
		if l.Cost == 0 || l.Cost > tree.MaxCost || l.Neighbour == a.Origin {
			return malformed("advert of %016x: link to %016x at cost %d", a.Origin, l.Neighbour, l.Cost)
		}
		if i > 0 && l.Neighbour <= a.Links[i-1].Neighbour {
			return malformed("advert of %016x: links out of order", a.Origin)
		}
	}
	for i, g := range a.Groups {
		if i > 0 && g.Group <= a.Groups[i-1].Group {
			return malformed("advert of %016x: groups out of order", a.Origin)
		}
	}
	return nil
}

// Encode returns the message's RLP.
func Encode(m Message) ([]byte, error) { return rlp.EncodeToBytes(m) }

// Decode decodes a message and checks it against its limits. Every error is a
// *proto.Error.
func Decode(code uint64, payload []byte) (Message, error) {
	if len(payload) > MaxMessage {
		return nil, malformed("message 0x%02x of %d bytes", code, len(payload))
	}
	var m Message
	switch code {
	case DigestMsg:
		m = new(Digest)
	case SummaryMsg:
		m = new(Summary)
	case RequestMsg:
		m = new(Request)
	case AdvertsMsg:
		m = new(Adverts)
	case OfferMsg:
		m = new(Offer)
	case AckedMsg:
		m = new(Acked)
	case GraftMsg:
		m = new(Graft)
	case PruneMsg:
		m = new(Prune)
	case GraftAckMsg:
		m = new(GraftAck)
	case RouteSumMsg:
		m = new(RouteSum)
	case ServingMsg:
		m = new(Serving)
	default:
		return nil, malformed("unknown message code 0x%02x", code)
	}
	if err := rlp.DecodeBytes(payload, m); err != nil {
		return nil, malformed("message 0x%02x: %v", code, err)
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return m, nil
}

func malformed(format string, args ...any) error {
	return &proto.Error{Reason: proto.ReasonMalformed, Detail: fmt.Sprintf(format, args...)}
}

func unexpected(format string, args ...any) error {
	return &proto.Error{Reason: proto.ReasonUnexpected, Detail: fmt.Sprintf(format, args...)}
}
