// SPDX-License-Identifier: LGPL-3.0-or-later

package discovery

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/discovery/discoverytest"
)

func TestRoom(t *testing.T) {
	for _, test := range []struct {
		used, limit int
		want        byte
	}{{0, 0, 255}, {9, 0, 255}, {0, 10, 255}, {5, 10, 127}, {9, 10, 25}, {10, 10, 0}, {11, 10, 0}, {9999, 10000, 1}} {
		if got := Room(test.used, test.limit); got != test.want {
			t.Errorf("%d of %d: %d, want %d", test.used, test.limit, got, test.want)
		}
	}
}

func TestTalkMessages(t *testing.T) {
	nonce := [nonceSize]byte{1, 2, 3, 4, 5, 6, 7, 8}
	room := func() byte { return 9 }
	response := respond(nonce[:], room)
	if want := []byte{1, 2, 3, 4, 5, 6, 7, 8, 9}; !bytes.Equal(response, want) {
		t.Fatalf("%x, want %x", response, want)
	}
	if got, err := parseResponse(response, nonce); got != 9 || err != nil {
		t.Error(got, err)
	}
	for _, bad := range [][]byte{nil, nonce[:7], append(nonce[:], 0)} {
		if got := respond(bad, room); got != nil {
			t.Errorf("request %x: %x", bad, got)
		}
	}
	for _, bad := range [][]byte{nil, response[:8], append(slices.Clone(response), 0), {8, 2, 3, 4, 5, 6, 7, 8, 9}} {
		if _, err := parseResponse(bad, nonce); err == nil {
			t.Errorf("response %x accepted", bad)
		}
	}
}

func FuzzTalk(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8})
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		if response := respond(b, func() byte { return 7 }); response != nil {
			if room, err := parseResponse(response, [nonceSize]byte(b)); room != 7 || err != nil {
				t.Errorf("room %d, %v", room, err)
			}
			if len(response) > len(b)+1 {
				t.Errorf("%d bytes for %d: an amplifier", len(response), len(b))
			}
		}
		if len(b) >= nonceSize {
			if _, err := parseResponse(b, [nonceSize]byte(b)); (err == nil) != (len(b) == responseSize) {
				t.Errorf("%x: %v", b, err)
			}
		}
	})
}

// line is a Talker whose nodes have delays, one for each request; a negative one is a
// time-out.
type line struct {
	mu     sync.Mutex
	delays map[enode.ID][]time.Duration
	room   byte
	asked  int
}

func (l *line) TalkRequest(n *enode.Node, protocol string, request []byte) ([]byte, error) {
	l.mu.Lock()
	l.asked++
	delay := -700 * time.Millisecond
	if d := l.delays[n.ID()]; len(d) > 0 {
		delay = d[0]
		if len(d) > 1 { // the last one stays
			l.delays[n.ID()] = d[1:]
		}
	}
	room := l.room
	l.mu.Unlock()
	time.Sleep(max(delay, -delay))
	if delay < 0 || protocol != Protocol {
		return nil, errors.New("timeout")
	}
	return respond(request, func() byte { return room }), nil
}

const ms = time.Millisecond

func testNode(t testing.TB, addr string) *enode.Node {
	t.Helper()
	return discoverytest.Record(t, discoverytest.Key(t), 1, append(discoverytest.Endpoint(addr, 30500), example)...)
}

func TestMeasure(t *testing.T) {
	for name, test := range map[string]struct {
		delays []time.Duration
		want   time.Duration // 0: not measured
	}{
		"median":             {[]time.Duration{90 * ms, 30 * ms, 10 * ms, 20 * ms}, 20 * ms},
		"handshake lost":     {[]time.Duration{-700 * ms, 90 * ms, 10 * ms, 10 * ms, 30 * ms}, 10 * ms},
		"one lost":           {[]time.Duration{90 * ms, 10 * ms, -700 * ms, 30 * ms}, 30 * ms},
		"two lost":           {[]time.Duration{90 * ms, 10 * ms, -700 * ms, -700 * ms}, 0},
		"silent":             {[]time.Duration{-700 * ms}, 0},
		"silent after hello": {[]time.Duration{90 * ms, -700 * ms}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			n := testNode(t, "2001:db8::1")
			synctest.Test(t, func(t *testing.T) {
				l := &line{delays: map[enode.ID][]time.Duration{n.ID(): test.delays}}
				times := Measure(t.Context(), l, []*enode.Node{n})
				if rtt, ok := times[n.ID()]; rtt != test.want || ok != (test.want > 0) {
					t.Errorf("%v, want %v", times, test.want)
				}
			})
		})
	}
}

// Many nodes are measured beside each other, and those without IPv6 not at all.
func TestMeasureMany(t *testing.T) {
	nodes := []*enode.Node{testNode(t, "192.0.2.1")}
	delays := make(map[enode.ID][]time.Duration)
	for i := range 2 * parallel {
		n := testNode(t, "2001:db8::1")
		delays[n.ID()] = []time.Duration{time.Duration(i+1) * ms}
		nodes = append(nodes, n)
	}
	synctest.Test(t, func(t *testing.T) {
		l, begin := &line{delays: delays}, time.Now()
		times := Measure(t.Context(), l, nodes)
		if len(times) != 2*parallel {
			t.Errorf("%d measured", len(times))
		}
		for id, d := range delays {
			if times[id] != d[0] {
				t.Errorf("%v, want %v", times[id], d[0])
			}
		}
		if took := time.Since(begin); took > 2*(samples+1)*2*parallel*ms {
			t.Errorf("took %v", took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		l := &line{delays: delays}
		if times := Measure(ctx, l, nodes); len(times) != 0 || l.asked != 0 {
			t.Errorf("%d measured, %d asked", len(times), l.asked)
		}
	})
}
