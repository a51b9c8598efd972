// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"
)

// startWith is a process of an RP, and its log.
func startWith(path string) (*Server, *bytes.Buffer) {
	log := new(bytes.Buffer)
	return New(Config{BanFile: path, Log: slog.New(slog.NewTextHandler(log, nil))}), log
}

// Bans of an operator hold in the next process, until when they were set for; those for
// violations do not. What is let in again is out of the file.
func TestBansOutliveTheProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bans.json")
	s, log := startWith(path)
	node, prefix, far := enode.ID{1}, netip.MustParsePrefix("2001:db8:9::/48"), netip.MustParseAddr("2001:db8:a::1")
	require.NoError(t, s.BanNode(node, time.Hour))
	require.NoError(t, s.BanPrefix(prefix, 2*time.Hour))
	s.bans.strike(time.Now(), enode.ID{2}, home, "")
	for range 10 {
		s.bans.strike(time.Now(), node, home, "") // a longer ban than the operator's is none of the operator's
	}
	require.NoError(t, s.BanAddr(far, 3*time.Hour))
	require.NotContains(t, log.String(), "level=WARN")
	stat, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), stat.Mode())

	s, log = startWith(path)
	require.Contains(t, log.String(), "bans=3")
	bans := s.Bans()
	require.Len(t, bans, 3)
	for i, want := range []Ban{{Node: node}, {Prefix: prefix}, {Prefix: netip.PrefixFrom(far, 128)}} {
		require.True(t, bans[i].Operator)
		require.WithinDuration(t, time.Now().Add(time.Duration(i+1)*time.Hour), bans[i].Until, time.Minute)
		bans[i].Until, bans[i].Operator = time.Time{}, false
		require.Equal(t, want, bans[i])
	}
	require.True(t, s.BannedAddr(netip.MustParseAddr("2001:db8:9:7::1")))
	require.True(t, s.BannedAddr(far))
	require.False(t, s.BannedAddr(home))

	require.NoError(t, s.BanPrefix(prefix, 0))
	require.NoError(t, s.BanNode(node, 0))
	s, _ = startWith(path)
	require.Len(t, s.Bans(), 1)
	require.NoError(t, s.BanAddr(far, 0))
	s, _ = startWith(path)
	require.Empty(t, s.Bans())
	left, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, left, 1, "nothing but the file")
}

// A ban that is over does not come back, and leaves the file with the next change.
func TestBansOfTheFileEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bans.json")
	over, still := time.Now().Add(-time.Second).UTC(), time.Now().Add(time.Hour).UTC()
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `{"bans": [{"prefix": "2001:db8::7/128", "until": %q}, {"prefix": "2001:db8:9::/48", "until": %q}]}`,
		over.Format(time.RFC3339Nano), still.Format(time.RFC3339Nano)), 0o600))
	s, log := startWith(path)
	require.False(t, s.BannedAddr(home))
	require.Len(t, s.Bans(), 1)
	require.Len(t, s.bans.by, 1)
	require.Contains(t, log.String(), "bans=1 ")
	require.NoError(t, s.BanNode(enode.ID{1}, time.Hour))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NotContains(t, string(text), "2001:db8::7")
	require.Contains(t, string(text), "2001:db8:9::/48")
}

// A file that cannot be read is named with the cure, stops nothing and is not overwritten; once it
// is gone, bans are kept again.
func TestDamagedBanFile(t *testing.T) {
	until := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	for name, text := range map[string]string{
		"empty":         "",
		"garbage":       "\x00\xff",
		"cut":           `{"bans": [{"prefix": "2001:db8::/32", "until": "` + until,
		"longer":        `{"bans": []} {}`,
		"unknown field": `{"bans": [], "more": 1}`,
		"of nobody":     `{"bans": [{"until": "` + until + `"}]}`,
		"without end":   `{"bans": [{"prefix": "2001:db8::/32"}]}`,
		"of IPv4":       `{"bans": [{"prefix": "192.0.2.0/24", "until": "` + until + `"}]}`,
		"of both":       `{"bans": [{"node": "` + enode.ID{1}.String() + `", "prefix": "2001:db8::/32", "until": "` + until + `"}]}`,
		"large":         `{"bans": []}` + strings.Repeat(" ", maxBanFile),
		"too many":      `{"bans": [` + strings.Repeat(`{"prefix": "2001:db8::/32", "until": "`+until+`"},`, maxSet) + `{"prefix": "2001:db8::/32", "until": "` + until + `"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bans.json")
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
			s, log := startWith(path)
			require.Contains(t, log.String(), "level=WARN")
			require.Contains(t, log.String(), path)
			require.Contains(t, log.String(), "correct the file and start rpd again, or remove it")
			require.Empty(t, s.Bans())

			err := s.BanAddr(home, time.Hour)
			require.ErrorIs(t, err, ErrUnkept)
			require.ErrorContains(t, err, path)
			require.True(t, s.BannedAddr(home), "it holds all the same")
			now, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, text, string(now))

			require.NoError(t, os.Remove(path))
			require.NoError(t, s.BanNode(enode.ID{1}, time.Hour))
			s, _ = startWith(path)
			require.Len(t, s.Bans(), 2)
		})
	}
}

// Without a directory, and where it cannot be written, bans hold and the operator is told.
func TestBansThatAreNotKept(t *testing.T) {
	s, log := startWith("")
	require.ErrorContains(t, s.BanAddr(home, time.Hour), "no state directory")
	require.True(t, s.BannedAddr(home))
	require.NoError(t, s.BanAddr(home, 0), "no ban is left to come back")
	require.Empty(t, log.String())

	s, _ = startWith(filepath.Join(t.TempDir(), "missing", "bans.json"))
	require.ErrorIs(t, s.BanAddr(home, time.Hour), ErrUnkept)
	require.True(t, s.BannedAddr(home))
	require.ErrorIs(t, s.BanAddr(home, 0), ErrUnkept)
	require.False(t, s.BannedAddr(home))
}

// There are no more bans of operators than the file may have, and that many can be read.
func TestBansOfOperatorsAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bans.json")
	s, _ := startWith(path)
	for n := range maxSet {
		var id enode.ID
		binary.BigEndian.PutUint32(id[:], uint32(n))
		s.bans.put(time.Now(), id, time.Now().Add(time.Hour))
	}
	err := s.BanAddr(home, time.Hour)
	require.ErrorContains(t, err, "4096 bans of operators")
	require.NotErrorIs(t, err, ErrUnkept)
	require.False(t, s.BannedAddr(home))
	require.NoError(t, s.BanNode(enode.ID{}, 2*time.Hour), "it is one of them")
	s, log := startWith(path)
	require.Len(t, s.Bans(), maxSet, log.String())
}
