// SPDX-License-Identifier: LGPL-3.0-or-later

package front

import (
	"bytes"
	"crypto/ecdsa"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/rp/front/rlpx"
	"github.com/ethmcast/mdcs/rp/membership"
)

func newKey(t *testing.T) *ecdsa.PrivateKey {
	key, err := crypto.GenerateKey()
	require.NoError(t, err)
	return key
}

// port is a net.Listener whose connections the test makes, in memory.
type port struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPort() *port { return &port{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *port) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *port) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *port) Addr() net.Addr { return &net.TCPAddr{} }

// line is an end of a connection, whose other end has an address.
type line struct {
	net.Conn
	remote netip.Addr
}

func (l *line) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.remote, 1)) }

// house is a Server with a capability that echoes what it gets.
type house struct {
	*Server
	t      *testing.T
	port   *port
	key    *ecdsa.PrivateKey
	opened atomic.Int64 // and not closed
	served atomic.Int64
}

const testLimit = 100 << 10

// newHouse starts a Server. Its capability "echo" has 4 messages: 0 is answered, 1 begins
// a session, 2 ends it, and 3 ends the connection.
func newHouse(t *testing.T, edit func(*Config)) *house {
	h := &house{t: t, port: newPort(), key: newKey(t)}
	cfg := Config{
		Key:      h.key,
		Name:     "house",
		Listener: h.port,
		Protocols: []Protocol{{
			Name: "echo", Version: 1, Length: 4, MaxMessage: testLimit, Dialled: true,
			Run: func(c Conn) error {
				h.served.Add(1)
				defer h.served.Add(-1)
				for {
					code, payload, err := c.ReadMsg()
					if err != nil {
						return err
					}
					switch code {
					case 0:
						if err := c.WriteMsg(0, payload); err != nil {
							return err
						}
					case 1, 2:
						c.SetSession(code == 1)
					case 3:
						return p2p.DiscRequested
					}
				}
			},
		}},
		Limits: Limits{Connections: 10, Handshakes: 5, Idle: time.Minute, IdleFull: 10 * time.Second},
		Opened: func(enode.ID) { h.opened.Add(1) },
		Closed: func(enode.ID) { h.opened.Add(-1) },
		Log:    slog.New(slog.DiscardHandler),
	}
	if edit != nil {
		edit(&cfg)
	}
	h.Server = New(cfg)
	h.Start()
	t.Cleanup(func() {
		h.Stop()
		require.Zero(t, h.opened.Load())
		require.Zero(t, h.served.Load())
		require.Empty(t, h.open)
		require.Zero(t, h.table.n)
		require.Empty(t, h.shaking)
	})
	return h
}

// knock connects from an address and says nothing.
func (h *house) knock(addr netip.Addr) net.Conn {
	near, far := net.Pipe()
	h.t.Cleanup(func() { far.Close() })
	h.port.conns <- &line{near, addr}
	return far
}

// guest is the other side of a connection.
type guest struct {
	t  *testing.T
	fd net.Conn
	*rlpx.Conn
	hello *rlpx.Hello
}

// visit connects and shakes hands.
func (h *house) visit(addr netip.Addr, key *ecdsa.PrivateKey, caps ...p2p.Cap) (*guest, error) {
	g := &guest{t: h.t, fd: h.knock(addr)}
	if len(caps) == 0 {
		caps = []p2p.Cap{{Name: "echo", Version: 1}}
	}
	var err error
	if g.Conn, err = rlpx.Dial(g.fd, key, &h.key.PublicKey); err != nil {
		return nil, err
	}
	var hello bytes.Buffer // nothing is compressed yet
	require.NoError(h.t, g.WriteHello(&hello, rlpx.NewHello(key, "guest", caps)))
	sent := make(chan error, 1)
	go func() { _, err := hello.WriteTo(g.fd); sent <- err }()
	if g.hello, err = g.ReadHello(g.fd); err != nil {
		return nil, err
	}
	return g, <-sent
}

// welcome is visit, and must succeed.
func (h *house) welcome(addr netip.Addr) *guest {
	h.t.Helper()
	g, err := h.visit(addr, newKey(h.t))
	require.NoError(h.t, err)
	synctest.Wait()
	return g
}

func (g *guest) send(code uint64, payload []byte) {
	g.t.Helper()
	require.NoError(g.t, g.Write(g.fd, code, payload))
	synctest.Wait()
}

// next returns the next message.
func (g *guest) next() (uint64, []byte) {
	g.t.Helper()
	code, payload, err := g.Read(g.fd, 1<<20, nil)
	require.NoError(g.t, err)
	return code, payload
}

// disconnected waits for the end, which must have a reason.
func (g *guest) disconnected(want p2p.DiscReason) {
	g.t.Helper()
	for {
		code, payload := g.next()
		if code == rlpx.PingMsg {
			continue
		}
		require.Equal(g.t, uint64(rlpx.DisconnectMsg), code)
		require.Equal(g.t, want, rlpx.ParseDisconnect(payload))
		break
	}
	g.closed()
}

// closed waits for the end without one.
func (g *guest) closed() {
	g.t.Helper()
	for {
		code, _, err := g.Read(g.fd, 1<<20, nil)
		if err != nil {
			return
		}
		require.Equal(g.t, uint64(rlpx.PingMsg), code)
	}
}

func closed(t *testing.T, fd net.Conn) {
	t.Helper()
	_, err := fd.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}

var home, other = netip.MustParseAddr("2001:db8:1:1::1"), netip.MustParseAddr("2001:db9:1:1::1")

func TestMessagesPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, nil)
		g := h.welcome(home)
		require.Equal(t, "house", g.hello.Name)
		require.Equal(t, []p2p.Cap{{Name: "echo", Version: 1}}, g.hello.Caps)
		g.send(rlpx.PingMsg, emptyList)
		code, payload := g.next()
		require.Equal(t, uint64(rlpx.PongMsg), code)
		require.Equal(t, emptyList, payload)
		g.send(0x10, []byte("hello"))
		code, payload = g.next()
		require.Equal(t, uint64(0x10), code)
		require.Equal(t, "hello", string(payload))
		st := h.Stats()
		require.Equal(t, []int{1, 0, 1, 0}, []int{st.Strangers, st.Handshakes, st.Idle, st.Neighbours})
		require.Equal(t, int64(1), h.opened.Load())
		g.send(0x13, nil)
		g.disconnected(p2p.DiscRequested)
		synctest.Wait()
		require.Zero(t, h.Stats().Strangers)
	})
}

// Each state ends at its deadline, and costs its place no longer.
func TestDeadlines(t *testing.T) {
	for _, c := range []struct {
		name   string
		reach  func(h *house) interface{ Close() error }
		after  time.Duration
		reason Reason // 0 for the end of a connection that was served
	}{
		{"no byte", func(h *house) interface{ Close() error } { return h.knock(home) }, 3 * time.Second, Silent},
		{"a part of the handshake", func(h *house) interface{ Close() error } {
			fd := h.knock(home)
			_, err := fd.Write([]byte{1, 100, 4})
			require.NoError(h.t, err)
			return fd
		}, 5 * time.Second, Silent},
		{"no hello", func(h *house) interface{ Close() error } {
			fd := h.knock(home)
			c, err := rlpx.Dial(fd, newKey(h.t), &h.key.PublicKey)
			require.NoError(h.t, err)
			go func() { _, _, _ = c.Read(fd, 1<<20, nil) }()
			return fd
		}, 5 * time.Second, Silent},
		{"no session", func(h *house) interface{ Close() error } {
			g := h.welcome(home)
			go g.talk()
			return g.fd
		}, time.Minute, Idle},
		{"silent with a session", func(h *house) interface{ Close() error } {
			g := h.welcome(home)
			g.send(0x11, nil)
			go g.listen()
			return g.fd
		}, 30 * time.Second, Taken},
		{"a part of a message", func(h *house) interface{ Close() error } {
			g := h.welcome(home)
			g.send(0x11, nil)
			_, err := g.fd.Write([]byte{1})
			require.NoError(h.t, err)
			go g.listen()
			return g.fd
		}, 10 * time.Second, Taken},
		{"reads nothing", func(h *house) interface{ Close() error } {
			g := h.welcome(home)
			g.send(0x11, nil)
			g.send(0x10, []byte("what"))
			return g.fd
		}, 5 * time.Second, Taken},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, nil)
				fd := c.reach(h)
				synctest.Wait()
				time.Sleep(c.after - time.Millisecond)
				synctest.Wait()
				require.Equal(t, 1, h.Stats().Strangers)
				time.Sleep(3 * time.Second) // the look at idle connections, and a last message
				synctest.Wait()
				require.Zero(t, h.Stats().Strangers)
				for r, n := range h.Stats().Refused {
					require.Equal(t, r == c.reason, n == 1, "%v", r)
				}
				fd.Close()
			})
		})
	}
}

// talk keeps a connection from being silent, to its end.
func (g *guest) talk() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.listen()
	}()
	ticker := time.NewTicker(10 * time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if g.Write(g.fd, rlpx.PongMsg, emptyList) != nil {
				return
			}
		case <-done:
			return
		}
	}
}

// listen reads to the end.
func (g *guest) listen() {
	for {
		if _, _, err := g.Read(g.fd, 1<<20, nil); err != nil {
			return
		}
	}
}

// A node is pinged, and one that answers is not lost.
func TestPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, nil)
		g := h.welcome(home)
		g.send(0x11, nil)
		start := time.Now()
		for i := range 10 {
			code, _ := g.next()
			require.Equal(t, uint64(rlpx.PingMsg), code)
			require.Equal(t, time.Duration(i+1)*rlpx.PingInterval, time.Since(start))
			g.send(rlpx.PongMsg, emptyList)
		}
		require.Equal(t, 1, h.Stats().Strangers)
	})
}

// What no node of devp2p does ends the connection.
func TestBreaches(t *testing.T) {
	for name, do := range map[string]func(*guest){
		"ping of 3 KB":    func(g *guest) { _ = g.Write(g.fd, rlpx.PingMsg, make([]byte, 3000)) },
		"second hello":    func(g *guest) { _ = g.Write(g.fd, rlpx.HelloMsg, emptyList) },
		"base code":       func(g *guest) { _ = g.Write(g.fd, 0x0f, emptyList) },
		"code of nobody":  func(g *guest) { _ = g.Write(g.fd, 0x14, emptyList) },
		"large code":      func(g *guest) { _ = g.Write(g.fd, 1<<63, emptyList) },
		"pings":           func(g *guest) { g.pings(pingBurst + 1) },
		"pings at a rate": func(g *guest) { g.pings(pingBurst); time.Sleep(pingPause - 1); g.pings(1) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, nil)
				g := h.welcome(home)
				go do(g)
				for {
					code, payload := g.next()
					if code == rlpx.PongMsg {
						continue
					}
					require.Equal(t, uint64(rlpx.DisconnectMsg), code)
					require.Equal(t, p2p.DiscProtocolError, rlpx.ParseDisconnect(payload))
					break
				}
				g.closed()
				synctest.Wait()
				require.Equal(t, uint64(1), h.Stats().Refused[Breach])
			})
		})
	}
}

// While a stranger has to wait nothing of it is held: the message that is beyond the pace is
// not read before its time.
func TestNothingIsHeldWhileAStrangerWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, func(c *Config) { c.Limits.Idle = 0 })
		g, err := h.visit(home, newKey(t))
		require.NoError(t, err)
		began := time.Now()
		for {
			require.NoError(t, g.Write(g.fd, 0x10, make([]byte, firstMessages))) // until it is read
			if time.Since(began) > 0 {
				break
			}
			g.next()
			require.Zero(t, time.Since(began), "a message was read that had to wait")
		}
		require.Equal(t, uint64(1), h.Stats().Delayed)
	})
}

func (g *guest) pings(n int) {
	for range n {
		if g.Write(g.fd, rlpx.PingMsg, emptyList) != nil {
			return
		}
	}
}

// A stranger who sends faster than is read has to wait, and is not harmed. Trusted nodes,
// and messages of a capability with bounds of its own, are read as fast as they come.
func TestPace(t *testing.T) {
	for _, x := range []struct {
		name    string
		size, n int
		wait    time.Duration
	}{
		{"small messages", 0, 1000, (1000 - 256) * time.Second / paceMessages},
		{"large messages", firstMessages, 200, 200*(time.Second*firstMessages/paceBytes+time.Second/paceMessages) - paceBurst},
		{"as many as may come at once", 0, 256, 0},
	} {
		t.Run(x.name, func(t *testing.T) {
			for _, who := range []string{"stranger", "trusted", "of a bounded capability"} {
				synctest.Test(t, func(t *testing.T) {
					key := newKey(t)
					h := newHouse(t, func(c *Config) {
						c.Limits.Idle = 0
						c.Protocols[0].Bounded = who == "of a bounded capability"
						if who == "trusted" {
							c.Trusted = []*enode.Node{enode.NewV4(&key.PublicKey, other.AsSlice(), 1, 0)}
						}
					})
					g, err := h.visit(home, key)
					require.NoError(t, err)
					began := time.Now()
					go func() {
						for range x.n {
							if g.Write(g.fd, 0x10, make([]byte, x.size)) != nil {
								return
							}
						}
					}()
					for range x.n {
						code, _ := g.next()
						require.Equal(t, uint64(0x10), code)
					}
					if who != "stranger" {
						require.Zero(t, time.Since(began))
						require.Zero(t, h.Stats().Delayed)
						return
					}
					require.InDelta(t, x.wait, time.Since(began), float64(time.Second))
					require.Equal(t, x.wait > 0, h.Stats().Delayed > 0)
				})
			}
		})
	}
}

// A connection takes its place until it is closed, whether the other side reads or not, and
// its node may come again before.
func TestPlaceUntilClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, nil)
		key := newKey(t)
		g, err := h.visit(home, key)
		require.NoError(t, err)
		g.send(0x13, nil) // ends it, and the reason is not read
		require.Equal(t, 1, h.Stats().Strangers)
		again, err := h.visit(home, key)
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, 2, h.Stats().Strangers)
		time.Sleep(closeTimeout)
		synctest.Wait()
		require.Equal(t, 1, h.Stats().Strangers)
		again.fd.Close()
	})
}

// Whoever the front sends away is gone soon, although it reads nothing of what is written
// to it at that time.
func TestEndOfWhomReadsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, func(c *Config) { c.Limits.Idle = 10 * time.Second })
		g := h.welcome(home)
		time.Sleep(9500 * time.Millisecond)
		g.send(0x10, []byte("what")) // the answer may take 5 s
		time.Sleep(sweepInterval)
		synctest.Wait()
		require.Equal(t, uint64(1), h.Stats().Refused[Idle])
		time.Sleep(closeTimeout)
		synctest.Wait()
		h.mu.Lock()
		defer h.mu.Unlock()
		require.Empty(t, h.open)
	})
}

// A reader that still waits when its capability has ended does not keep the connection of a
// host that neither answers nor closes: closing takes no longer than that of any other.
func TestEndWhileReading(t *testing.T) {
	tcp, err := net.Listen("tcp6", "[::1]:0")
	require.NoError(t, err)
	read := make(chan error, 1)
	h := newHouse(t, func(c *Config) {
		c.Listener = tcp
		c.Protocols[0].Run = func(c Conn) error {
			first, began := make(chan struct{}), false
			go func() {
				for {
					_, _, err := c.ReadMsg()
					if err != nil {
						read <- err
						return
					}
					if !began {
						close(first)
						began = true
					}
				}
			}()
			<-first
			return p2p.DiscRequested
		}
	})
	fd, err := net.Dial("tcp6", tcp.Addr().String())
	require.NoError(t, err)
	defer fd.Close()
	g := &guest{t: t, fd: fd}
	key := newKey(t)
	g.Conn, err = rlpx.Dial(fd, key, &h.key.PublicKey)
	require.NoError(t, err)
	require.NoError(t, g.WriteHello(fd, rlpx.NewHello(key, "guest", []p2p.Cap{{Name: "echo", Version: 1}})))
	_, err = g.ReadHello(fd)
	require.NoError(t, err)
	require.NoError(t, g.Write(fd, 0x10, nil))
	require.Eventually(t, func() bool { return h.Stats().Accepted == 1 && h.Stats().Strangers == 0 }, 10*time.Second, 10*time.Millisecond)
	require.Error(t, <-read)
	g.disconnected(p2p.DiscRequested) // the reason was sent, although nobody read it
}

// Large messages that are not whole take a bounded memory, however many members send them. Others
// wait, no longer than a message may take, also with a frame that is small and becomes large; small
// messages do not wait.
func TestLargeMessagesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, func(c *Config) { c.Limits = Limits{Idle: time.Minute} })
		large := incompressible(testLimit)
		for i := range largeMessages {
			h.holdLarge(at(i+1, 1, 1), large)
		}
		require.Equal(t, largeMessages, h.large.inUse())
		small := h.welcome(other)
		small.send(0x10, []byte("hello"))
		code, _ := small.next()
		require.Equal(t, uint64(0x10), code)

		time.Sleep(time.Second)
		began := time.Now()
		honest := [][]byte{large, make([]byte, testLimit)}
		var guests []*guest
		for _, message := range honest {
			g := h.welcome(other)
			g.send(0x11, nil)
			go func() { _ = g.Write(g.fd, 0x10, message) }()
			guests = append(guests, g)
		}
		synctest.Wait()
		require.Equal(t, largeMessages, h.large.inUse())
		for i, g := range guests {
			code, payload := g.next()
			require.Equal(t, uint64(0x10), code)
			require.Equal(t, honest[i], payload)
		}
		require.InDelta(t, frameTimeout-time.Second, time.Since(began), float64(largeLook), "when the others had to be whole")
		synctest.Wait()
		require.Zero(t, h.large.inUse(), "those that were not whole in time have ended")
	})
}

// Who sends large messages that are never whole keeps none of another site from sending one:
// neither by one /48 nor by many of one /32.
func TestLargeMessagesAreShared(t *testing.T) {
	for name, addr := range map[string]func(i int) netip.Addr{
		"a /64": func(int) netip.Addr { return at(1, 1, 1) },
		"a /48": func(i int) netip.Addr { return at(1, 1, i) },
		"a /32": func(i int) netip.Addr { return at(1, i, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, func(c *Config) { c.Limits = Limits{Idle: time.Minute} })
				large := incompressible(testLimit)
				for i := range largeMessages {
					h.holdLarge(addr(i), large)
				}
				began := time.Now()
				for i := range 10 {
					honest := h.welcome(at(2, i, 1))
					honest.send(0x11, nil)
					go func() { _ = honest.Write(honest.fd, 0x10, large) }()
					_, payload := honest.next()
					require.Len(t, payload, testLimit)
				}
				require.Zero(t, time.Since(began))
			})
		})
	}
}

// Who never had a session has no large message: the largest that it can send takes no room of
// those, although its frame is larger than the message.
func TestNoLargeMessageWithoutSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, nil)
		g := h.welcome(home)
		var frame bytes.Buffer
		require.NoError(t, g.Write(&frame, 0x10, incompressible(firstMessages)))
		require.Greater(t, frame.Len(), firstMessages)
		_, err := g.fd.Write(frame.Bytes()[:frame.Len()-1])
		require.NoError(t, err)
		synctest.Wait()
		require.Zero(t, h.large.inUse())
		_, err = g.fd.Write(frame.Bytes()[frame.Len()-1:])
		require.NoError(t, err)
		_, payload := g.next()
		require.Len(t, payload, firstMessages)
	})
}

// A stranger who sends too fast is waited for with nothing in the hand: each message that is read
// is given to the capability at once.
func TestNothingIsHeldByPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var given atomic.Int64
		h := newHouse(t, func(c *Config) {
			c.Protocols[0].Run = func(c Conn) error {
				c.SetSession(true)
				for {
					if _, _, err := c.ReadMsg(); err != nil {
						return err
					}
					given.Add(1)
				}
			}
		})
		g := h.welcome(home)
		go g.listen()
		var sent atomic.Int64
		go func() {
			for g.Write(g.fd, 0x10, make([]byte, testLimit)) == nil { // some KB on the line
				sent.Add(1)
			}
		}()
		for range 20 {
			synctest.Wait()
			require.Positive(t, given.Load())
			require.Equal(t, sent.Load(), given.Load())
			time.Sleep(100 * time.Millisecond)
		}
		require.Positive(t, h.Stats().Delayed)
		g.fd.Close()
	})
}

// incompressible returns n bytes that snappy makes no smaller.
func incompressible(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{}).Read(b)
	return b
}

// holdLarge connects from an address, has a session, and sends a message without its last byte.
// It does not wait until the message is read.
func (h *house) holdLarge(addr netip.Addr, message []byte) {
	h.t.Helper()
	g := h.welcome(addr)
	g.send(0x11, nil)
	var frame bytes.Buffer
	require.NoError(h.t, g.Write(&frame, 0x10, message))
	go func() { _, _ = g.fd.Write(frame.Bytes()[:frame.Len()-1]) }()
	synctest.Wait()
}

// Before its first session a node can send but small messages.
func TestMessagesBeforeASession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, nil)
		g := h.welcome(home)
		g.send(0x10, make([]byte, firstMessages))
		_, payload := g.next()
		require.Len(t, payload, firstMessages)
		g.send(0x11, nil)
		g.send(0x12, nil) // messages may be under way when it ends
		g.send(0x10, make([]byte, testLimit))
		_, payload = g.next()
		require.Len(t, payload, testLimit)
		go func() { _ = g.Write(g.fd, 0x10, make([]byte, testLimit+1)) }()
		g.closed()

		g = h.welcome(home)
		go func() { _ = g.Write(g.fd, 0x10, make([]byte, firstMessages+1)) }()
		g.closed()
	})
}

func TestWhoIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listed := newKey(t)
		h := newHouse(t, func(c *Config) {
			c.Protocols[0].Allowed = func(id enode.ID) bool { return id == enode.PubkeyToIDV4(&listed.PublicKey) }
		})
		_, err := h.visit(home, newKey(t))
		require.ErrorIs(t, err, p2p.DiscUselessPeer, "before hello")
		require.Equal(t, uint64(1), h.Stats().Refused[Unlisted])

		g, err := h.visit(home, listed, p2p.Cap{Name: "eth", Version: 69})
		require.NoError(t, err)
		g.disconnected(p2p.DiscUselessPeer)
		require.Equal(t, uint64(1), h.Stats().Refused[Useless])

		// A node has one connection.
		first, err := h.visit(home, listed)
		require.NoError(t, err)
		synctest.Wait() // it is served before the second one comes
		second, err := h.visit(home, listed)
		require.NoError(t, err)
		second.disconnected(p2p.DiscAlreadyConnected)
		self, err := h.visit(home, h.key)
		require.ErrorIs(t, err, p2p.DiscUselessPeer)
		require.Nil(t, self)
		first.send(0x13, nil)
		first.disconnected(p2p.DiscRequested)
		synctest.Wait()
		require.Equal(t, uint64(1), h.Stats().Refused[Duplicate])
	})
}

// A site that takes all places with connections, silent or idle, keeps nobody else out.
func TestFloods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, nil)
		// Silent handshakes.
		for range 100 {
			h.knock(home)
			synctest.Wait()
		}
		require.Equal(t, 5, h.Stats().Handshakes)
		require.Equal(t, uint64(95), h.Stats().Refused[FullHandshakes])
		honest := h.welcome(other)
		honest.send(0x10, []byte("there"))
		_, payload := honest.next()
		require.Equal(t, "there", string(payload))
		require.Equal(t, uint64(1), h.Stats().Refused[Displaced])
		time.Sleep(4 * time.Second)
		synctest.Wait()
		require.Zero(t, h.Stats().Handshakes)

		// Idle connections.
		for range 9 {
			go h.welcomeOnly(home).talk()
		}
		synctest.Wait()
		require.Equal(t, 10, h.Stats().Strangers)
		closed(t, h.knock(home))
		second := h.welcome(other)
		second.send(0x11, nil)
		require.Equal(t, 10, h.Stats().Strangers)
		require.Equal(t, uint64(2), h.Stats().Refused[Displaced])
		honest.send(0x11, nil)

		// More than half of the places are taken: who is idle leaves soon.
		go honest.talk()
		go second.talk()
		time.Sleep(12 * time.Second)
		synctest.Wait()
		require.Equal(t, 2, h.Stats().Strangers)
	})
}

// welcomeOnly is visit for a guest whose connection the test does not wait for.
func (h *house) welcomeOnly(addr netip.Addr) *guest {
	g, err := h.visit(addr, newKey(h.t))
	require.NoError(h.t, err)
	return g
}

// Trusted nodes find a place when all are taken: by their address for some handshakes,
// and by their key from anywhere.
func TestTrusted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rp := newKey(t)
		node := enode.NewV4(&rp.PublicKey, other.AsSlice(), 30500, 0)
		h := newHouse(t, func(c *Config) { c.Trusted = []*enode.Node{node} })
		for range 5 {
			h.knock(home)
		}
		for range trustedShaking {
			h.knock(other)
		}
		synctest.Wait()
		require.Equal(t, 5, h.Stats().Handshakes)
		h.knock(other) // as a stranger, whose prefix has less
		synctest.Wait()
		require.Equal(t, 5, h.Stats().Handshakes)
		require.Equal(t, uint64(1), h.Stats().Refused[Displaced])
		time.Sleep(4 * time.Second)
		synctest.Wait()

		g, err := h.visit(home, rp)
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, 1, h.Stats().Neighbours)
		require.Zero(t, h.Stats().Strangers)
		g.send(0x10, make([]byte, testLimit))
		_, payload := g.next()
		require.Len(t, payload, testLimit)
		go g.talk()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		require.Equal(t, 1, h.Stats().Neighbours, "it needs no session")

		// A stranger at the address of a trusted node is a stranger.
		h.welcome(other)
		require.Equal(t, 1, h.Stats().Strangers)
		h.SetTrusted(nil)
		h.knock(other)
		synctest.Wait()
		require.Equal(t, 2, h.Stats().Strangers)
	})
}

// The front dials, too; both ends are this package.
func TestDial(t *testing.T) {
	tcp, err := net.Listen("tcp6", "[::1]:0")
	require.NoError(t, err)
	a, b := newHouse(t, nil), newHouse(t, func(c *Config) { c.Listener = tcp })
	dial := func(key *ecdsa.PrivateKey) error {
		fd, err := net.Dial("tcp6", tcp.Addr().String())
		require.NoError(t, err)
		return a.Dial(fd, enode.NewV4(&key.PublicKey, net.IPv6loopback, 1, 0))
	}
	trusted := enode.NewV4(&b.key.PublicKey, net.IPv6loopback, 1, 0)
	a.SetTrusted([]*enode.Node{trusted})
	require.NoError(t, dial(b.key))
	require.Equal(t, 1, a.Stats().Neighbours, "who is trusted counts for no limit")
	require.Equal(t, int64(1), a.opened.Load())
	require.Eventually(t, func() bool { return b.Stats().Strangers == 1 && b.opened.Load() == 1 }, 10*time.Second, time.Millisecond)

	require.Error(t, dial(newKey(t)), "not who was expected")
	require.ErrorIs(t, dial(b.key), p2p.DiscAlreadyConnected)
	require.Equal(t, uint64(1), a.Stats().Refused[Duplicate])
	a.Close()
	require.Error(t, dial(b.key))
}

// A node that was dialled and that nobody trusts is a stranger: it has a place, small messages
// first, a pace, and an end when it has no session. A trusted one has none of these. Neither is
// served by a capability that is not dialled.
func TestDialledStranger(t *testing.T) {
	for _, trusted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			key := newKey(t)
			node := enode.NewV4(&key.PublicKey, home.AsSlice(), 1, 0)
			h := newHouse(t, func(c *Config) {
				echo := c.Protocols[0]
				echo.Name, echo.Dialled = "another", false
				c.Protocols = append(c.Protocols, echo)
				if trusted {
					c.Trusted = []*enode.Node{node}
				}
			})
			g, err := h.dial(node, key, "another")
			require.ErrorIs(t, err, p2p.DiscUselessPeer)
			g.disconnected(p2p.DiscUselessPeer)
			synctest.Wait()
			require.Zero(t, h.Stats().Strangers)

			g, err = h.dial(node, key, "echo")
			require.NoError(t, err)
			if trusted {
				require.Equal(t, []int{0, 1}, []int{h.Stats().Strangers, h.Stats().Neighbours})
			} else {
				require.Equal(t, []int{1, 0}, []int{h.Stats().Strangers, h.Stats().Neighbours})
			}
			go g.listen()
			for range 1000 {
				require.NoError(t, g.Write(g.fd, rlpx.PongMsg, emptyList))
			}
			require.Equal(t, !trusted, h.Stats().Delayed > 0)
			for range 7 {
				time.Sleep(10 * time.Second)
				_ = g.Write(g.fd, rlpx.PongMsg, emptyList) // that of a stranger fails in the end
			}
			synctest.Wait()
			require.Equal(t, trusted, h.opened.Load() == 1)
			g.fd.Close()
		})
	}
}

// dial has the Server dial a node, whose Hello names one capability.
func (h *house) dial(node *enode.Node, key *ecdsa.PrivateKey, name string) (*guest, error) {
	near, far := net.Pipe()
	h.t.Cleanup(func() { far.Close() })
	done := make(chan error, 1)
	go func() { done <- h.Dial(&line{near, node.IPAddr()}, node) }()
	g := &guest{t: h.t, fd: far}
	var err error
	g.Conn, err = rlpx.Accept(far, key, nil, nil)
	require.NoError(h.t, err)
	var hello bytes.Buffer
	require.NoError(h.t, g.WriteHello(&hello, rlpx.NewHello(key, "guest", []p2p.Cap{{Name: name, Version: 1}})))
	go func() { _, _ = hello.WriteTo(far) }()
	g.hello, err = g.ReadHello(far)
	require.NoError(h.t, err)
	synctest.Wait()
	select {
	case err = <-done:
	default: // it waits for the last message to be read
		err = p2p.DiscUselessPeer
	}
	return g, err
}

// Who repeats what a trusted node once said keeps the place of a stranger: only Hello proves that
// the node is there.
func TestTrustedByHello(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rp := newKey(t)
		h := newHouse(t, func(c *Config) {
			c.Trusted = []*enode.Node{enode.NewV4(&rp.PublicKey, other.AsSlice(), 1, 0)}
		})
		fd := h.knock(home)
		_, err := rlpx.Dial(fd, rp, &h.key.PublicKey) // auth is right, Hello does not come
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, []int{1, 1}, []int{h.Stats().Strangers, h.Stats().Handshakes})
		fd.Close()
		_, err = h.visit(home, rp)
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, []int{0, 1}, []int{h.Stats().Strangers, h.Stats().Neighbours})
	})
}

// Stop tells who is connected, Close ends handshakes alone.
func TestEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, nil)
		silent := h.knock(home)
		g := h.welcome(home)
		h.Close()
		closed(t, silent)
		synctest.Wait()
		require.Equal(t, 1, h.Stats().Strangers)
		go h.Stop()
		g.disconnected(p2p.DiscQuitting)
	})
}

// go-ethereum's devp2p connects and stays, whoever dials, and is told why it has to leave.
func TestSpeaksWithGeth(t *testing.T) {
	tcp, err := net.Listen("tcp6", "[::1]:0")
	require.NoError(t, err)
	h := newHouse(t, func(c *Config) { c.Listener = tcp })
	runs := make(chan p2p.MsgReadWriter, 1)
	ends := make(chan error, 1)
	start := func(caps string) *p2p.Server {
		s := &p2p.Server{Config: p2p.Config{
			PrivateKey: newKey(t), MaxPeers: 10, NoDiscovery: true, ListenAddr: "[::1]:0", Name: "geth",
			Protocols: []p2p.Protocol{{Name: caps, Version: 1, Length: 4, Run: func(_ *p2p.Peer, rw p2p.MsgReadWriter) error {
				runs <- rw
				msg, err := rw.ReadMsg()
				if err == nil {
					err = errors.New("message where the end was expected")
					_ = msg.Discard()
				}
				ends <- err
				return err
			}}},
		}}
		require.NoError(t, s.Start())
		t.Cleanup(s.Stop)
		return s
	}
	geth := start("echo")
	self := enode.NewV4(&h.key.PublicKey, net.IPv6loopback, tcp.Addr().(*net.TCPAddr).Port, 0)
	for _, dial := range []func() error{
		func() error {
			fd, err := net.Dial("tcp6", tcp.Addr().String())
			require.NoError(t, err)
			return geth.SetupConn(fd, 1<<1, self) // statically dialled
		},
		func() error {
			fd, err := net.Dial("tcp6", geth.ListenAddr)
			require.NoError(t, err)
			return h.Dial(fd, geth.Self())
		},
	} {
		require.NoError(t, dial())
		rw := <-runs
		require.NoError(t, p2p.SendItems(rw, 3)) // please end it
		require.ErrorIs(t, <-ends, io.EOF)
		require.Eventually(t, func() bool { return geth.PeerCount() == 0 && h.opened.Load() == 0 }, 10*time.Second, time.Millisecond)
	}
	fd, err := net.Dial("tcp6", tcp.Addr().String())
	require.NoError(t, err)
	require.ErrorIs(t, start("other").SetupConn(fd, 1<<1, self), p2p.DiscUselessPeer)
}

// A site takes no more than what its connections and its members may: some 60 MiB by the
// default limits, whatever it sends. An honest peer of another site is let in meanwhile.
func TestMemoryOfASite(t *testing.T) {
	const sessions, per64, per48 = 10_000, 16, 256
	limits := LimitsFor(sessions, per64, per48)
	limits.Rates = membership.Rates{} // the site has all the time that it needs
	h := newHouse(t, func(c *Config) {
		c.Limits = limits
		c.Protocols[0].MaxMessage = 128 << 10
	})
	site := func(i int) netip.Addr { return at(1, 1, i/per64) }
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := heap()
	bomb := append([]byte{0xff, 0xff, 0xff, 0x07}, make([]byte, 700_000)...) // claims 16 MB
	part := make([]byte, 149<<10)
	rand.NewChaCha8([32]byte{}).Read(part)
	guests := make([]*guest, limits.Per48)
	for i := range guests {
		g, err := h.visit(site(i), newKey(t))
		require.NoError(t, err)
		guests[i] = g
		if i < per48 {
			require.NoError(t, g.Write(g.fd, 0x11, nil)) // a session
		}
	}
	require.Eventually(t, func() bool { return h.Stats().Strangers == limits.Per48 }, 10*time.Second, time.Millisecond)
	for i := range 2 * per48 { // more connections, which are refused, and half a handshake
		fd := h.knock(site(i))
		_, _ = fd.Write([]byte{0x08})
	}
	// Of the members each holds the largest message back from its last byte on, and of the
	// others each claims 16 MB.
	var all sync.WaitGroup
	for i, g := range guests {
		all.Go(func() {
			if i >= per48 {
				g.SetSnappy(false)
				_ = g.fd.SetWriteDeadline(time.Now().Add(time.Second))
				_ = g.Write(g.fd, rlpx.PingMsg, bomb)
				return
			}
			var frame bytes.Buffer
			if g.Write(&frame, 0x10, part[:128<<10]) == nil {
				_, _ = g.fd.Write(frame.Bytes()[:frame.Len()-1])
			}
		})
	}
	all.Wait()
	grown := int64(heap()) - int64(before)
	// Both ends and their copies of the frames are in this process: the test's own part is
	// that of the frames that it wrote, which are garbage by now.
	t.Logf("%d connections of a /48: %.1f MiB", h.Stats().Strangers, float64(grown)/(1<<20))
	require.Less(t, grown, int64(64<<20))

	began := time.Now()
	_, err := h.visit(at(2, 1, 1), newKey(t))
	require.NoError(t, err)
	t.Logf("an honest peer after %v", time.Since(began))
	require.Less(t, time.Since(began), 5*time.Second)
	runtime.KeepAlive(guests)
}

// A banned address is asked for before anything is read from it, takes no place, and is counted.
// The address of a trusted node is never banned, but a stranger that comes from it is.
func TestBannedAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		banned := map[netip.Addr]bool{netip.MustParseAddr("2001:db8::1"): true}
		var mu sync.Mutex
		rp := newKey(t)
		trusted := netip.MustParseAddr("2001:db8::2")
		h := newHouse(t, func(c *Config) {
			c.Banned = func(addr netip.Addr) bool {
				mu.Lock()
				defer mu.Unlock()
				return banned[addr]
			}
			c.Trusted = []*enode.Node{enode.NewV4(&rp.PublicKey, trusted.AsSlice(), 30303, 0)}
		})
		ban := func(addr string, on bool) {
			mu.Lock()
			defer mu.Unlock()
			banned[netip.MustParseAddr(addr)] = on
		}
		_, err := h.knock(netip.MustParseAddr("2001:db8::1")).Read(make([]byte, 1))
		require.Error(t, err)
		synctest.Wait()
		st := h.Server.Stats()
		require.Equal(t, uint64(1), st.Refused[Banned])
		require.Zero(t, st.Strangers)
		require.Equal(t, uint64(1), st.Accepted)

		h.welcome(netip.MustParseAddr("2001:db8::3"))
		ban("2001:db8::1", false)
		h.welcome(netip.MustParseAddr("2001:db8::1"))

		ban("2001:db8::2", true)
		_, err = h.visit(trusted, rp)
		require.NoError(t, err)
		_, err = h.visit(trusted, newKey(t))
		require.Error(t, err)
		synctest.Wait()
		require.Equal(t, uint64(2), h.Server.Stats().Refused[Banned])
	})
}
