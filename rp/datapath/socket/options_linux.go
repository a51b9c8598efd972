// SPDX-License-Identifier: LGPL-3.0-or-later

package socket

import (
	"encoding/binary"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Sizes of the socket's buffers in bytes. The receive buffer holds the bursts that
// arrive while one datagram is copied to thousands of subscribers.
const (
	receiveBuffer = 16 << 20
	sendBuffer    = 4 << 20
)

// setOptions prepares the socket before it is bound. Datagrams are never
// fragmented: they fit the minimum MTU of IPv6, or the path is broken.
func setOptions(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = setFD(int(fd)) }); e != nil {
		return e
	}
	return err
}

func setFD(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1); err != nil {
		return fmt.Errorf("set SO_RXQ_OVFL: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1); err != nil {
		return fmt.Errorf("set IPV6_DONTFRAG: %w", err)
	}
	if err := setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receiveBuffer); err != nil {
		return fmt.Errorf("set SO_RCVBUF: %w", err)
	}
	if err := setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer); err != nil {
		return fmt.Errorf("set SO_SNDBUF: %w", err)
	}
	return nil
}

// dropsSize is the room for what dropped reads, in bytes.
const dropsSize = 64

// dropped returns how many datagrams the full receive buffer had cost the socket
// when the one with these control messages was queued, mod 2^32. The host says so
// only after the first.
func dropped(control []byte) (n uint32, ok bool) {
	h, data, _, err := unix.ParseOneSocketControlMessage(control)
	if err != nil || h.Level != unix.SOL_SOCKET || h.Type != unix.SO_RXQ_OVFL || len(data) < 4 {
		return 0, false
	}
	return binary.NativeEndian.Uint32(data), true
}

// setBuffer sets the size without the system's limit where the process may
// (CAP_NET_ADMIN), else as far as the limit allows.
func setBuffer(fd, force, plain, size int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) == nil {
		return nil
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
}
