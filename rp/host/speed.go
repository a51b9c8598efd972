// SPDX-License-Identifier: LGPL-3.0-or-later

package host

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtoolGet is ETHTOOL_GSET of linux/ethtool.h: what a device is set to.
const ethtoolGet = 1

// ethtoolSettings is struct ethtool_cmd of linux/ethtool.h.
type ethtoolSettings struct {
	command   uint32
	_         [2]uint32
	speedLow  uint16 // Mbit/s, all ones when it is unknown
	_         [14]byte
	speedHigh uint16
	_         [14]byte
}

// Speed returns the speed of a device's line, in Mbit/s, as ethtool shows it. Devices without a
// line, and many virtual ones, tell none. It asks in the network namespace of the calling
// thread.
func Speed(device string) (mbit int, ok bool) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	settings := ethtoolSettings{command: ethtoolGet}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data *ethtoolSettings
		_    [16]byte
	}{data: &settings}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return 0, false
	}
	speed := uint32(settings.speedHigh)<<16 | uint32(settings.speedLow)
	if speed == 0 || speed > 1<<30 {
		return 0, false
	}
	return int(speed), true
}
