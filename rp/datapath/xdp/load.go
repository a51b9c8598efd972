// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/dchest/siphash"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/pindir"
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
		options.MapReplacements = left.Maps
		e.cfg.Incarnation, e.cfg.HandleKey = left.Life.Incarnation, wholeKey(left.Life.HandleKey)
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
		bpf.RpVarRecircCookie:   e.cookie(),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("load programs: option %s: %w", name, err)
		}
	}
	var needed struct {
		In     *ebpf.Program `ebpf:"mdcs_rp_in"`
		Fan    *ebpf.Program `ebpf:"mdcs_rp_fan"`
		Own    *ebpf.Program `ebpf:"mdcs_rp_own"`
		Recirc *ebpf.Program `ebpf:"mdcs_rp_recirc"`
		Out    *ebpf.Program `ebpf:"mdcs_rp_out"`
		bpf.RpMaps
		bpf.RpVariables
	}
	if err := spec.LoadAndAssign(&needed, &options); err != nil {
		return fmt.Errorf("load programs: %w", explainLoad(err))
	}
	e.objects.RpPrograms = bpf.RpPrograms{
		MdcsRpIn: needed.In, MdcsRpFan: needed.Fan, MdcsRpOwn: needed.Own, MdcsRpRecirc: needed.Recirc, MdcsRpOut: needed.Out,
	}
	e.objects.RpMaps, e.objects.RpVariables = needed.RpMaps, needed.RpVariables
	e.loadWatches(spec)
	if err := e.memory.open(&e.objects); err != nil {
		return fmt.Errorf("load programs: %w", err)
	}
	e.setEgress(e.cfg.Policer())
	if left == nil {
		life := e.memory.lives.at(0)
		life.Incarnation, life.HandleKey = e.cfg.Incarnation, bpf.RpKey{K0: k0, K1: k1}
		life.Owner, life.Port = e.cfg.Owner, port(e.addr.Port())
		life.Addr.Word = words(e.addr.Addr().As16())
		e.refresh()
	}
	return nil
}

// cookie begins the frames on the recirculation pair. It is the same for all who go on
// with a datapath, and nobody else knows it.
func (e *Engine) cookie() uint64 {
	k0, k1 := halves(e.cfg.HandleKey)
	return siphash.Hash(k0, k1, []byte("recirculation"))
}

// loadWatches loads the programs that count what rings and queues drop. Without one the
// engine copies as well, but for the count.
func (e *Engine) loadWatches(spec *ebpf.CollectionSpec) {
	if err := e.opt.refuseWatches; err != nil {
		e.watchErrors = map[string]error{pindir.LostLink: err, pindir.FullLink: err}
		return
	}
	e.watchErrors = make(map[string]error)
	shared := ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
		bpf.RpMapTotals: e.objects.Totals, bpf.RpMapDevices: e.objects.Devices,
	}}
	var lost struct {
		Program *ebpf.Program `ebpf:"mdcs_rp_lost"`
	}
	if err := spec.LoadAndAssign(&lost, &shared); err != nil {
		e.watchErrors[pindir.LostLink] = fmt.Errorf("it reads structures of the kernel, which must be described "+
			"(CONFIG_DEBUG_INFO_BTF, a readable /sys/kernel/btf/vmlinux) and not locked down (/sys/kernel/security/lockdown): %w", explainLoad(err))
	}
	var full struct {
		Program *ebpf.Program `ebpf:"mdcs_rp_full"`
	}
	e.watchErrors[pindir.FullLink] = explainLoad(spec.LoadAndAssign(&full, &shared))
	e.objects.MdcsRpLost, e.objects.MdcsRpFull = lost.Program, full.Program
}

// explainLoad says what a refusal of the kernel to load a program means, and what helps.
func explainLoad(err error) error {
	if v, ok := errors.AsType[*ebpf.VerifierError](err); ok {
		err = fmt.Errorf("refused by the verifier: %w", v)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, btf.ErrNotFound) || errors.Is(err, btf.ErrNotSupported):
		return fmt.Errorf("%w (the kernel does not describe its types: boot one with CONFIG_DEBUG_INFO_BTF, and let rpd read /sys/kernel/btf/vmlinux)", err)
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w (run rpd as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; see also: cat /sys/kernel/security/lockdown)", err)
	case err != nil && strings.Contains(err.Error(), unix.EMFILE.Error()): // the library does not wrap it everywhere
		return fmt.Errorf("%w (let rpd have more: LimitNOFILE= of its unit, ulimit -n)", err)
	}
	return err
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
