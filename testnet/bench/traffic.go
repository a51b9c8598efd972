// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/ethmcast/mdcs/testnet/bench/bpf"
	"github.com/ethmcast/mdcs/testnet/netns"
)

// traffic is generator and sink, which all lanes share: only one of them is measured
// at a time.
type traffic struct {
	objects  bpf.TrafficObjects
	slots    *ebpf.Memory
	seen     *ebpf.Memory
	attached []link.Link
	template frame
}

func newTraffic(run *netns.Run) (*traffic, error) {
	t := &traffic{template: honestFrame()}
	err := t.load()
	if err == nil {
		err = t.attach(run)
	}
	if err != nil {
		return nil, fmt.Errorf("load generator and sink: %w", errors.Join(err, t.close()))
	}
	return t, nil
}

func (t *traffic) load() error {
	spec, err := bpf.LoadTraffic()
	if err != nil {
		return err
	}
	err = spec.Variables[bpf.TrafficVarPublisherKey].Set(bpf.TrafficKey{
		K0: binary.LittleEndian.Uint64(publisherKey[:8]),
		K1: binary.LittleEndian.Uint64(publisherKey[8:]),
	})
	if err != nil {
		return err
	}
	if err := spec.LoadAndAssign(&t.objects, nil); err != nil {
		return err
	}
	if t.slots, err = t.objects.Slots.Memory(); err != nil {
		return err
	}
	if t.seen, err = t.objects.Seen.Memory(); err != nil {
		return err
	}
	if err := t.objects.Honest.Put(uint32(0), t.template.head()); err != nil {
		return err
	}
	for i, o := range honestObjects() {
		if err := t.objects.Objects.Put(uint32(i), o); err != nil {
			return err
		}
	}
	for i := range hostileHeads {
		if err := t.objects.Hostile.Put(uint32(i), hostileFrame(i).head()); err != nil {
			return err
		}
	}
	return nil
}

// attach puts the generator's programs at interfaces where nothing arrives. For a
// program that is attached nowhere, each run would change the kernel's dispatcher of
// XDP programs before and after, and wait for all CPUs to notice: 25 ms.
func (t *traffic) attach(run *netns.Run) error {
	ns, err := run.Namespace("idle")
	if err != nil {
		return err
	}
	if err := ns.Veth("a", ns, "b"); err != nil {
		return err
	}
	for name, p := range map[string]*ebpf.Program{"a": t.objects.BenchInject, "b": t.objects.BenchFlood} {
		l, err := attachXDP(ns, name, p)
		if err != nil {
			return err
		}
		t.attached = append(t.attached, l)
	}
	return nil
}

func (t *traffic) close() error {
	var errs []error
	for _, l := range t.attached {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, t.objects.Close())...)
}

// counters are those of generator and sink.
type counters struct{ injected, flooded, copies, echoes, invalid, leaked uint64 }

func (t *traffic) counters() (c counters, err error) {
	o := &t.objects
	for _, x := range []struct {
		from *ebpf.Variable
		to   *uint64
	}{
		{o.Injected, &c.injected}, {o.Flooded, &c.flooded}, {o.Copies, &c.copies},
		{o.Echoes, &c.echoes}, {o.Invalid, &c.invalid}, {o.Leaked, &c.leaked},
	} {
		if err := x.from.Get(x.to); err != nil {
			return c, fmt.Errorf("read counters: %w", err)
		}
	}
	return c, nil
}

func (t *traffic) injected() (n uint64, err error) {
	err = t.objects.Injected.Get(&n)
	return n, err
}

func (t *traffic) copies() (n uint64, err error) {
	err = t.objects.Copies.Get(&n)
	return n, err
}

// verify makes the sink check each copy, or not.
func (t *traffic) verify(on bool) error {
	value := uint32(0)
	if on {
		value = 1
	}
	return t.objects.Verify.Set(value)
}

// arrivals reads what became of n datagrams from number first on, at most slotCount.
func (t *traffic) arrivals(first uint64, n int) ([]arrival, error) {
	list := make([]arrival, n)
	var b [slotSize]byte
	for i := range list {
		at := int64((first+uint64(i))%slotCount) * slotSize
		if _, err := t.slots.ReadAt(b[:], at); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read slots: %w", err)
		}
		list[i] = arrival{
			injected: binary.NativeEndian.Uint64(b[:]),
			last:     binary.NativeEndian.Uint64(b[8:]),
			copies:   binary.NativeEndian.Uint64(b[16:]),
		}
	}
	return list, nil
}

// received reads how many copies each of the subscribers 1 to n got so far.
func (t *traffic) received(n int) ([]uint64, error) {
	b := make([]byte, 8*(n+1))
	if _, err := t.seen.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read copies by subscriber: %w", err)
	}
	list := make([]uint64, n)
	for i := range list {
		list[i] = binary.NativeEndian.Uint64(b[8*(i+1):])
	}
	return list, nil
}
