// SPDX-License-Identifier: LGPL-3.0-or-later

package rp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxPending is the number of connections that may be accepted and not yet
	// through their handshake. More are refused: the other side gives up after 5
	// seconds, and one machine does not handshake more often in that time.
	maxPending = 2048

	// connectPeriod is the time in which a /64 may connect as often as it may have
	// sessions. It may connect that often at once, too, and once more for those whose
	// RP has restarted before they came to rest.
	connectPeriod = 5 * time.Second

	// acceptPause is how long to wait when the host has no file descriptor or no
	// memory for a connection.
	acceptPause = 50 * time.Millisecond
)

// listenerConfig is what a listener works with.
type listenerConfig struct {
	// Allowed reports whether an address is that of an RP of the allow-list. No
	// limit holds for it, so that no peer can keep the mesh from linking.
	Allowed func(netip.Addr) bool

	// Setup runs the handshakes on a connection and closes it if they fail.
	Setup func(net.Conn) error

	Per64 int // sessions that a /64 may have, 0 for no limit
	Log   *slog.Logger
}

// listener accepts the connections to the control port. It never waits for one of
// them: what is beyond its limits is refused at once.
type listener struct {
	cfg      listenerConfig
	tcp      net.Listener
	throttle throttle
	pending  chan struct{} // has an element for each
	turns    chan struct{} // of those that compute
	cancel   context.CancelFunc
	wg       sync.WaitGroup
}

// startListener accepts connections from tcp until stop is called.
func startListener(tcp net.Listener, cfg listenerConfig) *listener {
	ctx, cancel := context.WithCancel(context.Background())
	l := &listener{
		cfg:      cfg,
		tcp:      tcp,
		throttle: newThrottle(cfg.Per64),
		pending:  make(chan struct{}, maxPending),
		turns:    make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		cancel:   cancel,
	}
	l.wg.Go(func() { l.accept(ctx) })
	return l
}

// stop closes the port and the connections that are not through their handshake.
func (l *listener) stop() {
	l.cancel()
	l.tcp.Close()
	l.wg.Wait()
}

func (l *listener) accept(ctx context.Context) {
	for {
		conn, err := l.tcp.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			l.cfg.Log.Debug("connection not accepted", "err", err)
			select {
			case <-time.After(acceptPause):
				continue
			case <-ctx.Done():
				return
			}
		}
		addr := remoteAddr(conn)
		if l.cfg.Allowed(addr) {
			keepAlive(conn)
			l.wg.Go(func() { l.setup(ctx, conn) })
			continue
		}
		if !l.throttle.allow(time.Now(), addr) {
			refuse(conn)
			continue
		}
		select {
		case l.pending <- struct{}{}:
		default:
			refuse(conn)
			continue
		}
		l.wg.Go(func() {
			defer func() { <-l.pending }()
			paced := &pacedConn{Conn: conn, turns: l.turns}
			defer paced.finish()
			l.setup(ctx, paced)
		})
	}
}

// setup runs the handshakes of a connection, at most until ctx ends.
func (l *listener) setup(ctx context.Context, conn net.Conn) {
	if err := setup(ctx, conn, l.cfg.Setup); err != nil {
		l.cfg.Log.Debug("connection not set up", "addr", conn.RemoteAddr(), "err", err)
	}
}

// setup runs the handshakes of a connection by f, at most until ctx ends.
func setup(ctx context.Context, conn net.Conn, f func(net.Conn) error) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	return f(conn)
}

// pacedConn is a connection whose handshake computes only when it is its turn. A
// handshake costs half a millisecond of CPU at once, when the other side has sent its
// part. Thousands of them would hold up for seconds what cannot wait, heart-beats above
// all; and the peers that miss these would only connect again.
//
// A turn lasts from the arrival of something until the connection waits for more, or
// has an answer to send.
type pacedConn struct {
	net.Conn
	turns    chan struct{} // has an element for each that is taken
	taken    atomic.Bool
	finished atomic.Bool
}

// Read implements net.Conn.
func (c *pacedConn) Read(b []byte) (int, error) {
	c.yield()
	n, err := c.Conn.Read(b)
	if !c.finished.Load() {
		c.turns <- struct{}{}
		c.taken.Store(true)
		if c.finished.Load() { // while this waited for the turn
			c.yield()
		}
	}
	return n, err
}

// Write implements net.Conn.
func (c *pacedConn) Write(b []byte) (int, error) {
	c.yield()
	return c.Conn.Write(b)
}

// yield ends the turn, if there is one.
func (c *pacedConn) yield() {
	if c.taken.CompareAndSwap(true, false) {
		<-c.turns
	}
}

// finish lets the connection go on without turns.
func (c *pacedConn) finish() {
	c.finished.Store(true)
	c.yield()
}

// refuse closes a connection by a reset, which leaves nothing behind on this host.
func refuse(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // else it is closed in the usual way
	}
	conn.Close()
}

// keepAlive lets a connection to an RP end soon after its host vanished. A host that
// is back after a failure answers the first probe with a reset.
func keepAlive(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{ // else devp2p notices after 30 seconds
			Enable: true, Idle: 10 * time.Second, Interval: 2 * time.Second, Count: 3,
		})
	}
}

// remoteAddr returns the address that a connection comes from, zero when it has none.
func remoteAddr(conn net.Conn) netip.Addr {
	tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

// throttle limits how often each /64 connects. It is the policer of SPEC 6.7, with one
// due time for each /64 that connected lately.
type throttle struct {
	interval  time.Duration // between connections, 0 for no limit
	tolerance time.Duration // what may be due and still conform
	due       map[netip.Prefix]time.Time
	sweep     time.Time // when past times are dropped next
}

// newThrottle returns the throttle for a number of sessions of each /64.
func newThrottle(per64 int) throttle {
	if per64 == 0 {
		return throttle{}
	}
	interval := connectPeriod / time.Duration(per64)
	return throttle{
		interval:  interval,
		tolerance: time.Duration(2*per64-1) * interval,
		due:       make(map[netip.Prefix]time.Time),
	}
}

// allow accounts for one connection from addr, or refuses it.
func (t *throttle) allow(now time.Time, addr netip.Addr) bool {
	if t.interval == 0 {
		return true
	}
	if !now.Before(t.sweep) {
		for p, due := range t.due {
			if !due.After(now) {
				delete(t.due, p)
			}
		}
		t.sweep = now.Add(connectPeriod)
	}
	p := netip.PrefixFrom(addr, min(64, addr.BitLen())).Masked()
	due := t.due[p]
	if due.Sub(now) > t.tolerance {
		return false
	}
	if due.Before(now) {
		due = now
	}
	t.due[p] = due.Add(t.interval)
	return true
}
