// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// twoOfOneVersion returns two adverts of RP 5 with one epoch and one sequence.
func twoOfOneVersion(t *testing.T) [2]*Signed {
	var two [2]*Signed
	for i := range two {
		two[i] = advertOf(t, 5, 7, 1, func(a *Advert) { a.Links = []Link{{rp(1), uint32(1 + 4000*i), false}} })
	}
	return two
}

// take gives an RP an advert of RP 5, which no other RP of the test has a link to.
func (w *network) take(n int, s *Signed) {
	w.cores[n].LinkUp(w.now, rp(5))
	require.NoError(w.t, w.cores[n].Handle(w.now, rp(5), adverts(s)))
	w.perform(n)
}

func requireOneAdvert(t *testing.T, w *network, of int) {
	first := w.cores[1].entries[rp(of)].Signature
	for n := range w.cores {
		require.Equal(t, first, w.cores[n].entries[rp(of)].Signature, "rp %d", n)
	}
}

// An RP signs two adverts with one sequence, and tells one half of the mesh the one and the
// other half the other. All RPs keep the same advert, whichever came first.
func TestTwoAdvertsOfOneVersion(t *testing.T) {
	for first := range 2 {
		w := square(t)
		two := twoOfOneVersion(t)
		w.take(2, two[first])
		w.take(3, two[1-first])
		w.run(2 * OfferLater)
		requireOneAdvert(t, w, 5)
	}
}

// The halves keep the same advert, too, when nothing but a Digest tells one what the other has.
func TestTwoAdvertsMeet(t *testing.T) {
	for first := range 2 {
		w := newNetwork(t)
		two := twoOfOneVersion(t)
		for n := range 2 {
			w.start(n + 1)
			w.take(n+1, two[(first+n)%2])
		}
		w.run(time.Second)
		w.link(1, 2, 10*time.Millisecond)
		w.run(3 * time.Second)
		requireOneAdvert(t, w, 5)
	}
}

// An RP starts twice within a second, so that both lives have one epoch. It may publish when its
// neighbours have the incarnation of this life, not when they have an advert of the life before.
func TestTwoLivesOfOneEpoch(t *testing.T) {
	w := square(t)
	for life := 2; life <= 6; life++ { // the order of two adverts is by chance
		w.kill(4)
		w.lives[4]++
		cfg := config(4, w.lives[4])
		cfg.Epoch = config(4, 1).Epoch
		w.cores[4] = New(w.now, cfg)
		w.connect(2, 4)
		w.connect(3, 4)
		w.forget()
		for end := w.now.Add(AckDelay); len(took[MayPublish](w, 4)) == 0; w.run(step) {
			require.True(t, w.now.Before(end), "life %d", life)
		}
		for _, n := range []int{2, 3} {
			require.Equal(t, cfg.Incarnation, w.cores[n].entries[rp(4)].Advert.Incarnation, "life %d at rp %d", life, n)
		}
		w.run(6 * time.Second)
	}
}

// Two adverts whose sums are equal with one salt have other sums with the next salts: a Digest that
// an RP does not see a difference in is followed by a Digest that shows it.
func TestSaltOfSums(t *testing.T) {
	const salts = 64
	seen := make(map[uint32]Version)
	for i, found := uint64(1), 0; found < 8; i++ {
		v := Version{Origin: 5, Epoch: 7, Sequence: 1}
		binary.BigEndian.PutUint64(v.Hash[:], mix(i))
		other, known := seen[v.Sum(0)]
		seen[v.Sum(0)] = v
		if !known {
			continue
		}
		found++
		require.Equal(t, other.Sum(0), v.Sum(0))
		for salt := uint64(1); salt <= salts; salt++ {
			require.NotEqual(t, other.Sum(salt), v.Sum(salt))
		}
	}

	w := square(t)
	w.run(2 * DigestDelay)
	drawn := make(map[uint64]bool)
	for n := range w.cores {
		for m := range w.cores {
			for _, d := range sent[*Digest](w, n, m) {
				require.False(t, drawn[d.Salt], "a salt twice")
				drawn[d.Salt] = true
			}
		}
	}
	require.GreaterOrEqual(t, len(drawn), 8)
}
