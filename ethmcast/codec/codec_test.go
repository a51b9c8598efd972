// SPDX-License-Identifier: LGPL-3.0-or-later

package codec

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/rlp"
)

type message interface {
	Message
	check() error
}

type order struct {
	Port    uint16
	Numbers []uint64
	Part    part
}

type part struct{ Text string }

type ack struct{ ID uint32 }

func (*order) Code() uint64 { return 1 }
func (*ack) Code() uint64   { return 7 }

func (m *order) check() error {
	if err := NotZero("port", m.Port); err != nil {
		return err
	}
	if err := AtMost("numbers", len(m.Numbers), 2); err != nil {
		return err
	}
	if err := AtMost("text", len(m.Part.Text), 3); err != nil {
		return In(err, "part[%d]", 0)
	}
	return nil
}

func (m *ack) check() error { return nil }

var kinds = New[message](100, message.check, &order{}, &ack{})

func payload(t testing.TB, m any) []byte {
	b, err := rlp.EncodeToBytes(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// An error says which message was refused, what of it, and what was wanted.
func TestErrors(t *testing.T) {
	for _, c := range []struct {
		code    uint64
		payload []byte
		want    string
	}{
		{2, payload(t, &ack{}), "malformed message 0x02: unknown code"},
		{7, make([]byte, 101), "malformed message ack: 101 bytes, want at most 100"},
		{7, nil, "malformed message ack: EOF"},
		{7, []byte{0xc0}, "malformed message ack: rlp: too few elements for codec.ack"},
		{7, []byte{0xc2, 1, 1}, "malformed message ack: rlp: input list has too many elements for codec.ack"},
		{7, []byte{0xc1, 1, 0}, "malformed message ack: rlp: input contains more than one value"},
		{7, []byte{0xc2, 0x81, 1}, "malformed message ack: ID: rlp: non-canonical size information for uint32"},
		{7, []byte{0xc3, 0x82, 0, 1}, "malformed message ack: ID: rlp: non-canonical integer (leading zero bytes) for uint32"},
		{1, payload(t, []any{uint64(1 << 16), []uint64{}, []any{""}}), "malformed message order: Port: rlp: input string too long for uint16"},
		{1, payload(t, []any{uint64(1), []any{[]uint64{}}, []any{""}}), "malformed message order: Numbers[0]: rlp: expected input string or byte for uint64"},
		{1, payload(t, &order{}), "malformed message order: port: 0, want another number"},
		{1, payload(t, &order{Port: 1, Numbers: make([]uint64, 3)}), "malformed message order: numbers: 3, want at most 2"},
		{1, payload(t, &order{Port: 1, Part: part{"four"}}), "malformed message order: part[0]: text: 4, want at most 3"},
	} {
		m, err := kinds.Decode(c.code, c.payload)
		if _, ok := errors.AsType[*Error](err); !ok || err.Error() != c.want || m != nil {
			t.Errorf("%x with code %d: %v (%T)\nwant %s", c.payload, c.code, err, err, c.want)
		}
	}
}

// Two messages cannot have one code: one of them would never be decoded.
func TestCodesAreDistinct(t *testing.T) {
	defer func() {
		if text, _ := recover().(string); !strings.Contains(text, "code 0x07") {
			t.Errorf("panic %q", text)
		}
	}()
	New[message](100, message.check, &ack{}, &order{}, &ack{})
}

// What is decoded has no other encoding.
func FuzzCanonical(f *testing.F) {
	f.Add(uint64(1), payload(f, &order{1, []uint64{0, 1 << 40}, part{"abc"}}))
	f.Add(uint64(7), payload(f, &ack{128}))
	f.Add(uint64(7), []byte{0xc3, 0x82, 0, 1})
	f.Add(uint64(1), []byte{0xc0})
	f.Fuzz(func(t *testing.T, code uint64, b []byte) {
		m, err := kinds.Decode(code, b)
		if err != nil {
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Fatalf("error of type %T: %v", err, err)
			}
			return
		}
		if again, err := kinds.Encode(m); err != nil || !bytes.Equal(again, b) || m.Code() != code || m.check() != nil {
			t.Fatalf("%x decodes to %+v, which encodes to %x (%v)", b, m, again, err)
		}
	})
}
