// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout/fanouttest"
)

// kernelReader reads BPF maps of the kernel.
type kernelReader struct{ *kernel }

// Slots implements fanouttest.Reader.
func (k kernelReader) Slots(slice uint32) (slots int) {
	var targets *ebpf.Map
	if k.Targets.Lookup(slice, &targets) != nil {
		return 0
	}
	defer targets.Close()
	var target [2]uint32
	for targets.Lookup(uint32(slots), &target) == nil {
		slots++
	}
	return slots
}

// walker reads the chains of an engine.
func (e *Engine) walker(t rapid.TB) *fanouttest.Walker {
	return &fanouttest.Walker{Reader: kernelReader{e.kernel}, T: t}
}

// The chains of BPF maps in the kernel are those of BPF maps in memory.
func TestXDPChainProperty(t *testing.T) {
	e := newBare(t, datapath.Config{Incarnation: 1})
	// The loopback interface stands for all devices: nothing is sent.
	e.recirc = &recirculation{in: 1}
	for i := range 3 {
		e.devices[i] = &device{name: "lo", index: 1}
	}
	t.Cleanup(func() { e.devices, e.recirc = [MaxDevices]*device{}, nil }) // before shut
	fanouttest.CheckChains(t, e.fanout, kernelReader{e.kernel}, func() { e.fanout.Expire(time.Now().Add(fanout.Quarantine)) })
}
