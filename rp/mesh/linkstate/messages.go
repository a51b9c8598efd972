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
//	0x04  Digest   Salt, [sum of 4 bytes, ...]                      32 sums; when a link comes up, then now and then
//	0x05  Summary  [[Origin, Epoch, Sequence, Hash], ...]           256, ascending
//	0x06  Request  [Origin, ...]                                    512, ascending
//	0x07  Adverts  Ack, [[Age, [Advert, Signature]], ...]           64
//	0x08  Offer    [[Origin, Epoch, Sequence, Hash], ...]           256, ascending
//	0x09  Acked    Hash                                             of the receiver's own advert
//	0x0a  Graft    ID, [[Ingress, [[Group, Sequence], ...]], ...]   256 routes, ascending, 16 marks each
//	0x0b  Prune    [Ingress, ...]                                   512, ascending
//	0x0c  GraftAck ID, [Granted, ...], [Refused, ...]               of a Graft that was sent; 256 each, ascending
//	0x0d  RouteSum  sum of 4 bytes                                   every 2 s on links of a tree
//	0x0e  Serving  [Ingress, ...]                                   2048, ascending; after a RouteSum that differs
//
// An Ingress is never 0. A message has at most 16 KiB; the sender keeps far below by count.
package linkstate

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/ethmcast/mdcs/ethmcast/codec"
	"github.com/ethmcast/mdcs/ethmcast/ids"
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
	MaxVersions = 256      // in a Summary or Offer
	MaxRPs      = 512      // in a Request or Prune
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
	codec.Message
	check() error // that it keeps its limits
}

// Version orders the adverts of one RP: first by Epoch, then by Sequence, then by Hash. All RPs
// keep the same one of two adverts, also when their RP signed both with one Sequence.
type Version struct {
	Origin          ID
	Epoch, Sequence uint64
	Hash            Hash
}

// Hash is the first 16 bytes of the keccak256 that an advert's signature is of. Two
// adverts with one Hash take 2^64 tries to find.
type Hash [16]byte

// newer reports whether v is newer than another version of the same origin.
func (v Version) newer(than Version) bool {
	return cmp.Or(cmp.Compare(v.Epoch, than.Epoch), cmp.Compare(v.Sequence, than.Sequence), bytes.Compare(v.Hash[:], than.Hash[:])) > 0
}

// Digest sums up the sender's adverts: sum i is over the origins whose ID is i modulo
// Buckets, see Version.Sum. The receiver answers with a Summary of the buckets that differ.
type Digest struct {
	Salt uint64 // random
	Sums []uint32
}

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

// Acked says that the receiver's own advert with this Hash is in the sender's database.
type Acked struct{ Hash Hash }

// Graft asks the receiver to replicate datagrams of these ingress RPs to the
// sender, and to send those after the marks from its cache.
type Graft struct {
	ID     uint32
	Routes []GraftRoute
}

// GraftRoute is one route of a Graft.
type GraftRoute struct {
	Ingress ids.Incarnation // incarnation
	Marks   []Mark
}

// Mark is the highest sequence of a group up to which the sender of a Graft
// misses nothing.
type Mark struct {
	Group    ids.Group
	Sequence uint64
}

// Prune ends what Graft asked for.
type Prune struct{ Ingress []ids.Incarnation }

// GraftAck answers the Graft with this ID: of these ingress RPs the sender replicates the
// datagrams now, and of those it does not. An ingress RP that the sender does not know yet
// has an answer later.
type GraftAck struct {
	ID               uint32
	Granted, Refused []ids.Incarnation
}

// RouteSum sums up the ingress RPs that the sender asks the receiver for, with what
// was sent before. The receiver answers with Serving when it does something else.
type RouteSum struct{ Sum uint32 }

// Serving lists the ingress RPs whose datagrams the sender replicates to the
// receiver, which answers with the Graft and the Prune that it lacks.
type Serving struct{ Ingress []ids.Incarnation }

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
		return codec.Wrong("sums", len(m.Sums), "%d", Buckets)
	}
	return nil
}

func (m *Summary) check() error { return checkVersions(m.Versions) }
func (m *Offer) check() error   { return checkVersions(m.Versions) }
func (m *Request) check() error {
	return checkList("RPs", m.Origins, MaxRPs, func(id ID) ID { return id })
}

func (m *Acked) check() error    { return nil }
func (m *RouteSum) check() error { return nil }
func (m *Prune) check() error    { return checkIngress("ingress RPs", m.Ingress, MaxRPs) }
func (m *Serving) check() error  { return checkIngress("ingress RPs", m.Ingress, MaxServing) }

func (m *GraftAck) check() error {
	return cmp.Or(checkIngress("granted", m.Granted, MaxRoutes), checkIngress("refused", m.Refused, MaxRoutes))
}

func (m *Adverts) check() error {
	for _, a := range m.Adverts {
		if err := a.Advert.check(); err != nil {
			return codec.In(err, "advert of %016x", uint64(a.Advert.Origin))
		}
	}
	return codec.AtMost("adverts", len(m.Adverts), MaxAdverts)
}

func (m *Graft) check() error {
	for i, r := range m.Routes {
		if err := r.check(); err != nil {
			return codec.In(err, "routes[%d]", i)
		}
	}
	if len(m.Routes) > 0 {
		if err := codec.NotZero("ingress RP", m.Routes[0].Ingress); err != nil {
			return codec.In(err, "routes[0]")
		}
	}
	return checkList("routes", m.Routes, MaxRoutes, func(r GraftRoute) ids.Incarnation { return r.Ingress })
}

func (r *GraftRoute) check() error {
	for i, m := range r.Marks {
		if slices.ContainsFunc(r.Marks[:i], func(o Mark) bool { return o.Group == m.Group }) {
			return codec.Wrong("marks", fmt.Sprintf("two of group %08x", m.Group), "one of each group")
		}
	}
	return codec.AtMost("marks", len(r.Marks), MaxGroups)
}

func checkVersions(versions []Version) error {
	return checkList("versions", versions, MaxVersions, func(v Version) ID { return v.Origin })
}

func checkIngress(element string, ingress []ids.Incarnation, most int) error {
	if len(ingress) > 0 {
		if err := codec.NotZero(element, ingress[0]); err != nil {
			return err
		}
	}
	return checkList(element, ingress, most, func(i ids.Incarnation) ids.Incarnation { return i })
}

// checkList checks the length of a list, and that its keys ascend: none is there twice.
func checkList[T any, K cmp.Ordered](element string, list []T, most int, key func(T) K) error {
	for i := range list {
		if i > 0 && key(list[i]) <= key(list[i-1]) {
			return codec.Wrong(element, fmt.Sprintf("%v behind %v", key(list[i]), key(list[i-1])), "ascending order")
		}
	}
	return codec.AtMost(element, len(list), most)
}

func (a *Advert) check() error {
	if err := codec.NotZero("incarnation", a.Incarnation); err != nil {
		return err
	}
	for _, l := range a.Links {
		if l.Cost == 0 || l.Cost > tree.MaxCost {
			return codec.Wrong("cost", l.Cost, "1 to %d", tree.MaxCost)
		}
		if l.Neighbour == a.Origin {
			return codec.Wrong("links", "one to itself", "links to others")
		}
	}
	return cmp.Or(
		checkList("links", a.Links, MaxLinks, func(l Link) ID { return l.Neighbour }),
		checkList("groups", a.Groups, MaxGroups, func(g Members) ids.Group { return g.Group }),
		codec.AtMost("operator", len(a.Operator), MaxOperator),
	)
}

var kinds = codec.New[Message](MaxMessage, Message.check, new(Digest), new(Summary), new(Request), new(Adverts), new(Offer), new(Acked),
	new(Graft), new(Prune), new(GraftAck), new(RouteSum), new(Serving))

// Encode returns the message's RLP.
func Encode(m Message) ([]byte, error) { return kinds.Encode(m) }

// Decode decodes a message and checks it against its limits. Each error is a *codec.Error.
func Decode(code uint64, payload []byte) (Message, error) { return kinds.Decode(code, payload) }
