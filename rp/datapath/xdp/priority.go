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

// favour raises the priority of the kernel threads behind the queues and returns how many
// it found. That needs CAP_SYS_NICE and a view of all processes; without, the fan-out
// waits for its turn on a busy CPU. Before Linux 6.5 the softirqs that empty the rings
// wait for ksoftirqd when that is awake, so there the threads must not come before it.
func (e *Engine) favour() (threads int) {
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
	names, _ := filepath.Glob("/proc/[0-9]*/comm") // the pattern is right
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err == nil && isFan(strings.TrimSpace(string(comm)), uint32(id), e.table.cpus) &&
			unix.Setpriority(unix.PRIO_PROCESS, pid, fanNice) == nil {
			threads++
		}
	}
	return threads
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
