// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp"
	"github.com/ethmcast/mdcs/rp/hostnet"
)

// TestOpenXDPTriesAgain has the kernel interrupt its lists while the XDP engine looks at the
// host: the engine is tried again until the lists are whole, and that nobody has the
// address is then known.
func TestOpenXDPTriesAgain(t *testing.T) {
	defer func() { hostnet.Disturb = nil }()
	lists := 0
	open := func(interrupted int) error {
		lists = 0
		hostnet.Disturb = func() bool {
			lists++
			return lists <= interrupted
		}
		_, err := openXDP(datapath.Config{Addr: netip.MustParseAddrPort("[fd99::7]:30501")}, xdp.Options{})
		return err
	}
	require.ErrorContains(t, open(0), "none has fd99::7")
	require.Equal(t, 1, lists, "that does not pass")

	err := open(1 << 20)
	require.ErrorIs(t, err, netlink.ErrDumpInterrupted)
	once := lists / tries
	require.Equal(t, tries*once, lists, "each try lists as often")
	require.Greater(t, once, 1)

	err = open(once + 1) // the first try, and one list of the second
	require.ErrorContains(t, err, "none has fd99::7")
	require.NotErrorIs(t, err, netlink.ErrDumpInterrupted)
	require.Equal(t, once+2, lists)
}
