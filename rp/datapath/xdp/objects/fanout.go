// SPDX-License-Identifier: LGPL-3.0-or-later

package objects

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Queues in front of the fan-out: frames each holds, and how many there are at most.
const (
	fanQueue = 4096
	maxFans  = 16
)

// CPUQueue is struct bpf_cpumap_val: how many frames the queue of a CPU holds, and the program
// behind it.
type CPUQueue struct{ QueueSize, Program uint32 }

// fanNice is the nice value of the kernel threads that fan out. They do what would be a
// softirq, which does not wait for processes either.
const fanNice = -10

// threadName is how much of a kernel thread's name every kernel shows, in bytes.
const threadName = 15

// StartFanout makes a queue and its kernel thread for each CPU that the process may
// use, and returns the CPUs. A queue that is there already is replaced, and the kernel
// empties it.
func (o *Objects) StartFanout() ([]uint32, error) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return nil, fmt.Errorf("start fan-out: CPUs: %w", err)
	}
	var cpus []uint32
	for cpu := uint32(0); cpu < o.FanCpus.MaxEntries() && len(cpus) < maxFans; cpu++ {
		var there CPUQueue
		if !allowed.IsSet(int(cpu)) && o.FanCpus.Lookup(cpu, &there) != nil {
			continue
		}
		value := CPUQueue{QueueSize: fanQueue, Program: uint32(o.MdcsRpFan.FD())}
		if err := o.FanCpus.Put(cpu, value); err != nil {
			return nil, fmt.Errorf("start fan-out on CPU %d: %w", cpu, err)
		}
		if allowed.IsSet(int(cpu)) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// RaiseFanoutPriority raises the priority of the kernel threads behind the queues of some CPUs
// and returns how many it found. That needs CAP_SYS_NICE and a view of all processes; without, the fan-out
// waits for its turn on a busy CPU. Before Linux 6.5 the softirqs that empty the rings
// wait for ksoftirqd when that is awake, so there the threads must not come before it.
func (o *Objects) RaiseFanoutPriority(cpus []uint32) (threads int) {
	if softirqsWait() {
		return 0
	}
	info, err := o.FanCpus.Info()
	if err != nil {
		return 0
	}
	id, _ := info.ID()
	for _, pids := range []func() []int{newestPIDs, allPIDs} {
		threads = 0
		for _, pid := range pids() {
			comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			if err != nil || !isFan(strings.TrimSpace(string(comm)), uint32(id), cpus) {
				continue // it has ended, or is another
			}
			if unix.Setpriority(unix.PRIO_PROCESS, pid, fanNice) == nil {
				threads++
			}
			if threads == len(cpus) {
				return threads
			}
		}
	}
	return threads
}

// softirqsWait reports whether the kernel is older than Linux 6.5, or not known.
func softirqsWait() bool {
	var major, minor int
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return true
	}
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return err != nil || major < 6 || major == 6 && minor < 5
}

// newestPIDs returns the PIDs that were given out last, newest first: the threads started
// a moment ago.
func newestPIDs() (pids []int) {
	const many = 512
	text, _ := os.ReadFile("/proc/loadavg") // without it all are looked at
	fields := strings.Fields(string(text))
	if len(fields) == 0 {
		return nil
	}
	last, _ := strconv.Atoi(fields[len(fields)-1])
	for pid := last; pid > max(0, last-many); pid-- {
		pids = append(pids, pid)
	}
	return pids
}

// allPIDs returns the PIDs of all processes.
func allPIDs() (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*") // the pattern is right
	for _, name := range names {
		if pid, err := strconv.Atoi(filepath.Base(name)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// isFan reports whether a name is the name of a kernel thread behind a queue.
func isFan(comm string, id uint32, cpus []uint32) bool {
	for _, cpu := range cpus {
		name := fmt.Sprintf("cpumap/%d/map:%d", cpu, id)
		if comm == name || len(comm) >= threadName && strings.HasPrefix(name, comm) {
			return true
		}
	}
	return false
}
