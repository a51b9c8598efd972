// SPDX-License-Identifier: LGPL-3.0-or-later

// Package lightpeer plays many peers of one replication point in one process. A light
// peer has no chain and no gossip, but all else is real: an RLPx connection of its
// own with devp2p's handshake and pings, the joiner of mdcs/1, an endpoint of its own,
// and the checks of each datagram. It takes some 30 KiB, so that 10,000 of them
// fit beside the replication point that they load.
//
// Peers have an address and a port each. Those that have the same port at different
// addresses share a socket.
package lightpeer

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// Config describes a swarm.
type Config struct {
	RP        *enode.Node // with an IPv6 address
	NetworkID uint64
	Genesis   [32]byte

	// Endpoints are where datagrams to the peers go, one for each peer, all different.
	// The TCP connections come from their addresses, which need not be those of an
	// interface: it is enough that packets to them are delivered locally.
	Endpoints []netip.AddrPort

	// Connecting is how many peers connect at a time. All of them run on this
	// machine, and one that gets no CPU for 5 seconds fails its handshake.
	Connecting int

	// ReadOnly peers do not ask to publish.
	ReadOnly bool

	// In opens the sockets of the peers, as in another network namespace; nil: here.
	In func(open func() error) error

	// Arrived gets the payload of each DATA that passed all checks but, perhaps, that
	// of its sequence, and when it arrived; nil: nobody wants them. It must not wait.
	Arrived func(peer int, payload []byte, at time.Time)
}

// Counters are sums over all peers since the start.
type Counters struct {
	Members int    `json:"members"` // at present
	Joined  uint64 `json:"joined"`  // times that a peer became a member
	Failed  uint64 `json:"failed"`  // connections that did not come to be, or ended

	Published  uint64 `json:"published"`
	Echoes     uint64 `json:"echoes"`
	Received   uint64 `json:"received"`   // DATA that passed all checks
	Duplicates uint64 `json:"duplicates"` // DATA with a sequence that was there before
	Lost       uint64 `json:"lost"`       // sequences that did not arrive, or not yet
	Early      uint64 `json:"early"`      // that overtook the Welcome
	Refused    uint64 `json:"refused"`    // for any other verdict

	// Bytes of TCP payload, as the peers see it.
	ControlSent     uint64 `json:"control_sent"`
	ControlReceived uint64 `json:"control_received"`
}

// Delays are of datagrams that were published one by one.
type Delays struct {
	Published int `json:"published"`
	Missing   int `json:"missing"` // copies that had not arrived some time after the last one

	// Last has, for each datagram, the time from its sending to the arrival of its
	// last copy at the socket, by the kernel's clock.
	Last []time.Duration `json:"last"`
}

// Swarm is many peers.
type Swarm struct {
	cfg        Config
	group      ids.Group
	rp         netip.Addr
	peers      []*peer
	byEndpoint map[netip.AddrPort]*peer
	sockets    map[uint16]*socket
	connecting chan struct{} // has an element for each peer that connects

	cancel context.CancelFunc
	wg     sync.WaitGroup

	joined, failed, published       atomic.Uint64
	controlSent, controlReceived    atomic.Uint64
	flights                         [maxFlights]flight
	received, duplicates, echoes    atomic.Uint64
	early, refused, lostMemberships atomic.Uint64
}

// flight is a datagram of Load that is under way, or was the last one in its place.
type flight struct {
	number atomic.Uint64 // of the datagram, from 1
	copies atomic.Int64
	last   atomic.Int64 // arrival of the last copy, Unix time in ns
}

// maxFlights is the number of datagrams that may be under way.
const maxFlights = 4096

// Start starts peers that join and stay connected.
func Start(cfg Config) (*Swarm, error) {
	addr := cfg.RP.IPAddr()
	switch {
	case !addr.Is6() || addr.Is4In6():
		return nil, fmt.Errorf("light peers: the address of the rp is %v, not IPv6", addr)
	case len(cfg.Endpoints) == 0 || cfg.Connecting < 1:
		return nil, errors.New("light peers: none, or none that may connect")
	}
	if cfg.In == nil {
		cfg.In = func(open func() error) error { return open() }
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Swarm{
		cfg:        cfg,
		group:      proto.GroupID(cfg.NetworkID, cfg.Genesis, proto.TopicTxs),
		rp:         addr,
		byEndpoint: make(map[netip.AddrPort]*peer, len(cfg.Endpoints)),
		sockets:    make(map[uint16]*socket),
		connecting: make(chan struct{}, cfg.Connecting),
		cancel:     cancel,
	}
	if err := s.open(); err != nil {
		s.Stop()
		return nil, fmt.Errorf("light peers: %w", err)
	}
	for _, socket := range s.sockets {
		s.wg.Go(func() { s.receive(socket) })
	}
	for _, p := range s.peers {
		s.wg.Go(func() { p.run(ctx) })
	}
	s.wg.Go(func() { s.tick(ctx) })
	return s, nil
}

// open makes the peers and their sockets.
func (s *Swarm) open() error {
	for i, endpoint := range s.cfg.Endpoints {
		key, err := crypto.GenerateKey()
		if err != nil {
			return err
		}
		if s.byEndpoint[endpoint] != nil {
			return fmt.Errorf("two peers at %v", endpoint)
		}
		port := endpoint.Port()
		if s.sockets[port] == nil {
			err := s.cfg.In(func() error {
				socket, err := openSocket(port)
				if err == nil {
					s.sockets[port] = socket
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		p := newPeer(s, i, key, endpoint, s.sockets[port])
		s.peers = append(s.peers, p)
		s.byEndpoint[endpoint] = p
	}
	return nil
}

func newPeer(s *Swarm, number int, key *ecdsa.PrivateKey, endpoint netip.AddrPort, socket *socket) *peer {
	return &peer{swarm: s, number: number, key: key, id: enode.PubkeyToIDV4(&key.PublicKey), endpoint: endpoint, socket: socket}
}

// Stop ends all connections without a goodbye, as the end of a host would.
func (s *Swarm) Stop() {
	s.cancel()
	for _, socket := range s.sockets {
		socket.close()
	}
	s.wg.Wait()
}

// tickInterval is how often the joiners look at the time.
const tickInterval = proto.HeartbeatInterval / 2

func (s *Swarm) tick(ctx context.Context) {
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			for _, p := range s.peers {
				p.tick(time.Now())
			}
		case <-ctx.Done():
			return
		}
	}
}

// Counters returns the counters.
func (s *Swarm) Counters() Counters {
	c := Counters{
		Joined:          s.joined.Load(),
		Failed:          s.failed.Load(),
		Published:       s.published.Load(),
		Echoes:          s.echoes.Load(),
		Received:        s.received.Load(),
		Duplicates:      s.duplicates.Load(),
		Lost:            s.lostMemberships.Load(),
		Early:           s.early.Load(),
		Refused:         s.refused.Load(),
		ControlSent:     s.controlSent.Load(),
		ControlReceived: s.controlReceived.Load(),
	}
	for _, p := range s.peers {
		p.mu.Lock()
		if p.member != nil {
			c.Members++
		}
		c.Lost += p.lost()
		p.mu.Unlock()
	}
	return c
}

// Await waits until n peers are members.
func (s *Swarm) Await(ctx context.Context, n int) error {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		members := s.Counters().Members
		if members >= n {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d light peers are members: %w", members, n, context.Cause(ctx))
		}
	}
}

// Publish lets a peer publish an object that fits one datagram.
func (s *Swarm) Publish(peer int, object []byte) error {
	if len(object) == 0 || len(object) > wire.MaxPayload {
		return fmt.Errorf("light peers: object of %d bytes: want 1 to %d", len(object), wire.MaxPayload)
	}
	if err := s.peers[peer].publish(object); err != nil {
		return fmt.Errorf("light peer %d: %w", peer, err)
	}
	s.published.Add(1)
	return nil
}

// landTime is how long the copies of a datagram may take.
const landTime = 2 * time.Second

// Load publishes datagrams of the largest size at a rate per second for a time, each by
// another peer, and follows their copies. All peers must be members. It must not run
// twice at the same time.
func (s *Swarm) Load(ctx context.Context, rate float64, d time.Duration) (Delays, error) {
	var delays Delays
	type sent struct {
		flight *flight
		at     int64
	}
	var under []sent // way, oldest first
	land := func(f sent) {
		delays.Missing += len(s.peers) - 1 - int(f.flight.copies.Load())
		if last := f.flight.last.Load(); last > 0 {
			delays.Last = append(delays.Last, time.Duration(last-f.at))
		}
	}
	object := make([]byte, wire.MaxPayload)
	if _, err := rand.Read(object); err != nil {
		return delays, err
	}
	period := time.Duration(float64(time.Second) / rate)
	first := s.published.Load() + 1
	start := time.Now()
	for due := start; due.Sub(start) < d && ctx.Err() == nil; due = due.Add(period) {
		time.Sleep(time.Until(due))
		if len(under) == maxFlights {
			land(under[0])
			under = under[1:]
		}
		number := first + uint64(delays.Published)
		f := &s.flights[number%maxFlights]
		f.number.Store(0) // a late copy of the one before is none of this one
		f.copies.Store(0)
		f.last.Store(0)
		f.number.Store(number)
		binary.BigEndian.PutUint64(object, number)
		now := time.Now().UnixNano()
		// A stride that is odd and large spreads the publishers.
		if err := s.Publish(int(number*7919%uint64(len(s.peers))), object); err != nil {
			return delays, err
		}
		delays.Published++
		under = append(under, sent{f, now})
	}
	time.Sleep(landTime)
	for _, f := range under {
		land(f)
	}
	return delays, ctx.Err()
}

// report tells who wants to know of a DATA.
func (s *Swarm) report(peer int, payload []byte, at int64) {
	if s.cfg.Arrived != nil {
		s.cfg.Arrived(peer, payload, time.Unix(0, at))
	}
}

// arrived notes a copy.
func (s *Swarm) arrived(payload []byte, at int64) {
	if len(payload) < 8 {
		return
	}
	number := binary.BigEndian.Uint64(payload)
	f := &s.flights[number%maxFlights]
	if number == 0 || f.number.Load() != number {
		return
	}
	f.copies.Add(1)
	for {
		last := f.last.Load()
		if at <= last || f.last.CompareAndSwap(last, at) {
			return
		}
	}
}

// RaiseFileLimit lets this process, and those that it starts, open n files.
func RaiseFileLimit(n int) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read limit of open files: %w", err)
	}
	limit.Max = max(limit.Max, uint64(n))
	limit.Cur = max(limit.Cur, uint64(n))
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raise limit of open files to %d: %w", n, err)
	}
	return nil
}
