// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// Sizes of the socket's buffers in bytes, as those of the socket engine.
const (
	receiveBuffer = 16 << 20
	sendBuffer    = 4 << 20
)

// maxMessages is the largest batch that the kernel takes in one call (UIO_MAXIOV).
const maxMessages = 1024

// mmsghdr is struct mmsghdr.
type mmsghdr struct {
	header unix.Msghdr
	length uint32
}

// sendmmsg receives a datagram and sends it to all, in as few system calls as can
// be: messages and addresses are prepared once.
type sendmmsg struct {
	conn     *net.UDPConn
	messages atomic.Pointer[[]mmsghdr]
	buffer   [wire.MaxDatagram]byte
	iov      unix.Iovec
	done     chan struct{} // closed when the reader has returned
}

func newSendmmsg(l *lane) (subject, error) {
	s := &sendmmsg{done: make(chan struct{})}
	err := l.rp.Do(func() (err error) {
		s.conn, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(rpAddr))
		return err
	})
	if err != nil {
		return nil, err
	}
	raw, err := s.conn.SyscallConn()
	if err == nil {
		err = setBuffers(raw)
	}
	if err != nil {
		s.conn.Close()
		return nil, err
	}
	s.iov.Base = &s.buffer[0]
	s.iov.SetLen(UDPPayload)
	s.messages.Store(new([]mmsghdr))
	go s.run(raw)
	return s, nil
}

func setBuffers(raw syscall.RawConn) error {
	var errs []error
	err := raw.Control(func(fd uintptr) {
		errs = append(errs,
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer))
	})
	if err := errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("set buffers: %w", err)
	}
	return nil
}

// run copies until the socket is closed.
func (s *sendmmsg) run(raw syscall.RawConn) {
	defer close(s.done)
	for {
		n, err := s.conn.Read(s.buffer[:])
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil || n != UDPPayload:
			continue
		}
		for rest := *s.messages.Load(); len(rest) > 0; {
			sent, err := sendBatch(raw, rest[:min(len(rest), maxMessages)])
			if err != nil {
				return
			}
			rest = rest[sent:]
		}
	}
}

// sendBatch returns how many messages are done with: sent, or refused by the host.
// It fails when the socket is closed.
func sendBatch(raw syscall.RawConn, batch []mmsghdr) (sent int, err error) {
	err = raw.Write(func(fd uintptr) bool {
		for {
			n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd,
				uintptr(unsafe.Pointer(&batch[0])), uintptr(len(batch)), 0, 0, 0)
			switch errno {
			case 0:
				sent = int(n)
				return true
			case unix.EINTR:
			case unix.EAGAIN:
				return false
			default:
				sent = 1
				return true
			}
		}
	})
	return sent, err
}

// resize implements subject.
func (s *sendmmsg) resize(_, n int) error {
	messages := make([]mmsghdr, n)
	for i := range messages {
		to := subscriberAddr(i + 1)
		addr := &unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: native16(bigEndian16(to.Port())), Addr: to.Addr().As16()}
		h := &messages[i].header
		h.Name = (*byte)(unsafe.Pointer(addr))
		h.Namelen = unix.SizeofSockaddrInet6
		h.Iov = &s.iov
		h.SetIovlen(1)
	}
	s.messages.Store(&messages)
	return nil
}

func (s *sendmmsg) close() error {
	err := s.conn.Close()
	<-s.done
	return err
}
