// SPDX-License-Identifier: LGPL-3.0-or-later

package mesh

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/rlp"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/mesh/meshtest"
	"github.com/ethmcast/mdcs/rp/receipts"
)

var update = flag.Bool("update", false, "write the vectors of messages anew")

// coded is a message of either package.
type coded interface{ Code() uint64 }

// vectorAdvert is the advert of the vectors, with the node key 1.
func vectorAdvert(t *testing.T) *linkstate.Signed {
	key, err := crypto.ToECDSA(append(make([]byte, 31), 1))
	require.NoError(t, err)
	id := linkstate.IDOf([32]byte(crypto.Keccak256(crypto.FromECDSAPub(&key.PublicKey)[1:])))
	a := linkstate.Advert{
		Origin: id, Incarnation: 1, Epoch: 1_700_000_000, Sequence: 3, Publishes: true, Budget: 4096, Operator: "example",
		Links:  []linkstate.Link{{Neighbour: 2, Cost: 100, Tree: true}, {Neighbour: 3, Cost: 1 << 22}},
		Groups: []linkstate.Members{{Group: 0x01020304, Count: 0}, {Group: 0xf1020304, Count: 500}},
	}
	for !linkstate.Belongs(id, a.Incarnation) {
		a.Incarnation++
	}
	s, err := linkstate.Sign(a, key)
	require.NoError(t, err)
	return s
}

// vectors are the messages of the vectors, each with what it says.
func vectors(t *testing.T) []struct {
	name, says string
	m          coded
} {
	share, secret, genesis := auth.Share{}, auth.Key{}, [32]byte{}
	for i := range share {
		share[i], genesis[i] = byte(i), byte(0xff-i)
	}
	copy(secret[:], share[16:])
	place := receipts.Key{Ingress: 0x00abcdef, Group: 0xf1020304, Sequence: 1 << 40}
	sums := make([]uint32, linkstate.Buckets)
	sums[0], sums[1], sums[31] = 0x00000001, 0xffffffff, 0x00010203
	version := []linkstate.Version{{Origin: 1, Epoch: 2, Sequence: 3}, {Origin: 1<<64 - 1, Epoch: 1_700_000_000, Sequence: 0, Hash: linkstate.Hash(share[:])}}
	return []struct {
		name, says string
		m          coded
	}{
		{"Hello", "network id 1, incarnation 0x00abcdef, data port 30501, session index 0xf0000001, outlives", &Hello{
			NetworkID: 1, Genesis: genesis, Incarnation: 0x00abcdef, DataPort: 30501, Session: 0xf0000001, Share: share, Outlives: true}},
		{"Keys", "id 7, wait 3000 ms, one key of epoch 0, and one of epoch 255 that is zero", &Keys{ID: 7, Wait: 3000, Keys: []proto.GroupKey{
			{Ingress: 0x00abcdef, Group: 0xf1020304, Key: secret}, {Ingress: 0x00abcdef, Group: 0xf1020304, Epoch: 255}}}},
		{"Keys", "id 0, wait 0, no keys", &Keys{}},
		{"KeysAck", "id 128", &KeysAck{ID: 128}},
		{"Bye", "reason 0", &Bye{Reason: proto.ReasonQuit}},
		{"Bye", "reason 2", &Bye{Reason: proto.ReasonUnexpected}},
		{"Digest", "salt 2^40, sums 1, 0xffffffff, 29 times 0, 0x00010203", &linkstate.Digest{Salt: 1 << 40, Sums: sums}},
		{"Summary", "RP 1 with epoch 2, sequence 3 and a hash of zeroes, RP 2^64 - 1 with epoch 1700000000, sequence 0 and hash 00 01 .. 0f", &linkstate.Summary{Versions: version}},
		{"Request", "RPs 0, 127, 128, 2^64 - 1", &linkstate.Request{Origins: []linkstate.ID{0, 127, 128, 1<<64 - 1}}},
		{"Adverts", "acknowledge, the advert below at the age of 12 s", &linkstate.Adverts{Ack: true, Adverts: []linkstate.Aged{{Age: 12, Signed: vectorAdvert(t)}}}},
		{"Offer", "as the Summary", &linkstate.Offer{Versions: version}},
		{"Acked", "hash of the advert below", &linkstate.Acked{Hash: vectorAdvert(t).Advert.Version().Hash}},
		{"Graft", "id 9, one route without marks and one with two", &linkstate.Graft{ID: 9, Routes: []linkstate.GraftRoute{
			{Ingress: 0x00000001}, {Ingress: 0x00abcdef, Marks: []linkstate.Mark{{Group: 0x01020304, Sequence: 0}, {Group: 0xf1020304, Sequence: 1 << 40}}}}}},
		{"Prune", "two ingress RPs", &linkstate.Prune{Ingress: []ids.Incarnation{0x00000001, 0x00abcdef}}},
		{"GraftAck", "id 9, one granted, one refused", &linkstate.GraftAck{ID: 9, Granted: []ids.Incarnation{0x00abcdef}, Refused: []ids.Incarnation{0x00000001}}},
		{"RouteSum", "of no ingress RP", &linkstate.RouteSum{}},
		{"RouteSum", "of the two of the Prune", &linkstate.RouteSum{Sum: linkstate.SumOf([]ids.Incarnation{1, 0x00abcdef})}},
		{"Serving", "none", &linkstate.Serving{}},
		{"Report", "one place: 300 sent, 128 confirmed", &Report{Reports: []receipts.Report{{Key: place, Count: receipts.Count{Sent: 300, Confirmed: 128}}}}},
	}
}

const vectorsHead = `# Messages of mdcsmesh/1, and what stands in them (SPEC 12). Written by
#
#	go test ./rp/mesh -run TestGoldenMessages -update
#
# and the contract between implementations: a change here is a change of the protocol.
#
# "message NAME CODE": hex is the payload of the devp2p message, an RLP list. The comment above
# says what it has; what it does not name is as in the first Hello: genesis ff fe .. e0, share
# 00 01 .. 1f, a group key 10 11 .. 1f, ingress RP 0x00abcdef, group 0xf1020304, sequence 2^40.
`

// TestGoldenMessages: the vectors are what this package and linkstate send, and take.
func TestGoldenMessages(t *testing.T) {
	var out strings.Builder
	out.WriteString(vectorsHead)
	write := func(lines ...string) {
		for _, l := range lines {
			fmt.Fprintf(&out, "%s\n", l)
		}
	}
	hexLines := func(word string, b []byte) {
		for s := hex.EncodeToString(b); s != ""; s = s[min(len(s), 96):] {
			write(fmt.Sprintf("  %s %s", word, s[:min(len(s), 96)]))
		}
	}
	for _, v := range vectors(t) {
		b, err := rlp.EncodeToBytes(v.m)
		require.NoError(t, err)
		write("", "# "+v.says+".", fmt.Sprintf("message %s 0x%02x", v.name, v.m.Code()))
		hexLines("hex", b)
	}
	s := vectorAdvert(t)
	body, err := rlp.EncodeToBytes(s.Advert)
	require.NoError(t, err)
	write("", "# An advert by itself, the key of its node, and the signature of keccak256(\"mdcsmesh advert\" || 0 || rlp).",
		fmt.Sprintf("advert 0x%016x", uint64(s.Advert.Origin)), "  key 0x01")
	hexLines("rlp", body)
	hexLines("signature", s.Signature[:])
	write("", "# What an advert adds to the sum RP modulo 32 of a Digest: salt, hash, sum.")
	for _, salt := range []uint64{0, 1, 1<<64 - 1} {
		for _, hash := range []linkstate.Hash{{}, {15: 1}, s.Advert.Version().Hash} {
			write(fmt.Sprintf("digest %d %x 0x%08x", salt, hash, linkstate.Version{Hash: hash}.Sum(salt)))
		}
	}
	write("", "# The sum of a RouteSum, then the ingress RPs.")
	for _, ingress := range [][]ids.Incarnation{{}, {1}, {0xabcdef}, {1, 0xabcdef}, {0xffffffff}} {
		line := fmt.Sprintf("routesum 0x%08x", linkstate.SumOf(ingress))
		for _, i := range ingress {
			line += fmt.Sprintf(" 0x%08x", i)
		}
		write(line)
	}
	write("", "# The first incarnations that belong to an RP, and the first one that does not.")
	for _, id := range []linkstate.ID{1, s.Advert.Origin} {
		for i, n := ids.Incarnation(1), 0; n < 3; i++ {
			if linkstate.Belongs(id, i) {
				write(fmt.Sprintf("incarnation 0x%016x 0x%08x belongs", uint64(id), i))
				n++
			} else if i == 1 {
				write(fmt.Sprintf("incarnation 0x%016x 0x%08x does-not", uint64(id), i))
			}
		}
	}
	write("", "# A hello: stamp 1000000, echo 999000, hold 250, interval 100 ms, on a tree, up, echo valid, slack 30 ms;",
		"# and one of a neighbour that heard nothing yet.")
	for _, h := range []linkstate.Hello{
		{Stamp: 1_000_000, Echo: 999_000, Hold: 250, Interval: 100, Tree: true, Up: true, Echoes: true, Slack: 3}, {Stamp: 1 << 31, Interval: 1000},
	} {
		write("hello " + hex.EncodeToString(h.Append(nil)))
	}
	if *update {
		require.NoError(t, os.WriteFile("meshtest/messages.txt", []byte(out.String()), 0o644))
		return
	}
	require.Equal(t, meshtest.Messages, out.String())

	seen := make(map[uint64]bool)
	all := vectors(t)
	for _, b := range meshtest.Parse(meshtest.Messages) {
		if b.Kind != "message" {
			continue
		}
		code, payload := meshtest.Number(b.Args[1]), b.Hex("hex")
		seen[code] = true
		var m coded
		var err error
		if code < linkstate.DigestMsg || code > linkstate.ServingMsg {
			m, err = Decode(code, payload)
		} else {
			m, err = linkstate.Decode(code, payload)
		}
		require.NoError(t, err)
		again, err := rlp.EncodeToBytes(m)
		require.NoError(t, err)
		require.True(t, bytes.Equal(payload, again), b.Args[0])
		require.Equal(t, fmt.Sprintf("%T", all[0].m), fmt.Sprintf("%T", m))
		all = all[1:]
	}
	require.Len(t, seen, ReportMsg+1, "a vector of each message")
}
