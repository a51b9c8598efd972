// SPDX-License-Identifier: LGPL-3.0-or-later

package objects

import (
	"errors"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/ethmcast/mdcs/bpf"
)

// InstallTargets makes device maps for slices and installs them. Any goroutine may call it. With
// an error none is left.
func (o *Objects) InstallTargets(slices []uint32) (_ []*ebpf.Map, err error) {
	spec, err := bpf.LoadRp()
	if err != nil {
		return nil, err
	}
	inner := spec.Maps[bpf.RpMapTargets].InnerMap
	inner.Name = "target"
	maps, values := make([]*ebpf.Map, len(slices)), make([]uint32, len(slices))
	defer func() {
		if err != nil {
			closeAll(maps)
		}
	}()
	for i := range maps {
		if maps[i], err = ebpf.NewMap(inner); err != nil {
			return nil, err
		}
		values[i] = uint32(maps[i].FD())
	}
	if err := install(o.Targets, slices, values); err != nil {
		return nil, err
	}
	return maps, nil
}

func closeAll(maps []*ebpf.Map) {
	for _, m := range maps {
		if m != nil {
			m.Close()
		}
	}
}

// installing is how many updates of the map of maps wait at a time.
const installing = 16

// install puts maps into a map of maps. Each update waits until the kernel's readers of the old entry are gone, before
// Linux 6.8 each element of a batch does, and before 5.18 there are no batches. So several wait together for the same
// readers: in turn, 64 of them would take a second.
func install(outer *ebpf.Map, keys, values []uint32) error {
	part := (len(keys) + installing - 1) / installing
	var parts sync.WaitGroup
	var errs [installing]error
	for i := range errs {
		from, to := min(i*part, len(keys)), min((i+1)*part, len(keys))
		parts.Go(func() { errs[i] = installPart(outer, keys[from:to], values[from:to]) })
	}
	parts.Wait()
	return errors.Join(errs[:]...)
}

func installPart(outer *ebpf.Map, keys, values []uint32) error {
	if len(keys) == 0 {
		return nil
	}
	if _, err := outer.BatchUpdate(keys, values, nil); err == nil || !errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	for i := range keys {
		if err := outer.Put(keys[i], values[i]); err != nil {
			return err
		}
	}
	return nil
}
