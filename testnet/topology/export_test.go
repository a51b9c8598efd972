// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"encoding/xml"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"
)

// exported are the networks that the tests export, with nodes.
func exported(t *testing.T) []*Topology {
	t.Helper()
	var tops []*Topology
	for _, name := range []string{"ten-as", "two-as", "testdata/ixp.toml"} {
		tops = append(tops, populate(t, load(t, name)))
	}
	return tops
}

// clab is what schemas/clab.schema.json of containerlab knows and is used here.
type clab struct {
	Name     string
	Topology struct {
		Defaults struct{ Kind, Image string }
		Nodes    map[string]struct {
			Group string
			Binds []string
			Exec  []string
		}
		Links []struct{ Endpoints []string }
	}
}

func TestContainerlab(t *testing.T) {
	for _, top := range exported(t) {
		files := top.Containerlab(func(router string) []byte { return []byte("# " + router) })
		var lab clab
		decoder := yaml.NewDecoder(strings.NewReader(string(files[top.Name+".clab.yml"])))
		decoder.KnownFields(true)
		require.NoError(t, decoder.Decode(&lab))
		require.Regexp(t, `^[a-zA-Z0-9][a-zA-Z0-9-._]*$`, lab.Name)
		require.Equal(t, "linux", lab.Topology.Defaults.Kind)
		require.Len(t, lab.Topology.Nodes, len(top.ASes)+len(top.IXPs)+len(top.Hosts))
		require.Len(t, files, len(top.ASes)+len(top.IXPs)+2)

		ends := make(map[string]bool)
		for _, l := range lab.Topology.Links {
			require.Len(t, l.Endpoints, 2)
			for _, end := range l.Endpoints {
				require.Regexp(t, `^\S+:eth[1-9][0-9]*$`, end, "eth0 is that of the management network")
				require.False(t, ends[end], "%s twice", end)
				ends[end] = true
				name, _, _ := strings.Cut(end, ":")
				require.Contains(t, lab.Topology.Nodes, name)
			}
		}
		for name, n := range lab.Topology.Nodes {
			require.NotEmpty(t, n.Exec)
			require.Len(t, slices.Compact(slices.Sorted(slices.Values(n.Binds))), len(n.Binds))
			for _, bind := range n.Binds {
				source, _, _ := strings.Cut(bind, ":")
				require.Equal(t, "# "+name, string(files[source]))
			}
			// What a command configures is there.
			for _, command := range n.Exec {
				for _, device := range regexp.MustCompile(`\beth\d+`).FindAllString(command, -1) {
					require.True(t, ends[name+":"+device], "%s: %s", name, command)
				}
			}
		}
		for _, l := range top.Links {
			for name, addr := range map[string]netip.Addr{l.A: l.AddrA(), l.B: l.AddrB()} {
				require.Contains(t, strings.Join(lab.Topology.Nodes[name].Exec, "\n"), fmt.Sprintf("ip -6 addr add %v/126 dev eth", addr))
			}
		}

		// Each end of a line that does anything is impaired once.
		impaired := make(map[string]bool)
		command := regexp.MustCompile(`^containerlab tools netem set -n clab-` + lab.Name + `-(\S+) -i (eth\d+)( --(delay|jitter) [0-9.]+[mµ]?s| --(loss|rate) [0-9.]+)+$`)
		for line := range strings.Lines(string(files["netem.sh"])) {
			if m := command.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
				require.False(t, impaired[m[1]+":"+m[2]])
				require.True(t, ends[m[1]+":"+m[2]])
				impaired[m[1]+":"+m[2]] = true
			} else {
				require.Regexp(t, `^(#.*|set -e)$`, strings.TrimSpace(line))
			}
		}
		want := 0
		for _, l := range top.lines() {
			if netemArguments(l) != "" {
				want += 2
			}
		}
		require.Len(t, impaired, want)
		if sh, err := exec.LookPath("sh"); err == nil {
			script := exec.Command(sh, "-n")
			script.Stdin = strings.NewReader(string(files["netem.sh"]))
			out, err := script.CombinedOutput()
			require.NoErrorf(t, err, "%s", out)
		}
	}
	require.Equal(t, " --delay 5ms --jitter 1ms --loss 1 --rate 50000", netemArguments(Line{Delay: 5e6, Jitter: 1e6, Loss: 0.01, Rate: 50e6}))
}

// lines are those of a network, of all kinds.
func (t *Topology) lines() []Line {
	var lines []Line
	for _, l := range t.Links {
		lines = append(lines, l.Line)
	}
	for _, x := range t.IXPs {
		for _, m := range x.Members {
			lines = append(lines, m.Line)
		}
	}
	for _, h := range t.Hosts {
		lines = append(lines, h.Line)
	}
	return lines
}

// TestSEED checks the syntax of the program and that it names everything.
func TestSEED(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 to check the syntax with")
	}
	for _, top := range exported(t) {
		program := top.SEED()
		path := filepath.Join(t.TempDir(), "net.py")
		require.NoError(t, os.WriteFile(path, program, 0o644))
		out, err := exec.Command(python, "-m", "py_compile", path).CombinedOutput()
		require.NoErrorf(t, err, "%s", out)
		for call, want := range map[string]int{
			"make_as": len(top.ASes), "make_link": len(top.Links), "make_ixp": len(top.IXPs), "make_host": len(top.Hosts),
		} {
			require.Len(t, regexp.MustCompile(`(?m)^`+call+`\(\d`).FindAll(program, -1), want, call)
		}
		for _, address := range regexp.MustCompile(`"10\.[0-9.]+"`).FindAllString(string(program), -1) {
			for number := range strings.SplitSeq(strings.Trim(address, `"`), ".") {
				var n int
				_, err := fmt.Sscan(number, &n)
				require.NoError(t, err)
				require.LessOrEqual(t, n, 254)
			}
		}
	}
	top := load(t, "testdata/ixp.toml")
	require.Contains(t, string(top.SEED()), `
make_link(12, 103, PeerRelationship.Provider, "10.192.0", 66, 5, 10000000000, 1)
`)
	require.Contains(t, string(top.SEED()), `
make_host(101, "as101-rp", "10.64.101.2", 1, 1000000000, 0)
`)
}

func TestDOT(t *testing.T) {
	top := load(t, "testdata/ixp.toml")
	dot := top.DOT()
	for _, want := range []string{
		"digraph \"ixp\" {\n",
		"\t{ rank=same; \"as1\"; \"as2\"; }\n",
		"\t\"as101\" [label=\"as101\\nAS 101\"];\n",
		"\t\"as1\" -> \"as2\" [label=\"10ms\", dir=none, style=dashed, constraint=false];\n",
		"\t\"as12\" -> \"as103\" [label=\"5ms\"];\n",
		"\t\"as101\" -> \"ix80\" [label=\"2ms\", dir=none, style=dashed];\n",
	} {
		require.Contains(t, dot, want)
	}
	require.Equal(t, strings.Count(dot, "{"), strings.Count(dot, "}"))
}

func TestGraphvizReadsDOT(t *testing.T) {
	dot, err := exec.LookPath("dot")
	if err != nil {
		t.Skip("no dot to read the graph with")
	}
	for _, top := range exported(t) {
		command := exec.Command(dot, "-Tsvg")
		command.Stdin = strings.NewReader(top.DOT())
		out, err := command.CombinedOutput()
		require.NoErrorf(t, err, "%s", out)
	}
}

// TestSVG reads the picture: all names and delays are in it, in its area, and no
// line passes through a box that it does not end at.
func TestSVG(t *testing.T) {
	for _, top := range exported(t) {
		var texts []string
		paths := 0
		decoder := xml.NewDecoder(strings.NewReader(top.SVG()))
		for {
			token, err := decoder.Token()
			if err == io.EOF {
				break
			}
			require.NoError(t, err)
			switch token := token.(type) {
			case xml.CharData:
				texts = append(texts, string(token))
			case xml.StartElement:
				if token.Name.Local == "path" {
					paths++
				}
				for _, a := range token.Attr {
					require.NotContains(t, a.Value, "NaN")
					require.False(t, strings.HasPrefix(a.Value, "-"), "outside of the picture")
				}
			}
		}
		edges := top.edges()
		require.Equal(t, len(edges), paths)
		for _, a := range top.ASes {
			require.Contains(t, texts, a.Name)
		}
		for _, x := range top.IXPs {
			require.Contains(t, texts, x.Name)
		}
		var boxes []rect
		places := top.layout(edges)
		for _, p := range places {
			box := rect{p, boxWidth, boxHeight}
			require.False(t, slices.ContainsFunc(boxes, box.overlaps), "two boxes at one place")
			boxes = append(boxes, box)
		}
		for _, e := range edges {
			require.Contains(t, texts, e.label)
			c := bend(places[e.a], places[e.b], boxes)
			require.False(t, c.crosses(boxes), "%s-%s in %s", e.a, e.b, top.Name)
		}
	}
}
