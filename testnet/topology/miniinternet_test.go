// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestImportMiniInternet(t *testing.T) {
	top, skipped, err := ImportMiniInternet(os.DirFS("testdata/mini-internet"))
	require.NoError(t, err)
	require.Equal(t, []string{
		"as1: one border router stands for routers (1), links between them (1)",
		"as2: one border router stands for routers (1)",
		"as3: one border router stands for routers (2), links between them (1), hosts (1)",
		"as4-as2: a second link of the two, between EAST and EAST",
		"ix80: as4 announces to what is no member: AS 7",
		"rates are as written: some are below 10 Mbit/s, which is little for Ethereum nodes",
		"hijacks.txt: hijacked prefixes",
	}, skipped)
	fast := Line{Delay: 10 * time.Millisecond, Rate: 1e9, Queue: 50 * time.Millisecond}
	port := Line{Delay: time.Millisecond, Rate: 5e6, Queue: 50 * time.Millisecond}
	require.Equal(t, []Link{
		{"as1", "as2", Peer, linkNet(1), fast},
		{"as1", "as3", Transit, linkNet(2), Line{Delay: 2500 * time.Microsecond, Rate: 100e6, Queue: 20 * time.Millisecond}},
		{"as2", "as3", Transit, linkNet(3), Line{Delay: 7500 * time.Microsecond, Rate: 100e6}},
		{"as2", "as4", Transit, linkNet(4), Line{Delay: time.Millisecond, Rate: 100e6, Queue: 50 * time.Millisecond}},
	}, top.Links)
	require.Equal(t, []IXP{{"ix80", 80, ixpNet(80), []Member{
		{"as3", ixpAddr(80, 3), port, []int{4}},
		{"as4", ixpAddr(80, 4), port, []int{3}},
	}}}, top.IXPs)
	require.Equal(t, names("as3 as4"), top.BGP().AS("as3", "as4"))
	require.Len(t, top.HostsOf(RP), 4)
	require.Len(t, populate(t, top).HostsOf(Geth), 8)
	requireSame(t, top)
}

func TestImportMiniInternet2022(t *testing.T) {
	top, skipped, err := ImportMiniInternet(os.DirFS("testdata/mini-internet-2022"))
	require.NoError(t, err)
	require.Equal(t, []string{`"10000,100000": only the first of several values`}, skipped)
	require.Equal(t, []Link{{"as11", "as12", Transit, linkNet(1), Line{Delay: 1500 * time.Microsecond, Rate: 100e6}}}, top.Links)
	require.Equal(t, []Member{
		{"as11", ixpAddr(120, 11), Line{Delay: time.Millisecond, Rate: 10e6}, nil},
		{"as12", ixpAddr(120, 12), Line{Delay: time.Millisecond, Rate: 100e6}, []int{11}},
	}, top.IXPs[0].Members)
	requireSame(t, top)
}

// TestImportWithoutLinks has a configuration of something else than an internet, such as
// those of one AS with switches.
func TestImportWithoutLinks(t *testing.T) {
	files := fstest.MapFS{
		"AS_config.txt":     {Data: []byte("1\tAS\tConfig\tl3_routers.txt\tl3_links.txt\tl2_switches.txt\tl2_hosts.txt\tl2_links.txt\n")},
		"aslevel_links.txt": {Data: []byte("\n")},
	}
	_, _, err := ImportMiniInternet(files)
	require.EqualError(t, err, "import mini-Internet: aslevel_links.txt has no link between ASes: there is no internet to import")
}

func TestImportMistakes(t *testing.T) {
	for _, c := range []struct{ file, old, new, want string }{
		{"AS_config.txt", "1\tAS", "1\tAS\tAS", "AS_config.txt, line 1: 9 fields, want 8"},
		{"AS_config.txt", "1\tAS", "one\tAS", `AS_config.txt, line 1: number "one": `},
		{"AS_config.txt", "2\tAS", "1\tAS", "AS_config.txt, line 2: number 1 for the second time"},
		{"AS_config.txt", "1\tAS", "1\tISP", `AS_config.txt, line 1: "ISP" is neither AS nor IXP`},
		{"AS_config.txt", "80\tIXP", "1080\tIXP", "aslevel_links.txt, line 7: link between 3 and 80"},
		{"aslevel_links.txt", "\t10ms", "", ""},
		{"aslevel_links.txt", "\t10ms\t50ms", "", "aslevel_links.txt, line 1: 8 fields, want 9 or 10"},
		{"aslevel_links.txt", "2\tWEST", "9\tWEST", "aslevel_links.txt, line 1: link between 1 and 9"},
		{"aslevel_links.txt", "Provider\t3", "Peer\t3", "aslevel_links.txt, line 3: roles Peer and Customer do not match"},
		{"aslevel_links.txt", "1gbit", "1gb", `aslevel_links.txt, line 1: rate "1gb" is not a number`},
		{"aslevel_links.txt", "10ms", "10mss", "aslevel_links.txt, line 1: time: "},
		{"aslevel_links.txt", "3,4", "3,four", `aslevel_links.txt, line 7: AS "four" of the announcements: `},
		{"aslevel_links.txt", "Peer    \t2", "Customer\t2", "line 1: roles Customer and Peer do not match"},
	} {
		files := fstest.MapFS{}
		for _, name := range []string{"AS_config.txt", "aslevel_links.txt"} {
			text, err := os.ReadFile("testdata/mini-internet/config/" + name)
			require.NoError(t, err)
			if name == c.file {
				require.Contains(t, string(text), c.old)
				text = []byte(strings.Replace(string(text), c.old, c.new, 1))
			}
			files["platform/config/"+name] = &fstest.MapFile{Data: text}
		}
		_, _, err := ImportMiniInternet(files)
		if c.want == "" { // 9 fields are the older form, whose second value is the delay
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, c.want)
		require.ErrorContains(t, err, "import mini-Internet: ")
	}
	_, _, err := ImportMiniInternet(fstest.MapFS{})
	require.ErrorContains(t, err, "no AS_config.txt in ., config, platform/config")
	_, _, err = ImportMiniInternet(fstest.MapFS{"AS_config.txt": &fstest.MapFile{}})
	require.ErrorContains(t, err, "neither aslevel_links.txt nor external_links_config.txt")
}

func FuzzImportMiniInternet(f *testing.F) {
	for _, seed := range []struct{ dir, links string }{
		{"testdata/mini-internet/config", "aslevel_links.txt"},
		{"testdata/mini-internet-2022", "external_links_config.txt"},
	} {
		var texts [2][]byte
		for i, name := range []string{"AS_config.txt", seed.links} {
			text, err := fs.ReadFile(os.DirFS(seed.dir), name)
			require.NoError(f, err)
			texts[i] = text
		}
		f.Add(texts[0], texts[1])
	}
	f.Fuzz(func(t *testing.T, systems, links []byte) {
		top, _, err := ImportMiniInternet(fstest.MapFS{
			"AS_config.txt":     &fstest.MapFile{Data: systems},
			"aslevel_links.txt": &fstest.MapFile{Data: links},
		})
		if err == nil && len(top.ASes) < 100 {
			requireSame(t, top)
		}
	})
}
