// SPDX-License-Identifier: LGPL-3.0-or-later

package mdcs_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const (
	libraryLicence = "SPDX-License-Identifier: LGPL-3.0-or-later"              // as geth's library, into which we are linked
	kernelLicence  = "SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)" // the kernel demands a GPL-compatible program
)

// generatedLine marks files that carry no header, because a tool writes them anew.
var generatedLine = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

func TestEachSourceNamesItsLicence(t *testing.T) {
	for _, name := range sources(t) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		ext := filepath.Ext(name)
		switch ext {
		case ".go", ".c", ".h", ".lua", ".sh":
		case "":
			if !bytes.HasPrefix(text, []byte("#!")) && name != "Makefile" {
				continue
			}
		default:
			continue
		}
		if generatedLine.Match(text) {
			continue
		}
		want := libraryLicence
		if ext == ".c" || ext == ".h" { // all C here is for the kernel
			want = kernelLicence
		}
		line, rest, _ := strings.Cut(string(text), "\n")
		if strings.HasPrefix(line, "#!") {
			line, _, _ = strings.Cut(rest, "\n")
		}
		if !strings.HasSuffix(strings.TrimSuffix(line, " */"), " "+want) {
			t.Errorf("%s: the first line must be a comment with %q", name, want)
		}
	}
}

// The project speaks only of itself: a path of somebody's machine helps nobody else.
func TestNoPathsOfOneMachine(t *testing.T) {
	foreign := regexp.MustCompile(`(^|[\s"'=(])/(work|home|root)/`)
	for _, name := range sources(t) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.IndexByte(text, 0) >= 0 {
			continue // binary
		}
		n := 0
		for line := range bytes.Lines(text) {
			if n++; foreign.Match(line) {
				t.Errorf("%s:%d: %s", name, n, bytes.TrimSpace(line))
			}
		}
	}
}
