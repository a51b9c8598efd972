// SPDX-License-Identifier: LGPL-3.0-or-later

package host

import (
	"testing"

	"github.com/safchain/ethtool"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netns"
)

// setGRO switches generic receive offload of a device in another namespace.
func setGRO(t *testing.T, ns netns.NsHandle, device string, on bool) {
	t.Helper()
	here, err := netns.Get()
	require.NoError(t, err)
	defer here.Close()
	require.NoError(t, netns.Set(ns))
	defer func() { require.NoError(t, netns.Set(here)) }()
	tool, err := ethtool.NewEthtool()
	require.NoError(t, err)
	defer tool.Close()
	require.NoError(t, tool.Change(device, map[string]bool{"rx-gro": on}))
}
