// SPDX-License-Identifier: LGPL-3.0-or-later

package rp

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// queue is a net.Listener whose connections the test makes.
type queue struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newQueue() *queue { return &queue{conns: make(chan net.Conn), done: make(chan struct{})} }

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *queue) Addr() net.Addr { return &net.TCPAddr{} }

// caller is a connection from an address.
type caller struct {
	net.Conn
	addr   string
	closed chan struct{}
	once   sync.Once
}

func (c *caller) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(c.addr), 1))
}

func (c *caller) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func (c *caller) refused() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// call lets an address connect, and returns when the listener has seen it.
func (q *queue) call(addr string) *caller {
	c := &caller{addr: addr, closed: make(chan struct{})}
	q.conns <- c
	synctest.Wait()
	return c
}

const rpAddr = "2001:db8:f::1"

// door is a listener whose handshakes the test ends.
type door struct {
	*listener
	*queue
	mu    sync.Mutex
	shook int           // handshakes that began
	end   chan struct{} // has an element for each that is to end well
}

func newDoor(t *testing.T, per64 int) *door {
	d := &door{queue: newQueue(), end: make(chan struct{})}
	d.listener = startListener(d.queue, listenerConfig{
		Allowed: func(a netip.Addr) bool { return a == netip.MustParseAddr(rpAddr) },
		Setup: func(c net.Conn) error {
			d.mu.Lock()
			d.shook++
			d.mu.Unlock()
			if p, ok := c.(*pacedConn); ok {
				c = p.Conn
			}
			select {
			case <-d.end:
				return nil
			case <-c.(*caller).closed:
				return net.ErrClosed
			}
		},
		Per64: per64,
		Log:   slog.New(slog.DiscardHandler),
	})
	t.Cleanup(d.stop)
	return d
}

func (d *door) handshakes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.shook
}

// A /64 that floods the port is held to its rate, and keeps nobody else out.
func TestFloodOfOneSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const per64 = 16
		d := newDoor(t, per64)
		flood := func() (taken int) {
			for i := range 1000 {
				if !d.call(fmt.Sprintf("2001:db8::%x", i+1)).refused() {
					taken++
				}
			}
			return taken
		}
		require.Equal(t, 2*per64, flood())
		require.Zero(t, flood())
		require.False(t, d.call("2001:db8:0:1::1").refused(), "another /64")
		for range 1000 {
			require.False(t, d.call(rpAddr).refused(), "an RP")
		}
		time.Sleep(connectPeriod)
		require.Equal(t, per64, flood())
		time.Sleep(time.Hour)
		require.Equal(t, 2*per64, flood())
		require.Len(t, d.throttle.due, 1, "what is past is forgotten")
		d.stop()
	})
}

// Connections that say nothing fill their places, which the RPs do not need.
func TestHandshakesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDoor(t, 0)
		all := make([]*caller, maxPending)
		for i := range all {
			all[i] = d.call(fmt.Sprintf("2001:db8:0:%x::1", i))
			require.False(t, all[i].refused())
		}
		require.True(t, d.call("2001:db8:1::1").refused())
		require.False(t, d.call(rpAddr).refused())
		require.Equal(t, maxPending+1, d.handshakes())
		for range 10 {
			d.end <- struct{}{}
		}
		synctest.Wait()
		require.False(t, d.call("2001:db8:1::1").refused())

		d.stop()
		open := 0
		for _, c := range all {
			if !c.refused() {
				open++
			}
		}
		require.LessOrEqual(t, open, 10, "only those that are through stay open")
	})
}

// Of many handshakes, few compute at a time, and none waits for one that only waits.
func TestHandshakesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := make(chan struct{}, 2)
		var computing, most, done int
		var mu sync.Mutex
		var all sync.WaitGroup
		far := make([]net.Conn, 20)
		for i := range far {
			near, other := net.Pipe()
			far[i] = other
			all.Go(func() {
				c := &pacedConn{Conn: near, turns: turns}
				defer c.finish()
				defer near.Close()
				for _, answer := range []bool{false, true, false} {
					if _, err := c.Read(make([]byte, 1)); err != nil {
						return
					}
					mu.Lock()
					computing++
					most = max(most, computing)
					mu.Unlock()
					time.Sleep(time.Millisecond)
					mu.Lock()
					computing--
					mu.Unlock()
					if answer {
						if _, err := c.Write([]byte{1}); err != nil {
							t.Error(err)
						}
					}
				}
				mu.Lock()
				done++
				mu.Unlock()
			})
		}
		start := time.Now()
		for _, step := range []func(net.Conn, []byte) (int, error){net.Conn.Write, net.Conn.Write, net.Conn.Read, net.Conn.Write} {
			for _, c := range far[1:] { // the first one says nothing
				_, err := step(c, []byte{1})
				require.NoError(t, err)
			}
		}
		took := time.Since(start)
		far[0].Close()
		all.Wait()
		require.Equal(t, len(far)-1, done)
		require.Equal(t, 2, most)
		require.Empty(t, turns)
		require.GreaterOrEqual(t, took, 2*19/2*time.Millisecond)
	})
}

// A connection that is through while it waits for its turn keeps none.
func TestTurnAfterTheHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := make(chan struct{}, 1)
		turns <- struct{}{} // of another one
		near, far := net.Pipe()
		c := &pacedConn{Conn: near, turns: turns}
		read := make(chan error)
		go func() {
			_, err := c.Read(make([]byte, 1))
			read <- err
		}()
		_, err := far.Write([]byte{1})
		require.NoError(t, err)
		synctest.Wait()
		c.finish()
		<-turns
		require.NoError(t, <-read)
		require.Empty(t, turns)
	})
}
