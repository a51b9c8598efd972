// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// waiting ends an rpd as soon as it says that its address is not there.
type waiting struct {
	strings.Builder
	end func()
}

func (w *waiting) Write(p []byte) (int, error) {
	if strings.Contains(string(p), "waiting for the address") {
		w.end()
	}
	return w.Builder.Write(p)
}

// TestStopWhileWaiting: to be stopped before the addresses are there is no failure.
func TestStopWhileWaiting(t *testing.T) {
	for _, c := range []struct{ name, node, listen string }{
		{"address", "fd99::7", ""},
		{"admin", "::1", "[fd99::7]:0"},
		{"admin by IPv4", "::1", "192.0.2.7:0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "rpd.toml")
			require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `
				[node]
				address = %q
				[chain]
				network_id = 1337
				genesis = "0x1111111111111111111111111111111111111111111111111111111111111111"
				[admin]
				listen = %q
			`, c.node, c.listen), 0o600))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			w := &waiting{end: cancel}
			require.NoError(t, serve(ctx, path, w))
			require.Contains(t, w.String(), "this host does not have it")
		})
	}
}

// TestXDPAdminAddressComesLate starts rpd before the address of its HTTP listener is there, and then
// has the kernel check that address for duplicates.
func TestXDPAdminAddressComesLate(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	s := newSite(t)
	s.usual()
	s.edit("[::1]:9300", "[2001:db8:1::99]:9300")
	s.edit(`engine = "auto"`, `engine = "socket"`)
	s.write()
	cmd, log := s.start("--config", s.config)
	says := func(what string) {
		require.Eventually(t, func() bool { return strings.Contains(log.String(), what) }, time.Minute, 10*time.Millisecond, "%v", log)
	}
	says("waiting for the address")
	s.in(s.near, func() { s.address("va", "2001:db8:1::99/64", 0) })
	says("replication point serves")
	says("url=http://[2001:db8:1::99]:9300")
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, cmd.Wait())
}
