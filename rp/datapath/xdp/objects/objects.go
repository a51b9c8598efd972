// SPDX-License-Identifier: LGPL-3.0-or-later

// Package objects holds the programs and BPF maps of a datapath, as loaded into the kernel: it
// loads them with their options, maps the words that programs and user space share into memory,
// converts between Go values and values of BPF maps, starts the queues of the fan-out, reads
// ring buffers and sums up counters.
//
// It decides nothing: which value stands where is the engine's and package fanout's business.
// Load, StartFanout and Close are for the engine's thread. In between any thread may use the
// programs, the BPF maps, which the kernel guards, and the words of Memory, with sync/atomic.
package objects

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/dchest/siphash"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// Options are what the programs are loaded with.
type Options struct {
	Addr        netip.AddrPort // endpoint that datagrams arrive at
	Netns       uint32         // inode of the network namespace
	Incarnation ids.Incarnation
	HandleKey   auth.Key
	Owner       [16]byte         // of the datapath, see datapath.Config
	Egress      datapath.Policer // of all copies

	// Quiet is how long no datagram may have passed before the next one is copied at once
	// instead of through the queue; negative is never.
	Quiet time.Duration

	Cache, Hello bool // somebody reads the ring buffer of datagrams, or of LINK_HELLOs

	// Left are the BPF maps of a datapath to go on with, by name; nil: the maps are new. Load
	// takes them over, and writes to none of them but for Egress.
	Left map[string]*ebpf.Map

	// RefuseCounters is for tests: what loading the counters of losses ends with.
	RefuseCounters error
}

// Objects are the programs and BPF maps of a datapath.
type Objects struct {
	bpf.RpObjects
	Memory Memory

	// LostErr and FullErr say why the program could not be loaded that counts what rings of
	// devices, or queues of CPUs, drop. Without one the datapath copies as well, but for the
	// count.
	LostErr, FullErr error

	cookie uint64
}

// Load loads the programs. With an error nothing is left of them; it says what helps.
func Load(opt Options) (*Objects, error) {
	o := new(Objects)
	if err := o.load(opt); err != nil {
		o.Close()
		return nil, fmt.Errorf("load programs: %w", err)
	}
	return o, nil
}

func (o *Objects) load(opt Options) error {
	spec, err := bpf.LoadRp()
	if err != nil {
		return err
	}
	quiet := uint64(math.MaxUint64)
	if opt.Quiet >= 0 {
		quiet = uint64(opt.Quiet)
	}
	// A ring buffer that nobody reads takes one page.
	on := func(name string, read bool) uint8 {
		if read {
			return 1
		}
		spec.Maps[name].MaxEntries = uint32(os.Getpagesize())
		return 0
	}
	options := ebpf.CollectionOptions{MapReplacements: opt.Left}
	if opt.Left == nil {
		fans, err := ebpf.NewMap(spec.Maps[bpf.RpMapFanCpus])
		if err != nil {
			return fmt.Errorf("queues: %w", err)
		}
		defer fans.Close() // the objects have their own
		options.MapReplacements = map[string]*ebpf.Map{bpf.RpMapFanCpus: fans}
	}
	info, err := options.MapReplacements[bpf.RpMapFanCpus].Info()
	if err != nil {
		return fmt.Errorf("queues: %w", err)
	}
	fansID, ok := info.ID()
	if !ok {
		return errors.New("queues without id")
	}
	k0, k1 := Halves(opt.HandleKey)
	o.cookie = siphash.Hash(k0, k1, []byte("recirculation"))
	for name, value := range map[string]any{
		bpf.RpVarOwnAddr:        opt.Addr.Addr().As16(),
		bpf.RpVarOwnPort:        Port(opt.Addr.Port()),
		bpf.RpVarOwnIncarnation: opt.Incarnation,
		bpf.RpVarHandleKey:      [2]uint64{k0, k1},
		bpf.RpVarQuietNs:        quiet,
		bpf.RpVarOwnNetns:       opt.Netns,
		bpf.RpVarFanCpusId:      uint32(fansID),
		bpf.RpVarCacheOn:        on(bpf.RpMapCache, opt.Cache),
		bpf.RpVarHelloOn:        on(bpf.RpMapHellos, opt.Hello),
		bpf.RpVarRecircCookie:   o.cookie,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("option %s: %w", name, err)
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
		return explainLoad(err)
	}
	o.RpPrograms = bpf.RpPrograms{
		MdcsRpIn: needed.In, MdcsRpFan: needed.Fan, MdcsRpOwn: needed.Own, MdcsRpRecirc: needed.Recirc, MdcsRpOut: needed.Out,
	}
	o.RpMaps, o.RpVariables = needed.RpMaps, needed.RpVariables
	if o.LostErr, o.FullErr = opt.RefuseCounters, opt.RefuseCounters; opt.RefuseCounters == nil {
		o.loadCounters(spec)
	}
	if err := o.Memory.open(&o.RpObjects); err != nil {
		return err
	}
	o.SetEgress(0, opt.Egress)
	o.FillEgress(0)
	if opt.Left == nil {
		o.setLife(opt)
	}
	return nil
}

// setLife writes down whose datapath it is.
func (o *Objects) setLife(opt Options) {
	life := o.Memory.Lives.At(0)
	life.Incarnation = uint32(opt.Incarnation)
	life.HandleKey.K0, life.HandleKey.K1 = Halves(opt.HandleKey)
	life.Owner, life.Port = opt.Owner, Port(opt.Addr.Port())
	life.Addr.Word = Words(opt.Addr.Addr().As16())
}

// Close closes the programs and the BPF maps, and unmaps Memory.
func (o *Objects) Close() {
	o.Memory.close()
	_ = o.RpObjects.Close() // of file descriptors: nothing to do about it
}

// Cookie begins the frames on the recirculation pair. All processes that go on with a datapath
// have one cookie, which nobody else knows.
func (o *Objects) Cookie() uint64 { return o.cookie }

// loadCounters loads the programs that count what rings and queues drop.
func (o *Objects) loadCounters(spec *ebpf.CollectionSpec) {
	shared := ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
		bpf.RpMapTotals: o.Totals, bpf.RpMapDevices: o.Devices,
	}}
	var lost struct {
		Program *ebpf.Program `ebpf:"mdcs_rp_lost"`
	}
	if err := spec.LoadAndAssign(&lost, &shared); err != nil {
		o.LostErr = fmt.Errorf("it reads structures of the kernel, which must be described "+
			"(CONFIG_DEBUG_INFO_BTF, a readable /sys/kernel/btf/vmlinux) and not locked down (/sys/kernel/security/lockdown): %w", explainLoad(err))
	}
	var full struct {
		Program *ebpf.Program `ebpf:"mdcs_rp_full"`
	}
	o.FullErr = explainLoad(spec.LoadAndAssign(&full, &shared))
	o.MdcsRpLost, o.MdcsRpFull = lost.Program, full.Program
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

// BootTime returns when the clock of the programs, CLOCK_MONOTONIC, was zero, or a moment before:
// what the programs stamp is never in the future.
func BootTime() (boot time.Time, err error) {
	const tries = 8 // a busy machine may stop the process between both clocks
	best := time.Duration(math.MaxInt64)
	for range tries {
		var now unix.Timespec
		before := time.Now()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			return time.Time{}, fmt.Errorf("clock: %w", err)
		}
		if took := time.Since(before); took < best {
			best, boot = took, before.Add(-time.Duration(now.Nano()))
		}
	}
	return boot, nil
}

// SetValidUntil has the programs accept datagrams until a time on their clock.
func (o *Objects) SetValidUntil(sinceBoot time.Duration) {
	atomic.StoreUint64(&o.Memory.Lives.At(0).ValidUntil, uint64(sinceBoot))
}

// SetEgress sets the policer of all copies, which is element 0, or that of a site's share. A
// datagram between both words finds one with the rate of before.
func (o *Objects) SetEgress(element uint32, p datapath.Policer) {
	copies := &o.Memory.Egresses.At(element).Copies
	atomic.StoreUint64(&copies.Tolerance, p.Tolerance)
	atomic.StoreUint64(&copies.Rate, p.Rate)
}

// FillEgress fills the bucket of such a policer.
func (o *Objects) FillEgress(element uint32) {
	atomic.StoreUint64(&o.Memory.Egresses.At(element).Due, 0)
}

// ChargeEgress charges bytes of copies that user space sends to the bucket that the programs
// charge, at a time on their clock, and reports whether it had room for them.
func (o *Objects) ChargeEgress(sinceBoot time.Duration, bytes int) bool {
	all := o.Memory.Egresses.At(0)
	p := datapath.Policer{Rate: atomic.LoadUint64(&all.Copies.Rate), Tolerance: atomic.LoadUint64(&all.Copies.Tolerance)}
	now := uint64(sinceBoot)
	for {
		due := atomic.LoadUint64(&all.Due)
		if !p.Spares(due, now) {
			return false
		}
		if atomic.CompareAndSwapUint64(&all.Due, due, p.Charge(due, now, uint64(bytes))) {
			return true
		}
	}
}
