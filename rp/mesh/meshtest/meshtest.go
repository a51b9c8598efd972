// SPDX-License-Identifier: LGPL-3.0-or-later

// Package meshtest has the golden vectors of the RP-RP protocol (SPEC section 12): the
// messages and sums of mdcsmesh/1, and trees. The files are for all implementations.
//
// A file is a list of blocks. A block is a line that begins with its kind, and the indented
// lines behind it; all are words between spaces. Comments begin with #.
package meshtest

import (
	_ "embed"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Messages are the vectors of messages, adverts, sums, incarnations and hellos.
//
//go:embed messages.txt
var Messages string

// Trees are the vectors of trees.
//
//go:embed trees.txt
var Trees string

// Block is one vector.
type Block struct {
	Kind  string
	Args  []string   // of its first line
	Lines [][]string // words of the others, at least one each
}

// Parse returns the blocks of a file. It panics on an indented line without a block.
func Parse(text string) (blocks []Block) {
	for _, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case line[0] != ' ':
			blocks = append(blocks, Block{Kind: words[0], Args: words[1:]})
		default:
			b := &blocks[len(blocks)-1]
			b.Lines = append(b.Lines, words)
		}
	}
	return blocks
}

// Of returns the words behind the first one of each line that begins with it.
func (b *Block) Of(word string) (lines [][]string) {
	for _, l := range b.Lines {
		if l[0] == word {
			lines = append(lines, l[1:])
		}
	}
	return lines
}

// Hex returns the bytes of all lines that begin with a word, joined.
func (b *Block) Hex(word string) []byte {
	var all string
	for _, l := range b.Of(word) {
		all += strings.Join(l, "")
	}
	bytes, err := hex.DecodeString(all)
	if err != nil {
		panic(fmt.Sprintf("%s %v: %v", b.Kind, b.Args, err))
	}
	return bytes
}

// Number returns a number in decimal, or in hex with 0x.
func Number(word string) uint64 {
	n, err := strconv.ParseUint(word, 0, 64)
	if err != nil {
		panic(err)
	}
	return n
}
