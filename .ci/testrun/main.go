// SPDX-License-Identifier: LGPL-3.0-or-later

// Command testrun runs go test and reports so that nothing is missed: a line per package, the output of what failed,
// each skip with its reason, and a last line "N passed, N failed, N skipped".
//
//	testrun [-required FILE] -- ARGS... [-- ARGS...]
//	testrun [-required FILE] -recorded EVENTS
//
// Each ARGS is one run of go test -json ARGS, and all of them are reported together. EVENTS is what go test -json or
// go tool test2json said of a run elsewhere, as the same user. FILE lists tests that must run: one of them that did not
// run, or that skipped although root ran it, is a failure.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"time"
)

func main() {
	code, err := run(os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testrun:", err)
		code = 2
	}
	os.Exit(code)
}

func run(args []string, out io.Writer) (int, error) {
	flags := flag.NewFlagSet("testrun", flag.ExitOnError)
	requiredFile := flags.String("required", "", "`file` of tests that must run")
	recorded := flags.String("recorded", "", "`file` of events of tests that ran before, in place of a run")
	flags.Parse(args)

	var required []testID
	if *requiredFile != "" {
		f, err := os.Open(*requiredFile)
		if err != nil {
			return 0, err
		}
		required, err = parseRequired(f)
		f.Close()
		if err != nil {
			return 0, fmt.Errorf("%s: %w", *requiredFile, err)
		}
	}
	r, started := newReport(out), time.Now()
	if *recorded != "" {
		if err := readRecorded(*recorded, r); err != nil {
			return 0, err
		}
	} else {
		for _, goTestArgs := range splitArgs(flags.Args()) {
			if err := goTest(goTestArgs, r); err != nil {
				return 0, err
			}
		}
	}
	r.checkRequired(required, os.Geteuid() == 0)
	if !r.summary(time.Since(started)) {
		return 1, nil
	}
	return 0, nil
}

// splitArgs cuts the arguments at each "--".
func splitArgs(args []string) [][]string {
	var groups [][]string
	for {
		i := slices.Index(args, "--")
		if i < 0 {
			return append(groups, args)
		}
		groups = append(groups, args[:i])
		args = args[i+1:]
	}
}

// readRecorded feeds the events of a file to the report. A file without events is a failure: something should have run.
func readRecorded(name string, r *report) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := r.read(f); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	r.finishRun(nil)
	if len(r.results) == 0 {
		r.fail(name + ": nothing ran")
	}
	return nil
}

// goTest runs go test once and feeds its events to the report. An interrupt is passed on, so that tests can clean up.
func goTest(args []string, r *report) error {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(interrupts)
	go func() {
		for s := range interrupts {
			cmd.Process.Signal(s)
		}
	}()
	defer close(interrupts)

	readErr := r.read(events)
	exitErr := cmd.Wait()
	if readErr != nil {
		return fmt.Errorf("read go test -json: %w", readErr)
	}
	r.finishRun(exitErr)
	return nil
}
