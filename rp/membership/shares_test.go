// SPDX-License-Identifier: LGPL-3.0-or-later

package membership

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// at returns an address in a /64 of a /48 of a /32.
func at(net32, net48 uint16, net64 int) netip.Addr {
	var b [16]byte
	b[0] = 0x20
	binary.BigEndian.PutUint16(b[2:], net32)
	binary.BigEndian.PutUint16(b[4:], net48)
	binary.BigEndian.PutUint16(b[6:], uint16(net64))
	b[15] = 1
	return netip.AddrFrom16(b)
}

func TestRefusalsOfSharesNameTheLimit(t *testing.T) {
	a, b, c, far := at(1, 1, 1), at(1, 1, 2), at(1, 2, 1), at(2, 1, 1)
	for _, test := range []struct {
		rates Rates
		taken []netip.Addr // at once
		next  netip.Addr
		want  string
	}{
		{Rates{}, []netip.Addr{a, a, a, a, a, a}, a, ""},
		{Rates{Per64: 2}, []netip.Addr{a, a}, a, "full: 2 per second of 2000:1:1:1::/64"},
		{Rates{Per64: 2}, []netip.Addr{a, a}, b, ""},
		{Rates{Per48: 3}, []netip.Addr{a, a}, a, "full: 3 per second of 2000:1:1::/48, and 2000:1:1:1::/64 has its share"},
		{Rates{Per48: 3}, []netip.Addr{a, a}, b, ""},
		{Rates{Per48: 3}, []netip.Addr{a, a, b}, at(1, 1, 3), "full: 3 per second of 2000:1:1::/48"},
		{Rates{Per48: 3}, []netip.Addr{a, a, b}, c, ""},
		{Rates{All: 4}, []netip.Addr{a, a, a}, a, "full: 4 per second, and 2000:1:1::/48 has its share"},
		{Rates{All: 4}, []netip.Addr{a, a, a}, far, ""},
		{Rates{All: 4}, []netip.Addr{a, a, a, far}, at(3, 1, 1), "full: 4 per second"},
	} {
		s := NewShares(test.rates, time.Second)
		for _, addr := range test.taken {
			require.NoError(t, s.Take(t0, addr, 1), "%v", test)
		}
		err := s.Take(t0, test.next, 1)
		if test.want == "" {
			require.NoError(t, err, "%v", test)
			continue
		}
		require.EqualError(t, err, test.want, "%v", test)
		require.EqualError(t, s.Take(t0, test.next, 1), test.want, "a refusal costs nothing")
		require.NoError(t, s.Take(t0.Add(3*time.Second), test.next, 1), "%v", test)
	}
}

// What anybody takes in the long run is the rate, not more and not much less.
func TestSharesHoldTheirRates(t *testing.T) {
	for _, test := range []struct {
		rates Rates
		from  func(i int) netip.Addr
		want  float64 // per second
	}{
		{Rates{Per64: 16}, func(int) netip.Addr { return at(1, 1, 1) }, 16},
		{Rates{Per48: 100}, func(i int) netip.Addr { return at(1, 1, i%100) }, 99},
		{Rates{All: 1000, Per48: 256, Per64: 16}, func(i int) netip.Addr { return at(1, 1, i%100) }, 253},
		{Rates{All: 1000}, func(i int) netip.Addr { return at(1, uint16(i%100), i%7) }, 797}, // of one /32
		{Rates{All: 1000}, func(i int) netip.Addr { return at(uint16(i%100), 1, 1) }, 997},
	} {
		s := NewShares(test.rates, time.Second)
		taken := 0
		for i := range 30_000 { // 10 s
			if s.Take(t0.Add(time.Duration(i)*time.Second/3000), test.from(i), 1) == nil && i >= 15_000 {
				taken++
			}
		}
		require.InEpsilon(t, test.want, float64(taken)/5, 0.03, "%v", test.rates)
		require.Error(t, s.Take(t0.Add(10*time.Second), test.from(0), 1))
		s.drop(t0.Add(time.Minute))
		require.Empty(t, s.levels, "prefixes are forgotten")
	}
}

// Whoever tries all the time, a honest peer that tries once a second gets in.
func TestSharesLeaveRoomForOthers(t *testing.T) {
	honest := at(0xb, 0xb, 1)
	for name, attacker := range map[string]func(i int) netip.Addr{
		"a /64":                   func(int) netip.Addr { return at(0xa, 1, 1) },
		"a /48":                   func(i int) netip.Addr { return at(0xa, 1, i) },
		"a /32":                   func(i int) netip.Addr { return at(0xa, uint16(i), i/0x10000) },
		"20 /48s of the same /32": func(i int) netip.Addr { return at(0xb, uint16(0xc+i%20), i) },
		"10 /32s":                 func(i int) netip.Addr { return at(uint16(0xa00+i%10), uint16(i), 1) },
	} {
		t.Run(name, func(t *testing.T) {
			s := NewShares(Rates{All: 1000, Per48: 256, Per64: 16}, time.Second)
			for i := range 200_000 { // 20 s
				now := t0.Add(time.Duration(i) * 100 * time.Microsecond)
				s.Take(now, attacker(i), 1)
				if i%10_000 == 9_999 {
					require.NoError(t, s.Take(now, honest, 1), "after %v", now.Sub(t0))
				}
			}
			require.Less(t, len(s.levels), 20_000)
		})
	}
}

// Units of any number pass while there is room, and are paid for later.
func TestSharesOfBytes(t *testing.T) {
	s := NewShares(Rates{Per64: 1000}, 10*time.Second)
	a := at(1, 1, 1)
	require.NoError(t, s.Take(t0, a, 20_000))
	require.Error(t, s.Room(t0.Add(5*time.Second), a))
	require.NoError(t, s.Room(t0.Add(8*time.Second), a), "after 10 s times ln 2")
	s.SetRates(Rates{Per64: 100})
	require.Error(t, s.Room(t0.Add(8*time.Second), a))
}

// A clock that goes back gives nothing and takes nothing.
func TestSharesOfAClockThatGoesBack(t *testing.T) {
	s := NewShares(Rates{Per64: 2}, time.Second)
	a := at(1, 1, 1)
	require.NoError(t, s.Take(t0, a, 1))
	require.NoError(t, s.Take(t0.Add(-time.Hour), a, 1))
	require.Error(t, s.Take(t0.Add(-time.Hour), a, 1))
	require.NoError(t, s.Take(t0.Add(-time.Hour+time.Second), a, 1))
}

func BenchmarkShares(b *testing.B) {
	s := NewShares(Rates{All: 1000, Per48: 256, Per64: 16}, time.Second)
	for i := range b.N {
		s.Take(t0.Add(time.Duration(i)*time.Microsecond), at(1, uint16(i), i/7), 1)
	}
}
