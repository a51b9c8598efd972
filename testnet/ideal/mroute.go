// SPDX-License-Identifier: LGPL-3.0-or-later

package ideal

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/testnet/netns"
)

// From the kernel's linux/mroute6.h.
const (
	mrt6Init   = 200
	mrt6AddMIF = 202
	mrt6AddMFC = 204

	getCounters = 0x89e1 // SIOCGETSGCNT_IN6

	maxInterfaces = 32 // MAXMIFS
)

// router is the multicast routing of a namespace. The kernel has one per
// namespace, owned by a socket, and forgets it when that is closed.
type router struct {
	name  string
	fd    int
	index map[string]uint16 // multicast interface by name of the interface
}

func openRouter(name string, ns *netns.Namespace) (*router, error) {
	r := &router{name: name, fd: -1, index: make(map[string]uint16)}
	err := ns.Do(func() (err error) {
		r.fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		return os.NewSyscallError("MRT6_INIT", unix.SetsockoptInt(r.fd, unix.IPPROTO_IPV6, mrt6Init, 1))
	})
	if err != nil {
		r.close()
		return nil, fmt.Errorf("open multicast routing of %s: %w", name, err)
	}
	return r, nil
}

// set sets an option with a structure in the byte order of the machine.
func (r *router) set(option int, value []byte) error {
	return unix.SetsockoptString(r.fd, unix.IPPROTO_IPV6, option, string(value))
}

// interfaceOf makes an interface one of multicast routing and returns its number
// there.
func (r *router) interfaceOf(ns *netns.Namespace, name string) (uint16, error) {
	if i, ok := r.index[name]; ok {
		return i, nil
	}
	var intf *net.Interface
	err := ns.Do(func() (err error) {
		intf, err = net.InterfaceByName(name)
		return err
	})
	i := uint16(len(r.index))
	switch {
	case err != nil:
	case i == maxInterfaces:
		err = fmt.Errorf("more than %d interfaces", maxInterfaces)
	case intf.Index > 0xffff:
		err = fmt.Errorf("index %d does not fit", intf.Index)
	default:
		// struct mif6ctl: number, flags, threshold of the hop limit, interface,
		// two bytes of padding, rate limit (not used).
		b := binary.NativeEndian.AppendUint16(nil, i)
		b = append(b, 0, 1)
		b = binary.NativeEndian.AppendUint16(b, uint16(intf.Index))
		err = r.set(mrt6AddMIF, append(b, make([]byte, 6)...))
	}
	if err != nil {
		return 0, fmt.Errorf("add %s/%s to multicast routing: %w", r.name, name, err)
	}
	r.index[name] = i
	return i, nil
}

// route installs a branch for packets from source to group.
func (r *router) route(ns *netns.Namespace, source, group netip.Addr, branch Branch) error {
	in, err := r.interfaceOf(ns, branch.In)
	if err != nil {
		return err
	}
	var out [maxInterfaces / 8]byte // struct if_set: words of 32 bits, of which the first one is used
	var word uint32
	for _, name := range branch.Out {
		i, err := r.interfaceOf(ns, name)
		if err != nil {
			return err
		}
		word |= 1 << i
	}
	binary.NativeEndian.PutUint32(out[:], word)

	// struct mf6cctl: source, group, incoming interface, two bytes of padding,
	// set of 256 outgoing interfaces.
	b := sockaddr(sockaddr(nil, source), group)
	b = binary.NativeEndian.AppendUint16(b, in)
	b = append(b, 0, 0)
	b = append(b, out[:]...)
	if err := r.set(mrt6AddMFC, append(b, make([]byte, 256/8-len(out))...)); err != nil {
		return fmt.Errorf("install multicast route from %s at %s: %w", source, r.name, err)
	}
	return nil
}

// ready reports an interface that cannot send multicast yet: the kernel adds the
// route for it some time after the interface has a carrier.
func ready(ns *netns.Namespace, intf string) error {
	var routes []byte
	err := ns.Do(func() (err error) {
		routes, err = os.ReadFile("/proc/thread-self/net/ipv6_route")
		return err
	})
	if err != nil {
		return fmt.Errorf("read routes of %s: %w", ns.Name(), err)
	}
	// The fields are destination, length of the prefix and six others; then flags
	// and interface.
	const multicast = "ff000000000000000000000000000000 08 "
	for line := range strings.Lines(string(routes)) {
		if fields := strings.Fields(line); strings.HasPrefix(line, multicast) && fields[len(fields)-1] == intf {
			return nil
		}
	}
	return fmt.Errorf("%s/%s has no route for multicast", ns.Name(), intf)
}

// sockaddr appends a struct sockaddr_in6.
func sockaddr(b []byte, addr netip.Addr) []byte {
	b = binary.NativeEndian.AppendUint16(b, unix.AF_INET6)
	b = append(b, make([]byte, 6)...) // port, flow label
	b = append(b, addr.AsSlice()...)
	return append(b, make([]byte, 4)...) // scope
}

// RouteCount is how often a router used a route.
type RouteCount struct {
	Router  string     `json:"router"`
	Source  netip.Addr `json:"source"`
	Packets uint64     `json:"packets"` // that came in; each leaves by every outgoing interface
	Bytes   uint64     `json:"bytes"`   // with the IPv6 header and without Ethernet's
	Wrong   uint64     `json:"wrong"`   // came in by another interface and were dropped
}

func (r *router) count(source, group netip.Addr) (RouteCount, error) {
	// struct sioc_sg_req6
	var request struct {
		addrs                 [2 * unix.SizeofSockaddrInet6]byte
		packets, bytes, wrong uint64 // unsigned long, of 64 bits here
	}
	copy(request.addrs[:], sockaddr(sockaddr(nil, source), group))
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(r.fd), getCounters, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return RouteCount{}, fmt.Errorf("read multicast route from %s at %s: %w", source, r.name, errno)
	}
	return RouteCount{r.name, source, request.packets, request.bytes, request.wrong}, nil
}

func (r *router) close() error {
	if r.fd < 0 {
		return nil
	}
	if err := unix.Close(r.fd); err != nil {
		return fmt.Errorf("close multicast routing of %s: %w", r.name, err)
	}
	return nil
}
