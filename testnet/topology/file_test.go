// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// two is the smallest network with all kinds of things in it.
const two = `[nodes]
count = 2
[class.home]
rate = "50mbit"
[[as]]
name = "a"
number = 1
share = 0.5
rp = true
classes = { home = 1.0 }
[[as]]
name = "b"
number = 2
share = 0.5
[[ixp]]
name = "x"
number = 3
[[ixp.member]]
as = "a"
export_to = ["b"]
[[ixp.member]]
as = "b"
[[link]]
provider = "a"
customer = "b"
delay = "1ms"
[[host]]
name = "web"
as = "b"
role = "host"
`

func TestParse(t *testing.T) {
	top, err := Parse("two", []byte(two))
	require.NoError(t, err)
	a, b := top.ASes[0], top.ASes[1]
	require.Equal(t, "2001:db8:1::/48", a.Prefix().String())
	require.Equal(t, "2001:db8:1:1::/64", a.LAN().String())
	require.Equal(t, "2001:db8:1:1::1", a.Gateway().String())
	require.Equal(t, map[string]Line{"home": {Rate: 50e6}}, top.Classes)
	require.Equal(t, []Host{
		{Name: "a-rp", Role: RP, AS: "a", Addr: address("2001:db8:1:1::53"), Class: "home", Line: Line{Rate: 50e6}},
		{Name: "web", Role: Plain, AS: "b", Addr: address("2001:db8:2:1::e1")},
	}, top.Hosts)
	l := top.Links[0]
	require.Equal(t, Link{A: "a", B: "b", Relation: Transit, Net: l.Net, Line: Line{Delay: time.Millisecond}}, l)
	require.Equal(t, "a-b", l.Name())
	require.Equal(t, "2001:db8:f000:1::1 2001:db8:f000:1::2", l.AddrA().String()+" "+l.AddrB().String())
	x := top.IXPs[0]
	require.Equal(t, "2001:db8:e003::/64 2001:db8:e003::1", x.Net.String()+" "+x.RouteServer().String())
	require.Equal(t, []Member{
		{AS: "a", Addr: address("2001:db8:e003::1:1"), ExportTo: []int{2}},
		{AS: "b", Addr: address("2001:db8:e003::1:2")},
	}, x.Members)
	require.Equal(t, b.Number, x.Members[0].ExportTo[0])
}

// Each mistake is named with its line, or with the element where it is.
func TestMistakes(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{"share = 0.5\nrp", "shares = 0.5\nrp", "line 8: as.shares: unknown key"},
		{"count = 2", "count = -2", "line 1: nodes: negative count"},
		{"count = 2", "seed = -2", "line 2: nodes.seed: "},
		{"count = 2", "count = \"2\"", "line 2: nodes.count: "},
		{"[nodes]", "[nodes", "line 1: "},
		{`"50mbit"`, `"50mb"`, `line 4: class.home.rate: rate "50mb" is not a number of bit, kbit, mbit or gbit`},
		{`rate = "50mbit"`, `loss = 1.5`, "line 3: class home: loss 1.5 is not a share from 0 to 1"},
		{`rate = "50mbit"`, `loss = nan`, "line 3: class home: loss NaN is not a share"},
		{`rate = "50mbit"`, `queue = "-1ms"`, "line 3: class home: negative delay, jitter or queue"},
		{"class.home", `class."At home"`, `line 3: class "At home": want a name of the form`},
		{`name = "a"`, `name = "b"`, `line 11: AS "b": two nodes have that name`},
		{`name = "a"`, `name = "A"`, `line 5: AS "A": want a name of 1 to 9 bytes`},
		{`name = "a"`, `name = "verylongname"`, `line 5: AS "verylongname": want a name of 1 to 9 bytes`},
		{`name = "a"`, `name = "wire"`, `line 5: AS "wire": the name is in use`},
		{"number = 1\n", "number = 2\n", "line 11: AS b: number 2 is that of AS a"},
		{"number = 1\n", "number = 10000\n", "line 5: AS a: number 10000 is not one from 1 to 9999"},
		{"number = 3", "number = 1000", "line 15: IXP x: number 1000 is not one from 1 to 999"},
		{"number = 3", "number = 1", "line 15: IXP x: number 1 is that of AS a"},
		{"share = 0.5\nrp", "share = 0.4\nrp", "ASes: the shares sum up to 0.9, not to 1"},
		{"share = 0.5\nrp", "share = -0.5\nrp", "ASes: share -0.5 is not from 0 to 1"},
		{"home = 1.0 }", "home = 0.9 }", "line 5: classes of AS a: the shares sum up to 0.9"},
		{"{ home", "{ office", `line 5: AS a: unknown class "office"`},
		{`share = 0.5`, `access = "-1s"`, "line 5: AS a: negative access delay"},
		{`export_to = ["b"]`, `export_to = ["c"]`, `line 15: IXP x: a exports to unknown AS "c"`},
		{`as = "a"`, `as = "c"`, `line 15: IXP x: unknown AS "c"`},
		{`as = "a"`, `as = "b"`, "line 15: IXP x: b is a member twice"},
		{`as = "a"`, "as = \"a\"\njitter = \"1ms\"", "line 15: port x:a: jitter 1ms is longer than delay 0s"},
		{`provider = "a"`, `provider = "c"`, `line 23: link c-b: unknown AS "c"`},
		{`provider = "a"`, `provider = "b"`, "line 23: link b-b: both ends are the same"},
		{`provider = "a"`, `peers = ["a"]`, "line 23: link names neither a provider and a customer nor two peers"},
		{"[[link]]", "[[link]]\npeers = [\"b\", \"a\"]\n[[link]]", "line 25: link a-b: the two have a link already"},
		{`delay = "1ms"`, `delay = "1"`, "line 26: link.delay: "},
		{`role = "host"`, `role = "cook"`, `line 27: host web: role "cook" is none of rp, geth, host`},
		{`role = "host"`, "role = \"host\"\nclass = \"office\"", `line 27: host web: unknown class "office"`},
		{`name = "web"`, `name = "b-g7"`, "line 27: host b-g7: such names are given to what the network adds itself"},
		{`name = "web"`, `name = "a-very-long-host"`, `line 27: host "a-very-long-host": want a name of 1 to 14 bytes`},
		{"as = \"b\"\nrole", "as = \"c\"\nrole", `line 27: host web: unknown AS "c"`},
		{"[[host]]", "[[as]]\nname = \"c\"\nnumber = 7\n[[host]]", "the policy allows no path from a to c, and 3 more"},
		{"[[host]]", "[[as]]\nname = \"c\"\nnumber = 7\n[[link]]\nprovider = \"b\"\ncustomer = \"c\"\n[[link]]\nprovider = \"c\"\ncustomer = \"a\"\n[[host]]",
			"ASes are providers in a circle: a of b of c of a"},
	} {
		require.Contains(t, two, c.old)
		_, err := Parse("two", []byte(strings.Replace(two, c.old, c.new, 1)))
		require.ErrorContains(t, err, c.want)
		require.ErrorContains(t, err, "topology two: ")
	}
	_, err := Parse("none", nil)
	require.ErrorContains(t, err, "no AS")
	_, err = Parse("zero", []byte(strings.ReplaceAll(two, "share = 0.5", "")))
	require.ErrorContains(t, err, "line 1: nodes: no AS has a share of them")
}

// What a file cannot say is checked as well.
func TestValidate(t *testing.T) {
	for want, spoil := range map[string]func(*Topology){
		"address 2001:db8:1:1::53 is that of as1-rp":                             func(t *Topology) { t.Hosts[3].Addr = t.Hosts[0].Addr },
		"address 2001:db8:1:1::1 is that of as1":                                 func(t *Topology) { t.Hosts[0].Addr = t.ASes[0].Gateway() },
		"outside of the LAN 2001:db8:1:1::/64":                                   func(t *Topology) { t.Hosts[0].Addr = address("::1") },
		"not one of two Ethereum nodes":                                          func(t *Topology) { t.Peerings[0][1] = "as1-rp" },
		`relation "friend" is neither`:                                           func(t *Topology) { t.Links[0].Relation = "friend" },
		"no path from as1 to as2, and 1 more":                                    func(t *Topology) { t.Links = nil },
		"does not fit into 63 bits":                                              func(t *Topology) { t.Nodes.Seed = 1 << 63 },
		"at most 9999 fit":                                                       func(t *Topology) { t.Links = make([]Link, 10_000) },
		"link as1-as2: network 2001:db8:f000:2::/126, not 2001:db8:f000:1::/126": func(t *Topology) { t.Links[0].Net = linkNet(2) },
	} {
		top := populate(t, load(t, "two-as"))
		require.NoError(t, top.Validate())
		spoil(top)
		require.ErrorContains(t, top.Validate(), want)
	}
}

func TestTOML(t *testing.T) {
	empty := strings.Replace(two, `["b"]`, "[]", 1)
	for name, text := range map[string]string{"two": two, "empty export": empty} {
		top, err := Parse(name, []byte(text))
		require.NoError(t, err)
		requireSame(t, top)
	}
	for _, name := range append(Names(), "testdata/ixp.toml") {
		top := load(t, name)
		requireSame(t, top)
		require.Equal(t, string(top.TOML()), string(populate(t, top).TOML()), "nodes follow from the population")
	}
}

// requireSame writes a file and reads it back.
func requireSame(t *testing.T, top *Topology) {
	t.Helper()
	back, err := Parse(top.Name, top.TOML())
	require.NoErrorf(t, err, "%s", top.TOML())
	require.Equal(t, top, back)
}

func TestUnits(t *testing.T) {
	for text, bits := range map[string]bitRate{"1gbit": 1e9, "50mbit": 50e6, "1500kbit": 1.5e6, "7bit": 7, "0bit": 0} {
		var r bitRate
		require.NoError(t, r.UnmarshalText([]byte(text)))
		require.Equal(t, bits, r)
		back, err := r.MarshalText()
		require.NoError(t, err)
		require.Equal(t, text, string(back))
	}
	var r bitRate
	require.NoError(t, r.UnmarshalText([]byte("2.5gbit")))
	require.Equal(t, bitRate(2.5e9), r)
	for _, text := range []string{"", "bit", "-1bit", "nanbit", "infbit", "1e16bit", "5", "5mbps"} {
		require.Error(t, r.UnmarshalText([]byte(text)), text)
	}
}

func TestLoad(t *testing.T) {
	require.Equal(t, []string{"ten-as", "two-as"}, Names())
	path := filepath.Join(t.TempDir(), "mine.toml")
	require.NoError(t, os.WriteFile(path, []byte(two), 0o644))
	require.Equal(t, "mine", load(t, path).Name)
	require.NoError(t, os.WriteFile(path, []byte(two+"x = 1\n"), 0o644))
	_, err := Load(path)
	require.ErrorContains(t, err, path+": topology mine: line 31: host.x: unknown key")
	_, err = Load("three-as")
	require.EqualError(t, err, `no shipped topology or file "three-as" (shipped: ten-as, two-as)`)
}

// What is read can be written and populated, and is the same afterwards.
func FuzzParse(f *testing.F) {
	f.Add([]byte(two))
	for _, name := range []string{"shipped/ten-as.toml", "shipped/two-as.toml", "testdata/ixp.toml"} {
		text, err := os.ReadFile(name)
		require.NoError(f, err)
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		top, err := Parse("fuzz", text)
		if err != nil {
			return
		}
		requireSame(t, top)
		if len(top.ASes) > 100 {
			return
		}
		require.NotEmpty(t, top.SVG())
		populated, err := top.Populate(Population{Count: 2 * len(top.ASes), Degree: 4})
		if err == nil {
			require.Len(t, populated.Hosts, len(top.Hosts)+2*len(top.ASes))
		}
	})
}
