// SPDX-License-Identifier: LGPL-3.0-or-later

package fanout

import (
	"fmt"
	"sync/atomic"

	"github.com/ethmcast/mdcs/bpf"
)

// AdoptEchoes takes over the ECHOs of another process. Each is written again with the first
// SetEcho.
func (f *Fanout) AdoptEchoes() error {
	sessions, err := f.kernel.Echoes()
	if err != nil {
		return fmt.Errorf("echoes: %w", err)
	}
	for _, session := range sessions {
		f.echoes[session] = Member{} // which is unlike any
	}
	return nil
}

// AdoptAnchors takes over the anchors of another process, of which streams have some. It returns
// the anchors that frames may still come by: RetireAnchors is to get them when streams have others.
// All others are free: they lead nowhere, and nothing leads to them.
func (f *Fanout) AdoptAnchors(streams []uint32) (busy []uint32) {
	used := make(map[uint32]bool)
	for i := range f.anchors.end {
		if ref := atomic.LoadUint64(f.kernel.Next(i)); ref != 0 {
			used[i], used[uint32(ref&0xffff)] = true, true
		}
	}
	for _, anchor := range streams {
		used[anchor] = true
	}
	for anchor := f.anchors.next; anchor < f.anchors.end; anchor++ {
		if used[anchor] {
			busy = append(busy, anchor)
		} else {
			f.anchors.GiveBack(anchor)
		}
	}
	f.anchors.next = f.anchors.end
	return busy
}

// RetireAnchors begins the quarantine of anchors that no stream has any more.
func (f *Fanout) RetireAnchors(anchors []uint32) {
	for _, anchor := range anchors {
		f.anchors.Retire(anchor, f.now())
	}
}

// AdoptSlices takes over the indexes of slices of another process. Those that streams go by, from
// some anchors on, stay until LetGo. Frames may be in each other one, too: they are as if retired
// just now.
func (f *Fanout) AdoptSlices(anchors []uint32) error {
	used := f.reached(anchors)
	generations, last := make([]uint16, MaxSlices), 0
	for i := 1; i < MaxSlices; i++ {
		old, err := f.kernel.Slice(uint32(i))
		if err != nil {
			return fmt.Errorf("slice %d: %w", i, err)
		}
		if generations[i] = old.Generation; old.Generation != 0 {
			last = i
		}
	}
	f.left = make(map[uint32]*Slice)
	for i := uint32(1); i <= uint32(last); i++ {
		f.maps, f.slots = append(f.maps, nil), append(f.slots, 0)
		f.generations = append(f.generations, generations[i])
		if s := (&Slice{index: i, generation: generations[i]}); used[i] {
			f.left[i] = s
		} else {
			f.Retire(s)
		}
	}
	return nil
}

// LetGo takes back the slices that were left, unless streams still go by them, from some anchors
// on.
func (f *Fanout) LetGo(anchors []uint32) {
	used := f.reached(anchors)
	for index, s := range f.left {
		if !used[index] {
			f.Retire(s)
			delete(f.left, index)
		}
	}
}

// Left returns how many slices of another process streams still go by.
func (f *Fanout) Left() int { return len(f.left) }

// LeftReplicas calls do with the copies of the slices of another process that streams still go by.
func (f *Fanout) LeftReplicas(do func(*bpf.RpReplica)) error {
	for index := range f.left {
		old, err := f.kernel.Slice(index)
		if err != nil {
			return fmt.Errorf("slice %d: %w", index, err)
		}
		for i := range old.Replicas[:min(old.Len, SliceSize)] {
			do(&old.Replicas[i])
		}
	}
	return nil
}

// reached returns the slices that frames can still come to from some anchors.
func (f *Fanout) reached(anchors []uint32) map[uint32]bool {
	slices := make(map[uint32]bool)
	seen := make(map[uint32]bool) // groups' anchors
	for _, anchor := range anchors {
		index := anchor
		for {
			if index = uint32(atomic.LoadUint64(f.kernel.Next(index)) & 0xffff); index == 0 || seen[index] || slices[index] {
				break
			}
			if index < MaxSlices {
				slices[index] = true
			} else {
				seen[index] = true
			}
		}
	}
	return slices
}
