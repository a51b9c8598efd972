// SPDX-License-Identifier: LGPL-3.0-or-later

// Package mdcs_test holds the rules that concern the whole repository: licence headers (sources_test.go), imports and
// what a core must not do (imports_test.go), the patches over geth (patches_test.go), and that each requirement of
// SPEC.md is tested (spec_test.go).
package mdcs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
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
