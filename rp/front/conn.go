// SPDX-License-Identifier: LGPL-3.0-or-later

package front

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/rp/front/rlpx"
)

const (
	// firstBytes is how long a node may take to say anything. A lost packet is repeated
	// after a second.
	firstBytes = 3 * time.Second

	// frameTimeout is how long the rest of a message may take.
	frameTimeout = 10 * time.Second

	// closeTimeout bounds the last write, and how long what the other side still sends
	// is read: a host that closes before resets the connection, and the other one loses
	// what it did not read.
	closeTimeout = time.Second

	// closeBytes is how much of that is read.
	closeBytes = 256 << 10

	// firstMessages is the size of a message that a node can send before it has a
	// session, bytes.
	firstMessages = 16 << 10

	// largeMessages is how many messages of strangers that are larger than firstMessages,
	// compressed or not, are read at a time: 60 MiB of frames in all. What a frame claims is
	// allocated before it is read, and thousands of members may each claim the most.
	// largeOf48 is how many of these a /48 may have.
	largeMessages = 400
	largeOf48     = largeMessages / 4

	// largeLook is how often a message that found no room looks for it again.
	largeLook = 50 * time.Millisecond

	// A node may ask for pingBurst Pongs at once, and then for one in pingPause. geth asks
	// every 15 seconds.
	pingBurst = 8
	pingPause = 2 * time.Second

	// A stranger's messages are read no faster than paceMessages and paceBytes per second,
	// but for those of paceBurst: peers send some 20 small ones per second at most. What
	// waits fills the buffers of the connection, until the other side has to wait, too.
	paceMessages = 64
	paceBytes    = 256 << 10
	paceBurst    = 4 * time.Second
)

// conn is a connection.
type conn struct {
	srv    *Server
	fd     net.Conn
	addr   netip.Addr
	byAddr bool   // it has no place because of its address; of Server.mu
	place  *Place // nil of trusted nodes; of Server.mu until the handshake is done

	// Set by the handshake.
	rlpx           *rlpx.Conn
	id             enode.ID
	proto          *Protocol
	offset, length uint64 // of the protocol's codes, and of all codes

	limit  atomic.Int64 // of a message
	breach atomic.Bool  // of devp2p
	ended  atomic.Bool  // by the other side: it sent Disconnect
	closed atomic.Bool  // or about to be, by close
	stop   atomic.Int32 // 1 + the reason for which the front ends the connection

	read    time.Time    // of the last message; of the reader, as what follows
	pings   bucket       // of Pongs
	pace    bucket       // of all messages of a stranger
	early   time.Time    // when the next one may be read
	written atomic.Int64 // when something was, as the time since the Server began

	wmu sync.Mutex
}

var _ Conn = (*conn)(nil)

// ID implements Conn.
func (c *conn) ID() enode.ID { return c.id }

// Addr implements Conn.
func (c *conn) Addr() netip.Addr { return c.addr }

// SetSession implements Conn.
func (c *conn) SetSession(on bool) {
	if on {
		c.limit.Store(int64(c.proto.MaxMessage))
	}
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	if c.place != nil {
		c.srv.table.SetSession(time.Now(), c.place, on)
	}
}

// established ends the deadlines of the handshake.
func (c *conn) established() error {
	c.read = time.Now()
	c.wrote()
	c.deadline(time.Time{})
	return c.interrupted()
}

// deadline bounds all reads and writes.
func (c *conn) deadline(at time.Time) {
	_ = c.fd.SetDeadline(at) // an error is that of the next read
	if c.isInterrupted() {
		_ = c.fd.SetDeadline(time.Unix(1, 0))
	}
}

// readDeadline bounds the next reads. It never extends the time that close takes.
func (c *conn) readDeadline(at time.Time) {
	_ = c.fd.SetReadDeadline(at)
	switch {
	case c.isInterrupted():
		_ = c.fd.SetReadDeadline(time.Unix(1, 0))
	case c.closed.Load():
		_ = c.fd.SetReadDeadline(time.Now().Add(closeTimeout))
	}
}

// writeDeadline bounds a write. When the front ends the connection nothing is waited for
// long.
func (c *conn) writeDeadline(timeout time.Duration) {
	_ = c.fd.SetWriteDeadline(time.Now().Add(timeout))
	if c.isInterrupted() {
		_ = c.fd.SetWriteDeadline(time.Now().Add(min(timeout, closeTimeout)))
	}
}

// interrupt has the reader return a reason. It does not wait.
func (c *conn) interrupt(reason p2p.DiscReason) {
	c.stop.CompareAndSwap(0, 1+int32(reason))
	_ = c.fd.SetReadDeadline(time.Unix(1, 0))
	c.writeDeadline(closeTimeout)
}

func (c *conn) isInterrupted() bool { return c.stop.Load() != 0 }

// interrupted returns the reason for which the front ends the connection, nil when it
// does not.
func (c *conn) interrupted() error {
	if stop := c.stop.Load(); stop != 0 {
		return p2p.DiscReason(stop - 1)
	}
	return nil
}

// firstByte waits for a message. While nothing is sent it pings.
type firstByte struct{ *conn }

func (r firstByte) Read(b []byte) (int, error) {
	c := r.conn
	for {
		if c.closed.Load() { // what still comes is read by close
			return 0, net.ErrClosed
		}
		now := time.Now()
		silent, ping := c.read.Add(rlpx.ReadTimeout), c.lastWritten().Add(rlpx.PingInterval)
		if !now.Before(ping) {
			if err := c.write(rlpx.PingMsg, emptyList); err != nil {
				return 0, err
			}
			continue
		}
		at := silent
		if ping.Before(at) {
			at = ping
		}
		c.readDeadline(at)
		n, err := c.fd.Read(b)
		timeout, ok := errors.AsType[net.Error](err)
		if n > 0 || !ok || !timeout.Timeout() || c.isInterrupted() || !time.Now().Before(silent) {
			if n > 0 {
				c.readDeadline(time.Now().Add(frameTimeout))
			}
			return n, err
		}
	}
}

// wrote notes that something was written now.
func (c *conn) wrote() { c.written.Store(int64(time.Since(c.srv.began))) }

// lastWritten is when something was written last.
func (c *conn) lastWritten() time.Time { return c.srv.began.Add(time.Duration(c.written.Load())) }

var emptyList = []byte{0xc0}

// ReadMsg implements Conn.
func (c *conn) ReadMsg() (code uint64, payload []byte, err error) {
	for {
		// Nothing of what was read before is held meanwhile.
		if early := time.Until(c.early); early > 0 {
			c.srv.delayed.Add(1)
			time.Sleep(early)
		}
		code, payload, err = c.next()
		if reason := c.interrupted(); reason != nil {
			return 0, nil, reason
		}
		if err != nil {
			return 0, nil, c.lost(err)
		}
		c.read = time.Now()
		own := code >= c.offset && code < c.offset+c.proto.Length
		if c.place != nil && !(own && c.proto.Bounded) {
			c.account(len(payload))
		}
		if own {
			return code - c.offset, payload, nil
		}
		if err := c.base(code, payload); err != nil {
			return 0, nil, err
		}
	}
}

// next returns the next message of any kind. A large one of a stranger first waits for room,
// which counts in the time that a message may take.
func (c *conn) next() (code uint64, payload []byte, err error) {
	first, large := true, false
	var until time.Time
	begun := func(frame, message int) error {
		if large || c.place == nil || frame <= c.rlpx.FrameLimit(firstMessages) && message <= firstMessages {
			return nil
		}
		var err error
		large, err = c.waitLarge(until)
		return err
	}
	defer func() {
		if large {
			c.srv.large.give(c.addr)
		}
	}()
	from := readerFunc(func(b []byte) (int, error) {
		if first {
			first = false
			n, err := firstByte{c}.Read(b)
			until = time.Now().Add(frameTimeout)
			return n, err
		}
		return c.fd.Read(b)
	})
	return c.rlpx.Read(from, int(c.limit.Load()), begun)
}

// waitLarge waits for room for a large message.
func (c *conn) waitLarge(until time.Time) (bool, error) {
	for !c.srv.large.take(c.addr) {
		switch left := time.Until(until); {
		case c.isInterrupted() || c.closed.Load():
			return false, net.ErrClosed
		case left <= 0:
			return false, os.ErrDeadlineExceeded
		default:
			time.Sleep(min(left, largeLook))
		}
	}
	return true, nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// lost tells what the other side did wrong from the end of the connection.
func (c *conn) lost(err error) error {
	if _, size := errors.AsType[*rlpx.SizeError](err); size {
		return err // for the protocol to blame
	}
	if _, network := errors.AsType[net.Error](err); network || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return c.broken(err.Error())
}

// broken is the end of a connection whose other side does not speak devp2p.
func (c *conn) broken(what string) error {
	c.breach.Store(true)
	return fmt.Errorf("%w: %s", p2p.DiscProtocolError, what)
}

// base handles a message that is not of the capability.
func (c *conn) base(code uint64, payload []byte) error {
	switch {
	case code >= c.length:
		return c.broken(fmt.Sprintf("message code 0x%02x", code))
	case code >= rlpx.BaseLength:
		return nil // of another capability, on which nothing is said here
	case len(payload) > rlpx.MaxBase:
		return c.broken(fmt.Sprintf("message 0x%02x of %d bytes", code, len(payload)))
	}
	switch code {
	case rlpx.DisconnectMsg:
		c.ended.Store(true)
		return fmt.Errorf("disconnected: %w", rlpx.ParseDisconnect(payload))
	case rlpx.PingMsg:
		if c.pings.take(c.read, pingPause) > (pingBurst-1)*pingPause {
			return c.broken("pings")
		}
		return c.write(rlpx.PongMsg, emptyList)
	case rlpx.PongMsg:
		return nil
	}
	return c.broken(fmt.Sprintf("message 0x%02x after hello", code))
}

// account notes a message of some bytes that was read: when messages come too fast, the next
// one is read later.
func (c *conn) account(bytes int) {
	c.pace.take(c.read, time.Second/paceMessages+time.Duration(bytes)*time.Second/paceBytes)
	c.early = c.pace.full.Add(-paceBurst)
}

// bucket is what was taken of something that comes back with the time.
type bucket struct{ full time.Time } // when all is back

// take takes an amount that is back after cost, and returns when all that was taken before
// is back.
func (b *bucket) take(now time.Time, cost time.Duration) time.Duration {
	if b.full.Before(now) {
		b.full = now
	}
	before := b.full.Sub(now)
	b.full = b.full.Add(cost)
	return before
}

// WriteMsg implements Conn.
func (c *conn) WriteMsg(code uint64, payload []byte) error {
	if code >= c.proto.Length {
		return fmt.Errorf("message code 0x%02x of %s", code, c.proto.Name)
	}
	return c.write(c.offset+code, payload)
}

func (c *conn) write(code uint64, payload []byte) error {
	return c.writeWithin(rlpx.WriteTimeout, code, payload)
}

func (c *conn) writeWithin(timeout time.Duration, code uint64, payload []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.writeDeadline(timeout)
	err := c.rlpx.Write(c.fd, code, payload)
	if err != nil {
		c.fd.Close() // the reader notices
		return err
	}
	c.wrote()
	return nil
}

// close tells the other side the reason in err, if there is one, and closes the
// connection. Gently is to let it read all that it was sent. A reader that still waits for
// a message gives up within closeTimeout, however silent the other side is.
func (c *conn) close(err error, gently bool) {
	c.closed.Store(true)
	defer c.fd.Close()
	reason, ok := errors.AsType[p2p.DiscReason](err)
	if !ok || c.rlpx == nil || c.ended.Load() {
		return
	}
	if c.writeWithin(closeTimeout, rlpx.DisconnectMsg, rlpx.Disconnect(reason)) != nil || !gently {
		return
	}
	if tcp, ok := c.fd.(*net.TCPConn); ok && tcp.CloseWrite() == nil {
		_ = c.fd.SetReadDeadline(time.Now().Add(closeTimeout))
		_, _ = io.CopyN(io.Discard, c.fd, closeBytes) // until the other side has closed
	}
}
