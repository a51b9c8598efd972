// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// walker reads a chain from the programs' tables as a datagram does.
type walker struct {
	e *Engine
	t rapid.TB
}

// from returns the sessions that a datagram with a reference still reaches.
func (w *walker) from(ref uint64) (reached []uint32) {
	for steps := 0; ref&0xffff != 0; steps++ {
		if steps > maxSlices {
			w.t.Fatal("the chain has no end")
		}
		index := uint32(ref & 0xffff)
		if index < firstAnchor {
			reached = append(reached, w.slice(index, uint16(ref>>16))...)
		}
		ref = atomic.LoadUint64(w.e.objects.Memory.Nexts.At(index)) & 0xffffffff
	}
	return reached
}

// slice returns the sessions of a slice in the order of its copies: the n-th copy on
// a device is the replica that the cursor of the device finds.
func (w *walker) slice(index uint32, generation uint16) (reached []uint32) {
	var s bpf.RpSlice
	if err := w.e.objects.Slices.Lookup(index, &s); err != nil {
		w.t.Fatal(err)
	}
	if s.Generation != generation {
		w.t.Fatalf("slice %d has generation %d, want %d", index, s.Generation, generation)
	}
	var slots, copies int
	var cursor [MaxDevices]int
	var target [2]uint32
	for w.e.pool.maps[index].Lookup(uint32(slots), &target) == nil {
		slots++
	}
	for number := range cursor {
		end := int(s.Len)
		if number+1 < MaxDevices {
			end = int(s.First[number+1])
		}
		for cursor[number] = int(s.First[number]); cursor[number] < end; cursor[number]++ {
			reached = append(reached, s.Replicas[cursor[number]].Session)
			copies++
		}
	}
	if slots != copies+int(s.Chained) {
		w.t.Fatalf("slice %d has %d slots for %d copies, chained %d", index, slots, copies, s.Chained)
	}
	if next := atomic.LoadUint64(w.e.objects.Memory.Nexts.At(index)); next != 0 && s.Chained == 0 {
		w.t.Fatalf("slice %d leads nowhere, but %x should follow", index, next)
	}
	return reached
}

// Whoever stays gets each datagram once, wherever it is in the chain when others
// join and leave; whoever is there when it enters the chain gets it, and nobody else.
func TestXDPChainProperty(t *testing.T) {
	e := newBare(t, datapath.Config{Incarnation: 1})
	// The loopback interface stands for all devices: nothing is sent.
	e.recirc = &recirculation{in: 1}
	for i := range 3 {
		e.devices[i] = &device{name: "lo", index: 1}
	}
	t.Cleanup(func() { e.devices, e.recirc = [MaxDevices]*device{}, nil }) // before shut

	rapid.Check(t, func(t *rapid.T) {
		e.pool.expire(time.Now().Add(quarantine)) // of the check before
		c := &chain{e: e, anchor: firstAnchor + 1, at: make(map[uint32]*slice)}
		if rapid.Bool().Draw(t, "leads on") {
			c.end = firstAnchor // an empty chain
		}
		w := &walker{e, t}
		have := make(map[uint32]member)
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			before := make(map[uint32]bool)
			type flight struct {
				seen []uint32
				at   uint32
			}
			var flights []flight
			var seen []uint32
			for _, s := range c.slices {
				seen = append(seen, w.slice(s.index, s.generation)...)
				flights = append(flights, flight{slices.Clone(seen), s.index})
			}
			for index := range have {
				before[index] = true
			}

			some := make(map[uint32]*member)
			for _, index := range rapid.SliceOfN(rapid.Uint32Range(1, 90), 0, 40).Draw(t, "who") {
				if rapid.Bool().Draw(t, "there") {
					s := &session{Session: datapath.Session{Index: index, Addr: netip.MustParseAddrPort("[::1]:1")}, state: new(sessionState)}
					m := member{session: s, hop: nextHop{device: rapid.IntRange(0, 2).Draw(t, "device")}}
					have[index], some[index] = m, &m
				} else {
					delete(have, index)
					some[index] = nil
				}
			}
			var want []uint32
			for index := range have {
				want = append(want, index)
			}
			slices.Sort(want)
			require.NoError(t, c.change(some, 0))
			require.Equal(t, len(have), len(c.at))
			for index, s := range c.at {
				require.Contains(t, c.slices, s)
				require.Contains(t, s.members, have[index])
			}

			got := w.from(uint64(c.anchor))
			slices.Sort(got)
			require.Equal(t, want, got, "who enters now")
			for _, f := range flights {
				got := append(f.seen, w.from(atomic.LoadUint64(e.objects.Memory.Nexts.At(f.at))&0xffffffff)...)
				slices.Sort(got)
				require.Equal(t, len(got), len(slices.Compact(slices.Clone(got))), "twice in %v", got)
				for index := range before {
					if _, stays := have[index]; stays {
						require.Contains(t, got, index, "it stayed")
					}
				}
			}
			require.LessOrEqual(t, len(c.slices), 2*(len(have)/sliceSize+2))
		}
		nobody := make(map[uint32]*member)
		for index := range have {
			nobody[index] = nil
		}
		require.NoError(t, c.change(nobody, 0))
		require.Empty(t, c.slices)
	})
}
