// SPDX-License-Identifier: LGPL-3.0-or-later

package rp_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/socket"
)

// hanging is a socket engine that answers some calls only when it is let.
type hanging struct {
	*socket.Engine
	marks, ownMarks, heartbeat, heard, apply atomic.Pointer[chan struct{}] // calls wait for the channel, nil: not
}

func (h *hanging) Apply(c datapath.Change) error {
	wait(&h.apply)
	return h.Engine.Apply(c)
}

func wait(p *atomic.Pointer[chan struct{}]) {
	if c := p.Load(); c != nil {
		<-*c
	}
}

func (h *hanging) Marks() []proto.Mark {
	wait(&h.marks)
	return h.Engine.Marks()
}

func (h *hanging) OwnMarks() []proto.Mark {
	wait(&h.ownMarks)
	return h.Engine.OwnMarks()
}

func (h *hanging) Heartbeat(scope datapath.HeartbeatScope) error {
	wait(&h.heartbeat)
	return h.Engine.Heartbeat(scope)
}

func (h *hanging) Heard(session ids.Session) time.Time {
	wait(&h.heard)
	return h.Engine.Heard(session)
}

// TestHealthOfWhatHangs has the engine hang, and then the mesh: the RP says so, and still
// answers. When they go on it lives again.
func TestHealthOfWhatHangs(t *testing.T) {
	t.Parallel()
	sites := []*site{newSite(t), newSite(t)}
	start(t, sites[0].config(t, sites[1]))
	cfg := sites[1].config(t, sites[0])
	h := new(hanging)
	cfg.Engine = func(c datapath.Config) (datapath.Engine, error) {
		var err error
		h.Engine, err = socket.Listen(c)
		return h, err
	}
	cfg.Choice = func() rp.Choice { return rp.Choice{Reason: "fallback", Fallback: "no xdp here"} }
	point := start(t, cfg)
	awaitReady(t, point)
	health := point.Health()
	require.True(t, health.Live)
	require.Contains(t, health.Warnings, "the engine is a fallback: no xdp here")

	for _, x := range []struct {
		part string
		call *atomic.Pointer[chan struct{}]
	}{
		{"the thread of the engine", &h.marks}, {"the goroutine of the mesh", &h.heard},
		{"the thread of the heartbeats", &h.ownMarks}, {"the thread of the heartbeats", &h.heartbeat},
	} {
		part, call := x.part, x.call
		on := make(chan struct{})
		call.Store(&on)
		require.Eventually(t, func() bool { return !point.Health().Live }, patience, 10*time.Millisecond)
		health := point.Health()
		require.Len(t, health.Dead, 1)
		require.Contains(t, health.Dead[0], part)
		require.False(t, health.Ready)
		require.Equal(t, health.Dead, health.NotReady)
		if call == &h.heard { // whoever asks for counters learns what hangs
			st := point.Status()
			require.True(t, st.Hangs)
			require.Equal(t, health.Dead[0][:len(part)], st.Health.Dead[0][:len(part)])
		}
		call.Store(nil)
		close(on)
		awaitReady(t, point)
		require.True(t, point.Health().Live)
		require.False(t, point.Status().Hangs)
	}
}

// TestSlowEngineKeepsLinks has the engine take 2 s for a change: the other RP does not lose the link.
func TestSlowEngineKeepsLinks(t *testing.T) {
	t.Parallel()
	sites := []*site{newSite(t), newSite(t)}
	other := start(t, sites[0].config(t, sites[1]))
	cfg := sites[1].config(t, sites[0])
	h := new(hanging)
	cfg.Engine = func(c datapath.Config) (datapath.Engine, error) {
		var err error
		h.Engine, err = socket.Listen(c)
		return h, err
	}
	point := start(t, cfg)
	awaitReady(t, point)
	awaitReady(t, other)
	members(t, newPeer(t, other, peerOptions{}))
	onTree := func() bool {
		all := other.Status().Mesh.Neighbours
		return len(all) == 1 && all[0].Up() && all[0].Tree
	}
	require.Eventually(t, onTree, patience, 5*time.Millisecond)
	time.Sleep(3 * time.Second) // then LINK_HELLOs go often
	lost := func() uint64 {
		st := other.Status().Mesh
		return st.Core.Downs + st.LinksLost
	}
	before := lost()

	on := make(chan struct{})
	goOn := sync.OnceFunc(func() { close(on) })
	t.Cleanup(goOn) // the RP cannot stop before
	h.apply.Store(&on)
	set := make(chan error, 1)
	go func() {
		settings := point.Settings()
		settings.EgressPerRP++
		set <- point.Set(settings)
	}()
	time.Sleep(2 * time.Second)
	require.Empty(t, set, "the change is under way")
	require.Equal(t, before, lost())
	h.apply.Store(nil)
	goOn()
	require.NoError(t, <-set)
	time.Sleep(time.Second)
	require.Equal(t, before, lost())
	require.Zero(t, point.Status().Mesh.Core.Downs)
}

// lacking is a socket engine that says what it runs without.
type lacking struct {
	*socket.Engine
	lacks atomic.Pointer[[]datapath.Lack]
}

func (l *lacking) Lacks() []datapath.Lack { return *l.lacks.Load() }

// TestHealthOfWhatTheEngineLacks has an engine run without a counter, and then without a way
// for its copies: peers do not feel the first, and get nothing with the other.
func TestHealthOfWhatTheEngineLacks(t *testing.T) {
	t.Parallel()
	cfg := newSite(t).config(t)
	l := new(lacking)
	l.lacks.Store(&[]datapath.Lack{{What: "a counter", Why: "no BTF"}})
	cfg.Engine = func(c datapath.Config) (datapath.Engine, error) {
		var err error
		l.Engine, err = socket.Listen(c)
		return l, err
	}
	point := start(t, cfg)
	awaitReady(t, point)
	require.Equal(t, []string{"the engine runs without a counter: no BTF"}, point.Health().Warnings)

	l.lacks.Store(&[]datapath.Lack{{What: "copies by eth0", Why: "no queue", NoService: true}})
	require.Eventually(t, func() bool { return !point.Health().Ready }, patience, 10*time.Millisecond)
	health := point.Health()
	require.True(t, health.Live)
	require.Equal(t, []string{"the engine runs without copies by eth0: no queue"}, health.NotReady)
	require.Empty(t, health.Warnings)

	l.lacks.Store(new([]datapath.Lack))
	awaitReady(t, point)
}

// TestHeartbeatsWhileTheEngineHangs has the thread of the engine answer nothing, as during a
// long change: the RP sends its heartbeats all the same.
func TestHeartbeatsWhileTheEngineHangs(t *testing.T) {
	t.Parallel()
	cfg := newSite(t).config(t)
	h := new(hanging)
	cfg.Engine = func(c datapath.Config) (datapath.Engine, error) {
		var err error
		h.Engine, err = socket.Listen(c)
		return h, err
	}
	point := start(t, cfg)
	awaitReady(t, point)
	members(t, newPeer(t, point, peerOptions{}))
	on := make(chan struct{})
	h.marks.Store(&on)
	defer close(on)
	before := h.Stats().Heartbeats
	require.Eventually(t, func() bool { return h.Stats().Heartbeats >= before+4 }, patience, 5*time.Millisecond)
}

// TestHealthWhenFull has room for one session.
func TestHealthWhenFull(t *testing.T) {
	t.Parallel()
	cfg := newSite(t).config(t)
	cfg.Limits.Sessions = 1
	point := start(t, cfg)
	awaitReady(t, point)
	a := newPeer(t, point, peerOptions{})
	members(t, a)
	require.Eventually(t, func() bool { return point.Ready() != nil }, patience, 5*time.Millisecond)
	require.EqualError(t, point.Ready(), "full: 1 sessions")
	require.True(t, point.Health().Live)
	a.leave()
	require.Eventually(t, func() bool { return point.Ready() == nil }, patience, 5*time.Millisecond)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	point.Drain(ended)
	require.EqualError(t, point.Ready(), "draining")
	require.True(t, point.Health().Live)
}

// TestHealthWhenCopiesAreFull has a limit of all copies that lets in one member.
func TestHealthWhenCopiesAreFull(t *testing.T) {
	t.Parallel()
	cfg := newSite(t).config(t)
	cfg.EgressTotal = wire.MaxDatagram
	point := start(t, cfg)
	awaitReady(t, point)
	a := newPeer(t, point, peerOptions{})
	members(t, a)
	require.Eventually(t, func() bool { return point.Ready() != nil }, patience, 5*time.Millisecond)
	require.ErrorContains(t, point.Ready(), "the limit of all copies lets nobody in: ")
	require.True(t, point.Health().Live)
	a.leave()
	require.Eventually(t, func() bool { return point.Ready() == nil }, patience, 5*time.Millisecond)
}
