// SPDX-License-Identifier: LGPL-3.0-or-later

package objects

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// Reset makes the BPF maps what they are after Load with these options. Tests spare the verifier
// with it, which takes some tenths of a second for each Load. No program may be attached. The queues of
// the fan-out and the device maps of slices stay until StartFanout and InstallTargets put others
// in their place.
func (o *Objects) Reset(opt Options) error {
	maps := reflect.ValueOf(o.RpMaps)
	for i := range maps.NumField() {
		m := maps.Field(i).Interface().(*ebpf.Map)
		var err error
		switch m.Type() {
		case ebpf.Hash:
			err = clearHash(m)
		case ebpf.Array:
			err = clearArray(m)
		case ebpf.PerCPUArray:
			err = clearPerCPU(m)
		case ebpf.RingBuf:
			err = drain(m)
		}
		if err != nil {
			return fmt.Errorf("reset %s: %w", maps.Type().Field(i).Tag.Get("ebpf"), err)
		}
	}
	o.SetEgress(0, opt.Egress)
	o.FillEgress(0)
	o.setLife(opt)
	return nil
}

func clearHash(m *ebpf.Map) error {
	var keys [][]byte
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	it := m.Iterate()
	for it.Next(&key, &value) {
		keys = append(keys, append([]byte(nil), key...))
	}
	errs := []error{it.Err()}
	for _, key := range keys {
		errs = append(errs, m.Delete(key))
	}
	return errors.Join(errs...)
}

func clearArray(m *ebpf.Map) error {
	if m.Flags()&unix.BPF_F_MMAPABLE != 0 {
		bytes, err := unix.Mmap(m.FD(), 0, int(m.ValueSize()*m.MaxEntries()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		clear(bytes)
		return unix.Munmap(bytes)
	}
	keys := make([]uint32, m.MaxEntries())
	for i := range keys {
		keys[i] = uint32(i)
	}
	value := reflect.ArrayOf(int(m.ValueSize()), reflect.TypeFor[byte]())
	_, err := m.BatchUpdate(keys, reflect.MakeSlice(reflect.SliceOf(value), len(keys), len(keys)).Interface(), nil)
	return err
}

func clearPerCPU(m *ebpf.Map) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	values := make([][]byte, cpus)
	for i := range values {
		values[i] = make([]byte, m.ValueSize())
	}
	for key := range m.MaxEntries() {
		if err := m.Put(key, values); err != nil {
			return err
		}
	}
	return nil
}

func drain(m *ebpf.Map) error {
	rd, err := ringbuf.NewReader(m)
	if err != nil {
		return err
	}
	defer rd.Close()
	rd.SetDeadline(time.Now()) // reads do not wait
	for {
		if _, err := rd.Read(); errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
