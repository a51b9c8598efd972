// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// element is a table of a file: of those with the same name, the one with an
// index.
type element struct {
	table string
	index int
}

// elementLines finds the line in which each table of a file begins. The text has
// been parsed before.
func elementLines(data []byte) map[element]int {
	var (
		lines = make(map[element]int)
		count = make(map[string]int)
		p     = unstable.Parser{KeepComments: false}
	)
	p.Reset(data)
	for p.NextExpression() {
		node := p.Expression()
		if node.Kind != unstable.ArrayTable && node.Kind != unstable.Table {
			continue
		}
		var (
			keys []string
			line int
		)
		for it := node.Key(); it.Next(); {
			if line == 0 {
				line = p.Shape(it.Node().Raw).Start.Line
			}
			keys = append(keys, string(it.Node().Data))
		}
		name := strings.Join(keys, ".")
		lines[element{name, count[name]}] = line
		count[name]++
	}
	return lines
}
