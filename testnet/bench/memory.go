// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
)

// footprint is what a subject occupies.
type footprint struct {
	heap  int64               // bytes of Go's heap
	maps  map[ebpf.MapID]bool // of the kernel, without the maps in them
	fixed int64               // bytes of both without subscribers
}

// start calls f, which starts the subject.
func (p *footprint) start(f func() error) error {
	p.maps = make(map[ebpf.MapID]bool)
	if err := p.add(f); err != nil {
		return err
	}
	maps, err := p.mapBytes()
	p.fixed = p.heap + maps
	return err
}

// add calls f and adds what it leaves behind.
func (p *footprint) add(f func() error) error {
	mapsBefore, err := openMaps()
	if err != nil {
		return err
	}
	heapBefore := heap()
	if err := f(); err != nil {
		return err
	}
	p.heap += heap() - heapBefore
	maps, err := openMaps()
	if err != nil {
		return err
	}
	for id := range maps {
		if !mapsBefore[id] {
			p.maps[id] = true
		}
	}
	return nil
}

// mapBytes is the size of the maps with the maps in them.
func (p *footprint) mapBytes() (bytes int64, err error) {
	sizes := make(map[ebpf.MapID]uint64)
	for id := range p.maps {
		if err := mapSizes(id, sizes); err != nil {
			return 0, fmt.Errorf("memory of map %d: %w", id, err)
		}
	}
	for _, size := range sizes {
		bytes += int64(size)
	}
	return bytes, nil
}

// memory notes what an engine of the replication point occupies.
func (b *bench) memory(l *lane) error {
	if _, ok := l.subject.(*engine); !ok {
		return nil
	}
	p := &l.footprint
	maps, err := p.mapBytes()
	if err != nil {
		return fmt.Errorf("%s: %w", l.name, err)
	}
	b.result.Memory = append(b.result.Memory, Memory{
		Engine: l.name, Subscribers: l.n, Maps: maps, Heap: p.heap, Fixed: p.fixed,
		PerSubscriber: Figure(float64(maps+p.heap-p.fixed) / float64(l.n)),
	})
	return nil
}

// heap is what is in use of Go's heap, in bytes.
func heap() int64 {
	runtime.GC()
	runtime.GC() // what the first one only marked for its finalizer
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// openMaps are the maps that the process holds by file descriptors.
func openMaps() (map[ebpf.MapID]bool, error) {
	const dir = "/proc/self/fdinfo"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list maps: %w", err)
	}
	maps := make(map[ebpf.MapID]bool)
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed meanwhile
		} else if err != nil {
			return nil, fmt.Errorf("list maps: %w", err)
		}
		if id, ok := parseMapID(string(text)); ok {
			maps[id] = true
		}
	}
	return maps, nil
}

// parseMapID finds the id in the information about a file descriptor.
func parseMapID(text string) (ebpf.MapID, bool) {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, "map_id:"); ok {
			id, err := strconv.ParseUint(strings.TrimSpace(v), 10, 32)
			return ebpf.MapID(id), err == nil
		}
	}
	return 0, false
}

// mapSizes adds what the kernel says that a map occupies, in bytes, and the maps in
// it. A map that is freed already has none.
func mapSizes(id ebpf.MapID, sizes map[ebpf.MapID]uint64) error {
	if _, ok := sizes[id]; ok {
		return nil
	}
	m, err := ebpf.NewMapFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return err
	}
	size, ok := info.Memlock()
	if !ok {
		return errors.New("the kernel does not tell")
	}
	sizes[id] = size
	if m.Type() != ebpf.ArrayOfMaps && m.Type() != ebpf.HashOfMaps {
		return nil
	}
	var key, inner uint32
	all := m.Iterate()
	for all.Next(&key, &inner) {
		if err := mapSizes(ebpf.MapID(inner), sizes); err != nil {
			return err
		}
	}
	return all.Err()
}
