// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fanNice is the nice value of the kernel threads that fan out. They do what would be a
// softirq, which does not wait for processes either.
const fanNice = -10

// threadName is how much of a kernel thread's name every kernel shows, in bytes.
const threadName = 15

// raiseFanoutPriority raises the priority of the kernel threads behind the queues and returns how many
// it found. That needs CAP_SYS_NICE and a view of all processes; without, the fan-out
// waits for its turn on a busy CPU. Before Linux 6.5 the softirqs that empty the rings
// wait for ksoftirqd when that is awake, so there the threads must not come before it.
func (e *Engine) raiseFanoutPriority() (threads int) {
	var major, minor int
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return 0
	}
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	if err != nil || major < 6 || major == 6 && minor < 5 {
		return 0
	}
	info, err := e.objects.FanCpus.Info()
	if err != nil {
		return 0
	}
	id, _ := info.ID()
	for _, pids := range []func() []int{newestPIDs, allPIDs} {
		threads = 0
		for _, pid := range pids() {
			comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			if err != nil || !isFan(strings.TrimSpace(string(comm)), uint32(id), e.table.cpus) {
				continue // it has ended, or is another
			}
			if unix.Setpriority(unix.PRIO_PROCESS, pid, fanNice) == nil {
				threads++
			}
			if threads == len(e.table.cpus) {
				return threads
			}
		}
	}
	return threads
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

// allPIDs returns those of all processes.
func allPIDs() (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*") // the pattern is right
	for _, name := range names {
		if pid, err := strconv.Atoi(filepath.Base(name)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// isFan reports whether a kernel thread's name is that of one behind a queue.
func isFan(comm string, id uint32, cpus []uint32) bool {
	for _, cpu := range cpus {
		name := fmt.Sprintf("cpumap/%d/map:%d", cpu, id)
		if comm == name || len(comm) >= threadName && strings.HasPrefix(name, comm) {
			return true
		}
	}
	return false
}
