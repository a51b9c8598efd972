// SPDX-License-Identifier: LGPL-3.0-or-later

package mdcs_test

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

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
