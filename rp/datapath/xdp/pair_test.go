// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/pindir"
)

// pair returns one end of the recirculation pair.
func (c *crowd) pair(nl *netlink.Handle, end string) netlink.Link {
	c.lab.t.Helper()
	l, err := nl.LinkByName(pindir.EndpointName(c.Addr()) + end)
	require.NoError(c.lab.t, err)
	return l
}

// handle is a netlink handle of the RP's namespace.
func (l *lab) handle() *netlink.Handle {
	l.t.Helper()
	nl, err := netlink.NewHandleAt(l.rp)
	require.NoError(l.t, err)
	l.t.Cleanup(nl.Close)
	return nl
}

// Others on the host set the recirculation pair down, or remove it: soon datagrams reach everybody
// again, and those who join just then are not refused.
func TestXDPPairComesBack(t *testing.T) {
	const n = 40
	l := newLab(t, 1)
	c := newCrowdWith(t, l, Options{Pin: mountBPF(t)}, n, func(int) int { return 0 })
	e, nl := c.Engine.(*Engine), l.handle()
	c.next()
	for _, end := range []string{"a", "b"} {
		require.NoError(t, nl.LinkSetDown(c.pair(nl, end)))
		c.arrive()
		c.next()
	}
	old := c.pair(nl, "b").Attrs().Index
	for i, end := range []string{"a", "b"} {
		require.NoError(t, nl.LinkDel(c.pair(nl, end)))
		joins := crowdSessions(l, n+1+i, func(int) int { return 0 })[n+i:]
		c.sessions = append(c.sessions, joins...)
		require.NoError(t, c.Apply(datapath.Change{Add: joins}))
		c.arrive()
		c.next()
		require.Empty(t, e.Stats().Lacks)
	}

	// The next process finds the pair of now.
	now := c.pair(nl, "b").Attrs().Index
	require.NotEqual(t, old, now)
	require.NoError(t, e.do(func() {
		require.NoFileExists(t, filepath.Join(e.pins.Path(), pindir.LinkName(old)))
		require.FileExists(t, filepath.Join(e.pins.Path(), pindir.LinkName(now)))
	}))
}

// While there can be no pair, the engine says so.
func TestXDPPairIsMissed(t *testing.T) {
	l := newLab(t, 1)
	c := newCrowd(t, l, 0, 20, func(int) int { return 0 })
	e, nl := c.Engine.(*Engine), l.handle()
	recirc := e.objects.MdcsRpRecirc
	require.NoError(t, e.do(func() { e.objects.MdcsRpRecirc = e.objects.MdcsRpOut })) // which no interface takes
	require.NoError(t, nl.LinkDel(c.pair(nl, "a")))
	require.Eventually(t, func() bool { return len(e.Stats().Lacks) > 0 }, 10*time.Second, time.Millisecond)
	require.Contains(t, e.Stats().Lacks[0].What, "recirculation pair")
	require.Contains(t, e.Stats().Lacks[0].Why, "attach XDP")
	joins := crowdSessions(l, 21, func(int) int { return 0 })[20:]
	require.ErrorIs(t, e.Apply(datapath.Change{Add: joins}), datapath.ErrNoRoom)

	require.NoError(t, e.do(func() { e.objects.MdcsRpRecirc = recirc }))
	require.Eventually(t, func() bool { return len(e.Stats().Lacks) == 0 }, 10*time.Second, time.Millisecond)
	c.arrive()
	c.next()
}

// A datapath whose pair was removed while no process had it is adopted with another pair.
func TestXDPAdoptsWithoutPair(t *testing.T) {
	c, spec := newOrphanCrowd(t, 1, 40, func(int) int { return 0 })
	kill, err := c.lab.startChild(spec, false)
	require.NoError(t, err)
	kill()
	nl := c.lab.handle()
	require.NoError(t, nl.LinkDel(c.pair(nl, "a")))
	var log bytes.Buffer
	e, err := c.adoptHere(spec, &log)
	require.NoError(t, err, log.String())
	require.NotNil(t, e.Adopted(), log.String())
	c.subject.Engine = e
	require.Eventually(t, e.reachesAll, 10*time.Second, time.Millisecond)
	c.arrive()
	c.next()
	_, err = os.Stat(filepath.Join(e.pins.Path(), pindir.LinkName(c.pair(nl, "b").Attrs().Index)))
	require.NoError(t, err)
	require.NoError(t, e.Close())
	c.nothingLeft(spec.Pin)
}

// Somebody removes the pins of an rpd that runs, and then a device loses its program: it gets it
// again, without a pin, and the engine says what it runs without.
func TestXDPPinsAreGone(t *testing.T) {
	l := newLab(t, 1)
	c := newCrowdWith(t, l, Options{Pin: mountBPF(t)}, 20, func(int) int { return 0 })
	e := c.Engine.(*Engine)
	c.next()
	require.NoError(t, e.do(func() {
		require.NoError(t, os.RemoveAll(e.opt.Pin))
		require.NoError(t, e.devices[0].link.Detach())
	}))
	require.Eventually(t, func() bool { return len(e.Stats().Lacks) > 0 }, 10*time.Second, time.Millisecond)
	require.Equal(t, "pins", e.Stats().Lacks[0].What)
	require.Contains(t, e.Stats().Lacks[0].Why, "was removed")
	c.arrive()
	c.next()
	require.Contains(t, c.programs(), "rp0")
	require.NoDirExists(t, e.opt.Pin)
}
