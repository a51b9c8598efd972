// SPDX-License-Identifier: LGPL-3.0-or-later

package proto

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/mesh/meshtest"
)

var update = flag.Bool("update", false, "write the vectors of messages anew")

const (
	vectorsFile = "testdata/messages.txt"
	vectorsHead = `# Messages of mdcs/1, and what stands in them (SPEC 7.1). Written by
#
#	go test ./ethmcast/proto -run TestGoldenMessages -update
#
# and the contract between implementations: a change here is a change of the protocol.
#
# "message NAME CODE": hex is the payload of the devp2p message, an RLP list. The comment above
# says what it has. What it does not name is the same in all of them: genesis ff fe .. e0, share
# 00 01 .. 1f, a key of a group or a hop 10 11 .. 1f, nonce and token 20 21 .. 2f, group 0xf1020304,
# ingress RP 0x00abcdef, sequence 2^40.
`
)

// vectors are the messages of the vectors, each with what it says.
func vectors() []struct {
	says string
	m    Message
} {
	var (
		share   auth.Share
		genesis [32]byte
		nonce   [16]byte
		key     auth.Key
	)
	for i := range share {
		share[i], genesis[i] = byte(i), byte(0xff-i)
	}
	for i := range nonce {
		nonce[i] = byte(0x20 + i)
	}
	copy(key[:], share[16:])
	const (
		group   = 0xf1020304
		ingress = 0x00abcdef
	)
	keys := []GroupKey{{Ingress: ingress, Group: group, Epoch: 255, Active: true, Key: key}}
	marks := []Mark{{ingress, group, 1 << 40}}
	places := []Place{{ingress, group, 1 << 40}}
	terms := Terms{Rate: 2000, Burst: 512, Keys: keys, Marks: marks}
	return []struct {
		says string
		m    Message
	}{
		{"of an RP: network id 1, incarnation 0x00abcdef, data port 30501, port of the channels 30502, operator \"example\"",
			&Status{RoleRP, 1, genesis, ingress, 30501, 30502, "example"}},
		{"of a peer: network id 1", &Status{Role: RolePeer, NetworkID: 1, Genesis: genesis}},
		{"publishes, not in standby, mode unicast, port 30400, PROBE of 1232 bytes, any rate, session index 0xf0000001",
			&Join{Groups: []ids.Group{group}, Publish: true, Port: 30400, ProbeSize: 1232, Session: 0xf0000001, Share: share}},
		{"two groups: 1 and 0xf1020304; publishes not, in standby, mode ssm, port 1, PROBE of 256 bytes, rate 2^32, session index 1",
			&Join{Groups: []ids.Group{1, group}, Standby: true, Mode: ModeSSM, Port: 1, ProbeSize: 256, MaxRate: 1 << 32, Session: 1, Share: share}},
		{"1232 bytes", &ProbeAck{nonce, 1232}},
		{"mode unicast, session index 0xf0000002, lease 45 s, rate 2000, burst 512, one active key of epoch 255, one mark",
			&Welcome{0xf0000002, share, 45, 2000, 512, ModeUnicast, Channel{}, nonce, keys, marks}},
		{"mode ssm, session index 1, lease 5 s, may not publish, channel with session index 0xf0000003, no token, neither keys nor marks",
			&Welcome{Session: 1, Share: share, Lease: 5, Mode: ModeSSM, Channel: Channel{0xf0000003, key}}},
		{"one stream: 300 received, 2 lost, no duplicates", &Announce{[]Counter{{ingress, group, 300, 2, 0}}}},
		{"in standby: no streams", &Announce{}},
		{"id 7, one active key of epoch 255, ingress RP 1 retired", &Rekey{7, keys, []ids.Incarnation{1}}},
		{"id 128", &RekeyAck{128}},
		{"reason 0", &Leave{ReasonQuit}},
		{"reason 12", &Leave{ReasonDraining}},
		{"covered, whole, one stream: from 2^40 up to but without 2^40 + 9, without 2^40 + 4 and 2^40 + 6",
			&Have{true, true, []HaveMark{{ingress, group, 1 << 40, 1<<40 + 9, []uint64{1<<40 + 4, 1<<40 + 6}}}}},
		{"not covered", &Have{}},
		{"session index 0xf0000002, port 30400, one group, publishes", &Resume{nonce, 0xf0000002, 30400, []ids.Group{group}, true}},
		{"in standby, lease 45 s; terms: rate 2000, burst 512, one key, one mark", &Resumed{true, 45, terms}},
		{"one mark", &Activate{marks}},
		{"terms as in Resumed", &Activated{terms}},
		{"no fields", &Deactivate{}},
		{"two URLs, shorter than any real one", &Redirect{[]string{"enode://a", "enode://b"}}},
		{"500 members, 20 here, two RP neighbours: RP 1 with 480, RP 2^64 - 1 with none",
			&Counters{group, 500, 20, []RPMembers{{1, 480}, {1<<64 - 1, 0}}}},
		{"one place", &Confirm{places}},
		{"one object with the id 0x00000000deadbeef, 500 members, 300 sent, 128 confirmed",
			&Receipt{[]ObjectReceipt{{places[0], 0xdeadbeef, 500, 300, 128}}}},
	}
}

// TestGoldenMessages: the vectors are what this package sends, and takes.
func TestGoldenMessages(t *testing.T) {
	var out strings.Builder
	out.WriteString(vectorsHead)
	for _, v := range vectors() {
		b, err := Encode(v.m)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(fmt.Sprintf("%T", v.m), "*proto.")
		fmt.Fprintf(&out, "\n# %s.\nmessage %s 0x%02x\n", v.says, name, v.m.Code())
		for s := hex.EncodeToString(b); s != ""; s = s[min(len(s), 96):] {
			fmt.Fprintf(&out, "  hex %s\n", s[:min(len(s), 96)])
		}
	}
	if *update {
		if err := os.WriteFile(vectorsFile, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	file, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(file) != out.String() {
		t.Fatalf("this package sends:\n%s", out.String())
	}
	seen, all := make(map[uint64]bool), vectors()
	blocks := meshtest.Parse(string(file))
	if len(blocks) != len(all) {
		t.Fatalf("%d vectors, want %d", len(blocks), len(all))
	}
	for i, b := range blocks {
		code := meshtest.Number(b.Args[1])
		m, err := Decode(code, b.Hex("hex"))
		if err != nil || !same(m, all[i].m) {
			t.Errorf("%v decodes to %+v (%v), want %+v", b.Args, m, err, all[i].m)
		}
		seen[code] = true
	}
	for code := range uint64(ReceiptMsg + 1) {
		if !seen[code] {
			t.Errorf("no vector of message 0x%02x", code)
		}
	}
}

// same reports whether two messages are equal, where an empty list is equal to none.
func same(a, b Message) bool {
	x, errA := Encode(a)
	y, errB := Encode(b)
	return errA == nil && errB == nil && reflect.TypeOf(a) == reflect.TypeOf(b) && string(x) == string(y)
}
