// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/rp/datapath"
)

func TestIsFan(t *testing.T) {
	cpus := []uint32{0, 12}
	for comm, want := range map[string]bool{
		"cpumap/0/map:4567":  true,
		"cpumap/12/map:4567": true,
		"cpumap/12/map:4":    true, // as much as old kernels show
		"cpumap/0/map:456":   true, // likewise, and long enough
		"cpumap/0/map:4":     false,
		"cpumap/1/map:4567":  false,
		"cpumap/0/map:45678": false,
		"ksoftirqd/0":        false,
		"":                   false,
	} {
		require.Equal(t, want, isFan(comm, 4567, cpus), comm)
	}
}

// Every queue has a thread, and all of them are found again.
func TestXDPFavoursTheFanOut(t *testing.T) {
	e := newBare(t, datapath.Config{Incarnation: 1})
	if self, err := os.Readlink("/proc/self/ns/pid"); err != nil || self != initialPIDs {
		t.Skipf("PID namespace %s (%v): kernel threads cannot be seen", self, err)
	}
	require.Equal(t, len(e.table.cpus), e.raiseFanoutPriority())
}

// A process that was just started is among the newest, and among all.
func TestPIDs(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	require.NoError(t, cmd.Start())
	require.Contains(t, newestPIDs(), cmd.Process.Pid)
	require.Contains(t, allPIDs(), cmd.Process.Pid)
	require.NoError(t, cmd.Wait())
}

// initialPIDs is the first PID namespace, the one with the kernel's threads.
const initialPIDs = "pid:[4026531836]"
