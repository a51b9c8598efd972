// SPDX-License-Identifier: LGPL-3.0-or-later

package mdcs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// importRule says what a set of packages may import. Patterns are import paths, "/..." at the end adds what is below.
type importRule struct {
	in     []string            // packages under the rule
	except []string            // packages that are not, although in covers them
	tests  bool                // the rule holds for test files too
	deep   bool                // the rule holds for what the imports import, too
	under  string              // only looks at imports below this path; empty: at all outside of the standard library
	only   []string            // what may be imported of these; nil: anything
	never  []string            // what may not be imported, standard library or not
	but    map[string][]string // file: what it alone may import besides
	why    string
}

// leaves hold formats and algorithms. Whoever speaks mDCS, in the kernel's tests too, can take them without geth.
var leaves = []string{mdcs + "/ethmcast/ids", mdcs + "/ethmcast/wire", mdcs + "/ethmcast/auth"}

// cores are state machines: they are told the time and what arrived, and say what to send.
var cores = append([]string{
	mdcs + "/ethmcast/codec",
	mdcs + "/ethmcast/coverage",
	mdcs + "/ethmcast/discovery/nearest",
	mdcs + "/ethmcast/outbox",
	mdcs + "/ethmcast/proto",
	mdcs + "/ethmcast/reassembly",
	mdcs + "/ethmcast/receipt",
	mdcs + "/rp/admission",
	mdcs + "/rp/cache",
	mdcs + "/rp/keyring",
	mdcs + "/rp/membership",
	mdcs + "/rp/mesh",
	mdcs + "/rp/mesh/linkstate",
	mdcs + "/rp/mesh/tree",
	mdcs + "/rp/receipts",
}, leaves...)

// shells are the other packages of ethmcast and rp: they have sockets, goroutines or clocks.
var shells = []string{
	mdcs + "/ethmcast",
	mdcs + "/ethmcast/auth/authtest",
	mdcs + "/ethmcast/discovery",
	mdcs + "/ethmcast/discovery/discoverytest",
	mdcs + "/ethmcast/ethmcasttest",
	mdcs + "/ethmcast/wire/wiretest",
	mdcs + "/rp",
	mdcs + "/rp/admin/...",
	mdcs + "/rp/config",
	mdcs + "/rp/datapath/...",
	mdcs + "/rp/events",
	mdcs + "/rp/front/...",
	mdcs + "/rp/limitlog",
	mdcs + "/rp/host",
	mdcs + "/rp/hostnet",
	mdcs + "/rp/hostnet/hostnettest",
	mdcs + "/rp/mesh/meshtest",
	mdcs + "/rp/meshside",
	mdcs + "/rp/metrics",
	mdcs + "/rp/msgio",
	mdcs + "/rp/peerside",
	mdcs + "/rp/round",
}

// xdpRooms are the parts of the XDP engine that know nothing of the engine.
var xdpRooms = []string{
	mdcs + "/rp/datapath/xdp/fanout/...",
	mdcs + "/rp/datapath/xdp/nexthop",
	mdcs + "/rp/datapath/xdp/objects",
	mdcs + "/rp/datapath/xdp/pindir",
}

var leafRule = importRule{
	in:   leaves,
	deep: true,
	only: []string{"github.com/dchest/siphash", mdcs + "/ethmcast/ids", mdcs + "/ethmcast/wire"},
	why:  "the wire format is a leaf: it stands alone",
}

var coreRule = importRule{
	in: cores,
	never: []string{"net", "net/http/...", "net/rpc/...", "os/...", "log/...", "syscall", "context",
		geth + "/log", geth + "/p2p", geth + "/rpc", geth + "/node", "golang.org/x/sys/...", "golang.org/x/net/..."},
	why: "a core has neither sockets nor files nor log: a test can drive it step by step",
}

var importRules = []importRule{leafRule, coreRule, {
	in:    []string{mdcs + "/rp/..."},
	never: []string{mdcs + "/ethmcast", mdcs + "/ethmcast/reassembly", geth + "/core/types"},
	why:   "a replication point knows groups and RP neighbours, not transactions",
}, {
	in:     []string{mdcs + "/..."},
	except: []string{mdcs + "/rp/datapath/xdp/...", mdcs + "/bpf/..."},
	tests:  true,
	never:  []string{mdcs + "/bpf/..."},
	why:    "the kernel programs stand behind the datapath's interface",
}, {
	in:     []string{mdcs + "/..."},
	except: []string{mdcs + "/rp/datapath/xdp", mdcs + "/rp/datapath/xdp/fanout/..."},
	tests:  true,
	never:  xdpRooms,
	why:    "the rooms of the XDP engine stand behind it, and know neither it nor each other",
}, {
	in:    []string{mdcs + "/rp/datapath/xdp/pindir"},
	tests: true,
	never: []string{"github.com/vishvananda/...", mdcs + "/rp/datapath/...", mdcs + "/rp/hostnet"},
	why:   "the directory of a datapath is files, links and BPF maps: what belongs to it elsewhere is the engine's",
}, {
	in:    []string{mdcs + "/rp/datapath/xdp/objects"},
	tests: true,
	never: []string{"github.com/vishvananda/...", mdcs + "/rp/hostnet"},
	why:   "loaded programs and BPF maps are the same whatever devices and routes there are",
}, {
	in:    []string{mdcs + "/rp/datapath/xdp/nexthop"},
	tests: true,
	never: []string{"github.com/cilium/...", mdcs + "/bpf"},
	why:   "paths are what the kernel's stack says: they know neither programs nor BPF maps",
}, {
	in:    []string{mdcs + "/rp/datapath/xdp/fanout/..."},
	tests: true,
	never: []string{"github.com/cilium/...", "github.com/vishvananda/...", "golang.org/x/sys/...", "net", "os/...",
		mdcs + "/rp/hostnet", mdcs + "/rp/datapath", mdcs + "/rp/datapath/xdp/nexthop", mdcs + "/rp/datapath/xdp/objects", mdcs + "/rp/datapath/xdp/pindir"},
	why: "chains and slices are tested in memory: the kernel stands behind an interface",
}, {
	in:    []string{mdcs + "/ethmcast/..."},
	under: geth,
	only: []string{geth + "/p2p/...", geth + "/core/types", geth + "/common/...", geth + "/rlp", geth + "/crypto/...", geth + "/log",
		geth + "/metrics", geth + "/event", geth + "/node", geth + "/rpc"},
	but: map[string][]string{"ethmcast/register.go": {geth + "/eth/...", geth + "/core"}},
	why: "ethmcast must survive changes inside of geth: only its registration touches the eth service",
}, {
	in:    []string{mdcs + "/ethmcast/..."},
	under: mdcs,
	only:  []string{mdcs + "/ethmcast/..."},
	why:   "ethmcast is linked into geth: it must not bring the replication point with it, nor its side of a protocol (rp/admission)",
}, {
	in:     []string{mdcs + "/..."},
	except: []string{mdcs + "/cmd/...", mdcs + "/testnet/..."},
	tests:  true,
	never:  []string{mdcs + "/cmd/...", mdcs + "/testnet/..."},
	why:    "commands and the testnet stand on top: nobody depends on them",
}}

// A package of ethmcast or rp is a core or a shell, so that nobody forgets to guard a new core.
func TestEachPackageIsCoreOrShell(t *testing.T) {
	for _, pkg := range packages(t) {
		if !within(pkg.ImportPath, mdcs+"/ethmcast") && !within(pkg.ImportPath, mdcs+"/rp") {
			continue
		}
		if matchAny(cores, pkg.ImportPath) == matchAny(shells, pkg.ImportPath) {
			t.Errorf("%s must be in exactly one of the lists cores and shells of imports_test.go", pkg.ImportPath)
		}
	}
}

// A rule about a package that is not there guards nothing.
func TestImportRulesMatch(t *testing.T) {
	patterns := slices.Concat(cores, shells)
	for _, rule := range importRules {
		patterns = slices.Concat(patterns, rule.in, rule.except)
		for _, imp := range slices.Concat(rule.only, rule.never) {
			if strings.HasPrefix(imp, mdcs+"/") {
				patterns = append(patterns, imp)
			}
		}
	}
	for _, pattern := range patterns {
		if !slices.ContainsFunc(packages(t), func(pkg goPackage) bool { return match(pattern, pkg.ImportPath) }) {
			t.Errorf("the pattern %s matches no package", pattern)
		}
	}
}

// What is allowed and not used any more would be allowed again without a thought.
func TestImportRulesAreUsed(t *testing.T) {
	for _, rule := range importRules {
		var all []string                      // imports of the packages under the rule
		alone := make(map[string][]string)    // the ones of a file that the rule does not allow
		excepted := make(map[string][]string) // the ones of a package that the rule would not allow
		for _, pkg := range packages(t) {
			if !matchAny(rule.in, pkg.ImportPath) {
				continue
			}
			for file, imports := range pkg.imports(t, rule.tests) {
				refused := slices.DeleteFunc(slices.Clone(imports), rule.allows)
				if matchAny(rule.except, pkg.ImportPath) {
					excepted[pkg.ImportPath] = append(excepted[pkg.ImportPath], refused...)
					continue
				}
				all, alone[file] = append(all, imports...), refused
			}
		}
		for _, pattern := range rule.only {
			if !slices.ContainsFunc(all, func(imp string) bool { return match(pattern, imp) }) {
				t.Errorf("nothing imports %s: %s", pattern, rule.why)
			}
		}
		for file, patterns := range rule.but {
			for _, pattern := range patterns {
				if !slices.ContainsFunc(alone[file], func(imp string) bool { return match(pattern, imp) }) {
					t.Errorf("%s imports no %s: %s", file, pattern, rule.why)
				}
			}
		}
		for _, pattern := range rule.except {
			used := func(pkg string) bool { return match(pattern, pkg) && len(excepted[pkg]) > 0 }
			if !slices.ContainsFunc(slices.Collect(maps.Keys(excepted)), used) {
				t.Errorf("%s need not be excepted: %s", pattern, rule.why)
			}
		}
	}
}

func TestImports(t *testing.T) {
	for _, rule := range importRules {
		for _, pkg := range packages(t) {
			if !matchAny(rule.in, pkg.ImportPath) || matchAny(rule.except, pkg.ImportPath) {
				continue
			}
			for file, imports := range pkg.imports(t, rule.tests) {
				for _, imp := range imports {
					if !rule.allows(imp) && !matchAny(rule.but[file], imp) {
						t.Errorf("%s imports %s: %s", file, imp, rule.why)
					}
				}
			}
			if !rule.deep {
				continue
			}
			for _, imp := range pkg.Deps {
				if !rule.allows(imp) {
					t.Errorf("%s depends on %s: %s", pkg.ImportPath, imp, rule.why)
				}
			}
		}
	}
}

func (r importRule) allows(imp string) bool {
	if matchAny(r.never, imp) {
		return false
	}
	if host, _, _ := strings.Cut(imp, "/"); r.only == nil || !strings.Contains(host, ".") || !match(path.Join(r.under, "..."), imp) {
		return true
	}
	return matchAny(r.only, imp)
}

func TestImportRulesThemselves(t *testing.T) {
	shell := importRule{under: geth, only: []string{geth + "/p2p/..."}}
	for _, test := range []struct {
		rule importRule
		imp  string
		want bool
	}{
		{leafRule, "encoding/binary", true},
		{leafRule, "github.com/dchest/siphash", true},
		{leafRule, geth + "/rlp", false},
		{coreRule, "net/netip", true},
		{coreRule, "net", false},
		{coreRule, "os/exec", false},
		{shell, geth + "/p2p", true},
		{shell, geth + "/p2p/enode", true},
		{shell, geth + "/p2pnot", false},
		{shell, geth + "/eth", false},
		{shell, "github.com/urfave/cli/v2", true},
	} {
		if got := test.rule.allows(test.imp); got != test.want {
			t.Errorf("%q: allowed %v, want %v", test.imp, got, test.want)
		}
	}
}

// A core is told the time: what it does depends on its inputs alone.
func TestCoresHaveNoClock(t *testing.T) {
	clock := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTicker", "NewTimer"}
	for _, pkg := range packages(t) {
		if !matchAny(cores, pkg.ImportPath) {
			continue
		}
		for _, name := range pkg.GoFiles {
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, filepath.Join(pkg.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.SelectorExpr:
					if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clock, n.Sel.Name) {
						t.Errorf("%v: time.%s in a core, which is told the time", fset.Position(n.Pos()), n.Sel.Name)
					}
				case *ast.GoStmt:
					t.Errorf("%v: a goroutine in a core", fset.Position(n.Pos()))
				}
				return true
			})
		}
	}
}

// messagesOfRPs are the messages of mdcs/1 that only an RP sends (SPEC 7.1).
var messagesOfRPs = []string{"Welcome", "Rekey", "Resumed", "Activated", "Redirect", "Counters", "Receipt"}

// The RP's side of mdcs/1 is in rp: nothing in ethmcast makes a message that only an RP sends.
func TestOnlyRPsSpeakAsRPs(t *testing.T) {
	made := make(map[string]bool) // messages, by rp
	for _, pkg := range packages(t) {
		for _, name := range pkg.GoFiles {
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, filepath.Join(pkg.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				literal, ok := n.(*ast.CompositeLit)
				if !ok {
					return true
				}
				message := messageOf(pkg.ImportPath, literal.Type)
				if within(pkg.ImportPath, mdcs+"/rp") {
					made[message] = true
				}
				if within(pkg.ImportPath, mdcs+"/ethmcast") && slices.Contains(messagesOfRPs, message) {
					t.Errorf("%v: only an RP sends this message", fset.Position(literal.Pos()))
				}
				return true
			})
		}
	}
	for _, message := range messagesOfRPs {
		if !made[message] {
			t.Errorf("nothing in rp makes a %s: this test looks for the wrong thing", message)
		}
	}
}

// The specification says what only an RP sends.
func TestMessagesOfRPs(t *testing.T) {
	spec, err := os.ReadFile("SPEC.md")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, row := range regexp.MustCompile(`(?m)^\| 0x\w\w \| (\w+) \| RP to peer \|`).FindAllSubmatch(spec, -1) {
		names = append(names, string(row[1]))
	}
	if !slices.Equal(names, messagesOfRPs) {
		t.Errorf("SPEC 7.1: the RP sends %v, the rule is about %v", names, messagesOfRPs)
	}
}

// messageOf returns the name of a message type of mdcs/1 as a package writes it, "" for another type.
func messageOf(pkg string, typ ast.Expr) string {
	switch typ := typ.(type) {
	case *ast.Ident:
		if pkg == mdcs+"/ethmcast/proto" {
			return typ.Name
		}
	case *ast.SelectorExpr:
		if x, ok := typ.X.(*ast.Ident); ok && x.Name == "proto" {
			return typ.Sel.Name
		}
	}
	return ""
}
