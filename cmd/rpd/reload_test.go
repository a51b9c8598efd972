// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/rp/config"
)

// What may change changes, what may not is named, and a bad file changes nothing.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "rpd.toml")
	control, err := freePort(false)
	require.NoError(t, err)
	data, err := freePort(true)
	require.NoError(t, err)
	write := func(changes ...string) {
		text := fmt.Sprintf(`
[node]
key_file = "%s/key"
address = "::1"
control_port = %d
data_port = %d
operator = "one"
[chain]
network_id = 1
genesis = "0x0100000000000000000000000000000000000000000000000000000000000000"
[datapath]
engine = "socket"
pin = ""
[limits]
max_per_64 = 4
publish_rate = 100
[admission]
join = "open"
list = []
[log]
level = "info"
`, dir, control, data)
		require.NoError(t, os.WriteFile(path, []byte(strings.NewReplacer(changes...).Replace(text)), 0o600))
	}
	write()
	now, err := config.Load(path)
	require.NoError(t, err)
	var lines bytes.Buffer
	log, level := slog.New(slog.NewTextHandler(&lines, nil)), new(slog.LevelVar)
	point, err := newRP(now, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, point.Start())
	defer point.Stop()
	before := point.Settings()
	require.Equal(t, 4, before.Limits.Per64)

	write("publish_rate = 100", "publish_rate = 0")
	now = reload(point, path, now, level, log)
	require.Equal(t, before, point.Settings())
	require.Contains(t, lines.String(), "limits.publish_rate: 0 lets nobody publish")
	write("level", "levle")
	now = reload(point, path, now, level, log)
	require.Equal(t, before, point.Settings())

	// What a check refuses is not reloaded, and what is reloaded passes the check: the unit asks
	// for the check first.
	for _, x := range []struct {
		changes []string
		bad     string
	}{
		{[]string{`"::1"`, `"2001:db8::1"`}, "is the example of the shipped file"},
		{[]string{`join = "open"`, `join = "none"`}, "admission.join"},
		{[]string{"list = []", `list = ["00"]`}, "admission.list"},
		{nil, ""},
	} {
		write(x.changes...)
		var stderr bytes.Buffer
		code := run([]string{"rpd", "config", "check", path}, &bytes.Buffer{}, &stderr)
		lines.Reset()
		now = reload(point, path, now, level, log)
		if x.bad == "" {
			require.Zero(t, code, stderr.String())
			require.Contains(t, lines.String(), "configuration reloaded")
			continue
		}
		require.Equal(t, 1, code)
		require.Contains(t, stderr.String(), x.bad)
		require.Contains(t, lines.String(), "not reloaded")
		require.Contains(t, lines.String(), x.bad)
		require.Equal(t, before, point.Settings())
		require.Equal(t, "::1", now.Node.Address.String())
	}

	lines.Reset()
	write("publish_rate = 100", "publish_rate = 50\negress_total = 7000", `"open"`, `"list"`, `"info"`, `"debug"`, `"one"`, `"two"`, "max_per_64 = 4", "max_per_64 = 3")
	now = reload(point, path, now, level, log)
	after := point.Settings()
	require.Equal(t, uint32(50), after.Rate)
	require.Equal(t, uint64(7000), after.EgressTotal)
	require.Equal(t, 3, after.Limits.Per64)
	require.NotNil(t, after.Joiners)
	require.Equal(t, slog.LevelDebug, level.Level())
	require.Contains(t, lines.String(), `changed="limits.max_per_64 limits.publish_rate limits.egress_total admission.join log.level"`)
	require.Contains(t, lines.String(), `keys=node.operator`)
	require.Equal(t, "one", now.Node.Operator, "until the restart")

	lines.Reset()
	write()
	reload(point, path, now, level, log)
	require.Equal(t, before, point.Settings())
	require.NotContains(t, lines.String(), "restart")
}

// Bans of operators are kept in the directory that systemd gives to rpd.
func TestBanFile(t *testing.T) {
	require.Equal(t, "/var/lib/rpd/bans.json", banFile("/var/lib/rpd"))
	require.Equal(t, "/var/lib/rpd/bans.json", banFile("/var/lib/rpd:/var/lib/more"))
	require.Empty(t, banFile(""))
}
