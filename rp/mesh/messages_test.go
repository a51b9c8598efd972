// SPDX-License-Identifier: LGPL-3.0-or-later

package mesh

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/codec"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/receipts"
)

func messages() []Message {
	return []Message{
		&Hello{NetworkID: 1, Genesis: [32]byte{2}, Incarnation: 3, DataPort: 4, Session: 5, Share: auth.Share{6}},
		&Keys{ID: 1, Wait: 10_000, Keys: []proto.GroupKey{{Ingress: 2, Group: 3, Epoch: 4, Key: auth.Key{5}}}},
		&KeysAck{ID: 7},
		&Bye{Reason: proto.ReasonChain},
		&Report{Reports: []receipts.Report{
			{Key: receipts.Key{Ingress: 1, Group: 2, Sequence: 3}, Count: receipts.Count{Sent: 5, Confirmed: 4}},
		}},
	}
}

func TestMessagesRoundTrip(t *testing.T) {
	for _, m := range messages() {
		b, err := Encode(m)
		require.NoError(t, err)
		got, err := Decode(m.Code(), b)
		require.NoError(t, err)
		require.Equal(t, m, got)
	}
	k := proto.GroupKey{Ingress: 1 << 31, Group: 1 << 31, Epoch: 255, Active: true, Key: auth.Key{1}}
	b, err := Encode(&Keys{ID: 1 << 31, Wait: 10_000, Keys: slices.Repeat([]proto.GroupKey{k}, MaxKeys)})
	require.NoError(t, err)
	require.Less(t, len(b), MaxMessage, "the largest message fits the limit")
}

func TestDecodeRefuses(t *testing.T) {
	encode := func(m Message) []byte {
		b, err := Encode(m)
		require.NoError(t, err)
		return b
	}
	hello := messages()[0].(*Hello)
	without := func(edit func(*Hello)) []byte {
		h := *hello
		edit(&h)
		return encode(&h)
	}
	for name, c := range map[string]struct {
		code    uint64
		payload []byte
	}{
		"unknown code":              {4, []byte{0xc0}},
		"code out of range":         {Length, []byte{0xc0}},
		"empty":                     {HelloMsg, nil},
		"garbage":                   {HelloMsg, []byte{0xff, 0xff}},
		"Hello without incarnation": {HelloMsg, without(func(h *Hello) { h.Incarnation = 0 })},
		"Hello without port":        {HelloMsg, without(func(h *Hello) { h.DataPort = 0 })},
		"Hello without session":     {HelloMsg, without(func(h *Hello) { h.Session = 0 })},
		"cut":                       {HelloMsg, encode(hello)[:20]},
		"trailing bytes":            {KeysAckMsg, append(encode(&KeysAck{1}), 0)},
		"too few fields":            {KeysAckMsg, []byte{0xc0}},
		"too many fields":           {KeysAckMsg, []byte{0xc2, 1, 1}},
		"too many keys":             {KeysMsg, encode(&Keys{Keys: make([]proto.GroupKey, MaxKeys+1)})},
		"long wait":                 {KeysMsg, encode(&Keys{Wait: 10_001})},
		"too many reports":          {ReportMsg, encode(&Report{Reports: make([]receipts.Report, MaxReports+1)})},
		"more than sent":            {ReportMsg, encode(&Report{Reports: []receipts.Report{{Count: receipts.Count{Confirmed: 1}}}})},
		"too long":                  {KeysMsg, make([]byte, MaxMessage+1)},
	} {
		_, err := Decode(c.code, c.payload)
		_, ok := errors.AsType[*codec.Error](err)
		require.True(t, ok, "%s: %v", name, err)
		require.Equal(t, proto.ReasonMalformed, proto.ReasonOf(err), name)
	}
}

// FuzzDecode: what decodes is within its limits and encodes to the same bytes.
func FuzzDecode(f *testing.F) {
	for _, m := range messages() {
		b, err := Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.Code(), b)
	}
	f.Add(uint64(KeysMsg), []byte{0xc2, 0x01, 0xc0})
	f.Fuzz(func(t *testing.T, code uint64, payload []byte) {
		m, err := Decode(code, payload)
		if err != nil {
			if _, ok := errors.AsType[*codec.Error](err); !ok {
				t.Fatalf("error of type %T: %v", err, err)
			}
			return
		}
		if err := m.check(); err != nil || m.Code() != code {
			t.Fatalf("decoded %#v of code %#x: %v", m, code, err)
		}
		b, err := Encode(m)
		if err != nil || !bytes.Equal(b, payload) {
			t.Fatalf("%x became %x: %v", payload, b, err)
		}
	})
}
