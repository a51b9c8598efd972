// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/ethmcast/mdcs/testnet/netns"
)

// queueLength is in frames. Each occupies a page while it waits.
const queueLength = 16384

// queue is a queue behind an interface.
type queue struct {
	cpus    *ebpf.Map
	program *ebpf.Program
	link    link.Link
}

// newQueue gives a veth end a queue for the copies of some datagrams to all peers. It
// stands for the networks between the replication point and its peers: these are many
// hosts, which take their frames at the same time, while here all frames arrive at one
// interface with a ring of 256, and the host behind it needs longer for a frame than
// the replication point for a copy.
func newQueue(ns *netns.Namespace, name string) (q *queue, err error) {
	q = new(queue)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("queue behind %s/%s: %w", ns.Name(), name, err), q.close())
		}
	}()
	q.cpus, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.CPUMap, KeySize: 4, ValueSize: 4, MaxEntries: uint32(runtime.NumCPU())})
	if err != nil {
		return q, err
	}
	for cpu := range uint32(runtime.NumCPU()) {
		if err := q.cpus.Put(cpu, uint32(queueLength)); err != nil {
			return q, err
		}
	}
	q.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.FnGetSmpProcessorId.Call(), // frames stay where they arrived
		asm.Mov.Reg(asm.R2, asm.R0),
		asm.LoadMapPtr(asm.R1, q.cpus.FD()),
		asm.Mov.Imm(asm.R3, xdpPass), // for a CPU that is new
		asm.FnRedirectMap.Call(),
		asm.Return(),
	}})
	if err != nil {
		return q, err
	}
	q.link, err = attachXDP(ns, name, q.program)
	return q, err
}

func (q *queue) close() error {
	var errs []error
	if q.link != nil {
		errs = append(errs, q.link.Close())
	}
	if q.program != nil {
		errs = append(errs, q.program.Close())
	}
	if q.cpus != nil {
		errs = append(errs, q.cpus.Close())
	}
	return errors.Join(errs...)
}
