// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func names(text string) []string { return strings.Fields(text) }

// TestPolicy follows paths through the network of testdata/ixp.toml:
//
//	       as1 ------- as2          ---  peers
//	       /  \        /  \         / \  provider above, customer below
//	    as11   as12---'    as13
//	    / | \  / |  \      /  \     as11, as12, as13 and as101 meet at ix80,
//	101  |  102 103  105--'   104   where as12 is heard by as13 only
func TestPolicy(t *testing.T) {
	top := load(t, "testdata/ixp.toml")
	paths := top.BGP()
	for _, want := range []string{
		"as101 as11 as1",            // up
		"as1 as11 as101",            // down
		"as104 as13 as101",          // a customer of the peer at the exchange, not as11 behind it
		"as12 as101",                // of what the route server has, the shortest path
		"as13 as12 as103",           // as12 is heard here
		"as11 as1 as12 as103",       // but not here
		"as13 as11 as102",           // as11 and as12 announce as102: the lower identifier
		"as101 as13 as105",          // peer before provider
		"as102 as11 as1",            // two providers, equal length: the lower identifier
		"as11 as102",                // a customer
		"as103 as12 as13 as104",     // up, across, down
		"as2 as12 as105",            // two customers lead there: the lower identifier
		"as101 as11 as1 as12 as103", // as12 is not heard, so by the provider
		"as105 as12 as1",            // as12 is shorter than as13, as2
		"as104 as13 as2 as1",        // tier-1 peering
		"as102 as11 as13 as104",     // by the lower of two providers
		"as1 as2 as13",              // a peer's customer
		"as12 as105",                // a customer, although as13 is a peer
		"as13 as105",                // likewise
		"as101",                     // itself
		"as103 as12 as101",          // the exchange passes as101 on to as12
		"as101 as11 as1 as12",       // but as12 not to as101
	} {
		ends := names(want)
		require.Equal(t, ends, paths.AS(ends[0], ends[len(ends)-1]))
	}
	via := func(down map[string]bool, from, to string) netip.Addr {
		as, _ := top.AS(to)
		for _, r := range top.RoutesWithout(from, down) {
			if r.To == as.Prefix() {
				return r.Via
			}
		}
		return netip.Addr{}
	}
	require.Equal(t, "2001:db8:e080::1:101", via(nil, "as12", "as101").String(), "next hop is the member, not the route server")
	require.Equal(t, "2001:db8:f000:2::1", via(nil, "as11", "as103").String())
	require.Equal(t, "2001:db8:f000:8::2", via(nil, "as12", "as102").String())

	port := map[string]bool{"ix80:as11": true}
	require.Equal(t, "2001:db8:e080::1:12", via(port, "as13", "as102").String(), "with as11 away, as12 announces it")
	require.Equal(t, "2001:db8:f000:2::1", via(port, "as11", "as104").String(), "over its provider")
	stub := map[string]bool{"as12-as103": true}
	require.Len(t, top.RoutesWithout("as103", stub), 0)
	require.Len(t, top.RoutesWithout("as1", stub), 8)
	require.False(t, via(stub, "as1", "as103").IsValid())
	require.Len(t, top.Routes("as1"), 9)
}

func TestDelays(t *testing.T) {
	top := load(t, "testdata/ixp.toml")
	paths := top.BGP()
	rp101, _ := top.Host("as101-rp")
	rp104, _ := top.Host("as104-rp")
	probe, _ := top.Host("probe")
	require.Equal(t, names("as104-rp as13-as104 ix80:as13 ix80:as101 as101-rp"), paths.Lines(rp104, rp101))
	d, ok := paths.Delay(rp104, rp101)
	require.True(t, ok)
	require.Equal(t, 14*time.Millisecond, d) // link 10, ports 1 and 2, access of as101 1
	// 10,000 bits over three lines of 10 Gbit/s and two of 1 Gbit/s.
	s, ok := paths.Serialised(rp104, rp101, 1250)
	require.True(t, ok)
	require.Equal(t, d+3*time.Microsecond+2*10*time.Microsecond, s)
	require.Equal(t, names("as104-rp probe"), paths.Lines(rp104, probe))
	d, ok = paths.Delay(probe, probe)
	require.True(t, ok)
	require.Zero(t, d)

	// The exchange is the shortest way, whoever may use it.
	require.Equal(t, names("as11 as12 as103"), top.Physical().AS("as11", "as103"))
	_, ok = paths.Delay(rp104, Host{AS: "as9"})
	require.False(t, ok)
	require.Nil(t, paths.AS("as104", "as9"))
	require.Equal(t, []Host{rp104}, top.Nearest(rp101, RP), "others only")
}

// TestPhysical has a triangle whose direct link is the slow one:
//
//	as1 --10ms-- as2 --10ms-- as3
//	  `---------50ms-----------'
func TestPhysical(t *testing.T) {
	const text = `
[[as]]
name = "as1"
number = 1
[[as]]
name = "as2"
number = 2
[[as]]
name = "as3"
number = 3
[[link]]
peers = ["as1", "as3"]
delay = "50ms"
[[link]]
peers = ["as1", "as2"]
delay = "10ms"
[[link]]
peers = ["as2", "as3"]
delay = "10ms"
`
	top, err := Parse("triangle", []byte(text))
	require.NoError(t, err)
	require.Equal(t, names("as1 as2 as3"), top.Physical().AS("as1", "as3"))
	require.Equal(t, names("as1 as3"), top.BGP().AS("as1", "as3"), "a peer carries nothing to a peer")
}

// internet draws a network in which nobody is his own provider. IXPs pass on
// everything.
func internet(t *rapid.T) *Topology {
	n := rapid.IntRange(2, 9).Draw(t, "ASes")
	numbers := rapid.Permutation([]int{1, 2, 3, 11, 12, 13, 101, 102, 9999}).Draw(t, "numbers")
	line := func(name string) Line {
		return Line{Delay: time.Duration(rapid.IntRange(0, 5).Draw(t, name)) * time.Millisecond}
	}
	top := &Topology{Name: "random"}
	for i := range n {
		top.ASes = append(top.ASes, AS{Name: fmt.Sprintf("as%d", numbers[i]), Number: numbers[i]})
	}
	for i := range n {
		for k := i + 1; k < n; k++ {
			relation := rapid.SampledFrom([]Relation{"", Transit, Transit, Peer}).Draw(t, "relation")
			if relation != "" {
				top.Links = append(top.Links, Link{
					A: top.ASes[i].Name, B: top.ASes[k].Name, Relation: relation,
					Net: linkNet(len(top.Links) + 1), Line: line("link"),
				})
			}
		}
	}
	for number := range rapid.IntRange(0, 2).Draw(t, "IXPs") {
		x := IXP{Name: fmt.Sprintf("ix%d", 80+number), Number: 80 + number, Net: ixpNet(80 + number)}
		for _, a := range top.ASes {
			if rapid.Bool().Draw(t, "member") {
				x.Members = append(x.Members, Member{AS: a.Name, Addr: ixpAddr(x.Number, a.Number), Line: line("port")})
			}
		}
		top.IXPs = append(top.IXPs, x)
	}
	return top
}

// relations says what the neighbour at the end of each kind of step is: customer,
// peer or provider.
func (t *Topology) relation(from string, h hop) origin {
	if len(h.lines) == 2 {
		return fromPeer // over an IXP
	}
	i := slices.IndexFunc(t.Links, func(l Link) bool { return l.Name() == h.lines[0].name })
	switch l := t.Links[i]; {
	case l.Relation == Peer:
		return fromPeer
	case l.A == from:
		return fromCustomer
	default:
		return fromProvider
	}
}

// reachable are the ASes to which a path goes up, then to at most one peer, then
// down.
func (t *Topology) reachable(from string) map[string]bool {
	type state struct {
		as   string
		down bool
	}
	var (
		next    = t.adjacencies(nil)
		visited = make(map[state]bool)
		reached = make(map[string]bool)
		visit   func(s state)
	)
	visit = func(s state) {
		if visited[s] {
			return
		}
		visited[s], reached[s.as] = true, true
		for _, h := range next[s.as] {
			if r := t.relation(s.as, h); !s.down || r == fromCustomer {
				visit(state{h.as, r != fromProvider})
			}
		}
	}
	visit(state{from, false})
	return reached
}

func TestPolicyProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		top := internet(t)
		bgp, physical := top.BGP(), top.Physical()
		next := top.adjacencies(nil)
		for _, a := range top.ASes {
			reachable := top.reachable(a.Name)
			for _, b := range top.ASes {
				path := bgp.AS(a.Name, b.Name)
				require.Equal(t, reachable[b.Name], path != nil, "%s to %s", a.Name, b.Name)
				require.Equal(t, path != nil, bgp.AS(b.Name, a.Name) != nil, "both directions")
				if path == nil {
					continue
				}
				require.Equal(t, a.Name, path[0])
				require.Equal(t, b.Name, path[len(path)-1])
				require.Len(t, slices.Compact(slices.Sorted(slices.Values(path))), len(path), "no AS twice")

				hops := bgp.hops[[2]string{a.Name, b.Name}]
				down, here := false, a.Name
				for _, h := range hops {
					r := top.relation(here, h)
					require.False(t, down && r != fromCustomer, "a valley in %v", path)
					down, here = r != fromProvider, h.as
				}
				if len(hops) > 0 {
					require.Equal(t, path[1:], bgp.AS(path[1], b.Name), "the next AS goes the same way")
				}
				// No neighbour announces a better route.
				for _, h := range next[a.Name] {
					theirs, ok := bgp.hops[[2]string{h.as, b.Name}]
					offered := top.relation(a.Name, h)
					mayPass := offered == fromProvider || len(theirs) == 0 || top.relation(h.as, theirs[0]) == fromCustomer
					loops := slices.ContainsFunc(theirs, func(h hop) bool { return h.as == a.Name })
					if !ok || !mayPass || loops || a.Name == b.Name {
						continue
					}
					chosen := top.relation(a.Name, hops[0])
					require.GreaterOrEqual(t, chosen, offered)
					if chosen == offered {
						require.LessOrEqual(t, len(hops), len(theirs)+1)
					}
				}
				from, to := Host{Name: "a", AS: a.Name}, Host{Name: "b", AS: b.Name}
				least, ok := physical.Delay(from, to)
				require.True(t, ok)
				delay, _ := bgp.Delay(from, to)
				require.LessOrEqual(t, least, delay)
			}
		}
	})
}
