// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"maps"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/rp/datapath"
)

var (
	// joins limits the Joins and Resumes of a connection. The back-off keeps them half a
	// second apart (SPEC 8.1), but for those that are tried in another way at once.
	joins = datapath.NewPolicer(2, 10)

	// switches limits the Activates and Deactivates of a node, over all its connections.
	// A peer changes its RP when it lost one, and else every 90 s at most (SPEC 9.5).
	switches = datapath.NewPolicer(1, 10)
)

// replayCost is how many seconds a node that was sent what it missed has to wait until it
// may be again.
const replayCost = 10

// replays limits what a node is sent from the cache, over all its connections: twice at
// once, for it may change RPs again, then as often as the cache is another one.
var replays = datapath.NewPolicer(1, replayCost+1)

// announces limits the Announces of a connection. The shortest lease has them 1.3 s apart
// (SPEC 7.5).
var announces = datapath.NewPolicer(1, 10)

// clock is the time since a Server began, as policers have it: it does not follow when
// the date is set.
type clock struct{ began time.Time }

// at returns the time of now, in ns. Now must have a monotonic reading, as time.Now has.
func (c clock) at(now time.Time) uint64 { return uint64(max(0, now.Sub(c.began))) }

// nodeLimit is a policer for each node, whatever connections it has. It is safe for
// concurrent use.
type nodeLimit struct {
	datapath.Policer

	mu    sync.Mutex
	due   map[enode.ID]uint64
	sweep uint64 // when full buckets are dropped next
}

func newNodeLimit(p datapath.Policer) *nodeLimit {
	return &nodeLimit{Policer: p, due: make(map[enode.ID]uint64)}
}

// nodeSweep is how often full buckets are dropped.
const nodeSweep = uint64(10 * time.Second)

// take accounts for units of a node, unless its bucket is empty.
func (l *nodeLimit) take(at uint64, id enode.ID, units uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at >= l.sweep {
		maps.DeleteFunc(l.due, func(_ enode.ID, due uint64) bool { return due <= at })
		l.sweep = at + nodeSweep
	}
	due := l.due[id]
	if !l.Conforms(due, at) {
		return false
	}
	l.due[id] = l.Charge(due, at, units)
	return true
}
