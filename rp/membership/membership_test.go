// SPDX-License-Identifier: LGPL-3.0-or-later

package membership

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
)

var t0 = time.Unix(1_000_000, 0)

func seeded() *rand.ChaCha8 { return rand.NewChaCha8([32]byte{7}) }

func TestIndexesAreFresh(t *testing.T) {
	// 0 is no index, and the second 1 is in use already.
	table := New(Limits{}, bytes.NewReader([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2}))
	addr := netip.MustParseAddr("2001:db8::1")
	first, err := table.Reserve(addr)
	require.NoError(t, err)
	second, err := table.Link()
	require.NoError(t, err)
	require.Equal(t, []ids.Session{1, 2}, []ids.Session{first, second})
	_, err = table.Reserve(addr)
	require.ErrorContains(t, err, "no random session index")
}

func TestRefusalsNameTheLimit(t *testing.T) {
	table := New(Limits{Sessions: 5, Per64: 2, Per48: 3}, seeded())
	reserve := func(addr string) error {
		_, err := table.Reserve(netip.MustParseAddr(addr))
		return err
	}
	require.NoError(t, reserve("2001:db8:1:1::1"))
	require.NoError(t, reserve("2001:db8:1:1::2"))
	require.EqualError(t, reserve("2001:db8:1:1::3"), "full: 2 sessions of 2001:db8:1:1::/64")
	require.NoError(t, reserve("2001:db8:1:2::1"))
	require.EqualError(t, reserve("2001:db8:1:3::1"), "full: 3 sessions of 2001:db8:1::/48")
	require.NoError(t, reserve("2001:db8:2::1"))
	require.NoError(t, reserve("fe80::1%eth0"))
	require.EqualError(t, reserve("2001:db8:3::1"), "full: 5 sessions")
	_, err := table.Link() // counts for no limit
	require.NoError(t, err)
}

func TestProbesAreLimitedPerWindow(t *testing.T) {
	table := New(Limits{Probes: 3, ProbeWindow: 10 * time.Second}, seeded())
	a, b, other := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8:0:1::1")
	for _, step := range []struct {
		after time.Duration
		addr  netip.Addr
		ok    bool
	}{
		{0, a, true},
		{time.Second, b, true},
		{2 * time.Second, a, true},
		{3 * time.Second, b, false},
		{3 * time.Second, other, true},
		{9 * time.Second, a, false},
		{10 * time.Second, a, true}, // a new window
	} {
		err := table.Probe(t0.Add(step.after), step.addr)
		if step.ok {
			require.NoError(t, err, "%v", step)
		} else {
			require.EqualError(t, err, "full: 3 probes to 2001:db8::/64 within 10s", "%v", step)
		}
	}
	require.NoError(t, table.Probe(t0.Add(time.Hour), a))
	require.Len(t, table.probes, 1, "old counts are forgotten")
	require.NoError(t, New(Limits{}, seeded()).Probe(t0, a))
}

// TestAnyOrder does anything in any order beside a plain model, and compares all
// counts after each step.
func TestAnyOrder(t *testing.T) {
	type entry struct {
		addr   netip.Addr // zero: a link
		groups map[ids.Group]bool
		member bool
	}
	rapid.Check(t, func(t *rapid.T) {
		limits := Limits{
			Sessions: rapid.IntRange(0, 8).Draw(t, "sessions"),
			Per64:    rapid.IntRange(0, 3).Draw(t, "per 64"),
			Per48:    rapid.IntRange(0, 5).Draw(t, "per 48"),
		}
		table := New(limits, seeded())
		model := make(map[ids.Session]*entry)
		addr := rapid.Custom(func(t *rapid.T) netip.Addr {
			return netip.MustParseAddr(fmt.Sprintf("2001:db8:%d:%d::%d",
				rapid.IntRange(1, 3).Draw(t, "site"), rapid.IntRange(1, 3).Draw(t, "lan"), rapid.IntRange(1, 3).Draw(t, "host")))
		})
		count := func(in netip.Prefix) (n int) {
			for _, e := range model {
				if e.addr.IsValid() && in.Contains(e.addr) {
					n++
				}
			}
			return n
		}
		anyIndex := func(t *rapid.T) ids.Session {
			indexes := []ids.Session{0x1234} // unknown
			for index := range model {
				indexes = append(indexes, index)
			}
			return rapid.SampledFrom(indexes).Draw(t, "index")
		}
		t.Repeat(map[string]func(*rapid.T){
			"reserve": func(t *rapid.T) {
				a := addr.Draw(t, "addr")
				p64, p48 := netip.PrefixFrom(a, 64).Masked(), netip.PrefixFrom(a, 48).Masked()
				all := netip.MustParsePrefix("::/0")
				fits := (limits.Sessions == 0 || count(all) < limits.Sessions) &&
					(limits.Per64 == 0 || count(p64) < limits.Per64) && (limits.Per48 == 0 || count(p48) < limits.Per48)
				index, err := table.Reserve(a)
				if fits != (err == nil) {
					t.Fatalf("reserve %v: %v, want fits %v", a, err, fits)
				}
				if err != nil {
					violation, ok := errors.AsType[*proto.Error](err)
					if !ok || violation.Reason != proto.ReasonFull {
						t.Fatalf("refused by %v", err)
					}
					return
				}
				if index == 0 || model[index] != nil {
					t.Fatalf("index %08x is not fresh", index)
				}
				model[index] = &entry{addr: a}
			},
			"link": func(t *rapid.T) {
				index, err := table.Link()
				if err != nil || index == 0 || model[index] != nil {
					t.Fatalf("link %08x: %v", index, err)
				}
				model[index] = &entry{}
			},
			"admit": func(t *rapid.T) {
				index := anyIndex(t)
				groups := rapid.SliceOfNDistinct(rapid.Map(rapid.Uint32Range(1, 3), func(n uint32) ids.Group { return ids.Group(n) }), 1, 3, rapid.ID).Draw(t, "groups")
				table.Admit(index, groups)
				if e := model[index]; e != nil && !e.member {
					e.member, e.groups = true, make(map[ids.Group]bool)
					for _, g := range groups {
						e.groups[g] = true
					}
				}
			},
			"restore": func(t *rapid.T) {
				a := rapid.SampledFrom([]netip.Addr{addr.Draw(t, "addr"), {}}).Draw(t, "of a peer")
				index := ids.Session(rapid.Uint32Range(1, 9).Draw(t, "old index"))
				err := table.Restore(index, a)
				if model[index] != nil && err == nil || model[index] == nil && !a.IsValid() && err != nil {
					t.Fatalf("restore %08x: %v", index, err)
				}
				if err == nil {
					model[index] = &entry{addr: a}
				}
			},
			"suspend": func(t *rapid.T) {
				index := anyIndex(t)
				table.Suspend(index)
				if e := model[index]; e != nil {
					e.member, e.groups = false, nil
				}
			},
			"release": func(t *rapid.T) {
				index := anyIndex(t)
				table.Release(index)
				delete(model, index)
			},
			"": func(t *rapid.T) {
				if got, want := table.Sessions(), count(netip.MustParsePrefix("::/0")); got != want {
					t.Fatalf("%d sessions, want %d", got, want)
				}
				members := make(map[ids.Group]int)
				for _, e := range model {
					for g := range e.groups {
						members[g]++
					}
				}
				got := table.Members()
				for g := range ids.Group(4) {
					if got[g] != members[g] {
						t.Fatalf("members %v, want %v", got, members)
					}
				}
				if len(table.sessions) != len(model) || len(got) != len(members) {
					t.Fatalf("%d sessions and %d groups kept, want %d and %d", len(table.sessions), len(got), len(model), len(members))
				}
				for p, n := range table.per64 {
					if n != count(p) || n == 0 {
						t.Fatalf("%d sessions of %v, want %d", n, p, count(p))
					}
				}
				for p, n := range table.per48 {
					if n != count(p) || n == 0 {
						t.Fatalf("%d sessions of %v, want %d", n, p, count(p))
					}
				}
			},
		})
	})
}

// The newest sessions are beyond limits that were lowered, and a session of before is
// restored within them.
func TestBeyond(t *testing.T) {
	table := New(Limits{Sessions: 10, Per64: 4, Per48: 6}, seeded())
	var all []ids.Session
	for _, text := range []string{"2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:1::1", "2001:db8:2::1"} {
		index, err := table.Reserve(netip.MustParseAddr(text))
		require.NoError(t, err)
		all = append(all, index)
	}
	require.Empty(t, table.Beyond())
	table.SetLimits(Limits{Sessions: 10, Per64: 2})
	require.Equal(t, []ids.Session{all[2]}, table.Beyond())
	table.SetLimits(Limits{Per48: 4})
	require.Equal(t, []ids.Session{all[4]}, table.Beyond())
	table.SetLimits(Limits{Sessions: 5})
	require.Equal(t, all[5:], table.Beyond())
	require.EqualError(t, table.Restore(1, netip.MustParseAddr("2001:db9::1")), "full: 7 sessions")
	require.NoError(t, table.Restore(1, netip.Addr{}))
	require.EqualError(t, table.Restore(1, netip.Addr{}), "full: session 00000001 is in use")
	for _, index := range all[4:] {
		table.Release(index)
	}
	require.NoError(t, table.Restore(2, netip.MustParseAddr("2001:db9::1")))
}

// When another RP dies, all sessions that stand by may be activated at once.
func TestSwitchesOfAllSessions(t *testing.T) {
	const sessions = 4096
	require.Equal(t, Rates{All: 2 * sessions, Per48: 10, Per64: 32},
		(&Limits{Sessions: sessions, Per48: 1, Per64: 16, Joins: 10, JoinsPer48: 10, JoinsPer64: 10}).switches())
	require.Equal(t, 40_000.0, (&Limits{Sessions: sessions, Joins: 10_000}).switches().All)
	require.Zero(t, (&Limits{Sessions: sessions}).switches().All, "no limit of joins")
	require.Zero(t, (&Limits{Joins: 10}).switches().All, "no limit of sessions")

	// All of one /32, in full sites and full LANs.
	limits := Limits{Sessions: 10_000, Per48: 256, Per64: 16, Joins: 1000, JoinsPer48: 256, JoinsPer64: 16}
	shares, now := NewShares(limits.switches(), time.Second), time.Now()
	for i := range limits.Sessions {
		site, lan, host := i/limits.Per48, i%limits.Per48/limits.Per64, i%limits.Per64
		addr := netip.MustParseAddr(fmt.Sprintf("2001:db8:%x:%x::%x", site, lan, host+1))
		require.NoError(t, shares.Take(now, addr, 1), "session %d", i)
	}
}
