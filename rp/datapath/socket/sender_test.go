// SPDX-License-Identifier: LGPL-3.0-or-later

package socket

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// A destination that the host refuses costs its own copy, nobody else's.
func TestSenderSkipsRefused(t *testing.T) {
	const peers = 150
	s, sessions := smallNet(peers)
	refused := map[netip.AddrPort]bool{
		sessions[1].Addr: true, sessions[2].Addr: true, sessions[70].Addr: true, sessions[peers-1].Addr: true,
	}
	s.wire.refuse = func(dst netip.AddrPort) bool { return refused[dst] }
	v, out := s.Receive(sessions[0].Addr, data(&sessions[0], 1))
	require.Equal(t, wire.Pass, v)
	require.Len(t, out, 1+1+peers-1-len(refused)) // ECHO, RP, peers

	st := s.Stats()
	require.Equal(t, uint64(len(refused)), st.SendErrors)
	require.Equal(t, uint64(1+peers-1-len(refused)), st.Copies)
	require.Equal(t, uint64(1), st.Echoes)
	for _, session := range st.Sessions {
		want := uint64(1)
		if refused[session.Addr] {
			want = 0
		}
		require.Equal(t, want, session.Copies, "session %08x", session.Index)
	}
}
