// SPDX-License-Identifier: LGPL-3.0-or-later

package lightpeer

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/testnet/netns"
)

// Command is the argument by which a program that calls [Main] is started as the
// process of a swarm.
const Command = "lightpeers"

// per64 and per48 are the numbers of peers of one /64 and of one /48: what a
// replication point lets one have unless configured.
const (
	per64 = 16
	per48 = 256
)

// Endpoints returns those of n peers in a network with a prefix of 32 bits: 16 in each
// /64, which differ by their port, and 256 in each /48.
func Endpoints(network netip.Prefix, firstPort uint16, n int) []netip.AddrPort {
	endpoints := make([]netip.AddrPort, n)
	for i := range endpoints {
		a := network.Masked().Addr().As16()
		site, lan := i/per48, i%per48/per64
		a[4], a[5], a[7], a[15] = byte(site>>8), byte(site), byte(lan), 1
		endpoints[i] = netip.AddrPortFrom(netip.AddrFrom16(a), firstPort+uint16(i%per64))
	}
	return endpoints
}

// Options describe a swarm in a process of its own.
type Options struct {
	RP         string       `json:"rp"` // enode URL
	NetworkID  uint64       `json:"network_id"`
	Genesis    common.Hash  `json:"genesis"`
	Network    netip.Prefix `json:"network"` // of 32 bits, see Endpoints
	FirstPort  uint16       `json:"first_port"`
	Peers      int          `json:"peers"`
	Connecting int          `json:"connecting"`
}

// request is one line of JSON from the parent: what to do, in order.
type request struct {
	Start   *Options      `json:"start,omitempty"`
	Await   int           `json:"await,omitempty"` // members
	Load    float64       `json:"load,omitempty"`  // datagrams per second
	For     time.Duration `json:"for,omitempty"`   // the time limit, and of the load
	Counted bool          `json:"counted,omitempty"`
}

// answer is one line of JSON to the parent, for each request.
type answer struct {
	Error    string    `json:"error,omitempty"`
	Delays   *Delays   `json:"delays,omitempty"`
	Counters *Counters `json:"counters,omitempty"`
}

// Main is the process of a swarm. It ends when the parent closes in.
func Main(in io.Reader, out io.Writer) error {
	var swarm *Swarm
	defer func() {
		if swarm != nil {
			swarm.Stop()
		}
	}()
	requests, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var r request
		if err := requests.Decode(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("light peers: %w", err)
		}
		var a answer
		if err := r.do(&swarm, &a); err != nil {
			a.Error = err.Error()
		}
		if err := answers.Encode(a); err != nil {
			return fmt.Errorf("light peers: %w", err)
		}
	}
}

func (r *request) do(swarm **Swarm, a *answer) (err error) {
	if r.Start != nil {
		rp, err := enode.Parse(enode.ValidSchemes, r.Start.RP)
		if err != nil {
			return err
		}
		*swarm, err = Start(Config{
			RP:         rp,
			NetworkID:  r.Start.NetworkID,
			Genesis:    r.Start.Genesis,
			Endpoints:  Endpoints(r.Start.Network, r.Start.FirstPort, r.Start.Peers),
			Connecting: r.Start.Connecting,
		})
		return err
	}
	if *swarm == nil {
		return errors.New("light peers: not started")
	}
	if r.Await > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), r.For)
		defer cancel()
		err = (*swarm).Await(ctx, r.Await)
	}
	if r.Load > 0 {
		delays, err := (*swarm).Load(context.Background(), r.Load, r.For)
		if err != nil {
			return err
		}
		a.Delays = &delays
	}
	if r.Counted {
		counters := (*swarm).Counters()
		a.Counters = &counters
	}
	return err
}

// Process is a swarm in a process of its own, inside a namespace.
type Process struct {
	proc    *netns.Process
	mu      sync.Mutex // one request at a time
	in      *os.File
	out     *os.File
	answers *json.Decoder
}

// StartProcess starts this program as the process of a swarm in ns. Its messages go to
// log.
func StartProcess(run *netns.Run, ns *netns.Namespace, o Options, log io.Writer) (*Process, error) {
	p, err := launch(run, ns, log)
	if err != nil {
		return nil, fmt.Errorf("start light peers: %w", err)
	}
	if _, err := p.ask(context.Background(), request{Start: &o}); err != nil {
		return nil, errors.Join(fmt.Errorf("start light peers: %w", err), p.Stop())
	}
	return p, nil
}

func launch(run *netns.Run, ns *netns.Namespace, log io.Writer) (*Process, error) {
	proc, in, out, err := run.StartSelf(ns, "light peers", Command, log)
	if err != nil {
		return nil, err
	}
	return &Process{proc: proc, in: in, out: out, answers: json.NewDecoder(bufio.NewReader(out))}, nil
}

// Pid is the process id.
func (p *Process) Pid() int { return p.proc.Pid() }

// Await waits until n peers are members.
func (p *Process) Await(ctx context.Context, n int, limit time.Duration) error {
	_, err := p.ask(ctx, request{Await: n, For: limit})
	return err
}

// Load is [Swarm.Load].
func (p *Process) Load(ctx context.Context, rate float64, d time.Duration) (Delays, error) {
	a, err := p.ask(ctx, request{Load: rate, For: d})
	if err != nil {
		return Delays{}, err
	}
	return *a.Delays, nil
}

// Counters is [Swarm.Counters].
func (p *Process) Counters(ctx context.Context) (Counters, error) {
	a, err := p.ask(ctx, request{Counted: true})
	if err != nil {
		return Counters{}, err
	}
	return *a.Counters, nil
}

// ask sends a request and waits for the answer. When ctx ends, the process does.
func (p *Process) ask(ctx context.Context, r request) (a answer, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { p.proc.Kill() })
	defer stop()
	if err := json.NewEncoder(p.in).Encode(r); err != nil {
		return a, errors.Join(ctx.Err(), err)
	}
	if err := p.answers.Decode(&a); err != nil {
		return a, errors.Join(ctx.Err(), fmt.Errorf("read answer of light peers: %w", err))
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

// stopGrace is how long the process may take to end.
const stopGrace = 5 * time.Second

// Stop ends the process.
func (p *Process) Stop() error {
	p.in.Close()
	err := p.proc.Stop(stopGrace)
	p.out.Close()
	return err
}
