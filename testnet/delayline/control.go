// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// What the parent can ask for. The first request is doStart.
const (
	doStart    = "start"    // open the links of Options
	doSet      = "set"      // give Link other Params
	doCounters = "counters" // answer with Counters
	doPairs    = "pairs"    // answer with Pairs
	doSummary  = "summary"  // answer with Summary
	doClear    = "clear"    // start counting anew
	doStop     = "stop"     // answer with Summary and end
)

// request is one line of JSON from the parent.
type request struct {
	Do      string   `json:"do"`
	Options *Options `json:"options,omitempty"`
	Link    string   `json:"link,omitempty"`
	Params  *Params  `json:"params,omitempty"`
}

// answer is one line of JSON to the parent, for each request.
type answer struct {
	Error    string     `json:"error,omitempty"`
	Counters []Counters `json:"counters,omitempty"`
	Pairs    []Pair     `json:"pairs,omitempty"`
	Summary  *Summary   `json:"summary,omitempty"`
}

// readLine decodes the next line, which holds one JSON object without fields
// that v does not have. A [badLine] leaves the stream usable.
func readLine(in *bufio.Reader, v any) error {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return badLine{err}
	}
	if _, err := dec.Token(); err != io.EOF {
		return badLine{errors.New("more than one value in the line")}
	}
	return nil
}

type badLine struct{ error }

func (b badLine) Unwrap() error { return b.error }

// control is the child's side of the protocol.
type control struct {
	in         *bufio.Reader
	out        *json.Encoder
	scheduling string
	loop       *loop
	links      []string       // names
	index      map[string]int // of links, by name
	dropped    []uint64       // frames that found a ring full, by line
	cpu        time.Duration  // of the process, when the counting started

	// The loop copies its counts here.
	counts []Direction
	late   lateness
}

func newControl(in io.Reader, out io.Writer, scheduling string) *control {
	return &control{in: bufio.NewReader(in), out: json.NewEncoder(out), scheduling: scheduling}
}

// start serves the first request.
func (c *control) start() error {
	var r request
	err := readLine(c.in, &r)
	if err == nil {
		err = c.open(&r)
	}
	return errors.Join(err, c.out.Encode(answerTo(answer{}, err)))
}

func answerTo(a answer, err error) answer {
	if err != nil {
		return answer{Error: err.Error()}
	}
	return a
}

func (c *control) open(r *request) error {
	if r.Do != doStart || r.Options == nil || r.Link != "" || r.Params != nil {
		return fmt.Errorf("first request must be %q with options alone", doStart)
	}
	o := r.Options
	if err := o.validate(); err != nil {
		return err
	}
	c.index = make(map[string]int)
	for i, l := range o.Links {
		c.links = append(c.links, l.Name)
		c.index[l.Name] = i
	}
	var err error
	if c.loop, err = openLoop(o); err != nil {
		return err
	}
	c.dropped = make([]uint64, len(c.loop.lines))
	c.counts = make([]Direction, len(c.loop.lines))
	c.cpu, err = cpuTime()
	return err
}

// serve answers requests until the parent closes its end or asks to stop.
func (c *control) serve() {
	for {
		var (
			r   request
			a   answer
			bad badLine
		)
		err := readLine(c.in, &r)
		if err == nil {
			a, err = c.handle(&r)
		} else if !errors.As(err, &bad) {
			return
		}
		if c.out.Encode(answerTo(a, err)) != nil || r.Do == doStop {
			return
		}
	}
}

func (c *control) handle(r *request) (answer, error) {
	if r.Options != nil || r.Do != doSet && (r.Link != "" || r.Params != nil) {
		return answer{}, fmt.Errorf("request %q has fields that it does not take", r.Do)
	}
	switch r.Do {
	case doSet:
		return answer{}, c.set(r)
	case doCounters:
		if err := c.read(); err != nil {
			return answer{}, err
		}
		return answer{Counters: c.counters()}, nil
	case doPairs:
		list, err := c.pairs()
		return answer{Pairs: list}, err
	case doSummary, doStop:
		s, err := c.summary()
		return answer{Summary: &s}, err
	case doClear:
		return answer{}, c.clear()
	}
	return answer{}, fmt.Errorf("unknown request %q", r.Do)
}

var errStopped = errors.New("the loop has stopped")

// do runs f in the loop.
func (c *control) do(f func()) error {
	if !c.loop.do(f) {
		return errStopped
	}
	return nil
}

// stop ends the loop.
func (c *control) stop() { c.loop.do(func() { c.loop.stopping = true }) }

func (c *control) set(r *request) error {
	i, known := c.index[r.Link]
	if !known {
		return fmt.Errorf("no link %q", r.Link)
	}
	if r.Params == nil {
		return errors.New("no params")
	}
	if err := r.Params.validate(); err != nil {
		return err
	}
	ab, ba, params := c.loop.lines[2*i], c.loop.lines[2*i+1], *r.Params
	return c.do(func() { ab.params, ba.params = params, params })
}

// read copies the counts of the loop and adds those of the kernel.
func (c *control) read() error {
	err := c.do(func() {
		for i, l := range c.loop.lines {
			c.counts[i] = l.count
		}
		c.late = c.loop.late
	})
	if err != nil {
		return err
	}
	for i, l := range c.loop.lines {
		n, err := l.in.overflows()
		if err != nil {
			return err
		}
		c.dropped[i] += n
		c.counts[i].LostRing = c.dropped[i]
	}
	return nil
}

func (c *control) clear() error {
	err := c.do(func() {
		for _, l := range c.loop.lines {
			l.count = Direction{}
			if l.pairs != nil {
				clear(l.pairs[:])
			}
		}
		c.loop.late = lateness{}
	})
	if err != nil {
		return err
	}
	for i, l := range c.loop.lines {
		if _, err := l.in.overflows(); err != nil {
			return err
		}
		c.dropped[i] = 0
	}
	c.cpu, err = cpuTime()
	return err
}

// pairs reads the counts of one line after the other, so that none waits long.
func (c *control) pairs() (list []Pair, err error) {
	copied := new(pairs)
	for i, l := range c.loop.lines {
		if l.pairs == nil {
			continue
		}
		if err := c.do(func() { *copied = *l.pairs }); err != nil {
			return nil, err
		}
		list = append(list, copied.list(c.links[i/2])...)
	}
	return list, nil
}

// counters are those read last.
func (c *control) counters() []Counters {
	list := make([]Counters, len(c.links))
	for i, name := range c.links {
		list[i] = Counters{Link: name, AB: c.counts[2*i], BA: c.counts[2*i+1]}
	}
	return list
}

func (c *control) summary() (Summary, error) {
	if err := c.read(); err != nil {
		return Summary{}, err
	}
	cpu, err := cpuTime()
	if err != nil {
		return Summary{}, err
	}
	s := Summary{
		Scheduling: c.scheduling,
		CPU:        (cpu - c.cpu).Seconds(),
		P50:        micros(c.late.quantile(0.50)),
		P99:        micros(c.late.quantile(0.99)),
		Max:        micros(c.late.max),
		Histogram:  c.late.histogram(),
	}
	for i := range c.counts {
		forwarded := c.counts[i].Forwarded()
		s.Frames += forwarded.Frames
		s.Bytes += forwarded.Bytes
		s.Lost += c.counts[i].failed()
	}
	if c.late.count > 0 {
		s.Overdue = float64(c.late.overdue) / float64(c.late.count)
	}
	return s, nil
}

// cpuTime is what the process has used of all CPUs.
func cpuTime() (time.Duration, error) {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), nil
}
