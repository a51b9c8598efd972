// SPDX-License-Identifier: LGPL-3.0-or-later

package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// State is what a run has on the machine, kept in <dir>/<prefix>.json so that
// it can be removed when the run itself could not.
type State struct {
	Prefix     string           `json:"prefix"`
	Owner      ProcessID        `json:"owner"`
	Closed     bool             `json:"closed,omitempty"` // the owner gave up: see [Run.Close]
	Dir        string           `json:"dir"`
	Namespaces []string         `json:"namespaces"`
	Processes  []ProcessID      `json:"processes"`
	Limits     map[string]limit `json:"limits,omitempty"` // of the machine, by path
}

// ProcessID names a process for good: a pid alone may be taken by another one.
type ProcessID struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
}

func identify(pid int) ProcessID { return ProcessID{Pid: pid, Start: startTime(pid)} }

func (id ProcessID) alive() bool {
	now := startTime(id.Pid)
	return now != 0 && now == id.Start
}

func statePath(dir, prefix string) string {
	return filepath.Join(dir, strings.TrimSuffix(prefix, "-")+".json")
}

// write replaces the file at path in one step.
func (s *State) write(path string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// claim creates the file at path with its contents, and fails if it exists.
func (s *State) claim(path string) error {
	tmp := fmt.Sprintf("%s.%d", path, s.Owner.Pid)
	if err := s.write(tmp); err != nil {
		return err
	}
	defer os.Remove(tmp)
	return os.Link(tmp, path)
}

// CleanStale removes what runs left behind whose owner is dead or could not remove
// everything, and returns the prefixes of those runs. State files in dir list what there
// is. A namespace that no state file names is removed if its mark says that a dead
// process made it. What living owners have is not touched. An error at one run does not
// keep CleanStale from the others; the state file then stays for the next call.
func CleanStale(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "mdcs-*.json"))
	if err != nil {
		return nil, err
	}
	var (
		cleaned []string
		errs    []error
	)
	listed := make(map[string]bool) // prefixes that a state file has
	for _, file := range files {
		state, err := readState(file)
		if os.IsNotExist(err) {
			continue // its run ended meanwhile
		} else if err != nil {
			errs = append(errs, err)
			continue
		}
		listed[state.Prefix] = true
		if state.Owner.alive() && !state.Closed {
			continue
		}
		if err := state.remove(); err != nil {
			errs = append(errs, fmt.Errorf("clean up after run %s: %w", state.Prefix, err))
			continue
		}
		if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
			errs = append(errs, err)
			continue
		}
		cleaned = append(cleaned, state.Prefix)
	}
	strays, err := cleanStrays(listed)
	return append(cleaned, strays...), errors.Join(append(errs, err)...)
}

// cleanStrays removes abandoned namespaces of runs that have no state file, and returns
// their prefixes.
func cleanStrays(listed map[string]bool) (cleaned []string, err error) {
	runs, err := namesOfRuns()
	if err != nil {
		return nil, fmt.Errorf("look for namespaces: %w", err)
	}
	var errs []error
	for _, prefix := range slices.Sorted(maps.Keys(runs)) {
		if listed[prefix] {
			continue
		}
		names := slices.DeleteFunc(runs[prefix], func(name string) bool { return !abandoned(name) })
		n, err := removeNames(names)
		errs = append(errs, err)
		if n > 0 {
			cleaned = append(cleaned, prefix)
		}
	}
	return cleaned, errors.Join(errs...)
}

// readState reads a state file. The prefix and the directory follow from the
// name of the file alone, so that a damaged file cannot point elsewhere.
func readState(file string) (*State, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	base := strings.TrimSuffix(filepath.Base(file), ".json")
	state := new(State)
	if err := json.Unmarshal(text, state); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	state.Prefix = base + "-"
	if !validPrefix(state.Prefix) {
		return nil, fmt.Errorf("read %s: name holds no run prefix", file)
	}
	if filepath.Base(state.Dir) != base {
		state.Dir = ""
	}
	return state, nil
}

func (s *State) remove() error {
	for _, id := range s.Processes {
		if id.alive() {
			if err := syscall.Kill(id.Pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
				return fmt.Errorf("kill pid %d: %w", id.Pid, err)
			}
		}
	}
	for _, id := range s.Processes { // no children of ours, so there is nothing to wait for
		for end := time.Now().Add(stopGrace); id.alive() && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
	}
	if _, err := Destroy(s.Prefix); err != nil {
		return err
	}
	if s.Dir != "" {
		if err := os.RemoveAll(s.Dir); err != nil {
			return err
		}
	}
	return restoreLimits(s.Limits)
}
