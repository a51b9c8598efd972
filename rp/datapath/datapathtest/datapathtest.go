// SPDX-License-Identifier: LGPL-3.0-or-later

// Package datapathtest is what every datapath engine must do, as a test: packets
// in, verdicts and exact datagrams out, and nothing else moved.
package datapathtest

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// Output is a datagram that the engine sent.
type Output struct {
	Dst  netip.AddrPort
	Data []byte
}

// Subject is an engine under test. The test is its network.
type Subject interface {
	Apply(datapath.Change) error
	Marks() []proto.Mark
	Stats() datapath.Stats

	// Endpoint returns the address of the i-th node, 0 <= i < Endpoints.
	Endpoint(i int) netip.AddrPort

	// Receive hands a datagram to the engine and returns what it made of it.
	Receive(src netip.AddrPort, b []byte) (wire.Verdict, []Output)

	// Heartbeat, Hello and Resend return what those of datapath.Engine send.
	Heartbeat(datapath.HeartbeatScope) []Output
	Hello(session ids.Session, hello [wire.HelloSize]byte) ([]Output, error)
	Resend(session ids.Session, datagrams [][]byte) ([]Output, error)

	SetEgress(rate, burst uint64)

	Heard(session ids.Session) time.Time

	// Age makes it longer ago that the newest sequences of the streams came, and that
	// their last heartbeats passed; negative times are in the future.
	Age(newest, heartbeat time.Duration)
}

// Endpoints is the number of nodes that a Subject must have.
const Endpoints = 8

// New makes the Subject of one test, which cleans up after itself.
type New func(t *testing.T, cfg datapath.Config) Subject

// Run runs all tests on an engine.
func Run(t *testing.T, new New) {
	t.Run("verdicts", func(t *testing.T) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) { c.run(t, new) })
		}
	})
	t.Run("changes", func(t *testing.T) { testChanges(t, new) })
	t.Run("refused changes", func(t *testing.T) { testRefused(t, new) })
	t.Run("refused beside others", func(t *testing.T) { testRefusedBeside(t, new) })
	t.Run("copies are limited", func(t *testing.T) { testEgress(t, new) })
	t.Run("all copies are limited", func(t *testing.T) { testEgressOfAll(t, new) })
	t.Run("heartbeat", func(t *testing.T) { testHeartbeat(t, new) })
	t.Run("heartbeats are limited", func(t *testing.T) { testHeartbeatRate(t, new) })
	t.Run("lies", func(t *testing.T) { testLies(t, new) })
	t.Run("marks", func(t *testing.T) { testMarks(t, new) })
	t.Run("counters", func(t *testing.T) { testCounters(t, new) })
	t.Run("routes", func(t *testing.T) { testRoutes(t, new) })
	t.Run("hello", func(t *testing.T) { testHello(t, new) })
	t.Run("resend", func(t *testing.T) { testResend(t, new) })
	t.Run("resend is limited", func(t *testing.T) { testResendIsLimited(t, new) })
	t.Run("cache", func(t *testing.T) { testCache(t, new) })
	t.Run("every verdict has a case", testComplete)
}

// run sends what the case is about and checks the verdict, the outputs, the
// counters, and that the datagrams after it fare as if it had not been, when it
// was dropped.
func (c *testCase) run(t *testing.T, new New) {
	w := newWorld(t, new)
	if c.before != nil {
		c.before(w)
	}
	p := w.packet(c.from)
	if c.edit != nil {
		c.edit(w, p)
	}
	before := w.snapshot()
	verdict, got := w.subject.Receive(p.src, p.bytes())
	if verdict != c.verdict {
		t.Fatalf("verdict %v, want %v", verdict, c.verdict)
	}
	var want []Output
	if c.want != nil {
		want = c.want(w, p)
	}
	compare(t, want, got)

	after := w.snapshot()
	before.verdicts[verdict]++
	if verdict != wire.Pass {
		if diff := gocmp.Diff(before, after, allow); diff != "" {
			t.Fatalf("a dropped datagram changed more than its counter (-before +after):\n%s", diff)
		}
		w.next.check(t)
	} else if before.verdicts != after.verdicts {
		t.Fatalf("verdicts %v, want %v", after.verdicts, before.verdicts)
	}
}

// snapshot is all that can be seen of an engine's state.
type snapshot struct {
	verdicts wire.Counters
	marks    []proto.Mark
	sessions []datapath.SessionStats
	copies   uint64
	echoes   uint64
}

var allow = gocmp.Options{gocmp.AllowUnexported(snapshot{}), cmpopts.EquateComparable(netip.AddrPort{})}

func (w *world) snapshot() snapshot {
	st := w.subject.Stats()
	return snapshot{st.Verdicts, w.subject.Marks(), st.Sessions, st.Copies, st.Echoes}
}

// compare compares outputs byte for byte, in any order: copies to several hosts
// have none that could be seen.
func compare(t *testing.T, want, got []Output) {
	t.Helper()
	if diff := gocmp.Diff(lines(want), lines(got)); diff != "" {
		t.Fatalf("outputs differ (-want +got):\n%s", diff)
	}
}

func lines(outputs []Output) []string {
	sorted := slices.Clone(outputs)
	slices.SortStableFunc(sorted, func(a, b Output) int {
		return cmp.Or(a.Dst.Compare(b.Dst), bytes.Compare(a.Data, b.Data))
	})
	all := make([]string, len(sorted))
	for i, o := range sorted {
		h, payload, v := wire.Parse(o.Data)
		all[i] = fmt.Sprintf("to %v: %v %v hops=%d epoch=%d handle=%08x flags=%d tags=%x/%x payload=%x raw=%x", o.Dst, v, &h,
			h.HopLimit, h.Epoch, h.Handle, h.Flags, h.PayloadTag, h.HopTag, payload, o.Data)
	}
	return all
}

// testComplete makes sure that no verdict goes untested, but for the one that a live
// engine has no reason for.
func testComplete(t *testing.T) {
	for _, v := range wire.Verdicts() {
		if v != wire.Orphaned && !slices.ContainsFunc(cases, func(c testCase) bool { return c.verdict == v }) {
			t.Errorf("no case ends in %v", v)
		}
	}
}
