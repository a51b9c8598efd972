// SPDX-License-Identifier: LGPL-3.0-or-later

package testnet

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/testnet/report"
)

// HostFacts describes the machine.
func HostFacts() (report.Host, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return report.Host{}, fmt.Errorf("read kernel version: %w", err)
	}
	return report.Host{
		Kernel: unix.ByteSliceToString(u.Release[:]),
		CPUs:   runtime.NumCPU(),
		Go:     runtime.Version(),
	}, nil
}

// Version asks a program for its version with the given argument, and returns
// the value of the line "Version: ..." or else the first line.
func Version(ctx context.Context, binary, arg string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, arg).Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", binary, err)
	}
	return parseVersion(string(out)), nil
}

func parseVersion(text string) string {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, "Version:"); ok {
			return strings.TrimSpace(v)
		}
	}
	first, _, _ := strings.Cut(text, "\n")
	return strings.TrimSpace(first)
}
