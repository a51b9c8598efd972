// SPDX-License-Identifier: LGPL-3.0-or-later

// Package hostnet asks the kernel of the host about its network, by netlink. What the
// kernel tells is a hint: a list may be interrupted by changes and is then asked for
// again, and events may be lost and are then told as lost.
package hostnet

import (
	"errors"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Limits of a list that changes while the kernel tells it.
const (
	dumpTries = 10                    // enough for a host on which ten containers start per second
	dumpPause = 10 * time.Millisecond // between two tries
)

// Disturb is for tests of those who use lists: where it is set and returns true, a list counts
// as interrupted. It is set before the first list.
var Disturb func() bool

// Dump returns a list of the kernel. The kernel interrupts a list when an element changes
// meanwhile (NLM_F_DUMP_INTR): the list is then asked for again. One that is
// interrupted each time is returned as far as it came, with an error that is
// netlink.ErrDumpInterrupted.
func Dump[T any](list func() ([]T, error)) (all []T, err error) {
	for try := range dumpTries {
		if try > 0 {
			time.Sleep(dumpPause)
		}
		all, err = list()
		if err == nil && Disturb != nil && Disturb() {
			err = netlink.ErrDumpInterrupted
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
		interrupted.Add(1)
	}
	return all, err
}

// Passes reports whether an error may be gone in a moment: the host was changed while it was
// looked at, or is short of memory or open files.
func Passes(err error) bool {
	for _, e := range []error{
		netlink.ErrDumpInterrupted, unix.EINTR, unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM, unix.EMFILE, unix.ENFILE,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
