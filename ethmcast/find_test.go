// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast_test

import (
	"flag"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/ethmcast"
	"github.com/ethmcast/mdcs/ethmcast/discovery"
	"github.com/ethmcast/mdcs/ethmcast/discovery/discoverytest"
	"github.com/ethmcast/mdcs/ethmcast/ethmcasttest"
)

// Nodes that know nothing but a tree in DNS join RPs of it and reach each other.
func TestFindsRPs(t *testing.T) {
	a, b := mesh(t)
	zone := new(discoverytest.Zone)
	url := zone.Publish(t, discoverytest.Key(t), "rps.example.org", 1, []*enode.Node{a.Self(), b.Self()})
	cfg := ethmcast.Config{Publish: ethmcast.PublishAll, NetworkID: networkID, Genesis: genesis}
	start := func() *ethmcasttest.Node {
		cfg := cfg
		cfg.Find = &ethmcast.Find{Trees: []string{url}, Resolver: zone}
		return ethmcasttest.StartNode(t, cfg)
	}
	one, two := start(), start()
	connect(t, one, two)
	tx := transaction(t, 0, 3000)
	one.Enter(tx, nil, two)
	eventually(t, "the transaction arrives", func() bool { return two.Backend.Offered(tx.Hash()) == 1 })

	found := one.API.Discovery()
	if len(found.Candidates) != 2 || found.Known != 2 || len(found.Trees) != 1 || found.Trees[0].Error != "" {
		t.Fatalf("%+v", found)
	}
	for _, c := range found.Candidates {
		if rtt, err := time.ParseDuration(c.RTT); err != nil || rtt <= 0 || c.Room != "100 %" || !c.Trusted {
			t.Errorf("%+v", c)
		}
	}
	if rps := one.API.Rps(); len(rps) != 2 || rps[0].ID != found.Candidates[0].ID || one.API.Status().RP != rps[0].ID {
		t.Errorf("uses %+v of %+v", rps, found.Candidates)
	}
}

// When others are found, the RP that serves goes on to until it is lost or may not be used
// any more, and one that moved is dialled at its new address.
func TestFound(t *testing.T) {
	points := meshWith(t, 3, nil)
	a, b, c := points[0], points[1], points[2]
	node := ethmcasttest.StartNode(t, ethmcast.Config{
		RPs: []*enode.Node{a.Self()}, Publish: ethmcast.PublishAll, NetworkID: networkID, Genesis: genesis,
	})
	revoked := make(map[enode.ID]bool)
	find := func(nodes ...*enode.Node) {
		var candidates []discovery.Candidate
		for _, n := range nodes {
			candidates = append(candidates, discovery.Candidate{Node: n})
		}
		node.Service.Found(candidates, func(id enode.ID) bool { return !revoked[id] })
	}
	urls := func() (urls []string) {
		for _, rp := range node.API.Rps() {
			urls = append(urls, rp.URL)
		}
		return urls
	}
	eventually(t, "join", func() bool { return node.API.Status().State == "active" })
	find(b.Self())
	if got := urls(); !slices.Equal(got, []string{b.Self().URLv4(), a.Self().URLv4()}) {
		t.Fatalf("RPs %v", got)
	}
	uses(t, node, a, b)
	find()
	if got := urls(); len(got) != 2 {
		t.Fatalf("RPs %v", got)
	}

	moved := enode.NewV4(c.Self().Pubkey(), c.Self().IP(), int(freePort(t)), 0)
	find(b.Self(), moved)
	if got := urls(); !slices.Equal(got, []string{b.Self().URLv4(), moved.URLv4(), a.Self().URLv4()}) {
		t.Fatalf("RPs %v", got)
	}
	find(b.Self(), c.Self())
	a.Stop()
	uses(t, node, b, c)
	find(c.Self())
	find(c.Self(), b.Self())
	if got := urls(); !slices.Equal(got, []string{c.Self().URLv4(), b.Self().URLv4()}) {
		t.Fatalf("RPs %v", got)
	}

	// One that serves, and one of before when there are no candidates at all.
	uses(t, node, b, c)
	revoked[b.Self().ID()] = true
	find(c.Self())
	if got := urls(); !slices.Equal(got, []string{c.Self().URLv4()}) {
		t.Fatalf("RPs %v", got)
	}
	eventually(t, "the other one takes over", func() bool { st := node.API.Status(); return st.State == "active" && st.RP == id(c) })
	find()
	if got := urls(); len(got) != 1 {
		t.Fatalf("RPs %v", got)
	}
	revoked[c.Self().ID()] = true
	find()
	if got := urls(); len(got) != 0 {
		t.Fatalf("RPs %v", got)
	}
	eventually(t, "no RP", func() bool { return node.API.Status().State == "idle" })
}

// Two strangers are never used while a trusted RP answers.
func TestOneStranger(t *testing.T) {
	nodes := make(map[byte]*enode.Node)
	for _, name := range []byte("abcdT") {
		nodes[name] = enode.NewV4(&ethmcasttest.Key(t).PublicKey, net.IPv6loopback, 1, 1)
	}
	// Capitals are trusted, and T? did not answer.
	for _, c := range []struct{ candidates, serving, want string }{
		{"abcd", "", "abcd"},
		{"aTbc", "", "aT"},
		{"Tabc", "", "Ta"},
		{"abTc", "T", "aT"},
		{"aTbc", "b", "Tb"},
		{"aTbc", "d", "T"}, // which is a stranger, too
		{"abcT?", "", "abcT?"},
	} {
		var candidates []discovery.Candidate
		for _, name := range []byte(c.candidates) {
			if name == '?' {
				candidates[len(candidates)-1].RTT = 0
				continue
			}
			candidates = append(candidates, discovery.Candidate{Node: nodes[name], RTT: 1, Trusted: name == 'T'})
		}
		var serving *enode.Node
		if c.serving != "" {
			serving = nodes[c.serving[0]]
		}
		got := ""
		for _, candidate := range ethmcast.OneStranger(candidates, serving) {
			for name, n := range nodes {
				if n == candidate.Node {
					got += string(name)
				}
			}
			if candidate.RTT == 0 {
				got += "?"
			}
		}
		if got != c.want {
			t.Errorf("%s, serving %q: %s, want %s", c.candidates, c.serving, got, c.want)
		}
	}
}

// flags parses arguments of geth.
func flags(t *testing.T, args string) *cli.Context {
	t.Helper()
	set := flag.NewFlagSet("geth", flag.ContinueOnError)
	for _, f := range ethmcast.Flags {
		if err := f.Apply(set); err != nil {
			t.Fatal(err)
		}
	}
	if err := set.Parse(strings.Fields(args)); err != nil {
		t.Fatal(err)
	}
	return cli.NewContext(nil, set, nil)
}

// What could never be connected to is refused at the start.
func TestRPFlag(t *testing.T) {
	const id = "enode://1dd9d65c4552b5eb43d5ad55a2ee3f56c6cbc1c64a5c8d659f51fcd51bace24351232b8d7821617d2b29b54b81cdefb9b3e9c37d7fd5f63270bcc9e1a6f6a439"
	for url, want := range map[string]string{
		id + "@[2001:db8::53]:30500":    "",
		id + "@rp.example.org:30500":    "want an IPv6 address",
		id + "@192.0.2.1:30500":         "want an IPv6 address",
		id + "@[::ffff:c000:201]:30500": "want an IPv6 address",
		id + "@[::]:30500":              "want an IPv6 address",
		id:                              "want an IPv6 address",
		"enode://1dd9@[::1]:30500":      "invalid public key",
	} {
		rps, err := ethmcast.RPConfig(flags(t, "--mdcs.rp "+url))
		switch {
		case want == "" && (err != nil || len(rps) != 1 || rps[0].URLv4() != url):
			t.Errorf("%s: %v, %v", url, rps, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), "--mdcs.rp "+url) || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: error %v, want %q", url, err, want)
		}
	}
}

func TestFindFlags(t *testing.T) {
	const tree = "enrtree://AKA3AM6LPBYEUDMVNU3BSVQJ5AD45Y7YPOHJLEF6W26QOE4VTUDPE@rps.example.org"
	id := strings.Repeat("03", 32)
	for _, test := range []struct {
		args string
		want string // the error, "" for none
	}{
		{"--mdcs.dns " + tree, ""},
		{"--mdcs.discv5 --mdcs.allow " + id + " --mdcs.allow 0x" + id, ""},
		{"--mdcs.discv5 --mdcs.open", ""},
		{"", ""},
		{"--mdcs.dns https://example.org", "--mdcs.dns: tree https://example.org: "},
		{"--mdcs.discv5 --mdcs.allow 03", "--mdcs.allow 03: "},
		{"--mdcs.open", "are for --mdcs.discv5"},
		{"--mdcs.allow " + id, "are for --mdcs.discv5"},
	} {
		find, err := ethmcast.FindConfig(flags(t, test.args))
		switch {
		case test.want != "":
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: error %v, want %q", test.args, err, test.want)
			}
		case err != nil:
			t.Errorf("%s: %v", test.args, err)
		case (find != nil) != (test.args != ""):
			t.Errorf("%q: %+v", test.args, find)
		case find != nil && len(find.Trees)+len(find.Allow) == 0 && !find.Open:
			t.Errorf("%s: %+v", test.args, find)
		}
	}
}
