// SPDX-License-Identifier: LGPL-3.0-or-later

package fanouttest

import (
	"slices"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
)

// Reader reads BPF maps as the programs do.
type Reader interface {
	Next(index uint32) *uint64
	Slice(index uint32) (bpf.RpSlice, error)

	// Slots returns how many slots the device map of a slice has, from the first on.
	Slots(slice uint32) int
}

// Walker reads a chain as a datagram does. What it finds wrong fails the test.
type Walker struct {
	Reader
	T rapid.TB
}

// From returns the sessions that a datagram with a reference still reaches, in the order of copies.
func (w *Walker) From(ref uint64) (reached []ids.Session) {
	for steps := 0; ref&0xffff != 0; steps++ {
		if steps > fanout.MaxSlices {
			w.T.Fatal("the chain has no end")
		}
		index := uint32(ref & 0xffff)
		if index < fanout.FirstAnchor {
			reached = append(reached, w.FromSlice(index, uint16(ref>>16))...)
		}
		ref = w.After(index)
	}
	return reached
}

// After returns the reference that follows a slice or an anchor.
func (w *Walker) After(index uint32) uint64 { return atomic.LoadUint64(w.Next(index)) & 0xffffffff }

// FromSlice returns the sessions of a slice in the order of its copies: the n-th copy on a device
// is the replica that the cursor of the device finds.
func (w *Walker) FromSlice(index uint32, generation uint16) (reached []ids.Session) {
	s, err := w.Slice(index)
	if err != nil {
		w.T.Fatal(err)
	}
	if s.Generation != generation {
		w.T.Fatalf("slice %d has generation %d, want %d", index, s.Generation, generation)
	}
	copies := 0
	var cursor [fanout.MaxDevices]int
	for number := range cursor {
		end := int(s.Len)
		if number+1 < fanout.MaxDevices {
			end = int(s.First[number+1])
		}
		for cursor[number] = int(s.First[number]); cursor[number] < end; cursor[number]++ {
			reached = append(reached, ids.Session(s.Replicas[cursor[number]].Session))
			copies++
		}
	}
	if slots := w.Slots(index); slots != copies+int(s.Chained) {
		w.T.Fatalf("slice %d has %d slots for %d copies, chained %d", index, slots, copies, s.Chained)
	}
	if next := atomic.LoadUint64(w.Next(index)); next != 0 && s.Chained == 0 {
		w.T.Fatalf("slice %d leads nowhere, but %x should follow", index, next)
	}
	return reached
}

// CheckChains requires of a datagram, wherever it is in a chain when receivers join and leave: each
// receiver that stays gets it once. A datagram that enters the chain then reaches the receivers of
// then, and no other. expire ends all quarantines.
func CheckChains(t *testing.T, f *fanout.Fanout, maps Reader, expire func()) {
	rapid.Check(t, func(t *rapid.T) {
		expire() // of the check before
		w := &Walker{maps, t}
		var end *fanout.Chain // an empty chain
		var err error
		if rapid.Bool().Draw(t, "leads on") {
			end, err = f.NewChain(nil)
			require.NoError(t, err)
			defer end.GiveBack()
		}
		c, err := f.NewChain(end)
		require.NoError(t, err)
		have := make(map[ids.Session]fanout.Member)
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			before := make(map[ids.Session]bool)
			type flight struct {
				seen []ids.Session
				at   uint32
			}
			var flights []flight
			var seen []ids.Session
			for _, s := range c.Slices() {
				seen = append(seen, w.FromSlice(s.Index(), s.Generation())...)
				flights = append(flights, flight{slices.Clone(seen), s.Index()})
			}
			for index := range have {
				before[index] = true
			}

			some := make(map[ids.Session]*fanout.Member)
			for _, n := range rapid.SliceOfN(rapid.Uint32Range(1, 90), 0, 40).Draw(t, "who") {
				index := ids.Session(n)
				if rapid.Bool().Draw(t, "there") {
					m := fanout.Member{To: &Receiver{Index: index}, Hop: fanout.Hop{Device: rapid.IntRange(0, 2).Draw(t, "device")}}
					have[index], some[index] = m, &m
				} else {
					delete(have, index)
					some[index] = nil
				}
			}
			var want []ids.Session
			for index := range have {
				want = append(want, index)
			}
			slices.Sort(want)
			require.NoError(t, c.Change(some, 0))
			require.Equal(t, len(have), c.Len())
			for index := range c.Sessions() {
				require.Contains(t, c.Slices(), c.SliceOf(index))
				require.Contains(t, c.SliceOf(index).Members(), have[index])
			}

			got := w.From(uint64(c.Anchor()))
			slices.Sort(got)
			require.Equal(t, want, got, "who enters now")
			for _, fl := range flights {
				got := append(fl.seen, w.From(w.After(fl.at))...)
				slices.Sort(got)
				require.Equal(t, len(got), len(slices.Compact(slices.Clone(got))), "twice in %v", got)
				for index := range before {
					if _, stays := have[index]; stays {
						require.Contains(t, got, index, "it stayed")
					}
				}
			}
			require.LessOrEqual(t, len(c.Slices()), 2*(len(have)/fanout.SliceSize+2))
		}
		nobody := make(map[ids.Session]*fanout.Member)
		for index := range have {
			nobody[index] = nil
		}
		require.NoError(t, c.Change(nobody, 0))
		require.Empty(t, c.Slices())
		c.Retire()
	})
}
