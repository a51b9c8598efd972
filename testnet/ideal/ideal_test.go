// SPDX-License-Identifier: LGPL-3.0-or-later

package ideal

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/testnet/measure"
	"github.com/ethmcast/mdcs/testnet/netns"
	"github.com/ethmcast/mdcs/testnet/topology"
	"github.com/ethmcast/mdcs/testnet/workload"
)

// TestTrees has four ASes; p is the provider of a and c. All but p are at an IXP,
// where c and d do not hear of each other, as d announces to a only:
//
//	      [p]
//	    /     \
//	[a]         [c]
//	 |           |
//	=+=====x=====+=
//	       |
//	      [d]
func TestTrees(t *testing.T) {
	top := &topology.Topology{
		ASes: []topology.AS{{Name: "p", Number: 1}, {Name: "a", Number: 2}, {Name: "c", Number: 3}, {Name: "d", Number: 4}},
		Links: []topology.Link{
			{A: "p", B: "a", Relation: topology.Transit},
			{A: "p", B: "c", Relation: topology.Transit},
			{A: "p", B: "d", Relation: topology.Transit},
		},
		IXPs: []topology.IXP{{Name: "x", Number: 80, Members: []topology.Member{
			{AS: "a"}, {AS: "c", ExportTo: []int{2}}, {AS: "d", ExportTo: []int{2}},
		}}},
	}
	for i, as := range []string{"a", "a", "c", "d"} {
		top.Hosts = append(top.Hosts, topology.Host{Name: fmt.Sprint("g", i), AS: as, Addr: netip.MustParseAddr(fmt.Sprint("2001:db8::", i))})
	}
	trees, err := Trees(top, top.Hosts)
	require.NoError(t, err)
	require.Equal(t, []Tree{{
		Source: top.Hosts[0].Addr, // the receiver in its own AS needs no router
		Branches: map[string]Branch{
			"a": {In: "lan", Out: []string{"ix0"}},
			"c": {In: "ix0", Out: []string{"lan"}},
			"d": {In: "ix0", Out: []string{"lan"}},
		},
	}, {
		Source: top.Hosts[1].Addr,
		Branches: map[string]Branch{
			"a": {In: "lan", Out: []string{"ix0"}},
			"c": {In: "ix0", Out: []string{"lan"}},
			"d": {In: "ix0", Out: []string{"lan"}},
		},
	}, {
		Source: top.Hosts[2].Addr,
		Branches: map[string]Branch{
			"c": {In: "lan", Out: []string{"ix0", "wan1"}},
			"p": {In: "wan1", Out: []string{"wan2"}},
			"a": {In: "ix0", Out: []string{"lan"}},
			"d": {In: "wan2", Out: []string{"lan"}},
		},
	}, {
		Source: top.Hosts[3].Addr,
		Branches: map[string]Branch{
			"d": {In: "lan", Out: []string{"ix0", "wan2"}},
			"p": {In: "wan2", Out: []string{"wan1"}},
			"a": {In: "ix0", Out: []string{"lan"}},
			"c": {In: "wan1", Out: []string{"lan"}},
		},
	}}, trees)

	tree := Tree{Branches: map[string]Branch{"a": {In: "lan"}}}
	require.ErrorContains(t, tree.add("a", "wan0", "lan"), "from lan and from wan0")
	top.Links = top.Links[:2]
	_, err = Trees(top, top.Hosts)
	require.ErrorContains(t, err, "no path by policy")
}

// TestTreesReachAll follows the packets of each node of the shipped ten ASes: they
// come to the LAN of each other AS with nodes once, and to no router twice.
func TestTreesReachAll(t *testing.T) {
	top, err := topology.Load("ten-as")
	require.NoError(t, err)
	top, err = top.Populate(topology.Population{Count: 20, Degree: 8, Seed: 1})
	require.NoError(t, err)
	nodes := top.HostsOf(topology.Geth)
	trees, err := Trees(top, nodes)
	require.NoError(t, err)
	require.Len(t, trees, 20)

	// neighbours are the routers at the other end of an interface.
	neighbours := func(router, intf string) (list []string) {
		for i, l := range top.Links {
			if intf == fmt.Sprint("wan", i) {
				require.Contains(t, []string{l.A, l.B}, router)
				if l.A == router {
					list = append(list, l.B)
				} else {
					list = append(list, l.A)
				}
			}
		}
		for i, x := range top.IXPs {
			for _, m := range x.Members {
				if intf == fmt.Sprint("ix", i) && m.AS != router {
					list = append(list, m.AS)
				}
			}
		}
		return list
	}
	for i, tree := range trees {
		var (
			lans = make(map[string]int)
			from = map[string]int{nodes[i].AS: 1} // packets that each router took
			todo = []string{nodes[i].AS}
		)
		require.Equal(t, lan, tree.Branches[nodes[i].AS].In)
		for len(todo) > 0 {
			router := todo[0]
			todo = todo[1:]
			for _, out := range tree.Branches[router].Out {
				if out == lan {
					lans[router]++
				}
				for _, next := range neighbours(router, out) {
					if tree.Branches[next].In == out { // else the router drops it: an IXP floods
						from[next]++
						todo = append(todo, next)
					}
				}
			}
		}
		want := make(map[string]int)
		for _, h := range nodes {
			if h.AS != nodes[i].AS {
				want[h.AS] = 1
			}
		}
		require.Equal(t, want, lans, "from %s", nodes[i].Name)
		require.Len(t, from, len(tree.Branches))
		for router, packets := range from {
			require.Equal(t, 1, packets, router)
		}
	}
}

// TestNetnsMulticast sends from every host to the others:
//
//	a (eth0) --- (p-a) lan [r1] wan0 ------- wan0 [r2] lan (p-c) --- (eth0) c
//	b (eth0) --- (p-b) /
func TestNetnsMulticast(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	run, err := netns.NewRun(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, run.Close()) })
	spaces := make(map[string]*netns.Namespace)
	for _, name := range []string{"r1", "r2", "a", "b", "c"} {
		spaces[name], err = run.Namespace(name)
		require.NoError(t, err)
	}
	addrs := func(name, intf, addr string) {
		require.NoError(t, spaces[name].AddAddress(intf, netip.MustParsePrefix(addr)))
		require.NoError(t, spaces[name].SetUp(intf, true))
	}
	for _, r := range []string{"r1", "r2"} {
		require.NoError(t, spaces[r].Router())
		require.NoError(t, spaces[r].Bridge(lan))
	}
	addrs("r1", lan, "2001:db8:1:1::1/64")
	addrs("r2", lan, "2001:db8:2:1::1/64")
	require.NoError(t, spaces["r1"].Veth("wan0", spaces["r2"], "wan0"))
	addrs("r1", "wan0", "2001:db8:f000:1::1/126")
	addrs("r2", "wan0", "2001:db8:f000:1::2/126")
	var nodes []Node
	for _, h := range []struct{ name, router, addr string }{
		{"a", "r1", "2001:db8:1:1::a"}, {"b", "r1", "2001:db8:1:1::b"}, {"c", "r2", "2001:db8:2:1::c"},
	} {
		require.NoError(t, spaces[h.name].Veth("eth0", spaces[h.router], "p-"+h.name))
		require.NoError(t, spaces[h.router].Attach(lan, "p-"+h.name))
		addrs(h.name, "eth0", h.addr+"/64")
		nodes = append(nodes, Node{h.name, netip.MustParseAddr(h.addr), spaces[h.name]})
	}
	near := map[string]Branch{"r1": {In: lan, Out: []string{"wan0"}}, "r2": {In: "wan0", Out: []string{lan}}}
	far := map[string]Branch{"r2": {In: lan, Out: []string{"wan0"}}, "r1": {In: "wan0", Out: []string{lan}}}

	// Two small objects of each node, and one that needs three datagrams.
	var (
		txs    []workload.Tx
		hashes []common.Hash
	)
	for i := range 7 {
		tx := workload.Tx{Node: i % 3, Raw: make([]byte, 200)}
		if i == 6 {
			tx.Raw = make([]byte, 2*wire.MaxPayload+1)
		}
		tx.Raw[0] = byte(i)
		tx.Hash = crypto.Keccak256Hash(tx.Raw)
		txs, hashes = append(txs, tx), append(hashes, tx.Hash)
	}
	n, err := Start(t.Context(), Config{
		Nodes:   nodes,
		Routers: map[string]*netns.Namespace{"r1": spaces["r1"], "r2": spaces["r2"]},
		Trees:   []Tree{{nodes[0].Addr, near}, {nodes[1].Addr, near}, {nodes[2].Addr, far}},
		Port:    30400,
		Txs:     hashes,
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Close()) })

	sent, err := workload.Send(t.Context(), txs, time.Now(), n.Submit)
	require.NoError(t, err)
	require.NoError(t, workload.Refused(sent))
	missing, err := n.Wait(t.Context(), time.Now().Add(10*time.Second))
	require.NoError(t, err)
	require.Zero(t, missing)

	var sendings []measure.Sending
	for i, tx := range txs {
		sendings = append(sendings, measure.Sending{Origin: tx.Node, At: sent[i].At})
	}
	pairs := measure.Pairs(sendings, n.Times())
	require.Len(t, pairs, 2*len(txs))
	for _, p := range pairs {
		require.Greater(t, p.Delay, 0.0)
		require.Less(t, p.Delay, 10_000.0)
	}
	all, duplicates := n.Datagrams()
	require.Equal(t, []uint64{2*6 + 2*3, 0}, []uint64{all, duplicates})

	// Each datagram passes each of the two routers once. Node 0 sent 2 small
	// objects and the one of three datagrams.
	counts, err := n.Counters()
	require.NoError(t, err)
	const headers = 40 + 8 + wire.HeaderSize
	var want []RouteCount
	for i, node := range nodes {
		packets, bytes := uint64(2), uint64(2*(headers+200))
		if i == 0 {
			packets, bytes = 5, bytes+3*headers+2*wire.MaxPayload+1
		}
		for _, r := range []string{"r1", "r2"} {
			want = append(want, RouteCount{Router: r, Source: node.Addr, Packets: packets, Bytes: bytes})
		}
	}
	require.Equal(t, want, counts)
	_, err = Start(t.Context(), Config{Nodes: nodes, Trees: []Tree{{nodes[0].Addr, near}}})
	require.ErrorContains(t, err, "no router r")
	_, err = openRouter("r1", spaces["r1"])
	require.ErrorContains(t, err, "MRT6_INIT", "the routing belongs to the net until it is closed")
}
