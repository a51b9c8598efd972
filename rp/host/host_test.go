// SPDX-License-Identifier: LGPL-3.0-or-later

package host

import (
	"crypto/rand"
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

func TestParseVersion(t *testing.T) {
	for release, want := range map[string]Version{
		"6.1.0-13-amd64":  {6, 1},
		"5.15":            {5, 15},
		"6.18.44-fc-v657": {6, 18},
		"5.15-rc1":        {5, 15},
	} {
		v, err := parseVersion(release)
		require.NoError(t, err)
		require.Equal(t, want, v)
	}
	for _, release := range []string{"", "6", "x.y"} {
		_, err := parseVersion(release)
		require.Error(t, err)
	}
	require.True(t, Version{5, 15}.less(MinKernel))
	require.True(t, Version{6, 0}.less(MinKernel))
	require.False(t, Version{6, 1}.less(MinKernel))
	require.False(t, Version{7, 0}.less(MinKernel))
}

func TestReport(t *testing.T) {
	r := Basics(netip.MustParseAddr("2001:db8:dead::1"))
	require.ErrorContains(t, r.Err(), "device: none has 2001:db8:dead::1")
	require.Contains(t, r.String(), "missing  device: none has 2001:db8:dead::1\n")
	require.Contains(t, r.String(), "ok       kernel: ")
}

// echoRequest is what a host answers: the checksum over all is right.
func TestEchoRequest(t *testing.T) {
	src, dst := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	frame := echoRequest(make(net.HardwareAddr, 6), make(net.HardwareAddr, 6), src, dst, []byte{1, 2})
	require.Len(t, frame, 66)
	pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, 0, 0, byte(len(frame)-54), 0, 0, 0, 58)
	require.Equal(t, uint16(0xffff), onesSum(append(pseudo, frame[54:]...)))
}

// Two namespaces, joined by a veth pair:
//
//	near: v0 fd00::1 ---- v1 fd00::2 :far
func TestXDPLive(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	home, err := netns.Get()
	require.NoError(t, err)
	defer home.Close()
	id := make([]byte, 4)
	_, err = rand.Read(id)
	require.NoError(t, err)
	name := "mdcs-host-" + hex.EncodeToString(id)
	far, err := netns.NewNamed(name + "-far")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, netns.DeleteNamed(name+"-far")) })
	near, err := netns.NewNamed(name + "-near")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, netns.DeleteNamed(name+"-near")) })
	defer func() { require.NoError(t, netns.Set(home)) }()

	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1", PeerNamespace: netlink.NsFd(far)}
	require.NoError(t, netlink.LinkAdd(veth))
	address := func(ns netns.NsHandle, dev, addr string) {
		h, err := netlink.NewHandleAt(ns)
		require.NoError(t, err)
		defer h.Close()
		l, err := h.LinkByName(dev)
		require.NoError(t, err)
		a, err := netlink.ParseAddr(addr)
		require.NoError(t, err)
		a.Flags = 0x02 // IFA_F_NODAD
		require.NoError(t, h.AddrAdd(l, a))
		require.NoError(t, h.LinkSetUp(l))
	}
	address(near, "v0", "fd00::1/64")
	address(far, "v1", "fd00::2/64")
	addr, peer := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	require.NoError(t, Basics(addr).Err())

	// The far end of a veth takes redirected frames only with GRO on.
	setGRO(t, far, "v1", false)
	r := Live(addr, peer)
	require.ErrorContains(t, r.Err(), "no reply to 3 echo requests", "%v", r)
	setGRO(t, far, "v1", true)
	r = Live(addr, peer)
	require.NoError(t, r.Err(), "%v", r)

	r = Live(addr, netip.Addr{})
	require.ErrorContains(t, r.Err(), "no default router")
	l, err := netlink.LinkByName("v0")
	require.NoError(t, err)
	require.True(t, l.Attrs().Xdp == nil || !l.Attrs().Xdp.Attached, "a program is left behind")
}
