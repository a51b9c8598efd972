// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"fmt"
	"runtime"
	"time"

	"github.com/vishvananda/netns"

	"github.com/ethmcast/mdcs/rp/datapath"
)

// pulse is the thread that says that user space lives, and that has heartbeats sent. Members
// leave when they hear none for a short time, so it waits for no change of the maps, for
// no answer of the kernel about routes, and for no pass over all sessions.
type pulse struct {
	calls chan func()
	quit  chan struct{}
	done  chan struct{} // closed when the thread has ended
}

// startPulse starts the thread in the network namespace of the calling one.
func startPulse(e *Engine) (*pulse, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	p := &pulse{calls: make(chan func()), quit: make(chan struct{}), done: make(chan struct{})}
	ready := make(chan error)
	go p.run(e, ns, ready)
	return p, <-ready
}

// run is the thread. It is never unlocked, so that it ends with the goroutine.
func (p *pulse) run(e *Engine, ns netns.NsHandle, ready chan<- error) {
	defer close(p.done)
	runtime.LockOSThread()
	_, err := enter(ns)
	ready <- err
	if err != nil {
		return
	}
	alive := time.NewTicker(e.opt.validity / 30)
	defer alive.Stop()
	for {
		select {
		case f := <-p.calls:
			f()
		case <-alive.C:
			e.refresh()
		case <-p.quit:
			return
		}
	}
}

func (p *pulse) stop() {
	close(p.quit)
	<-p.done
}

// do runs f on the thread.
func (p *pulse) do(f func()) error {
	ran := make(chan struct{})
	select {
	case p.calls <- func() { defer close(ran); f() }:
		<-ran
		return nil
	case <-p.done:
		return datapath.ErrClosed
	}
}
