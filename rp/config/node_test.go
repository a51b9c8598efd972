// SPDX-License-Identifier: LGPL-3.0-or-later

package config

import (
	"net/netip"
	"testing"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"
)

func testNode(t *testing.T, addr string) *enode.Node {
	t.Helper()
	key, err := crypto.GenerateKey()
	require.NoError(t, err)
	return enode.NewV4(&key.PublicKey, netip.MustParseAddr(addr).AsSlice(), 30500, 0)
}

// v4 is a URL with an IPv4 address.
func v4(t *testing.T) string { return testNode(t, "192.0.2.1").URLv4() }

// udp is a URL without a TCP port.
func udp(t *testing.T) string {
	key := testNode(t, "2001:db8::2").Pubkey()
	return enode.NewV4(key, netip.MustParseAddr("2001:db8::2").AsSlice(), 0, 30303).URLv4()
}
