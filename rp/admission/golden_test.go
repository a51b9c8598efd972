// SPDX-License-Identifier: LGPL-3.0-or-later

package admission

import (
	"os"
	"sync"
	"testing"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/mesh/meshtest"
)

// goldenGroup is the group of the golden messages.
const goldenGroup = 0xf1020304

// golden has the payloads of the golden messages with one code.
type golden struct {
	code     uint64
	payloads [][]byte
}

var readGolden = sync.OnceValues(func() ([]golden, error) {
	text, err := os.ReadFile("../../ethmcast/proto/testdata/messages.txt")
	if err != nil {
		return nil, err
	}
	all := make([]golden, proto.ReceiptMsg+1)
	for _, b := range meshtest.Parse(string(text)) {
		code := meshtest.Number(b.Args[1])
		all[code].code = code
		all[code].payloads = append(all[code].payloads, b.Hex("hex"))
	}
	return all, nil
})

// goldenMessages returns the golden messages by code. Each code has at least one.
func goldenMessages(tb testing.TB) []golden {
	all, err := readGolden()
	if err != nil {
		tb.Fatal(err)
	}
	return all
}

// message returns a message that the caller may change. Any n chooses one; 0 is the first in the file.
func (g golden) message(n int) proto.Message {
	m, err := proto.Decode(g.code, g.payloads[n%len(g.payloads)])
	if err != nil {
		panic(err) // proto's own test finds it first
	}
	return m
}
