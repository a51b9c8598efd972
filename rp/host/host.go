// SPDX-License-Identifier: LGPL-3.0-or-later

// Package host tells what a machine can do for a replication point: whether the
// XDP engine can run here, and if not, what is missing, in words.
package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/rp/hostnet"
)

// MinKernel is the oldest kernel on which the XDP engine is tested (make test-kernels). What it uses is older, broadcast
// redirection is of 5.14, but whether an older verifier takes the programs is not known.
var MinKernel = Version{6, 1}

// minMTU is that of IPv6 (RFC 8200 section 5); a datagram of ours needs all of it.
const minMTU = 1280

// Version is a kernel version.
type Version struct{ Major, Minor int }

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

func (v Version) less(w Version) bool {
	return v.Major < w.Major || v.Major == w.Major && v.Minor < w.Minor
}

// Finding is the result of one check.
type Finding struct {
	What   string // what was checked
	Err    error  // what is missing, nil if nothing is
	Detail string // what was found
	Open   bool   // nothing was found out: Detail says why
}

// Report is the result of all checks, in order. A check is left out when one that
// it builds on failed.
type Report []Finding

// Err says in one line what is missing, nil if nothing is. It wraps the error of each
// finding.
func (r Report) Err() error {
	var missing missing
	for _, f := range r {
		if f.Err != nil {
			missing = append(missing, fmt.Errorf("%s: %w", f.What, f.Err))
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return missing
}

// missing is errors.Join in one line.
type missing []error

func (m missing) Error() string {
	texts := make([]string, len(m))
	for i, err := range m {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (m missing) Unwrap() []error { return m }

func (r Report) String() string {
	var b strings.Builder
	for _, f := range r {
		if f.Err != nil {
			fmt.Fprintf(&b, "missing  %s: %v\n", f.What, f.Err)
		} else if f.Open {
			fmt.Fprintf(&b, "unknown  %s: %s\n", f.What, f.Detail)
		} else {
			fmt.Fprintf(&b, "ok       %s: %s\n", f.What, f.Detail)
		}
	}
	return b.String()
}

func (r *Report) add(what string, err error, format string, args ...any) bool {
	*r = append(*r, Finding{What: what, Err: err, Detail: fmt.Sprintf(format, args...)})
	return err == nil
}

// Basics checks kernel, privileges and the devices of the engine: those named, else the
// one that has the address addr. It changes nothing.
func Basics(addr netip.Addr, devices []string) Report {
	var r Report
	v, err := kernel()
	if err == nil && v.less(MinKernel) {
		err = fmt.Errorf("%v is older than %v", v, MinKernel)
	}
	r.add("kernel", err, "%v", v)
	r.add("privileges", privileges(), "CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN")
	if len(devices) == 0 {
		l, err := device(addr)
		if r.add("device", err, "") {
			r[len(r)-1].Detail = fmt.Sprintf("%s (%s) has %v", l.Attrs().Name, l.Type(), addr)
			r.mtu(l)
		}
		return r
	}
	for _, name := range devices {
		l, err := netlink.LinkByName(name)
		if err != nil {
			r.add("device", fmt.Errorf("%s of [datapath] devices: %w", name, err), "")
			continue
		}
		if l.Attrs().Flags&net.FlagUp == 0 {
			err = isDown(name)
		}
		if r.add("device", err, "%s (%s) of [datapath] devices", name, l.Type()) {
			r.mtu(l)
		}
	}
	return r
}

func isDown(name string) error { return fmt.Errorf("%s is down: ip link set dev %s up", name, name) }

func (r *Report) mtu(l netlink.Link) {
	a := l.Attrs()
	var err error
	if a.MTU < minMTU {
		err = fmt.Errorf("%s has an MTU of %d, less than %d: ip link set dev %s mtu %d", a.Name, a.MTU, minMTU, a.Name, minMTU)
	}
	r.add("mtu", err, "%d", a.MTU)
}

// kernel returns the version of the running kernel.
func kernel() (Version, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Version{}, fmt.Errorf("uname: %w", err)
	}
	return parseVersion(unix.ByteSliceToString(u.Release[:]))
}

// parseVersion reads the first two numbers of a release such as 6.1.0-13-amd64.
func parseVersion(release string) (Version, error) {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) >= 2 {
		major, err1 := strconv.Atoi(parts[0])
		digits := strings.IndexFunc(parts[1], func(c rune) bool { return c < '0' || c > '9' })
		if digits < 0 {
			digits = len(parts[1])
		}
		minor, err2 := strconv.Atoi(parts[1][:digits])
		if err1 == nil && err2 == nil {
			return Version{major, minor}, nil
		}
	}
	return Version{}, fmt.Errorf("release %q is no version", release)
}

// privileges returns what this process lacks to load and attach XDP programs.
func privileges() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	has := func(c int) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	var missing []string
	if !has(unix.CAP_BPF) && !has(unix.CAP_SYS_ADMIN) {
		missing = append(missing, "CAP_BPF")
	}
	if !has(unix.CAP_PERFMON) && !has(unix.CAP_SYS_ADMIN) { // without, the verifier refuses sums with pointers
		missing = append(missing, "CAP_PERFMON")
	}
	if !has(unix.CAP_NET_ADMIN) {
		missing = append(missing, "CAP_NET_ADMIN")
	}
	if len(missing) > 0 {
		return fmt.Errorf("no %s", strings.Join(missing, ", no "))
	}
	return nil
}

// Device returns the name of the device that has an address.
func Device(addr netip.Addr) (string, error) {
	l, err := device(addr)
	if err != nil {
		return "", fmt.Errorf("device: %w", err)
	}
	return l.Attrs().Name, nil
}

// device returns the link that has an address.
func device(addr netip.Addr) (netlink.Link, error) {
	a, err := find(addr)
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, fmt.Errorf("none has %v: ip -6 addr add %v/64 dev DEV, or set [node] address to one that this host has", addr, addr)
	}
	l, err := netlink.LinkByIndex(a.LinkIndex)
	if err != nil {
		return nil, fmt.Errorf("device %d: %w", a.LinkIndex, err)
	}
	switch at := l.Attrs(); {
	case at.Flags&net.FlagUp == 0:
		return nil, isDown(at.Name)
	case len(at.HardwareAddr) != 6 || at.Flags&net.FlagLoopback != 0:
		return nil, fmt.Errorf("%s, which has %v, is not an Ethernet device: name in [datapath] devices those by which peers are reached", at.Name, addr)
	}
	return l, nil
}

// find returns an address of this host, nil when it has no such one.
func find(addr netip.Addr) (*netlink.Addr, error) {
	family := netlink.FAMILY_V6
	if addr.Is4() {
		family = netlink.FAMILY_V4
	}
	all, err := hostnet.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, family) })
	for i := range all { // of an interrupted list, too
		if ip, ok := netip.AddrFromSlice(all[i].IP); ok && ip.Unmap() == addr.WithZone("") && inZone(all[i].LinkIndex, addr.Zone()) {
			return &all[i], nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return nil, nil
}

// inZone reports whether an interface is the one that a zone names, by its name or index. No zone is all.
func inZone(ifindex int, zone string) bool {
	if zone == "" || zone == strconv.Itoa(ifindex) {
		return true
	}
	l, err := netlink.LinkByName(zone)
	return err == nil && l.Attrs().Index == ifindex
}

// AwaitAddress waits until sockets can have an address: it may come late, or still be
// checked for duplicates. say is told once what is waited for. After timeout it is an
// error, and at once when another host has the address.
func AwaitAddress(ctx context.Context, addr netip.Addr, timeout time.Duration, say func(why string)) error {
	end := time.Now().Add(timeout)
	for said := false; ; {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		if err == nil {
			return conn.Close()
		}
		noZone := addr.Zone() != "" && errors.Is(err, unix.EINVAL) // the device is late
		if !errors.Is(err, unix.EADDRNOTAVAIL) && !noZone {
			return fmt.Errorf("%v: %w", addr, err)
		}
		why := "this host does not have it"
		if addr.Is6() {
			why += fmt.Sprintf(": ip -6 addr add %v/64 dev %s", addr.WithZone(""), cmp.Or(addr.Zone(), "DEV"))
		}
		if a, err := find(addr); err == nil && a != nil {
			why = "it is being checked for duplicates"
			if a.Flags&unix.IFA_F_DADFAILED != 0 {
				return fmt.Errorf("%v: another host has it, too (duplicate address detection failed)", addr)
			}
		}
		if !said {
			said = true
			say(why)
		}
		if time.Now().After(end) {
			return fmt.Errorf("%v: %s (waited %v)", addr, why, timeout)
		}
		select {
		case <-time.After(addressPoll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

const addressPoll = 100 * time.Millisecond
