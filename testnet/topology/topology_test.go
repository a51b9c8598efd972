// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTwoAS(t *testing.T) {
	top := TwoAS()
	require.NoError(t, top.Validate())
	require.Len(t, top.HostsOf(RP), 2)
	require.Len(t, top.HostsOf(Geth), 6)
	require.Equal(t, []Route{{
		To:  netip.MustParsePrefix("2001:db8:2:1::/64"),
		Via: netip.MustParseAddr("2001:db8:f000:1::2"),
	}}, top.Routes("as1"))
	require.Equal(t, []Route{{
		To:  netip.MustParsePrefix("2001:db8:1:1::/64"),
		Via: netip.MustParseAddr("2001:db8:f000:1::1"),
	}}, top.Routes("as2"))
	for _, h := range top.HostsOf(Geth) {
		rps := top.Nearest(h, RP)
		require.Len(t, rps, 2)
		require.Equal(t, h.Router+"-rp", rps[0].Name)
		require.Len(t, top.Peers(h.Name), 4)
	}
}

// TestRoutes has a triangle whose direct link is the slow one:
//
//	as1 --10ms-- as2 --10ms-- as3
//	  `---------50ms-----------'
func TestRoutes(t *testing.T) {
	top := &Topology{Name: "triangle"}
	for as := 1; as <= 3; as++ {
		top.addAS(as, 1)
	}
	link := func(a, b, prefix string, ms int) {
		top.Links = append(top.Links, Link{
			A: a, B: b, Net: netip.MustParsePrefix(prefix),
			Delay: time.Duration(ms) * time.Millisecond,
		})
	}
	link("as1", "as3", "2001:db8:f000:1::/126", 50)
	link("as1", "as2", "2001:db8:f000:2::/126", 10)
	link("as2", "as3", "2001:db8:f000:3::/126", 10)
	require.NoError(t, top.Validate())

	d, ok := top.Delay("as1", "as3")
	require.True(t, ok)
	require.Equal(t, 20*time.Millisecond, d)
	via2 := netip.MustParseAddr("2001:db8:f000:2::2")
	require.Equal(t, []Route{
		{To: netip.MustParsePrefix("2001:db8:2:1::/64"), Via: via2},
		{To: netip.MustParsePrefix("2001:db8:3:1::/64"), Via: via2},
	}, top.Routes("as1"))
}

func TestValidate(t *testing.T) {
	for name, spoil := range map[string]func(*Topology){
		"two nodes are called": func(t *Topology) { t.Hosts[1].Name = t.Hosts[0].Name },
		"both have":            func(t *Topology) { t.Hosts[1].Addr = t.Hosts[0].Addr },
		"is not IPv6":          func(t *Topology) { t.Hosts[0].Addr = netip.MustParseAddr("192.0.2.1") },
		"outside of the LAN":   func(t *Topology) { t.Hosts[0].Router = "as2" },
		"unknown router":       func(t *Topology) { t.Hosts[0].Router = "as9" },
		"unknown end":          func(t *Topology) { t.Links[0].B = "as9" },
		"not one of two":       func(t *Topology) { t.Peerings[0][1] = "as1-rp" },
		"negative delay":       func(t *Topology) { t.Links[0].Delay = -1 },
		"no path":              func(t *Topology) { t.Links = nil },
		"does not have 1 to":   func(t *Topology) { t.Hosts[0].Name = "a-very-long-name" },
	} {
		top := TwoAS()
		spoil(top)
		require.ErrorContains(t, top.Validate(), name)
	}
}
