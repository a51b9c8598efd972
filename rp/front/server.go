// SPDX-License-Identifier: LGPL-3.0-or-later

package front

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/rp/front/rlpx"
)

const (
	// acceptPause is how long to wait when the host has no file descriptor or no memory
	// for a connection.
	acceptPause = 50 * time.Millisecond

	// trustedShaking is how many connections from the address of a trusted node may
	// shake hands at a time. More are those of strangers.
	trustedShaking = 4

	// sweepInterval is how often idle connections are looked for, reportInterval how
	// often the log says how many strangers were refused.
	sweepInterval  = time.Second
	reportInterval = time.Minute
)

// Config is what a Server works with.
type Config struct {
	Key       *ecdsa.PrivateKey
	Name      string       // in Hello
	Listener  net.Listener // closed by Close
	Protocols []Protocol   // of those in common that allow the node, the first one is served
	Trusted   []*enode.Node
	Limits    Limits

	// Banned reports whether an address may not come in now, asked before anything is read
	// from it; nil is none. Addresses of trusted nodes are not asked for.
	Banned func(netip.Addr) bool

	// Opened and Closed are told which connections stand, once each; nil: nobody.
	Opened, Closed func(enode.ID)

	Log *slog.Logger
}

// Server accepts connections and serves them. Start lets it accept, Close ends that,
// Stop ends all connections.
type Server struct {
	cfg   Config
	id    enode.ID
	began time.Time
	turns chan struct{} // of handshakes that compute: has an element for each
	large *shared       // large messages that are read

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	accepted atomic.Uint64
	delayed  atomic.Uint64
	refused  [reasons]atomic.Uint64

	mu      sync.Mutex
	table   *Table
	trusted []*enode.Node
	shaking map[netip.Addr]int // of trusted nodes
	open    map[*conn]struct{} // all connections
	conns   map[enode.ID]*conn // those that are served
	stopped bool
}

// New returns a Server. Stop must be called.
func New(cfg Config) *Server {
	ctx, cancel := context.WithCancel(context.Background())
	return &Server{
		cfg:     cfg,
		id:      enode.PubkeyToIDV4(&cfg.Key.PublicKey),
		began:   time.Now(),
		turns:   make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		large:   newShared(largeMessages, largeOf48),
		ctx:     ctx,
		cancel:  cancel,
		table:   NewTable(cfg.Limits),
		trusted: cfg.Trusted,
		shaking: make(map[netip.Addr]int),
		open:    make(map[*conn]struct{}),
		conns:   make(map[enode.ID]*conn),
	}
}

// Start accepts connections.
func (s *Server) Start() {
	s.wg.Go(s.accept)
	s.wg.Go(s.sweep)
}

// SetTrusted says which nodes count for no limit. Connections that stand are left alone.
func (s *Server) SetTrusted(nodes []*enode.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trusted = nodes
}

// SetLimits changes the limits from now on. Connections that are beyond them stay.
func (s *Server) SetLimits(limits Limits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.table.SetLimits(limits)
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{
		Strangers:  s.table.n,
		Handshakes: s.table.shaking.root.n,
		Idle:       s.table.idle.root.n - s.table.shaking.root.n,
		Accepted:   s.accepted.Load(),
		Delayed:    s.delayed.Load(),
		Refused:    make(map[Reason]uint64, int(reasons)),
	}
	for c := range s.conns {
		if s.conns[c].place == nil {
			st.Neighbours++
		}
	}
	for _, r := range Reasons() {
		st.Refused[r] = s.refused[r].Load()
	}
	return st
}

// Close makes no more connections, ends the handshakes, and leaves those connections
// alone that stand.
func (s *Server) Close() {
	s.cancel()
	s.cfg.Listener.Close()
}

// Stop ends all connections, and returns when nothing runs any more.
func (s *Server) Stop() {
	s.Close()
	s.mu.Lock()
	s.stopped = true
	for c := range s.open {
		c.interrupt(p2p.DiscQuitting)
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *Server) count(r Reason) { s.refused[r].Add(1) }

func (s *Server) accept() {
	for {
		fd, err := s.cfg.Listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			s.count(Host)
			select {
			case <-time.After(acceptPause):
				continue
			case <-s.ctx.Done():
				return
			}
		}
		s.accepted.Add(1)
		c := &conn{srv: s, fd: fd, addr: remoteAddr(fd)}
		if !s.admit(c) {
			reset(fd)
			continue
		}
		s.wg.Go(func() {
			if err := s.serve(c, nil, nil); err != nil {
				s.cfg.Log.Debug("connection not served", "addr", c.addr, "err", err)
			}
		})
	}
}

// admit gives a connection that was accepted its place.
func (s *Server) admit(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	trusted := slices.ContainsFunc(s.trusted, func(n *enode.Node) bool { return n.IPAddr() == c.addr })
	if trusted && s.shaking[c.addr] < trustedShaking {
		c.byAddr = true
		s.shaking[c.addr]++
	} else if !s.takePlace(c) {
		return false
	}
	s.open[c] = struct{}{}
	return true
}

// takePlace gives a connection the place of a stranger. The caller holds mu.
func (s *Server) takePlace(c *conn) bool {
	if s.cfg.Banned != nil && s.cfg.Banned(c.addr) {
		s.count(Banned)
		return false
	}
	place, victim, reason := s.table.Open(time.Now(), c.addr)
	if reason != Taken {
		s.count(reason)
		return false
	}
	if victim != nil {
		victim.end(Displaced)
	}
	c.place = place
	place.end = func(r Reason) {
		s.count(r)
		if r == Displaced {
			c.interrupt(p2p.DiscTooManyPeers)
		} else {
			c.interrupt(p2p.DiscUselessPeer)
		}
	}
	return true
}

// sweep ends connections that are idle for too long.
func (s *Server) sweep() {
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	var reported time.Time
	var before uint64
	for {
		select {
		case <-ticker.C:
		case <-s.ctx.Done():
			return
		}
		now := time.Now()
		s.mu.Lock()
		for _, p := range s.table.Expire(now) {
			p.end(Idle)
		}
		s.mu.Unlock()
		if now.Sub(reported) < reportInterval {
			continue
		}
		if refused := s.refusals(); refused != before {
			s.cfg.Log.Info("connections refused or ended", "since_last", refused-before, "strangers", s.Stats().Strangers)
			before, reported = refused, now
		}
	}
}

// refusals is the number of connections that were refused or ended by the front.
func (s *Server) refusals() (n uint64) {
	for i := range s.refused {
		n += s.refused[i].Load()
	}
	return n
}

// Dial runs the handshakes on a connection that was made to a node, and closes it if they
// fail. A node that is not trusted takes a place as if it had connected, and only protocols that
// are Dialled are served. If they do not, the connection is served, and Opened was called.
func (s *Server) Dial(fd net.Conn, node *enode.Node) error {
	c := &conn{srv: s, fd: fd, addr: remoteAddr(fd)}
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		fd.Close()
		return p2p.DiscQuitting
	}
	s.open[c] = struct{}{}
	done := make(chan error, 1)
	s.wg.Go(func() {
		if err := s.serve(c, node, func() { done <- nil }); err != nil {
			done <- err
		}
	})
	s.mu.Unlock()
	return <-done
}

// serve runs the handshakes on a connection and serves it to its end. When the
// connection stands it calls opened, if that is not nil; before, it returns why not.
func (s *Server) serve(c *conn, node *enode.Node, opened func()) error {
	stop := context.AfterFunc(s.ctx, func() { c.fd.Close() }) // handshakes end with Close
	proto, reason, err := s.handshake(c, node)
	if err == nil {
		reason, err = s.enter(c)
	}
	stop()
	if err != nil {
		if reason != Taken && s.ctx.Err() == nil && !c.isInterrupted() {
			s.count(reason)
		}
		s.absent(c)
		c.close(cmp.Or(c.interrupted(), err), false)
		s.leave(c)
		return err
	}
	if s.cfg.Opened != nil {
		s.cfg.Opened(c.id)
	}
	if opened != nil {
		opened()
	}
	err = proto.Run(c)
	if c.breach.Load() {
		s.count(Breach)
	}
	s.absent(c)
	c.close(err, true)
	s.leave(c)
	if s.cfg.Closed != nil {
		s.cfg.Closed(c.id)
	}
	return nil
}

// handshake runs the handshakes, and returns which protocol serves the connection.
func (s *Server) handshake(c *conn, node *enode.Node) (*Protocol, Reason, error) {
	began := time.Now()
	whole := func() { c.deadline(began.Add(rlpx.HandshakeTimeout)) }
	var err error
	if node != nil {
		whole()
		c.rlpx, err = rlpx.Dial(c.fd, s.cfg.Key, node.Pubkey())
	} else {
		c.deadline(began.Add(firstBytes))
		compute := s.inTurn
		if c.place == nil {
			compute = nil
		}
		c.rlpx, err = rlpx.Accept(c.fd, s.cfg.Key, whole, compute)
	}
	if err != nil {
		return nil, whyBad(err), err
	}
	c.id = enode.PubkeyToIDV4(c.rlpx.Remote())
	var allowed []*Protocol
	for i := range s.cfg.Protocols {
		if p := &s.cfg.Protocols[i]; p.Allowed == nil || p.Allowed(c.id) {
			allowed = append(allowed, p)
		}
	}
	if node != nil {
		allowed = slices.DeleteFunc(allowed, func(p *Protocol) bool { return !p.Dialled })
	}
	if len(allowed) == 0 {
		return nil, Unlisted, p2p.DiscUselessPeer
	}
	if !s.known(c) {
		return nil, Taken, p2p.DiscTooManyPeers // counted
	}
	caps := make([]p2p.Cap, len(s.cfg.Protocols))
	for i, p := range s.cfg.Protocols {
		caps[i] = p2p.Cap{Name: p.Name, Version: p.Version}
	}
	slices.SortFunc(caps, p2p.Cap.Cmp)
	if err := c.rlpx.WriteHello(c.fd, rlpx.NewHello(s.cfg.Key, s.cfg.Name, caps)); err != nil {
		return nil, whyBad(err), err
	}
	theirs, err := c.rlpx.ReadHello(c.fd)
	if err != nil {
		return nil, whyBad(err), err
	}
	// The codes of the capabilities in common follow one another, by name.
	c.length = rlpx.BaseLength
	offsets := make(map[string]uint64)
	for _, has := range caps {
		i := slices.IndexFunc(s.cfg.Protocols, func(p Protocol) bool { return p.Name == has.Name })
		if slices.Contains(theirs.Caps, has) {
			offsets[has.Name] = c.length
			c.length += s.cfg.Protocols[i].Length
		}
	}
	for _, p := range allowed {
		if offset, common := offsets[p.Name]; common {
			c.proto, c.offset = p, offset
			return p, Taken, nil
		}
	}
	return nil, Useless, p2p.DiscUselessPeer
}

// whyBad tells a handshake that was not done in time from others.
func whyBad(err error) Reason {
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return Silent
	}
	return BadHandshake
}

// inTurn computes when few others do. Thousands of handshakes at a time would hold up
// for seconds what cannot wait, heartbeats above all.
func (s *Server) inTurn(compute func()) {
	s.turns <- struct{}{}
	defer func() { <-s.turns }()
	compute()
}

// known gives a connection a place when its node is known, and is a stranger that has none: it
// came from the address of a trusted node, or was dialled.
func (s *Server) known(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return c.place != nil || s.trusts(c.id) || s.takePlace(c)
}

// trusts reports whether a node is trusted. The caller holds mu.
func (s *Server) trusts(id enode.ID) bool {
	return slices.ContainsFunc(s.trusted, func(n *enode.Node) bool { return n.ID() == id })
}

// enter begins to serve a connection, unless its node has one. A trusted node needs no place from
// here on: its Hello proved that it is there now, while auth can be a recorded one.
func (s *Server) enter(c *conn) (Reason, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case c.id == s.id:
		return Duplicate, p2p.DiscSelf
	case s.conns[c.id] != nil:
		return Duplicate, p2p.DiscAlreadyConnected
	case s.stopped || s.ctx.Err() != nil:
		return Taken, p2p.DiscQuitting
	}
	if trusted := s.trusts(c.id); trusted && c.place != nil {
		s.table.Close(c.place)
		c.place = nil
	} else if !trusted && c.place == nil && !s.takePlace(c) { // it is trusted no longer
		return Taken, p2p.DiscTooManyPeers // counted
	}
	s.conns[c.id] = c
	s.shook(c)
	c.limit.Store(int64(min(c.proto.MaxMessage, firstMessages)))
	if c.place == nil {
		c.limit.Store(int64(c.proto.MaxMessage))
		keepAlive(c.fd)
	}
	return Taken, c.established()
}

// shook says that a handshake is over. The caller holds mu.
func (s *Server) shook(c *conn) {
	if c.byAddr {
		c.byAddr = false
		decrement(s.shaking, c.addr)
	}
	if c.place != nil {
		s.table.Shaken(c.place)
	}
}

// absent says that a node is no longer served, and may come again, while its connection
// takes its place until it is closed.
func (s *Server) absent(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns[c.id] == c {
		delete(s.conns, c.id)
	}
}

// leave forgets a connection.
func (s *Server) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shook(c)
	if c.place != nil {
		s.table.Close(c.place)
	}
	delete(s.open, c)
}

// remoteAddr returns the address that a connection comes from or goes to, zero when it
// has none.
func remoteAddr(fd net.Conn) netip.Addr {
	tcp, ok := fd.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

// reset closes a connection and leaves nothing of it behind on this host.
func reset(fd net.Conn) {
	if tcp, ok := fd.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // else it is closed in the usual way
	}
	fd.Close()
}

// keepAlive lets a connection to an RP end soon after its host vanished. A host that is
// back after a failure answers the first probe with a reset.
func keepAlive(fd net.Conn) {
	if tcp, ok := fd.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{ // else its silence tells, after 30 seconds
			Enable: true, Idle: 10 * time.Second, Interval: 2 * time.Second, Count: 3,
		})
	}
}
