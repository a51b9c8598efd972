// SPDX-License-Identifier: LGPL-3.0-or-later

// Package control lets one process run a net and others look at it and change it,
// by HTTP over a Unix socket.
//
// A net has a name, and a few files with that name in one directory, normally
// [netns.StateDir]:
//
//	<name>.lock   held by the process that runs the net, for as long as it lives
//	<name>.sock   the socket
//	<name>.log    what a process in the background writes to standard error
//
// The lock decides: files whose lock nobody holds are remains of a process that
// was killed.
package control

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/testnet"
)

// Status is what a process knows about its net.
type Status struct {
	Name     string           `json:"name"`
	Pid      int              `json:"pid"`
	Ready    bool             `json:"ready"`
	Progress testnet.Progress `json:"progress"`      // until it is ready
	Net      *testnet.Status  `json:"net,omitempty"` // once it is ready
}

// Errors that tell whether a net runs.
var (
	ErrUp    = errors.New("is up already")
	ErrNotUp = errors.New("is not up")
)

const (
	lockSuffix   = ".lock"
	socketSuffix = ".sock"
	logSuffix    = ".log"
)

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,47}$`)

// CheckName says whether a net may have a name.
func CheckName(name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("name %q of a net is not 1 to 48 letters, digits, dots, dashes and underscores", name)
	}
	return nil
}

func file(dir, name, suffix string) string { return filepath.Join(dir, name+suffix) }

// LogFile is where a process in the background writes its messages.
func LogFile(dir, name string) string { return file(dir, name, logSuffix) }

// lock takes the lock of a net, or returns [ErrUp].
func lock(dir, name string) (*os.File, error) {
	path := file(dir, name, lockSuffix)
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("net %s %w", name, ErrUp)
			}
			return nil, err
		}
		// The holder before may have removed the file meanwhile.
		held, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if now, err := os.Stat(path); err == nil && os.SameFile(held, now) {
			return f, nil
		}
		f.Close()
	}
}

// remove removes the files of a net whose lock the caller holds, the lock last.
func remove(dir, name string, held *os.File) error {
	var errs []error
	for _, suffix := range []string{socketSuffix, logSuffix, lockSuffix} {
		if err := os.Remove(file(dir, name, suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, held.Close())...)
}

// Nets are the names of the nets that are up or on their way. It removes what
// others left.
func Nets(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"+lockSuffix))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), lockSuffix)
		held, err := lock(dir, name)
		switch {
		case errors.Is(err, ErrUp):
			names = append(names, name)
		case err != nil:
			return nil, err
		default:
			if err := remove(dir, name, held); err != nil {
				return nil, err
			}
		}
	}
	return names, nil
}
