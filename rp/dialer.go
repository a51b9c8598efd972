// SPDX-License-Identifier: LGPL-3.0-or-later

package rp

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
)

const (
	// dialTimeout bounds the TCP handshake with a neighbour.
	dialTimeout = 5 * time.Second

	// dialCourtesy is how long there must be no connection until the RP with the
	// larger node id dials, too, if both want one. Two dials that cross may end each
	// other: then the next connection is made by the other RP alone, which waits for
	// less.
	dialCourtesy = 3 * time.Second

	// A failed dial is repeated after minRedial, and then after twice the time, up to
	// maxRedial, each up to a quarter shorter or longer. A connection that lasted for
	// maxRedial is no failure.
	minRedial = 200 * time.Millisecond
	maxRedial = 10 * time.Second
)

// dialerConfig is what a dialer works with.
type dialerConfig struct {
	Self enode.ID

	// Dial makes the TCP connection to a node.
	Dial func(context.Context, *enode.Node) (net.Conn, error)

	// Setup runs the handshakes on a connection to a node and closes it if they fail.
	// If they do not, the dialer is told by opened, once.
	Setup func(net.Conn, *enode.Node) error

	Log *slog.Logger
}

// dialer keeps a connection to each neighbour, whoever made it.
type dialer struct {
	cfg    dialerConfig
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu         sync.Mutex
	neighbours map[enode.ID]*neighbour
	connected  map[enode.ID]int // connections by node
}

// neighbour is a node to which the dialer keeps a connection.
type neighbour struct {
	node   *enode.Node
	mutual bool               // the node dials as well
	cancel context.CancelFunc // ends the goroutine that keeps the connection

	// Of dialer.mu: the number of connections there were, and a channel that is closed
	// at the next change.
	connections int
	changed     chan struct{}
}

func newDialer(cfg dialerConfig) *dialer {
	ctx, cancel := context.WithCancel(context.Background())
	return &dialer{
		cfg: cfg, ctx: ctx, cancel: cancel,
		neighbours: make(map[enode.ID]*neighbour),
		connected:  make(map[enode.ID]int),
	}
}

// stop ends all attempts. Connections that stand are left alone.
func (d *dialer) stop() {
	d.mu.Lock()
	d.cancel()
	d.mu.Unlock()
	d.wg.Wait()
}

// setNeighbours says which nodes to keep a connection to, and whether all of them do the
// same. It leaves the connections alone that stand to others. After stop it does nothing.
func (d *dialer) setNeighbours(nodes []*enode.Node, mutual bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil {
		return
	}
	wanted := make(map[enode.ID]*enode.Node, len(nodes))
	for _, node := range nodes {
		wanted[node.ID()] = node
	}
	for id, n := range d.neighbours {
		if wanted[id] == nil || wanted[id].URLv4() != n.node.URLv4() {
			n.cancel()
			delete(d.neighbours, id)
		}
	}
	for id, node := range wanted {
		if d.neighbours[id] != nil {
			continue
		}
		ctx, cancel := context.WithCancel(d.ctx)
		n := &neighbour{node: node, mutual: mutual, cancel: cancel, changed: make(chan struct{})}
		d.neighbours[id] = n
		d.wg.Go(func() {
			defer cancel()
			d.keep(ctx, n)
		})
	}
}

// opened says that a connection with a node stands, whoever made it.
func (d *dialer) opened(id enode.ID) { d.count(id, 1) }

// closed says that a connection with a node ended. The news of the next connection may
// come earlier.
func (d *dialer) closed(id enode.ID) { d.count(id, -1) }

func (d *dialer) count(id enode.ID, change int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.connected[id] += change; d.connected[id] == 0 {
		delete(d.connected, id)
	}
	if n := d.neighbours[id]; n != nil {
		if change > 0 {
			n.connections++
		}
		close(n.changed)
		n.changed = make(chan struct{})
	}
}

// state returns whether a neighbour is connected, how many connections with it there
// were, and a channel that is closed when this changes.
func (d *dialer) state(n *neighbour) (up bool, connections int, changed <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.connected[n.node.ID()] > 0, n.connections, n.changed
}

// await returns true when cond holds for the state of a neighbour, and false when ctx
// ends before.
func (d *dialer) await(ctx context.Context, n *neighbour, cond func(up bool, connections int) bool) bool {
	for {
		up, connections, changed := d.state(n)
		if cond(up, connections) {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

func isUp(up bool, _ int) bool   { return up }
func isDown(up bool, _ int) bool { return !up }

// keep keeps a connection to a neighbour until ctx ends.
func (d *dialer) keep(ctx context.Context, n *neighbour) {
	id := n.node.ID()
	log := d.cfg.Log.With("rp", id.TerminalString())
	courtesy := time.Duration(0)
	if n.mutual && bytes.Compare(d.cfg.Self[:], id[:]) > 0 {
		courtesy = dialCourtesy
	}
	redial := minRedial
	for wait := courtesy; ; {
		d.pause(ctx, n, wait)
		err := d.connect(ctx, n)
		since := time.Now()
		if err == nil {
			d.await(ctx, n, isDown)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			log.Debug("neighbour not reached", "err", err, "after", redial)
		} else if time.Since(since) >= maxRedial {
			redial = minRedial
		}
		wait = max(courtesy, redial*3/4+rand.N(redial/2))
		redial = min(2*redial, maxRedial)
	}
}

// pause waits for a time, or until a connection stands or ctx ends.
func (d *dialer) pause(ctx context.Context, n *neighbour, t time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, t)
	defer cancel()
	d.await(ctx, n, isUp)
}

// connect returns nil when a connection stands, which it makes unless there is one.
func (d *dialer) connect(ctx context.Context, n *neighbour) error {
	if up, _, _ := d.state(n); up {
		return nil
	}
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := d.cfg.Dial(dialing, n.node)
	if err != nil {
		return err
	}
	up, before, _ := d.state(n)
	if up { // meanwhile
		conn.Close()
		return nil
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err = d.cfg.Setup(conn, n.node)
	stop()
	if err != nil {
		return err
	}
	// The news of it may come a moment later.
	d.await(ctx, n, func(_ bool, connections int) bool { return connections > before })
	return nil
}
