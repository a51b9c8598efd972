// SPDX-License-Identifier: LGPL-3.0-or-later

// Command conformance runs geth's own protocol suites (devp2p rlpx eth-test and snap-test, with geth's own test chain)
// against a geth that has joined a replication point, and fails unless each passes in full.
//
//	conformance [-geth FILE] [-rpd FILE] [-devp2p FILE] [-keep]
//
// With -rpd "" the geth runs without --mdcs: a stock geth shows that a failure is not ours. Each suite has a fresh node,
// all of it on loopback. Processes and directories are gone when the command ends; -keep leaves the directories of suites
// that failed, with the logs of all processes.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// suites are the devp2p commands and the number of tests that each has in this version of geth. All must pass; a
// different number means that the base has changed and the table has to follow.
var suites = []struct {
	command string
	tests   int
}{
	{"eth-test", 24},
	{"snap-test", 5},
}

func main() {
	programs := programs{}
	flag.StringVar(&programs.geth, "geth", "build/geth", "geth under test")
	flag.StringVar(&programs.rpd, "rpd", "build/rpd", "replication point, none if empty")
	flag.StringVar(&programs.devp2p, "devp2p", "build/devp2p", "geth's devp2p tool")
	flag.BoolVar(&programs.keep, "keep", false, "keep the directories of suites that fail")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, programs); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

// programs are the paths of the binaries, and whether to keep what they leave behind.
type programs struct {
	geth, rpd, devp2p string
	keep              bool
}

func run(ctx context.Context, programs programs) error {
	testdata, err := testChainDir(ctx)
	if err != nil {
		return err
	}
	for _, suite := range suites {
		started := time.Now()
		out, err := runSuite(ctx, programs, testdata, suite.command)
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		if err == nil {
			err = checkCounts(out, suite.tests)
		}
		if err != nil {
			os.Stdout.WriteString(out)
			return fmt.Errorf("%s: %w", suite.command, err)
		}
		fmt.Printf("%s: %d/%d passed in %v\n", suite.command, suite.tests, suite.tests, time.Since(started).Round(time.Second))
	}
	return nil
}

// testChainDir is the directory of geth's test chain in the module cache.
func testChainDir(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/ethereum/go-ethereum")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find go-ethereum: %w", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "cmd/devp2p/internal/ethtest/testdata"), nil
}

// runSuite runs one suite against a fresh node, and returns what devp2p printed.
func runSuite(ctx context.Context, programs programs, testdata, command string) (output string, err error) {
	dir, err := os.MkdirTemp("", "mdcs-conformance-")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil && programs.keep {
			err = fmt.Errorf("%w\nkept %s", err, dir)
			return
		}
		os.RemoveAll(dir)
	}()

	var rp *replicationPoint
	if programs.rpd != "" {
		if rp, err = startRP(ctx, programs.rpd, dir, testdata); err != nil {
			return "", fmt.Errorf("start the replication point: %w", err)
		}
		defer rp.stop()
	}
	node, err := startNode(ctx, programs.geth, dir, testdata, rp)
	if err != nil {
		return "", fmt.Errorf("start the node: %w", err)
	}
	defer node.stop()

	out, suiteErr := exec.CommandContext(ctx, programs.devp2p, "rlpx", command,
		"--chain", testdata,
		"--node", node.enode,
		"--engineapi", node.engineURL,
		"--jwtsecret", node.jwtSecret,
	).CombinedOutput()
	if suiteErr == nil && rp != nil {
		suiteErr = node.checkJoined(ctx)
	}
	if suiteErr != nil {
		return string(out), fmt.Errorf("%w\n%s", suiteErr, node.logTail())
	}
	return string(out), nil
}

var countsLine = regexp.MustCompile(`(?m)^(\d+)/(\d+) tests passed\.$`)

// checkCounts looks for "N/N tests passed." with the expected N.
func checkCounts(out string, want int) error {
	got := countsLine.FindStringSubmatch(out)
	if got == nil {
		return errors.New("the output has no line of counts")
	}
	if n := fmt.Sprint(want); got[1] != n || got[2] != n {
		return fmt.Errorf("%s of %s tests passed, want %d of %d", got[1], got[2], want, want)
	}
	return nil
}

// process is a daemon that writes its output to a file and ends by SIGTERM.
type process struct {
	name   string
	log    string
	cancel context.CancelFunc
	done   chan struct{} // closed when it has ended
}

func startProcess(ctx context.Context, dir, program string, args ...string) (*process, error) {
	name := filepath.Base(program)
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()

	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = environment()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second // then it is killed
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	p := &process{name, log.Name(), cancel, make(chan struct{})}
	go func() {
		cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) stop() {
	p.cancel()
	<-p.done
}

// logTail is the end of the process's output, for an error message.
func (p *process) logTail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return fmt.Sprintf("last lines of %s:\n%s", p.name, bytes.Join(lines[max(0, len(lines)-30):], []byte("\n")))
}

// await polls until ready returns nil. It ends early with the context and with the process.
func (p *process) await(ctx context.Context, timeout time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s has ended\n%s", p.name, p.logTail())
		case <-ctx.Done():
			return fmt.Errorf("not after %v: %w\n%s", timeout, err, p.logTail())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// environment is ours without the variables that geth reads as flags.
func environment() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "GETH_") {
			env = append(env, v)
		}
	}
	return env
}

func readJSON(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
