// SPDX-License-Identifier: LGPL-3.0-or-later

package netns

import (
	"fmt"
	"sync"
	"unsafe"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"
)

// featureWords is the number of 32-bit words that hold the features of an
// interface. Linux 6.18 needs two.
const featureWords = 4

// features is struct ethtool_sfeatures of the kernel.
type features struct {
	cmd, size uint32
	words     [featureWords]struct{ valid, requested uint32 }
}

// featureBits are the numbers of the kernel's features by name. They are the same
// for all interfaces, and asking for them takes longer than a change does.
var featureBits struct {
	sync.Mutex
	bits map[string]uint
}

func loadFeatureBits(name string) (map[string]uint, error) {
	featureBits.Lock()
	defer featureBits.Unlock()
	if featureBits.bits == nil {
		tool, err := ethtool.NewEthtool()
		if err != nil {
			return nil, err
		}
		defer tool.Close()
		if featureBits.bits, err = tool.FeatureNames(name); err != nil {
			return nil, err
		}
	}
	return featureBits.bits, nil
}

// offloads sets those of the wanted features that the kernel knows.
func (ns *Namespace) offloads(name string, want map[string]bool) error {
	err := ns.Do(func() error {
		known, err := loadFeatureBits(name)
		if err != nil {
			return err
		}
		set := features{cmd: unix.ETHTOOL_SFEATURES, size: uint32(len(known)+31) / 32}
		if set.size > featureWords {
			return fmt.Errorf("kernel has %d features", len(known))
		}
		for feature, on := range want {
			bit, ok := known[feature]
			if !ok {
				continue
			}
			word := &set.words[bit/32]
			word.valid |= 1 << (bit % 32)
			if on {
				word.requested |= 1 << (bit % 32)
			}
		}
		return ethtoolIoctl(name, unsafe.Pointer(&set))
	})
	if err != nil {
		return fmt.Errorf("set offloads of %s/%s: %w", ns.name, name, err)
	}
	return nil
}

// ethtoolIoctl must run on the thread of the interface's namespace.
func ethtoolIoctl(name string, data unsafe.Pointer) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var ifreq struct { // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the union is longer than a pointer
	}
	if len(name) >= len(ifreq.name) {
		return unix.EINVAL
	}
	copy(ifreq.name[:], name)
	ifreq.data = data
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq))); errno != 0 {
		return errno
	}
	return nil
}
