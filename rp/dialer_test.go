// SPDX-License-Identifier: LGPL-3.0-or-later

package rp

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/rp/front"
)

// office is a dialer that cannot reach anybody, unless the test answers.
type office struct {
	*dialer
	mu      sync.Mutex
	dials   []time.Duration // since the start
	answers bool
}

func newOffice(t *testing.T, self byte) (o *office, other *enode.Node) {
	start := time.Now()
	o = new(office)
	o.dialer = newDialer(dialerConfig{
		Self: enode.ID{self},
		Dial: func(context.Context, *enode.Node) (net.Conn, error) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.dials = append(o.dials, time.Since(start))
			if !o.answers {
				return nil, errors.New("refused")
			}
			near, far := net.Pipe()
			far.Close()
			return near, nil
		},
		Setup: func(_ net.Conn, n *enode.Node) error {
			o.opened(n.ID())
			return nil
		},
		Log: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(o.stop)
	key, err := crypto.ToECDSA(bytes.Repeat([]byte{7}, 32))
	require.NoError(t, err)
	return o, enode.NewV4(&key.PublicKey, net.IPv6loopback, 1, 0)
}

// take returns the times of the dials since the last call.
func (o *office) take() []time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	dials := o.dials
	o.dials = nil
	return dials
}

func TestRedial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, other := newOffice(t, 0) // the smaller id
		o.setNeighbours([]*enode.Node{other}, true)
		time.Sleep(time.Minute)
		dials := o.take()
		require.Zero(t, dials[0])
		want := minRedial
		for i := range len(dials) - 1 {
			require.InDelta(t, want, dials[i+1]-dials[i], float64(want)/4)
			want = min(2*want, maxRedial)
		}
		require.Equal(t, maxRedial, want)

		// One that is up ends the attempts, whoever made it.
		o.opened(other.ID())
		time.Sleep(time.Hour)
		require.Empty(t, o.take())

		// When it ends, the next comes soon.
		o.answers = true
		o.closed(other.ID())
		time.Sleep(time.Minute)
		require.Len(t, o.take(), 1)

		// A peer that is let in and put out again is not dialled in a hurry.
		for range 20 {
			o.closed(other.ID())
			time.Sleep(maxRedial * 5 / 4)
		}
		require.InDelta(t, 20, len(o.take()), 1)

		o.setNeighbours(nil, true)
		o.closed(other.ID())
		o.take()
		time.Sleep(time.Hour)
		require.Empty(t, o.take())
		o.setNeighbours([]*enode.Node{other}, true)
		synctest.Wait()
		require.Len(t, o.take(), 1)
		o.stop()
	})
}

// The RP with the larger id leaves the dialling to the other one for a while.
func TestCourtesy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, other := newOffice(t, 0xff)
		o.setNeighbours([]*enode.Node{other}, true)
		time.Sleep(dialCourtesy - time.Millisecond)
		require.Empty(t, o.take())
		o.opened(other.ID())
		time.Sleep(time.Minute)
		require.Empty(t, o.take())
		o.closed(other.ID())
		time.Sleep(dialCourtesy - time.Millisecond)
		require.Empty(t, o.take())
		time.Sleep(time.Minute)
		dials := o.take()
		require.Greater(t, len(dials), 3)
		for i := range len(dials) - 1 {
			require.GreaterOrEqual(t, dials[i+1]-dials[i], dialCourtesy)
		}
		o.stop()
	})
}

// end is a server of which the test counts the connections.
type end struct {
	*server
	standing atomic.Int64
}

func (e *end) run(conn front.Conn) error {
	e.standing.Add(1)
	defer e.standing.Add(-1)
	_, _, err := conn.ReadMsg()
	return err
}

// Two dials that cross leave one connection, and it stays.
func TestCrossingDials(t *testing.T) {
	t.Parallel()
	ends := [2]*end{}
	for i := range ends {
		key, err := crypto.GenerateKey()
		require.NoError(t, err)
		e := new(end)
		e.server, err = startServer(serverConfig{
			Key:       key,
			Address:   netip.IPv6Loopback(),
			Protocols: []front.Protocol{{Name: "test", Version: 1, Length: 1, MaxMessage: 100, Dialled: true, Run: e.run}},
			Log:       slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		t.Cleanup(func() { e.close(); e.stop() })
		ends[i] = e
	}
	// The first connections wait for each other before they begin to handshake.
	var crossed sync.WaitGroup
	crossed.Add(2)
	for i, e := range ends {
		dial, first := e.dialer.cfg.Dial, sync.Once{}
		e.dialer.cfg.Dial = func(ctx context.Context, n *enode.Node) (net.Conn, error) {
			conn, err := dial(context.WithoutCancel(ctx), n)
			first.Do(func() { crossed.Done(); crossed.Wait() })
			return conn, err
		}
		e.dialer.setNeighbours([]*enode.Node{ends[1-i].self()}, true)
	}
	crossed.Wait()
	var since time.Time
	require.Eventually(t, func() bool {
		if ends[0].standing.Load() != 1 || ends[1].standing.Load() != 1 {
			since = time.Time{}
			return false
		}
		if since.IsZero() {
			since = time.Now()
		}
		return time.Since(since) > 2*dialCourtesy // nobody dials again
	}, time.Minute, 10*time.Millisecond)
}
