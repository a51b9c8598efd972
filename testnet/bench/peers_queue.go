// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/testnet/netns"
)

// queueLength is in frames. Each occupies a page while it waits.
const queueLength = 16384

// subnetByte is the place in a frame of the last byte of the destination's /64, which
// says on which CPU its frames wait.
const subnetByte = 14 + 24 + 7

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
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // data
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, subnetByte+1),
		asm.JGT.Reg(asm.R4, asm.R3, "pass"),
		asm.LoadMem(asm.R2, asm.R2, subnetByte, asm.Byte),
		asm.Mod.Imm(asm.R2, int32(runtime.NumCPU())),
		asm.LoadMapPtr(asm.R1, q.cpus.FD()),
		asm.Mov.Imm(asm.R3, xdpPass), // where there is no such CPU
		asm.FnRedirectMap.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpPass).WithSymbol("pass"),
		asm.Return(),
	}})
	if err != nil {
		return q, err
	}
	if q.link, err = attachXDP(ns, name, q.program); err != nil {
		return q, err
	}
	return q, q.favour()
}

// queueNice is the nice value of the kernel threads that empty the queues: networks do
// not wait for a CPU.
const queueNice = -10

// favour raises the priority of the kernel threads that empty the queues.
func (q *queue) favour() error {
	info, err := q.cpus.Info()
	if err != nil {
		return err
	}
	id, ok := info.ID()
	if !ok {
		return errors.New("the kernel does not tell the id of a map")
	}
	threads, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return err
	}
	for _, thread := range threads {
		text, err := os.ReadFile(thread)
		if err != nil {
			continue // it has ended
		}
		name := strings.TrimSpace(string(text))
		for cpu := range runtime.NumCPU() {
			// The kernel may cut it to 15 bytes.
			full := fmt.Sprintf("cpumap/%d/map:%d", cpu, id)
			if name != full && (len(name) < 15 || !strings.HasPrefix(full, name)) {
				continue
			}
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(thread)))
			if err != nil {
				return err
			}
			if err := unix.Setpriority(unix.PRIO_PROCESS, pid, queueNice); err != nil {
				return fmt.Errorf("raise priority of %s: %w", name, err)
			}
		}
	}
	return nil
}

// ringPerCPU gives both directions of a veth end a ring for each CPU. A frame comes out
// on the CPU that sent it then, in turn with the sending of more: no ring runs over
// because another CPU is busy.
func ringPerCPU(ns *netns.Namespace, name string) error {
	err := ns.Do(func() error {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		channels, err := e.GetChannels(name)
		if err != nil {
			return err
		}
		channels.RxCount = min(channels.MaxRx, uint32(runtime.NumCPU()))
		channels.TxCount = min(channels.MaxTx, uint32(runtime.NumCPU()))
		_, err = e.SetChannels(name, channels)
		return err
	})
	if err != nil {
		return fmt.Errorf("set rings of %s/%s: %w", ns.Name(), name, err)
	}
	return nil
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
