// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is the first argument that makes a program a delay line.
const Command = "delayline"

// Lines between parent and child.
const (
	readyLine = "ready" // child to parent, once
	clearLine = "clear" // parent to child: start counting anew
)

// RunChild turns the process into a delay line and exits if it was started as
// one. A program that calls [Start] must call it first thing in main; for tests
// that is TestMain.
func RunChild() {
	if len(os.Args) < 2 || os.Args[1] != Command {
		return
	}
	if err := Main(os.Args[2:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "delayline:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Main serves the links given as flags, in the namespace of the process:
//
//	delayline --link a0,b0,20ms --link a1,b1,5ms
//
// It writes a line "ready" to out, serves until SIGTERM, SIGINT or the end of
// in, and writes its [Summary] as JSON.
func Main(args []string, in io.Reader, out io.Writer) error {
	var links []Link
	flags := flag.NewFlagSet(Command, flag.ContinueOnError)
	flags.Func("link", "interfaces and one-way delay, as `A,B,20ms`; repeatable", func(s string) error {
		link, err := parseLink(s)
		links = append(links, link)
		return err
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	if len(links) == 0 || flags.NArg() > 0 {
		return errors.New("need --link A,B,DELAY and no other arguments")
	}
	scheduling, err := raisePriority()
	if err != nil {
		return err
	}
	debug.SetGCPercent(-1) // nothing is allocated from here on
	w, err := openWire(links)
	if err != nil {
		return err
	}

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		w.stop()
	}()
	go func() {
		lines := bufio.NewScanner(in)
		for lines.Scan() {
			if lines.Text() == clearLine {
				w.clear()
			}
		}
		w.stop()
	}()
	if _, err := fmt.Fprintln(out, readyLine); err != nil {
		return err
	}
	w.run()
	s := w.summary()
	s.Scheduling = scheduling
	return json.NewEncoder(out).Encode(s)
}

func parseLink(s string) (Link, error) {
	parts := strings.Split(s, ",")
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" {
		return Link{}, fmt.Errorf("%q is not A,B,DELAY", s)
	}
	delay, err := time.ParseDuration(parts[2])
	if err != nil {
		return Link{}, err
	}
	if delay <= 0 {
		return Link{}, fmt.Errorf("delay %s is not positive", delay)
	}
	return Link{A: parts[0], B: parts[1], Delay: delay}, nil
}

func (l Link) String() string { return fmt.Sprintf("%s,%s,%s", l.A, l.B, l.Delay) }

// How the process is scheduled. Without real-time priority, busy CPUs make
// frames late by tens of milliseconds.
const (
	schedulingFIFO  = "fifo-50"
	schedulingNice  = "nice-20"
	schedulingOther = "other"
)

// envScheduling carries the outcome of raisePriority through its exec.
const envScheduling = "MDCS_DELAYLINE_SCHEDULING"

// raisePriority gives the whole process the best priority it may have and says
// which. The priority belongs to a thread and is inherited by threads that it
// makes, but the runtime has made several already; so this thread raises its own
// and executes the program anew, which then starts from it.
func raisePriority() (string, error) {
	if s := os.Getenv(envScheduling); s != "" {
		return s, nil
	}
	runtime.LockOSThread()
	s := schedulingFIFO
	attr := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 50}
	if err := unix.SchedSetAttr(0, attr, 0); err != nil {
		s = schedulingNice
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -20); err != nil {
			s = schedulingOther
		}
	}
	err := syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), envScheduling+"="+s))
	return "", fmt.Errorf("execute anew with raised priority: %w", err)
}
