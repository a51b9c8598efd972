// SPDX-License-Identifier: LGPL-3.0-or-later

// Package peerside serves peers: it runs the RP's side of mdcs/1 (SPEC section 7)
// on each connection, and gives group keys to all members.
package peerside

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/events"
	"github.com/ethmcast/mdcs/rp/front"
	"github.com/ethmcast/mdcs/rp/keyring"
	"github.com/ethmcast/mdcs/rp/limitlog"
	"github.com/ethmcast/mdcs/rp/membership"
	"github.com/ethmcast/mdcs/rp/round"
)

// Config is what a Server works with.
type Config struct {
	Self   enode.ID
	Status proto.Status // the RP's own
	Groups []ids.Group  // served
	Terms  Terms        // at first, see SetTerms

	// Admit is told that a peer is about to be let in, and whether it publishes. It is
	// let in when ready is closed; ended is called when it is gone. Nil: at once.
	Admit func(publish bool) (ready <-chan struct{}, ended func())

	// Others returns the enode URLs of RPs that have room, for those whom this one
	// has none for, nil for none.
	Others func() []string

	// Replay sends a session what is newer than its marks and was replicated before
	// it was; nil sends nothing.
	Replay func(session ids.Session, peer netip.Addr, marks []proto.Mark)

	// Confirmed is told which objects the peer of a session in groups has; nil: nobody.
	Confirmed func(session ids.Session, places []proto.Place)

	// ResumeKey is the secret of the tokens by which members resume at an RP that
	// took the datapath over, nil when it ends with the process. Adopted has the
	// sessions of the datapath that this RP took over, nil for none.
	ResumeKey []byte
	Adopted   *datapath.Orphans

	// Link returns the interface by which datagrams to a peer leave, as the zone
	// of a channel. It is needed when Status has a GroupPort, and Engine must be
	// able to replicate to channels then.
	Link func(peer netip.Addr) (zone string, err error)

	// BanFile keeps the bans of the operator for the next process, "" for no longer than this one.
	BanFile string

	Engine  datapath.Engine
	Keys    *keyring.Ring
	Members *membership.Table
	Rand    io.Reader // safe for concurrent use
	Log     *slog.Logger
	Events  *events.Hub // nil when nobody may listen
}

// Stats counts what the peers did since the start.
type Stats struct {
	Connections int // at present
	Standby     int // of the sessions at present, those in no group
	Admitted    uint64
	Resumed     uint64
	Refused     uint64 // joins
	Unreached   uint64 // attempts that ended without a ProbeAck, or for want of a way for copies
	Violations  uint64
	MissingAcks uint64 // members that did not acknowledge keys in time
	SlowAcks    uint64 // acknowledgements of keys after more than half a second
	Confirmed   uint64 // objects that peers said they have
	Limited     uint64 // objects in messages of who said so too often

	Channels       int // multicast channels at present
	ChannelMembers int // that they serve

	Bans        uint64 // nodes, addresses and prefixes that were banned
	Banned      int    // nodes, addresses and prefixes that are
	BanRefusals uint64 // connections of those

	// What the peers report in their announces, summed up, as far as it can be.
	Received, Lost, Duplicates uint64
}

// Server serves the peers' connections.
type Server struct {
	cfg  Config
	quit chan struct{}
	wg   sync.WaitGroup // connections

	drain     chan struct{} // closed when the RP drains
	drainOnce sync.Once

	channels channels
	sessions sessions
	counters counters

	terms atomic.Pointer[Terms]
	bans  *bans

	banFile banFile

	clock    clock
	switches *nodeLimit
	replays  *nodeLimit

	rekeys atomic.Uint32 // last ID of a Rekey

	admitted, violations, missingAcks, slowAcks atomic.Uint64
	resumed, refused, unreached                 atomic.Uint64
	confirmed, limited                          atomic.Uint64
	standby                                     atomic.Int64
	banned                                      atomic.Uint64
	reports                                     reports

	mu      sync.Mutex
	stopped bool
	conns   map[*conn]struct{}
	members map[ids.Session]*conn // by session

	endpoints map[netip.AddrPort]member // the session that proved each endpoint last
}

// New returns a Server. It serves when its Protocol runs.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, quit: make(chan struct{}), drain: make(chan struct{}), conns: make(map[*conn]struct{}), members: make(map[ids.Session]*conn)}
	s.endpoints = make(map[netip.AddrPort]member)
	s.cfg.Log = limitlog.New(cfg.Log.Handler()) // peers cause its lines
	s.clock, s.switches = clock{time.Now()}, newNodeLimit(switches)
	s.replays = newNodeLimit(replays)
	s.bans, s.banFile.path = newBans(), cfg.BanFile
	s.loadBans()
	s.terms.Store(&cfg.Terms)
	s.counters.changed = make(chan struct{})
	s.channels = channels{cfg: &s.cfg, open: make(map[channelID]*channel)}
	return s
}

// Protocol returns the devp2p capability.
func (s *Server) Protocol() front.Protocol {
	return front.Protocol{
		Name: proto.Name, Version: proto.Version, Length: proto.Length, MaxMessage: proto.MaxMessage,
		Allowed: s.listed, Run: s.serve,
	}
}

// listed reports whether a node is among those who may join.
func (s *Server) listed(id enode.ID) bool {
	joiners := s.terms.Load().Joiners
	return joiners == nil || joiners[id]
}

// serve serves a peer's connection until it ends.
func (s *Server) serve(rw front.Conn) error {
	c := newConn(s, rw)
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return p2p.DiscQuitting
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()

	err := c.run()

	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.wg.Done()
	return err
}

// Install puts keys into the datapath, gives them to all members, and forgets
// ingress RPs that are gone. It returns how many members had not acknowledged
// after the timeout; they are logged, and not waited for until they acknowledge again. Who is slow
// to acknowledge is not waited for longer than quickAck, until it was quick several times in a row.
// A connection that is busy delays none of the others. Keys that the datapath refuses go to nobody: the error
// is then a *datapath.Refused, and the other keys are installed all the same.
func (s *Server) Install(keys []proto.GroupKey, retired []ids.Incarnation, timeout time.Duration) (missing int, err error) {
	err = s.cfg.Engine.Apply(datapath.Change{Keys: keys, Retire: retired})
	refused, some := errors.AsType[*datapath.Refused](err)
	if err != nil && !some {
		return 0, fmt.Errorf("install keys: %w", err)
	}
	if some {
		keys = slices.DeleteFunc(slices.Clone(keys), func(k proto.GroupKey) bool {
			return refused.Keys[k.Stream()] != nil
		})
	}
	s.cfg.Keys.Retire(retired)
	s.cfg.Keys.Install(keys)

	conns := s.connections()
	r := &rekey{
		Rekey: proto.Rekey{ID: s.rekeys.Add(1), Keys: keys, Retired: retired},
		Round: round.New[*conn](len(conns)),
		at:    time.Now(),
		until: time.Now().Add(timeout),
	}
	var asked []*conn
	for _, c := range conns {
		if c.mail.post(func(now time.Time) { c.rekey(now, r) }) && !c.late.Load() {
			asked = append(asked, c) // who was late before is not waited for again
		}
	}
	quick := min(quickAck, timeout)
	late := slices.DeleteFunc(r.Wait(asked, quick, s.quit), func(c *conn) bool { return c.slow.Load() > 0 })
	late = r.Wait(late, timeout-quick, s.quit)
	for _, c := range late {
		c.late.Store(true)
		c.log.Warn("keys not acknowledged", "timeout", timeout)
	}
	s.missingAcks.Add(uint64(len(late)))
	return len(late), err
}

func (s *Server) connections() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	return conns
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	n := len(s.conns)
	s.mu.Unlock()
	channels, members := s.channels.count()
	return Stats{
		Connections:    n,
		Standby:        int(s.standby.Load()),
		Admitted:       s.admitted.Load(),
		Resumed:        s.resumed.Load(),
		Refused:        s.refused.Load(),
		Unreached:      s.unreached.Load(),
		Violations:     s.violations.Load(),
		MissingAcks:    s.missingAcks.Load(),
		SlowAcks:       s.slowAcks.Load(),
		Confirmed:      s.confirmed.Load(),
		Limited:        s.limited.Load(),
		Channels:       channels,
		ChannelMembers: members,
		Received:       s.reports.received.Load(),
		Lost:           s.reports.lost.Load(),
		Duplicates:     s.reports.duplicates.Load(),
		Bans:           s.bans.made.Load(),
		Banned:         s.bans.len(),
		BanRefusals:    s.banned.Load(),
	}
}

// drainPoll is how often Drain looks whether somebody is left.
const drainPoll = 20 * time.Millisecond

// Drain sends all members to other RPs, and lets nobody join any more. It returns
// the number of members that are left: none, or those when ctx ended.
func (s *Server) Drain(ctx context.Context) int {
	s.drainOnce.Do(func() { close(s.drain) })
	ticker := time.NewTicker(drainPoll)
	defer ticker.Stop()
	for {
		left := 0
		for _, n := range s.cfg.Members.Members() {
			left = max(left, n)
		}
		if left == 0 {
			return 0
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return left
		}
	}
}

// Draining reports whether Drain was called.
func (s *Server) Draining() bool {
	select {
	case <-s.drain:
		return true
	default:
		return false
	}
}

// Stop sends Leave to all peers and ends their connections. It returns when none
// is left.
func (s *Server) Stop() {
	s.mu.Lock()
	if !s.stopped {
		s.stopped = true
		close(s.quit)
	}
	s.mu.Unlock()
	s.wg.Wait()
}
