// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/ethmcast/mdcs/testnet/bench/bpf"
)

// bareSlice is the number of copies of one broadcast.
const bareSlice = 64

// devmapValue is struct bpf_devmap_val.
type devmapValue struct{ Ifindex, Program uint32 }

// bare copies by bare.bpf.c.
type bare struct {
	lane      *lane
	objects   bpf.BareObjects
	links     []link.Link
	rp0, near int // interface indexes
}

func newBare(l *lane) (subject, error) {
	b := &bare{lane: l}
	if err := b.open(); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func (b *bare) open() error {
	if err := b.lane.recirculate(); err != nil {
		return err
	}
	var err error
	if b.near, err = index(b.lane.rp, nearLink); err != nil {
		return err
	}
	if b.rp0, err = index(b.lane.rp, rpLink); err != nil {
		return err
	}
	spec, err := bpf.LoadBare()
	if err != nil {
		return err
	}
	if err := setVariables(spec, map[string]any{
		bpf.BareVarRecirculation: uint32(b.near),
		bpf.BareVarOwnPort:       ownPort(),
	}); err != nil {
		return err
	}
	if err := spec.LoadAndAssign(&b.objects, nil); err != nil {
		return err
	}
	for i := 1; i <= MaxSubscribers; i++ {
		if err := b.objects.Replicas.Put(uint32(i-1), replica(i)); err != nil {
			return err
		}
	}
	for name, p := range map[string]*ebpf.Program{rpLink: b.objects.BareIn, farLink: b.objects.BareRecirc} {
		l, err := attachXDP(b.lane.rp, name, p)
		if err != nil {
			return err
		}
		b.links = append(b.links, l)
	}
	return nil
}

// resize implements subject. The last slice comes first, so that one is complete
// before it is reached.
func (b *bare) resize(old, n int) error {
	unchanged := max(0, min(old, n)-1) / bareSlice
	for slice := (n - 1) / bareSlice; slice >= unchanged; slice-- {
		if err := b.setSlice(slice, n); err != nil {
			return err
		}
	}
	return nil
}

// setSlice makes a slice of n subscribers all together. Device maps look for
// interfaces in the namespace of the calling thread.
func (b *bare) setSlice(slice, n int) error {
	return b.lane.rp.Do(func() error {
		target, err := ebpf.NewMap(&ebpf.MapSpec{
			Type: ebpf.DevMap, KeySize: 4, ValueSize: 8, MaxEntries: bareSlice + 1,
		})
		if err != nil {
			return err
		}
		defer target.Close()
		out := devmapValue{uint32(b.rp0), uint32(b.objects.BareOut.FD())}
		rest := n - slice*bareSlice
		for i := range min(bareSlice, rest) {
			if err := target.Put(uint32(i), out); err != nil {
				return err
			}
		}
		if rest > bareSlice {
			out.Ifindex = uint32(b.near)
			if err := target.Put(uint32(bareSlice), out); err != nil {
				return err
			}
		}
		return b.objects.Targets.Put(uint32(slice), target)
	})
}

func (b *bare) close() error {
	var errs []error
	for _, l := range b.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, b.objects.Close())...)
}

// setVariables sets options of programs before they are loaded.
func setVariables(spec *ebpf.CollectionSpec, values map[string]any) error {
	for name, value := range values {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}
