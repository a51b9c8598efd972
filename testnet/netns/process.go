// SPDX-License-Identifier: LGPL-3.0-or-later

package netns

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is a child inside a namespace.
type Process struct {
	name string
	pid  int
	done chan struct{} // closed when the process was waited for
	err  error         // result of the wait, valid after done
}

// start starts cmd on the thread of ns. The child leads a process group, so that
// a Ctrl-C at the terminal reaches only the tool, and dies with the tool.
func start(ns *Namespace, name string, cmd *exec.Cmd) (*Process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := ns.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", name, ns.name, err)
	}
	p := &Process{name: name, pid: cmd.Process.Pid, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Pid is the process id; after [Process.Done] it may belong to another process.
func (p *Process) Pid() int { return p.pid }

// Done is closed when the process ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the process ended, as (*exec.Cmd).Wait does. It waits for the end.
func (p *Process) Err() error {
	<-p.done
	return p.err
}

// Running reports whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal to the process alone. It does nothing after the end.
func (p *Process) Signal(sig syscall.Signal) error {
	if !p.Running() {
		return nil
	}
	if err := syscall.Kill(p.pid, sig); err != nil && err != syscall.ESRCH {
		return fmt.Errorf("send %s to %s (pid %d): %w", sig, p.name, p.pid, err)
	}
	return nil
}

// Kill ends the process at once, without giving it a chance to say goodbye, and
// waits for it.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Stop asks the process to end, and kills it if it has not within grace.
func (p *Process) Stop(grace time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(grace):
		return p.Kill()
	}
}

// stopAll stops processes side by side.
func stopAll(procs []*Process, grace time.Duration) error {
	errs := make([]error, len(procs))
	var wg sync.WaitGroup
	for i, p := range procs {
		wg.Go(func() { errs[i] = p.Stop(grace) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// startTime is when a process started, in clock ticks since boot (proc(5), stat
// field 22). Together with the pid it names a process unambiguously. It is 0 if
// there is no such process or only its zombie.
func startTime(pid int) uint64 {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// Field 2 is the command in parentheses and may contain anything; the rest
	// begins with field 3.
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0
	}
	const state, start = 0, 22 - 3
	fields := strings.Fields(string(stat[end+1:]))
	if len(fields) <= start || fields[state] == "Z" {
		return 0
	}
	ticks, err := strconv.ParseUint(fields[start], 10, 64)
	if err != nil {
		return 0
	}
	return ticks
}
