// SPDX-License-Identifier: LGPL-3.0-or-later

package socket

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/ipv6"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// benchTable has n subscribers at one address and an RP neighbour, and returns
// its datagrams of 1232 bytes by sequence.
func benchTable(b *testing.B, t *table, n int, dst netip.AddrPort) (rp datapath.Session, next func(seq uint64) []byte) {
	rp = datapath.Session{Index: 1, Role: datapath.Mesh, Addr: netip.MustParseAddrPort("[::1]:9")}
	change := datapath.Change{
		Keys:   []proto.GroupKey{{Ingress: otherIngress, Group: txs, Key: otherKey}},
		Add:    []datapath.Session{rp},
		Routes: []datapath.Route{{Ingress: otherIngress, From: []ids.Session{rp.Index}}},
	}
	for i := range n {
		change.Add = append(change.Add, datapath.Session{
			Index: ids.Session(i + 2), Role: datapath.Peer, Addr: dst, SendKey: auth.Key{byte(i)}, Groups: []ids.Group{txs},
		})
	}
	if err := t.apply(0, change); err != nil {
		b.Fatal(err)
	}
	h := wire.Header{
		Type: wire.Data, HopLimit: 8, Session: 1, Group: txs, Ingress: otherIngress, K: 1, N: 1,
		PayloadLen: wire.MaxPayload, ObjectLen: wire.MaxPayload,
	}
	datagram := append(h.Append(nil), make([]byte, wire.MaxPayload)...)
	wire.SetPayloadTag(datagram, otherKey.PayloadTag(datagram))
	return rp, func(seq uint64) []byte {
		for i := range 8 {
			datagram[16+i] = byte(seq >> (56 - 8*i))
		}
		wire.SetHopTag(datagram, rp.ReceiveKey.HopTag(datagram))
		return datagram
	}
}

// BenchmarkPipeline is one accepted datagram of 1232 bytes without its copies.
func BenchmarkPipeline(b *testing.B) {
	t := newTable(datapath.Config{Incarnation: own})
	rp, next := benchTable(b, t, 1, netip.MustParseAddrPort("[::1]:10"))
	var f fanout
	b.ReportAllocs()
	for seq := uint64(1); b.Loop(); seq++ {
		if v := t.process(0, rp.Addr, next(seq), &f); v != wire.Pass {
			b.Fatal(v)
		}
	}
}

// discard is a batchWriter without a system call.
type discard struct{}

func (discard) WriteBatch(ms []ipv6.Message, _ int) (int, error) { return len(ms), nil }

// BenchmarkCopies is one datagram of 1232 bytes to n subscribers: in memory, and
// through the loopback interface to a socket that nobody reads.
func BenchmarkCopies(b *testing.B) {
	for _, n := range []int{64, 1000, 10_000} {
		b.Run(fmt.Sprintf("memory/n=%d", n), func(b *testing.B) {
			benchmarkCopies(b, n, newTable(datapath.Config{Incarnation: own}), newSender(discard{}))
		})
		b.Run(fmt.Sprintf("loopback/n=%d", n), func(b *testing.B) {
			e := listen(b)
			benchmarkCopies(b, n, e.table, e.sender)
		})
	}
}

func benchmarkCopies(b *testing.B, n int, t *table, s *sender) {
	rp, next := benchTable(b, t, n, localAddr(node(b)))
	var f fanout
	b.ReportAllocs()
	start, seq := time.Now(), uint64(0)
	for b.Loop() {
		seq++
		if v := t.process(0, rp.Addr, next(seq), &f); v != wire.Pass {
			b.Fatal(v)
		}
		s.send(&f)
	}
	copies := float64(seq) * float64(n)
	b.ReportMetric(copies/time.Since(start).Seconds(), "copies/s")
	b.ReportMetric(float64(time.Since(start).Nanoseconds())/copies, "ns/copy")
	if got := s.sent.copies.Load(); got != seq*uint64(n) {
		b.Fatalf("%d copies sent, want %v", got, copies)
	}
}

// BenchmarkApply is one change in a group of 10,000: a join, a leave, and a hundred
// of each at once.
func BenchmarkApply(b *testing.B) {
	const n = 10_000
	session := func(i int) datapath.Session {
		return datapath.Session{
			Index: ids.Session(i + 2), Role: datapath.Peer, Addr: netip.MustParseAddrPort("[::1]:10"), Groups: []ids.Group{txs},
		}
	}
	for _, at := range []int{1, 100} {
		b.Run(fmt.Sprintf("n=%d", at), func(b *testing.B) {
			t := newTable(datapath.Config{Incarnation: own})
			benchTable(b, t, n, netip.MustParseAddrPort("[::1]:10"))
			var join, leave datapath.Change
			for i := range at {
				join.Add = append(join.Add, session(n+i))
				leave.Remove = append(leave.Remove, ids.Session(n+i+2))
			}
			for b.Loop() {
				if t.apply(0, join) != nil || t.apply(0, leave) != nil {
					b.Fatal("refused")
				}
			}
		})
	}
}
