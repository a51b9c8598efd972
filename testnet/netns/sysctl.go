// SPDX-License-Identifier: LGPL-3.0-or-later

package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

type sysctl struct{ key, value string }

// hostSysctls apply to each namespace before it gets interfaces.
var hostSysctls = []sysctl{
	// With duplicate address detection an address is unusable for almost 2 s.
	{"net.ipv6.conf.all.accept_dad", "0"},
	{"net.ipv6.conf.default.accept_dad", "0"},
	{"net.ipv6.conf.all.accept_ra", "0"},
	{"net.ipv6.conf.default.accept_ra", "0"},
	// A link that goes down must have its address when it comes up again.
	{"net.ipv6.conf.all.keep_addr_on_down", "1"},
	{"net.ipv6.conf.default.keep_addr_on_down", "1"},
	// The limit on ICMPv6 errors only slows down traceroute here.
	{"net.ipv6.icmp.ratelimit", "0"},
}

// routerSysctls apply to namespaces that forward.
var routerSysctls = []sysctl{
	{"net.ipv6.conf.all.forwarding", "1"},
	{"net.ipv6.conf.default.forwarding", "1"},
}

const congestionControl = "net.ipv4.tcp_congestion_control"

// congestionControls are tried in this order. A new namespace inherits the
// default of the machine, which differs between machines. A namespace may choose
// only from net.ipv4.tcp_allowed_congestion_control of the machine, where cubic
// can be missing; reno is always there.
var congestionControls = []string{"cubic", "reno"}

func (ns *Namespace) setCongestionControl() error {
	var err error
	for _, name := range congestionControls {
		if err = ns.Sysctl(congestionControl, name); err == nil {
			return nil
		}
	}
	return err
}

// CongestionControl is the TCP congestion control of new connections.
func (ns *Namespace) CongestionControl() (string, error) {
	var value []byte
	err := ns.Do(func() (err error) {
		value, err = os.ReadFile(sysctlPath(congestionControl))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read %s in %s: %w", congestionControl, ns.name, err)
	}
	return strings.TrimSpace(string(value)), nil
}

// Sysctl sets a variable below net, e.g. net.ipv6.conf.all.forwarding.
func (ns *Namespace) Sysctl(key, value string) error {
	err := ns.Do(func() error { return os.WriteFile(sysctlPath(key), []byte(value), 0) })
	if err != nil {
		return fmt.Errorf("set %s = %s in %s: %w", key, value, ns.name, err)
	}
	return nil
}

func sysctlPath(key string) string {
	return filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/"))
}

// Router lets the namespace forward IPv6. Call it before adding addresses.
func (ns *Namespace) Router() error {
	for _, s := range routerSysctls {
		if err := ns.Sysctl(s.key, s.value); err != nil {
			return err
		}
	}
	// Where the bridge hands frames to ip6tables, rules of the machine would
	// apply to the LANs. The variable exists only with br_netfilter.
	err := ns.Sysctl("net.bridge.bridge-nf-call-ip6tables", "0")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Layer2 switches IPv6 off, for a namespace that only moves frames: it must not
// answer or send anything itself.
func (ns *Namespace) Layer2() error {
	for _, key := range []string{"net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6"} {
		if err := ns.Sysctl(key, "1"); err != nil {
			return err
		}
	}
	return nil
}

// ndLimits bound the ND entries of IPv6, which all namespaces of the machine
// share. Above the first one entries that are still needed are thrown out, above the
// second one no more are made, and packets to them are lost.
var ndLimits = []string{
	sysctlPath("net.ipv6.neigh.default.gc_thresh2"),
	sysctlPath("net.ipv6.neigh.default.gc_thresh3"),
}

// limit is a variable of the machine that a run changed.
type limit struct {
	Before string `json:"before"`
	Now    string `json:"now"`
}

// RoomForNDEntries raises the machine's limits on ND entries to n, until the run is
// closed. An error says that they stay lower: not every container may see or change them.
// A run beside this one has the same limits, and loses them with it.
func (r *Run) RoomForNDEntries(n int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, path := range ndLimits {
		before, err := readLimit(path)
		if err != nil {
			return err
		}
		have, err := strconv.Atoi(before)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if have >= n {
			continue
		}
		now := strconv.Itoa(n)
		if err := os.WriteFile(path, []byte(now), 0); err != nil {
			return err
		}
		if first, raised := r.state.Limits[path]; raised {
			before = first.Before
		}
		if r.state.Limits == nil {
			r.state.Limits = make(map[string]limit)
		}
		r.state.Limits[path] = limit{before, now}
	}
	return r.state.write(r.path)
}

func readLimit(path string) (string, error) {
	text, err := os.ReadFile(path)
	return strings.TrimSpace(string(text)), err
}

// restoreLimits gives the machine back its limits, if nobody has changed them since.
func restoreLimits(limits map[string]limit) error {
	var errs []error
	for _, path := range ndLimits {
		l, changed := limits[path]
		if !changed {
			continue
		}
		now, err := readLimit(path)
		if err == nil && now == l.Now {
			err = os.WriteFile(path, []byte(l.Before), 0)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
