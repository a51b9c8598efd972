// SPDX-License-Identifier: LGPL-3.0-or-later

// Package datapath is the seam between a replication point's control plane and
// the engine that moves its datagrams (SPEC section 6). The control plane says
// what is wanted by changes, the engine verifies, stamps and replicates.
package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"golang.org/x/net/ipv6"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// How far the sequence of DATA and HEARTBEAT from the mesh may be beyond the highest one
// that their stream ever had (SPEC section 11): MaxAhead, and one more for each AheadEach
// since then. Nothing is beyond MaxSequence, where the block tags of a window would repeat.
const (
	MaxAhead    = 65536
	AheadEach   = time.Microsecond
	MaxSequence = 1<<44 - 1
)

// HeartbeatGap is the least time between two HEARTBEATs of a stream from the mesh that
// are replicated (SPEC section 11).
const HeartbeatGap = 100 * time.Millisecond

// EpochsKept is the number of group keys kept for each (ingress RP, group): the
// one installed last and the one before it.
const EpochsKept = 2

// MaxUpstreams is how many RP neighbours may be upstreams of one ingress RP at
// once: the parent and the backup, and those before while a tree changes.
const MaxUpstreams = 6

// ErrClosed is returned by every method of an Engine after Close.
var ErrClosed = errors.New("datapath: engine closed")

// ErrNoWay is returned by Probe and Hello when copies to an endpoint cannot leave by the
// engine: there is no route, or one by a device that is none of the engine's, or that takes
// no copies.
var ErrNoWay = errors.New("no way for copies")

// ErrOverRate is returned by Resend when new datagrams need what all copies may take.
var ErrOverRate = errors.New("datapath: the limit of all copies has no room for what is sent again")

// Role says what is at the other end of a session.
type Role uint8

// Roles of a session.
const (
	Peer    Role = 1 // a geth: publishes and subscribes
	Mesh    Role = 2 // an RP neighbour
	Channel Role = 3 // a multicast channel: all geths on a link that joined it; for a Multicaster
)

func (r Role) String() string {
	switch r {
	case Peer:
		return "peer"
	case Mesh:
		return "mesh"
	case Channel:
		return "channel"
	}
	return fmt.Sprintf("role-%d", uint8(r))
}

// Session is one hop, to a peer, to an RP neighbour, or to a channel. Datagrams
// that arrive with Index from Addr and a hop tag of ReceiveKey belong to it; copies
// go to Addr with SendSession and a hop tag of SendKey.
//
// A channel gets one copy for all who listen. Its Addr is a multicast address whose
// zone is the index of the interface to send by, in decimal; as no datagram comes
// from such an address, all that carry its Index are refused for their source.
type Session struct {
	Index       ids.Session // handed out by this RP, not 0, unique among its sessions
	Role        Role
	Addr        netip.AddrPort // IPv6; the only accepted source, and the destination
	SendSession ids.Session    // index that the other end handed out
	SendKey     auth.Key
	ReceiveKey  auth.Key

	// Groups are those replicated to the session. An RP neighbour has none: what
	// it gets, and what is accepted from it, is said by routes.
	Groups []ids.Group

	// Silent keeps copies from a peer, because it listens to a channel. It gets
	// its ECHOs and may publish to its Groups.
	Silent bool

	// Publish lets a peer publish to its Groups, Rate datagrams per second and
	// Burst at once. Both are positive then.
	Publish     bool
	Rate, Burst uint32

	// Egress limits the copies of what comes from a publisher or an RP neighbour:
	// bytes of UDP payload times receivers, per second, 0 for no limit. EgressBurst
	// is how many at once, positive then (SPEC 6.7).
	Egress, EgressBurst uint64
}

// Check returns an error when the session contradicts its contract.
func (s *Session) Check() error {
	addr := s.Addr.Addr()
	switch {
	case s.Index == 0:
		return errors.New("session 0")
	case s.Role == Channel:
		return s.checkChannel()
	case s.Role != Peer && s.Role != Mesh:
		return fmt.Errorf("session %08x: unknown role %d", s.Index, s.Role)
	case !addr.Is6() || addr.Is4In6() || addr.IsUnspecified() || addr.IsMulticast() || s.Addr.Port() == 0:
		return fmt.Errorf("session %08x: address %v is not a unicast IPv6 endpoint", s.Index, s.Addr)
	case s.Publish && (s.Rate == 0 || s.Burst == 0):
		return fmt.Errorf("session %08x: publisher with rate %d and burst %d", s.Index, s.Rate, s.Burst)
	case s.Egress != 0 && s.EgressBurst == 0:
		return fmt.Errorf("session %08x: egress limit of %d without burst", s.Index, s.Egress)
	case s.Role == Mesh && len(s.Groups) > 0:
		return fmt.Errorf("session %08x: mesh session with groups %08x", s.Index, s.Groups)
	case s.Role == Mesh && s.Publish:
		return fmt.Errorf("session %08x: mesh session that publishes", s.Index)
	case s.Role == Mesh && s.Silent:
		return fmt.Errorf("session %08x: silent mesh session", s.Index)
	}
	return nil
}

func (s *Session) checkChannel() error {
	_, err := Interface(s.Addr.Addr())
	switch {
	case err != nil:
		return fmt.Errorf("session %08x: %w", s.Index, err)
	case s.Addr.Port() == 0:
		return fmt.Errorf("session %08x: channel %v without port", s.Index, s.Addr)
	case len(s.Groups) == 0 || s.Publish || s.Silent:
		return fmt.Errorf("session %08x: channel with groups %08x, publish %t, silent %t", s.Index, s.Groups, s.Publish, s.Silent)
	}
	return nil
}

// Interface returns the index of the interface by which datagrams leave for the
// address of a channel.
func Interface(addr netip.Addr) (int, error) {
	if !addr.Is6() || !addr.IsMulticast() {
		return 0, fmt.Errorf("%v is not an IPv6 multicast address", addr)
	}
	index, err := strconv.Atoi(addr.Zone())
	if err != nil || index <= 0 {
		return 0, fmt.Errorf("zone of %v is not the index of an interface", addr)
	}
	return index, nil
}

// Destination returns an address as a UDP socket takes it, and the control message
// that goes with it. The zone of a channel turns into the message: without it the host
// would choose the interface by its route to the group. There is none for others.
func Destination(addr netip.AddrPort) (dst netip.AddrPort, control []byte) {
	index, err := Interface(addr.Addr())
	if err != nil {
		return addr, nil
	}
	message := ipv6.ControlMessage{IfIndex: index}
	return netip.AddrPortFrom(addr.Addr().WithZone(""), addr.Port()), message.Marshal()
}

// Route is the way of one ingress RP's datagrams through this RP. It replaces the
// route before; one that leads nowhere, neither from nor to, ends it.
//
// Sessions that are none of an RP neighbour, or not there, are ignored: whoever ends a
// link need not know the routes. A route that leads nowhere and replaces none is no error. A session that is removed leaves all routes, one that
// is replaced stays in them.
type Route struct {
	Ingress ids.Incarnation // incarnation; the RP's own for what its peers publish
	From    []ids.Session   // mesh sessions that are accepted from, at most MaxUpstreams; none for the own
	To      []Branch        // never back to the session that a datagram came from
}

// Branch is an RP neighbour that gets copies.
type Branch struct {
	Session ids.Session // own index of a mesh session, once in a route
	Groups  []ids.Group // that are replicated to it
}

// Ends reports whether the route leads nowhere.
func (r *Route) Ends() bool { return len(r.From) == 0 && len(r.To) == 0 }

// Has reports whether a session gets the copies of a group.
func (b *Branch) Has(group ids.Group) bool { return slices.Contains(b.Groups, group) }

// Check returns an error when the route contradicts its contract at an RP of the
// incarnation own.
func (r *Route) Check(own ids.Incarnation) error {
	switch {
	case r.Ingress == 0:
		return errors.New("route of ingress 0")
	case r.Ingress == own && len(r.From) > 0:
		return fmt.Errorf("own route from sessions %08x", r.From)
	case len(r.From) > MaxUpstreams:
		return fmt.Errorf("route of %08x from %d sessions, at most %d", r.Ingress, len(r.From), MaxUpstreams)
	}
	for i := range r.To {
		session := r.To[i].Session
		if slices.ContainsFunc(r.To[:i], func(b Branch) bool { return b.Session == session }) {
			return fmt.Errorf("route of %08x to session %08x twice", r.Ingress, session)
		}
	}
	return nil
}

// Clone returns a route that shares nothing with r.
func (r *Route) Clone() Route {
	c := Route{Ingress: r.Ingress, From: slices.Clone(r.From), To: slices.Clone(r.To)}
	for i := range c.To {
		c.To[i].Groups = slices.Clone(c.To[i].Groups)
	}
	return c
}

// Keep takes the sessions out of the route that keep does not name.
func (r *Route) Keep(keep func(session ids.Session) bool) {
	r.From = slices.DeleteFunc(r.From, func(s ids.Session) bool { return !keep(s) })
	r.To = slices.DeleteFunc(r.To, func(b Branch) bool { return !keep(b.Session) })
}

// Change is a step from one desired state to the next. Its parts take effect in
// the order of its fields.
type Change struct {
	// Remove ends sessions by index; an unknown index is no error.
	Remove []ids.Session

	// Retire forgets ingress RPs that are gone: keys, windows, sequences, routes.
	Retire []ids.Incarnation

	// Keys installs group keys. The newest EpochsKept epochs of each (ingress RP,
	// group) are accepted, in order of installation; installing an epoch again
	// replaces its key and makes it the newest.
	Keys []proto.GroupKey

	// Add starts sessions. An index that is there already is replaced; with the
	// same ReceiveKey it keeps its window, its buckets and its counters.
	Add []Session

	// Routes replaces the routes of ingress RPs.
	Routes []Route
}

// Refusals returns the elements of the change that contradict their contract at an RP of
// the incarnation own. What it returns refuses nothing when all are right.
func (c *Change) Refusals(own ids.Incarnation) *Refused {
	refused := new(Refused)
	for i := range c.Add {
		if err := c.Add[i].Check(); err != nil {
			refused.Session(c.Add[i].Index, fmt.Errorf("%w: %w", ErrContract, err))
		}
	}
	for _, k := range c.Keys {
		if k.Ingress == 0 {
			refused.Key(k.Stream(), fmt.Errorf("%w: key of group %08x without ingress", ErrContract, k.Group))
		}
	}
	if slices.Contains(c.Retire, own) {
		refused.Route(own, fmt.Errorf("%w: own incarnation %08x cannot retire", ErrContract, own))
	}
	for i := range c.Routes {
		if err := c.Routes[i].Check(own); err != nil {
			refused.Route(c.Routes[i].Ingress, fmt.Errorf("%w: %w", ErrContract, err))
		}
	}
	return refused
}

// Merge appends what follows to c.
func (c *Change) Merge(next Change) {
	c.Remove = append(c.Remove, next.Remove...)
	c.Retire = append(c.Retire, next.Retire...)
	c.Keys = append(c.Keys, next.Keys...)
	c.Add = append(c.Add, next.Add...)
	c.Routes = append(c.Routes, next.Routes...)
}

// SessionStats counts what one session did since it was added.
type SessionStats struct {
	Index    ids.Session
	Role     Role
	Addr     netip.AddrPort
	Received uint64    // datagrams accepted
	Copies   uint64    // datagrams sent
	Heard    time.Time // last accepted datagram, zero when there was none
}

// Stats counts since the engine was made. Bytes are bytes of UDP payload.
type Stats struct {
	Engine        string        // "socket" or "xdp"
	Verdicts      wire.Counters // datagrams received, by verdict
	Copies        uint64        // DATA sent to peers and RPs
	CopyBytes     uint64        // of those
	Echoes        uint64        // ECHO sent to publishers
	Heartbeats    uint64        // HEARTBEAT sent, own and relayed
	Probes        uint64        // PROBE sent
	SendErrors    uint64        // datagrams that the host refused to send
	ReceiveErrors uint64        // reads that failed
	ReceiveDrops  uint64        // datagrams that came faster than the engine took them
	Overflows     []Overflow    // of each further queue of the engine
	Lacks         []Lack        // what the engine runs without
	Rooms         []Room        // what is left of each pool that the engine takes from
	Interrupted   uint64        // lists of the kernel that changed meanwhile, and were asked for again
	Sessions      []SessionStats
}

// Overflow counts what a queue of an engine had no room for: copies, or frames and
// records that stand for several.
type Overflow struct {
	Queue string
	Lost  uint64
}

// Room is how many elements an engine can still take from a pool. Those in quarantine come
// back to it.
type Room struct {
	Pool string
	Left int
}

// Lack is something that an engine was to have and runs without.
type Lack struct {
	What, Why string
	NoService bool // peers do not get their copies meanwhile
}

// Config is what every engine is made from.
type Config struct {
	Addr        netip.AddrPort  // own IPv6 address and UDP port, port 0 for any
	Incarnation ids.Incarnation // stamped as ingress RP, not 0
	HandleKey   auth.Key        // secret of the publisher handles

	// Owner tells RPs apart: node key and chain. An Adopter goes on only with the datapath
	// of the same Owner.
	Owner [16]byte

	// MayBe reports whether this RP may be an incarnation; nil: any. An Adopter does not go
	// on with the datapath of another one: no other RP would take it (SPEC 12.4).
	MayBe func(incarnation ids.Incarnation) bool

	// HopLimit is that of the IPv6 packets to channels, 0 for 1: they stay on the link.
	HopLimit uint8

	// Egress limits the copies of all that comes, as that of a Session those of what
	// comes from one: bytes of UDP payload times receivers, per second, 0 for no limit.
	// EgressBurst may go at once, 0 for a byte.
	Egress, EgressBurst uint64

	// Hello gets what Engine.Hello sent at the other end of a mesh session, and when it
	// came: each once, in order of arrival, by one goroutine of the engine, which must
	// not wait for the engine. Nil: they are accepted and dropped.
	Hello func(session ids.Session, hello [wire.HelloSize]byte, at time.Time)

	// Cache gets every DATA that is replicated, own and relayed, by one goroutine of the
	// engine, which must not wait for it. What it is too slow for is lost and counted.
	// When Apply of a change with routes returns, it has had all that went by the routes
	// before. Nil: nobody.
	Cache func(Record)
}

// Record is a DATA that is replicated: as it goes out, but with the session and the
// hop tag that it came with.
type Record struct {
	Session  ids.Session // that it came from
	Ingress  ids.Incarnation
	Group    ids.Group
	Sequence uint64
	Datagram []byte // valid until the function that gets it returns
}

// NewRecord returns the record of a replicated DATA.
func NewRecord(session ids.Session, datagram []byte) Record {
	h, _, _ := wire.Parse(datagram) // as whoever replicates it did
	return Record{Session: session, Ingress: h.Ingress, Group: h.Group, Sequence: h.Sequence, Datagram: datagram}
}

// HeartbeatScope says who gets a heartbeat.
type HeartbeatScope uint8

// Scopes of a heartbeat.
const (
	Local HeartbeatScope = iota + 1 // peers and channels of this RP
	All                             // those, and the branches of the own route
)

// Engine verifies, stamps and replicates datagrams. Its methods may be called
// concurrently.
//
// Order between changes is the caller's: two concurrent Apply calls must not be
// about the same session or the same ingress RP.
type Engine interface {
	// Apply makes the change element by element. An element that contradicts its
	// contract or finds no room is refused: it changes nothing, a session, key or
	// route that it was to replace stays, and all other elements take effect. The
	// error is then a *Refused, which names the refused elements and why; any other
	// error, as ErrClosed, means that nothing was done.
	//
	// When Apply returns, every datagram stamped or accepted from then on is
	// replicated to the added sessions and to none of the removed. A caller
	// acknowledges nothing that was refused.
	Apply(Change) error

	// Marks returns the newest sequence known of each (ingress RP, group). Taken
	// after Apply it is the mark of the sessions added by it: what comes after
	// is sent to them. An ingress RP of which nothing was heard has no mark.
	Marks() []proto.Mark

	// OwnMarks returns the newest sequence of each own stream, ordered by group. It waits
	// for no change: heartbeats, of which it is the measure, must not. It may not yet have
	// the streams of a change that is being made. None after Close.
	OwnMarks() []proto.Mark

	// Probe sends one PROBE of size bytes of UDP payload, which holds at least
	// the header and the nonce, to an endpoint without a session. It leaves the way that
	// copies to the endpoint would, so that a ProbeAck proves this way; with an error that
	// wraps ErrNoWay there is none. The caller limits how many an unproven endpoint gets.
	Probe(dst netip.AddrPort, nonce [wire.NonceSize]byte, size int) error

	// Heartbeat sends the newest own sequence of each own group to those within the
	// scope that the group is replicated to.
	Heartbeat(HeartbeatScope) error

	// Hello sends a hello on a mesh session. With an error that wraps ErrNoWay copies cannot
	// leave, and the other RP must not hear that the link is there.
	Hello(session ids.Session, hello [wire.HelloSize]byte) error

	// Resend sends datagrams that Config.Cache got to one session, with its index
	// and hop tag. It waits until the host took them. One that the host refuses counts as
	// a send error. They cost what copies cost, and get what new datagrams leave: with
	// less than half of the burst of all copies it sends none, and returns ErrOverRate.
	Resend(session ids.Session, datagrams [][]byte) error

	// SetEgress changes the limit of all copies, see Config. The buckets, of the sites too, are full then.
	SetEgress(rate, burst uint64)

	// Heard returns when the last datagram of a session was accepted, of any type,
	// zero when there was none. It makes no system call.
	Heard(session ids.Session) time.Time

	// Lacks returns what the engine runs without now, as Stats does. It may be called once
	// per second.
	Lacks() []Lack

	// Stats returns the counters. It may be called once per second.
	Stats() Stats

	// Addr returns the address and port that datagrams are sent from.
	Addr() netip.AddrPort

	// Close stops the engine and releases its port. When it returns no
	// goroutine of the engine is left. Further calls do nothing.
	Close() error
}

// Stager is an Engine whose receivers may be reachable only some time after a change.
// Apply is Stage, then Await.
type Stager interface {
	Engine

	// Stage makes a change as Apply does, but waits for nothing outside of the engine.
	Stage(Change) error

	// Await waits, for a bounded time, until the receivers that a change added can be
	// reached. It holds up no other call.
	Await(Change)
}

// stage makes a change, and leaves to await what may be waited for afterwards.
func stage(e Engine, c Change) error {
	if s, ok := e.(Stager); ok {
		return s.Stage(c)
	}
	return e.Apply(c)
}

func await(e Engine, c Change) {
	if s, ok := e.(Stager); ok {
		s.Await(c)
	}
}

// State is what an engine holds after all its changes, and who stamps.
type State struct {
	Incarnation ids.Incarnation
	HandleKey   auth.Key
	Keys        []proto.GroupKey // of each (ingress RP, group) the older one first; none is active
	Sessions    []Session        // ordered by index
	Routes      []Route          // ordered by ingress RP
}

// Adopter is an Engine that may go on with the datapath of a process that died.
type Adopter interface {
	Engine

	// Adopted returns what the engine found when it was opened: it stamps the
	// incarnation and uses the handle key of the state, not those of Config. It
	// is nil when the engine began anew.
	Adopted() *State

	// Abandon closes the engine as the death of the process would: a datapath that
	// outlives its process goes on, and may be adopted again.
	Abandon()
}

// Survivor is an Engine whose datapath may go on without its process.
type Survivor interface {
	Engine

	// Outlives reports whether it does.
	Outlives() bool
}

// Multicaster is an Engine that replicates to channels, too: Apply takes sessions
// of that role and silent peers, and Probe the address of a channel.
type Multicaster interface {
	Engine

	// Link returns the index of the interface by which datagrams to a peer leave,
	// in decimal: the zone of a channel that reaches it.
	Link(peer netip.Addr) (zone string, err error)
}
