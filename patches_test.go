// SPDX-License-Identifier: LGPL-3.0-or-later

package mdcs_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The series adds at most so many lines to files of geth, and besides to new files.
const maxAddedLines, maxNewLines = 20, 80

// The series stays small, applies to the version of geth that go.mod names, and leaves package eth free of us.
func TestPatches(t *testing.T) {
	patches, err := filepath.Glob("patches/*.patch")
	if err != nil || len(patches) == 0 {
		t.Fatalf("no patches: %v", err)
	}
	added, created := 0, 0
	for i, name := range patches {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if number := fmt.Sprintf("%04d-", i+1); !strings.HasPrefix(filepath.Base(name), number) {
			t.Errorf("%s: number %d of the series must begin with %s", name, i+1, number)
		}
		if subject := fmt.Sprintf("\nSubject: [PATCH %d/%d] ", i+1, len(patches)); !strings.Contains(string(text), subject) {
			t.Errorf("%s: no line begins with %q", name, strings.TrimSpace(subject))
		}
		file, isNew := "", false
		for line := range strings.Lines(string(text)) {
			if changed, ok := strings.CutPrefix(line, "+++ b/"); ok {
				file = strings.TrimSpace(changed)
			} else if strings.HasPrefix(line, "--- ") {
				isNew = strings.HasPrefix(line, "--- /dev/null")
			} else if strings.HasPrefix(line, "+") {
				if isNew {
					created++
				} else {
					added++
				}
				if within(file, "eth") && strings.Contains(line, mdcs) {
					t.Errorf("%s: %s: package eth must not know us", name, file)
				}
			}
		}
	}
	if added > maxAddedLines || created > maxNewLines {
		t.Errorf("the series adds %d lines and %d in new files, at most %d and %d keep it easy to carry along",
			added, created, maxAddedLines, maxNewLines)
	}

	base, err := os.ReadFile("patches/BASE")
	if err != nil {
		t.Fatal(err)
	}
	var module struct{ Version, Dir string }
	if err := json.Unmarshal(goCommand(t, "mod", "download", "-json", geth+"@"+strings.TrimSpace(string(base))), &module); err != nil {
		t.Fatal(err)
	}
	gomod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(gomod), "\t"+geth+" "+module.Version+"\n") {
		t.Errorf("patches/BASE is %s, go.mod requires another version of %s", module.Version, geth)
	}
	args := []string{"-C", module.Dir, "apply", "--check"}
	for _, name := range patches {
		abs, err := filepath.Abs(name)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, abs)
	}
	cmd := exec.Command("git", args...)
	cmd.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(module.Dir)) // the cache may lie in a work tree
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("git apply --check: %v\n%s", err, out)
	}
}
