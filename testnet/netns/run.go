// SPDX-License-Identifier: LGPL-3.0-or-later

package netns

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// StateDir holds one file per run, see [State].
const StateDir = "/run/mdcs"

// stopGrace is how long a process may take to end at the close of a run.
const stopGrace = 3 * time.Second

var prefixPattern = regexp.MustCompile(`^mdcs-[0-9a-f]{4}-$`)

func validPrefix(prefix string) bool { return prefixPattern.MatchString(prefix) }

// Run owns namespaces, processes and a scratch directory, and removes them all
// in Close. It is safe for concurrent use.
type Run struct {
	prefix string
	path   string // of the state file

	mu     sync.Mutex
	state  State
	spaces []*Namespace
	procs  []*Process
	closed bool
}

// NewRun picks an unused prefix, claims its state file in dir (normally
// [StateDir]) and makes a scratch directory, in memory where possible.
func NewRun(dir string) (*Run, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("start run: %w", err)
	}
	for {
		var id [2]byte
		rand.Read(id[:])
		name := "mdcs-" + hex.EncodeToString(id[:])
		r := &Run{prefix: name + "-"}
		r.path = statePath(dir, r.prefix)
		r.state = State{
			Prefix: r.prefix,
			Owner:  identify(os.Getpid()),
			Dir:    filepath.Join(scratchRoot(), name),
		}
		err := r.state.claim(r.path)
		if errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("start run: %w", err)
		}
		if err := os.Mkdir(r.state.Dir, 0o700); err != nil {
			os.Remove(r.path)
			return nil, fmt.Errorf("start run: %w", err)
		}
		return r, nil
	}
}

// scratchRoom is what a run may need: the data of some 40 Ethereum nodes.
const scratchRoom = 4 << 30 // bytes

// scratchRoot is a directory in memory if the machine has one with room: the
// databases of many nodes on one disk would wait for each other.
func scratchRoot() string {
	const shm = "/dev/shm"
	var fs unix.Statfs_t
	if err := unix.Statfs(shm, &fs); err == nil && fs.Bavail*uint64(fs.Bsize) >= scratchRoom {
		return shm
	}
	return os.TempDir()
}

// Prefix starts the names of all namespaces of the run.
func (r *Run) Prefix() string { return r.prefix }

// Dir is the scratch directory, removed by Close.
func (r *Run) Dir() string { return r.state.Dir }

// Namespace makes a namespace called prefix + name. Several may be made at the
// same time.
func (r *Run) Namespace(name string) (*Namespace, error) {
	ns, err := create(r.prefix+name, r.state.Owner)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		ns.end()
		_, err := removeNames([]string{ns.name})
		return nil, errors.Join(fmt.Errorf("create namespace %s: run is closed", name), err)
	}
	r.spaces = append(r.spaces, ns)
	r.state.Namespaces = append(r.state.Namespaces, ns.name)
	return ns, r.state.write(r.path)
}

// Start starts cmd inside ns as a process of the run. name is for messages.
func (r *Run) Start(ns *Namespace, name string, cmd *exec.Cmd) (*Process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("start %s: run is closed", name)
	}
	p, err := start(ns, name, cmd)
	if err != nil {
		return nil, err
	}
	r.procs = append(r.procs, p)
	r.state.Processes = append(r.state.Processes, identify(p.pid))
	return p, r.state.write(r.path)
}

// StartSelf starts this program once more inside ns, with one argument, as Start does. It reads from one
// pipe and writes to the other; its messages go to log.
func (r *Run) StartSelf(ns *Namespace, name, argument string, log io.Writer) (p *Process, in, out *os.File, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, nil, err
	}
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, err
	}
	defer childIn.Close()
	out, childOut, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, nil, nil, err
	}
	defer childOut.Close()
	cmd := exec.Command(self, argument)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = childIn, childOut, log
	if p, err = r.Start(ns, name, cmd); err != nil {
		in.Close()
		out.Close()
		return nil, nil, nil, err
	}
	return p, in, out, nil
}

// CPU is the processor time that the processes of the run used so far, by the
// name given to [Run.Start]. Processes of the same name add up, and those that
// ended count.
func (r *Run) CPU() (map[string]time.Duration, error) {
	r.mu.Lock()
	procs := slices.Clone(r.procs)
	r.mu.Unlock()
	used := make(map[string]time.Duration)
	for _, p := range procs {
		d, err := p.CPU()
		if err != nil {
			return nil, err
		}
		used[p.name] += d
	}
	return used, nil
}

// Close ends the processes, removes namespaces, scratch directory and state file, and
// gives the machine back its limits. What fails does not keep it from the rest; the
// state file then stays, and says that the run is over: [CleanStale] tries again, also
// while this process lives. Close may be called more than once.
func (r *Run) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	errs := []error{stopAll(r.procs, stopGrace)}
	for _, ns := range r.spaces {
		ns.end()
	}
	_, err := Destroy(r.prefix)
	errs = append(errs, err, restoreLimits(r.state.Limits), os.RemoveAll(r.state.Dir))
	if err := errors.Join(errs...); err != nil {
		r.state.Closed = true
		return errors.Join(err, r.state.write(r.path))
	}
	return os.Remove(r.path)
}
