// SPDX-License-Identifier: LGPL-3.0-or-later

// Package mdcs_test holds the rules that concern the whole repository: licence headers, who may import whom, what a
// core must not do, the size of the patches, and that each requirement of SPEC.md is tested.
package mdcs_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const (
	mdcs = "github.com/ethmcast/mdcs"
	geth = "github.com/ethereum/go-ethereum"
)

// Licences.

const (
	libraryLicence = "SPDX-License-Identifier: LGPL-3.0-or-later"              // as geth's library, into which we are linked
	kernelLicence  = "SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)" // the kernel demands a GPL-compatible program
)

// generatedLine marks files that carry no header, because a tool writes them anew.
var generatedLine = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

func TestEachSourceNamesItsLicence(t *testing.T) {
	for _, name := range sources(t) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		ext := filepath.Ext(name)
		switch ext {
		case ".go", ".c", ".h", ".lua", ".sh":
		case "":
			if !bytes.HasPrefix(text, []byte("#!")) && name != "Makefile" {
				continue
			}
		default:
			continue
		}
		if generatedLine.Match(text) {
			continue
		}
		want := libraryLicence
		if ext == ".c" || ext == ".h" { // all C here is for the kernel
			want = kernelLicence
		}
		line, rest, _ := strings.Cut(string(text), "\n")
		if strings.HasPrefix(line, "#!") {
			line, _, _ = strings.Cut(rest, "\n")
		}
		if !strings.HasSuffix(strings.TrimSuffix(line, " */"), " "+want) {
			t.Errorf("%s: the first line must be a comment with %q", name, want)
		}
	}
}

// The project speaks only of itself: a path of somebody's machine helps nobody else.
func TestNoPathsOfOneMachine(t *testing.T) {
	foreign := regexp.MustCompile(`(^|[\s"'=(])/(work|home|root)/`)
	for _, name := range sources(t) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.IndexByte(text, 0) >= 0 {
			continue // binary
		}
		n := 0
		for line := range bytes.Lines(text) {
			if n++; foreign.Match(line) {
				t.Errorf("%s:%d: %s", name, n, bytes.TrimSpace(line))
			}
		}
	}
}

// Imports.

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
var leaves = []string{mdcs + "/ethmcast/wire", mdcs + "/ethmcast/auth", mdcs + "/ethmcast/fec"}

// cores are state machines: they are told the time and what arrived, and say what to send.
var cores = append([]string{
	mdcs + "/ethmcast/coverage",
	mdcs + "/ethmcast/discovery/nearest",
	mdcs + "/ethmcast/outbox",
	mdcs + "/ethmcast/proto",
	mdcs + "/ethmcast/reassembly",
	mdcs + "/ethmcast/receipt",
	mdcs + "/ethmcast/repair",
	mdcs + "/rp/membership",
	mdcs + "/rp/mesh",
	mdcs + "/rp/mesh/linkstate",
	mdcs + "/rp/mesh/tree",
	mdcs + "/rp/receipts",
}, leaves...)

var importRules = []importRule{{
	in:   leaves,
	deep: true,
	only: append([]string{"github.com/dchest/siphash", "github.com/klauspost/reedsolomon", "github.com/klauspost/cpuid/v2",
		"golang.org/x/sys/cpu"}, leaves...),
	why: "the wire format is a leaf: it stands alone",
}, {
	in: cores,
	never: []string{"net", "net/http/...", "net/rpc/...", "os/...", "log/...", "syscall", "context",
		geth + "/log", geth + "/p2p", geth + "/rpc", geth + "/node", "golang.org/x/sys/...", "golang.org/x/net/..."},
	why: "a core has neither sockets nor files nor log: a test can drive it step by step",
}, {
	in:     []string{mdcs + "/rp/..."},
	except: []string{mdcs + "/rp/audit"},
	never:  []string{mdcs + "/ethmcast", mdcs + "/ethmcast/fec", mdcs + "/ethmcast/reassembly", geth + "/core/types"},
	why:    "a replication point knows groups and neighbours, not transactions; only the audit looks inside",
}, {
	in:     []string{mdcs + "/..."},
	except: []string{mdcs + "/rp/datapath/xdp/...", mdcs + "/bpf/..."},
	tests:  true,
	never:  []string{mdcs + "/bpf/..."},
	why:    "the kernel programs stand behind the datapath's interface",
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
	why:   "what is linked into geth must not bring the replication point with it",
}, {
	in:     []string{mdcs + "/..."},
	except: []string{mdcs + "/cmd/...", mdcs + "/testnet/..."},
	tests:  true,
	never:  []string{mdcs + "/cmd/...", mdcs + "/testnet/..."},
	why:    "commands and the testnet stand on top: nobody depends on them",
}}

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
	var wire, shell = importRules[0], importRule{under: geth, only: []string{geth + "/p2p/..."}}
	for _, test := range []struct {
		rule importRule
		imp  string
		want bool
	}{
		{wire, "encoding/binary", true},
		{wire, "github.com/dchest/siphash", true},
		{wire, geth + "/rlp", false},
		{importRules[1], "net/netip", true},
		{importRules[1], "net", false},
		{importRules[1], "os/exec", false},
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

// Patches.

const maxAddedLines = 60

// The series stays small, applies to the version of geth that go.mod names, and leaves package eth free of us.
func TestPatches(t *testing.T) {
	patches, err := filepath.Glob("patches/*.patch")
	if err != nil || len(patches) == 0 {
		t.Fatalf("no patches: %v", err)
	}
	added := 0
	for i, name := range patches {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if number := fmt.Sprintf("%04d-", i+1); !strings.HasPrefix(filepath.Base(name), number) {
			t.Errorf("%s: number %d of the series must begin with %s", name, i+1, number)
		}
		if subject := fmt.Sprintf("\nSubject: [PATCH %d/%d] ", i+1, len(patches)); !strings.Contains(string(text), subject) {
			t.Errorf("%s: no line begins with %q", name, strings.TrimSpace(subject))
		}
		file := ""
		for line := range strings.Lines(string(text)) {
			if changed, ok := strings.CutPrefix(line, "+++ b/"); ok {
				file = strings.TrimSpace(changed)
			} else if strings.HasPrefix(line, "+") {
				added++
				if within(file, "eth") && strings.Contains(line, mdcs) {
					t.Errorf("%s: %s: package eth must not know us", name, file)
				}
			}
		}
	}
	if added > maxAddedLines {
		t.Errorf("the series adds %d lines, at most %d keep it easy to carry along", added, maxAddedLines)
	}

	base, err := os.ReadFile("patches/BASE")
	if err != nil {
		t.Fatal(err)
	}
	var module struct{ Version, Dir string }
	if err := json.Unmarshal(goCommand(t, "mod", "download", "-json", geth+"@"+strings.TrimSpace(string(base))), &module); err != nil {
		t.Fatal(err)
	}
	gomod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(gomod), "\t"+geth+" "+module.Version+"\n") {
		t.Errorf("patches/BASE is %s, go.mod requires another version of %s", module.Version, geth)
	}
	args := []string{"-C", module.Dir, "apply", "--check"}
	for _, name := range patches {
		abs, err := filepath.Abs(name)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, abs)
	}
	cmd := exec.Command("git", args...)
	cmd.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(module.Dir)) // the cache may lie in a work tree
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("git apply --check: %v\n%s", err, out)
	}
}

// Requirements.

var (
	requirementMark = regexp.MustCompile(`\*\*(R\d+)\*\*`)
	traceRow        = regexp.MustCompile(`^\|\s*(R\d+)\s*\|(.*)\|\s*$`)
	tracedTest      = regexp.MustCompile("`([\\w./-]+)\\.((?:Test|Fuzz|Example)\\w*)`")
)

// Each requirement **R<n>** of SPEC.md has a row in its table of tests, and each test that the table names exists.
func TestRequirementsAreTested(t *testing.T) {
	spec, err := os.Open("SPEC.md")
	if err != nil {
		t.Fatal(err)
	}
	defer spec.Close()

	for _, problem := range checkTraceability(spec, testExists) {
		t.Error(problem)
	}
}

// checkTraceability returns what is wrong with a specification, given whether a package has a test.
func checkTraceability(spec io.Reader, exists func(pkg, test string) (bool, error)) (problems []string) {
	defined, traced := make(map[string]int), make(map[string]int) // requirement: line
	complain := func(line int, format string, args ...any) {
		problems = append(problems, fmt.Sprintf("SPEC.md:%d: %s", line, fmt.Sprintf(format, args...)))
	}
	lines := bufio.NewScanner(spec)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		row := traceRow.FindStringSubmatch(lines.Text())
		if row == nil {
			for _, mark := range requirementMark.FindAllStringSubmatch(lines.Text(), -1) {
				if first, twice := defined[mark[1]]; twice {
					complain(n, "%s is defined in line %d already", mark[1], first)
				}
				defined[mark[1]] = n
			}
			continue
		}
		if first, twice := traced[row[1]]; twice {
			complain(n, "%s has a row in line %d already", row[1], first)
		}
		traced[row[1]] = n
		tests := tracedTest.FindAllStringSubmatch(row[2], -1)
		if len(tests) == 0 {
			complain(n, "%s names no test", row[1])
		}
		if quoted := strings.Count(row[2], "`") / 2; quoted != len(tests) {
			complain(n, "%s: %d of %d names in backticks are of the form `package.TestName`", row[1], len(tests), quoted)
		}
		for _, test := range tests {
			switch found, err := exists(test[1], test[2]); {
			case err != nil:
				complain(n, "%s: %v", row[1], err)
			case !found:
				complain(n, "%s: package %s has no %s", row[1], test[1], test[2])
			}
		}
	}
	if err := lines.Err(); err != nil {
		problems = append(problems, err.Error())
	}
	if len(defined) == 0 {
		problems = append(problems, "SPEC.md: no requirements")
	}
	for r, line := range defined {
		if traced[r] == 0 {
			complain(line, "%s has no row in the table of tests", r)
		}
	}
	for r, line := range traced {
		if defined[r] == 0 {
			complain(line, "%s is not defined", r)
		}
	}
	slices.Sort(problems)
	return problems
}

// testExists looks for a test function in the test files of a directory.
func testExists(dir, test string) (bool, error) {
	files, err := filepath.Glob(filepath.Join(filepath.FromSlash(dir), "*_test.go"))
	if err != nil {
		return false, err
	}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return false, err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == test {
				return true, nil
			}
		}
	}
	return false, nil
}

func TestTraceability(t *testing.T) {
	exists := func(pkg, test string) (bool, error) { return pkg == "rp" && test == "TestA", nil }
	for _, test := range []struct {
		name, spec string
		problems   []string
	}{{
		name: "complete",
		spec: "**R1** The RP MUST copy.\n\n| R1 | `rp.TestA`, and again `rp.TestA` |\n",
	}, {
		name:     "no row",
		spec:     "**R1** The RP MUST copy.\n",
		problems: []string{"SPEC.md:1: R1 has no row in the table of tests"},
	}, {
		name:     "row without a requirement",
		spec:     "**R1** It MUST.\n| R1 | `rp.TestA` |\n| R2 | `rp.TestA` |\n",
		problems: []string{"SPEC.md:3: R2 is not defined"},
	}, {
		name:     "renamed test",
		spec:     "**R1** It MUST.\n| R1 | `rp.TestB` |\n",
		problems: []string{"SPEC.md:2: R1: package rp has no TestB"},
	}, {
		name:     "row without a test",
		spec:     "**R1** It MUST.\n| R1 | by inspection |\n",
		problems: []string{"SPEC.md:2: R1 names no test"},
	}, {
		name:     "misspelt name",
		spec:     "**R1** It MUST.\n| R1 | `rp.TestA`, `rp TestB` |\n",
		problems: []string{"SPEC.md:2: R1: 1 of 2 names in backticks are of the form `package.TestName`"},
	}, {
		name:     "twice",
		spec:     "**R1** It MUST.\n**R1** It SHOULD.\n| R1 | `rp.TestA` |\n| R1 | `rp.TestA` |\n",
		problems: []string{"SPEC.md:2: R1 is defined in line 1 already", "SPEC.md:4: R1 has a row in line 3 already"},
	}, {
		name:     "nothing at all",
		problems: []string{"SPEC.md: no requirements"},
	}} {
		t.Run(test.name, func(t *testing.T) {
			if got := checkTraceability(strings.NewReader(test.spec), exists); !slices.Equal(got, test.problems) {
				t.Errorf("problems %q, want %q", got, test.problems)
			}
		})
	}
}

// What the rules look at.

// sources are the files of the repository, with slashes and relative to its root, without what is built or generated
// by running.
func sources(t *testing.T) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (name == ".git" || name == "build" || name == "results") {
			return fs.SkipDir
		}
		if entry.Type().IsRegular() && name != ".git" {
			names = append(names, filepath.ToSlash(name))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// goPackage is what go list says about one of our packages.
type goPackage struct {
	ImportPath   string
	Dir          string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
	Deps         []string
}

var listPackages = sync.OnceValues(func() ([]goPackage, error) {
	out, err := runGo("list", "-e", "-json=ImportPath,Dir,GoFiles,TestGoFiles,XTestGoFiles,Deps", "./...")
	if err != nil {
		return nil, err
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var pkg goPackage
		if err := dec.Decode(&pkg); errors.Is(err, io.EOF) {
			return pkgs, nil
		} else if err != nil {
			return nil, err
		}
		pkgs = append(pkgs, pkg)
	}
})

func packages(t *testing.T) []goPackage {
	t.Helper()
	pkgs, err := listPackages()
	if err != nil {
		t.Fatal(err)
	}
	return pkgs
}

// imports returns what each file imports, by the file's path from the root.
func (p goPackage) imports(t *testing.T, tests bool) map[string][]string {
	t.Helper()
	files := p.GoFiles
	if tests {
		files = slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles)
	}
	imports := make(map[string][]string)
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		key := path.Join(strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, mdcs), "/"), name)
		for _, spec := range file.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			imports[key] = append(imports[key], imp)
		}
	}
	return imports
}

func goCommand(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := runGo(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func runGo(args ...string) ([]byte, error) {
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "GOFLAGS=") // not with the patched geth that the tests run with
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w\n%s", args[0], err, stderr.Bytes())
	}
	return out, nil
}

// match reports whether an import path is the pattern, or below it when it ends in "/...".
func match(pattern, imp string) bool {
	if base, ok := strings.CutSuffix(pattern, "..."); ok {
		return base == "" || imp+"/" == base || strings.HasPrefix(imp, base)
	}
	return pattern == imp
}

func matchAny(patterns []string, imp string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return match(p, imp) })
}

// within reports whether a path lies in a directory.
func within(name, dir string) bool {
	return strings.HasPrefix(name, dir+"/")
}
