// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// A chain that the kernel has no memory for refuses those who join it, and nobody else. A
// session that is to leave it gets copies until it is made anew: the change waits for that.
func TestXDPChainBehind(t *testing.T) {
	const other = testGroup + 1
	c := newCrowd(t, newLab(t, 1), 0, 2, func(int) int { return 0 })
	e := c.Engine.(*Engine)
	more := crowdSessions(c.lab, 10, func(int) int { return 0 })[2:]
	for i := range more {
		more[i].Groups = []ids.Group{[]ids.Group{testGroup, other}[i%2]}
	}
	require.NoError(t, c.Apply(datapath.Change{Add: more[:4]}))
	sick := func(is bool) { // what slices of the other group end with
		require.NoError(t, e.do(func() {
			if e.kernel.refuse = nil; is {
				e.kernel.refuse = func(s *bpf.RpSlice) error {
					if slices.ContainsFunc(s.Replicas[:s.Len], func(r bpf.RpReplica) bool { return r.Session > 2 && r.Session%2 == 0 }) {
						return unix.ENOMEM
					}
					return nil
				}
			}
		}))
	}
	gets := func(s *datapath.Session) (is bool) {
		require.NoError(t, e.do(func() { is = e.table.groups[s.Groups[0]].peers.SliceOf(s.Index) != nil }))
		return is
	}

	sick(true)
	joined, refused := &more[4], &more[5]
	err := e.Apply(datapath.Change{Add: []datapath.Session{*joined, *refused}})
	why, ok := err.(*datapath.Refused)
	require.True(t, ok, "%v", err)
	require.Len(t, why.Sessions, 1)
	require.ErrorIs(t, why.Sessions[refused.Index], datapath.ErrNoRoom)
	require.True(t, gets(joined))
	require.Nil(t, e.table.lookup(refused.Index))

	// What is behind is of no concern to a later one.
	leaves := &more[1]
	require.NoError(t, e.do(func() { e.table.touch(leaves.Index); e.table.all = true }))
	require.NoError(t, e.Apply(datapath.Change{Add: more[6:7]}))
	require.True(t, gets(&more[6]))

	healed := make(chan struct{})
	go func() {
		defer close(healed)
		for e.table.lookup(leaves.Index) != nil {
			time.Sleep(time.Millisecond)
		}
		sick(false)
	}()
	require.NoError(t, e.Apply(datapath.Change{Remove: []ids.Session{leaves.Index}}))
	<-healed
	require.False(t, gets(leaves))
	require.Eventually(t, func() bool {
		var untidy bool
		require.NoError(t, e.do(func() { untidy = e.table.untidy() }))
		return !untidy
	}, 10*time.Second, time.Millisecond)
}

// What the kernel refuses a slice for another reason than that the device is gone, as when memory is
// short, refuses those who join, and leaves the device to all others.
func TestXDPRefusedSliceLeavesTheDevice(t *testing.T) {
	c := newCrowd(t, newLab(t, 1), 0, 3, func(int) int { return 0 })
	e := c.Engine.(*Engine)
	joins := crowdSessions(c.lab, 4, func(int) int { return 0 })[3]
	out := e.objects.MdcsRpOut
	refuse := func(is bool) {
		require.NoError(t, e.do(func() {
			if e.objects.MdcsRpOut = out; is {
				e.objects.MdcsRpOut = e.objects.MdcsRpIn // a program that device maps do not take
			}
		}))
	}
	var before *device
	require.NoError(t, e.do(func() { before = e.devices[0] }))
	refuse(true)
	err := e.Apply(datapath.Change{Add: []datapath.Session{joins}})
	refuse(false)
	require.ErrorIs(t, err, datapath.ErrNoRoom)
	require.NoError(t, e.do(func() { require.Same(t, before, e.devices[0]) }))
	c.next()

	c.sessions = append(c.sessions, joins)
	c.node(joins.Addr)
	require.NoError(t, c.Apply(datapath.Change{Add: []datapath.Session{joins}}))
	c.next()
}
