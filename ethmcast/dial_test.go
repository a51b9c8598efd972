// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/discovery/nearest"
)

// fakeNetwork lets attempts to connect fail, or succeed after a while.
type fakeNetwork struct {
	t        *testing.T
	s        *Service
	rp       *rpConn
	takes    time.Duration // of a handshake
	refuse   bool
	busy     bool
	member   bool // the node, when a connection ends
	attempts []time.Time
	hungUp   bool
}

func (n *fakeNetwork) hangUp(*enode.Node) { n.hungUp = true }

func (n *fakeNetwork) connect(ctx context.Context, node *enode.Node) (net.Conn, error) {
	if n.busy || n.s.isConnected(n.rp) {
		n.t.Error("dialled while there was a connection, or a handshake")
	}
	n.busy = true
	defer func() { n.busy = false }()
	n.attempts = append(n.attempts, time.Now())
	select {
	case <-time.After(n.takes):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if n.refuse {
		return nil, errors.New("refused")
	}
	go n.set(true) // Run is called when the handshakes are over, from another goroutine
	return nil, nil
}

// set makes or ends the connection.
func (n *fakeNetwork) set(connected bool) {
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	if n.rp.conn = nil; connected {
		n.rp.conn = new(conn)
		return
	}
	n.rp.member = n.member
	n.rp.ended <- struct{}{}
}

func newFakeNetwork(t *testing.T) *fakeNetwork {
	key, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	node := enode.NewV4(&key.PublicKey, net.IPv6loopback, 1, 1)
	s, err := New(Config{RPs: []*enode.Node{node}, Publish: PublishAll}, nil)
	if err != nil {
		t.Fatal(err)
	}
	n := &fakeNetwork{t: t, s: s, rp: newRPConn(node), takes: time.Millisecond}
	s.network = n
	s.wg.Go(func() { s.keepConnected(n.rp) })
	t.Cleanup(func() {
		n.rp.cancel()
		s.wg.Wait()
		if !n.hungUp {
			t.Error("the connection outlives its use")
		}
	})
	return n
}

func TestRedialBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNetwork(t)
		n.refuse = true
		time.Sleep(time.Minute)
		for i := 1; i < len(n.attempts); i++ {
			pause, longest := n.attempts[i].Sub(n.attempts[i-1]), min(minRedial<<(i-1), maxRedial)+n.takes
			if pause < longest/2 || pause > longest {
				t.Errorf("pause %d of %v, want up to %v", i, pause, longest)
			}
		}
		if len(n.attempts) < 9 {
			t.Errorf("%d attempts in a minute", len(n.attempts))
		}
	})
}

func TestRedialAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNetwork(t)
		n.member = true
		time.Sleep(time.Minute)
		if len(n.attempts) != 1 || !n.s.isConnected(n.rp) {
			t.Fatalf("%d attempts", len(n.attempts))
		}
		n.set(false)
		time.Sleep(minRedial + 2*n.takes)
		if len(n.attempts) != 2 || !n.s.isConnected(n.rp) {
			t.Fatalf("%d attempts, the connection ended a moment ago", len(n.attempts))
		}
		// One that ends again and again is left alone for longer each time.
		began := time.Now()
		for len(n.attempts) < 8 {
			n.set(false)
			for !n.s.isConnected(n.rp) {
				time.Sleep(time.Millisecond)
			}
		}
		if took := time.Since(began); took < 3*time.Second {
			t.Errorf("6 attempts in %v", took)
		}
	})
}

// A connection that somebody else made is as good.
// An RP that this node does not use ends the connection when it was idle for too long, and is
// left alone for longer each time.
func TestRedialOfUnused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNetwork(t)
		var pause time.Duration
		for range 8 {
			time.Sleep(time.Minute)
			if !n.s.isConnected(n.rp) {
				t.Fatal("not connected")
			}
			n.set(false)
			ended, attempts := time.Now(), len(n.attempts)
			for len(n.attempts) == attempts {
				time.Sleep(time.Millisecond)
			}
			pause = time.Since(ended)
		}
		if pause < maxRedial/2 {
			t.Errorf("pause of %v after 8 idle connections", pause)
		}
	})
}

func TestNoDialBesideAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNetwork(t)
		n.refuse = true
		time.Sleep(time.Second)
		n.set(true)
		synctest.Wait()
		attempts := len(n.attempts)
		time.Sleep(time.Minute)
		if len(n.attempts) != attempts {
			t.Error("dialled all the same")
		}
		n.set(false)
		time.Sleep(maxRedial)
		if len(n.attempts) == attempts {
			t.Error("not dialled after the end")
		}
	})
}

func TestNearer(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		active, other time.Duration
		want          bool
	}{
		{50 * ms, 30 * ms, true},
		{50 * ms, 39 * ms, true},
		{50 * ms, 40 * ms, false}, // no more than a fifth
		{10 * ms, 5 * ms, false},  // no more than 5 ms
		{10 * ms, 4 * ms, true},
		{30 * ms, 50 * ms, false},
		{0, 50 * ms, false},
		{50 * ms, 0, false},
	} {
		var p preference
		now, changed := time.Unix(1000, 0), 0
		for i := range 2 * nearest.Looks {
			for range 5 { // only once in the interval
				if p.look(now, c.active, c.other) {
					changed++
					if i%nearest.Looks != nearest.Looks-1 {
						t.Errorf("%v: changed at look %d", c, i)
					}
				}
				now = now.Add(lookInterval / 5)
			}
		}
		if want := map[bool]int{true: 2}[c.want]; changed != want {
			t.Errorf("%v: changed %d times, want %d", c, changed, want)
		}
	}
	// One look that says otherwise begins the count anew.
	var p preference
	now := time.Unix(1000, 0)
	for i, other := range []time.Duration{30, 30, 60, 30, 30, 30} {
		now = now.Add(lookInterval)
		if got := p.look(now, 50*ms, other*ms); got != (i == 5) {
			t.Errorf("look %d: %t", i, got)
		}
	}
}
