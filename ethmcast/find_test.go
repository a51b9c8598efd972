// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast_test

import (
	"flag"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/ethmcast"
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

// When others are preferred, the RP that serves goes on to.
func TestSetRPs(t *testing.T) {
	a, b := mesh(t)
	var hungUp []string
	node := ethmcasttest.StartNode(t, ethmcast.Config{
		Publish: ethmcast.PublishAll, NetworkID: networkID, Genesis: genesis,
		Find: &ethmcast.Find{Hangup: func(rp *enode.Node) { hungUp = append(hungUp, rp.ID().String()) }},
	})
	uses := func(id enode.ID) func() bool {
		return func() bool { st := node.API.Status(); return st.State == "active" && st.RP == id.String() }
	}
	rps := func() (ids []string) {
		for _, rp := range node.API.Rps() {
			ids = append(ids, rp.ID)
		}
		return ids
	}
	idA, idB := a.Self().ID(), b.Self().ID()
	node.Service.SetRPs([]*enode.Node{a.Self()})
	eventually(t, "the first RP is joined", uses(idA))
	node.Service.SetRPs([]*enode.Node{b.Self()})
	if got := rps(); !slices.Equal(got, []string{idB.String(), idA.String()}) || !uses(idA)() {
		t.Fatalf("RPs %v", got)
	}

	// It moved, which matters once it is lost.
	moved := enode.NewV4(a.Self().Pubkey(), a.Self().IP(), 9, 9)
	node.Service.SetRPs([]*enode.Node{moved, b.Self()})
	if got := node.API.Rps(); got[0].URL != a.Self().URLv4() || len(hungUp) != 0 {
		t.Fatalf("RPs %+v, disconnected %v", got, hungUp)
	}
	a.Stop()
	eventually(t, "the second RP is joined", uses(idB))
	node.Service.SetRPs([]*enode.Node{moved, b.Self()})
	if got := node.API.Rps(); got[0].URL != moved.URLv4() || !slices.Equal(hungUp, []string{idA.String()}) {
		t.Fatalf("RPs %+v, disconnected %v", got, hungUp)
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
		set := flag.NewFlagSet("geth", flag.ContinueOnError)
		for _, f := range ethmcast.Flags {
			if err := f.Apply(set); err != nil {
				t.Fatal(err)
			}
		}
		if err := set.Parse(strings.Fields(test.args)); err != nil {
			t.Fatal(err)
		}
		find, err := ethmcast.FindConfig(cli.NewContext(nil, set, nil))
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
