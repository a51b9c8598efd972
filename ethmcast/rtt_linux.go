// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tcpRTT returns the least round-trip time that the kernel saw of late on a TCP
// connection, 0 if it tells none. The smoothed one would have the delay of
// acknowledgements in it, as little is sent.
func tcpRTT(conn net.Conn) time.Duration {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0
	}
	rtt := uint32(0) // microseconds
	err = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			rtt = info.Min_rtt
		}
	})
	if err != nil || rtt == ^uint32(0) { // none yet
		return 0
	}
	return time.Duration(rtt) * time.Microsecond
}
