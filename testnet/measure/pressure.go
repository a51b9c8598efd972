// SPDX-License-Identifier: LGPL-3.0-or-later

package measure

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// CPUPressure is the total time in which at least one task of the machine waited
// for a CPU: the field total of the line "some" of /proc/pressure/cpu (kernel
// documentation, accounting/psi). The difference of two readings over the time
// between them is the share of time with pressure.
func CPUPressure() (time.Duration, error) {
	text, err := os.ReadFile("/proc/pressure/cpu")
	if err != nil {
		return 0, fmt.Errorf("read CPU pressure: %w", err)
	}
	return parsePressure(string(text))
}

func parsePressure(text string) (time.Duration, error) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "some" {
			continue
		}
		for _, f := range fields[1:] {
			if total, ok := strings.CutPrefix(f, "total="); ok {
				us, err := strconv.ParseInt(total, 10, 64)
				if err != nil {
					return 0, fmt.Errorf("read CPU pressure: %w", err)
				}
				return time.Duration(us) * time.Microsecond, nil
			}
		}
	}
	return 0, fmt.Errorf("read CPU pressure: no total in %q", text)
}

// CPUSeconds is what each process used between two readings, in s, given the
// time that it had used so far at each.
func CPUSeconds(before, after map[string]time.Duration) map[string]float64 {
	used := make(map[string]float64, len(after))
	for name, t := range after {
		used[name] = (t - before[name]).Seconds()
	}
	return used
}
