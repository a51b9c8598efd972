// SPDX-License-Identifier: LGPL-3.0-or-later

// Package delayline gives links a fixed one-way delay in user space, for kernels
// without netem.
//
// A link of the emulated network is then two veth pairs, whose inner ends are in
// a namespace of their own where one process moves the frames:
//
//	router A            namespace of the wire               router B
//	  eth ----- veth ----- a0 [ring] ---> [ring] b0 ----- veth ----- eth
//	                          <--- 20 ms --->
//
// The frames wait in the receive ring of a packet socket and leave by sendmmsg
// from there. The process runs at SCHED_FIFO 50: on two busy CPUs a process of
// normal priority is tens of milliseconds late, a real-time one tens of
// microseconds. It reports how late it was, as a run with a late wire measures
// the machine and not the network; see [Summary].
//
// The process is the calling program itself, started again with the argument
// [Command]; see [RunChild].
package delayline

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/ethmcast/mdcs/testnet/netns"
)

const (
	startTimeout = 10 * time.Second
	stopGrace    = 2 * time.Second
)

// Summary says what the wire moved since its start or the last [Wire.Clear].
// Lateness is the time between the due time of a frame and the moment its batch
// was handed to the kernel.
type Summary struct {
	Scheduling string  `json:"scheduling"` // fifo-50, nice-20 or other
	Frames     uint64  `json:"frames"`
	Bytes      uint64  `json:"bytes"`
	Lost       uint64  `json:"lost"` // no room in a ring or in a queue
	P50        float64 `json:"late_p50_us"`
	P99        float64 `json:"late_p99_us"`
	Max        float64 `json:"late_max_us"`
	Overdue    float64 `json:"late_over_1ms_share"` // of frames, 0..1
}

// Wire is a running delay line.
type Wire struct {
	proc  *netns.Process
	stdin *os.File
	lines *bufio.Reader
	out   *os.File
}

// Start serves links between interfaces of ns, which must be up. Messages of the
// child go to log.
func Start(run *netns.Run, ns *netns.Namespace, links []Link, log io.Writer) (*Wire, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start delay line: %w", err)
	}
	args := []string{Command}
	for _, l := range links {
		args = append(args, "--link", l.String())
	}
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start delay line: %w", err)
	}
	defer childIn.Close()
	out, childOut, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, fmt.Errorf("start delay line: %w", err)
	}
	defer childOut.Close()

	w := &Wire{stdin: in, out: out, lines: bufio.NewReader(out)}
	cmd := exec.Command(self, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = childIn, childOut, log
	if w.proc, err = run.Start(ns, "delay line", cmd); err != nil {
		w.closePipes()
		return nil, err
	}
	out.SetReadDeadline(time.Now().Add(startTimeout))
	line, err := w.lines.ReadString('\n')
	if err != nil || line != readyLine+"\n" {
		w.proc.Kill()
		w.closePipes()
		return nil, fmt.Errorf("start delay line: not ready: %w", errors.Join(err, w.proc.Err()))
	}
	out.SetReadDeadline(time.Time{})
	return w, nil
}

// Clear starts the counting anew.
func (w *Wire) Clear() error {
	_, err := io.WriteString(w.stdin, clearLine+"\n")
	if err != nil {
		return fmt.Errorf("clear delay line: %w", err)
	}
	return nil
}

// Stop ends the delay line and returns its summary.
func (w *Wire) Stop() (Summary, error) {
	defer w.closePipes()
	if err := w.proc.Stop(stopGrace); err != nil {
		return Summary{}, err
	}
	var s Summary
	if err := json.NewDecoder(w.lines).Decode(&s); err != nil {
		return Summary{}, fmt.Errorf("read summary of delay line: %w", errors.Join(err, w.proc.Err()))
	}
	return s, nil
}

func (w *Wire) closePipes() {
	w.stdin.Close()
	w.out.Close()
}
