// SPDX-License-Identifier: LGPL-3.0-or-later

package objects

import (
	"net/netip"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestIsFan(t *testing.T) {
	cpus := []uint32{0, 12}
	for comm, want := range map[string]bool{
		"cpumap/0/map:4567":  true,
		"cpumap/12/map:4567": true,
		"cpumap/12/map:4":    true, // as much as old kernels show
		"cpumap/0/map:456":   true, // as much as old kernels show, and long enough
		"cpumap/0/map:4":     false,
		"cpumap/1/map:4567":  false,
		"cpumap/0/map:45678": false,
		"ksoftirqd/0":        false,
		"":                   false,
	} {
		require.Equal(t, want, isFan(comm, 4567, cpus), comm)
	}
}

// Every queue has a thread, and all of them are found again. Before Linux 6.5 they are left alone.
func TestXDPRaisesFanoutPriority(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	o, err := Load(Options{Addr: netip.MustParseAddrPort("[2001:db8::53]:30500"), Quiet: -1})
	require.NoError(t, err)
	defer o.Close()
	cpus, err := o.StartFanout()
	require.NoError(t, err)
	if self, err := os.Readlink("/proc/self/ns/pid"); err != nil || self != initialPIDs {
		t.Skipf("PID namespace %s (%v): kernel threads cannot be seen", self, err)
	}
	want := len(cpus)
	if softirqsWait() {
		want = 0
	}
	require.Equal(t, want, o.RaiseFanoutPriority(cpus))
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
