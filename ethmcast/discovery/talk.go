// SPDX-License-Identifier: LGPL-3.0-or-later

package discovery

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/p2p/discover"
	"github.com/ethereum/go-ethereum/p2p/enode"
)

// Protocol is the name of our TALKREQ in discv5 (SPEC 13.3).
const Protocol = "mdcs"

const (
	nonceSize    = 8
	responseSize = nonceSize + 1

	samples  = 3  // round-trip times whose median counts
	parallel = 64 // nodes that are measured at the same time
)

// Room is the free share of limit, of 255, when used are taken: 0 only when there is
// no room at all. A limit of 0 is no limit.
func Room(used, limit int) byte {
	switch free := limit - used; {
	case limit == 0:
		return 255
	case free <= 0:
		return 0
	default:
		return byte(max(1, min(255, free*255/limit)))
	}
}

// Handler answers the TALKREQ of a replication point. room is called for each of
// them and must be quick.
func Handler(room func() byte) discover.TalkRequestHandler {
	return func(_ *enode.Node, _ *net.UDPAddr, request []byte) []byte { return respond(request, room) }
}

// respond returns the response to a request, nil when it is malformed.
func respond(request []byte, room func() byte) []byte {
	if len(request) != nonceSize {
		return nil
	}
	return append(slices.Clone(request), room())
}

// parseResponse returns the room that a response tells.
func parseResponse(response []byte, nonce [nonceSize]byte) (room byte, err error) {
	if len(response) != responseSize {
		return 0, fmt.Errorf("response of %d bytes, want %d", len(response), responseSize)
	}
	if [nonceSize]byte(response) != nonce {
		return 0, errors.New("response to another request")
	}
	return response[nonceSize], nil
}

// Talker sends a TALKREQ and waits for the response: a *discover.UDPv5.
type Talker interface {
	TalkRequest(n *enode.Node, protocol string, request []byte) ([]byte, error)
}

// answer is what a replication point told.
type answer struct {
	rtt  time.Duration
	room byte
}

// Measure returns the round-trip time to each of the nodes that answers, the median
// of 3. Nodes need an IPv6 address; without a UDP port they are asked at the number of
// the TCP port. Measure ends early with ctx, at latest when the request under way has
// its answer or its time-out.
func Measure(ctx context.Context, talk Talker, nodes []*enode.Node) map[enode.ID]time.Duration {
	times := make(map[enode.ID]time.Duration)
	for id, a := range measure(ctx, talk, nodes) {
		times[id] = a.rtt
	}
	return times
}

func measure(ctx context.Context, talk Talker, nodes []*enode.Node) map[enode.ID]answer {
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		answers = make(map[enode.ID]answer)
		slots   = make(chan struct{}, parallel)
	)
	for _, n := range nodes {
		n, ok := over6(n)
		if !ok {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if a, err := ask(ctx, talk, n); err == nil {
				mu.Lock()
				defer mu.Unlock()
				answers[n.ID()] = a
			}
		})
	}
	wg.Wait()
	return answers
}

// ask measures one node. The first request is not counted: a handshake goes before
// it, and it may be lost in that.
func ask(ctx context.Context, talk Talker, n *enode.Node) (a answer, err error) {
	if _, err = once(ctx, talk, n); err != nil {
		if _, err = once(ctx, talk, n); err != nil {
			return answer{}, err
		}
	}
	var times []time.Duration
	for range samples {
		one, oneErr := once(ctx, talk, n)
		if oneErr != nil {
			err = oneErr
			continue
		}
		times, a.room = append(times, one.rtt), one.room
	}
	if len(times) <= samples/2 {
		return answer{}, err
	}
	slices.Sort(times)
	a.rtt = times[len(times)/2]
	return a, nil
}

func once(ctx context.Context, talk Talker, n *enode.Node) (answer, error) {
	if err := ctx.Err(); err != nil {
		return answer{}, err
	}
	var nonce [nonceSize]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return answer{}, fmt.Errorf("nonce: %w", err)
	}
	sent := time.Now()
	response, err := talk.TalkRequest(n, Protocol, nonce[:])
	rtt := time.Since(sent)
	if err != nil {
		return answer{}, err
	}
	room, err := parseResponse(response, nonce)
	return answer{max(rtt, 1), room}, err
}
