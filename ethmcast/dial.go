// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"time"

	"github.com/ethereum/go-ethereum/log"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
)

// Times of the connection to an RP (SPEC 7.11).
const (
	minRedial   = 200 * time.Millisecond // first pause, with jitter
	maxRedial   = 10 * time.Second       // longest pause
	maxDetached = time.Second            // the same, while a membership waits for the connection
	steadyAfter = 10 * time.Second       // a connection of a member that lived as long resets the pause
	dialTimeout = 5 * time.Second        // of the TCP handshake; those of RLPx have their own
)

// Flags of devp2p: a node that was configured, and that counts for no limit. Their
// type is not exported, their values are fixed since RLPx has them.
const (
	staticDialed = 1 << 1
	trusted      = 1 << 3
)

// errNoEndpoint is why a node cannot be dialled.
var errNoEndpoint = errors.New("the node has no TCP endpoint")

// network makes the connections to RPs.
type network interface {
	// connect dials a node and runs the handshakes. When it returns nil the
	// connection serves, on which conn tells what the kernel knows of it.
	connect(ctx context.Context, rp *enode.Node) (conn net.Conn, err error)

	// hangUp ends the connection to a node that is no RP of ours any more.
	hangUp(rp *enode.Node)
}

// devp2p is the network of a server. Its own dialler waits for 35 seconds before it
// dials a node again, so RPs are dialled here, and are not among its static nodes.
type devp2p struct{ server *p2p.Server }

func (d devp2p) connect(ctx context.Context, rp *enode.Node) (net.Conn, error) {
	d.server.AddTrustedPeer(rp) // never dropped to make room for another
	addr, ok := rp.TCPEndpoint()
	if !ok {
		return nil, errNoEndpoint
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	// It closes the connection when it fails.
	return conn, d.server.SetupConn(conn, staticDialed|trusted, rp)
}

func (d devp2p) hangUp(rp *enode.Node) {
	d.server.RemoveTrustedPeer(rp)
	d.server.RemovePeer(rp)
}

// keepConnected connects to an RP whenever there is no connection, until it is not needed.
// One attempt follows the other, so there is never a second connection while one is
// in its handshake.
func (s *Service) keepConnected(rp *rpConn) {
	ctx := rp.ctx
	defer func() {
		select {
		case <-s.quit: // devp2p ends all connections
		default:
			s.network.hangUp(s.nodeOf(rp))
		}
	}()
	pause, told := minRedial, false
	for ctx.Err() == nil {
		began := time.Now()
		if !s.isConnected(rp) {
			select {
			case <-rp.ended: // the connection before
			default:
			}
			conn, err := s.network.connect(ctx, s.nodeOf(rp))
			switch {
			case ctx.Err() != nil:
				return
			case err != nil && !s.isConnected(rp): // else the RP's operator made it connect to us
				level := log.LevelWarn
				if told { // the first failure of a series says it
					level = log.LevelDebug
				}
				told = true
				s.log.Log(level, "Replication point not reached", "rp", rp.id, "err", err)
				began = time.Now()
			default:
				told = false
				s.setSocket(rp, conn)
				waitFor(ctx, rp.ended)
			}
		} else {
			waitFor(ctx, rp.ended)
		}
		if time.Since(began) >= steadyAfter && s.wasMember(rp) { // an RP ends others when they are idle
			pause = minRedial
		}
		if s.isDetached(rp) {
			pause = min(pause, maxDetached)
		}
		wait := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
		}
		pause = min(2*pause, maxRedial)
	}
}

// waitFor waits for an event or the end of ctx.
func waitFor(ctx context.Context, event <-chan struct{}) {
	select {
	case <-event:
	case <-ctx.Done():
	}
}
