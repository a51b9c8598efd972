// SPDX-License-Identifier: LGPL-3.0-or-later

package mdcs_test

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A bannedWord is a second word for a thing that docs/glossary.md has a word for.
type bannedWord struct {
	word   *regexp.Regexp
	say    string
	in     []string // files or directories; none is the whole repository
	except []string // files or directories that may use the word
}

var bannedWords = []bannedWord{{
	word: regexp.MustCompile(`(?i)\bheart-beat`),
	say:  "heartbeat",
}, {
	word: regexp.MustCompile(`(?i)\bneighbors?\b`),
	say:  "ND entry for a host on the link, RP neighbour for another RP, gossip peer for another geth",
	in:   []string{"README.md", "SPEC.md", "docs", "ethmcast", "cmd", "rp", "bpf"},
}, {
	word: regexp.MustCompile(`(?i)\bmode[ =]+"?last\b|\btree\.Last\b`),
	say:  "mode light",
}, {
	word: regexp.MustCompile(`\b(bpf|BPF|kernel|programs'?) tables?\b|\btables of the kernel\b|\btables and programs\b|\bprograms and (their )?tables\b`),
	say:  "BPF map",
}, {
	word:   regexp.MustCompile(`(?i)\btables\b`),
	say:    "BPF map",
	in:     []string{"bpf", "cmd/rpd", "rp/config", "rp/datapath"},
	except: []string{"rp/datapath/xdp/nexthop"}, // tables of routes
}, {
	word: regexp.MustCompile(`(^|[^P] |[^ /])\bneighbours?\b`),
	say:  "gossip peer for another geth, RP neighbour for another RP, ND entry for a host on the link",
	in: []string{"README.md", "docs", "ethmcast", "bpf", "cmd/rpd", "rp/cache", "rp/datapath", "rp/host", "rp/hostnet", "rp/keyring", "rp/membership",
		"testnet/net.go", "testnet/netns", "testnet/scenario_test.go"},
}, {
	word: regexp.MustCompile(`(?i)\bneighbouring (RPs?|replication points?)\b`),
	say:  "RP neighbour",
}, {
	word: regexp.MustCompile(`\bHELLOs?\b`),
	say:  "LINK_HELLO for the datagram, Hello for the message of mdcsmesh/1",
}, {
	word: regexp.MustCompile(`\b(publish_egress|mesh_egress|egress_limit)\b`),
	say:  "egress_per_geth, egress_per_rp, egress_total",
	in:   []string{"README.md", "SPEC.md", "docs"},
}, {
	word: regexp.MustCompile(`\bproto\.Echo\b|\bRouteAck\b`),
	say:  "ProbeAck for the answer to a PROBE, GraftAck for the answer to a Graft",
}}

// historic files tell what was: their words stay.
var historic = []string{"CHANGELOG.md", "decisions", "docs/glossary.md", "words_test.go"}

// find returns the lines of a text that use the word, "" when name is none of its files.
func (b bannedWord) find(name string, text []byte) (lines []string) {
	covers := func(path string) bool { return name == path || within(name, path) }
	if len(b.in) > 0 && !slices.ContainsFunc(b.in, covers) || slices.ContainsFunc(slices.Concat(b.except, historic), covers) {
		return nil
	}
	for line := range bytes.Lines(text) {
		if b.word.Match(line) {
			lines = append(lines, strings.TrimSpace(string(line)))
		}
	}
	return lines
}

// One word for one thing: docs/glossary.md.
func TestWords(t *testing.T) {
	for _, name := range sources(t) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.IndexByte(text, 0) >= 0 {
			continue // binary
		}
		for _, b := range bannedWords {
			for _, line := range b.find(name, text) {
				t.Errorf("%s: say %s: %s", name, b.say, line)
			}
		}
	}
}

// A rule about files that are not there guards nothing.
func TestBannedWordsMatch(t *testing.T) {
	paths := slices.Clone(historic)
	for _, b := range bannedWords {
		paths = slices.Concat(paths, b.in, b.except)
		for _, path := range b.except {
			covers := func(dir string) bool { return path == dir || within(path, dir) }
			if len(b.in) > 0 && !slices.ContainsFunc(b.in, covers) {
				t.Errorf("%s need not be excepted: the word is searched in %v", path, b.in)
			}
		}
	}
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

func TestBannedWordsThemselves(t *testing.T) {
	for _, c := range []struct {
		name, line string
		found      bool
	}{
		{"rp/heartbeat.go", "// a heart-beat is due", true},
		{"rp/heartbeat.go", "// a heartbeat is due", false},
		{"CHANGELOG.md", "heart-beat", false},
		{"rp/host/host.go", "// the neighbor is not known", true},
		{"testnet/bgp/config.go", "neighbor fe80::1", false},
		{"README.md", `mode = "last"`, true},
		{"README.md", "the last mode", false},
		{"bpf/include/mdcs/maps.h", "the BPF tables", true},
		{"cmd/rpd/rpd.service", "needs: programs and tables", true},
		{"rp/hostnet/watch.go", "the tables main and local", false},
		{"ethmcast/peer.go", "// the neighbour is covered", true},
		{"ethmcast/peer.go", "neighbours tell each other", true},
		{"ethmcast/receipts.go", "// two RP neighbours", false},
		{"rp/meshside/link.go", "// the neighbour is up", false},
		{"rp/meshside/link.go", "// a neighbouring RP is up", true},
		{"rp/datapath/sites.go", "// the neighbour's share", true},
		{"rp/datapath/sites.go", "// the RP neighbour's share", false},
		{"SPEC.md", "16 HELLOs wait", true},
		{"SPEC.md", "16 LINK_HELLOs wait", false},
		{"bpf/include/mdcs/maps.h", " * The tables between the programs", true},
		{"README.md", "tables and programs are pinned", true},
		{"README.md", "`results/mesh/` gets JSON, tables and pictures", false},
		{"rp/datapath/xdp/nexthop/tracker.go", "the tables that rules lead to", false},
		{"rp/hostnet/watch.go", "the usual tables", false},
	} {
		found := slices.ContainsFunc(bannedWords, func(b bannedWord) bool { return b.find(c.name, []byte(c.line)) != nil })
		if found != c.found {
			t.Errorf("%s: %q: found %t, want %t", c.name, c.line, found, c.found)
		}
	}
}
