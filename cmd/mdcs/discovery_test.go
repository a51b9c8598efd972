// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/p2p/dnsdisc"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/p2p/enr"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/discovery"
	"github.com/ethmcast/mdcs/ethmcast/discovery/discoverytest"
)

// What is printed, as JSON and as lines of a zone, is a tree that others can read.
func TestDiscoveryTree(t *testing.T) {
	dir := t.TempDir()
	file, key := filepath.Join(dir, "records"), filepath.Join(dir, "key")
	text := "# replication points\n\n"
	want := make(map[string]bool)
	for i := range 30 { // more than one branch holds
		entries := discoverytest.Endpoint("2001:db8::1", uint16(30000+i))
		entries = append(entries, discovery.Entry{NetworkID: 1, DataPort: 1, Operator: strings.Repeat("x", 32)})
		n := discoverytest.Record(t, discoverytest.Key(t), 1<<40, entries...)
		want[n.String()] = true
		text += n.String() + "\n"
	}
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	linked := "enrtree://AKA3AM6LPBYEUDMVNU3BSVQJ5AD45Y7YPOHJLEF6W26QOE4VTUDPE@linked.example.org"
	command := []string{"discovery", "tree", "--domain", "rps.example.org.", "--key", key, "--seq", "7"}

	status, stdout, stderr := execute(t.Context(), append(command, "-o", "json", file)...)
	require.Zero(t, status, stderr)
	var signed signedTree
	require.NoError(t, json.Unmarshal([]byte(stdout), &signed))
	require.Equal(t, uint(7), signed.Seq)
	zone := new(discoverytest.Zone)
	zone.Add(signed.Records)
	tree, err := dnsdisc.NewClient(dnsdisc.Config{Resolver: zone, RateLimit: 1000}).SyncTree(signed.URL)
	require.NoError(t, err)
	require.Equal(t, uint(7), tree.Seq())
	got := make(map[string]bool)
	for _, n := range tree.Nodes() {
		got[n.String()] = true
	}
	require.Equal(t, want, got)

	// The key was made, for its owner alone, and is used again.
	info, err := os.Stat(key)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	status, stdout, stderr = execute(t.Context(), append(command, file)...)
	require.Zero(t, status, stderr)
	url, stdout, _ := strings.Cut(stdout, "\n")
	require.Equal(t, "; "+signed.URL, url)
	line := regexp.MustCompile(`^(\S+)\. (\d+) IN TXT ("[^"]{1,255}"(?: "[^"]{1,255}")*)$`)
	records := make(map[string]string)
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	for i, l := range lines {
		part := line.FindStringSubmatch(l)
		require.NotNil(t, part, l)
		records[part[1]] = strings.Trim(strings.ReplaceAll(part[3], `" "`, ""), `"`)
		ttl := "86400"
		if i == len(lines)-1 {
			require.Equal(t, "rps.example.org", part[1])
			ttl = "1800"
		}
		require.Equal(t, ttl, part[2])
	}
	require.Equal(t, signed.Records, records)

	// A link, and the sequence number of the time.
	command = append(command[:len(command)-2], "--link", linked, "-o", "json", file)
	before := uint(time.Now().Unix())
	status, stdout, stderr = execute(t.Context(), command...)
	require.Zero(t, status, stderr)
	require.NoError(t, json.Unmarshal([]byte(stdout), &signed))
	require.GreaterOrEqual(t, signed.Seq, before)
	require.Contains(t, stdout, linked)
}

func TestDiscoveryTreeMistakes(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, lines ...string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600))
		return path
	}
	key := discoverytest.Key(t)
	entry := discovery.Entry{NetworkID: 1, DataPort: 1}
	record := func(addr string, entries ...enr.Entry) *enode.Node {
		return discoverytest.Record(t, key, 1, append(discoverytest.Endpoint(addr, 30500), entries...)...)
	}
	good := record("2001:db8::1", entry)
	signer := filepath.Join(dir, "signer")
	for want, args := range map[string][]string{
		`Required flags "domain, key" not set`:                  {},
		"need a file of node records":                           {"--domain", "x", "--key", signer},
		"no such file":                                          {"--domain", "x", "--key", signer, filepath.Join(dir, "missing")},
		"line 1: missing 'enr:' prefix":                         {"--domain", "x", "--key", signer, write("text", "x")},
		"line 2: missing ENR key \"mdcs\"":                      {"--domain", "x", "--key", signer, write("other", "#", record("2001:db8::1").String())},
		"line 1: no IPv6 endpoint":                              {"--domain", "x", "--key", signer, write("v4", record("192.0.2.1", entry).String())},
		fmt.Sprintf("line 2: a second record of %v", good.ID()): {"--domain", "x", "--key", signer, write("twice", good.String(), good.String())},
		"wrong/missing scheme 'enrtree'":                        {"--domain", "x", "--key", signer, "--link", "x", write("good", good.String())},
		"key " + write("bad", "x") + ": ":                       {"--domain", "x", "--key", write("bad", "x"), write("good", good.String())},
		`--output "zone" is neither`:                            {"--domain", "x", "--key", signer, "-o", "zone", write("good", good.String())},
	} {
		t.Run(want, func(t *testing.T) {
			status, _, stderr := execute(t.Context(), append([]string{"discovery", "tree"}, args...)...)
			require.Equal(t, 1, status)
			require.Contains(t, stderr, want)
		})
	}
	require.NoFileExists(t, signer, "a mistake makes no key")
}
