// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/bpf"
)

// Byte orders: tags and checksums are computed over little-endian words, addresses
// and ports stand in the tables as they do on the wire.
var (
	le     = binary.LittleEndian
	be     = binary.BigEndian
	native = binary.NativeEndian
)

// Queues in front of the fan-out: frames each holds, and how many there are at most.
const (
	fanQueue = 4096
	maxFans  = 16
)

// cpumapValue is struct bpf_cpumap_val.
type cpumapValue struct{ QueueSize, Program uint32 }

// load loads the programs with their options, on tables of their own or on those that
// are left.
func (e *Engine) load(left *legacy) error {
	spec, err := bpf.LoadRp()
	if err != nil {
		return fmt.Errorf("load programs: %w", err)
	}
	quiet := uint64(math.MaxUint64)
	if e.opt.Quiet >= 0 {
		quiet = uint64(e.opt.Quiet)
	}
	// A ring buffer that nobody reads takes one page.
	on := func(name string, read bool) uint8 {
		if read {
			return 1
		}
		spec.Maps[name].MaxEntries = uint32(os.Getpagesize())
		return 0
	}
	var options ebpf.CollectionOptions
	if left != nil {
		options.MapReplacements = left.maps
		e.cfg.Incarnation, e.cfg.HandleKey = left.life.Incarnation, wholeKey(left.life.HandleKey)
	} else {
		fans, err := ebpf.NewMap(spec.Maps[bpf.RpMapFanCpus])
		if err != nil {
			return fmt.Errorf("load programs: queues: %w", err)
		}
		defer fans.Close() // the objects have their own
		options.MapReplacements = map[string]*ebpf.Map{bpf.RpMapFanCpus: fans}
	}
	info, err := options.MapReplacements[bpf.RpMapFanCpus].Info()
	if err != nil {
		return fmt.Errorf("load programs: queues: %w", err)
	}
	fansID, ok := info.ID()
	if !ok {
		return errors.New("load programs: queues without id")
	}
	k0, k1 := halves(e.cfg.HandleKey)
	for name, value := range map[string]any{
		bpf.RpVarOwnAddr:        e.addr.Addr().As16(),
		bpf.RpVarOwnPort:        port(e.addr.Port()),
		bpf.RpVarOwnIncarnation: e.cfg.Incarnation,
		bpf.RpVarHandleKey:      [2]uint64{k0, k1},
		bpf.RpVarQuietNs:        quiet,
		bpf.RpVarOwnNetns:       e.netns,
		bpf.RpVarFanCpusId:      uint32(fansID),
		bpf.RpVarCacheOn:        on(bpf.RpMapCache, e.cfg.Cache != nil),
		bpf.RpVarHelloOn:        on(bpf.RpMapHellos, e.cfg.Hello != nil),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("load programs: option %s: %w", name, err)
		}
	}
	if err := spec.LoadAndAssign(&e.objects, &options); err != nil {
		if v, ok := errors.AsType[*ebpf.VerifierError](err); ok {
			return fmt.Errorf("load programs: refused by the verifier: %w", v)
		}
		return fmt.Errorf("load programs: %w", err)
	}
	if err := e.memory.open(&e.objects); err != nil {
		return fmt.Errorf("load programs: %w", err)
	}
	e.setEgress(e.cfg.Policer())
	if left == nil {
		life := e.memory.lives.at(0)
		life.Incarnation, life.HandleKey = e.cfg.Incarnation, bpf.RpKey{K0: k0, K1: k1}
		e.refresh()
	}
	return nil
}

// refresh says that user space lives.
func (e *Engine) refresh() {
	store(&e.memory.lives.at(0).ValidUntil, uint64(time.Since(e.boot)+e.opt.validity))
}

// startFans makes a queue and its kernel thread for each CPU that the process may
// use, and returns the CPUs. A queue that is there already is replaced, and the kernel
// empties it.
func (e *Engine) startFans() ([]uint32, error) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return nil, fmt.Errorf("start fan-out: CPUs: %w", err)
	}
	var cpus []uint32
	for cpu := uint32(0); cpu < e.objects.FanCpus.MaxEntries() && len(cpus) < maxFans; cpu++ {
		var there cpumapValue
		if !allowed.IsSet(int(cpu)) && e.objects.FanCpus.Lookup(cpu, &there) != nil {
			continue
		}
		value := cpumapValue{QueueSize: fanQueue, Program: uint32(e.objects.MdcsRpFan.FD())}
		if err := e.objects.FanCpus.Put(cpu, value); err != nil {
			return nil, fmt.Errorf("start fan-out on CPU %d: %w", cpu, err)
		}
		if allowed.IsSet(int(cpu)) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// port returns a port as it stands on the wire, in the machine's byte order.
func port(p uint16) uint16 { return native.Uint16(be.AppendUint16(nil, p)) }

// wire32 returns an integer as it stands on the wire, in the machine's byte order.
func wire32(v uint32) uint32 { return native.Uint32(be.AppendUint32(nil, v)) }

// words returns an address as the tables hold it.
func words(a [16]byte) (w [4]uint32) {
	for i := range w {
		w[i] = native.Uint32(a[4*i:])
	}
	return w
}
