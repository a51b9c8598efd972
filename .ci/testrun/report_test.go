// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the expected reports in testdata")

// The recordings in testdata are of go test -json, without times and addresses. Each NAME.txt is the report that is
// expected of NAME.json.
func TestReports(t *testing.T) {
	for _, name := range []string{"green", "mixed", "timeout"} {
		t.Run(name, func(t *testing.T) {
			recording, err := os.Open(filepath.Join("testdata", name+".json"))
			if err != nil {
				t.Fatal(err)
			}
			defer recording.Close()

			var out bytes.Buffer
			r := newReport(&out)
			if err := r.read(recording); err != nil {
				t.Fatal(err)
			}
			var exit error
			if name != "green" {
				exit = errors.New("exit status 1")
			}
			r.finishRun(exit)
			if ok := r.summary(90 * time.Second); ok != (name == "green") {
				t.Errorf("summary reports %v", ok)
			}

			golden := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if out.String() != string(want) {
				t.Errorf("report differs from %s (see -update):\n%s", golden, out.String())
			}
		})
	}
}

// A recorded run is reported as one that testrun started, and one without any test fails.
func TestRecorded(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.json")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		file, says string
		code       int
	}{
		{filepath.Join("testdata", "green.json"), " passed, 0 failed,", 0},
		{filepath.Join("testdata", "mixed.json"), " failed,", 1},
		{filepath.Join("testdata", "timeout.json"), "did not finish", 1},
		{empty, "nothing ran", 1},
	} {
		var out bytes.Buffer
		code, err := run([]string{"-recorded", x.file}, &out)
		if err != nil {
			t.Fatal(err)
		}
		if code != x.code || !strings.Contains(out.String(), x.says) {
			t.Errorf("%s: code %d, not %d, or not %q in:\n%s", x.file, code, x.code, x.says, out.String())
		}
	}
	if _, err := run([]string{"-recorded", filepath.Join(t.TempDir(), "none")}, io.Discard); err == nil {
		t.Error("no error without a file")
	}
}

// A run that ends early must not look like a good one.
func TestUnfinishedRun(t *testing.T) {
	for _, test := range []struct {
		name, events string
		exit         error
	}{
		{"go test fails without a word", "", errors.New("exit status 1")},
		{"package without an end", `{"Action":"start","Package":"p"}` + "\n", nil},
		{"test without an end", `{"Action":"run","Package":"p","Test":"TestX"}` + "\n", nil},
		{"cut within a line", `{"Action":"start","Package":"p"}` + "\n" + `{"Action":"pa`, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			r := newReport(&out)
			if err := r.read(strings.NewReader(test.events)); err != nil {
				t.Fatal(err)
			}
			r.finishRun(test.exit)
			if r.summary(0) {
				t.Errorf("reported as good:\n%s", out.String())
			}
		})
	}
}

func TestLastLine(t *testing.T) {
	var out bytes.Buffer
	r := newReport(&out)
	r.counts[passed], r.counts[skipped] = 120, 3
	r.summary(time.Minute)
	if !strings.HasSuffix(out.String(), "\n120 passed, 0 failed, 3 skipped\n") {
		t.Errorf("last line of %q", out.String())
	}
}

func TestRequired(t *testing.T) {
	results := map[testID]outcome{
		{modulePath + "/rp", "TestRan"}:                         passed,
		{modulePath + "/rp", "TestSkipped"}:                     skipped,
		{modulePath, "TestRules"}:                               passed,
		{"github.com/ethereum/go-ethereum/eth", "TestTxRouter"}: passed,
	}
	const list = `
		rp TestRan   # the reason why
		. TestRules
		# nothing here
		github.com/ethereum/go-ethereum/eth TestTxRouter
	`
	for _, test := range []struct {
		name, list string
		root       bool
		failures   []string
	}{
		{"all ran", list, true, nil},
		{"skipped by a user", list + "rp TestSkipped\n", false, nil},
		{"skipped by root", list + "rp TestSkipped\n", true, []string{"rp TestSkipped: required, but skipped as root"}},
		{"renamed test", list + "rp TestGone\n", false, []string{"rp TestGone: required, but did not run"}},
		{"unknown package", list + ".ci/testrun TestRan\n", false, []string{".ci/testrun TestRan: required, but did not run"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			required, err := parseRequired(strings.NewReader(test.list))
			if err != nil {
				t.Fatal(err)
			}
			r := newReport(new(bytes.Buffer))
			r.results = results
			r.checkRequired(required, test.root)
			if !reflect.DeepEqual(r.failures, test.failures) || r.counts[failed] != len(test.failures) {
				t.Errorf("failures %q, want %q", r.failures, test.failures)
			}
		})
	}
	for _, bad := range []string{"rp\n", "rp TestX TestY\n", "rp TestX\nrp TestX\n"} {
		if _, err := parseRequired(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestSplitArgs(t *testing.T) {
	got := splitArgs([]string{"-v", "./...", "--", "-run", "X", "./p"})
	want := [][]string{{"-v", "./..."}, {"-run", "X", "./p"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
