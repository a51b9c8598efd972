// SPDX-License-Identifier: LGPL-3.0-or-later

// Package hostnettest has network namespaces for tests that need root.
package hostnettest

import (
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netns"
)

// NewNamespace returns a network namespace without a name, which ends with the test. f, if it is
// not nil, prepares it.
func NewNamespace(t testing.TB, f func()) (ns netns.NsHandle) {
	t.Helper()
	OnThread(func() {
		var err error
		ns, err = netns.New()
		require.NoError(t, err)
		if f != nil {
			f()
		}
	})
	t.Cleanup(func() { ns.Close() })
	return ns
}

// In runs f in a namespace.
func In(t testing.TB, ns netns.NsHandle, f func()) {
	t.Helper()
	OnThread(func() {
		require.NoError(t, netns.Set(ns))
		f()
	})
}

// OnThread runs f on an OS thread that ends with it. If f ends the test, so does OnThread: t.FailNow ends only the
// goroutine that calls it.
func OnThread(f func()) {
	done, returned := make(chan struct{}), false
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
		returned = true
	}()
	<-done
	if !returned {
		runtime.Goexit()
	}
}
