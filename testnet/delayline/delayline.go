// SPDX-License-Identifier: LGPL-3.0-or-later

// Package delayline gives links delay, jitter, a rate and loss in user space,
// for kernels without netem, and counts what passes.
//
// A link of the emulated network is then two veth pairs, whose inner ends are in
// a namespace of their own where one process moves the frames of all links:
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
// A ring is as long as its link needs: for frames of 1,000 bytes at its rate, or
// at 400 Mbit/s if it has none, over its delay, jitter and queue; at least 512
// slots of 2 KiB and at most 4,096. It keeps its length when the link gets other
// parameters. A frame that finds all slots taken is lost and counted.
//
// The process is the calling program itself, started again with the argument
// [Command]; see [RunChild]. It ends with its parent.
package delayline

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/ethmcast/mdcs/testnet/netns"
)

// Time limits on the child.
const (
	answerTimeout = 60 * time.Second // to open 100 interfaces takes 0.14 s, and seconds on a busy machine
	stopGrace     = 2 * time.Second
)

// Summary says what the wire moved since its start or the last [Wire.Clear].
// Lateness is the time between the due time of a frame and the moment its batch
// was handed to the kernel. A frame may leave up to 50 microseconds early, which
// counts as a lateness of 0.
type Summary struct {
	Scheduling string   `json:"scheduling"` // fifo-50, nice-20 or other
	CPU        float64  `json:"cpu_s"`      // seconds that the process used
	Frames     uint64   `json:"frames"`     // handed on
	Bytes      uint64   `json:"bytes"`
	Lost       uint64   `json:"lost"` // against the parameters: ring full, frame cut, or refused at the far end
	P50        float64  `json:"late_p50_us"`
	P99        float64  `json:"late_p99_us"`
	Max        float64  `json:"late_max_us"`
	Overdue    float64  `json:"late_over_1ms_share"` // of frames, 0..1
	Histogram  []Bucket `json:"late_histogram,omitempty"`
}

// Wire is a running delay line. It is safe for concurrent use.
type Wire struct {
	proc *netns.Process

	mu      sync.Mutex // one request at a time
	in      *os.File
	out     *os.File
	answers *bufio.Reader
	failed  error // after which requests and answers may be out of step
}

// Start serves links between interfaces of ns, which must be up and have no GRO;
// see [TakeRedirects] for those that face a host with XDP. Messages of the child
// go to log.
func Start(run *netns.Run, ns *netns.Namespace, o Options, log io.Writer) (*Wire, error) {
	w, err := start(run, ns, log)
	if err != nil {
		return nil, fmt.Errorf("start delay line: %w", err)
	}
	if _, err := w.ask(request{Do: doStart, Options: &o}); err != nil {
		w.proc.Kill()
		w.closePipes()
		return nil, fmt.Errorf("start delay line: %w", err)
	}
	return w, nil
}

// start makes the child, which then waits for the first request.
func start(run *netns.Run, ns *netns.Namespace, log io.Writer) (*Wire, error) {
	proc, in, out, err := run.StartSelf(ns, "delay line", Command, log)
	if err != nil {
		return nil, err
	}
	return &Wire{proc: proc, in: in, out: out, answers: bufio.NewReader(out)}, nil
}

// Set gives a link other parameters, for the frames that arrive from now on. No
// frame overtakes one that is under way.
func (w *Wire) Set(link string, p Params) error {
	if _, err := w.ask(request{Do: doSet, Link: link, Params: &p}); err != nil {
		return fmt.Errorf("set link %s of delay line: %w", link, err)
	}
	return nil
}

// Counters are those of all links, in the order of [Options.Links].
func (w *Wire) Counters() ([]Counters, error) {
	a, err := w.ask(request{Do: doCounters})
	if err != nil {
		return nil, fmt.Errorf("read counters of delay line: %w", err)
	}
	return a.Counters, nil
}

// Pairs are the counts by source and destination, of the links that ask for them.
func (w *Wire) Pairs() ([]Pair, error) {
	a, err := w.ask(request{Do: doPairs})
	if err != nil {
		return nil, fmt.Errorf("read pairs of delay line: %w", err)
	}
	return a.Pairs, nil
}

// Clear starts the counting anew, of the counters, the pairs and the summary.
func (w *Wire) Clear() error {
	if _, err := w.ask(request{Do: doClear}); err != nil {
		return fmt.Errorf("clear delay line: %w", err)
	}
	return nil
}

// Summary is that of the running delay line.
func (w *Wire) Summary() (Summary, error) {
	return w.summary(doSummary)
}

// Stop ends the delay line and returns its summary. What is under way is lost.
func (w *Wire) Stop() (Summary, error) {
	s, err := w.summary(doStop)
	err = errors.Join(err, w.proc.Stop(stopGrace))
	w.closePipes()
	return s, err
}

func (w *Wire) summary(do string) (Summary, error) {
	a, err := w.ask(request{Do: do})
	if err == nil && a.Summary == nil {
		err = errors.New("none in the answer")
	}
	if err != nil {
		return Summary{}, fmt.Errorf("read summary of delay line: %w", err)
	}
	return *a.Summary, nil
}

// ask sends a request and waits for the answer.
func (w *Wire) ask(r request) (answer, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed != nil {
		return answer{}, w.failed
	}
	var a answer
	if err := w.exchange(r, &a); err != nil {
		w.failed = err
		return answer{}, err
	}
	if a.Error != "" {
		return answer{}, errors.New(a.Error)
	}
	return a, nil
}

func (w *Wire) exchange(r request, a *answer) error {
	deadline := time.Now().Add(answerTimeout)
	if err := errors.Join(w.in.SetWriteDeadline(deadline), w.out.SetReadDeadline(deadline)); err != nil {
		return err
	}
	if err := json.NewEncoder(w.in).Encode(r); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	if err := readLine(w.answers, a); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	return nil
}

func (w *Wire) closePipes() {
	w.in.Close()
	w.out.Close()
}
