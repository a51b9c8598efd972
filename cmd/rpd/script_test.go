// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience is for what must happen on a loaded machine.
const patience = 20 * time.Second

// awaitHTTP is: awaithttp URL PATTERN. It waits until the body at URL matches the
// regular expression.
func awaitHTTP(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: awaithttp URL PATTERN")
	}
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	var last string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get(args[0])
		if err != nil {
			last = err.Error()
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		ts.Check(err)
		if last = string(body); pattern.MatchString(last) {
			return
		}
	}
	ts.Fatalf("%s never had %q: %s", args[0], args[1], last)
}

// sigterm is: sigterm. It asks the only program in the background to end.
func sigterm(ts *testscript.TestScript, neg bool, args []string) {
	cmds := ts.BackgroundCmds()
	if neg || len(args) != 0 || len(cmds) != 1 {
		ts.Fatalf("usage: sigterm, with one program in the background")
	}
	ts.Check(cmds[0].Process.Signal(syscall.SIGTERM))
}

// expand is: expand FILE [NAME=FILE...]. It replaces $VARIABLE in FILE by the
// environment, and $NAME by the first line of the other file.
func expand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: expand FILE [NAME=FILE...]")
	}
	lines := make(map[string]string)
	for _, arg := range args[1:] {
		name, file, _ := strings.Cut(arg, "=")
		line, _, _ := strings.Cut(ts.ReadFile(file), "\n")
		lines[name] = line
	}
	text := os.Expand(ts.ReadFile(args[0]), func(name string) string {
		if line, ok := lines[name]; ok {
			return line
		}
		return ts.Getenv(name)
	})
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}
