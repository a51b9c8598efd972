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
	cmd  *exec.Cmd
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
	p := &Process{name: name, pid: cmd.Process.Pid, cmd: cmd, done: make(chan struct{})}
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

// CPU is the processor time that the process used so far, with all its threads.
// While it runs the resolution is 10 ms.
func (p *Process) CPU() (time.Duration, error) {
	if p.Running() {
		fields := stat(p.pid)
		if len(fields) > statSTime {
			user, err1 := strconv.ParseUint(fields[statUTime], 10, 64)
			system, err2 := strconv.ParseUint(fields[statSTime], 10, 64)
			return time.Duration(user+system) * clockTick, errors.Join(err1, err2)
		}
	}
	<-p.done // it ended meanwhile
	return p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime(), nil
}

// clockTick is the unit of times in /proc, USER_HZ, on all architectures that Go
// runs on.
const clockTick = 10 * time.Millisecond

// Fields of [stat]: proc(5) numbers them three higher.
const (
	statState = 0
	statUTime = 11
	statSTime = 12
	statStart = 19
)

// stat is /proc/PID/stat from field 3 on; nil if there is no such process. Field
// 2 is the command in parentheses and may contain anything.
func stat(pid int) []string {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil
	}
	end := bytes.LastIndexByte(text, ')')
	if end < 0 {
		return nil
	}
	return strings.Fields(string(text[end+1:]))
}

// startTime is when a process started, in clock ticks since boot. Together with
// the pid it names a process unambiguously. It is 0 if there is no such process
// or only its zombie.
func startTime(pid int) uint64 {
	fields := stat(pid)
	if len(fields) <= statStart || fields[statState] == "Z" {
		return 0
	}
	ticks, err := strconv.ParseUint(fields[statStart], 10, 64)
	if err != nil {
		return 0
	}
	return ticks
}
