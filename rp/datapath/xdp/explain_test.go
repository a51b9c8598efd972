// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"fmt"
	"testing"

	"github.com/safchain/ethtool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestCure has every sentence that explainAttach says, by what drivers answer.
func TestCure(t *testing.T) {
	t.Parallel()
	apart := ethtool.Channels{MaxRx: 16, MaxTx: 16, RxCount: 16, TxCount: 16}
	const none = `; [datapath] engine = "socket" needs none`
	for _, c := range []struct {
		name string
		refusal
		want string
	}{
		{"privileges", refusal{err: unix.EPERM}, "run rpd as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"},
		{"MTU", refusal{err: unix.EINVAL, driver: "ena", mtu: 9001},
			"an MTU of 9001 is too large for XDP, at most 3498: ip link set dev eth0 mtu 3498"},
		{"MTU of a veth", refusal{err: unix.ERANGE, kind: "veth", driver: "veth", mtu: 9000},
			"an MTU of 9000 is too large for XDP, at most 3498: ip link set dev eth0 mtu 3498, at both ends of the veth"},
		{"MTU of gve", refusal{err: unix.EOPNOTSUPP, driver: "gve", mtu: 2033, channels: apart},
			"an MTU of 2033 is too large for XDP, at most 2032: ip link set dev eth0 mtu 2032"},
		{"MTU of the other end", refusal{err: unix.ERANGE, kind: "veth", driver: "veth", mtu: 1500},
			"the MTU of its other end is too large for XDP: set it to at most 3498 at both ends: ip link set dev DEV mtu 3498"},
		{"LRO", refusal{err: unix.EOPNOTSUPP, driver: "ixgbe", mtu: 1500, features: map[string]bool{"rx-lro": true}},
			"switch off LRO, which XDP does not go with: ethtool -K eth0 lro off"},
		{"GRO in hardware", refusal{err: unix.EINVAL, driver: "qede", mtu: 1500, features: map[string]bool{"rx-gro-hw": true}},
			"switch off GRO in hardware, which XDP does not go with: ethtool -K eth0 rx-gro-hw off"},
		{"offloads of virtio", refusal{err: unix.EOPNOTSUPP, driver: "virtio_net", mtu: 1500, channels: ethtool.Channels{MaxCombined: 4, CombinedCount: 4}},
			"its hypervisor joins segments or leaves checksums out, and XDP does not go with either: ethtool -K eth0 rx-gro-hw off rx off; " +
				"where that changes nothing, start the guest without: guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off in QEMU"},
		{"queues of a veth", refusal{err: unix.ENOSPC, kind: "veth", driver: "veth", mtu: 1500, channels: ethtool.Channels{RxCount: 1, TxCount: 1}},
			"it has fewer receive queues than its other end has transmit queues: ethtool -L eth0 rx N"},
		{"queues of ENA", refusal{err: unix.EINVAL, driver: "ena", mtu: 1500, channels: ethtool.Channels{MaxCombined: 8, CombinedCount: 8}},
			"the driver (ena) wants queues of its own for XDP, often half of them: ethtool -L eth0 combined 4"},
		{"queues that are not told", refusal{err: unix.ENOMEM, driver: "mlx5_core", mtu: 1500},
			"the driver (mlx5_core) wants queues of its own for XDP, often half of them: ethtool -L eth0 combined 1"},
		{"queues of gve", refusal{err: unix.EINVAL, driver: "gve", mtu: 1460, channels: apart},
			"the driver (gve) wants queues of its own for XDP, often half of them: ethtool -L eth0 rx 8 tx 8"},
		{"queues of gve, fewer to receive", refusal{err: unix.EINVAL, driver: "gve", mtu: 1460, channels: ethtool.Channels{MaxRx: 4, MaxTx: 16, RxCount: 4, TxCount: 16}},
			"the driver (gve) wants queues of its own for XDP, often half of them: ethtool -L eth0 rx 4 tx 4"},
		{"one queue", refusal{err: unix.EINVAL, driver: "e1000", mtu: 1500, channels: ethtool.Channels{MaxCombined: 1, CombinedCount: 1}},
			"the driver (e1000) has no native XDP for it" + none},
		{"veth that does not say why", refusal{err: unix.EINVAL, kind: "veth", driver: "veth", mtu: 1500, channels: ethtool.Channels{RxCount: 1, TxCount: 1}},
			"the driver (veth) has no native XDP for it" + none},
		{"bridge", refusal{err: unix.EOPNOTSUPP, kind: "bridge", driver: "bridge", mtu: 1500}, "the driver (bridge) has no native XDP for it" + none},
		{"VLAN", refusal{err: unix.EOPNOTSUPP, kind: "vlan", driver: "802.1Q VLAN Support", mtu: 1500, below: true},
			"the driver (802.1Q VLAN Support) has no native XDP for it; if frames arrive at the device below it without a tag, " +
				"move the address and the routes there, and name that device in [datapath] devices" + none},
		{"what says enough", refusal{err: unix.ENODEV, driver: "ena", mtu: 1500}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.refusal.name = "eth0"
			c.err = fmt.Errorf("create link: %w", c.err)
			require.Equal(t, c.want, c.cure())
		})
	}
}
