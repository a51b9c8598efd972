// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// While the thread that owns the maps is held up, heartbeats reach all members, and the
// programs are told that user space lives.
func TestXDPPulse(t *testing.T) {
	const n, beats = 20, 5
	c := newCrowdWith(t, newLab(t, 1), Options{validity: 3 * time.Second}, n, func(int) int { return 0 })
	e := c.Engine.(*Engine)
	before := c.Stats()
	life := &e.objects.Memory.Lives.At(0).ValidUntil

	held, release := make(chan struct{}), make(chan struct{})
	ended := make(chan error)
	go func() { ended <- e.do(func() { close(held); <-release }) }()
	<-held
	for range beats {
		require.Equal(t, []proto.Mark{{Ingress: testOwn, Group: testGroup}}, e.OwnMarks())
		require.NoError(t, e.Heartbeat(datapath.Local))
	}
	until := atomic.LoadUint64(life)
	require.Eventually(t, func() bool { return atomic.LoadUint64(life) > until }, 10*time.Second, time.Millisecond)
	close(release)
	require.NoError(t, <-ended)
	require.Eventually(t, func() bool { return c.Stats().Heartbeats == before.Heartbeats+n*beats }, 10*time.Second, time.Millisecond)
}

// A heartbeat goes to those who are members when it is sent, and nowhere without any.
func TestXDPHeartbeatFollowsMembers(t *testing.T) {
	c := newCrowd(t, newLab(t, 1), 0, 9, func(int) int { return 0 })
	e := c.Engine.(*Engine)
	sent := uint64(0)
	beat := func(members int) {
		t.Helper()
		require.NoError(t, e.Heartbeat(datapath.All))
		sent += uint64(members)
		require.Eventually(t, func() bool { return c.Stats().Heartbeats == sent }, 10*time.Second, time.Millisecond)
	}
	beat(9)
	require.NoError(t, e.Apply(datapath.Change{Remove: []ids.Session{1, 2, 3, 4}}))
	beat(5)
	require.NoError(t, e.Apply(datapath.Change{Remove: []ids.Session{5, 6, 7, 8, 9}}))
	require.Empty(t, e.table.beats(datapath.All))
	beat(0)
	require.NoError(t, e.Apply(datapath.Change{Add: c.sessions[:2]}))
	beat(2)
	require.NoError(t, e.Close())
	require.ErrorIs(t, e.Heartbeat(datapath.All), datapath.ErrClosed)
}
