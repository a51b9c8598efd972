// SPDX-License-Identifier: LGPL-3.0-or-later

// Package netns builds the pieces of an emulated network on one Linux machine:
// named network namespaces, veth pairs, bridges, addresses, routes, interface
// counters, and processes that live inside a namespace.
//
// Everything belongs to a [Run]. A run has a prefix of its own, which starts the
// name of each of its namespaces, and a state file that lists what it made, so
// that a later run can remove what a crashed one left behind (see [CleanStale]).
//
// A namespace keeps one OS thread for as long as it exists. Work that depends on
// the namespace of the calling thread (sockets, sysctls, child processes) goes
// through that thread by [Namespace.Do]; netlink work uses a netlink socket that
// was opened inside. The thread must outlive the processes started from it,
// because the kernel sends their parent-death signal when the thread ends, not
// when the process does.
//
// All functions need CAP_SYS_ADMIN and CAP_NET_ADMIN, in practice root.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	vns "github.com/vishvananda/netns"
)

// Namespace is one network namespace. Its methods are safe for concurrent use.
type Namespace struct {
	name   string
	handle vns.NsHandle
	nl     *netlink.Handle
	calls  chan call
	close  sync.Once
}

// call is a function to run on the thread of a namespace.
type call struct {
	fn   func() error
	done chan<- error
}

// create makes the named namespace, marks it as that of an owner, starts its thread and
// applies the settings that must be in force before the first interface appears.
func create(name string, owner ProcessID) (*Namespace, error) {
	if err := shareNames(); err != nil {
		return nil, fmt.Errorf("create namespace %s: %w", name, err)
	}
	ns := &Namespace{name: name, calls: make(chan call)}
	ready := make(chan error)
	go ns.serve(ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("create namespace %s: %w", name, err)
	}
	if err := ns.prepare(owner); err != nil {
		ns.end()
		_, errName := removeNames([]string{name})
		return nil, errors.Join(fmt.Errorf("create namespace %s: %w", name, err), errName)
	}
	return ns, nil
}

// serve is the thread of the namespace. It is never unlocked: a thread that
// changed its namespace must not run anything else, and the runtime ends it
// together with this goroutine.
func (ns *Namespace) serve(ready chan<- error) {
	runtime.LockOSThread()
	handle, err := vns.NewNamed(ns.name)
	if err != nil {
		os.Remove(filepath.Join(namedDir, ns.name))
		ready <- err
		return
	}
	ns.handle = handle
	ready <- nil
	for c := range ns.calls {
		c.done <- c.fn()
	}
}

func (ns *Namespace) prepare(owner ProcessID) error {
	nl, err := netlink.NewHandleAt(ns.handle)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	ns.nl = nl
	if err := mark(ns, owner); err != nil {
		return err
	}
	for _, s := range hostSysctls {
		if err := ns.Sysctl(s.key, s.value); err != nil {
			return err
		}
	}
	if err := ns.setCongestionControl(); err != nil {
		return err
	}
	return ns.SetUp("lo", true)
}

// Name is the full name, as `ip netns` shows it.
func (ns *Namespace) Name() string { return ns.name }

// Path is the file that stands for the namespace.
func (ns *Namespace) Path() string { return filepath.Join(namedDir, ns.name) }

// Enter moves the calling thread into the namespace of a path and locks the
// goroutine to it, for one that is about to end or to execute another program.
func Enter(path string) error {
	handle, err := vns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("enter namespace %s: %w", path, err)
	}
	defer handle.Close()
	runtime.LockOSThread()
	if err := vns.Set(handle); err != nil {
		return fmt.Errorf("enter namespace %s: %w", path, err)
	}
	return nil
}

// Do runs fn on the thread of the namespace and returns its error. Calls are
// served one after another, so fn must not wait for long, and it must not leave
// work that depends on the namespace to other goroutines. Sockets opened in fn
// stay in the namespace and may be used from anywhere.
func (ns *Namespace) Do(fn func() error) error {
	done := make(chan error, 1)
	ns.calls <- call{fn, done}
	return <-done
}

// Dial connects from inside the namespace. The address must be literal: the
// resolver would work on other threads, thus in other namespaces.
func (ns *Namespace) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := ns.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// end ends the thread. The name stays. The kernel frees the interfaces some time later,
// when the name, the last process and the last socket inside are gone.
func (ns *Namespace) end() {
	ns.close.Do(func() {
		close(ns.calls)
		if ns.nl != nil {
			ns.nl.Close()
		}
		ns.handle.Close()
	})
}
