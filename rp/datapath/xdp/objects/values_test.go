// SPDX-License-Identifier: LGPL-3.0-or-later

package objects

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// A session is read back as it was written.
func TestSessionValue(t *testing.T) {
	for _, s := range []datapath.Session{
		{Index: 1, Role: datapath.Peer, Addr: netip.MustParseAddrPort("[2001:db8::2]:4000"), SendSession: 0x01020304,
			SendKey: auth.Key{1, 2, 3}, ReceiveKey: auth.Key{4, 5, 6, 15: 7}, Groups: []ids.Group{7, 8}, Publish: true, Rate: 3000, Burst: 7},
		{Index: 2, Role: datapath.Peer, Addr: netip.MustParseAddrPort("[fe80::2%eth0]:4000"), Groups: []ids.Group{9}, Silent: true},
		{Index: 3, Role: datapath.Peer, Addr: netip.MustParseAddrPort("[2001:db8::2]:1"), Rate: 5, Burst: 6},
		{Index: 4, Role: datapath.Mesh, Addr: netip.MustParseAddrPort("[2001:db8::3]:65535")},
		{Index: 5, Role: datapath.Channel, Addr: netip.MustParseAddrPort("[ff3e::1%12345]:5"), Groups: []ids.Group{1}},
	} {
		require.NoError(t, s.Check())
		value := SessionValue(&s, 77, 78)
		require.Equal(t, uint32(77), value.State)
		require.Equal(t, uint32(78), value.Site)
		require.Equal(t, s.Publish, value.GroupsLen > 0, "who may publish")
		require.Equal(t, s, ParseSession(s.Index, &value))
	}
}

// What the clock of the programs says is not in the future, however busy the machine is.
func TestBootTime(t *testing.T) {
	for range 1000 {
		boot, err := BootTime()
		require.NoError(t, err)
		var stamp unix.Timespec
		require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &stamp))
		now := time.Now()
		age := now.Sub(boot) - time.Duration(stamp.Nano())
		require.GreaterOrEqual(t, age, time.Duration(0))
	}
}
