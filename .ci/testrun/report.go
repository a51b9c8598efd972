// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
)

const modulePath = "github.com/ethmcast/mdcs"

// event is one line of go test -json, see go doc test2json.
type event struct {
	Action      string
	Package     string
	ImportPath  string // build-output and build-fail
	Test        string
	Elapsed     float64 // seconds
	Output      string
	FailedBuild string // import path whose build failed
}

// testID names a test: the package's import path and the test's full name.
type testID struct{ pkg, name string }

func (id testID) String() string { return shortPackage(id.pkg) + " " + id.name }

// outcome of a test, in the order of increasing weight.
type outcome int

const (
	running outcome = iota // no final event seen
	passed
	skipped
	failed
)

var outcomes = map[string]outcome{"pass": passed, "skip": skipped, "fail": failed}

// test is what is known about one test. Only leaves are counted: a test that ran subtests stands for them only if it
// failed without any of them, and the seeds of a fuzz test are one test.
type test struct {
	id      testID
	outcome outcome
	parent  bool
	output  []string
}

// pkg collects the tests of one package during one run of go test.
type pkg struct {
	path   string
	tests  map[string]*test
	order  []*test
	output []string // not within a test: panics, TestMain, build errors
}

// report reads the events of any number of go test runs and adds them up.
type report struct {
	out io.Writer

	open        map[string]*pkg // packages of the current run that have not ended
	buildOutput map[string][]string
	results     map[testID]outcome
	counts      [failed + 1]int
	skips       []string
	failures    []string
	runFailures int // counts[failed] when the current run began
}

func newReport(out io.Writer) *report {
	return &report{
		out:         out,
		open:        make(map[string]*pkg),
		buildOutput: make(map[string][]string),
		results:     make(map[testID]outcome),
	}
}

// read consumes the events of one run. A line that is no event is printed as it is.
func (r *report) read(events io.Reader) error {
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var ev event
			if !bytes.HasPrefix(line, []byte("{")) || json.Unmarshal(line, &ev) != nil {
				r.out.Write(line)
			} else {
				r.add(ev)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *report) add(ev event) {
	switch ev.Action {
	case "build-output":
		r.buildOutput[ev.ImportPath] = append(r.buildOutput[ev.ImportPath], ev.Output)
		return
	case "build-fail":
		return // the package's own event follows
	}
	p := r.open[ev.Package]
	if p == nil {
		p = &pkg{path: ev.Package, tests: make(map[string]*test)}
		r.open[ev.Package] = p
	}
	if ev.Test == "" {
		switch ev.Action {
		case "output":
			p.output = append(p.output, ev.Output)
		case "pass", "skip", "fail":
			r.endPackage(p, ev)
			delete(r.open, ev.Package)
		}
		return
	}
	t := p.test(ev.Test)
	if final, ok := outcomes[ev.Action]; ok {
		t.outcome = final
	} else if ev.Action == "output" {
		t.output = append(t.output, ev.Output)
	}
}

// test returns the record of the named test, and makes it known to its parent.
func (p *pkg) test(name string) *test {
	if t := p.tests[name]; t != nil {
		return t
	}
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		p.test(name[:i]).parent = true
	}
	t := &test{id: testID{p.path, name}}
	p.tests[name] = t
	p.order = append(p.order, t)
	return t
}

// endPackage counts the package's tests and prints its line.
func (r *report) endPackage(p *pkg, ev event) {
	var counts [failed + 1]int
	var details []string
	count := func(o outcome, what testID, output []string) {
		counts[o]++
		switch o {
		case failed:
			r.failures = append(r.failures, what.String())
			details = append(details, fmt.Sprintf("--- FAIL: %v\n%s", what, indent(output)))
		case skipped:
			r.skips = append(r.skips, fmt.Sprintf("%v: %s", what, skipReason(output)))
		}
	}
	for _, t := range p.order {
		if t.outcome == running && ev.Action == "fail" {
			t.outcome = failed // a panic, a timeout or os.Exit ended the package first
			t.output = append(t.output, "did not finish\n")
		}
		r.results[t.id] = max(r.results[t.id], t.outcome)
	}
	for _, t := range p.order {
		switch {
		case isSeed(t.id.name):
			// its fuzz test stands for it
		case t.parent && !strings.HasPrefix(t.id.name, "Fuzz"):
			if t.outcome == failed && !p.failedBelow(t.id.name) {
				count(failed, t.id, t.output)
			}
		case t.outcome == failed:
			count(failed, t.id, p.outputBelow(t))
		case t.outcome != running:
			count(t.outcome, t.id, t.output)
		}
	}
	// The package itself failed: it did not build, or TestMain, an init function or a goroutine ended it.
	if ev.Action == "fail" && (counts[failed] == 0 || ev.FailedBuild != "") {
		count(failed, testID{p.path, "(package)"}, append(r.buildOutput[ev.FailedBuild], p.output...))
	} else if ev.Action == "fail" && slices.ContainsFunc(p.output, isPanic) {
		details = append(details, indent(p.output))
	}

	verdict := "ok  "
	switch {
	case ev.Action == "fail":
		verdict = "FAIL"
	case counts[passed]+counts[skipped] == 0:
		verdict = "-   " // no tests
	}
	fmt.Fprintf(r.out, "%s %-50s %7.1fs %5d passed", verdict, shortPackage(p.path), ev.Elapsed, counts[passed])
	if counts[failed] > 0 {
		fmt.Fprintf(r.out, ", %d failed", counts[failed])
	}
	if counts[skipped] > 0 {
		fmt.Fprintf(r.out, ", %d skipped", counts[skipped])
	}
	fmt.Fprintln(r.out)
	for _, d := range details {
		fmt.Fprintln(r.out, strings.TrimRight(d, "\n"))
	}
	for o, n := range counts {
		r.counts[o] += n
	}
}

// isSeed reports whether the name is that of a fuzz test's seed.
func isSeed(name string) bool {
	return strings.HasPrefix(name, "Fuzz") && strings.Contains(name, "/")
}

func (p *pkg) failedBelow(name string) bool {
	return slices.ContainsFunc(p.order, func(t *test) bool {
		return t.outcome == failed && strings.HasPrefix(t.id.name, name+"/")
	})
}

// outputBelow is the output of a test and of all below it.
func (p *pkg) outputBelow(t *test) []string {
	var output []string
	for _, other := range p.order {
		if other == t || strings.HasPrefix(other.id.name, t.id.name+"/") {
			output = append(output, other.output...)
		}
	}
	return output
}

// finishRun ends one run of go test: what has not ended by now never will, and go test itself may have failed.
func (r *report) finishRun(exit error) {
	for path, p := range r.open {
		r.endPackage(p, event{Action: "fail", Package: path})
		delete(r.open, path)
	}
	if exit != nil && r.counts[failed] == r.runFailures {
		r.fail(fmt.Sprintf("go test: %v", exit))
	}
	r.runFailures = r.counts[failed]
}

// fail records a failure that is not that of a test.
func (r *report) fail(what string) {
	r.counts[failed]++
	r.failures = append(r.failures, what)
}

// checkRequired counts each required test that did not run as a failure. One that skipped fails only if root ran the
// tests, as nothing should be out of reach then.
func (r *report) checkRequired(required []testID, root bool) {
	var skips int
	for _, id := range required {
		switch got, ran := r.results[id]; {
		case !ran || got == running:
			r.fail(fmt.Sprintf("%v: required, but did not run", id))
		case got == skipped && root:
			r.fail(fmt.Sprintf("%v: required, but skipped as root", id))
		case got == skipped:
			skips++
		}
	}
	if skips > 0 {
		fmt.Fprintf(r.out, "\n%d of %d required tests skipped: run as root to have them all\n", skips, len(required))
	}
}

// summary prints what skipped, what failed and the counts, and reports whether all is well.
func (r *report) summary(elapsed time.Duration) bool {
	section := func(title string, lines []string) {
		if len(lines) == 0 {
			return
		}
		fmt.Fprintf(r.out, "\n%s:\n", title)
		for _, line := range lines {
			fmt.Fprintf(r.out, "    %s\n", line)
		}
	}
	section("skipped", r.skips)
	section("failed", r.failures)
	fmt.Fprintf(r.out, "\n%v\n", elapsed.Round(time.Second))
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.counts[passed], r.counts[failed], r.counts[skipped])
	return r.counts[failed] == 0
}

// framing matches the lines that the testing package writes around a test's own output.
var framing = regexp.MustCompile(`^\s*(=== (RUN|PAUSE|CONT|NAME)|--- (PASS|FAIL|SKIP):)`)

// position matches the "file.go:12: " that t.Log and its like put first.
var position = regexp.MustCompile(`^\s*[\w.-]+\.go:\d+: `)

// skipReason is what the test said last.
func skipReason(output []string) string {
	var said []string
	for _, line := range output {
		if framing.MatchString(line) {
			continue
		}
		if position.MatchString(line) {
			said = nil // a message of several lines starts anew
		}
		said = append(said, strings.TrimSpace(position.ReplaceAllString(line, "")))
	}
	if len(said) == 0 {
		return "no reason given"
	}
	return strings.Join(said, " ")
}

func isPanic(line string) bool {
	return strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:")
}

// indent joins output without the framing lines.
func indent(output []string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.Join(output, "")) {
		if !framing.MatchString(line) {
			b.WriteString("    " + line)
		}
	}
	return b.String()
}

func shortPackage(path string) string {
	if path == modulePath {
		return "."
	}
	return strings.TrimPrefix(path, modulePath+"/")
}

// parseRequired reads lines of "package Test", where the package is relative to our module or of another one, and
// comments from # on.
func parseRequired(in io.Reader) ([]testID, error) {
	var required []testID
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 2 {
			return nil, fmt.Errorf("line %d: %q is not a package and a test", n, strings.TrimSpace(line))
		}
		id := testID{fields[0], fields[1]}
		if host, _, _ := strings.Cut(id.pkg, "/"); id.pkg == "." {
			id.pkg = modulePath
		} else if host == ".ci" || !strings.Contains(host, ".") {
			id.pkg = modulePath + "/" + id.pkg
		}
		if slices.Contains(required, id) {
			return nil, fmt.Errorf("line %d: %v stands there twice", n, id)
		}
		required = append(required, id)
	}
	return required, lines.Err()
}
