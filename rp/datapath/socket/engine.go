// SPDX-License-Identifier: LGPL-3.0-or-later

// Package socket is the datapath engine on an ordinary UDP socket (SPEC section
// 6). It needs no privilege, runs wherever Go does IPv6, and defines by its table
// tests what every other engine must do.
//
// One goroutine reads, decides and sends: sequences leave in the order in which
// they were assigned. While it sends, datagrams wait in the socket's buffer.
package socket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv6"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// receivePause is the pause after a read that failed, so that an error that stays
// does not take a whole CPU.
const receivePause = 10 * time.Millisecond

// Engine implements datapath.Engine.
type Engine struct {
	table *table
	conn  *net.UDPConn
	batch *ipv6.PacketConn
	addr  netip.AddrPort
	start time.Time

	// sending orders what leaves: a sequence is assigned and its copies are sent,
	// or a heartbeat with the newest sequence is, but not one within the other.
	sending sync.Mutex
	sender  *sender

	taps taps // of the reader

	probes, receiveErrors, receiveDrops atomic.Uint64

	closed atomic.Bool
	done   chan struct{} // closed when the reader has returned
}

var _ datapath.Multicaster = (*Engine)(nil)

// Listen opens the socket and starts the engine.
func Listen(cfg datapath.Config) (*Engine, error) {
	addr := cfg.Addr.Addr()
	switch {
	case cfg.Incarnation == 0:
		return nil, errors.New("listen: incarnation 0")
	case !addr.Is6() || addr.Is4In6() || addr.IsUnspecified():
		return nil, fmt.Errorf("listen: %v is not one IPv6 address", addr)
	}
	lc := net.ListenConfig{Control: setOptions}
	conn, err := lc.ListenPacket(context.Background(), "udp6", cfg.Addr.String())
	if err != nil {
		return nil, err
	}
	udp := conn.(*net.UDPConn)
	e := &Engine{
		table: newTable(cfg),
		conn:  udp,
		batch: ipv6.NewPacketConn(udp),
		addr:  udp.LocalAddr().(*net.UDPAddr).AddrPort(),
		start: time.Now(),
		taps:  taps{hello: cfg.Hello, cache: cfg.Cache},
		done:  make(chan struct{}),
	}
	e.sender = newSender(e.batch)
	if err := e.setMulticast(int(max(cfg.HopLimit, 1))); err != nil {
		udp.Close()
		return nil, fmt.Errorf("listen: %w", err)
	}
	go e.run()
	return e, nil
}

// setMulticast prepares the socket for channels. Their datagrams do not come back
// to this host.
func (e *Engine) setMulticast(hopLimit int) error {
	if err := e.batch.SetMulticastHopLimit(hopLimit); err != nil {
		return err
	}
	return e.batch.SetMulticastLoopback(false)
}

// run receives until the socket is closed.
func (e *Engine) run() {
	defer close(e.done)
	batch := make([]ipv6.Message, batchSize)
	for i := range batch {
		// One byte more than a datagram may have shows that it was longer.
		batch[i].Buffers = [][]byte{make([]byte, wire.MaxDatagram+1)}
		batch[i].OOB = make([]byte, dropsSize)
	}
	var f fanout
	for {
		n, err := e.batch.ReadBatch(batch, 0)
		if err != nil {
			if e.closed.Load() || errors.Is(err, net.ErrClosed) {
				return
			}
			e.receiveErrors.Add(1)
			time.Sleep(receivePause)
			continue
		}
		if last := &batch[n-1]; last.NN > 0 {
			e.countDrops(last.OOB[:last.NN])
		}
		e.handle(batch[:n], &f)
	}
}

// countDrops follows the host's counter, which has 32 bits.
func (e *Engine) countDrops(control []byte) {
	if n, ok := dropped(control); ok {
		known := e.receiveDrops.Load()
		e.receiveDrops.Add(uint64(n - uint32(known)))
	}
}

// handle decides on received datagrams and sends what follows from them. f is
// scratch.
func (e *Engine) handle(batch []ipv6.Message, f *fanout) {
	now := time.Since(e.start)
	e.sending.Lock()
	defer e.sending.Unlock()
	for i := range batch {
		m := &batch[i]
		if e.table.process(now, udpAddr(m.Addr), m.Buffers[0][:m.N], f) == wire.Pass {
			e.sender.send(f)
			e.taps.take(f)
		}
	}
}

// taps are the functions of datapath.Config that get what passed. Nil: nobody.
type taps struct {
	hello  func(session ids.Session, hello [wire.HelloSize]byte, at time.Time)
	cache  func(datapath.Record)
	record []byte // scratch
}

// take hands out what is in a fan-out.
func (t *taps) take(f *fanout) {
	switch {
	case f.hello && t.hello != nil:
		t.hello(f.from.Index, wire.HelloOf(f.header[:]), time.Now())
	case len(f.payload) > 0 && t.cache != nil:
		t.record = append(append(t.record[:0], f.header[:]...), f.payload...)
		t.cache(datapath.NewRecord(f.from.Index, t.record))
	}
}

// Apply implements datapath.Engine.
func (e *Engine) Apply(c datapath.Change) error {
	if e.closed.Load() {
		return datapath.ErrClosed
	}
	if len(c.Routes) > 0 {
		// What went by the routes before is in the cache, too.
		e.sending.Lock()
		defer e.sending.Unlock()
	}
	return e.table.apply(time.Since(e.start), c)
}

// Age implements datapathtest.Subject: it is for tests of what depends on the time.
func (e *Engine) Age(newest, heartbeat time.Duration) { e.table.age(newest, heartbeat) }

// Marks implements datapath.Engine.
func (e *Engine) Marks() []proto.Mark { return e.table.marks() }

// OwnMarks implements datapath.Engine. A change of the table takes no time worth a wait.
func (e *Engine) OwnMarks() []proto.Mark {
	return slices.DeleteFunc(e.table.marks(), func(m proto.Mark) bool { return m.Ingress != e.table.own })
}

// Probe implements datapath.Engine.
func (e *Engine) Probe(dst netip.AddrPort, nonce [wire.NonceSize]byte, size int) error {
	if e.closed.Load() {
		return datapath.ErrClosed
	}
	b, err := wire.NewProbe(nonce, size)
	if err != nil {
		return err
	}
	dst, control := datapath.Destination(dst)
	if _, _, err := e.conn.WriteMsgUDPAddrPort(b, control, dst); err != nil {
		e.sender.sent.errors.Add(1)
		return fmt.Errorf("probe: %w", err)
	}
	e.probes.Add(1)
	return nil
}

// Heartbeat implements datapath.Engine.
func (e *Engine) Heartbeat(scope datapath.HeartbeatScope) error {
	if e.closed.Load() {
		return datapath.ErrClosed
	}
	e.sending.Lock()
	defer e.sending.Unlock()
	for _, f := range e.table.heartbeats(scope) {
		e.sender.send(&f)
	}
	return nil
}

// Hello implements datapath.Engine.
func (e *Engine) Hello(session ids.Session, hello [wire.HelloSize]byte) error {
	if e.closed.Load() {
		return datapath.ErrClosed
	}
	s, b, err := e.table.hello(session, hello)
	if err != nil {
		return err
	}
	if _, err := e.conn.WriteToUDPAddrPort(b[:], s.Addr); err != nil {
		e.sender.sent.errors.Add(1)
		return fmt.Errorf("hello on session %08x: %w", session, err)
	}
	s.state.copies.Add(1)
	return nil
}

// Resend implements datapath.Engine.
func (e *Engine) Resend(session ids.Session, datagrams [][]byte) error {
	if e.closed.Load() {
		return datapath.ErrClosed
	}
	s, err := e.table.resendTo(session, datagrams)
	if err != nil {
		return err
	}
	if err := e.table.spare(time.Since(e.start), datagrams); err != nil {
		return err
	}
	for part := range slices.Chunk(datagrams, batchSize) {
		e.sending.Lock()
		e.sender.resend(s, part)
		e.sending.Unlock()
	}
	return nil
}

// SetEgress implements datapath.Engine.
func (e *Engine) SetEgress(rate, burst uint64) { e.table.setEgress(rate, burst) }

// Heard implements datapath.Engine.
func (e *Engine) Heard(session ids.Session) time.Time { return e.table.heard(session, e.start) }

// Lacks implements datapath.Engine.
func (e *Engine) Lacks() []datapath.Lack { return nil }

// Stats implements datapath.Engine.
func (e *Engine) Stats() datapath.Stats {
	sent := &e.sender.sent
	st := datapath.Stats{
		Engine:        "socket",
		Copies:        sent.copies.Load(),
		CopyBytes:     sent.copyBytes.Load(),
		Echoes:        sent.echoes.Load(),
		Heartbeats:    sent.heartbeats.Load(),
		Probes:        e.probes.Load(),
		SendErrors:    sent.errors.Load(),
		ReceiveErrors: e.receiveErrors.Load(),
		ReceiveDrops:  e.receiveDrops.Load(),
	}
	st.Verdicts, st.Sessions = e.table.stats(e.start)
	return st
}

// Addr implements datapath.Engine.
func (e *Engine) Addr() netip.AddrPort { return e.addr }

// Close implements datapath.Engine.
func (e *Engine) Close() error {
	if e.closed.Swap(true) {
		<-e.done
		return nil
	}
	err := e.conn.Close()
	<-e.done
	return err
}
