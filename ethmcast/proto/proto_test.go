// SPDX-License-Identifier: LGPL-3.0-or-later

package proto

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/rlp"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/codec"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire/wiretest"
)

func TestGroupIDGolden(t *testing.T) {
	f, err := wiretest.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range f.Groups {
		if got := GroupID(g.NetworkID, g.Genesis, g.Topic); got != g.ID {
			t.Errorf("group %08x, want %08x", got, g.ID)
		}
	}
	if f.Group != f.Groups[0].ID {
		t.Error("the vectors use another group")
	}
}

// samples has one message of each code, right in all fields.
func samples() []Message {
	terms := Terms{Rate: 1, Burst: 2, Keys: []GroupKey{{Ingress: 1}}, Marks: []Mark{{1, 2, 3}}}
	return []Message{
		&Status{Role: RoleRP, NetworkID: 1, Genesis: [32]byte{2}, Incarnation: 3, DataPort: 4, GroupPort: 5, Operator: "x"},
		&Join{Groups: []ids.Group{1, 2}, Publish: true, Standby: true, Mode: ModeSSM, Port: 3, ProbeSize: 1232, MaxRate: 4, Session: 5, Share: auth.Share{6}},
		&ProbeAck{Nonce: [16]byte{1}, Size: 1232},
		&Welcome{
			Session: 1, Share: auth.Share{2}, Lease: 45, Rate: 3, Burst: 4, Mode: ModeSSM, Channel: Channel{5, auth.Key{6}},
			Token: Token{7},
			Keys:  []GroupKey{{Ingress: 1, Group: 2, Epoch: 3, Active: true, Key: auth.Key{4}}},
			Marks: []Mark{{1, 2, 3}},
		},
		&Announce{Counters: []Counter{{1, 2, 3, 4, 5}}},
		&Rekey{ID: 1, Keys: []GroupKey{{Ingress: 1}}, Retired: []ids.Incarnation{9}},
		&RekeyAck{ID: 1},
		&Leave{Reason: ReasonFull},
		&Have{Covered: true, Marks: []HaveMark{{Ingress: 1, Group: 2, First: 3, Next: 9, Missing: []uint64{4, 6}}}},
		&Resume{Token: Token{1}, Session: 2, Port: 3, Groups: []ids.Group{4}, Publish: true},
		&Resumed{Standby: true, Lease: 45, Terms: terms},
		&Activate{Marks: []Mark{{1, 2, 3}}},
		&Activated{Terms: terms},
		&Deactivate{},
		&Redirect{URLs: []string{"enode://a", "enode://b"}},
		&Counters{Group: 1, Members: 2, Here: 3, RPs: []RPMembers{{4, 5}, {6, 7}}},
		&Confirm{Places: []Place{{1, 2, 3}, {1, 2, 4}}},
		&Receipt{Objects: []ObjectReceipt{{Place: Place{1, 2, 3}, ObjectID: 4, Members: 5, Sent: 7, Confirmed: 6}}},
	}
}

func TestMessagesRoundTrip(t *testing.T) {
	codes := make(map[uint64]bool)
	for _, m := range samples() {
		b, err := Encode(m)
		if err != nil {
			t.Fatalf("%T: %v", m, err)
		}
		got, err := Decode(m.Code(), b)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%T decodes to %+v (%v)", m, got, err)
		}
		codes[m.Code()] = true
	}
	for code := range uint64(Length) {
		if _, err := Decode(code, []byte{0xc0}); !codes[code] && err == nil {
			t.Errorf("reserved code 0x%02x accepted", code)
		}
	}
}

func TestMessageLimits(t *testing.T) {
	for name, m := range map[string]Message{
		"role":                  &Status{Role: 3},
		"rp without data port":  &Status{Role: RoleRP, Incarnation: 1},
		"rp incarnation 0":      &Status{Role: RoleRP, DataPort: 1},
		"no groups":             &Join{Port: 1, ProbeSize: 1232, Session: 1},
		"17 groups":             &Join{Groups: make([]ids.Group, 17), Port: 1, ProbeSize: 1232, Session: 1},
		"port 0":                &Join{Groups: []ids.Group{1}, ProbeSize: 1232, Session: 1},
		"session 0":             &Join{Groups: []ids.Group{1}, Port: 1, ProbeSize: 1232},
		"datagram of 255":       &Join{Groups: []ids.Group{1}, Port: 1, ProbeSize: 255, Session: 1},
		"datagram of 1233":      &Join{Groups: []ids.Group{1}, Port: 1, ProbeSize: 1233, Session: 1},
		"welcome session 0":     &Welcome{Lease: 45, Rate: 1, Burst: 1},
		"lease of 4 s":          &Welcome{Session: 1, Lease: 4, Rate: 1, Burst: 1},
		"lease of 601 s":        &Welcome{Session: 1, Lease: 601, Rate: 1, Burst: 1},
		"rate 0":                &Welcome{Session: 1, Lease: 45, Burst: 1},
		"2049 keys":             &Welcome{Session: 1, Lease: 45, Rate: 1, Burst: 1, Keys: make([]GroupKey, 2049)},
		"ssm without channel":   &Welcome{Session: 1, Lease: 45, Rate: 1, Burst: 1, Mode: ModeSSM},
		"channel in unicast":    &Welcome{Session: 1, Lease: 45, Rate: 1, Burst: 1, Channel: Channel{Session: 1}},
		"mode 2":                &Welcome{Session: 1, Lease: 45, Rate: 1, Burst: 1, Mode: 2, Channel: Channel{Session: 1}},
		"burst 0":               &Welcome{Session: 1, Lease: 45, Rate: 1},
		"operator of 33 bytes":  &Status{Role: RolePeer, Operator: strings.Repeat("x", 33)},
		"resume no groups":      &Resume{Session: 1, Port: 1},
		"resume session 0":      &Resume{Groups: []ids.Group{1}, Port: 1},
		"resume port 0":         &Resume{Groups: []ids.Group{1}, Session: 1},
		"resumed lease of 4 s":  &Resumed{Lease: 4},
		"resumed rate 0":        &Resumed{Lease: 45, Terms: Terms{Burst: 1}},
		"2049 marks activate":   &Activate{Marks: make([]Mark, 2049)},
		"2049 keys activated":   &Activated{Terms{Keys: make([]GroupKey, 2049)}},
		"9 urls":                &Redirect{URLs: make([]string, 9)},
		"url of 257 bytes":      &Redirect{URLs: []string{strings.Repeat("x", 257)}},
		"65 RPs":                &Counters{RPs: make([]RPMembers, 65)},
		"65 confirmed":          &Confirm{Places: make([]Place, 65)},
		"65 receipts":           &Receipt{Objects: make([]ObjectReceipt, 65)},
		"more than sent":        &Receipt{Objects: []ObjectReceipt{{Sent: 1, Confirmed: 2}}},
		"2049 counters":         &Announce{Counters: make([]Counter, 2049)},
		"2049 keys in rekey":    &Rekey{Keys: make([]GroupKey, 2049)},
		"2049 marks":            &Have{Marks: make([]HaveMark, 2049)},
		"first beyond next":     &Have{Marks: []HaveMark{{First: 2, Next: 1}}},
		"missing out of range":  &Have{Marks: []HaveMark{{First: 2, Next: 5, Missing: []uint64{5}}}},
		"missing not ascending": &Have{Marks: []HaveMark{{First: 2, Next: 5, Missing: []uint64{3, 3}}}},
		"65 missing":            &Have{Marks: []HaveMark{{Next: 1000, Missing: ascending(65)}}},
	} {
		b, err := Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Decode(m.Code(), b)
		e, ok := errors.AsType[*codec.Error](err)
		if !ok || ReasonOf(err) != ReasonMalformed || !IsViolation(err) || e.Code != m.Code() || e.Element == "" || e.Want == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Decode(HaveMsg, make([]byte, MaxMessage+1)); ReasonOf(err) != ReasonMalformed {
		t.Errorf("oversized message: %v", err)
	}
	extra, _ := rlp.EncodeToBytes([]uint64{1, 2})
	if _, err := Decode(RekeyAckMsg, extra); ReasonOf(err) != ReasonMalformed {
		t.Errorf("additional element: %v", err)
	}
}

func ascending(n int) (s []uint64) {
	for i := range n {
		s = append(s, uint64(i))
	}
	return s
}

func TestGroupAddr(t *testing.T) {
	for group, want := range map[ids.Group]string{
		0:          "ff3e::8000:0",
		1:          "ff3e::8000:1",
		0x72f4c5d6: "ff3e::f2f4:c5d6",
		0xffffffff: "ff3e::ffff:ffff",
	} {
		if got := GroupAddr(group); got.String() != want || !got.IsMulticast() {
			t.Errorf("group %08x at %v, want %s", group, got, want)
		}
	}
}

func TestHaveMarkCovers(t *testing.T) {
	m := HaveMark{First: 3, Next: 9, Missing: []uint64{4, 6}}
	for seq, want := range map[uint64]bool{2: false, 3: true, 4: false, 5: true, 6: false, 8: true, 9: false} {
		if m.Covers(seq) != want {
			t.Errorf("Covers(%d) = %v", seq, !want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range samples() {
		b, err := Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.Code(), b)
	}
	f.Fuzz(func(t *testing.T, code uint64, b []byte) {
		m, err := Decode(code, b)
		if err != nil {
			if _, ok := errors.AsType[*codec.Error](err); !ok {
				t.Fatalf("error of type %T", err)
			}
			return
		}
		again, err := Encode(m)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x decodes to %+v, which encodes to %x (%v)", b, m, again, err)
		}
	})
}
