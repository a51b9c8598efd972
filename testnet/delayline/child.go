// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"
)

// Command is the first argument that makes a program a delay line.
const Command = "delayline"

// memoryLimit is how much the child allocates until the Go runtime collects its
// garbage, in bytes. Only the control protocol makes any.
const memoryLimit = 256 << 20

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

// Main serves links in the namespace of the process until it is told to stop,
// SIGTERM, SIGINT or the end of in. It takes no arguments; what it does is asked
// for on in and answered on out, see [request] and [answer].
func Main(args []string, in io.Reader, out io.Writer) error {
	if len(args) > 0 {
		return errors.New("takes no arguments")
	}
	scheduling, err := raisePriority()
	if err != nil {
		return err
	}
	// One processor of the Go scheduler for the loop, which never yields, and one
	// for the rest.
	runtime.GOMAXPROCS(2)
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(memoryLimit)

	c := newControl(in, out, scheduling)
	if err := c.start(); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		c.stop()
	}()
	go func() {
		c.serve()
		c.stop()
	}()
	c.loop.run()
	return nil
}

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
