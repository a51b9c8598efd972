// SPDX-License-Identifier: LGPL-3.0-or-later

package cache

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// A deque is a slice, wherever something is put into it.
func TestDequeLikeASlice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var d deque[int]
		var want []int
		for v := range rapid.IntRange(1, 200).Draw(t, "steps") {
			if len(want) > 0 && rapid.IntRange(0, 2).Draw(t, "step") == 0 {
				require.Equal(t, want[0], d.pop())
				want = want[1:]
				continue
			}
			i := rapid.IntRange(0, len(want)).Draw(t, "at")
			d.insert(i, v)
			want = slices.Insert(want, i, v)
		}
		require.Equal(t, len(want), d.n)
		for i := range want {
			require.Equal(t, want[i], *d.at(i))
		}
	})
}

// Near an end few elements move: a late datagram is put near the front of thousands.
func BenchmarkInsertNearTheFront(b *testing.B) {
	var d deque[int]
	for v := range 20_000 {
		d.push(v)
	}
	for b.Loop() {
		d.insert(10, 0)
		d.pop()
	}
}
