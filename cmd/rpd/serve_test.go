// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

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

// TestStopWhileWaiting: to be stopped before the address is there is no failure.
func TestStopWhileWaiting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rpd.toml")
	require.NoError(t, os.WriteFile(path, []byte(`
		[node]
		address = "fd99::7"
		[chain]
		network_id = 1337
		genesis = "0x1111111111111111111111111111111111111111111111111111111111111111"
	`), 0o600))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := &waiting{end: cancel}
	require.NoError(t, serve(ctx, path, w))
	require.Contains(t, w.String(), "this host does not have it")
}
