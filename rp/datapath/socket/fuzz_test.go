// SPDX-License-Identifier: LGPL-3.0-or-later

package socket

import (
	"encoding/binary"
	"testing"

	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// FuzzProcess gives any bytes to the pipeline. mend says which parts are put right
// first, because no fuzzer finds a tag: session and source, group, payload tag, hop
// tag. What is dropped must change nothing; what is accepted must come out with
// right tags, and only once.
func FuzzProcess(f *testing.F) {
	_, sessions := smallNet(2)
	for i := range sessions {
		f.Add(data(&sessions[i], 1), uint8(i), uint8(0))
		f.Add(data(&sessions[i], 1<<40), uint8(i), uint8(15))
	}
	beat := (&wire.Header{Type: wire.Heartbeat, HopLimit: wire.InitialHopLimit, Ingress: otherIngress, Sequence: 9, ObjectID: 1}).Append(nil)
	f.Add(beat, uint8(2), uint8(15))
	f.Add(beat, uint8(0), uint8(15))
	hello := wire.NewLinkHello(0, 9, [wire.HelloSize]byte{1})
	f.Add(hello[:], uint8(2), uint8(15))
	f.Add(hello[:], uint8(0), uint8(15))
	f.Add([]byte{}, uint8(0), uint8(0))

	f.Fuzz(func(t *testing.T, b []byte, from, mend uint8) {
		s, sessions := smallNet(2)
		_, _ = s.Receive(sessions[2].Addr, data(&sessions[2], 3))
		_, _ = s.Receive(sessions[0].Addr, data(&sessions[0], 3))
		s.now++

		session := &sessions[int(from)%len(sessions)]
		if len(b) >= wire.HeaderSize {
			if mend&1 != 0 {
				wire.SetSession(b, session.Index)
			}
			if mend&2 != 0 {
				binary.BigEndian.PutUint32(b[8:], txs)
			}
			if mend&4 != 0 && len(b) <= wire.MaxDatagram {
				key := ownKey
				if session.Role == datapath.Mesh {
					key = otherKey
				}
				wire.SetPayloadTag(b, key.PayloadTag(b))
			}
			if mend&8 != 0 {
				wire.SetHopTag(b, session.ReceiveKey.HopTag(b))
			}
		}
		before := s.dump()
		v, out := s.Receive(session.Addr, b)
		if v != wire.Pass {
			if len(out) != 0 || s.dump() != before {
				t.Fatalf("verdict %v with %d outputs, state\n%s\nbefore\n%s", v, len(out), s.dump(), before)
			}
			return
		}
		for _, o := range out {
			h, _, v := wire.Parse(o.Data)
			if v != wire.Pass {
				t.Fatalf("sent a datagram that is %v", v)
			}
			for i := range sessions {
				to := &sessions[i]
				if to.Addr == o.Dst && (h.Session != to.SendSession || !to.SendKey.CheckHopTag(o.Data, h.HopTag)) {
					t.Fatalf("wrong session or hop tag to %v", o.Dst)
				}
			}
			if h.Type == wire.Data && h.Ingress == own && !ownKey.CheckPayloadTag(o.Data, h.PayloadTag) ||
				h.Type == wire.Heartbeat && !otherKey.CheckPayloadTag(o.Data, h.PayloadTag) {
				t.Fatal("wrong payload tag")
			}
		}
		if len(out) == 0 {
			return // keep-alive, hello
		}
		if v, _ := s.Receive(session.Addr, b); v != wire.Replayed {
			t.Fatalf("the same datagram again: %v", v)
		}
	})
}
